"""The ingest query: a source to `events` and `quarantine`, each row once, each row accounted for."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass

from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.streaming import StreamingQuery

from foldin.admission import KNOWN, Admission
from foldin.checkpoints import Checkpoint
from foldin.compaction import Compactor
from foldin.config import Config
from foldin.errors import AccountingError, FoldinError
from foldin.events import batch_clock, check_expressions, judge, parse
from foldin.landed import LANDING, FileBacklog
from foldin.leases import Lease
from foldin.ledger import Account, Ledger
from foldin.mapping import Mapping
from foldin.monitoring import Monitor, observe_arrival
from foldin.recomputing import Recomputations, RecomputedError
from foldin.schemas import EVENTS, INGEST_LOG, QUARANTINE
from foldin.sources import read_as, read_source, source_failures
from foldin.streaming import GracefulStop, observed, run
from foldin.tables import Tables, few_files
from foldin.unreadable import UNREADABLE, BatchFiles, StrictAgainError, failed_to_read, quarantine_rows, read_files

__all__ = ["Account", "Ingest"]

log = logging.getLogger("foldin.ingest")

_ROWS_IN = "foldin_rows_in"
_KNOWN_IN = "foldin_known_in"
_ADMISSION = "admission"
_IN_VAIN = 3
_RECOMPUTED = 3
"""Attempts at a batch of which each has lost a part."""


@dataclass
class Ingest:
    """One ingest query over the configured source."""

    tables: Tables
    config: Config
    mapping: Mapping

    def __post_init__(self) -> None:
        self.spark = self.tables.spark
        self.name = self.config.ingest.name
        self.checkpoint = Checkpoint(self.spark, self.tables.path("_checkpoints", self.name))
        self.account = Account()
        """Of the run under way, or of the last one."""
        self._last: tuple[int, Account, int] | None = None
        self._query: StreamingQuery | None = None
        self._first: int | None = None
        self._skipping = False
        self._bad: dict[str, str] = {}
        """Files of the batch that were found unreadable before it was read with Spark told to skip them."""
        self._in_vain = 0
        """Times in a row that a batch, read with Spark told to skip what cannot be read, lacked rows of other files."""
        self._recomputed = 0
        """Times in a row that a part of a batch was computed twice."""
        self._monitor: Monitor | None = None

    def run(self, *, once: bool, stop: GracefulStop | None = None) -> Account:
        """Ingest what has landed (`once`) or until a signal; the account of this run.

        Raises:
            AccountingError: the account does not agree with what Spark's deduplication dropped.
            ConfigError: the source cannot be read, or an expression of the mapping is wrong.
            FoldinError: the query failed.
            LeaseError: another process runs this query.
        """
        self.account = Account()
        lease_seconds = self.config.fold_in.lease_seconds
        stop = stop or GracefulStop()
        self._skipping = False
        check_expressions(self.spark, self.mapping)
        with self._failures():
            # What a person must mend is found before anything is left behind, were it only a lease.
            source = self._source()
            with (
                stop.at_signals(),  # not only while the query runs: learning what others wrote may take minutes
                Lease(self.checkpoint, lease_seconds) as lease,
                Compactor(self.tables, (EVENTS, QUARANTINE, INGEST_LOG), self.config.tables) as compactor,
                self._watched(stop) as monitor,
            ):
                process = monitor.around(compactor.after(self._process))
                while True:
                    try:
                        self._run(source, process, lease, monitor, stop, once=once)
                        break
                    except StrictAgainError:
                        self._skipping = False
                    except RecomputedError as error:
                        if self._recomputed == _RECOMPUTED:
                            raise FoldinError(f"{error}, at each of {_RECOMPUTED} attempts") from error
                        log.warning("%s; running it again", error)
                    except FoldinError as error:
                        ours = self._reads_files and failed_to_read(error)
                        if self._skipping or not ours or self._in_vain == _IN_VAIN:
                            raise
                        log.warning("%s; skipping what cannot be read of this batch's files", error)
                        self._skipping = True
                    source = self._source()
        return self.account

    @property
    def _reads_files(self) -> bool:
        return self.config.ingest.source == "files"

    def _source(self) -> tuple[DataFrame, Mapping]:
        """Raw rows as a stream, and the mapping with the format in which they come."""
        mapping = read_as(self.config, self.mapping)
        landing = read_source(self.spark, self.config, mapping, skip_unreadable=self._skipping)
        if "arrived_at" in landing.columns:
            landing = observe_arrival(landing, "arrived_at")
        return landing, mapping

    def _watched(self, stop: GracefulStop) -> Monitor:
        files = None
        if self._reads_files:
            place = {"folder": self.config.ingest.landing, "pattern": self.mapping.files}
            if self.checkpoint.read_object(LANDING) != place:
                self.checkpoint.write(LANDING, json.dumps(place))
            files = FileBacklog(self.checkpoint, place["folder"], place["pattern"])
        return Monitor(self.tables, self.config, self.name, self.checkpoint, stop, stamped=False, files=files)

    def _failures(self) -> AbstractContextManager[None]:
        return source_failures(self.config, self.checkpoint)

    def _run(
        self,
        source: tuple[DataFrame, Mapping],
        process: Callable[[DataFrame, int], None],
        lease: Lease,
        monitor: Monitor,
        stop: GracefulStop,
        *,
        once: bool,
    ) -> None:
        self._last, self._query, self._first, self._monitor = None, None, None, monitor
        landing, mapping = source
        counts = [F.count(F.lit(1))]
        if self._reads_files:
            self._files = BatchFiles(self.checkpoint, lambda paths: parse(read_files(landing, mapping, paths), mapping))
            if self._skipping:
                self._bad = self._files.look(self.checkpoint.newest("offsets"))
                counts.append(F.count_if(self._files.beside(self._bad)))
        self._open()
        judged = judge(parse(landing, mapping), mapping, self.config.events)
        rows = (
            judged.withColumn("ingested_at", batch_clock())
            .withColumn("ingest_date", F.to_date("ingested_at"))
            .withColumn("rejected", F.col("reason").isNotNull())
            .withColumn(
                "raw", F.when(F.col("rejected"), F.col("raw"))
            )  # an event's is not written, only shuffled and cached
            .withColumn("primed", F.lit(False))
            .observe(_ROWS_IN, *counts)
        )
        bundles = [F.max(F.when(which, F.col("bundle"))) for which in (~F.col("rejected"), F.col("rejected"))]
        known = (
            self.spark.readStream.schema(KNOWN)
            .options(recursiveFileLookup="true", maxFileAge="36500d")
            .parquet(f"{self.checkpoint.path}/prime")
            .withColumn("primed", F.lit(True))
            .observe(_KNOWN_IN, F.count(F.lit(1)), *bundles)
            .drop("bundle")
        )
        # State that lives as long as the checkpoint: a watermark would forget ids, and so let a late
        # replay count twice. It costs 41 bytes an id.
        unique = rows.unionByName(known, allowMissingColumns=True).dropDuplicates(["rejected", "record_id"])

        def started(query: StreamingQuery) -> None:
            self._query = query
            monitor.follow(query)

        try:
            run(
                unique.writeStream.outputMode("append"),
                process,
                checkpoint=self.checkpoint,
                name=self.name,
                rebuild=f"delete {self.checkpoint.path} and start again: known ids are read from the tables.",
                once=once,
                trigger_seconds=self.config.ingest.trigger_seconds,
                state_partitions=self.config.ingest.state_partitions,
                lease=lease,
                stop=stop,
                on_start=started,
            )
        finally:
            self._ledger.close()
        self._verify()

    def _open(self) -> None:
        """Before the first batch: log what an earlier run has left, learn every id that the state does not know."""
        self._batches = 0
        self._disposable: list[str] = []
        self._ledger = Ledger(self.tables, self.checkpoint, self.config.metrics.flush_seconds)
        self._ledger.recover()
        self._left_over = self.checkpoint.list("prime")
        states = self._states()
        self._doors = [Admission(self.tables, spec, self.checkpoint) for spec in (EVENTS, QUARANTINE)]
        planned = self.checkpoint.newest("offsets")
        for door in self._doors:
            door.open(states.get(door.spec.name, -1), planned)

    def _states(self) -> dict[str, int]:
        """Up to which version the state knows each table: after the last batch if that is done, else before it."""
        begun = self.checkpoint.newest(_ADMISSION)
        known = self.checkpoint.read_object(f"{_ADMISSION}/{begun}")
        if known is None:
            return {}
        done = self.checkpoint.read(f"commits/{begun}") is not None
        return {table: after if done else before for table, (before, after) in known.items()}

    def _process(self, batch: DataFrame, batch_id: int) -> None:
        if self._first is None:
            self._first = batch_id
        if self._skipping and batch_id != self._first:
            raise StrictAgainError(f"batch {batch_id} is read in earnest again")
        self._verify()
        self._dispose()
        began = time.monotonic()
        recomputations = Recomputations(self.spark.sparkContext, str(self._running().runId))
        recomputations.begin()
        batch = batch.persist()
        try:
            # One action fills the cache, commits the state, counts, and makes the observed counts final.
            reason = F.coalesce("reason", F.lit("")).alias("reason")
            counted = batch.groupBy("primed", "rejected", reason).count().collect()
            if recomputations.found():
                # Rows that two tasks have counted would be told as duplicates. Nothing is written yet.
                self._recomputed += 1
                raise RecomputedError(f"ingest batch {batch_id}: a part of it was lost with its host, and read twice")
            self._recomputed = 0
            rows_in, *others = (count or 0 for count in observed(self._running(), _ROWS_IN))
            known_in, *bundles = observed(self._running(), _KNOWN_IN)
            dropped = rows_in + (known_in or 0) - sum(row["count"] for row in counted)
            new = batch.where(~F.col("primed"))
            counts: dict[bool, Counter[str]] = {False: Counter(), True: Counter()}
            for row in counted:
                if not row["primed"]:
                    counts[row["rejected"]][row["reason"]] = row["count"]
            valid, invalid = new.where(~F.col("rejected")), new.where("rejected")
            bad: dict[str, str] = {}
            if self._reads_files:
                bad = self._files.unreadable(self._running(), batch_id)
            if self._skipping and (bad != self._bad or others != [self._files.rows_beside(batch_id, bad)]):
                # A hiccup: Spark has skipped what could be read before, or can be read again.
                self._in_vain += 1
                raise StrictAgainError(f"batch {batch_id}: rows of files that can be read were skipped")
            self._in_vain = 0
            if bad:
                files = quarantine_rows(self.spark, bad)
                rows_in += len(bad)
                known = self.tables.read(QUARANTINE).where(F.col("reason") == UNREADABLE).select("record_id")
                files = files.join(known, "record_id", "left_anti").persist()
                counts[True][UNREADABLE] += files.count()
                invalid = invalid.unionByName(files, allowMissingColumns=True)
            read = time.monotonic()
            for door in self._doors:
                door.look()
            # Written before the first append: from there on a restart looks for what this batch has committed.
            states = {
                door.spec.name: (door.state, door.state_after(bundle))
                for door, bundle in zip(self._doors, bundles, strict=True)
            }
            self.checkpoint.write(f"{_ADMISSION}/{batch_id}", json.dumps(states))
            self.checkpoint.delete(f"{_ADMISSION}/{batch_id - 2}")
            work = [
                (few_files(rows, count.total()), count, batch_id)
                for rows, count in ((valid, counts[False]), (invalid, +counts[True]))
            ]
            # Two Delta commits at once take the time of one.
            with ThreadPoolExecutor(len(self._doors)) as pool:
                events, quarantined = pool.map(lambda door, given: door.admit(*given), self._doors, work)
        finally:
            batch.unpersist()
        account = Account(rows_in, events.total(), quarantined)
        if account.duplicates < 0:
            raise AccountingError(f"ingest batch {batch_id}: more rows out than in: {account}")
        if rows_in:
            self._ledger.note(batch_id, account)
            log.info("batch %d: %s", batch_id, account)
        for door, bundle in zip(self._doors, bundles, strict=True):
            self._disposable += door.absorb(bundle)
        if self._monitor is not None:
            self._monitor.note(batch_id, phases={"read": read - began, "append": time.monotonic() - read})
        self.account.add(account)
        self._last = (batch_id, account, dropped)

    def _dispose(self) -> None:
        """Delete bundles of known ids that a committed batch has taken into the state."""
        self._batches += 1
        if self._batches == 3:  # the second batch of a run has read whatever lay there when the run began
            self._disposable += [f"prime/{name}" for name in self._left_over]
        for name in self._disposable:
            self.checkpoint.delete(name)
        self._disposable = []

    def _running(self) -> StreamingQuery:
        if self._query is None:  # the first batch may begin before start() has returned
            self._query = next(q for q in self.spark.streams.active if q.name == self.name)
        return self._query

    def _verify(self) -> None:
        """Hold the last batch's rows against those that Spark's deduplication says it dropped."""
        progress = self._query.lastProgress if self._query is not None else None
        if progress is None or self._last is None or progress.batchId != self._last[0]:
            return
        batch_id, account, known = self._last
        dropped = int(progress.stateOperators[0].customMetrics["numDroppedDuplicateRows"])
        if dropped > known:
            # The metric counts what was computed: when executors are lost within a batch, a part of it twice.
            log.warning(
                "batch %d: deduplication dropped %d rows while %d are missing: a part of the batch was computed twice",
                batch_id, dropped, known,
            )  # fmt: skip
        elif dropped < known:
            raise AccountingError(
                f"ingest batch {batch_id}: {account}; {known} of its rows were missing from what deduplication gave, "
                f"but it says that it dropped {dropped}"
            )
