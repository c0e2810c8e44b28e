"""Train the full model on all of `events`, judge it on events held out, and bring it into force."""

from __future__ import annotations

import sys
from argparse import BooleanOptionalAction

from foldin.cli import Job, parser, run_job
from foldin.training import train


def nightly(job: Job) -> None:
    trained = train(
        job.tables, job.config, activate=job.options.activate, force=job.options.force, tune=job.options.search
    )
    waits = " (the stream is still adopting it)" if job.options.activate else ""
    state = "active" if trained.active else f"candidate{waits}"
    print(
        f"model {trained.model_version}: {trained.events:,} events, {trained.users:,} users, {trained.items:,} items, "
        f"parity {trained.parity:.1e}, {trained.seconds:.1f} s, {state}"
    )


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
    sys.exit(run_job(nightly, options))
