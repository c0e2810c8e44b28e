"""Maintenance: quick tables, no dead files, no models of long ago, and nobody who runs beside it notices."""

from __future__ import annotations

import datetime as dt
import json
import os
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from foldin import maintenance
from foldin.compaction import compact
from foldin.errors import LeaseError, MissingModelError, StateMismatchError
from foldin.leases import Lease
from foldin.lineage import lineage
from foldin.maintenance import look_after, maintain, retention_hours
from foldin.publishing import Publisher
from foldin.registry import PromotionConflictError, Registry
from foldin.schemas import EVENTS, ITEM_FACTORS, METRICS, MODELS, RECOMMENDATIONS, TABLES, USER_FACTORS, Position
from foldin.tables import Tables
from foldin.training import train
from world import ITEMS, bought, fold_once, latest_lists

pytestmark = pytest.mark.lifecycle


def versions_in(tables, spec) -> set[str]:
    return {row[0] for row in tables.read(spec).select("model_version").distinct().collect()}


def test_metrics_of_long_ago_go(world, make_config):
    today = dt.datetime.now(dt.UTC)
    rows = [
        {"query": "q", "batch_id": n, "at": at, "metrics_date": at.date()}
        for n, at in enumerate(today - dt.timedelta(days=days) for days in (30, 8, 6, 0))
    ]
    world.append(world.spark.createDataFrame(rows, METRICS.schema).coalesce(1), METRICS)
    maintain(world, make_config("maintain.metrics_days=7"))
    assert sorted(row["batch_id"] for row in world.read(METRICS).collect()) == [2, 3]


def test_old_models_are_retired_whole_and_the_others_serve_as_before(folded, make_config, events_frame):
    config = make_config("maintain.keep_models=2")
    registry = Registry(folded)
    first = registry.active_version()
    second = train(folded, config).model_version
    beside = train(folded, config, activate=False).model_version  # as old as the second, never served
    third = train(folded, config).model_version
    folded.append(events_frame(bought("moves the pin", "u1", "i0")), EVENTS)
    fold_once(folded, config)
    before = latest_lists(folded)
    assert set(maintain(folded, config).retired) == {first}
    for spec in (ITEM_FACTORS, USER_FACTORS, RECOMMENDATIONS):
        assert versions_in(folded, spec) == {second, beside, third}
    assert latest_lists(folded) == before
    with pytest.raises(MissingModelError, match=f"{first} is retired"):
        Publisher(folded, 3).activate(first, reason="back")
    # Back to the one that is kept, and on with the stream: promotions count on past the retirement.
    Publisher(folded, 3).activate(second, reason="back")
    folded.append(events_frame(bought("a", "u1", "i0")), EVENTS)
    assert fold_once(folded, config) > 0
    assert registry.active_version() == second


def test_after_a_week_of_what_never_served_only_the_newest_is_left_if_it_is_newer_than_what_serves(
    folded, config, events_frame, monkeypatch
):
    old = train(folded, config, activate=False).model_version
    folded.append(events_frame(bought("a", "u1", "i0")), EVENTS)
    train(folded, config)
    folded.append(events_frame(bought("b", "u1", "i1")), EVENTS)
    refused = [train(folded, config, activate=False).model_version]
    folded.append(events_frame(bought("c", "u1", "i2")), EVENTS)
    refused.append(train(folded, config, activate=False).model_version)  # night after night
    assert maintain(folded, config).retired == ()  # the gate kept it: a person may bring it into force by --force
    monkeypatch.setattr(maintenance, "_LOOKED_AT_DAYS", 0)
    assert maintain(folded, config).retired == (old, refused[0])
    assert refused[1] in versions_in(folded, ITEM_FACTORS)


def test_a_retirement_and_a_promotion_at_the_same_time_exclude_each_other(folded, config):
    registry = Registry(folded)
    candidate = train(folded, config, activate=False).model_version
    expected = registry.read()
    registry.retire(candidate, reason="test")
    with pytest.raises(PromotionConflictError, match=f"{candidate} was not promoted"):
        registry.promote(candidate, Position(9), reason="too late", expected=expected)
    with pytest.raises(PromotionConflictError, match="is active"):
        registry.retire(registry.active_version(), reason="test")


