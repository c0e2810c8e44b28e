"""The ingest query: a source to `events` and `quarantine`, each row once, each row accounted for."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field

from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.streaming import StreamingQuery

from foldin.config import Config
from foldin.errors import AccountingError
from foldin.events import check_expressions, judge, parse
from foldin.mapping import Mapping
from foldin.schemas import EVENTS, INGEST_LOG, QUARANTINE
from foldin.sources import read_as, read_source
from foldin.streaming import Checkpoint, GracefulStop, observed_rows, run
from foldin.tables import Tables, Transaction

__all__ = ["Account", "Ingest"]

log = logging.getLogger("foldin.ingest")

_ROWS_IN = "foldin_rows_in"
_KEY = ("rejected", "record_id")


@dataclass
class Account:
    """Rows in = events + quarantined + duplicates, of one run."""

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


@dataclass
class Ingest:
    """One ingest query over the configured source."""

    tables: Tables
    config: Config
    mapping: Mapping

    def __post_init__(self) -> None:
        self.spark = self.tables.spark
        self.checkpoint = Checkpoint(self.spark, self.tables.path("_checkpoints", self.config.ingest.name))
        self.account = Account()
        """Of the run under way, or of the last one."""
        self._last: tuple[int, Account] | None = None
        self._query: StreamingQuery | None = None

    def run(self, *, once: bool, stop: GracefulStop | None = None) -> Account:
        """Ingest what has landed (`once`) or until a signal; the account of this run.

        Raises:
            AccountingError: the account does not agree with what Spark's deduplication dropped.
            ConfigError: the source cannot be read, or an expression of the mapping is wrong.
            FoldinError: the query failed.
        """
        self.account, self._last, self._query = Account(), None, None
        check_expressions(self.spark, self.mapping)
        mapping = read_as(self.config, self.mapping)
        landing = read_source(self.spark, self.config, mapping)
        self._prime()
        judged = judge(parse(landing, mapping), mapping, self.config.events)
        rows = (
            judged.withColumn("ingested_at", F.current_timestamp())
            .withColumn("ingest_date", F.to_date("ingested_at"))
            .withColumn("rejected", F.col("reason").isNotNull())
            .withColumn("primed", F.lit(False))
            .observe(_ROWS_IN, F.count(F.lit(1)).alias("rows"))
        )
        known = (
            self.spark.readStream.schema("rejected boolean, record_id string")
            .parquet(self._prime_path)
            .withColumn("primed", F.lit(True))
        )
        # State that lives as long as the checkpoint: a watermark would forget ids, and so let a late
        # replay count twice. It costs 41 bytes an id.
        unique = rows.unionByName(known, allowMissingColumns=True).dropDuplicates(list(_KEY))
        run(
            unique.writeStream.outputMode("append"),
            self._process,
            checkpoint=self.checkpoint,
            name=self.config.ingest.name,
            once=once,
            trigger_seconds=self.config.ingest.trigger_seconds,
            stop=stop,
            on_start=lambda query: setattr(self, "_query", query),
        )
        self._verify()
        return self.account

    @property
    def _prime_path(self) -> str:
        return f"{self.checkpoint.path}/prime"

    def _prime(self) -> None:
        """Before a new checkpoint's first batch: write down every identity that the tables hold already."""
        if not self.checkpoint.is_new():
            return
        events = self.tables.read(EVENTS).select(F.lit(False).alias("rejected"), F.col("event_id").alias("record_id"))
        quarantined = self.tables.read(QUARANTINE).select(F.lit(True).alias("rejected"), "record_id")
        events.unionByName(quarantined).write.mode("overwrite").parquet(self._prime_path)

    def _process(self, batch: DataFrame, batch_id: int) -> None:
        self._verify()
        batch = batch.persist()
        try:
            # One action fills the cache, commits the state and makes the observed count final.
            batch.count()
            new = batch.where(~F.col("primed"))
            if batch_id == 0:
                # The priming rows arrive in this very batch, and deduplication keeps any one of a batch's equals.
                new = new.join(self.spark.read.parquet(self._prime_path), list(_KEY), "left_anti")
            counts = {row["reason"]: row["count"] for row in new.groupBy("reason").count().collect()}
            account = Account(
                rows_in=observed_rows(self._running(), _ROWS_IN),
                events=counts.pop(None, 0),
                quarantined=Counter(counts),
            )
            if account.duplicates < 0:
                raise AccountingError(f"ingest batch {batch_id}: more rows out than in: {account}")
            transaction = Transaction(self.checkpoint.query_id(), batch_id)
            if account.quarantined:
                self.tables.append(new.where("rejected"), QUARANTINE, transaction)
            if account.events:
                self.tables.append(new.where(~F.col("rejected")), EVENTS, transaction)
            if account.rows_in:
                self.tables.append(self._log_row(account, transaction), INGEST_LOG, transaction)
        finally:
            batch.unpersist()
        self.account.add(account)
        self._last = (batch_id, account)
        if account.rows_in:
            log.info("batch %d: %s", batch_id, account)

    def _log_row(self, account: Account, transaction: Transaction) -> DataFrame:
        row = (
            transaction.app_id,
            transaction.version,
            account.rows_in,
            account.events,
            account.quarantined.total(),
            account.duplicates,
        )
        names = INGEST_LOG.schema.names[:-1]
        schema = ", ".join(INGEST_LOG.schema[n].simpleString().replace(":", " ") for n in names)
        return self.spark.createDataFrame([row], schema).withColumn("logged_at", F.current_timestamp())

    def _running(self) -> StreamingQuery:
        if self._query is None:  # the first batch may begin before start() has returned
            self._query = next(q for q in self.spark.streams.active if q.name == self.config.ingest.name)
        return self._query

    def _verify(self) -> None:
        """Hold the last batch's duplicates against the rows that Spark's deduplication says it dropped."""
        progress = self._query.lastProgress if self._query is not None else None
        if progress is None or self._last is None or progress.batchId != self._last[0]:
            return
        batch_id, account = self._last
        if batch_id == 0:
            return  # priming rows are among what was dropped
        dropped = progress.stateOperators[0].customMetrics["numDroppedDuplicateRows"]
        if int(dropped) != account.duplicates:
            raise AccountingError(f"ingest batch {batch_id}: {account}, but {dropped} rows were dropped as known")
