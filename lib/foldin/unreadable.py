"""Files that the source has listed and Spark cannot read: gone, cut short, or not of the format.

Spark's choice is between a query that fails for ever and one that skips such files without a word. Here each of them
is one row of `quarantine`, beside whatever rows could be read of it. Files are read in earnest first. Only when a batch
has failed over one of them are they looked at one by one, and is it read again with Spark told to skip; then it must
have as many rows of the other files as these have.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import unquote

from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.streaming import StreamingQuery

from foldin.checkpoints import Checkpoint
from foldin.errors import FoldinError, reason_of
from foldin.events import record_hash
from foldin.landed import AS_PATHS, FileLog, input_paths, plain_path
from foldin.mapping import Mapping

__all__ = ["UNREADABLE", "BatchFiles", "StrictAgainError", "failed_to_read", "quarantine_rows", "read_files"]

log = logging.getLogger("foldin.ingest")

UNREADABLE = "unreadable file"
_FOLDER = "unreadable"
_GONE = "the file was gone before it could be read"
_ADVICE = "what could be read of it was taken in; mend it and land it under another name"


class StrictAgainError(FoldinError):
    """The query goes on reading in earnest."""


def failed_to_read(error: BaseException) -> bool:
    """Whether a query failed because a file of its source could not be read."""
    return bool(re.search(r"\[FAILED_READ_FILE|CANNOT_READ_FILE_FOOTER|FileNotFoundException", str(error.__cause__)))


@dataclass
class BatchFiles:
    """The files of a query's micro-batches, from the log that its file source keeps in the checkpoint.

    Attributes:
        read: gives the rows of files, as the query does in earnest.
    """

    checkpoint: Checkpoint
    read: Callable[[Sequence[str]], DataFrame]

    def look(self, batch_id: int) -> dict[str, str]:
        """{URI: why} of the files of a batch that cannot be read to their end; what was found before is in it."""
        found = self._found(batch_id)
        rest = [file for file in self._planned(batch_id) if file not in found]
        return self._note(batch_id, found, self._faults(rest))

    def unreadable(self, query: StreamingQuery, batch_id: int) -> dict[str, str]:
        """What `look` has found in the batch under way, and the files that were gone when Spark began to read it.

        The same for every attempt at a batch, should a file come back in between.
        """
        found, listed = self._found(batch_id), self._listed(query)
        gone = [file for file in self._planned(batch_id) if plain_path(file) not in listed and file not in found]
        return self._note(batch_id, found, dict.fromkeys(gone, _GONE))

    def beside(self, bad: Iterable[str]) -> Column:
        """Whether a row of the query, by its source_file, is of another file."""
        # Spark's log has file:///x where the file's own metadata have file:/x.
        return ~F.col("source_file").isin([re.sub(r"^file:/+", "file:/", file) for file in bad])

    def rows_beside(self, batch_id: int, bad: Collection[str]) -> int | None:
        """How many rows the other files of the batch have; None when one of them cannot be read now."""
        files = [file for file in self._planned(batch_id) if file not in bad]
        try:
            return self.read([unquote(file) for file in files]).count() if files else 0
        except (PySparkException, Py4JJavaError) as error:
            log.warning("batch %d: %s", batch_id, reason_of(error))
            return None

    def _planned(self, batch_id: int) -> list[str]:
        return FileLog(self.checkpoint).of_batch(batch_id)

    def _found(self, batch_id: int) -> dict[str, str]:
        return self.checkpoint.read_object(f"{_FOLDER}/{batch_id}") or {}

    def _note(self, batch_id: int, found: dict[str, str], more: dict[str, str]) -> dict[str, str]:
        for file, why in more.items():
            log.warning("batch %d: cannot read %s: %s", batch_id, file, why)
        if more:
            self.checkpoint.write(f"{_FOLDER}/{batch_id}", json.dumps(found | more))
        return found | more

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
    """Files by path as the stream `landing` reads them; `source_file` is null."""
    reader = landing.sparkSession.read.options(**AS_PATHS)
    source_file = F.lit(None).cast("string").alias("source_file")
    if mapping.format != "parquet":
        return reader.format("text").load(list(paths)).select(F.col("value").alias("raw"), source_file)
    schema = landing.drop("source_file").schema
    return reader.schema(schema).parquet(*paths).select("*", source_file)


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
    if "PATH_NOT_FOUND" in str(error):
        return _GONE
    causes = re.findall(r"^Caused by: ([^\n]+)", str(error), re.MULTILINE)
    return " ".join((causes[-1] if causes else reason_of(error)).split())[:500]
