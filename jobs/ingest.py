"""Read the configured source as a stream into `events` and `quarantine`."""

from __future__ import annotations

import sys

from foldin.cli import Job, parser, run_job
from foldin.ingest import Ingest
from foldin.replaying import replay_quarantine


def ingest(job: Job) -> None:
    if job.options.replay_quarantine:
        account = replay_quarantine(job.tables, job.config, job.mapping)
    else:
        account = Ingest(job.tables, job.config, job.mapping).run(once=job.options.once)
    print(account.report())


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("--once", action="store_true", help="take in what has landed, then stop")
    options.add_argument(
        "--replay-quarantine",
        action="store_true",
        help="judge the quarantined rows anew, after a fix; those that pass become events, then stop",
    )
    sys.exit(run_job(ingest, options))