def test_a_retirement_that_was_killed_half_way_is_finished(folded, config):
    candidate = train(folded, config, activate=False).model_version
    Registry(folded).retire(candidate, reason="killed after this")
    maintain(folded, config)
    assert candidate not in versions_in(folded, USER_FACTORS)


def test_rows_of_a_training_that_was_killed_go_after_a_week_and_no_others(folded, config, monkeypatch):
    active = Registry(folded).active_version()
    for spec in (ITEM_FACTORS, USER_FACTORS):  # killed before it wrote its lists and its row in `models`
        folded.append(folded.read(spec).withColumn("model_version", F.lit("killed")), spec)
    maintain(folded, config)
    assert versions_in(folded, ITEM_FACTORS) == versions_in(folded, USER_FACTORS) == {active, "killed"}
    monkeypatch.setattr(maintenance, "_ABANDONED_DAYS", 0)
    with Lease.of_job(folded, "train", 30):  # of a training that may have taken up the name
        maintain(folded, config)
    assert versions_in(folded, ITEM_FACTORS) == {active, "killed"}
    maintain(folded, config)
    assert versions_in(folded, ITEM_FACTORS) == versions_in(folded, USER_FACTORS) == {active}


def test_the_model_that_the_streams_last_batch_had_pinned_is_kept(folded, make_config):
    config = make_config("maintain.keep_models=1")
    pinned = Registry(folded).active_version()
    train(folded, config)
    assert maintain(folded, config).retired == ()
    assert pinned in versions_in(folded, ITEM_FACTORS)
    fold_once(folded, config)  # an empty batch, of the merge: under the new model
    assert maintain(folded, config).retired == (pinned,)


def test_a_second_maintenance_beside_the_first_is_refused(folded, config):
    with Lease.of_job(folded, "maintain", 30), pytest.raises(LeaseError, match="is in use by process"):
        maintain(folded, config)
    maintain(folded, config)


def aged(folder: Path, hours: float) -> None:
    """All data files, and what the log says of its commits, as if they were so much older than they are."""
    back = hours * 3600
    times = {file: file.stat().st_mtime - back for file in folder.glob("**/*") if file.is_file()}
    for file in (folder / "_delta_log").glob("*.json"):
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        for line in lines:
            if "remove" in line:
                line["remove"]["deletionTimestamp"] -= int(back * 1000)
            if "commitInfo" in line:
                line["commitInfo"]["timestamp"] -= int(back * 1000)
        file.write_text("\n".join(map(json.dumps, lines)) + "\n")
        (file.parent / f".{file.name}.crc").unlink(missing_ok=True)
    for file in (folder / "_delta_log").glob("*.checkpoint*.parquet"):
        table = pq.read_table(file, partitioning=None)
        removed = pa.concat_arrays(table["remove"].chunks)
        parts = dict(zip(removed.type.names, removed.flatten(), strict=True))
        parts["deletionTimestamp"] = pc.subtract(parts["deletionTimestamp"], int(back * 1000))
        aged_ones = pa.StructArray.from_arrays([*parts.values()], fields=[*removed.type], mask=removed.is_null())
        pq.write_table(table.set_column(table.column_names.index("remove"), "remove", aged_ones), file)
        (file.parent / f".{file.name}.crc").unlink(missing_ok=True)
    for file, then in times.items():
        if file.exists():
            os.utime(file, (then, then))


def test_vacuum_spares_what_a_commit_of_the_log_added_and_deletes_what_none_did(folded, config, events_frame):
    for k in range(3):
        folded.append(events_frame(bought(f"x{k}", "u1", ITEMS[k])), EVENTS)
    folder = Path(folded.path(EVENTS.name))
    compact(folded, EVENTS)
    aged(folder, 30)
    for name, hours in (("dead", 40), ("alive", 20)):  # parts of writers that have not committed
        file = folder / f"{name}.parquet"
        file.write_bytes(b"PAR1")
        os.utime(file, (time.time() - hours * 3600,) * 2)
    assert 31 <= retention_hours(folded, EVENTS) <= 32
    assert retention_hours(folded, MODELS) == 24
    maintain(folded, config)
    assert fold_once(folded, config) == 1  # from the files that the merge had replaced 30 hours ago
    assert not (folder / "dead.parquet").exists()
    assert (folder / "alive.parquet").exists()


