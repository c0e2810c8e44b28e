"""How good ranked lists are against what users took afterwards: per user, so that intervals can be drawn over users.

Relevance is binary. What a user took that the model does not know counts as a miss, it does not vanish.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from foldin.errors import InvalidInputError
from foldin.kernels.types import UNKNOWN

__all__ = ["RankingMetrics", "coverage", "ranking_metrics"]


@dataclass(frozen=True, eq=False)
class RankingMetrics:
    """One number a user, each (n_users,) float64 in [0, 1]; NaN for a user who took nothing."""

    hit: NDArray[np.float64]
    """1 where the list has any of what was taken (hit rate at k)."""
    recall: NDArray[np.float64]
    """Share of what was taken that is on the list."""
    ndcg: NDArray[np.float64]
    """Discounted cumulative gain over the best possible (Järvelin and Kekäläinen 2002, binary gains, log2 discount)."""
    reciprocal_rank: NDArray[np.float64]
    """1 / place of the first that was taken, 0 where none is on the list."""

    def means(self) -> dict[str, float]:
        """Of the users who took something; NaN when nobody did."""
        named = {"hit": self.hit, "recall": self.recall, "ndcg": self.ndcg, "mrr": self.reciprocal_rank}
        return {name: float(np.nanmean(v)) if (~np.isnan(v)).any() else float("nan") for name, v in named.items()}


def ranking_metrics(lists: ArrayLike, indptr: ArrayLike, taken: ArrayLike) -> RankingMetrics:
    """Judge lists of item rows against what each user took.

    Args:
        lists: (n_users, k) item rows, best first; -1 for a place that is empty. No item twice on a list.
        indptr: (n_users + 1,) bounds of each user's part of `taken`.
        taken: item rows without repeats, -1 for an item that the model does not know (each such one counts).

    Raises:
        InvalidInputError: shapes do not fit together.
    """
    ranked = np.asarray(lists)
    bounds, items = np.asarray(indptr, dtype=np.int64), np.asarray(taken, dtype=np.int64)
    if ranked.ndim != 2 or bounds.shape != (len(ranked) + 1,) or (len(bounds) and bounds[-1] != items.size):
        raise InvalidInputError(f"lists {ranked.shape}, indptr {bounds.shape} and taken {items.shape} do not fit")
    users, k = ranked.shape
    counts = np.diff(bounds)
    span = int(max(items.max(initial=0), ranked.max(initial=0))) + 1
    owner = np.repeat(np.arange(users), counts)
    known = items != UNKNOWN
    pairs = np.sort(owner[known] * span + items[known])  # a user and an item as one number
    wanted = np.arange(users)[:, None] * span + ranked
    at = np.searchsorted(pairs, wanted)
    at[at == pairs.size] = 0
    found = (pairs[at] == wanted) & (ranked != UNKNOWN) if pairs.size else np.zeros(ranked.shape, bool)
    discount = 1.0 / np.log2(np.arange(2, k + 2))
    ideal = np.concatenate(([0.0], np.cumsum(discount)))[np.minimum(counts, k)]
    first = np.where(found.any(axis=1), 1.0 / (found.argmax(axis=1) + 1), 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = found.sum(axis=1) / counts
        ndcg = (found * discount).sum(axis=1) / ideal
    nothing = counts == 0
    return RankingMetrics(
        hit=np.where(nothing, np.nan, found.any(axis=1).astype(np.float64)),
        recall=np.where(nothing, np.nan, recall),
        ndcg=np.where(nothing, np.nan, ndcg),
        reciprocal_rank=np.where(nothing, np.nan, first),
    )


def coverage(lists: ArrayLike, n_items: int) -> float:
    """Share of all items that are on anybody's list."""
    shown = np.unique(np.asarray(lists))
    return float(np.count_nonzero(shown != UNKNOWN) / n_items) if n_items else 0.0
