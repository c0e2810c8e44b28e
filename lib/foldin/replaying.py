"""The quarantine once more through ingest, after a fix: of the mapping, of the weights, or because time has passed."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from foldin.checkpoints import REPLAYS, Checkpoint
from foldin.config import Config
from foldin.events import NOT_UTF8
from foldin.ingest import Ingest
from foldin.ledger import Account
from foldin.mapping import Mapping
from foldin.schemas import QUARANTINE
from foldin.streaming import GracefulStop
from foldin.tables import Tables
from foldin.unreadable import UNREADABLE

__all__ = ["replay_quarantine"]

log = logging.getLogger("foldin.ingest")


def replay_quarantine(tables: Tables, config: Config, mapping: Mapping, *, stop: GracefulStop | None = None) -> Account:
    """Judge every row of `quarantine` anew; those that pass become events, once, however often this is run.

    A row that still does not pass is known: it counts as a duplicate. Rows that are not kept as they came (text that
    is not UTF-8, whole files) are left out. Each run has a checkpoint of its own, as the next one must read every row
    again; one that was interrupted is finished first, so that its account is in `ingest_log`.

    Returns:
        The account of the new run; after a stop by request, of what it had done by then.

    Raises:
        FoldinError: as `Ingest.run`.
    """
    stop = stop or GracefulStop()
    runs = Checkpoint(tables.spark, tables.path("_checkpoints", REPLAYS))
    found = {int(name.removesuffix(".done")) for name in runs.list("") if name.removesuffix(".done").isdigit()}
    for number in sorted(found):
        if runs.read(f"{number}.done") is None:
            log.info("finishing the interrupted replay %d first", number)
            account = _replay(tables, config, mapping, runs, number, stop)
            if stop.asked:
                return account
        _forget(runs, number)
    number = max(found, default=0) + 1
    account = _replay(tables, config, mapping, runs, number, stop)
    if not stop.asked:
        _forget(runs, number)
    return account


def _replay(
    tables: Tables, config: Config, mapping: Mapping, runs: Checkpoint, number: int, stop: GracefulStop
) -> Account:
    account = _Replay(tables, config, mapping, Checkpoint(tables.spark, f"{runs.path}/{number}")).run(
        once=True, stop=stop
    )
    if not stop.asked:
        # Beside the checkpoint, and before that goes: half of one must not pass for an interrupted run.
        runs.write(f"{number}.done", "")
    return account


def _forget(runs: Checkpoint, number: int) -> None:
    runs.delete(str(number))
    runs.delete(f"{number}.done")


class _Replay(Ingest):
    """One run over the quarantine as it stands."""

    def __init__(self, tables: Tables, config: Config, mapping: Mapping, checkpoint: Checkpoint) -> None:
        super().__init__(tables, config, mapping)
        self.name, self.checkpoint = REPLAYS, checkpoint

    @property
    def _reads_files(self) -> bool:
        return False

    def _source(self) -> tuple[DataFrame, Mapping]:
        rows = self.tables.stream(QUARANTINE, maxBytesPerTrigger=self.config.ingest.max_bytes_per_trigger)
        lossy = (F.col("reason") == UNREADABLE) | F.col("detail").eqNullSafe(NOT_UTF8)
        # Of Parquet files and Delta tables, `quarantine` keeps the columns as one JSON object.
        kept_as = "json" if self.mapping.format == "parquet" or self.config.ingest.source == "delta" else None
        mapping = self.mapping.model_copy(update={"format": kept_as}) if kept_as else self.mapping
        return rows.where(~lossy).select("raw", "source_file", "record_id"), mapping

    def _failures(self) -> AbstractContextManager[None]:
        return nullcontext()
