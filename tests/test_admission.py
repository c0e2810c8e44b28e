"""Two ingest jobs at one table: whoever commits first has the id, and nobody counts a row twice."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from delta.exceptions import ConcurrentTransactionException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from foldin import admission
from foldin.admission import Admission
from foldin.checkpoints import Checkpoint
from foldin.commits import Commit, CommitLog
from foldin.schemas import EVENTS, QUARANTINE, TableSpec
from foldin.tables import Tables, Transaction
from world import bought

Rows = Callable[..., tuple[DataFrame, Counter[str]]]


@pytest.fixture
def rows(events_frame: Callable[..., DataFrame]) -> Rows:
    """New rows of a batch by their ids, and how many there are."""

    def make(*ids: str) -> tuple[DataFrame, Counter[str]]:
        frame = events_frame(*[bought(each, "u", "i") for each in ids])
        return frame.withColumns({"record_id": F.col("event_id"), "reason": F.lit(None).cast("string")}), Counter(
            {"": len(ids)}
        )

    return make


_BATCHES = 100
"""No test here goes beyond."""


def door(tables: Tables, name: str, spec: TableSpec = EVENTS, state: int = -1) -> Admission:
    """The door of the query `name`, opened."""
    checkpoint = Checkpoint(tables.spark, tables.path("_checkpoints", name))
    metadata = Path(checkpoint.path, "metadata")
    metadata.parent.mkdir(parents=True, exist_ok=True)
    metadata.write_text(json.dumps({"id": name}))
    made = Admission(tables, spec, checkpoint)
    made.open(state, planned=_BATCHES)
    return made


def state_of(made: Admission) -> int:
    """After the batch that took in every bundle."""
    made.absorb(max(made._bundles, default=None))
    return made.state


def _commits(tables: Tables) -> list[Commit]:
    log = CommitLog(tables, EVENTS)
    found = [log.commit(version) for version in range(tables.version(EVENTS) + 1)]
    return [commit for commit in found if commit is not None]


def ids(tables: Tables) -> list[str]:
    return sorted(row["event_id"] for row in tables.read(EVENTS).select("event_id").collect())


@pytest.fixture(params=["under a lock", "by Delta"])
def either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare-and-set as it is on a local disk, and as it is elsewhere."""
    if request.param == "by Delta":
        monkeypatch.setattr(Tables, "exclusive", False)


@pytest.mark.usefixtures("either_way")
def test_an_id_that_another_job_committed_between_the_look_and_the_append_is_not_appended_again(
    tables: Tables, rows: Rows
) -> None:
    ours, theirs = door(tables, "ours"), door(tables, "theirs")
    ours.look()
    assert theirs.admit(*rows("x", "y"), 0) == {"": 2}
    # Ours does not know of that commit: it sees it under the lock, or Delta skips its append, as the number is taken.
    assert ours.admit(*rows("y", "z"), 0) == {"": 1}
    assert ids(tables) == ["x", "y", "z"]
    assert theirs.admit(*rows("z"), 1) == {}  # nothing is left, nothing is committed
    assert len([c for c in _commits(tables) if c.files]) == 2


class _Overtaken(Tables):
    """Tables whose next append is refused by Delta, because another job's came first."""

    def append(
        self, rows: DataFrame, spec: TableSpec, transaction: Transaction | None = None, *, metadata: str | None = None
    ) -> None:
        if overtake := _OVERTAKE.pop("now", None):
            overtake()
            raise ConcurrentTransactionException("another one was faster")
        super().append(rows, spec, transaction, metadata=metadata)


_OVERTAKE: dict[str, Callable[[], object]] = {}


def test_an_append_that_loses_against_another_job_is_tried_again_without_what_that_brought(
    spark: SparkSession, tables: Tables, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tables, "exclusive", False)
    theirs = door(tables, "theirs")
    ours = door(_Overtaken(spark, tables.root), "ours")
    _OVERTAKE["now"] = lambda: theirs.admit(*rows("x", "y"), 0)
    assert ours.admit(*rows("y", "z"), 0) == {"": 1}
    assert ids(tables) == ["x", "y", "z"]


