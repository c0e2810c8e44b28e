"""Make the lists of all users anew, print the list of one, or say why."""

from __future__ import annotations

import sys

from foldin.cli import Job, parser, run_job
from foldin.explaining import explain, explain_list
from foldin.reading import recommendations_for
from foldin.recommending import recommend_all


def recommend(job: Job) -> None:
    top_n = job.config.recommend.top_n
    if job.options.explain is not None:
        why(job)
        return
    if job.options.user is None:
        users = recommend_all(job.tables, job.config, force=job.options.force)
        print("all lists are there already" if users is None else f"{users:,} lists of {top_n} written")
        return
    found = recommendations_for(job.tables, job.options.user, top_n)
    print(f"user {found.user_id}, model {found.model_version}, by {found.source}")
    for place, (item_id, score) in enumerate(found.items, start=1):
        print(f"{place:>4}  {score:8.4f}  {item_id}")


def why(job: Job) -> None:
    user, item = job.options.explain, job.options.item
    reasons = [explain(job.tables, user, item)] if item else explain_list(job.tables, user)
    for reason in reasons:
        print(f"{reason.explanation.score:8.4f}  {reason}")
    if not reasons:
        print(f"user {user} has no factors yet: the list goes by popularity")


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("--user", metavar="ID", help="print this user's latest list instead")
    options.add_argument("--explain", metavar="USER", help="say why each item is on this user's list")
    options.add_argument("--force", action="store_true", help="make them anew even if nothing has changed")
    options.add_argument("--item", metavar="ID", help="with --explain: this item instead of the list")
    sys.exit(run_job(recommend, options))
