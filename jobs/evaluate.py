"""Replay a log, test then fold, and report what fold-in is worth beside popularity, the night's model, an oracle."""

from __future__ import annotations

import datetime as dt
import sys
from pathlib import Path

from foldin.cli import parser, run_job
from foldin.demo.synthetic import SIZES
from foldin.evaluation import Plan, check_options, evaluate_job

if __name__ == "__main__":
    options = parser(__doc__)
    source = options.add_mutually_exclusive_group()
    source.add_argument("--data", type=Path, metavar="FOLDER", help="files of a log (--mapping says how to read them)")
    source.add_argument("--generated", choices=SIZES, metavar="SIZE", help=f"a generated log: {', '.join(SIZES)}")
    options.add_argument("--start", type=dt.datetime.fromisoformat, metavar="TIME", help="foretell from here (UTC) on")
    options.add_argument("--days", type=float, help="so long; default: to the end of the log")
    options.add_argument("-k", type=int, default=Plan.k, help="length of the lists (%(default)s)")
    options.add_argument("--batch-events", type=int, help=f"events of a micro-batch ({Plan.batch_events})")
    options.add_argument("--batch-seconds", type=float, help="... or seconds of one, up to a day")
    options.add_argument("--repeats", action="store_true", help="items that a user had before may be listed, and count")
    options.add_argument("--retrain-days", type=float, help="0: never; default: 1, of a long log rarer")
    options.add_argument("--model-age", type=float, default=0.0, dest="model_age_days", help="in days, at the start")
    options.add_argument("--oracle", type=int, default=0, metavar="N", help="retrain from scratch at N micro-batches")
    options.add_argument("--tune-days", type=float, default=Plan.tune_days, help="to tune recent popularity on")
    options.add_argument("--report", type=Path, default=Path("report"), metavar="FOLDER", help="(%(default)s)")
    options.add_argument("--title", help="name of the log in the report")
    sys.exit(run_job(evaluate_job, options, prepare=check_options, create=False))
