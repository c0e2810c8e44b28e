"""Logs kept short: what a table's readers are past is deleted from its `_delta_log`, so that a commit stays cheap.

Delta lists the whole log several times a micro-batch, 10 µs a file on a local disk, and by itself it deletes what is
older than two days, once a day: at a commit a second a stream would take twice as long within half an hour. So the
streams trim the logs of the tables that they look after, in passing: up to a few minutes ago, but never past the
commit at which foldin's own queries go on, were they stopped, nor past a `Hold`.
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from foldin.checkpoints import PUSHES, REPLAYS, Checkpoint
from foldin.commits import log_and_snapshot
from foldin.leases import Lease, holder_of
from foldin.schemas import EVENTS, QUARANTINE, RECOMMENDATIONS, TableSpec
from foldin.tables import Tables

__all__ = ["Hold", "needed", "trim"]

log = logging.getLogger("foldin.trim")

_HOLDS = "_holds"  # no query can be named so
_LONGEST = 2 * 86_400.0
"""Seconds after which no query is waited for: Delta's own clean-up (`delta.logRetentionDuration`) would not either."""
_RESTING = 86_400.0
"""Seconds for which a hold is kept that no process stands behind: Delta refuses to read older versions anyway."""
_TERM = 120.0
_SLACK = 60.0  # between Delta's clock and ours
_IDS_READ_FROM_THE_TABLE = 1000  # commits after which ingest does not go through the log


@dataclass
class Hold:
    """Keeps a table's log from a version on, for a process that reads the table as of that version (`with`).

    It ends with the process, however that ends. `rest` leaves one that lasts for a day, or until `drop`.
    """

    tables: Tables
    name: str
    spec: TableSpec
    version: int
    _lease: Lease | None = field(default=None, init=False)

    def __enter__(self) -> Hold:
        self.rest()
        self._lease = Lease(self._folder, _TERM)
        self._lease.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._lease is not None
        self._lease.__exit__(kind, error, trace)
        self.drop()

    def rest(self) -> None:
        """Hold for a day."""
        self._folder.write("versions", json.dumps({self.spec.name: self.version}))

    def drop(self) -> None:
        """Give it back."""
        _holds(self.tables).delete(self.name)

    @property
    def _folder(self) -> Checkpoint:
        return Checkpoint(self.tables.spark, f"{_holds(self.tables).path}/{self.name}")


def trim(tables: Tables, spec: TableSpec, minutes: int) -> int:
    """Checkpoint a table's log, then delete its commits older than so many minutes that no reader needs; how many went.

    Without the checkpoint the next commit that is due for one writes it, and waits for it. A table whose property
    `delta.enableExpiredLogCleanup` is false keeps all of its commits.

    Raises:
        py4j.protocol.Py4JJavaError: the log cannot be read, or nothing can be written there.
    """
    spark, location = tables.spark, tables.location(spec)
    jvm: Any = spark.sparkContext._jvm
    delta = jvm.org.apache.spark.sql.delta
    table_log, snapshot = log_and_snapshot(spark, location)
    table_log.checkpoint()
    if not table_log.enableExpiredLogCleanup(snapshot.metadata()):
        return 0
    folder = Checkpoint(spark, f"{location}/_delta_log")
    names = folder.list("")
    commits = sorted(int(stem) for name in names if (stem := name.removesuffix(".json")).isdigit())
    until = time.time() - 60 * minutes
    version = needed(tables, spec, newest=commits[-1])
    if version is not None:
        # A version is read from the checkpoint before it: that one is kept too.
        whole = sorted({int(name.partition(".")[0]) for name in names if ".checkpoint" in name})
        base = max((at for at in whole if at <= version), default=commits[0])
        written = folder.modified_if_there(f"{max(base, commits[0]):020d}.json")
        if written is not None:
            until = min(until, written - _SLACK)
    age = min(time.time() - until, _LONGEST)
    # Boxed over there: what goes through Python comes back as an Integer, and Scala takes none for a Long.
    milliseconds = jvm.java.util.stream.LongStream.of(int(1000 * age)).boxed().findFirst()
    table_log.cleanUpExpiredLogs(
        snapshot,
        jvm.scala.Option.empty(),
        jvm.scala.jdk.javaapi.OptionConverters.toScala(milliseconds),
        getattr(getattr(delta, "TruncationGranularity$"), "MODULE$").MINUTE(),
    )
    left = {int(stem) for name in folder.list("") if (stem := name.removesuffix(".json")).isdigit()}
    return sum(1 for commit in commits if commit not in left)


