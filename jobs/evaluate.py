"""Replay a log in time order, test then fold, and write a report of what fold-in is worth."""

from __future__ import annotations

import datetime as dt
import shlex
import sys
from pathlib import Path

from foldin.cli import Job, parser, run_job
from foldin.errors import ConfigError
from foldin.evaluation.report import write_report
from foldin.evaluation.run import Plan, evaluate


def main(job: Job) -> None:
    asked = job.options
    start = _moment(asked.start)
    plan = Plan(
        start_us=start,
        end_us=start + round(asked.days * 86_400_000_000),
        k=asked.k,
        batch_events=0 if asked.batch_seconds else asked.batch_events,
        batch_us=round(asked.batch_seconds * 1e6),
        nightly=asked.nightly,
        oracle_steps=asked.oracle,
        repeats=asked.repeats,
        tune_us=round(asked.tune_days * 86_400_000_000),
        seed=job.config.train.seed,
    )
    found = evaluate(job.tables, job.config, plan)
    command = shlex.join(["jobs/evaluate.py", *sys.argv[1:]])
    print(write_report(found, Path(asked.report), title=asked.title, command=command))


def _moment(text: str) -> int:
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(f"--start {text!r}: must be a date or time such as 2011-09-01") from error
    return round(moment.replace(tzinfo=moment.tzinfo or dt.UTC).timestamp() * 1e6)


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("--start", required=True, help="the test begins here (UTC): models know what came before")
    options.add_argument("--days", type=float, default=21.0, help="length of the test")
    options.add_argument("-k", type=int, default=20, help="length of the lists")
    options.add_argument("--batch-events", type=int, default=20, help="events of a micro-batch ...")
    options.add_argument("--batch-seconds", type=float, default=0.0, help="... or its length in seconds of the log")
    options.add_argument("--no-nightly", dest="nightly", action="store_false", help="never retrain")
    options.add_argument("--oracle", type=int, default=0, metavar="STEPS", help="so many steps against the oracle")
    options.add_argument("--repeats", action="store_true", help="items that the user had before count again")
    options.add_argument("--tune-days", type=float, default=14.0, help="before the start, to tune recent popularity on")
    options.add_argument("--report", default="report", metavar="FOLDER", help="where the report goes")
    options.add_argument("--title", default="What fold-in is worth")
    sys.exit(run_job(main, options))
