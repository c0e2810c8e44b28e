"""Make the lists of all users anew, or print the list of one."""

from __future__ import annotations

import sys

from foldin.cli import Job, parser, run_job
from foldin.reading import recommendations_for
from foldin.recommending import recommend_all


def recommend(job: Job) -> None:
    if job.options.user is None:
        users = recommend_all(job.tables, job.config.recommend.top_n)
        print(f"{users:,} lists of {job.config.recommend.top_n} written")
        return
    found = recommendations_for(job.tables, job.options.user, job.config.recommend.top_n)
    print(f"user {found.user_id}, model {found.model_version}, by {found.source}")
    for place, (item_id, score) in enumerate(found.items, start=1):
        print(f"{place:>4}  {score:8.4f}  {item_id}")


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("--user", metavar="ID", help="print this user's latest list instead")
    sys.exit(run_job(recommend, options))
