"""A Delta table's commits as its log tells them, read without a query: who appended what, under which number."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from delta.tables import DeltaTable
from pyspark.sql import DataFrame, SparkSession

from foldin.checkpoints import Checkpoint
from foldin.schemas import TableSpec
from foldin.tables import Tables

__all__ = ["AppendedFile", "Attempt", "Commit", "CommitLog", "log_and_snapshot", "parse_commit"]

_LOOKED_AT = 1000  # commits, by `Attempt.at`: a quarter of an hour of a stream
_ACTIONS = ('{"commitInfo"', '{"txn"', '{"add"', '{"remove"')


@dataclass(frozen=True)
class AppendedFile:
    """A data file that a commit adds to its table: where, and how many bytes."""

    uri: str
    bytes: int


@dataclass(frozen=True)
class Commit:
    """One version of a table.

    Attributes:
        version: its Delta version.
        metadata: what its writer had it say of itself (`userMetadata`), "" for nothing.
        transactions: the application ids of idempotent writes and the numbers that it took under them.
        files: those whose rows it appends, in the order of the log; none where it merely moves rows that were there
            (OPTIMIZE), or changes some: a stream skips such a commit.
        rows: rows written, as the writer counted them.
        at: the writer's clock, seconds since the epoch.
        changes: it removes or rewrites rows that were there.
    """

    version: int
    metadata: str = ""
    transactions: Mapping[str, int] = field(default_factory=dict)
    files: tuple[AppendedFile, ...] = ()
    rows: int = 0
    at: float = 0.0
    changes: bool = False

    @property
    def bytes(self) -> int:
        """Size of all its files."""
        return sum(file.bytes for file in self.files)


class CommitLog:
    """The log of one table."""

    def __init__(self, tables: Tables, spec: TableSpec) -> None:
        self._tables, self._spec = tables, spec
        self.table = spec.name
        self._location = tables.location(spec)
        self._folder = Checkpoint(tables.spark, f"{self._location}/_delta_log")
        self._newest: int | None = None

    def commit(self, version: int) -> Commit | None:
        """The commit of that version; None where there is none yet, or none any more."""
        text = self._folder.read(f"{version:020d}.json")
        return None if text is None else parse_commit(version, text, self._location)

    def has(self, version: int) -> bool:
        """Whether the log still has that commit. Delta cleans it up from the oldest one on."""
        return self._tables.has_version(self._spec, version)

    def newest(self) -> int:
        """The table's newest version: asked of Delta once, from then on one look at a file name a commit."""
        if self._newest is None:
            self._newest = self._tables.version(self._spec)
        while self.has(self._newest + 1):
            self._newest += 1
        return self._newest

    def oldest(self) -> Commit:
        """The first commit that the log still has."""
        commit = None
        while commit is None:  # trimmed between the two looks; Delta never deletes its newest
            names = (name.removesuffix(".json") for name in self._folder.list("") if name.endswith(".json"))
            commit = self.commit(min(int(name) for name in names if name.isdigit()))
        return commit

    def settle(self) -> None:
        """Have Delta finish what a writer that died has left half done, so that its commit is in the folder.

        A log store that keeps its commits elsewhere first (S3DynamoDBLogStore) copies them there afterwards; whoever
        lists the log through it makes up for a copy that is missing.

        Raises:
            py4j.protocol.Py4JJavaError: the log cannot be read.
        """
        self._snapshot()

    def find(self, metadata: str, since: int) -> Commit | None:
        """The first commit after the version `since` that says `metadata` of itself; None for none."""
        if not self.has(since):  # cleaned up: Delta knows where its log begins
            history = DeltaTable.forPath(self._tables.spark, self._location).history()
            rows = history.where(history.userMetadata == metadata).select("version").collect()
            return self.commit(min(row["version"] for row in rows)) if rows else None
        version = since
        while (commit := self.commit(version := version + 1)) is not None:
            if commit.metadata == metadata:
                return commit
        return None

    def head(self, app_id: str) -> tuple[int, int]:
        """The table's newest version, and the last number that it has seen under an application id (-1: none).

        Raises:
            py4j.protocol.Py4JJavaError: the log cannot be read.
        """
        snapshot = self._snapshot()
        number = snapshot.transactions().get(app_id)
        return int(snapshot.version()), int(number.get()) if number.isDefined() else -1

    def _snapshot(self) -> Any:
        return log_and_snapshot(self._tables.spark, self._location)[1]


