"""Logs kept short: what a table's readers are past is deleted from its `_delta_log`, so that a commit stays cheap.

Delta lists the whole log several times a micro-batch, 10 µs a file on a local disk, and by itself it deletes what is
older than two days, once a day: at a commit a second a stream would take twice as long within a quarter of an hour.
So the streams trim the logs of the tables that they append to, in passing: up to a few minutes ago, but never past
the commit at which a reader of foldin goes on, were it stopped: a query by its checkpoint, a training by its `Hold`.
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from foldin.checkpoints import Checkpoint
from foldin.schemas import EVENTS, TableSpec
from foldin.tables import Tables

__all__ = ["Hold", "needed", "trim"]

log = logging.getLogger("foldin.trim")

_HOLDS = "holds"
_LONGEST = 2 * 86_400.0
"""Seconds after which nobody is waited for: Delta's own clean-up (`delta.logRetentionDuration`) would not either."""


@dataclass(frozen=True)
class Hold:
    """Keeps a table's log from a version on, for whoever reads the table as of that version (`with`).

    It outlives a crash, for two days at most; without `with` it holds that long, or until its name is used again.
    """

    tables: Tables
    name: str
    spec: TableSpec
    version: int

    def __enter__(self) -> Hold:
        self.take()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._folder.delete(self.name)

    def take(self) -> None:
        """Write it down."""
        self._folder.write(self.name, json.dumps({self.spec.name: self.version}))

    @property
    def _folder(self) -> Checkpoint:
        return Checkpoint(self.tables.spark, self.tables.path("_checkpoints", _HOLDS))


def trim(tables: Tables, spec: TableSpec, minutes: int) -> int:
    """Delete a table's commits that are older than so many minutes and that no reader needs; how many went.

    Raises:
        py4j.protocol.Py4JJavaError: the log cannot be read.
    """
    spark, location = tables.spark, tables.location(spec)
    jvm: Any = spark.sparkContext._jvm
    folder = Checkpoint(spark, f"{location}/_delta_log")
    names = folder.list("")
    commits = sorted(int(stem) for name in names if (stem := name.removesuffix(".json")).isdigit())
    now = time.time()
    until = now - 60 * minutes
    version = needed(tables, spec)
    if version is not None:
        # A version is read from the checkpoint before it: that one is kept too.
        whole = sorted({int(name.partition(".")[0]) for name in names if ".checkpoint" in name})
        base = max((at for at in whole if at <= version), default=commits[0])
        if base <= commits[-1]:
            until = min(until, folder.modified(f"{max(base, commits[0]):020d}.json"))
    until = max(until, now - _LONGEST)
    delta = jvm.org.apache.spark.sql.delta
    none = jvm.scala.Option.empty()
    table_log = delta.DeltaLog.forTable(spark._jsparkSession, location)
    age = jvm.java.util.stream.LongStream.of(int(1000 * (now - until))).boxed().findFirst()  # py4j makes it an Integer
    minute = getattr(delta, "TruncationGranularity$")
    table_log.cleanUpExpiredLogs(
        table_log.update(False, none, none),
        none,
        jvm.scala.jdk.javaapi.OptionConverters.toScala(age),
        getattr(minute, "MODULE$").MINUTE(),
    )
    left = sum(1 for name in folder.list("") if name.removesuffix(".json").isdigit())
    return len(commits) - min(left, len(commits))


def needed(tables: Tables, spec: TableSpec) -> int | None:
    """The oldest version of a table from which on a reader of foldin needs its commits; None where none needs any."""
    root = Checkpoint(tables.spark, tables.path("_checkpoints"))
    versions: list[int] = []
    for name in root.list(""):
        folder = Checkpoint(tables.spark, f"{root.path}/{name}")
        if name == _HOLDS:
            versions += _held(folder, spec)
        else:
            versions += _where_a_query_goes_on(folder, spec)
    return max(0, min(versions)) if versions else None


def _held(folder: Checkpoint, spec: TableSpec) -> list[int]:
    versions = []
    for name in folder.list(""):
        text = folder.read(name)
        if text is None:  # given back meanwhile
            continue
        if time.time() - folder.modified(name) > _LONGEST:  # of a process that was killed
            folder.delete(name)
            continue
        versions += [version for table, version in folder.parsed(name, text).items() if table == spec.name]
    return versions


def _where_a_query_goes_on(query: Checkpoint, spec: TableSpec) -> list[int]:
    """Of a query that is stopped now: the commits from which on its next start reads a table."""
    versions = []
    # Where a replayed batch looks for what its first attempt has appended, and what ingest has not learnt yet.
    for kind, version_of in (("pins", _since), ("admission", _before)):
        last = max((int(name) for name in query.list(kind) if name.isdigit()), default=None)
        text = query.read(f"{kind}/{last}") if last is not None else None
        if text is not None:
            version = version_of(query.parsed(f"{kind}/{last}", text), spec)
            versions += [] if version is None else [version]
    if spec is EVENTS and query.path.endswith("/fold_in"):
        done = max((int(name) for name in query.list("commits") if name.isdigit()), default=-1)
        # Spark makes the last batch's frame again when it starts, though it is done: from the one before it on.
        offset = query.delta_offset(max(0, done - 1)) if done >= 0 else None
        if offset is not None:
            versions.append(offset.position.version - 1)
        elif not query.is_new():
            versions.append(0)  # in its first batch: which snapshot it reads is not written down yet
    return versions


def _since(pin: dict[str, Any], spec: TableSpec) -> int | None:
    version: int | None = pin["since"].get(spec.name)
    return version


def _before(admission: dict[str, Any], spec: TableSpec) -> int | None:
    return admission[spec.name][0] if spec.name in admission else None
