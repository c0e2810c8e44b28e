"""Where the tables lie, and the only ways to write to them.

A table is a Delta table by path (under `tables.root`) or by name (`tables.catalog`). Every write is an
append; one that belongs to a micro-batch or a promotion carries a transaction (application id, version) that
Delta applies at most once.
"""

from __future__ import annotations

import fcntl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from delta.tables import DeltaTable
from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame, DataFrameReader, SparkSession
from pyspark.sql import functions as F

from foldin.config import TablesConfig
from foldin.errors import StateMismatchError
from foldin.schemas import TABLES, TableSpec

__all__ = ["Tables", "Transaction", "few_files", "in_full", "latest"]


_ROWS_A_FILE = 25_000
_LOG_STORE = "spark.delta.logStore.file.impl"


class _LockFile:
    """A file that one process holds at a time, by the kernel's lock, for as long as any of its threads asks for it."""

    def __init__(self, file: Path) -> None:
        self.threads = threading.RLock()
        """For who needs to be alone within the process, too."""
        self.merges = threading.Lock()
        """Of two merges at once Delta would refuse one."""
        self._file, self._holders = file, 0
        self._guard = threading.Lock()
        self._opened: IO[bytes] | None = None

    @contextmanager
    def held_by_process(self) -> Iterator[None]:
        """Other processes wait meanwhile."""
        with self._guard:
            if self._opened is None:
                opened = self._file.open("ab")
                fcntl.flock(opened, fcntl.LOCK_EX)
                self._opened = opened
            self._holders += 1
        try:
            yield
        finally:
            with self._guard:
                self._holders -= 1
                if not self._holders:
                    self._opened.close()  # gives the lock back
                    self._opened = None


_lock_files: dict[Path, _LockFile] = {}


@dataclass(frozen=True)
class Transaction:
    """An idempotent write: Delta skips it when `app_id` has committed `version` or a later one to the table."""

    app_id: str
    version: int


def in_full(path: str) -> str:
    """A path as Delta takes it: a URI, or absolute, since it takes a relative one for the name of a table."""
    scheme, colon, rest = path.partition(":/")
    if not colon or not urlsplit(path).scheme:
        return str(Path(path).absolute())
    return path if rest.startswith("/") else f"{scheme}:///{rest}"  # as Hadoop writes it: hdfs:/foldin


