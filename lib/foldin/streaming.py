"""What every running query shares: how it runs to its end, and a stop that finishes the batch."""

from __future__ import annotations

import logging
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.streaming import DataStreamWriter, StreamingQuery

from foldin.checkpoints import Checkpoint
from foldin.errors import DISK_FULL, FoldinError, StateMismatchError, reason_of
from foldin.leases import Lease

__all__ = ["GracefulStop", "observed", "run"]

log = logging.getLogger("foldin")

_SHUFFLE = "spark.sql.shuffle.partitions"
_starting = threading.Lock()


def observed(query: StreamingQuery, name: str) -> list[int | None]:
    """The whole numbers that `observe(name, ...)` saw in the batch under way, None for a null.

    Spark shows Python an observed metric only when the batch is over; the account of a batch is written
    within it, so it is read from the JVM's execution of the batch.
    """
    row = query._jsq.streamingQuery().lastExecution().observedMetrics().apply(name)
    return [None if row.isNullAt(i) else int(row.getLong(i)) for i in range(row.size())]


def _start(writer: DataStreamWriter, spark: SparkSession, state_partitions: int | None) -> StreamingQuery:
    """Start a query with a copy of its session's settings, in which alone the number of shuffle partitions differs."""
    if state_partitions is None:
        return writer.start()
    # Several queries of one session may start at once, each with its own number: the last to give the session's back
    # would give back another's.
    with _starting:
        before = spark.conf.get(_SHUFFLE)
        spark.conf.set(_SHUFFLE, state_partitions)
        try:
            return writer.start()
        finally:
            spark.conf.set(_SHUFFLE, str(before))


# What Spark and Delta say when the checkpoint's files, the state or the source's log cannot be read any more.
_DAMAGE = re.compile(
    r"CANNOT_LOAD_STATE_STORE|STATE_STORE_|MISSING_STATE_DIRECTORY|MALFORMED_LOG_FILE|Incomplete log file|(?i:checksum)"
    r"|STREAMING_CHECKPOINT_|DELTA_MISSING_FILES_UNEXPECTED_VERSION|DELTA_(?:LOG_)?FILE_NOT_FOUND|FILE_NOT_EXIST"
    r"|\.start\.\s*: com\.fasterxml\.jackson"
)


def _explained(name: str, cause: BaseException, rebuild: str) -> FoldinError:
    """A query's failure in one line, with what to do where that is known."""
    text = str(cause)
    reason = reason_of(cause)
    if full := DISK_FULL.search(reason):
        return FoldinError(f"{name} failed: {full.group()}. Free some and start again: nothing is lost")
    if not (rebuild and _DAMAGE.search(text)):
        return FoldinError(f"{name} failed: {reason}")
    deepest = re.findall(r"^Caused by: ([^\n]+)", text, re.MULTILINE)[-1:]
    said = ": ".join(dict.fromkeys([reason, *deepest]))
    return StateMismatchError(f"{name} cannot go on from its checkpoint: {said}. To rebuild it, {rebuild}")


class GracefulStop:
    """SIGTERM and SIGINT let the batch under way finish; the next one is not begun."""

    def __init__(self) -> None:
        self._asked = threading.Event()
        self._parked = threading.Event()

    def ask(self, *_: object) -> None:
        """Ask for the stop (a signal handler)."""
        self._asked.set()

    def of_another(self) -> GracefulStop:
        """For a query that runs beside this one: asked together, but each finishes a batch of its own."""
        other = GracefulStop()
        other._asked = self._asked
        return other

    @contextmanager
    def at_signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT ask for it, within the block. On another thread than the main one they cannot."""
        handlers = {}
        if threading.current_thread() is threading.main_thread():
            handlers = {s: signal.signal(s, self.ask) for s in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for signum, handler in handlers.items():
                signal.signal(signum, handler)

    @property
    def asked(self) -> bool:
        """A stop was asked for."""
        return self._asked.is_set()

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
    state_partitions: int | None = None,
    lease: Lease | None = None,
    rebuild: str = "",
    stop: GracefulStop | None = None,
    on_start: Callable[[StreamingQuery], None] = lambda _: None,
) -> None:
    """Run a query to its end: all that is there (`once`), or until SIGTERM, SIGINT or `stop`.

    Args:
        state_partitions: of the query's state, where it has one; fixed when its checkpoint is born, for Spark keeps to
            the number that the checkpoint says.
        rebuild: what a person does when the checkpoint or the source's log is damaged.

    Raises:
        StateMismatchError: Spark cannot read the checkpoint or state, or the source no longer has what comes next.
        FoldinError: what `process` raised, or the query's own failure in one line.
    """
    stop = stop or GracefulStop()
    failure: list[Exception] = []

    def guarded(batch: DataFrame, batch_id: int) -> None:
        try:
            if lease is not None:
                lease.check()
            process(batch, batch_id)
        except Exception as error:  # Spark would wrap it in a page of stack traces
            failure.append(error)
            raise

    writer = writer.queryName(name).option("checkpointLocation", checkpoint.path)
    if once:
        writer = writer.trigger(availableNow=True)
    else:
        writer = writer.trigger(processingTime=f"{max(1, round(1000 * trigger_seconds))} milliseconds")
    try:
        with stop.at_signals():
            if stop.asked:
                log.info("%s: stopped on request, before its first batch", name)
                return
            query = _start(writer.foreachBatch(stop.wrap(guarded)), checkpoint.spark, state_partitions)
            on_start(query)
            if stop.await_end(query):
                log.info("%s: stopped on request, the last batch is done", name)
    except (PySparkException, Py4JJavaError) as error:
        cause = failure[0] if failure else error
        if isinstance(cause, FoldinError):
            raise cause from error
        ours = not isinstance(cause, (PySparkException, Py4JJavaError))  # of Spark's own, its log has the pages
        log.log(logging.ERROR if ours else logging.DEBUG, "%s failed", name, exc_info=cause)
        raise _explained(name, cause, rebuild) from cause
