"""Equal in DESIGN's sense: what two installations that had the same files must agree on.

`events` and `quarantine` as multisets without stamps; latest factors within 1e-6, relative, a user; lists up to swaps
of items whose scores lie within 1e-5; the account of ingest down to the last row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
from pyspark.sql import Row
from pyspark.sql import functions as F

from foldin.publishing import Publisher
from foldin.reading import latest_recommendations, latest_user_factors
from foldin.schemas import EVENTS, INGEST_LOG, QUARANTINE, RECOMMENDATIONS, USER_FACTORS, Position, TableSpec
from foldin.tables import Tables

STAMPS = ("source_file", "ingested_at", "ingest_date")
"""Where and when a row was taken in: a duplicate may have come first from either of its files."""

FACTORS = 1e-6
SCORES = 1e-5

List = list[tuple[str, float]]


def without_stamps(tables: Tables, spec: TableSpec) -> Counter[tuple[Any, ...]]:
    """The table as a multiset of rows; times as microseconds since 1970."""
    rows = tables.read(spec).drop(*STAMPS)
    if "event_time" in rows.columns:
        rows = rows.withColumn("event_time", F.unix_micros("event_time"))
    return Counter(tuple(row) for row in rows.collect())


def factors_of(tables: Tables, version: str | None = None) -> dict[str, np.ndarray]:
    """{user: newest factors}; a user must not occur twice."""
    rows = latest_user_factors(tables, version).select("user_id", "factors").collect()
    return _by_user((row["user_id"], np.array(row["factors"], dtype=np.float64)) for row in rows)


def lists_of(tables: Tables, version: str | None = None) -> dict[str, List]:
    """{user: newest list, (item, score) best first}; a user must not occur twice."""
    rows = latest_recommendations(tables, version).select("user_id", "items").collect()
    return _by_user((row["user_id"], [(i["item_id"], i["score"]) for i in row["items"]]) for row in rows)


def assert_same_multiset(found: Counter[Any], wanted: Counter[Any], what: str) -> None:
    """Says what is missing and what is too many."""
    missing, surplus = wanted - found, found - wanted
    assert not missing and not surplus, (  # noqa: PT018 (one sentence says both)
        f"{what}: {missing.total()} rows are missing, such as {_some(missing)}; "
        f"{surplus.total()} are too many, such as {_some(surplus)}"
    )


def assert_same_factors(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    """Relative norm of the difference at most 1e-6, for every user."""
    _assert_same_users(found.keys(), wanted.keys(), "factors")
    off = {user: _distance(found[user], vector) for user, vector in wanted.items()}
    wrong = {user: distance for user, distance in off.items() if not distance <= FACTORS}
    assert not wrong, f"factors of {len(wrong)} of {len(wanted)} users differ, such as {_some(wrong)}"


def assert_same_lists(found: dict[str, List], wanted: dict[str, List]) -> None:
    """Best first, the same scores place by place, and items that differ only where their scores tie (1e-5)."""
    _assert_same_users(found.keys(), wanted.keys(), "lists")
    wrong = {user: (found[user], one) for user, one in wanted.items() if not _same_list(found[user], one)}
    assert not wrong, f"lists of {len(wrong)} of {len(wanted)} users differ, such as {_some(wrong)}"


def assert_account_adds_up(tables: Tables, rows_landed: int) -> None:
    """rows landed = rows in = events + quarantined + duplicates, and the tables hold what the account says."""
    log = tables.read(INGEST_LOG)
    batches = log.groupBy("query_id", "batch_id").count().where("count > 1").collect()
    assert not batches, f"accounted for twice: {batches}"
    names = ("rows_in", "events", "quarantined", "duplicates")
    row = log.agg(*[F.coalesce(F.sum(name), F.lit(0)).alias(name) for name in names]).first()
    assert row is not None
    account = row.asDict()
    assert account["rows_in"] == rows_landed == account["events"] + account["quarantined"] + account["duplicates"], (
        account,
        rows_landed,
    )
    assert account["events"] == tables.read(EVENTS).count()
    assert account["quarantined"] == tables.read(QUARANTINE).count()


def assert_nothing_published_twice(tables: Tables) -> None:
    """Of a user's factors and lists there is one row a model and position of `events`."""
    keys = ("model_version", "user_id", "events_version", "events_index")
    for spec in (USER_FACTORS, RECOMMENDATIONS):
        twice: list[Row] = tables.read(spec).groupBy(*keys).count().where("count > 1").limit(3).collect()
        assert not twice, f"{spec.name} published twice: {twice}"


def assert_same_input(found: Tables, wanted: Tables) -> None:
    """`events` and `quarantine`."""
    for spec in (EVENTS, QUARANTINE):
        assert_same_multiset(without_stamps(found, spec), without_stamps(wanted, spec), spec.name)


def assert_same_output(found: Tables, wanted: Tables, version: str | None = None) -> None:
    """Latest factors and lists under the active version (or the named one)."""
    assert_same_factors(factors_of(found, version), factors_of(wanted, version))
    assert_same_lists(lists_of(found, version), lists_of(wanted, version))


def assert_latest_is_a_refold(tables: Tables, top_n: int = 5) -> None:
    """The newest factors and list of every user are what a batch job makes of all of `events` today."""
    publisher = Publisher(tables, top_n)
    version = publisher.registry.active_version()
    until = tables.version(EVENTS)
    users = publisher.histories_at(publisher.model(version), until)
    rows = publisher.folded(users, version, Position.after(until)).collect()
    lists = {row["user_id"]: [(i["item_id"], i["score"]) for i in row["items"]] for row in rows}
    assert_same_factors(factors_of(tables), {row["user_id"]: np.array(row["factors"], np.float64) for row in rows})
    assert_same_lists(lists_of(tables), lists)


def _same_list(found: List, wanted: List) -> bool:
    if len(found) != len(wanted) or len(dict(found)) != len(found):
        return False
    if not all(abs(f[1] - w[1]) <= SCORES for f, w in zip(found, wanted, strict=True)):
        return False
    # An item may differ from the one at its place only by a swap with an item of the same score: in the list, where
    # it has its own score (by then it has the place's too), or just outside of it.
    scores, last = dict(wanted), wanted[-1][1] if wanted else 0.0
    inside = all(abs(score - scores.get(item, last)) <= SCORES for item, score in found)
    missing = all(score <= last + SCORES for item, score in wanted if item not in dict(found))
    return inside and missing


def _distance(found: np.ndarray, wanted: np.ndarray) -> float:
    norm = float(np.linalg.norm(wanted))
    return float(np.linalg.norm(found - wanted)) / norm if norm else float(np.linalg.norm(found))


def _assert_same_users(found: Iterable[str], wanted: Iterable[str], what: str) -> None:
    missing, surplus = set(wanted) - set(found), set(found) - set(wanted)
    assert not missing, f"{what}: {len(missing)} users are missing, such as {_some(missing)}"
    assert not surplus, f"{what}: {len(surplus)} users are too many, such as {_some(surplus)}"


def _by_user(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found = list(pairs)
    by_user = dict(found)
    assert len(by_user) == len(found), "a user occurs twice"
    return by_user


def _some(found: Any) -> str:
    items = found.items() if isinstance(found, dict) else found
    return str(sorted(items, key=str)[:2])