def needed(tables: Tables, spec: TableSpec, *, newest: int | None = None) -> int | None:
    """The oldest version of a table from which on foldin needs its commits; None where it needs none.

    Args:
        newest: the table's newest version, where it is known: who is far behind it does not go by the log.
    """
    root = Checkpoint(tables.spark, tables.path("_checkpoints"))
    versions = _held(_holds(tables), spec)
    for name in root.list(""):
        query = Checkpoint(tables.spark, f"{root.path}/{name}")
        if name == "fold_in":
            versions += _pinned(query, spec)
            versions += _unread(query) if spec is EVENTS else []
        elif name == REPLAYS:
            for number in (found for found in query.list("") if found.isdigit()):
                replay = Checkpoint(tables.spark, f"{query.path}/{number}")
                versions += _unlearnt(replay, spec, newest)
                versions += _unread(replay) if spec is QUARANTINE else []
        elif name == PUSHES:
            if spec is RECOMMENDATIONS:
                for target in query.list(""):
                    versions += _unread(Checkpoint(tables.spark, f"{query.path}/{target}"))
        elif not name.startswith("_"):
            versions += _unlearnt(query, spec, newest)
    return max(0, min(versions)) if versions else None


def _holds(tables: Tables) -> Checkpoint:
    return Checkpoint(tables.spark, tables.path("_checkpoints", _HOLDS))


def _held(holds: Checkpoint, spec: TableSpec) -> list[int]:
    versions = []
    for name in holds.list(""):
        hold = Checkpoint(holds.spark, f"{holds.path}/{name}")
        written, holder = hold.modified_if_there("versions"), holder_of(hold)
        over = written is None or (not holder.remaining() if holder is not None else time.time() - written > _RESTING)
        text = hold.read("versions")
        if over:
            if text is not None:  # else it is just being taken, or given back
                log.info("the hold %s is over", name)
                holds.delete(name)
        elif text is not None and spec.name in (found := hold.parsed("versions", text)):
            versions.append(int(found[spec.name]))
    return versions


def _unread(query: Checkpoint) -> list[int]:
    """Of a query over a Delta table: from which version on its next start reads it."""
    done = query.newest("commits")
    # Spark makes the last batch's frame again when it starts, though it is done: from the one before it on.
    offset = query.delta_offset(max(0, done - 1)) if done >= 0 else None
    if offset is not None:
        return [offset.position.version - 1]
    return [] if query.is_new() else [0]  # in its first batch: which snapshot it reads is not written down yet


def _pinned(query: Checkpoint, spec: TableSpec) -> list[int]:
    """Where a replayed batch of fold_in looks for what its first attempt has appended."""
    pin = query.read_object(f"pins/{query.newest('pins')}")
    return [int(pin["since"][spec.name])] if pin is not None and spec.name in pin["since"] else []


def _unlearnt(query: Checkpoint, spec: TableSpec, newest: int | None) -> list[int]:
    """Of an ingest query: the commits whose ids it has not learnt yet, its own of a batch under way among them."""
    last = query.newest("admission")
    states = query.read_object(f"admission/{last}")
    if states is None or spec.name not in states:
        return []
    before, after = states[spec.name]
    if query.read(f"commits/{last}") is None:
        return [int(before)]
    far_behind = newest is not None and newest - after > _IDS_READ_FROM_THE_TABLE
    return [] if far_behind or after < 0 else [int(after)]
