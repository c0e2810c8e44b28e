"""The n best items of each user, without what the user has seen and what is denied to all."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from foldin.errors import InvalidInputError
from foldin.kernels.prepare import ItemFactors

__all__ = ["TILE_BYTES", "TopN", "top_n", "top_n_reference"]

TILE_BYTES = 8 << 20
"""Bytes of the tile of scores that is held at a time."""

Seen = tuple[NDArray[np.int64], NDArray[np.int32]]


@dataclass(frozen=True, eq=False)
class TopN:
    """Ranked items of many users, best first; of equal scores the lower index comes first."""

    indices: NDArray[np.int32]
    """(n_users, n) rows of the item factors; -1 where a user has fewer candidates."""
    scores: NDArray[np.float32]
    """(n_users, n) dot products; -inf where the index is -1."""


def top_n(
    items: ItemFactors,
    user_factors: ArrayLike,
    n: int,
    *,
    seen: Seen | None = None,
    deny: ArrayLike | None = None,
    tile_bytes: int = TILE_BYTES,
) -> TopN:
    """The n items of highest score y·x of each user that are neither seen nor denied.

    user_factors: (n_users, rank) float32. seen: (indptr, indices) in CSR form, one row a user, in
    any order, with repeats, -1 for items that the model does not know. deny: (m,) item indices, -1
    allowed. Items whose factors are zero are candidates with score 0.
    """
    return top_n_reference(items, user_factors, n, seen=seen, deny=deny)


def top_n_reference(
    items: ItemFactors,
    user_factors: ArrayLike,
    n: int,
    *,
    seen: Seen | None = None,
    deny: ArrayLike | None = None,
) -> TopN:
    """What `top_n` computes, by a full sort of all items, one user at a time."""
    x = np.asarray(user_factors, dtype=np.float32)
    if n < 1:
        raise InvalidInputError(f"n must be at least 1 (found {n})")
    denied = {int(item) for item in np.asarray(() if deny is None else deny)}
    indices = np.full((len(x), n), -1, dtype=np.int32)
    scores = np.full((len(x), n), -np.inf, dtype=np.float32)
    for u, factors in enumerate(x):
        taken = set(denied)
        if seen is not None:
            taken |= {int(item) for item in seen[1][seen[0][u] : seen[0][u + 1]]}
        score = items.factors @ factors
        ranked = sorted(set(range(items.n_items)) - taken, key=lambda i: (-score[i], i))[:n]
        indices[u, : len(ranked)] = ranked
        scores[u, : len(ranked)] = score[ranked]
    return TopN(indices, scores)
