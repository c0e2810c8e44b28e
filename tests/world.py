"""A small world to train on: two tastes that anyone can see, and helpers to move it forward."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from pyspark.sql import DataFrame, SparkSession

from foldin.config import Config
from foldin.fold_in import FoldIn
from foldin.reading import latest_recommendations, latest_user_factors
from foldin.tables import Tables

ITEMS = [f"i{k}" for k in range(12)]
"""i0 to i5 are of one taste, i6 to i11 of the other."""


SMALL = (
    "judge.holdout=0",  # a second training for each: those that look at it say otherwise
    "history.half_life_days=inf",
    "train.rank=2",
    "train.reg_param=0.1",
    "train.alpha=10.0",
    "train.iterations=5",
    "train.blocks=2",
    "recommend.top_n=3",
)
"""Settings of a small model, trained in a second or two."""

EventRow = tuple[str, str, str, str, float | None, str]


def events_of(spark: SparkSession, *rows: EventRow) -> DataFrame:
    """Rows of `events` from (event_id, user_id, item_id, event_type, value, time) tuples."""
    schema = "event_id string, user_id string, item_id string, event_type string, value double, at string"
    return spark.createDataFrame(list(rows), schema).selectExpr(
        "event_id",
        "user_id",
        "item_id",
        "event_type",
        "value",
        "timestamp(at) as event_time",
        "'test' as source_file",
        "current_timestamp() as ingested_at",
        "current_date() as ingest_date",
    )


def initial_rows(users: int = 24):
    """Each user has four of the six items of one taste, one purchase an item; u0 has all of i0 to i5 but i5."""
    rows = []
    for u in range(users):
        taste = (u % 2) * 6
        chosen = range(5) if u == 0 else [(u + k) % 6 for k in range(4)]
        for k, at in enumerate(chosen):
            when = f"2025-01-{1 + (u + k) % 20:02d} 0{k}:00:00"
            rows.append((f"e-{u}-{k}", f"u{u}", ITEMS[taste + at], "purchase", None, when))
    return rows


def bought(event_id: str, user: str, item: str, when: str = "2025-02-01 00:00:00"):
    """One purchase."""
    return (event_id, user, item, "purchase", None, when)


def copy_of(root: Path, to: Path) -> Path:
    """Another installation with the same tables and checkpoints (Delta's paths are relative)."""
    return Path(shutil.copytree(root, to))


def fold_once(tables: Tables, config: Config) -> int:
    """Run the fold-in query over what is there."""
    return FoldIn(tables, config).run(once=True)


def vectors(factors: DataFrame) -> dict[str, np.ndarray]:
    """{user: factors}; a user must not occur twice."""
    rows = factors.select("user_id", "factors").collect()
    found = {row["user_id"]: np.array(row["factors"], dtype=np.float64) for row in rows}
    assert len(found) == len(rows)
    return found


def latest_vectors(tables: Tables, version: str | None = None) -> dict[str, np.ndarray]:
    """{user: newest factors}"""
    return vectors(latest_user_factors(tables, version))


def latest_lists(tables: Tables, version: str | None = None) -> dict[str, list[str]]:
    """{user: newest list of items}"""
    rows = latest_recommendations(tables, version).collect()
    return {row["user_id"]: [item["item_id"] for item in row["items"]] for row in rows}


def assert_same_vectors(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    """Equal in DESIGN's sense: relative norm of the difference at most 1e-6 a user."""
    assert found.keys() == wanted.keys()
    for user, vector in wanted.items():
        norm = np.linalg.norm(vector)
        assert np.linalg.norm(found[user] - vector) <= 1e-6 * norm, user


def wait_until(holds: Callable[[], object], seconds: float = 120) -> None:
    """Look until it holds; fail after so many seconds."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
