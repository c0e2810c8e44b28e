"""Ingest and fold-in at once, in one process: a landed event is on a list in seconds."""

from __future__ import annotations

import sys

from foldin.cli import Job, parser, run_job
from foldin.pipeline import Pipeline


def stream(job: Job) -> None:
    pipeline = Pipeline(job.tables, job.config, job.mapping)
    pipeline.run(once=job.options.once)
    print(pipeline.ingest.account.report())
    print(f"{pipeline.fold_in.users:,} user updates published")


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("--once", action="store_true", help="take in what has landed, fold it in, then stop")
    sys.exit(run_job(stream, options, driver_memory="3g"))  # of two jobs that have 2g each
