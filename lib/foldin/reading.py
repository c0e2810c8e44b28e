"""The read side: what an application asks of the tables. Everything goes through the active model."""

from __future__ import annotations

from dataclasses import dataclass

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from foldin.config import load_config
from foldin.registry import Registry
from foldin.schemas import EVENTS, ITEM_FACTORS, RECOMMENDATIONS, USER_FACTORS
from foldin.session import build_session
from foldin.tables import Tables, latest

__all__ = [
    "UserRecommendations",
    "latest_recommendations",
    "latest_user_factors",
    "open_tables",
    "popular_items",
    "recommendations_for",
]


@dataclass(frozen=True)
class UserRecommendations:
    """One user's list: (item_id, score) best first, by `als` or, for who has no factors, by `popularity`."""

    user_id: str
    model_version: str
    items: tuple[tuple[str, float], ...]
    source: str


def open_tables(root: str) -> Tables:
    """The tables under a folder or URI, with a session to read them: for a first look or a notebook."""
    config = load_config(sets=[f"tables.root={root}"])
    return Tables.of(build_session(config), config.tables)


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