def test_file_counts_stay_flat_however_many_commits_come(folded, config, events_frame):
    folder, counts = Path(folded.path(USER_FACTORS.name)), []
    row = folded.read(USER_FACTORS).limit(1).persist()
    for _ in range(4):
        for _ in range(15):  # of a stream that makes a commit a second
            folded.append(row, USER_FACTORS)
        look_after(folded, config, USER_FACTORS)
        counts.append(len(list(folder.glob("**/*.parquet"))))
        aged(folder, 60)
        folded.spark.sparkContext._jvm.org.apache.spark.sql.delta.DeltaLog.clearCache()  # it remembers the true times
    row.unpersist()
    # The files of two rounds: so long a commit of the log still speaks of them.
    assert counts[3] <= counts[2] + 2
    assert counts[3] < 45


def older(spec, *without: str):
    """The table as an older foldin made it."""
    return replace(spec, schema=StructType([c for c in spec.schema if c.name not in without]), properties={})


def test_a_table_of_an_older_foldin_gets_its_new_columns_and_keeps_its_rows(spark, tmp_path, make_config):
    tables = Tables(spark, str(tmp_path / "tables"))
    tables._create(older(EVENTS, "value", "source_file"))
    old = "'a' event_id, 'u' user_id, 'i' item_id, 'view' event_type, timestamp'2024-01-01' event_time, "
    old += "timestamp'2024-01-01' ingested_at, date'2024-01-01' ingest_date"
    spark.sql(f"select {old}").write.format("delta").mode("append").save(tables.path("events"))
    given = tables.upgrade(EVENTS)
    assert given[:2] == ["events.value", "events.source_file"]
    assert "events.delta.enableChangeDataFeed" in given
    assert tables.upgrade(EVENTS) == []
    tables.append(spark.sql(f"select {old}, 2.0D value, 'f' source_file"), EVENTS)
    rows = tables.read(EVENTS).select("event_id", "value", "source_file").collect()
    assert {tuple(row) for row in rows} == {("a", None, None), ("a", 2.0, "f")}
    assert [c.metadata.get("comment") for c in tables.read(EVENTS).schema if c.name == "value"] == [
        EVENTS.schema["value"].metadata["comment"]
    ]


def test_a_column_of_another_type_is_refused_by_name(spark, tmp_path):
    tables = Tables(spark, str(tmp_path / "tables"))
    spark.sql("select 'a' model_version, 'one' sequence").write.format("delta").save(tables.path("models"))
    with pytest.raises(StateMismatchError, match=r"^models\.sequence is string, but this foldin needs bigint"):
        tables.upgrade(MODELS)


@pytest.fixture
def released(spark, tmp_path, config) -> Path:
    """The tables that the first release of foldin made (commit a9eeab5 of 2026-11-24), as they were stored then."""
    with tarfile.open(Path(__file__).parent / "data" / "tables-0.1.0.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "tables"


def test_stored_tables_of_the_first_release_are_brought_up_to_date_and_go_on(spark, released, config, events_frame):
    before = {p.name: spark.read.format("delta").load(str(p)).count() for p in released.iterdir() if p.is_dir()}
    columns = spark.read.format("delta").load(str(released / "models")).columns
    assert "judgement" not in columns  # else it is no older table
    assert not (released / "trials").exists()
    tables = Tables.of(spark, config.tables)
    maintain(tables, config)
    for spec in TABLES:
        assert set(tables.read(spec).columns) == set(spec.schema.names)
        assert tables.read(spec).count() == before.get(spec.name, 0)
    old = Registry(tables).active_version()
    assert latest_lists(tables)["u1"]
    tables.append(events_frame(bought("after the upgrade", "u2", "i1")), EVENTS)
    assert fold_once(tables, config) > 0
    new = train(tables, config).model_version
    assert [version.model_version for version in lineage(tables)] == [new, old]
    Publisher(tables, 3).activate(old, reason="rollback")
    assert Registry(tables).active_version() == old
