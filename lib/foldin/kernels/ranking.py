"""The n best items of each user, without what the user has seen and what is denied to all."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from foldin.errors import InvalidInputError
from foldin.kernels.prepare import ItemFactors
from foldin.kernels.types import UNKNOWN

__all__ = ["TILE_BYTES", "Seen", "TopN", "top_n", "top_n_reference"]

TILE_BYTES = 2 << 20
"""Bytes of the tile of scores that is held at a time: what an L2 cache holds."""

USERS_A_TILE = 128

Seen = tuple[NDArray[np.int64], NDArray[np.int32]]
"""(indptr, indices) in CSR form: seen items by user, in any order, with repeats, -1 for unknown."""

Candidates = tuple[NDArray[np.intp], NDArray[np.int32], NDArray[np.float32]]
"""User's row in the tile, item, score; one entry a candidate."""


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

    user_factors: (n_users, rank) float32. deny: (m,) item indices, in any order, -1 allowed. Items
    with zero factors are candidates with score 0. Raises InvalidInputError for a wrong shape, for
    factors that are not finite and for items that the model does not have.
    """
    x, denied = _checked(items, user_factors, n, seen, deny)
    indices = np.full((len(x), n), UNKNOWN, dtype=np.int32)
    scores = np.full((len(x), n), -np.inf, dtype=np.float32)
    items_a_tile = max(1, tile_bytes // (4 * min(USERS_A_TILE, max(1, len(x)))))
    for first in range(0, len(x), USERS_A_TILE):
        users = slice(first, first + USERS_A_TILE)
        _rank_tile(
            items.factors,
            x[users],
            _seen_by_item(seen, first, min(first + USERS_A_TILE, len(x))),
            denied,
            items_a_tile,
            indices[users],
            scores[users],
        )
    return TopN(indices, scores)


def _rank_tile(
    y: NDArray[np.float32],
    x: NDArray[np.float32],
    seen: tuple[NDArray[np.intp], NDArray[np.int32]],
    denied: NDArray[np.int32],
    items_a_tile: int,
    indices: NDArray[np.int32],
    scores: NDArray[np.float32],
) -> None:
    """Fill indices and scores, (users, n), tile of items by tile of items.

    A score that is not above a user's n-th best so far cannot enter: on equality the earlier item,
    which has the lower index, wins. So after the first tile a comparison sorts out nearly all.
    """
    n = indices.shape[1]
    seen_users, seen_items = seen
    for start in range(0, len(y), items_a_tile):
        tile = x @ y[start : start + items_a_tile].T
        end = start + tile.shape[1]
        a, b = np.searchsorted(seen_items, (start, end))
        tile[seen_users[a:b], seen_items[a:b] - start] = -np.inf
        a, b = np.searchsorted(denied, (start, end))
        tile[:, denied[a:b] - start] = -np.inf
        bar = scores[:, -1:]
        if start == 0 and n < tile.shape[1]:
            # The tile's own n-th best is at least as high a bar; its equals must stay in.
            own = np.partition(tile, tile.shape[1] - n, axis=1)[:, -n, None]
            bar = np.nextafter(own, np.float32(-np.inf))
        position = np.flatnonzero(tile > bar)
        if len(position):
            users, columns = np.divmod(position, tile.shape[1])
            _merge((users, (columns + start).astype(np.int32), tile[users, columns]), indices, scores)


def _merge(found: Candidates, indices: NDArray[np.int32], scores: NDArray[np.float32]) -> None:
    """Keep the n best, (users, n), of what was kept before and what was found."""
    n = indices.shape[1]
    touched = np.unique(found[0])
    users = np.concatenate([np.repeat(touched, n), found[0]])
    item = np.concatenate([indices[touched].ravel(), found[1]])
    score = np.concatenate([scores[touched].ravel(), found[2]])
    order = np.lexsort((item, -score, users))
    users, item, score = users[order], item[order], score[order]
    # Every touched user has at least n entries, the kept ones.
    starts = np.searchsorted(users, touched)
    best = (starts[:, None] + np.arange(n)).ravel()
    indices[touched] = item[best].reshape(-1, n)
    scores[touched] = score[best].reshape(-1, n)


def _seen_by_item(seen: Seen | None, first: int, last: int) -> tuple[NDArray[np.intp], NDArray[np.int32]]:
    """(row within the tile, item) of what users first to last have seen, in order of the items."""
    if seen is None:
        return np.empty(0, dtype=np.intp), np.empty(0, dtype=np.int32)
    indptr, indices = seen
    item = np.asarray(indices[indptr[first] : indptr[last]], dtype=np.int32)
    user = np.repeat(np.arange(last - first), np.diff(indptr[first : last + 1]))
    order = np.argsort(item, kind="stable")
    return user[order], item[order]


def _checked(
    items: ItemFactors,
    user_factors: ArrayLike,
    n: int,
    seen: Seen | None,
    deny: ArrayLike | None,
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """User factors, (n_users, rank), and sorted denied items; or InvalidInputError."""
    x = np.ascontiguousarray(user_factors, dtype=np.float32)
    if x.ndim != 2 or x.shape[1] != items.rank:
        raise InvalidInputError(f"user_factors must be (n_users, {items.rank}) (found {x.shape})")
    if n < 1:
        raise InvalidInputError(f"n must be at least 1 (found {n})")
    bad = np.argwhere(~np.isfinite(x))
    if len(bad):
        row, column = bad[0]
        raise InvalidInputError(f"user_factors[{row}, {column}] is {x[row, column]}")
    denied = np.unique(np.asarray(() if deny is None else deny, dtype=np.int32))
    _check_items("deny", denied, items.n_items)
    if seen is not None:
        indptr, indices = np.asarray(seen[0]), np.asarray(seen[1])
        if len(indptr) != len(x) + 1 or indptr[0] != 0 or indptr[-1] != len(indices):
            raise InvalidInputError(f"seen: indptr of {len(indptr)} offsets for {len(x)} users, {len(indices)} items")
        _check_items("seen", indices, items.n_items)
    return x, denied


def _check_items(name: str, indices: NDArray[np.int32], n_items: int) -> None:
    bad = np.flatnonzero((indices < UNKNOWN) | (indices >= n_items))
    if len(bad):
        raise InvalidInputError(f"{name}: {indices[bad[0]]} at position {bad[0]} is not one of the {n_items} items")


def top_n_reference(
    items: ItemFactors,
    user_factors: ArrayLike,
    n: int,
    *,
    seen: Seen | None = None,
    deny: ArrayLike | None = None,
) -> TopN:
    """What `top_n` computes, by a full sort of all items, one user at a time."""
    x, denied = _checked(items, user_factors, n, seen, deny)
    indices = np.full((len(x), n), UNKNOWN, dtype=np.int32)
    scores = np.full((len(x), n), -np.inf, dtype=np.float32)
    for u, factors in enumerate(x):
        taken = {int(item) for item in denied}
        if seen is not None:
            taken |= {int(item) for item in seen[1][seen[0][u] : seen[0][u + 1]]}
        score = items.factors @ factors
        ranked = sorted(set(range(items.n_items)) - taken, key=lambda i: (-score[i], i))[:n]
        indices[u, : len(ranked)] = ranked
        scores[u, : len(ranked)] = score[ranked]
    return TopN(indices, scores)
