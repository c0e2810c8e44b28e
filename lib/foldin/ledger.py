"""`ingest_log`, written behind the stream: a batch's account is on disk before the batch ends, in the table soon after.

A Delta commit takes as long as the rest of a small batch. So it is made on a thread of its own while the stream goes
on, for all accounts at once that have gathered meanwhile. What a crash leaves on disk, the next start logs.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from pyspark.sql import functions as F

from foldin.checkpoints import Checkpoint
from foldin.errors import FoldinError, reason_of
from foldin.schemas import INGEST_LOG
from foldin.tables import Tables

__all__ = ["Account", "Ledger"]

_FOLDER = "accounts"


@dataclass
class Account:
    """Rows in = events + quarantined + duplicates, of one batch or one run."""

    rows_in: int = 0
    events: int = 0
    quarantined: Counter[str] = field(default_factory=Counter)

    @property
    def duplicates(self) -> int:
        """Rows whose id (or, in quarantine, raw record) was known."""
        return self.rows_in - self.events - self.quarantined.total()

    def add(self, other: Account) -> None:
        """Take in another batch's account."""
        self.rows_in += other.rows_in
        self.events += other.events
        self.quarantined += other.quarantined

    def __str__(self) -> str:
        return (
            f"{self.rows_in:,} rows in = {self.events:,} events + {self.quarantined.total():,} quarantined "
            f"+ {self.duplicates:,} duplicates"
        )

    def report(self) -> str:
        """The account, and below it why rows were quarantined, the most frequent reason first."""
        reasons = sorted(self.quarantined.items(), key=lambda entry: (-entry[1], entry[0]))
        return "\n".join([str(self), *(f"  quarantined, {reason}: {count:,}" for reason, count in reasons)])


class Ledger:
    """The accounts of one query's batches, on their way into `ingest_log`."""

    def __init__(self, tables: Tables, checkpoint: Checkpoint, every: float) -> None:
        """`every`: seconds from one append to the table to the next, at least."""
        self._tables, self._checkpoint, self._every = tables, checkpoint, every
        self._flushed = -math.inf
        self._closing = threading.Event()
        self._busy = False
        self._lock = threading.Lock()
        self._waiting: dict[int, Account] = {}
        self._logged: int | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="ingest-log")
        self._append: Future[None] | None = None

    def recover(self) -> None:
        """Before the query starts: log what an earlier run has left on disk.

        Raises:
            FoldinError: the table cannot be written.
        """
        for name in self._checkpoint.list(_FOLDER):
            data = self._checkpoint.read_object(f"{_FOLDER}/{name}")
            assert data is not None
            self._waiting[int(name)] = Account(data["rows_in"], data["events"], Counter(data["quarantined"]))
        self._flush()

    def note(self, batch_id: int, account: Account) -> None:
        """Write a batch's account down; the table has it a little later.

        Raises:
            FoldinError: an earlier one's append failed.
        """
        data = {"rows_in": account.rows_in, "events": account.events, "quarantined": account.quarantined}
        self._checkpoint.write(f"{_FOLDER}/{batch_id}", json.dumps(data))
        with self._lock:
            self._waiting[batch_id] = account
            begin, self._busy = not self._busy, True
        if self._append is not None and self._append.done():
            self._append.result()
        if begin:
            self._append = self._pool.submit(self._flush_when_due)

    def close(self) -> None:
        """Wait until all of it is in the table.

        Raises:
            FoldinError: an append failed.
        """
        self._closing.set()
        try:
            if self._append is not None:
                self._append.result()
            self._flush()
        finally:
            self._pool.shutdown()

    def _flush_when_due(self) -> None:
        """Until nothing waits."""
        while True:
            self._closing.wait(self._flushed + self._every - time.monotonic())
            self._flushed = time.monotonic()
            self._flush()
            with self._lock:
                if not self._waiting:
                    self._busy = False
                    return

    def _flush(self) -> None:
        try:
            self._log_waiting()
        except Exception as error:
            raise FoldinError(f"cannot write ingest_log: {reason_of(error)}") from error

    def _log_waiting(self) -> None:
        with self._lock:
            waiting = dict(sorted(self._waiting.items()))
        if not waiting:
            return
        query_id = self._checkpoint.query_id()
        if self._logged is None:
            mine = self._tables.read(INGEST_LOG).where(F.col("query_id") == query_id)
            row = mine.agg(F.max("batch_id").alias("last")).first()
            self._logged = row["last"] if row is not None and row["last"] is not None else -1
        # A batch that is replayed after its row was committed has its row.
        rows = [
            f"('{query_id}', {batch_id}L, {a.rows_in}L, {a.events}L, {a.quarantined.total()}L, {a.duplicates}L)"
            for batch_id, a in waiting.items()
            if batch_id > self._logged
        ]
        if rows:
            names = ", ".join(INGEST_LOG.schema.names[:-1])
            frame = self._tables.spark.sql(f"select * from values {', '.join(rows)} as t({names})")
            # One task; the stamp before that, while the rows are the plan's own: no code is compiled for them.
            stamped = frame.withColumn("logged_at", F.current_timestamp()).coalesce(1)
            self._tables.append(stamped, INGEST_LOG)
            self._logged = max(waiting)
        for batch_id in waiting:
            self._checkpoint.delete(f"{_FOLDER}/{batch_id}")
        with self._lock:
            for batch_id, account in waiting.items():
                if self._waiting.get(batch_id) is account:
                    del self._waiting[batch_id]
