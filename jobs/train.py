"""Train the full model on all of `events`, judge it on events held out, and bring it into force."""

from __future__ import annotations

import datetime as dt
import sys
from argparse import BooleanOptionalAction

from foldin.cli import Job, parser, run_job
from foldin.training import train


def nightly(job: Job) -> None:
    wanted = job.options
    trained = train(
        job.tables,
        job.config,
        activate=wanted.activate,
        force=wanted.force,
        tune=wanted.search,
        name=wanted.name,
        until=wanted.until,
    )
    waits = "the stream is still adopting it" if wanted.activate else "left as it is" if trained.again else "candidate"
    print(
        f"model {trained.model_version}{' is there already' if trained.again else ''}: {trained.events:,} events, "
        f"{trained.users:,} users, {trained.items:,} items, parity {trained.parity:.1e}, {trained.seconds:.1f} s, "
        f"{'active' if trained.active else waits}"
    )


def moment(text: str) -> dt.datetime:
    at = dt.datetime.fromisoformat(text)
    return at if at.tzinfo is not None else at.replace(tzinfo=dt.UTC)


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument(
        "--activate", action=BooleanOptionalAction, default=True, help="or leave it a candidate; the active model stays"
    )
    options.add_argument(
        "--force", action="store_true", help="activate it even if it is judged worse than the active model"
    )
    options.add_argument(
        "--search", action="store_true", help="find settings first, within the budget of [search]; needs Optuna"
    )
    options.add_argument(
        "--as", dest="name", metavar="NAME", help="of the model; one that is there already is not trained again"
    )
    options.add_argument(
        "--until", type=moment, metavar="TIME", help="train on what was ingested before (ISO 8601, UTC)"
    )
    sys.exit(run_job(nightly, options))
