"""Lists for all users in batch: after a change of top_n, of the seen filter, or to be sure."""

from __future__ import annotations

from foldin.publishing import Publisher
from foldin.schemas import EVENTS, RECOMMENDATIONS, Position
from foldin.tables import Tables

__all__ = ["recommend_all"]


def recommend_all(tables: Tables, top_n: int) -> int:
    """Fold and rank every user that has events, under the active model, and append the lists; the number of users.

    The lists are made of the same histories and by the same pass as the stream's, so they equal what a micro-batch
    that touched every user would have written.

    Raises:
        MissingModelError: no model is active.
    """
    publisher = Publisher(tables, top_n)
    version = publisher.registry.active_version()
    until = tables.version(EVENTS)
    users = publisher.histories_at(publisher.model(version), until)
    rows = publisher.folded(users, version, Position.after(until)).persist()
    try:
        count = rows.count()
        tables.append(rows, RECOMMENDATIONS)
    finally:
        rows.unpersist()
    return count
