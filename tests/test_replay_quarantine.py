"""The quarantine once more: what passes by now becomes events, once; the rest stays as it is."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from foldin.config import Config
from foldin.errors import FoldinError
from foldin.ingest import Ingest
from foldin.ledger import Account
from foldin.mapping import Mapping, contract
from foldin.replaying import replay_quarantine
from foldin.schemas import EVENTS, INGEST_LOG, QUARANTINE
from foldin.tables import Tables
from landing import event, land
from test_ingest import _FailsOnce, numbers


def ingest(tables: Tables, config: Config, mapping: Mapping | None = None) -> Account:
    return Ingest(tables, config, mapping or contract(config)).run(once=True)


def replay(tables: Tables, config: Config, mapping: Mapping | None = None) -> Account:
    return replay_quarantine(tables, config, mapping or contract(config))


def sums(tables: Tables) -> tuple[int, ...]:
    names = ("rows_in", "events", "quarantined", "duplicates")
    row = tables.read(INGEST_LOG).groupBy().sum(*names).first()
    return tuple(row)


def test_after_a_fix_the_rows_that_pass_become_events_once_and_the_others_stay_known(
    tables: Tables, make_config: Callable[..., Config]
) -> None:
    before = make_config()
    land(before, "1.json", event("a"), event("b", event_type="rating"), event(None, event_type="rating"), "broken")
    Path(before.ingest.landing, "2.json").write_bytes(event("d").encode().replace(b'"u"', b'"\xe9"') + b"\n")
    assert numbers(ingest(tables, before)) == (5, 1, 4, 0)
    nameless = tables.read(QUARANTINE).where("raw not like '%event_id%' and reason like 'unknown%'").first()

    after = make_config("events.weights={view=1, rating=2}")
    # The row that is no UTF-8 has lost its bytes: it is not even read.
    assert numbers(replay(tables, after)) == (3, 2, 0, 1)
    events = {row["event_id"]: row for row in tables.read(EVENTS).collect()}
    assert events.keys() == {"a", "b", nameless["record_id"]}
    assert events["b"]["source_file"].endswith("/landing/1.json")
    assert tables.read(QUARANTINE).count() == 4

    assert numbers(replay(tables, after)) == (3, 0, 0, 3)
    # And whoever sends the rows themselves again is told the same ids.
    land(after, "3.json", event("b", event_type="rating"), event(None, event_type="rating"))
    assert numbers(ingest(tables, after)) == (2, 0, 0, 2)
    assert sums(tables) == (13, 3, 4, 6)
    assert not list(Path(tables.root, "_checkpoints", "replay_quarantine").glob("[0-9]*"))


def test_a_row_from_the_future_is_admitted_when_its_time_has_come(
    tables: Tables, make_config: Callable[..., Config]
) -> None:
    soon = (dt.datetime.now(dt.UTC) + dt.timedelta(minutes=90)).isoformat()
    config = make_config()
    land(config, "1.json", event("soon", event_time=soon), event("later", event_time="2999-01-01"))
    assert ingest(tables, config).quarantined == {"future event_time": 2}
    assert numbers(replay(tables, config)) == (2, 0, 0, 2)
    # Ninety minutes later; the clock's place is taken by the tolerance, which says the same of the two.
    later = make_config("events.max_future_minutes=100")
    assert numbers(replay(tables, later)) == (2, 1, 0, 1)
    assert [row["event_id"] for row in tables.read(EVENTS).collect()] == ["soon"]


def test_an_interrupted_replay_is_finished_and_nothing_is_there_twice(
    tables: Tables, make_config: Callable[..., Config]
) -> None:
    land(make_config(), "1.json", event("a", event_type="rating"), event("b", event_type="rating"), "broken")
    ingest(tables, make_config())
    after = make_config("events.weights={view=1, rating=2}")
    with pytest.raises(FoldinError, match="disk full"):
        replay(_FailsOnce(tables.spark, tables.root), after)
    assert numbers(replay(tables, after)) == (3, 0, 0, 3)  # the one that was interrupted has them
    assert tables.read(EVENTS).count() == 2
    assert sums(tables) == (9, 2, 3, 4)


def test_rows_that_came_from_parquet_are_read_as_they_were_then(
    tables: Tables, make_config: Callable[..., Config]
) -> None:
    config = make_config("ingest.format=parquet")
    when = dt.datetime(2024, 5, 1, 10, 0, 0, 123456)
    rows: dict[str, Any] = {
        "event_id": pa.array([7, 8], pa.int64()),
        "user_id": [b"u", b"u"],
        "item_id": ["1.50", "true"],
        "event_type": ["rating", "rating"],
        "value": pa.array([1e10, 2.5], pa.float64()),
        "event_time": [when, when],
        "extra": [None, {"deep": [1]}],
    }
    pq.write_table(pa.table(rows), Path(config.ingest.landing, "1.parquet"))
    assert numbers(ingest(tables, config)) == (2, 0, 2, 0)
    after = make_config("ingest.format=parquet", "events.weights={view=1, rating=2}")
    assert numbers(replay(tables, after)) == (2, 2, 0, 0)
    found = tables.read(EVENTS).selectExpr("event_id", "user_id", "item_id", "value", "cast(event_time as string)")
    assert sorted(tuple(row) for row in found.collect()) == [
        ("7", "u", "1.50", 1e10, "2024-05-01 10:00:00.123456"),
        ("8", "u", "true", 2.5, "2024-05-01 10:00:00.123456"),
    ]
