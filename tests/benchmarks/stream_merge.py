"""The usual design, as the baseline of bench_stream: histories in a Delta table, join, MERGE with deletion vectors.

It is given what helps it: one scan of the histories by a broadcast semi-join, a source that is computed once and that
MERGE does not materialise again, deletion vectors, and foldin's own kernel.
"""

from __future__ import annotations

from typing import Any

from delta.tables import DeltaTable
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from stream_queries import ProgressLog, QueryContender
from stream_world import World

from foldin.histories import HistoryDefinition, histories, slim
from foldin.publishing import Publisher
from foldin.schemas import EVENTS, USER_FACTORS, Position
from foldin.tables import Tables, latest

__all__ = ["MergeContender"]

_ROWS_A_FILE = 250_000


class MergeContender(QueryContender):
    """A stream over the `events` of `feed` that keeps the histories of `world` in a table of its own."""

    def __init__(self, log: ProgressLog, world: World, feed: Tables) -> None:
        self._world, self._output = world, feed
        self._path = feed.path("histories")
        self._definition = HistoryDefinition.of(world.config())
        self._publisher = Publisher(world.tables, 0)
        self._model_version = self._publisher.registry.active_version()
        self._publisher.model(self._model_version)
        spark = world.tables.spark
        spark.conf.set("spark.databricks.delta.merge.materializeSource", "none")
        self._build(world.tables)
        query = (
            feed.stream(EVENTS, maxFilesPerTrigger=1)
            .writeStream.queryName("merge")
            .option("checkpointLocation", feed.path("_checkpoints", "merge"))
            .trigger(processingTime="500 milliseconds")
            .foreachBatch(self._process)
            .start()
        )
        super().__init__(log, lambda batch: feed.append(batch, EVENTS), query)

    def _build(self, tables: Tables) -> None:
        spark = tables.spark
        kept = spark.conf.get("spark.sql.shuffle.partitions")
        spark.conf.set("spark.sql.shuffle.partitions", max(2, self._world.users // 100_000))
        users = self._histories(tables.read(EVENTS)).select("user_id", "history")
        writer = users.write.format("delta").option("delta.enableDeletionVectors", "true")
        writer.option("maxRecordsPerFile", _ROWS_A_FILE).save(self._path)
        spark.conf.set("spark.sql.shuffle.partitions", kept)

    def _histories(self, events: DataFrame) -> DataFrame:
        return histories(slim(events, self._definition.types), self._definition.max_events, seen=False)

    def _process(self, batch: DataFrame, batch_id: int) -> None:
        spark = batch.sparkSession
        new = self._histories(batch).select("user_id", "history").persist()
        stored = spark.read.format("delta").load(self._path).join(F.broadcast(new.select("user_id")), "user_id", "semi")
        both = stored.select("user_id", "history").unionByName(new).groupBy("user_id")
        everything = F.flatten(F.collect_list("history"))
        # The first fields are time and event: the order of histories.
        bounded = F.slice(F.sort_array(everything, asc=False), 1, self._definition.max_events)
        merged = both.agg(bounded.alias("history")).localCheckpoint()  # MERGE refuses a cached source
        users = merged.withColumn("seen", F.lit(None).cast("array<bigint>"))
        rows = self._publisher.folded(users, self._model_version, Position.after(batch_id))
        self._output.append(rows, USER_FACTORS)
        (
            DeltaTable.forPath(spark, self._path)
            .alias("t")
            .merge(F.broadcast(merged).alias("s"), "t.user_id = s.user_id")
            .whenMatchedUpdate(set={"history": "s.history"})
            .whenNotMatchedInsertAll()
            .execute()
        )
        new.unpersist()

    def largest_difference(self) -> float:
        """Relative norm of the factors of both designs, over the users of both: the same events, the same factors."""
        mine = latest(self._output.read(USER_FACTORS)).select("user_id", F.col("factors").alias("a"))
        theirs = latest(self._world.tables.read(USER_FACTORS)).select("user_id", F.col("factors").alias("b"))
        norm = "sqrt(aggregate({}, 0D, (sum, x) -> sum + x * x))"
        difference = norm.format("zip_with(a, b, (x, y) -> double(x) - double(y))")
        scale = norm.format("transform(b, x -> double(x))")
        row: Any = mine.join(theirs, "user_id").selectExpr(f"max({difference} / {scale}) as worst", "count(*)").first()
        assert row[1] > 0, "no user was folded by both designs"
        return float(row["worst"])