def log_and_snapshot(spark: SparkSession, location: str) -> tuple[Any, Any]:
    """Delta's own `DeltaLog` of the table at `location`, and its newest `Snapshot`: both are objects of the JVM.

    Raises:
        py4j.protocol.Py4JJavaError: the log cannot be read.
    """
    jvm: Any = spark.sparkContext._jvm
    none = jvm.scala.Option.empty()
    log = jvm.org.apache.spark.sql.delta.DeltaLog.forTable(spark._jsparkSession, location)
    return log, log.update(False, none, none)


def parse_commit(version: int, text: str, location: str) -> Commit:
    """A commit of the table at `location`, from the text of its log file."""
    metadata, transactions, rows, at, changes = "", {}, 0, 0.0, False
    files: list[AppendedFile] = []
    # Not `splitlines`: Delta writes U+2028 and the like, which ids may hold, into its statistics as they are.
    for line in text.split("\n"):
        action: dict[str, Any] = json.loads(line) if line.startswith(_ACTIONS) else {}
        if "commitInfo" in action:
            info = action["commitInfo"]
            metadata = info.get("userMetadata") or ""
            rows = int(info.get("operationMetrics", {}).get("numOutputRows", 0))
            at = info.get("timestamp", 0) / 1000
        elif "txn" in action:
            transactions[action["txn"]["appId"]] = int(action["txn"]["version"])
        elif "add" in action and action["add"]["dataChange"]:
            files.append(AppendedFile(_uri(location, action["add"]["path"]), int(action["add"]["size"])))
        elif "remove" in action and action["remove"]["dataChange"]:
            changes = True
    return Commit(version, metadata, transactions, () if changes else tuple(files), rows, at, changes)


def _uri(location: str, path: str) -> str:
    """A file's path as Hadoop takes it: the log has it relative and percent-encoded."""
    decoded = unquote(path)
    return decoded if "://" in decoded or decoded.startswith("/") else f"{location}/{decoded}"


@dataclass(frozen=True)
class Attempt:
    """One attempt at a piece of work, whose appends name it in the log: each is made once, however often it is tried.

    Delta would do the same by txnAppId, but it looks the number up in the whole state of the table, for every commit:
    0.38 s an append instead of 0.10, growing with the table's files. A lease sees to it that nobody else is at the
    same work, so a look at the commits since its first attempt is enough, and the first attempt needs none.

    Attributes:
        label: what its commits say of themselves.
        since: each table's version before the first attempt.
        first: nothing can be there yet.
        check: raises when somebody else may be at the same work by now; asked right before each append.
    """

    label: str
    since: Mapping[str, int]
    first: bool
    check: Callable[[], None] = lambda: None

    @classmethod
    def at_batch(
        cls, query_id: str, batch_id: int, since: Mapping[str, int], *, first: bool, check: Callable[[], None]
    ) -> Attempt:
        """At a micro-batch."""
        return cls(json.dumps({"foldin-query": query_id, "batch": batch_id}), since, first, check)

    @classmethod
    def at(cls, work: Mapping[str, Any], tables: Tables, specs: Sequence[TableSpec]) -> Attempt:
        """At work that seldom comes, whose earlier attempts are looked for in what the logs still have."""
        since = {}
        for spec in specs:
            log = CommitLog(tables, spec)
            since[spec.name] = max(log.oldest().version, log.newest() - _LOOKED_AT)
        return cls(json.dumps(work), since, first=False)

    def append(self, tables: Tables, rows: DataFrame, spec: TableSpec) -> None:
        """Append `rows`, unless an earlier attempt has."""
        if self.committed(tables, spec) is None:
            with tables.locked(spec):  # another process may have held it for a while
                self.check()
                tables.append(rows, spec, metadata=self.label)

    def committed(self, tables: Tables, spec: TableSpec) -> Commit | None:
        """What an earlier attempt appended; None for nothing."""
        if self.first:
            return None
        CommitLog(tables, spec).settle()
        return self.made(tables, spec)

    def made(self, tables: Tables, spec: TableSpec) -> Commit | None:
        """What this attempt, or an earlier one, has appended by now."""
        return CommitLog(tables, spec).find(self.label, self.since[spec.name])
