"""Small files merged and logs trimmed in passing: a query that appends every second looks after its tables.

Every append adds a file and an entry to the table's state, which Delta reads again for each commit: 80,000 files raise
the median append from 0.40 to 0.58 s. So after every so many micro-batches a thread of the query runs OPTIMIZE over
the files that are still small. It moves rows without changing them: appends do not conflict with it, streams skip it.
It trims the log, too, which writes a checkpoint of it: by Delta's own way a micro-batch would, and wait for that. That
costs less than a merge and is worth more, so it comes more often: a log is kept as far back as its last checkpoint but
one, and Delta lists it all several times a micro-batch.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType

from pyspark.sql import DataFrame

from foldin.config import TablesConfig
from foldin.errors import reason_of
from foldin.schemas import TableSpec
from foldin.tables import Tables
from foldin.trimming import trim

__all__ = ["Compactor", "compact"]

log = logging.getLogger("foldin.compaction")

# A file of this size is left alone from then on, so that a row is rewritten a few times at most, not once a round.
_SETTINGS = {
    "spark.databricks.delta.optimize.minFileSize": str(8 << 20),
    "spark.databricks.delta.optimize.maxFileSize": str(64 << 20),
    "spark.databricks.delta.optimize.maxThreads": "1",  # its tasks take turns with those of the micro-batch
    # Small files are read by many short tasks instead of one that keeps a core for as long as the merge takes.
    "spark.databricks.delta.optimize.repartition.enabled": "true",
    "spark.sql.files.maxPartitionBytes": str(64 << 20),  # 16 small files a task: opening one counts as 4 MB
}
_POOL = "upkeep"  # conf/fairscheduler.xml
_TRIMS_A_MERGE = 4
# Two queries of one process fall due at the same time; both at once would take every core from the micro-batches.
_TURNS = threading.Lock()
_JOIN = 60.0  # seconds that the end of a run waits for a merge under way


def compact(tables: Tables, spec: TableSpec) -> tuple[int, int]:
    """Merge the small files of a table within its partitions; how many went and how many came.

    Raises:
        PySparkException: another writer changed the same files meanwhile; nothing has happened.
    """
    spark = tables.spark.newSession()  # same engine, settings of its own
    for key, value in _SETTINGS.items():
        spark.conf.set(key, value)
    with tables.merging(spec):
        row = spark.sql(f"optimize {tables.name(spec)}").first()
    assert row is not None  # OPTIMIZE always answers with its metrics
    return int(row["metrics"]["numFilesRemoved"]), int(row["metrics"]["numFilesAdded"])


class Compactor:
    """Merges small files of some tables after every `every` micro-batches and trims their logs four times as often, on
    its own thread (`with`).

    It leaves a table alone that has had fewer than half as many commits since then in this run, so that what is written
    every few seconds costs no merge a round. (Half: a table whose turn came late in a round had some of the next one's
    merged then.) What goes wrong in here is logged and tried again a round later; the stream goes on.

    Attributes:
        rounds: merges of all tables begun, those skipped because one took too long counted in.
    """

    def __init__(self, tables: Tables, specs: Iterable[TableSpec], config: TablesConfig) -> None:
        """`config.compact_every`: micro-batches from one round of merges to the next; 0: no upkeep at all."""
        self._tables, self._specs, self._every = tables, tuple(specs), config.compact_every
        self._often = max(1, self._every // _TRIMS_A_MERGE)
        self._minutes = config.log_minutes
        self._batches = self.rounds = self._trims = 0
        # Version of each table up to which it is merged, and its log trimmed.
        self._merged: dict[str, int] = {}
        self._trimmed: dict[str, int] = {}
        self._wake = threading.Event()
        self._ended = False
        self._thread = threading.Thread(target=self._work, name="compaction", daemon=True)

    def __enter__(self) -> Compactor:
        if self._every:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._ended = True
        self._wake.set()
        if self._every:
            self._thread.join(_JOIN)

    def after(self, process: Callable[[DataFrame, int], None]) -> Callable[[DataFrame, int], None]:
        """`process` for foreachBatch, its micro-batches counted."""

        def counted(batch: DataFrame, batch_id: int) -> None:
            process(batch, batch_id)
            self._batches += 1
            if self._every and (self._batches % self._often == 0 or self._batches % self._every == 0):
                self._wake.set()

        return counted

    def _work(self) -> None:
        self._tables.spark.sparkContext.setLocalProperty("spark.scheduler.pool", _POOL)  # of this thread
        ended = False
        while not ended:
            self._wake.wait()
            self._wake.clear()
            ended = self._ended  # what was due by then is still done
            while (due := (self._batches // self._every, self._batches // self._often)) != (self.rounds, self._trims):
                merge = due[0] > self.rounds
                self.rounds, self._trims = due
                for spec in self._specs:
                    with _TURNS:
                        self._look_after(spec, merge)

    def _look_after(self, spec: TableSpec, merge: bool) -> None:
        started, done = time.monotonic(), []
        if merge:
            with _told(spec, "small files are not merged this time"):
                version = self._tables.version(spec)
                if _many(version, self._merged.get(spec.name), self._every):
                    gone, come = compact(self._tables, spec)
                    done.append(f"{gone} small files merged into {come}")
                    # What the stream has committed meanwhile is for the next merge; the merge's own commit is not.
                    self._merged[spec.name] = version + bool(come)
        with _told(spec, "the log is not trimmed this time"):
            version = self._tables.version(spec)
            if _many(version, self._trimmed.get(spec.name), self._often):
                done.append(f"{trim(self._tables, spec, self._minutes)} commits trimmed")
                self._trimmed[spec.name] = version
        if done:
            log.info("%s: %s, %.1f s", spec.name, ", ".join(done), time.monotonic() - started)


def _many(version: int, before: int | None, every: int) -> bool:
    """Whether a table is worth a look: it has had none in this run, or half a round's commits since the last."""
    return before is None or version >= before + every / 2


@contextmanager
def _told(spec: TableSpec, what: str) -> Iterator[None]:
    """What fails within is logged, no more: a stream owes nothing to its tables' upkeep."""
    try:
        yield
    except Exception as error:
        log.warning("%s: %s: %s", spec.name, what, reason_of(error))
        log.debug("%s", spec.name, exc_info=True)
