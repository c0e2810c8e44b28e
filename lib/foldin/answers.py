"""What readers are answered, whichever way they ask: by Spark, by deltalake or a key-value store. Imports nothing."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["UserRecommendations"]


@dataclass(frozen=True)
class UserRecommendations:
    """One user's list: (item_id, score) best first, by `als` or, for who has no factors, by `popularity`."""

    user_id: str
    model_version: str
    items: tuple[tuple[str, float], ...]
    source: str
