"""Streams that bench_stream runs side by side, fed one micro-batch at a time, and what they say of each."""

from __future__ import annotations

import json
import os
import queue
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.classic.dataframe import DataFrame as ClassicDataFrame
from pyspark.sql.streaming import StreamingQuery
from pyspark.sql.streaming.listener import StreamingQueryListener

from foldin.checkpoints import Checkpoint
from foldin.config import Config
from foldin.fold_in import FoldIn
from foldin.publishing import Publisher
from foldin.schemas import EVENTS, TableSpec
from foldin.streaming import GracefulStop
from foldin.tables import Tables

__all__ = [
    "Contender",
    "FoldInContender",
    "Phases",
    "Progress",
    "ProgressLog",
    "QueryContender",
    "await_quiet",
    "cpu_seconds",
    "process_tree",
    "resident_bytes",
]

_TIMEOUT = 900.0

Progress = dict[str, Any]


class ProgressLog(StreamingQueryListener):
    """Every micro-batch with rows, by the name of its query. Spark calls it after the batch, on a thread of its own."""

    def __init__(self, spark: SparkSession) -> None:
        self._queues: dict[str, queue.Queue[Progress]] = defaultdict(queue.Queue)
        spark.streams.addListener(self)

    def next(self, name: str) -> Progress:
        """The next micro-batch of that query; queue.Empty when there is none for a second."""
        return self._queues[name].get(timeout=1)

    def drain(self, name: str) -> list[Progress]:
        """What is there and nobody has asked for."""
        found = []
        while not self._queues[name].empty():
            found.append(self._queues[name].get())
        return found

    def onQueryStarted(self, event: Any) -> None:  # noqa: N802 - Spark's names
        pass

    def onQueryProgress(self, event: Any) -> None:  # noqa: N802
        progress = json.loads(event.progress.json)
        if progress["numInputRows"]:
            self._queues[progress["name"]].put(progress)

    def onQueryIdle(self, event: Any) -> None:  # noqa: N802
        pass

    def onQueryTerminated(self, event: Any) -> None:  # noqa: N802
        pass


class Contender:
    """A running stream that takes one batch at a time."""

    name: str

    def __init__(self, log: ProgressLog, feed: Callable[[DataFrame], None]) -> None:
        self._log, self._feed = log, feed

    def take(self, batch: DataFrame) -> Progress:
        """Land a batch where the stream reads, and wait until it is done with it."""
        self._feed(batch)
        cpu = cpu_seconds()
        while True:
            self.check()
            try:
                return self._log.next(self.name) | {"cpu": cpu_seconds() - cpu}
            except queue.Empty:
                continue

    def check(self) -> None:
        """Raise what ended the stream, if something did."""

    def stop(self) -> None:
        """Let it finish, and end it."""


class QueryContender(Contender):
    """A query of the bench's own."""

    def __init__(self, log: ProgressLog, feed: Callable[[DataFrame], None], query: StreamingQuery) -> None:
        super().__init__(log, feed)
        self.name, self._query = query.name, query

    def check(self) -> None:
        if self._query.exception() is not None:
            raise self._query.exception()

    def stop(self) -> None:
        self._query.stop()


class FoldInContender(Contender):
    """The product's fold-in query, in continuous mode, on a thread."""

    name = "fold_in"

    def __init__(self, log: ProgressLog, tables: Tables, config: Config) -> None:
        super().__init__(log, lambda batch: tables.append(batch, EVENTS))
        self._stop, self._failure = GracefulStop(), list[BaseException]()
        fold_in = FoldIn(tables, config)

        def run() -> None:
            try:
                fold_in.run(once=False, stop=self._stop)
            except BaseException as error:
                self._failure.append(error)

        self._thread = threading.Thread(target=run, name="fold_in", daemon=True)
        self._thread.start()

    def check(self) -> None:
        if self._failure:
            raise self._failure[0]

    def stop(self) -> None:
        self._stop.ask()
        self._thread.join(_TIMEOUT)
        self.check()


class Phases:
    """What the product does within addBatch, batch by batch: its methods, timed from outside.

    Beside the seconds on the clock stand CPU seconds of all processes below this one, which a busy machine inflates
    less. Two appends that run at the same time are each given the CPU of both.
    """

    _METHODS = (
        (FoldIn, "_process", "foreachBatch, all of it"),
        (FoldIn, "_pin", "  pin the model"),
        (Checkpoint, "delta_offset", "  read an offset"),
        (Checkpoint, "query_id", "  read the query's id"),
        (Publisher, "publish", "  publish"),
        (Publisher, "folded", "    plan the fold"),
        (ClassicDataFrame, "count", "    state, fold, rank: count()"),
    )

    def __init__(self) -> None:
        self.seconds: dict[str, list[tuple[float, float]]] = defaultdict(list)

    def medians(self, batches: int) -> list[tuple[str, float, float]]:
        """(what, seconds, CPU seconds) over the last `batches` micro-batches, in the order of the code."""
        order = [label for _, _, label in self._METHODS]
        rows = []
        for label, taken in sorted(
            self.seconds.items(), key=lambda row: order.index(row[0]) if row[0] in order else 99
        ):
            last = taken[-batches:]
            rows.append((label, statistics.median(t for t, _ in last), statistics.median(c for _, c in last)))
        return rows

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Time the methods while this lasts."""
        kept = [(owner, method, getattr(owner, method)) for owner, method, _ in self._METHODS]
        append = Tables.append
        for owner, method, label in self._METHODS:
            self._wrap(owner, method, lambda *_, label=label: label)
        self._wrap(Tables, "append", _append_label)
        try:
            yield
        finally:
            for owner, method, original in kept:
                setattr(owner, method, original)
            Tables.append = append  # type: ignore[method-assign]

    def _wrap(self, owner: type, method: str, label: Callable[..., str]) -> None:
        original = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            started, cpu = time.perf_counter(), cpu_seconds()
            try:
                return original(*args, **kwargs)
            finally:
                row = (time.perf_counter() - started, cpu_seconds() - cpu)
                self.seconds[label(*args, **kwargs)].append(row)

        setattr(owner, method, timed)


def _append_label(_tables: Tables, _rows: DataFrame, spec: TableSpec, *_: object, **_more: object) -> str:
    return f"{'(the bench) ' if spec is EVENTS else '    '}append to {spec.name}"


def process_tree(root: int) -> list[int]:
    """`root` and all processes below it."""
    children = defaultdict(list)
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        children[int(fields[1])].append(int(stat.parent.name))
    found = [root]
    for pid in found:
        found += children[pid]
    return found


def cpu_seconds(root: int | None = None) -> float:
    """CPU seconds of a process tree (by default, this one), its ended children included."""
    ticks = 0
    for pid in process_tree(root or os.getpid()):
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += sum(int(n) for n in fields[11:15])
    return ticks / os.sysconf("SC_CLK_TCK")


def await_quiet(seconds: float = 900.0) -> float:
    """Wait until these processes have nothing to do, since RocksDB merges for minutes what it has just loaded; seconds.

    Less than a fifth of a core over ten seconds is nothing; idle queries look for data twice a second.
    """
    started = time.monotonic()
    while time.monotonic() - started < seconds:
        before = cpu_seconds()
        time.sleep(10)
        if cpu_seconds() - before < 2.0:
            break
    return time.monotonic() - started


def resident_bytes(root: int | None = None) -> int:
    """Resident memory of a process tree; pages that its processes share count once a process."""
    pages = 0
    for pid in process_tree(root or os.getpid()):
        try:
            pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        except OSError:
            continue
    return pages * os.sysconf("SC_PAGE_SIZE")
