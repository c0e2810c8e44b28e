"""Where raw rows come from: a folder of files, a Delta table or Kafka, as a stream.

Each source gives `source_file` (where a person who reads `quarantine` finds the row) and either `raw`, a line
as it came, or the source's own columns. Sources that know when a row arrived add `arrived_at`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StructField, StructType

from foldin.checkpoints import Checkpoint
from foldin.config import Config, IngestConfig, byte_count
from foldin.errors import ConfigError, reason_of
from foldin.kafka import check_topics, kafka_failures, read_topics
from foldin.landed import AS_PATHS
from foldin.mapping import Mapping
from foldin.tables import in_full

__all__ = ["read_as", "read_source", "source_failures"]


def read_as(config: Config, mapping: Mapping) -> Mapping:
    """The mapping with the format in which the source's rows come: a Delta table has columns, as Parquet has."""
    return mapping.model_copy(update={"format": "parquet"}) if config.ingest.source == "delta" else mapping


def read_source(spark: SparkSession, config: Config, mapping: Mapping, *, skip_unreadable: bool = False) -> DataFrame:
    """The configured source as a stream of raw rows.

    Args:
        skip_unreadable: of files, skip what cannot be read instead of failing; the caller accounts for it.

    Returns:
        source_file, and `raw` (a line) and `arrived_at` (a timestamp), or for Parquet files and Delta tables their
        own columns.

    Raises:
        ConfigError: there is no such folder or table, or no Parquet file to take the schema from.
    """
    if config.ingest.source == "delta":
        return _read_delta(spark, config.ingest)
    if config.ingest.source == "kafka":
        if mapping.format == "parquet":
            raise ConfigError(f"mapping {mapping.name}: format = 'parquet': a Kafka message holds json or csv")
        return read_topics(spark, config.kafka)
    return _read_files(spark, config.ingest, mapping, skip_unreadable)


@contextmanager
def source_failures(config: Config, checkpoint: Checkpoint) -> Iterator[None]:
    """Around a query over the source: refuses to go on where rows are gone unread, and says why the source fails.

    Raises:
        ConfigError: a Kafka topic does not exist, or the broker refuses the login.
        StateMismatchError: the source no longer has the rows that the checkpoint has next.
        FoldinError: no Kafka broker answers; any other failure of the query.
    """
    if config.ingest.source != "kafka":
        yield
        return
    check_topics(checkpoint.spark, config.kafka, checkpoint)
    with kafka_failures(config.kafka, checkpoint):
        yield


def _limits(settings: IngestConfig) -> dict[str, str]:
    # Spark takes one of the two limits.
    if settings.max_files_per_trigger:
        return {"maxFilesPerTrigger": str(settings.max_files_per_trigger)}
    return {"maxBytesPerTrigger": str(byte_count(settings.max_bytes_per_trigger))}


def _read_files(spark: SparkSession, settings: IngestConfig, mapping: Mapping, skip_unreadable: bool) -> DataFrame:
    folder = settings.landing
    if not _is_folder(spark, folder):
        raise ConfigError(f"ingest.landing = {folder!r}: there is no such folder")
    options = {
        "pathGlobFilter": mapping.files,
        "recursiveFileLookup": "true",
        # By default a file that is a week older than the newest is skipped without a word.
        "maxFileAge": "36500d",
        "ignoreCorruptFiles": str(skip_unreadable).lower(),
        "ignoreMissingFiles": str(skip_unreadable).lower(),
    }
    source_file = F.col("_metadata.file_path").alias("source_file")
    if mapping.format != "parquet":
        lines = spark.readStream.format("text").options(**options, **_limits(settings)).load(folder)
        arrived_at = F.col("_metadata.file_modification_time").alias("arrived_at")
        return lines.select(F.col("value").alias("raw"), source_file, arrived_at)
    schema = _parquet_schema(spark, folder, options)
    files = spark.readStream.schema(schema).options(**options, **_limits(settings)).parquet(folder)
    return _without_source_file(files).select("*", source_file)


def _parquet_schema(spark: SparkSession, folder: str, options: dict[str, str]) -> StructType:
    """The columns of all files: with those of any one file, the others' would be lost without a word.

    A file that cannot be read is left out here and found when its turn comes.
    """
    reader = spark.read.options(**options | {"ignoreCorruptFiles": "true", "ignoreMissingFiles": "true"})
    try:
        return reader.option("mergeSchema", "true").parquet(folder).schema
    except (PySparkException, Py4JJavaError) as error:
        if "CANNOT_MERGE" not in str(error):
            raise ConfigError(
                f"ingest.landing = {folder!r}: no Parquet files to take one schema from: {reason_of(error)}"
            ) from error
    # Files disagree about a column's type: the oldest file's counts, as it did when there was no other.
    merged: dict[str, StructField] = {}
    files = reader.format("binaryFile").load(folder).select("path", "modificationTime")
    for row in files.orderBy("modificationTime", "path").collect():
        try:
            schema = reader.options(**AS_PATHS).parquet(row["path"]).schema
        except (PySparkException, Py4JJavaError):
            continue
        for column in schema:
            merged.setdefault(column.name.lower(), column)
    return StructType(list(merged.values()))


def _read_delta(spark: SparkSession, settings: IngestConfig) -> DataFrame:
    """A table by path or name; the changes of committed rows are skipped, as the events of an erased user are."""
    table = settings.table
    reader = spark.readStream.format("delta").options(**_limits(settings), skipChangeCommits="true")
    path = _path_of(table)
    try:
        rows = reader.load(path) if path is not None else reader.table(table)
    except (PySparkException, Py4JJavaError) as error:
        raise ConfigError(f"ingest.table = {table!r}: {reason_of(error)}") from error
    return _without_source_file(rows).withColumn("source_file", F.lit(table))


def _path_of(table: str) -> str | None:
    """The path, in full, of a table that is not called by name."""
    quoted = re.fullmatch(r"\s*delta\.`(.+)`\s*", table)
    if quoted is None and "/" not in table:
        return None
    path = quoted[1].replace("``", "`") if quoted is not None else table
    return in_full(path)


def _without_source_file(rows: DataFrame) -> DataFrame:
    """The rows' own column of that name is theirs to keep, under another."""
    own = [name for name in rows.columns if name.lower() == "source_file"]
    return rows.withColumnsRenamed(dict.fromkeys(own, "_source_file"))


def _is_folder(spark: SparkSession, folder: str) -> bool:
    jvm: Any = spark.sparkContext._jvm
    try:
        path = jvm.org.apache.hadoop.fs.Path(folder)
        fs = path.getFileSystem(spark._jsparkSession.sessionState().newHadoopConf())
        return bool(fs.exists(path) and fs.getFileStatus(path).isDirectory())
    except (PySparkException, Py4JJavaError) as error:
        raise ConfigError(f"ingest.landing = {folder!r}: {reason_of(error)}") from error
