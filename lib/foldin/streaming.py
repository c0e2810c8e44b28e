"""What every running query shares: its checkpoint's files, its offsets, and a stop that finishes the batch."""

from __future__ import annotations

import json
import logging
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.streaming import DataStreamWriter, StreamingQuery

from foldin.errors import FoldinError, StateMismatchError, reason_of
from foldin.schemas import Position

__all__ = ["Checkpoint", "GracefulStop", "Offset", "observed_rows", "run"]

log = logging.getLogger("foldin")

FINGERPRINT = "foldin.json"


@dataclass(frozen=True)
class Offset:
    """End offset of a micro-batch over a Delta source."""

    position: Position
    in_snapshot: bool
    """The source still reads the table as it was at the query's start: histories are partial."""


@dataclass(frozen=True)
class Checkpoint:
    """A query's checkpoint folder, read and written through Hadoop's file system (any URI works)."""

    spark: SparkSession
    path: str

    def query_id(self) -> str:
        """The id that Spark gave the query with its checkpoint: new with every new checkpoint."""
        text = self.read("metadata")
        assert text is not None  # Spark writes it before the first batch
        return str(json.loads(text)["id"])

    def delta_offset(self, batch_id: int) -> Offset | None:
        """The end offset of a batch over one Delta source, or None where there is no such batch."""
        text = self.read(f"offsets/{batch_id}") if batch_id >= 0 else None
        if text is None:
            return None
        data = json.loads(text.splitlines()[2])  # version, metadata, then one line a source
        position = Position(int(data["reservoirVersion"]), int(data["index"]))
        return Offset(position, bool(data["isStartingVersion"]))

    def is_new(self) -> bool:
        """No batch was ever planned here."""
        return self.read("offsets/0") is None and self.read("metadata") is None

    def check_fingerprint(self, settings: dict[str, Any], *, rebuild: str) -> None:
        """Write down what is baked into the state, or compare it with what an earlier start wrote.

        Raises:
            StateMismatchError: names the setting, both values and how to rebuild.
        """
        text = self.read(FINGERPRINT)
        if text is None:
            if not self.is_new():
                raise StateMismatchError(f"{self.path} has no {FINGERPRINT}: not a checkpoint of foldin. {rebuild}")
            self.write(FINGERPRINT, json.dumps(settings, sort_keys=True))
            return
        born = json.loads(text)
        for key in sorted(settings.keys() | born.keys()):
            if settings.get(key) != born.get(key):
                raise StateMismatchError(
                    f"{key} is {settings.get(key)!r}, but the state in {self.path} was built with {born.get(key)!r}. "
                    f"Set it back, or: {rebuild}"
                )

    def read(self, name: str) -> str | None:
        """The text of a file in the folder, or None where there is none."""
        fs, path = self._resolve(name)
        if not fs.exists(path):
            return None
        stream = fs.open(path)
        try:
            return str(self._jvm.org.apache.commons.io.IOUtils.toString(stream, "UTF-8"))
        finally:
            stream.close()

    def write(self, name: str, text: str) -> None:
        """Write a file whole: under another name first, then renamed, so that a crash leaves none or all of it."""
        fs, path = self._resolve(name)
        partial = self._jvm.org.apache.hadoop.fs.Path(path.getParent(), f".{path.getName()}.tmp")
        stream = fs.create(partial, True)
        stream.write(bytearray(text, "utf-8"))
        stream.hsync()
        stream.close()
        fs.delete(path, False)
        if not fs.rename(partial, path):
            raise FoldinError(f"cannot write {path.toString()}")

    def delete(self, name: str) -> None:
        """Delete a file or folder, if it is there."""
        fs, path = self._resolve(name)
        fs.delete(path, True)

    @property
    def _jvm(self) -> Any:
        return self.spark.sparkContext._jvm

    def _resolve(self, name: str) -> tuple[Any, Any]:
        path = self._jvm.org.apache.hadoop.fs.Path(f"{self.path}/{name}")
        return path.getFileSystem(self.spark._jsparkSession.sessionState().newHadoopConf()), path