def test_a_replayed_batch_finds_its_own_commit_and_gives_the_same_account(tables: Tables, rows: Rows) -> None:
    ours, theirs = door(tables, "ours"), door(tables, "theirs")
    state = state_of(ours)
    theirs.admit(*rows("a"), 0)
    ours.look()
    assert ours.admit(*rows("a", "b", "c"), 7) == {"": 2}
    theirs.look()
    theirs.admit(*rows("d"), 1)
    # Killed before anything else was written, the batch is replayed, with a row that others have brought since.
    again = door(tables, "ours", state=state)
    version = tables.version(EVENTS)
    again.look()
    assert again.admit(*rows("a", "b", "c"), 7) == {"": 2}
    assert tables.version(EVENTS) == version
    assert again.admit(*rows("d", "e"), 8) == {"": 1}
    assert ids(tables) == ["a", "b", "c", "d", "e"]


@pytest.mark.parametrize("why", ["many commits", "a log that was cleaned up"])
def test_a_log_that_is_too_long_or_gone_is_made_up_for_by_the_table_itself(
    tables: Tables, rows: Rows, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    ours, theirs = door(tables, "ours"), door(tables, "theirs")
    state = state_of(ours)
    ours.admit(*rows("mine", "too"), 3)
    for n, each in enumerate("abcd"):
        theirs.look()
        theirs.admit(*rows(each), n)
    if why == "many commits":
        monkeypatch.setattr(admission, "_COMMITS_TO_READ", 2)
    else:
        tables.spark.sql(f"alter table {tables.name(EVENTS)} set tblproperties ('delta.checkpointInterval' = '1')")
        for version in range(2):
            Path(tables.root, "events", "_delta_log", f"{version:020d}.json").unlink()
    again = door(tables, "ours", state=state)
    if why == "many commits":  # else its own commit is not told of any more
        assert again.admit(*rows("mine", "too"), 3) == {"": 2}
    assert again.admit(*rows("d", "e"), 4) == {"": 1}
    assert ids(tables) == ["a", "b", "c", "d", "e", "mine", "too"]


def test_what_another_job_wrote_reaches_the_known_ids_once_and_the_state_counts_as_complete_then(
    spark: SparkSession, tables: Tables, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = door(tables, "ours"), door(tables, "theirs")
    assert state_of(ours) == 0
    monkeypatch.setattr(admission, "_COMMITS_TO_KEEP", 2)
    for n, each in enumerate("abc"):
        theirs.look()
        theirs.admit(*rows(each), n)
        ours.look()
    ours.absorb(None)
    assert ours.state == 0  # two are handed on and one is not; the state has none of them
    (bundle,) = ours._bundles
    handed_on = spark.read.parquet(f"{tables.root}/_checkpoints/ours/prime/events-{bundle}").collect()
    assert sorted(row["record_id"] for row in handed_on) == ["", "a", "b"]
    assert {row["bundle"] for row in handed_on} == {bundle}
    assert ours.absorb(bundle - 1) == []  # of an earlier run: who knows whether it was whole
    assert ours.state == 0
    assert ours.absorb(bundle) == [f"prime/events-{bundle}"]
    assert ours.state == 2
    assert ours.admit(*rows("c"), 0) == {}


def test_compaction_brings_no_ids_and_a_vacuum_after_it_hides_none(tables: Tables, rows: Rows) -> None:
    spark = tables.spark
    ours, theirs = door(tables, "ours"), door(tables, "theirs")
    state_of(ours)
    for n, each in enumerate("ab"):
        theirs.look()
        theirs.admit(*rows(each), n)
    ours.look()
    spark.sql(f"optimize {tables.name(EVENTS)}")
    ours.look()
    assert len(ours._foreign) == 2
    key = "spark.databricks.delta.retentionDurationCheck.enabled"
    spark.conf.set(key, "false")
    try:
        spark.sql(f"vacuum {tables.name(EVENTS)} retain 0 hours")
    finally:
        spark.conf.unset(key)
    assert ours.admit(*rows("b", "c"), 0) == {"": 1}
    assert ids(tables) == ["a", "b", "c"]


def test_rejected_rows_are_told_by_reason(tables: Tables) -> None:
    frame = tables.spark.createDataFrame([("r1", "broken json"), ("r2", "no user")], "record_id string, reason string")
    full = frame.selectExpr(
        "*",
        "'' as detail",
        "'' as raw",
        "'f' as source_file",
        "current_timestamp() as ingested_at",
        "current_date() as ingest_date",
    )
    ours, theirs = (door(tables, name, QUARANTINE) for name in ("ours", "theirs"))
    theirs.admit(full.where("record_id = 'r1'"), Counter({"broken json": 1}), 0)
    assert ours.admit(full, Counter({"broken json": 1, "no user": 1}), 0) == {"no user": 1}
