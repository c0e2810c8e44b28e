"""Several ingest jobs append to one table, and no id stands in it twice.

The state of an ingest query knows the ids of its own batches. Those of other writers it learns: `Admission` reads the
table's log for commits that are not the query's own, keeps a batch's rows out whose ids they brought, and hands the
ids on to the query's source of known ids (a folder of Parquet files), by which they reach the state.

The append is compare-and-set. On a local disk a job looks once more under the lock that every append takes. Elsewhere
all ingest jobs number their appends under one application id, for blind appends never conflict in Delta: of two at
once it refuses one, and one whose number is taken it skips (for which it looks at the table's whole state, 0.3 s an
append). Either way the job looks again. Its own commit it knows by what the commit says of itself, after a crash too.
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from dataclasses import dataclass
from functools import reduce

from delta.exceptions import ConcurrentTransactionException
from delta.tables import DeltaTable
from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from foldin.checkpoints import Checkpoint
from foldin.commits import Commit, CommitLog
from foldin.errors import FoldinError, StateMismatchError
from foldin.landed import AS_PATHS
from foldin.schemas import EVENTS, TableSpec
from foldin.tables import Tables, Transaction

__all__ = ["KNOWN", "Admission"]

log = logging.getLogger("foldin.ingest")

KNOWN = "rejected boolean, record_id string, bundle long"
"""Rows of the source of known ids; `bundle` numbers the write that they came with."""

_APP = "foldin-ingest"
_LABEL = f'{{"{_APP}": '
_FOLDER = "prime"
_NOTHING = -1
"""The version up to which a state that knows no id of the table is complete."""
_COMMITS_TO_READ = 1000  # beyond these, reading all ids of the table is quicker than reading its log
_COMMITS_TO_KEEP = 16  # a batch looks into the files of each of them ...
_BYTES_TO_KEEP = 16 << 20  # ... unless they are large


@dataclass(frozen=True)
class _Foreign:
    """Ids that the state does not have yet: those of one commit, or of the whole table as of `version`."""

    version: int
    files: tuple[str, ...] = ()
    bytes: int = 0
    bundle: int = 0
    """The whole table: the bundle that has its ids; 0 for a commit."""


class Admission:
    """The door to one table (`events`, or `quarantine`) for one ingest query.

    Call `open` before the query starts, then for each micro-batch `look`, `admit` and, when all is written, `absorb`.
    """

    def __init__(self, tables: Tables, spec: TableSpec, checkpoint: Checkpoint) -> None:
        self.spec = spec
        self._tables, self._spark, self._checkpoint = tables, tables.spark, checkpoint
        self._log = CommitLog(tables, spec)
        self._column = "event_id" if spec is EVENTS else "record_id"
        self._query_id = ""
        self._state = self._checked = _NOTHING
        self._number = -1
        self._own: tuple[int, Counter[str]] | None = None
        self._leapt = False
        self._foreign: list[_Foreign] = []
        self._handed_on = 0
        """So many of them are in a bundle."""
        self._bundles: dict[int, int] = {}
        """Number of a bundle of this run: the version up to which the state is complete once it has taken it in."""

    @property
    def state(self) -> int:
        """The version up to which the query's state knows every id of the table; -1 for none."""
        return self._state

    def state_after(self, bundle: int | None) -> int:
        """What `state` is once the batch that brings this bundle is done, or a little less."""
        left = self._foreign
        if bundle in self._bundles:
            left = [foreign for foreign in left if foreign.version > self._bundles[bundle]]
        if not left:
            return self._checked
        return self._state if left[0].bundle else max(self._state, left[0].version - 1)

    def open(self, state: int, planned: int) -> None:
        """Before the query starts: learn what others wrote since, and hand it on.

        Args:
            state: what `state` was after the last batch that is done, or earlier; -1 for a new checkpoint.
            planned: the last batch of the checkpoint; -1 for a new one.

        Raises:
            StateMismatchError: the query has committed a later batch: its checkpoint comes from a backup, and would
                give the numbers of batches that were done to other rows.
        """
        self._state = self._checked = state
        head, self._number = self._log.head(_APP)
        if state == _NOTHING or head - state > _COMMITS_TO_READ:
            self._leap()
        else:
            self.look()
            if self._checked < head:
                self._leap()
        self._leapt &= bool(self._own_id())  # a new checkpoint has no commit to look for
        own = [self._own[0]] if self._own is not None else []
        if self._leapt:
            own += [int(json.loads(label)["batch"]) for label in self._own_labels()]
        if (last := max(own, default=-1)) > planned:
            folder = self._checkpoint.path
            raise StateMismatchError(
                f"{folder} ends with batch {planned}, but {self.spec.name} has rows of its batch {last}: it is older "
                f"than the table (restored from a backup, or damaged). Delete {folder} and start again: known ids are "
                "read from the tables"
            )
        self._hand_on()

    def look(self) -> None:
        """Read the commits since the last look."""
        first = self._checked + 1
        while (commit := self._log.commit(self._checked + 1)) is not None:
            self._take(commit)
            if self._checked - first >= _COMMITS_TO_READ:
                self._leap()
                first = self._checked + 1
        # Delta cleans its log up from the oldest commit on: without the last one, what followed may be gone as well.
        if self._checked < first and not self._log.has(self._checked):
            self._leap()
        fresh = self._foreign[self._handed_on :]
        if len(fresh) >= _COMMITS_TO_KEEP or sum(foreign.bytes for foreign in fresh) >= _BYTES_TO_KEEP:
            self._hand_on()

    def admit(self, rows: DataFrame, reasons: Counter[str], batch_id: int) -> Counter[str]:
        """Append the rows whose ids the table does not have; how many there were by reason ("" for events).

        A batch that is replayed after its append adds nothing and gives what it gave then.

        Args:
            rows: unknown to the query's state and with distinct record_ids.
            reasons: how many of them there are, by reason.
        """
        while True:
            if (own := self._admitted(batch_id)) is not None:
                return own
            new, counts = rows, reasons
            if reasons and (known := self._known()) is not None:
                refused = _count(rows.join(known, "record_id", "left_semi"))
                if refused:
                    new, counts = rows.join(known, "record_id", "left_anti"), reasons - refused
            if not counts:
                return counts
            self._append(new, self._label(batch_id, counts))

    def _append(self, rows: DataFrame, label: str) -> None:
        """Append, unless somebody else has appended since the last look; then look again."""
        before = self._checked
        if self._tables.exclusive:
            with self._tables.locked(self.spec):
                self.look()
                if self._checked != before:
                    return
                self._tables.append(rows, self.spec, metadata=label)
        else:
            try:
                self._tables.append(rows, self.spec, Transaction(_APP, self._number + 1), metadata=label)
            except ConcurrentTransactionException:
                log.debug("%s: another ingest job was faster, looking again", self.spec.name)
        self.look()
        if self._checked == before:
            raise FoldinError(f"{self.spec.name}: an append left no commit in the table's log")

    def absorb(self, bundle: int | None) -> list[str]:
        """A batch is written: what its known rows brought is in the state from now on.

        Args:
            bundle: the largest `bundle` among the known rows of the batch, None where it had none.

        Returns:
            Folders of the checkpoint that nobody needs once the batch is committed.
        """
        self._state = self.state_after(bundle)
        # Only a bundle of this run is certain to be whole: a crash may have left a part of an earlier one.
        if bundle not in self._bundles:
            return []
        left = [foreign for foreign in self._foreign if foreign.version > self._bundles[bundle]]
        self._handed_on -= len(self._foreign) - len(left)
        self._foreign = left
        done = [number for number in self._bundles if number <= bundle]
        for number in done:
            del self._bundles[number]
        return [self._folder(number) for number in done]

    def _take(self, commit: Commit) -> None:
        self._checked = commit.version
        self._number = commit.transactions.get(_APP, self._number)
        label = json.loads(commit.metadata) if commit.metadata.startswith(_LABEL) else {}
        if label and label[_APP] == self._own_id():
            self._own = (int(label["batch"]), Counter(label["rows"]))
        elif commit.files:
            self._foreign.append(_Foreign(commit.version, tuple(file.uri for file in commit.files), commit.bytes))

    def _label(self, batch_id: int, counts: Counter[str]) -> str:
        return json.dumps({_APP: self._own_id(), "batch": batch_id, "rows": counts})

    def _own_id(self) -> str:
        """The query's id; "" before the start of a query whose checkpoint is new."""
        if not self._query_id and not self._checkpoint.is_new():
            self._query_id = self._checkpoint.query_id()
        return self._query_id

    def _leap(self) -> None:
        """Take every id of the table for foreign: its log does not tell any more, or not soon enough."""
        self._checked, self._number = self._log.head(_APP)
        if self._state != _NOTHING:
            log.info("%s: reading all ids as of version %d", self.spec.name, self._checked)
        ids = self._tables.read(self.spec, version=self._checked).select(F.col(self._column).alias("record_id"))
        bundle = self._write(ids, self._checked)
        self._foreign, self._handed_on, self._leapt = [_Foreign(self._checked, bundle=bundle)], 1, True

    def _admitted(self, batch_id: int) -> Counter[str] | None:
        """What the batch appended in an earlier attempt; None if it did not."""
        if self._leapt:  # over a commit of our own, perhaps
            for label in self._own_labels(batch_id):
                self._own = (batch_id, Counter(json.loads(label)["rows"]))
            self._leapt = False
        return self._own[1] if self._own is not None and self._own[0] == batch_id else None

    def _own_labels(self, batch_id: int | None = None) -> list[str]:
        """The labels of the query's own commits (of one batch), as far as the table's log goes back."""
        history = DeltaTable.forPath(self._spark, self._tables.location(self.spec)).history()
        start = json.dumps({_APP: self._own_id()} | ({"batch": batch_id} if batch_id is not None else {}))
        mine = history.where(F.startswith("userMetadata", F.lit(f"{start[:-1]},")))
        return [str(row["userMetadata"]) for row in mine.select("userMetadata").collect()]

    def _known(self) -> DataFrame | None:
        """The ids that the state did not have before this batch, as `record_id`; None for none."""
        frames = []
        for foreign in self._foreign[:1]:
            if foreign.bundle:
                rows = self._spark.read.schema(KNOWN).parquet(f"{self._checkpoint.path}/{self._folder(foreign.bundle)}")
                frames.append(rows.select("record_id"))
        try:
            frames += self._ids(self._foreign)
        except AnalysisException:  # VACUUM was here
            self._leap()
            return self._known()
        return reduce(DataFrame.union, frames) if frames else None

    def _ids(self, commits: list[_Foreign]) -> list[DataFrame]:
        """The ids in the data files of commits, as `record_id`.

        Straight from Parquet: the change feed would list the table's files first, and `quarantine` has none.
        """
        files = [file for commit in commits for file in commit.files]
        if not files:
            return []
        reader = self._spark.read.schema(f"{self._column} string").options(**AS_PATHS)
        return [reader.parquet(*files).toDF("record_id")]

    def _hand_on(self) -> None:
        """Write the ids of foreign commits where the query's source of known ids finds them; each once."""
        fresh = self._foreign[self._handed_on :]
        if not fresh:
            return
        try:
            (ids,) = self._ids(fresh)
        except AnalysisException:  # VACUUM was here
            self._leap()
            return
        self._write(ids, self._checked)
        self._handed_on = len(self._foreign)

    def _write(self, ids: DataFrame, version: int) -> int:
        """A bundle of ids; its number."""
        taken = [
            int(number) for name in self._checkpoint.list(_FOLDER) if (number := name.rpartition("-")[2]).isdigit()
        ]
        bundle = max([time.time_ns(), *[number + 1 for number in taken]])  # whatever the clock of an earlier run's host
        # A row with an id of none says that the bundle is there, should no id be in it.
        rows = ids.union(self._spark.sql("select ''")).select(
            F.lit(self.spec is not EVENTS).alias("rejected"), "record_id", F.lit(bundle).cast("long").alias("bundle")
        )
        rows.write.mode("overwrite").parquet(f"{self._checkpoint.path}/{self._folder(bundle)}")
        self._bundles[bundle] = version
        return bundle

    def _folder(self, bundle: int) -> str:
        return f"{_FOLDER}/{self.spec.name}-{bundle}"


def _count(rows: DataFrame) -> Counter[str]:
    found = rows.groupBy(F.coalesce("reason", F.lit("")).alias("reason")).count().collect()
    return Counter({row["reason"]: row["count"] for row in found})
