"""Non-negative least squares, batched: block principal pivoting on the normal equations.

Minimise ½xᵀAx - bᵀx over x >= 0. At the solution each factor is either free (x_j >= 0, gradient 0)
or held at 0 (gradient (Ax - b)_j >= 0). Portugal, Júdice and Vicente 1994 guess which, solve, and
swap all factors that break a rule; when that stops helping, only the last of them, which cannot
cycle (Murty 1974). The result is exact up to rounding, where MLlib's `NNLS` (projected conjugate
gradients) stops at the first small step.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from foldin.kernels.dense import check_regular, normal_equations_in_blocks
from foldin.kernels.prepare import ItemFactors
from foldin.kernels.types import Histories, name_user

__all__ = ["nonnegative_least_squares", "solve_nonnegative"]

Float64s = NDArray[np.float64]

BLOCK_BYTES = 8 << 20
"""Bytes of the batch of (rank, rank) matrices that is solved at a time."""

PATIENCE = 3
"""Full swaps without progress before a system goes on with single ones."""


def solve_nonnegative(
    items: ItemFactors,
    histories: Histories,
    x: NDArray[np.float32],
    user_ids: Sequence[str] | None,
) -> None:
    """Fill x, (n_users, rank), for users with rows. Raises SingularSystemError, naming the user."""
    rank = items.rank
    indptr = histories.indptr
    busy = np.flatnonzero(np.diff(indptr))
    at_a_time = max(1, BLOCK_BYTES // (8 * rank * rank))
    for start in range(0, len(busy), at_a_time):
        users = busy[start : start + at_a_time]
        a = np.empty((len(users), rank, rank))
        b = np.empty((len(users), rank))
        for i, user in enumerate(users):
            rows = slice(indptr[user], indptr[user + 1])
            a[i], b[i] = normal_equations_in_blocks(items, histories.indices[rows], histories.strengths[rows])
            if b[i].any():
                name = name_user(int(user), user_ids)
                check_regular(a[i], name, items.objective.reg_param)
            else:
                a[i] = np.eye(rank)  # x = 0, whatever A is
        x[users] = nonnegative_least_squares(a, b)


def nonnegative_least_squares(a: Float64s, b: Float64s) -> Float64s:
    """(batch, rank): the solutions for A, (batch, rank, rank), positive definite, and b."""
    batch, rank = b.shape
    diagonal = np.arange(rank)
    # A rule counts as broken only beyond the rounding of the numbers it compares.
    scale = np.sqrt(a[:, diagonal, diagonal])
    slack = 64 * np.finfo(np.float64).eps * np.linalg.norm(b / scale, axis=1)[:, None]
    x = np.zeros((batch, rank))
    free = np.zeros((batch, rank), dtype=np.bool_)
    fewest = np.full(batch, rank + 1)
    patience = np.full(batch, PATIENCE)
    todo = np.arange(batch)
    while len(todo):
        at, bt, ft = a[todo], b[todo], free[todo]
        # Held factors get the equation x_j = 0.
        restricted = np.where(ft[:, :, None] & ft[:, None, :], at, 0.0)
        restricted[:, diagonal, diagonal] += ~ft
        xt = np.linalg.solve(restricted, np.where(ft, bt, 0.0)[:, :, None])[:, :, 0]
        xt[~ft] = 0.0
        gradient = np.matmul(at, xt[:, :, None])[:, :, 0] - bt
        s, t = scale[todo], slack[todo]
        broken = np.where(ft, xt * s < -t, gradient < -t * s)
        count = broken.sum(axis=1)
        x[todo] = np.maximum(xt, 0.0)
        better = count < fewest[todo]
        fewest[todo] = np.minimum(count, fewest[todo])
        patience[todo] = np.where(better, PATIENCE, patience[todo] - 1)
        single = patience[todo] < 0
        last = rank - 1 - np.argmax(broken[:, ::-1], axis=1)
        broken[single] &= diagonal == last[single, None]
        free[todo] = ft ^ broken
        todo = todo[count > 0]
    return x
