"""Files that the source has listed and Spark cannot read: gone, cut short, or not of the format.

Spark's choice is between a query that fails for ever and one that skips such files without a word. Here each of them
is one row of `quarantine`, beside whatever rows could be read of it. Files are read in earnest first; only when a batch
has failed over one of them is it read again with Spark told to skip, and each of its files held against a reading in
earnest.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import unquote

from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.streaming import StreamingQuery

from foldin.checkpoints import Checkpoint
from foldin.errors import FoldinError, reason_of
from foldin.events import record_hash
from foldin.landed import FileLog, input_paths, plain_path
from foldin.mapping import Mapping

__all__ = ["UNREADABLE", "BatchFiles", "StrictAgainError", "failed_to_read", "quarantine_rows", "read_files"]

log = logging.getLogger("foldin.ingest")

UNREADABLE = "unreadable file"
_FOLDER = "unreadable"
_GONE = "the file was gone before it could be read"
_ADVICE = "what could be read of it was taken in; mend it and land it under another name"


class StrictAgainError(FoldinError):
    """The batch with the unreadable file is done: the query goes on reading in earnest."""


def failed_to_read(error: BaseException) -> bool:
    """Whether a query failed because a file of its source could not be read."""
    return bool(re.search(r"\[FAILED_READ_FILE|CANNOT_READ_FILE_FOOTER|FileNotFoundException", str(error.__cause__)))


@dataclass
class BatchFiles:
    """The files of a query's micro-batches, from the log that its file source keeps in the checkpoint.

    Attributes:
        read: reads files as the source does, in earnest.
    """

    checkpoint: Checkpoint
    read: Callable[[Sequence[str]], DataFrame]

    def unreadable(self, query: StreamingQuery, batch_id: int, *, skipping: bool) -> dict[str, str]:
        """{URI: why} of the files of the batch under way that were not read, or not to their end.

        The same for every attempt at a batch, should a file come back in between.

        Args:
            skipping: Spark skips what it cannot read; otherwise it has read whatever was still there.
        """
        name = f"{_FOLDER}/{batch_id}"
        found: dict[str, str] = self.checkpoint.read_object(name) or {}
        planned, listed = FileLog(self.checkpoint).of_batch(batch_id), self._listed(query)
        found |= {file: _GONE for file in planned if plain_path(file) not in listed and file not in found}
        if skipping:
            found |= self._faults([file for file in planned if file not in found])
        if found:
            self.checkpoint.write(name, json.dumps(found))
            for file, why in found.items():
                log.warning("batch %d: cannot read %s: %s", batch_id, file, why)
        return found

    def _listed(self, query: StreamingQuery) -> set[str]:
        """The files that Spark found when it began to read the batch. It leaves out silently what is gone by then."""
        leaves = query._jsq.streamingQuery().lastExecution().optimizedPlan().collectLeaves()
        found: set[str] = set()
        for leaf in (leaves.apply(n) for n in range(leaves.size())):
            if leaf.getClass().getSimpleName() == "LogicalRelation":
                found.update(input_paths(self.checkpoint.spark, leaf.relation()))
        return found

    def _faults(self, files: list[str]) -> dict[str, str]:
        """Reads all at once, and looks closer only where that fails."""
        if not files:
            return {}
        try:
            self.read([unquote(file) for file in files]).write.format("noop").mode("overwrite").save()
        except (PySparkException, Py4JJavaError) as error:
            if len(files) == 1:
                return {files[0]: _why(error)}
            half = len(files) // 2
            return self._faults(files[:half]) | self._faults(files[half:])
        return {}


def read_files(landing: DataFrame, mapping: Mapping, paths: Sequence[str]) -> DataFrame:
    """Files by path as the stream `landing` reads them."""
    reader = landing.sparkSession.read.option("__globPaths__", "false")  # paths, not patterns
    if mapping.format != "parquet":
        return reader.format("text").load(list(paths))
    return reader.schema(landing.drop("source_file").schema).format("parquet").load(list(paths))


def quarantine_rows(spark: SparkSession, files: dict[str, str]) -> DataFrame:
    """One row a file: record_id, reason, detail, raw (the URI), source_file, ingested_at, ingest_date."""
    rows = [(file, f"{why}; {_ADVICE}") for file, why in files.items()]
    frame = spark.createDataFrame(rows, "raw string, detail string").coalesce(1)
    return frame.select(
        record_hash(F.concat(F.lit(f"{UNREADABLE}\n"), "raw")).alias("record_id"),
        F.lit(UNREADABLE).alias("reason"),
        "detail",
        "raw",
        F.col("raw").alias("source_file"),
        F.current_timestamp().alias("ingested_at"),
        F.current_date().alias("ingest_date"),
    )


def _why(error: BaseException) -> str:
    causes = re.findall(r"^Caused by: ([^\n]+)", str(error), re.MULTILINE)
    return " ".join((causes[-1] if causes else reason_of(error)).split())[:500]
