"""Which users are solved together: of similar length, as many as the cache holds."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

__all__ = ["BLOCK_ELEMENTS", "groups_by_length"]

BLOCK_ELEMENTS = 1 << 18
"""Elements of the (users, rows, rank) block of a group: 1 MB in float32, half of an L2 cache."""

PADDING = 24_576
"""Padded elements that cost as much time as opening another group (about 150 µs of Python)."""


def groups_by_length(lengths: NDArray[np.int64], rank: int) -> Iterator[tuple[NDArray[np.intp], int]]:
    """Positions of users with `lengths` above 0 and the length to pad them to, longest first.

    A group grows while the rows that it pads cost less than another group would: so a large batch
    is hardly padded at all, and a small one is not cut into groups of one.
    """
    order = np.argsort(-lengths, kind="stable")
    ordered = lengths[order]
    n_users = int(np.count_nonzero(ordered))
    sums = np.concatenate(([0], np.cumsum(ordered)))
    start = 0
    while start < n_users:
        n = int(ordered[start])
        end = min(n_users, start + max(1, BLOCK_ELEMENTS // (n * rank)))
        sizes = np.arange(1, end - start + 1)
        padded = (sizes * n - (sums[start + 1 : end + 1] - sums[start])) * rank
        # Padding only grows along the order; the first user is never padded.
        stop = start + int(np.searchsorted(padded, PADDING, side="right"))
        yield order[start:stop], n
        start = stop
