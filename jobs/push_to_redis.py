"""Push new lists to Redis as a stream, and point its readers to the active model."""

from __future__ import annotations

import sys
from argparse import Namespace

from foldin.cli import Job, parser, run_job
from foldin.pushing import Push
from foldin.redis_lists import Target


def prepare(given: Namespace) -> None:
    given.target = Target.of(given.url, given.prefix)


def push(job: Job) -> None:
    written = Push(job.tables, job.config, job.options.target, job.options.name).run(once=job.options.once)
    print(f"{written:,} lists written")


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("--once", action="store_true", help="push everything available, then stop")
    options.add_argument(
        "--url", help="redis://[user@]host[:port][/database]; by default $FOLDIN_REDIS_URL, which may hold a password"
    )
    options.add_argument("--prefix", default="foldin", help="of all keys (default: %(default)s)")
    options.add_argument(
        "--name", default="redis", help="of the query and its checkpoint, one for each target (default: %(default)s)"
    )
    sys.exit(run_job(push, options, prepare=prepare))