def few_files(rows: DataFrame, count: int) -> DataFrame:
    """Rows that are cached, to be written: a micro-batch makes one file, not one a partition, to be read and merged."""
    return rows.coalesce(max(1, count // _ROWS_A_FILE))


@dataclass(frozen=True)
class Tables:
    """The tables of one foldin installation."""

    spark: SparkSession
    root: str
    catalog: str = ""
    _locations: dict[str, str] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, spark: SparkSession, config: TablesConfig, *, create: bool = True) -> Tables:
        """The configured tables, created where they are missing (but not for who only reads: `create` False)."""
        tables = cls(spark, in_full(config.root.rstrip("/")), config.catalog)
        for spec in TABLES if create else ():
            # At every start of a job: a look at the columns, which the job reads anyway, and no query.
            if not tables._create(spec) and spec.grows and set(spec.schema.names) - set(tables.read(spec).columns):
                tables.upgrade(spec)
        return tables

    def exists(self, spec: TableSpec) -> bool:
        """Whether the table is there."""
        if self.catalog:
            return bool(self.spark.catalog.tableExists(self.catalog_name(spec)))
        log = f"{self.path(spec.name)}/_delta_log"  # which is there before its first commit
        return self._exists(f"{log}/{0:020d}.json") or self._exists(f"{log}/_last_checkpoint")

    def path(self, *parts: str) -> str:
        """A path under the root, for checkpoints and the like."""
        return "/".join([self.root, *parts])

    def name(self, spec: TableSpec) -> str:
        """The table as SQL names it: catalog.schema.table, or delta.`path`."""
        if self.catalog:
            return self.catalog_name(spec)
        return "delta.`" + self.path(spec.name).replace("`", "``") + "`"

    def read(self, spec: TableSpec, *, version: int | None = None) -> DataFrame:
        """The table now, or as of a Delta version."""
        reader = self.spark.read
        return self._load(reader if version is None else reader.option("versionAsOf", version), spec)

    def stream(self, spec: TableSpec, **options: str | int | bool) -> DataFrame:
        """The table as a Delta source; changes of committed rows (erasure, maintenance) are skipped."""
        reader = self.spark.readStream.format("delta").option("skipChangeCommits", True)
        reader = reader.options(**options)
        return reader.table(self.catalog_name(spec)) if self.catalog else reader.load(self.path(spec.name))

    def appended(self, spec: TableSpec, since: int, until: int) -> DataFrame:
        """The rows appended by Delta versions `since` to `until`, both included (an empty range gives none)."""
        if since > until:
            return self.read(spec).limit(0)
        reader = (
            self.spark.read.option("readChangeFeed", True)
            .option("startingVersion", since)
            .option("endingVersion", until)
        )
        changes = self._load(reader, spec).where("_change_type = 'insert'")
        return changes.drop("_change_type", "_commit_version", "_commit_timestamp")

    def append(
        self, rows: DataFrame, spec: TableSpec, transaction: Transaction | None = None, *, metadata: str | None = None
    ) -> None:
        """Append `rows` (its columns by name), once if `transaction` is given.

        Args:
            metadata: what the commit is to say of itself in the table's log (`userMetadata`).
        """
        writer = rows.select(*spec.schema.names).write.format("delta").mode("append")
        if transaction is not None:
            writer = writer.option("txnAppId", transaction.app_id)
            writer = writer.option("txnVersion", transaction.version)
        if metadata is not None:
            writer = writer.option("userMetadata", metadata)
        with self.locked(spec):
            if self.catalog:
                writer.saveAsTable(self.catalog_name(spec))
            else:
                writer.save(self.path(spec.name))

    def upgrade(self, spec: TableSpec) -> list[str]:
        """Give a table of an older foldin the columns and properties of this one; their names, as table.name.

        A running stream over `events` ends when that table gets a column: stop it before.

        Raises:
            StateMismatchError: a column is there with another type.
        """
        there = {column.name: column.dataType for column in self.read(spec).schema}
        missing = [column for column in spec.schema if column.name not in there]
        for column in spec.schema:
            found = there.get(column.name, column.dataType)
            if found.simpleString() != column.dataType.simpleString():
                raise StateMismatchError(
                    f"{spec.name}.{column.name} is {found.simpleString()}, but this foldin needs "
                    f"{column.dataType.simpleString()}: the table is not of an older foldin"
                )
        detail = self.spark.sql(f"describe detail {self.name(spec)}").select("properties").first()
        assert detail is not None  # the table is there
        properties = {key: value for key, value in spec.properties.items() if detail["properties"].get(key) != value}
        with self.locked(spec):
            if missing:
                columns = ", ".join(
                    f"`{column.name}` {column.dataType.simpleString()} comment '{_quoted(column.metadata['comment'])}'"
                    for column in missing
                )
                self.spark.sql(f"alter table {self.name(spec)} add columns ({columns})")
            if properties:
                pairs = ", ".join(f"'{key}' = '{value}'" for key, value in properties.items())
                self.spark.sql(f"alter table {self.name(spec)} set tblproperties ({pairs})")
        return [f"{spec.name}.{name}" for name in [*(column.name for column in missing), *properties]]

    @property
    def exclusive(self) -> bool:
        """`locked` keeps out everybody else who appends: the tables lie on a local disk."""
        return not self.catalog and self._on_disk

    @property
    def _on_disk(self) -> bool:
        return "://" not in self.root or self.root.startswith("file://")

    @contextmanager
    def locked(self, spec: TableSpec) -> Iterator[None]:
        """Keep everybody else on this machine from appending to the table meanwhile. A thread may hold it twice.

        Only a merge of small files of this process may commit (`merging`).

        A local file system has no "rename unless it exists", by which one of two commits of the same version would
        lose: Delta asks whether the file is there, then renames, and between the two another process's commit can
        be overwritten. So on a local root every commit is made under a lock. It is the kernel's: SIGKILL frees it.
        Elsewhere Delta's log store sees to it, and this does nothing.
        """
        lock = self._lock(spec)
        if lock is None:
            yield
            return
        with lock.threads, lock.held_by_process():
            yield

    @contextmanager
    def merging(self, spec: TableSpec) -> Iterator[None]:
        """As `locked`, but the threads of this process may append, as a merge of small files takes seconds.

        Within a process Delta's local log store makes its commits one after the other (LocalLogStore.write).
        """
        lock = self._lock(spec)
        if lock is None or not str(self.spark.conf.get(_LOG_STORE, "")).endswith(".LocalLogStore"):
            with self.locked(spec):
                yield
            return
        with lock.merges, lock.held_by_process():
            yield

    def _lock(self, spec: TableSpec) -> _LockFile | None:
        if not self._on_disk:
            return None
        folder = Path(self.root.removeprefix("file://")) / "_locks"
        folder.mkdir(parents=True, exist_ok=True)
        return _lock_files.setdefault(folder / spec.name, _LockFile(folder / spec.name))

    def version(self, spec: TableSpec) -> int:
        """The table's current Delta version."""
        row = self.spark.sql(f"describe history {self.name(spec)} limit 1").first()
        assert row is not None  # a table has at least the version that created it
        return int(row["version"])

    def has_version(self, spec: TableSpec, version: int) -> bool:
        """Whether the table's log has that commit: one look at a file name, no query."""
        return self._exists(f"{self.location(spec)}/_delta_log/{version:020d}.json")

    def location(self, spec: TableSpec) -> str:
        """The folder or URI of the table's files."""
        if spec.name not in self._locations:
            row = self.spark.sql(f"describe detail {self.name(spec)}").first()
            assert row is not None
            self._locations[spec.name] = row["location"]
        return self._locations[spec.name]

    def catalog_name(self, spec: TableSpec) -> str:
        """catalog.schema.table"""
        return f"{self.catalog}.{spec.name}"

    def _load(self, reader: DataFrameReader, spec: TableSpec) -> DataFrame:
        if self.catalog:
            return reader.table(self.catalog_name(spec))
        return reader.format("delta").load(self.path(spec.name))

    def _exists(self, uri: str) -> bool:
        jvm: Any = self.spark.sparkContext._jvm
        path = jvm.org.apache.hadoop.fs.Path(uri)
        hadoop = self.spark._jsparkSession.sessionState().newHadoopConf()
        return bool(path.getFileSystem(hadoop).exists(path))

    def _create(self, spec: TableSpec) -> bool:
        """Whether it was not there."""
        if self.catalog:
            return self._create_by_name(spec)
        if self.exists(spec):
            return False  # a look at a folder; asking Delta costs a tenth of a second a table, at every start of a job
        builder = DeltaTable.createIfNotExists(self.spark).addColumns(spec.schema)
        builder = builder.location(self.path(spec.name)).partitionedBy(*spec.partition_by)
        for key, value in spec.properties.items():
            builder = builder.property(key, value)
        with self.locked(spec):  # jobs that are started together on an empty root
            builder.execute()
        return True

    def _create_by_name(self, spec: TableSpec) -> bool:
        """Delta's own builder takes schema.table, but not catalog.schema.table."""
        name = self.catalog_name(spec)
        if self.spark.catalog.tableExists(name):
            return False
        writer = self.spark.createDataFrame([], spec.schema).writeTo(name).using("delta")
        if spec.partition_by:
            writer = writer.partitionedBy(*[F.col(column) for column in spec.partition_by])
        for key, value in spec.properties.items():
            writer = writer.tableProperty(key, value)
        try:
            writer.create()
        except AnalysisException:
            if not self.spark.catalog.tableExists(name):  # else another job was faster
                raise
            return False
        return True


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace("'", "\\'")


def latest(rows: DataFrame) -> DataFrame:
    """Of the rows of each (model_version, user_id), the one that includes most of `events`.

    Ordered by the position that the row carries, never by a batch id or a clock: a replay, a restart or
    a lost checkpoint cannot bring an older row to the front. The clock decides only between rows of one position,
    which are the same but for lists that were made anew with another `top_n`.
    """
    newest = F.max_by(F.struct("*"), F.struct("events_version", "events_index", "folded_at"))
    return rows.groupBy("model_version", "user_id").agg(newest.alias("row")).select("row.*")