def observed_rows(query: StreamingQuery, name: str) -> int:
    """The rows that `observe(name, count)` saw in the batch under way.

    Spark shows Python an observed metric only when the batch is over; the account of a batch is written
    within it, so it is read from the JVM's execution of the batch.
    """
    execution = query._jsq.streamingQuery().lastExecution()
    return int(execution.observedMetrics().apply(name).getLong(0))


class GracefulStop:
    """SIGTERM and SIGINT let the batch under way finish; the next one is not begun."""

    def __init__(self) -> None:
        self._asked = threading.Event()
        self._parked = threading.Event()

    def ask(self, *_: object) -> None:
        """Ask for the stop (a signal handler)."""
        self._asked.set()

    def wrap(self, process: Callable[[DataFrame, int], None]) -> Callable[[DataFrame, int], None]:
        """`process` for foreachBatch; once a stop is asked for it parks the query instead of beginning a batch.

        The parked batch has its offsets written and nothing else: the next start runs it.
        """

        def guarded(batch: DataFrame, batch_id: int) -> None:
            if self._asked.is_set():
                self._parked.set()
                # py4j runs this on the query's own thread, where stop() ends it by an interrupt, as Spark expects.
                # Were we to wait in Python, stop() would wait for us for ever; were we to return, the batch would
                # count as done.
                jvm: Any = batch.sparkSession.sparkContext._jvm
                jvm.java.lang.Thread.sleep(2**62)
                raise FoldinError("a parked batch was woken up without a stop")
            process(batch, batch_id)

        return guarded

    def await_end(self, query: StreamingQuery) -> bool:
        """Wait for the query's end or, once asked, for its batch's end; True if it was stopped by request.

        Raises:
            StreamingQueryException: the query failed.
        """
        while not query.awaitTermination(1):
            # A trigger is active until its batch is committed, not just written.
            if self._asked.is_set() and (self._parked.is_set() or not query.status["isTriggerActive"]):
                query.stop()
                return True
        return False


def run(
    writer: DataStreamWriter,
    process: Callable[[DataFrame, int], None],
    *,
    checkpoint: Checkpoint,
    name: str,
    once: bool,
    trigger_seconds: float,
    stop: GracefulStop | None = None,
    on_start: Callable[[StreamingQuery], None] = lambda _: None,
) -> None:
    """Run a query to its end: all that is there (`once`), or until SIGTERM, SIGINT or `stop`.

    Raises:
        FoldinError: what `process` raised, or the query's own failure in one line.
    """
    stop = stop or GracefulStop()
    failure: list[Exception] = []

    def guarded(batch: DataFrame, batch_id: int) -> None:
        try:
            process(batch, batch_id)
        except Exception as error:  # Spark would wrap it in a page of stack traces
            failure.append(error)
            raise

    writer = writer.queryName(name).option("checkpointLocation", checkpoint.path)
    if once:
        writer = writer.trigger(availableNow=True)
    else:
        writer = writer.trigger(processingTime=f"{max(1, round(1000 * trigger_seconds))} milliseconds")
    handlers = {}
    if threading.current_thread() is threading.main_thread():
        handlers = {s: signal.signal(s, stop.ask) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        query = writer.foreachBatch(stop.wrap(guarded)).start()
        on_start(query)
        if stop.await_end(query):
            log.info("%s: stopped on request, the last batch is done", name)
    except (PySparkException, Py4JJavaError) as error:
        cause = failure[0] if failure else error
        if isinstance(cause, FoldinError):
            raise cause from error
        ours = not isinstance(cause, (PySparkException, Py4JJavaError))  # of Spark's own, its log has the pages
        log.log(logging.ERROR if ours else logging.DEBUG, "%s failed", name, exc_info=cause)
        raise FoldinError(f"{name} failed: {reason_of(cause)}") from cause
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
