"""Merge small files, delete dead ones, retire old models, bring the tables of an older foldin up to date."""

from __future__ import annotations

import sys

from foldin.cli import Job, parser, run_job
from foldin.maintenance import maintain


def main(job: Job) -> None:
    done = maintain(job.tables, job.config)
    if done.upgraded:
        print(f"upgraded: {', '.join(done.upgraded)}")
    if done.retired:
        print(f"retired: {', '.join(done.retired)}")
    merged = {table: counts for table, counts in done.files.items() if counts[0]}
    for table, (removed, added) in merged.items():
        print(f"{table}: {removed:,} small files merged into {added:,}")
    if not merged:
        print("no small files to merge")


if __name__ == "__main__":
    sys.exit(run_job(main, parser(__doc__)))
