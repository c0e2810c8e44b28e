"""The read side: what an application asks of the tables. Everything goes through the active model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from foldin.answers import UserRecommendations
from foldin.config import load_config
from foldin.errors import UnknownItemError
from foldin.registry import Registry
from foldin.schemas import EVENTS, ITEM_FACTORS, RECOMMENDATIONS, USER_FACTORS
from foldin.session import build_session
from foldin.storage import check_catalog
from foldin.tables import Tables, latest

__all__ = [
    "UserRecommendations",
    "latest_recommendations",
    "latest_user_factors",
    "open_tables",
    "popular_items",
    "recommendations_for",
    "similar_items",
]


def open_tables(root: str | None = None, *, file: str | Path | None = None) -> Tables:
    """The tables under a folder or URI, with a session to read them: for a first look or a notebook.

    Args:
        file: a configuration file that says where they are, or what it takes to get there (a catalog, S3).

    Raises:
        ConfigError: a setting is wrong, or there is no such catalog.
    """
    config = load_config(file, [f"tables.root={root}"] if root is not None else [])
    spark = build_session(config)
    check_catalog(spark, config.tables)
    return Tables.of(spark, config.tables)


def latest_user_factors(tables: Tables, model_version: str | None = None) -> DataFrame:
    """One row a user: the newest factors under the active version (or the named one).

    Raises:
        MissingModelError: no model is active.
    """
    version = model_version or Registry(tables).active_version()
    return latest(tables.read(USER_FACTORS).where(F.col("model_version") == version))


def latest_recommendations(tables: Tables, model_version: str | None = None) -> DataFrame:
    """One row a user: the newest list under the active version (or the named one).

    Raises:
        MissingModelError: no model is active.
    """
    version = model_version or Registry(tables).active_version()
    return latest(tables.read(RECOMMENDATIONS).where(F.col("model_version") == version))


def popular_items(tables: Tables, n: int, model_version: str | None = None) -> DataFrame:
    """The `n` items with the most users in the training cut: item_id, users; equal ones in order of id.

    Raises:
        MissingModelError: no model is active.
    """
    version = model_version or Registry(tables).active_version()
    items = tables.read(ITEM_FACTORS).where(F.col("model_version") == version)
    return items.select("item_id", "users").orderBy(F.desc("users"), "item_id").limit(n)


def recommendations_for(tables: Tables, user_id: str, n: int = 10) -> UserRecommendations:
    """The newest list of one user, at most `n` long; somebody never heard of gets the most popular items.

    Raises:
        MissingModelError: no model is active.
    """
    version = Registry(tables).active_version()
    rows = tables.read(RECOMMENDATIONS).where((F.col("model_version") == version) & (F.col("user_id") == user_id))
    row = latest(rows).first()
    if row is not None:
        items = tuple((item["item_id"], item["score"]) for item in row["items"][:n])
        return UserRecommendations(user_id, version, items, row["source"])
    # Events of this user may stand in the table that no micro-batch has folded yet: they are seen all the same.
    seen = tables.read(EVENTS).where(F.col("user_id") == user_id).select("item_id").distinct()
    items_of_version = tables.read(ITEM_FACTORS).where(F.col("model_version") == version)
    unseen = items_of_version.join(seen, "item_id", "left_anti")
    popular = unseen.orderBy(F.desc("users"), "item_id").limit(n).select("item_id", "users").collect()
    return UserRecommendations(
        user_id, version, tuple((item["item_id"], float(item["users"])) for item in popular), "popularity"
    )


def similar_items(tables: Tables, item_id: str, n: int = 10) -> list[tuple[str, float]]:
    """The `n` items nearest to one by the cosine of their factors under the active model: (item_id, similarity).

    The nearest first, equal ones in order of id. An item whose factors are all zero has no direction: it is similar to
    nothing, and nothing to it.

    Raises:
        MissingModelError: no model is active.
        UnknownItemError: the active model does not know the item.
    """
    model = Registry(tables).load(Registry(tables).active_version())
    ids = model.item_ids.to_pylist()
    if item_id not in ids:
        raise UnknownItemError(f"model {model.version} has no factors of item {item_id!r}: it was not trained on it")
    at = ids.index(item_id)
    factors = model.items.factors.astype(np.float64)
    norms = np.linalg.norm(factors, axis=1)
    if norms[at] == 0:
        return []
    cosines = np.divide(factors @ factors[at], norms * norms[at], out=np.full(len(ids), -np.inf), where=norms > 0)
    cosines[at] = -np.inf
    ranked = sorted(np.flatnonzero(np.isfinite(cosines)).tolist(), key=lambda i: (-cosines[i], ids[i]))
    return [(ids[i], float(cosines[i])) for i in ranked[:n]]
