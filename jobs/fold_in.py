"""Fold new events into user factors and recommendations, a micro-batch at a time."""

from __future__ import annotations

import sys

from foldin.cli import Job, parser, run_job
from foldin.fold_in import FoldIn


def fold_in(job: Job) -> None:
    users = FoldIn(job.tables, job.config).run(once=job.options.once)
    print(f"{users:,} user updates published")


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("--once", action="store_true", help="fold everything available, then stop")
    sys.exit(run_job(fold_in, options))
