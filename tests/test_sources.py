"""Sources: where raw rows come from, and what is refused before a query is built."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from pyspark.sql import DataFrame, SparkSession

from foldin.config import Config
from foldin.errors import ConfigError
from foldin.ingest import Account, Ingest
from foldin.mapping import contract
from foldin.schemas import EVENTS, INGEST_LOG, QUARANTINE
from foldin.sources import read_as, read_source
from foldin.tables import Tables


def rows(spark: SparkSession, *ids: str, user: str | None = "u") -> DataFrame:
    schema = "event_id string, user_id string, item_id int, event_type string, event_time timestamp, source_file string"
    values = ", ".join(f"('{i}', {f'{user!r}' if user else 'null'})" for i in ids)
    found = spark.sql(
        "select id, user, 7, 'view', timestamp '2024-05-01 10:00:00', 'the table has such a column too' "
        f"from values {values} as t(id, user)"
    )
    return found.toDF(*[part.split()[0] for part in schema.split(", ")])


def ingest(tables: Tables, config: Config) -> Account:
    return Ingest(tables, config, contract(config)).run(once=True)


def test_a_delta_table_is_a_source_by_path_and_by_name_and_its_deletions_are_no_news(
    spark: SparkSession, tables: Tables, make_config: Callable[..., Config], tmp_path: Path
) -> None:
    path = tmp_path / "a table"
    for ids in ("a", "b"):
        rows(spark, ids).write.format("delta").mode("append").save(str(path))
    config = make_config("ingest.source=delta", f"ingest.table='{path}'", "ingest.max_files_per_trigger=1")
    account = ingest(tables, config)
    assert (account.rows_in, account.events) == (2, 2)
    assert tables.read(INGEST_LOG).count() == 2  # a file at a time, as the limit says

    spark.sql(f"delete from delta.`{path}` where event_id = 'b'")
    more = rows(spark, "d", "a").union(rows(spark, "x", user=None)).coalesce(1)
    more.write.format("delta").mode("append").save(str(path))
    account = ingest(tables, config)
    assert (account.rows_in, account.events, account.duplicates) == (3, 1, 1)
    assert account.quarantined == {"missing user_id": 1}

    events = tables.read(EVENTS).select("event_id", "item_id", "source_file").collect()
    assert sorted(map(tuple, events)) == [(i, "7", str(path)) for i in "abd"]
    (refused,) = tables.read(QUARANTINE).collect()
    assert '"source_file":' not in refused["raw"]
    assert '"_source_file":"the table has such a column too"' in refused["raw"]

    spark.sql(f"create table source_by_name using delta location '{path}'")
    try:
        for name in ("source_by_name", f"delta.`{path}`"):
            named = make_config("ingest.source=delta", f"ingest.table='{name}'")
            found = read_source(spark, named, read_as(named, contract(named)))
            assert found.columns == [*rows(spark, "a").columns[:-1], "_source_file", "source_file"]
    finally:
        spark.sql("drop table source_by_name")


@pytest.mark.parametrize("table", ["/no/such/table", "no_such_table", "delta.`/no/such/table`"])
def test_a_delta_table_that_is_not_there_is_a_configuration_error(
    spark: SparkSession, make_config: Callable[..., Config], table: str
) -> None:
    config = make_config("ingest.source=delta", f"ingest.table='{table}'")
    with pytest.raises(ConfigError) as raised:
        read_source(spark, config, read_as(config, contract(config)))
    assert str(raised.value).startswith(f"ingest.table = {table!r}: ")


def test_a_kafka_message_is_no_parquet_file(spark: SparkSession, make_config: Callable[..., Config]) -> None:
    config = make_config("ingest.source=kafka", "kafka.bootstrap_servers='h:1'", "kafka.topics=t")
    mapping = contract(config).model_copy(update={"format": "parquet"})
    with pytest.raises(ConfigError, match="a Kafka message holds json or csv"):
        read_source(spark, config, read_as(config, mapping))


def test_without_the_connector_the_error_names_the_package(
    spark: SparkSession, tables: Tables, make_config: Callable[..., Config]
) -> None:
    config = make_config("ingest.source=kafka", "kafka.bootstrap_servers='h:1'", "kafka.topics=t")
    with pytest.raises(ConfigError, match=r"pass --packages org\.apache\.spark:spark-sql-kafka-0-10_2\.13:4\.2\.0 to"):
        ingest(tables, config)
