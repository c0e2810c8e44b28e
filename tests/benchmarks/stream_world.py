"""The world that bench_stream measures in: events in the product's schema, a model of random item factors, a state.

Everything follows from a seed by expressions over row numbers, so any size is made at the speed of a Parquet writer.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from foldin.config import Config, load_config
from foldin.fold_in import FoldIn
from foldin.histories import HistoryDefinition
from foldin.registry import Registry
from foldin.schemas import EVENTS, ITEM_FACTORS, Position
from foldin.session import build_session
from foldin.tables import Tables

__all__ = ["BATCH_EVENTS", "EVENTS_A_USER", "Settings", "World", "folder_bytes", "session"]

BATCH_EVENTS = 10_000
EVENTS_A_USER = 30
_END_US = 1_735_689_600_000_000  # 2025-01-01: latest event_time of the history; batches follow it
_DAYS = 180
_COMMITS = 4
_MODEL = "benchmark"


@dataclass(frozen=True)
class Settings:
    """What all sections share."""

    items: int
    rank: int
    seed: int
    work: Path
    master: str
    driver_memory: str
    bootstrap_bytes: str
    """fold_in.max_bytes_per_trigger while a state is built: each micro-batch writes again the users that it touches."""


def session(settings: Settings) -> SparkSession:
    """The bench's own; all that it leaves on disk lies in the work folder."""
    sets = [
        f"spark.master='{settings.master}'",
        f"spark.conf.spark.driver.memory={settings.driver_memory}",
        f"spark.conf.spark.local.dir={settings.work / 'spark'}",  # RocksDB works there too
        f"spark.conf.spark.sql.warehouse.dir={settings.work / 'warehouse'}",
    ]
    return build_session(load_config(sets=sets), log_file=settings.work.parent / "spark.log")


