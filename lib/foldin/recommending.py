"""Lists for all users in batch: after a change of top_n, of the seen filter, or to be sure."""

from __future__ import annotations

import json
import logging

import foldin
from foldin.commits import CommitLog
from foldin.config import Config
from foldin.leases import Lease
from foldin.publishing import Publisher
from foldin.schemas import EVENTS, RECOMMENDATIONS, Position
from foldin.tables import Tables

__all__ = ["recommend_all"]

log = logging.getLogger("foldin.recommend")

_DONE = "done"


def recommend_all(tables: Tables, config: Config, *, force: bool = False) -> int | None:
    """Fold and rank every user that has events, under the active model, and append the lists; the number of users.

    The lists are made of the same histories and by the same pass as the stream's, so they equal what a micro-batch
    that touched every user would have written.

    Args:
        force: also when a run before has done it for the same model, the same events and the same length of lists.

    Returns:
        None where it was done already.

    Raises:
        LeaseError: another process does so.
        MissingModelError: no model is active.
    """
    top_n = config.recommend.top_n
    with Lease.of_job(tables, "recommend", config.fold_in.lease_seconds) as lease:
        publisher = Publisher(tables, top_n)
        version, until = publisher.registry.active_version(), tables.version(EVENTS)
        changed = _last_change(tables, until)
        work = {"model": version, "events_version": changed, "top_n": top_n, "foldin": foldin.__version__}
        if not force and lease.checkpoint.read_object(_DONE) == work:
            log.info("the lists of model %s at version %d of events are there", version, changed)
            return None
        users = publisher.histories_at(publisher.model(version), until)
        rows = publisher.folded(users, version, Position.after(until)).persist()
        try:
            count = rows.count()
            tables.append(rows, RECOMMENDATIONS)
        finally:
            rows.unpersist()
        lease.checkpoint.write(_DONE, json.dumps(work))
    return count


def _last_change(tables: Tables, until: int) -> int:
    """The version of `events` up to `until` that last brought or changed rows, as far as its log goes back."""
    commits, version = CommitLog(tables, EVENTS), until
    while (commit := commits.commit(version)) is not None and not (commit.files or commit.changes):
        version -= 1
    return version
