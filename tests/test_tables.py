"""Tables: once is once, latest means position, and names work as well as paths."""

from __future__ import annotations

from pathlib import Path

import pytest
from chispa import assert_df_equality

from foldin.reading import latest_recommendations
from foldin.schemas import EVENTS, TABLES, USER_FACTORS, Position
from foldin.tables import Tables, Transaction, in_full, latest
from foldin.training import train
from world import bought, fold_once, initial_rows, latest_lists


def factor_rows(spark, *rows):
    """(version, user, first factor, events_version, events_index, folded_at) rows of user_factors."""
    schema = "model_version string, user_id string, x float, events_version long, events_index long, at string"
    return spark.createDataFrame(list(rows), schema).selectExpr(
        "model_version",
        "user_id",
        "array(x) as factors",
        "1 as events",
        "events_version",
        "events_index",
        "timestamp(at) as folded_at",
    )


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/mnt/foldin", "/mnt/foldin"),
        ("s3a://bucket/foldin", "s3a://bucket/foldin"),
        ("file:///mnt/foldin", "file:///mnt/foldin"),
        # Hadoop's own way to write them.
        ("file:/mnt/foldin", "file:///mnt/foldin"),
        ("hdfs:/foldin", "hdfs:///foldin"),
        ("data/foldin", f"{Path.cwd()}/data/foldin"),
        ("a b:/c", f"{Path.cwd()}/a b:/c"),
    ],
)
def test_a_root_is_a_uri_or_absolute(path, found):
    assert in_full(path) == found


def test_latest_goes_by_position_and_never_by_clock_or_order_of_writing(spark):
    rows = factor_rows(
        spark,
        ("m", "u", 3.0, 10, -1, "2025-01-01 00:00:00"),  # includes most of events, oldest clock
        ("m", "u", 2.0, 9, 99, "2025-01-03 00:00:00"),
        ("m", "u", 1.0, 9, -1, "2025-01-05 00:00:00"),
        ("m", "v", 1.0, 9, 5, "2025-01-05 00:00:00"),
        ("m", "v", 2.0, 9, 40, "2025-01-02 00:00:00"),
        ("other", "v", 9.0, 11, -1, "2025-01-05 00:00:00"),
    )
    found = latest(rows).selectExpr("model_version", "user_id", "factors[0] as x")
    wanted = spark.createDataFrame(
        [("m", "u", 3.0), ("m", "v", 2.0), ("other", "v", 9.0)], "model_version string, user_id string, x float"
    )
    assert_df_equality(found, wanted, ignore_row_order=True, ignore_nullable=True)


def test_between_rows_of_one_position_the_one_made_last_is_the_latest(spark):
    days = (3, 1, 5, 2, 4)
    rows = factor_rows(spark, *(("m", "u", float(day), 9, 5, f"2025-01-0{day} 00:00:00") for day in days))
    assert [row["x"] for row in latest(rows).selectExpr("factors[0] as x").collect()] == [5.0]


def test_a_transaction_is_applied_once_and_another_one_is_not_mistaken_for_it(spark, tables):
    row = factor_rows(spark, ("m", "u", 1.0, 1, -1, "2025-01-01 00:00:00"))
    for transaction in (Transaction("q1", 0), Transaction("q1", 0), Transaction("q1", 1), Transaction("q2", 0)):
        tables.append(row, USER_FACTORS, transaction)
    assert tables.read(USER_FACTORS).count() == 3


def test_tables_that_streams_append_to_checkpoint_their_logs_seldom(tables):
    for spec in TABLES:
        properties = tables.spark.sql(f"describe detail {tables.name(spec)}").first()["properties"]
        assert properties.get("delta.checkpointInterval") == ("1000" if spec.trimmed else None), spec.name


def test_the_events_appended_since_a_version_are_read_from_the_log(tables, events_frame):
    for k in range(3):
        tables.append(events_frame(bought(f"e{k}", f"u{k}", "i0")), EVENTS)
    found = tables.appended(EVENTS, 2, 3)
    assert sorted(row["event_id"] for row in found.collect()) == ["e1", "e2"]
    assert tables.appended(EVENTS, 4, 3).count() == 0


def test_a_commit_is_seen_by_its_name_alone(tables, events_frame):
    version = tables.version(EVENTS)
    assert tables.has_version(EVENTS, version)
    assert not tables.has_version(EVENTS, version + 1)
    tables.append(events_frame(bought("e", "u", "i0")), EVENTS)
    assert tables.has_version(EVENTS, version + 1)


def test_creating_the_tables_again_leaves_them_alone(spark, config, tables, events_frame):
    tables.append(events_frame(bought("e", "u", "i0")), EVENTS)
    before = tables.version(EVENTS)
    assert Tables.of(spark, config.tables).version(EVENTS) == before


def test_tables_by_name_work_as_tables_by_path_do(spark, make_config, events_frame):
    spark.sql("create schema if not exists foldin_by_name")
    try:
        config = make_config("tables.catalog=spark_catalog.foldin_by_name")
        tables = Tables.of(spark, config.tables)
        assert {row["tableName"] for row in spark.sql("show tables in foldin_by_name").collect()} == {
            spec.name for spec in TABLES
        }
        tables.append(events_frame(*initial_rows()), EVENTS)
        train(tables, config)
        fold_once(tables, config)
        tables.append(events_frame(bought("n1", "new", "i0"), bought("n2", "new", "i1")), EVENTS)
        assert fold_once(tables, config) == 1
        assert set(latest_lists(tables)["new"]) <= {"i2", "i3", "i4", "i5"}
        assert latest_recommendations(tables).count() == 25
    finally:
        spark.sql("drop schema foldin_by_name cascade")


def test_a_relative_root_is_taken_from_the_working_directory(spark, make_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tables = Tables.of(spark, make_config("tables.root=data/foldin").tables)
    assert tables.root == str(tmp_path / "data" / "foldin")
    assert (tmp_path / "data" / "foldin" / "events" / "_delta_log").is_dir()


@pytest.mark.parametrize("spec", TABLES, ids=lambda spec: spec.name)
def test_every_column_says_what_it_is(spec):
    for column in spec.schema:
        assert column.metadata["comment"]


def test_a_position_reads_as_version_and_index():
    assert str(Position(3, 7)) == "3:7"