@dataclass
class World:
    """Tables with the history of `users` users, an active model, and batches to come."""

    settings: Settings
    users: int
    tables: Tables
    root: Path
    batches: int = 0
    """Batches drawn so far."""

    @classmethod
    def build(cls, spark: SparkSession, settings: Settings, users: int, name: str) -> World:
        """Write the events and the model."""
        root = settings.work / name
        world = cls(settings, users, Tables.of(spark, load_config(sets=[f"tables.root={root}"]).tables), root)
        world._write_history()
        world._write_model()
        return world

    def config(self, *sets: str) -> Config:
        """The product's defaults, but for where the tables lie and one file, that is one batch, a micro-batch."""
        return load_config(sets=[f"tables.root={self.root}", "fold_in.max_files_per_trigger=1", *sets])

    @property
    def checkpoint(self) -> Path:
        """Of the fold-in query."""
        return self.root / "_checkpoints" / "fold_in"

    def bootstrap(self, *, lists: bool) -> float:
        """Build a new state, for factors alone or for lists too; seconds."""
        shutil.rmtree(self.checkpoint, ignore_errors=True)
        registry = Registry(self.tables)
        promotion = registry.promotion()
        end = Position.after(self.tables.version(EVENTS))
        if promotion is None or promotion.caught_up < end:
            # Batches of an earlier section are no backlog to refold.
            registry.promote(_MODEL, end, reason="benchmark", expected=registry.read())
        started = time.monotonic()
        sets = [f"fold_in.lists={str(lists).lower()}", f"fold_in.max_bytes_per_trigger={self.settings.bootstrap_bytes}"]
        FoldIn(self.tables, load_config(sets=[f"tables.root={self.root}", *sets])).run(once=True)
        return time.monotonic() - started

    def next_batch(self, events: int = BATCH_EVENTS) -> DataFrame:
        """The events of one micro-batch: any user may act; one in a hundred events is of somebody new."""
        number, self.batches = self.batches, self.batches + 1
        first = (number + 1) * 10_000_000  # numbers of batches never meet
        rows = self.tables.spark.range(first, first + events, numPartitions=1)
        known = self._draw("user", self.users)
        user = F.when(self._draw("new", 100) == 0, self.users + F.col("id")).otherwise(known)
        offset = (F.lit(number) * 1_000_000 + (F.col("id") - first) * 50).cast("long")
        return self._rows(rows, "b", user, F.timestamp_micros(F.lit(_END_US) + offset))

    def _write_history(self) -> None:
        """Poisson(30) events a user, in order of time, so that each user's lie in all commits."""
        total = self.users * EVENTS_A_USER
        step = -(-total // _COMMITS)
        for first in range(0, total, step):
            last = min(total, first + step)
            rows = self.tables.spark.range(first, last, numPartitions=max(2, (last - first) // 3_000_000))
            age = (F.lit(total) - F.col("id")) / total * (_DAYS * 86_400_000_000)
            when = F.timestamp_micros(F.lit(_END_US) - age.cast("long"))
            self.tables.append(self._rows(rows, "e", self._draw("user", self.users), when), EVENTS)

    def _rows(self, rows: DataFrame, prefix: str, user: F.Column, when: F.Column) -> DataFrame:
        share = self._draw("type", 100)
        event_type = F.when(share < 80, "view").when(share < 90, "like").when(share < 96, "cart").otherwise("purchase")
        # Zipf-like: the most popular hundredth of the items has a seventh of the events.
        uniform = self._draw("item", 1 << 30) / float(1 << 30)
        item = F.floor(F.pow(uniform, 2.4) * self.settings.items)
        return rows.select(
            F.concat(F.lit(prefix), F.col("id")).alias("event_id"),
            F.concat(F.lit("u"), user).alias("user_id"),
            F.concat(F.lit("i"), item).alias("item_id"),
            event_type.alias("event_type"),
            F.lit(None).cast("double").alias("value"),
            when.alias("event_time"),
            F.lit("benchmark").alias("source_file"),
            F.timestamp_micros(F.lit(_END_US)).alias("ingested_at"),
            F.lit("2025-01-01").cast("date").alias("ingest_date"),
        )

    def _draw(self, what: str, below: int) -> F.Column:
        """A whole number in [0, below) that depends on the row's number, `what` is drawn and the seed."""
        return F.pmod(F.xxhash64(F.col("id"), F.lit(what), F.lit(self.settings.seed)), F.lit(below))

    def _write_model(self) -> None:
        """Random item factors with a falling spectrum, as a candidate: `bootstrap` makes it active."""
        items, rank = self.settings.items, self.settings.rank
        rng = np.random.default_rng(self.settings.seed)
        scale = 0.3 / np.sqrt(np.arange(1, rank + 1))
        factors = (rng.normal(size=(items, rank)) * scale).astype(np.float32)
        lists = pa.FixedSizeListArray.from_arrays(pa.array(factors.ravel()), rank).cast(pa.list_(pa.float32()))
        table = pa.table({"item_id": [f"i{n}" for n in range(items)], "factors": lists})
        rows = self.tables.spark.createDataFrame(table).select(
            F.lit(_MODEL).alias("model_version"),
            "item_id",
            F.xxhash64("item_id").alias("item_hash"),
            "factors",
            F.lit(1).cast("long").alias("users"),
        )
        self.tables.append(rows, ITEM_FACTORS)
        cut, config = self.tables.version(EVENTS), self.config()
        Registry(self.tables).candidate(
            {
                "model_version": _MODEL,
                "cut_version": cut,
                "as_of_us": _END_US,
                "mode": "implicit",
                "rank": rank,
                "iterations": 0,
                "reg_param": config.train.reg_param,
                "alpha": config.train.alpha,
                "nonnegative": False,
                "seed": self.settings.seed,
                "history": HistoryDefinition.of(config).to_json(),
                "events": self.users * EVENTS_A_USER,
                "users": self.users,
                "items": items,
                "strengths": self.users * EVENTS_A_USER,
            }
        )


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
