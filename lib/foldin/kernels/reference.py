"""Slow, obviously right twins of the fast kernels: one user at a time, float64, dense.

The tests hold the fast kernels to these, and these to MLlib.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from foldin.kernels.checks import check_histories
from foldin.kernels.dense import check_regular
from foldin.kernels.prepare import ItemFactors
from foldin.kernels.types import Histories, name_user

__all__ = ["fold_in_reference", "normal_equations"]


def normal_equations(
    items: ItemFactors, indices: NDArray[np.int32], strengths: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A (rank, rank) and b (rank,) of one user, as `computeFactors` in Spark's ALS.scala adds them.

    implicit: A = YᵀY + Σ c1·y yᵀ + n⁺·regParam·I,  b = Σ_{r>0} (1 + c1)·y,  c1 = alpha·|r|
    explicit: A = Σ y yᵀ + n·regParam·I,            b = Σ r·y
    """
    objective, rank = items.objective, items.rank
    a = np.zeros((rank, rank))
    b = np.zeros(rank)
    n = 0
    if objective.implicit_prefs:
        a += items.gramian
    for index, strength in zip(indices, strengths, strict=True):
        if index < 0:
            continue
        y = items.factors[index].astype(np.float64)
        r = float(strength)
        if objective.implicit_prefs:
            c1 = objective.alpha * abs(r)
            a += c1 * np.outer(y, y)
            if r > 0:
                b += (1 + c1) * y
                n += 1
        else:
            a += np.outer(y, y)
            b += r * y
            n += 1
    a += n * objective.reg_param * np.eye(rank)
    return a, b


def fold_in_reference(
    items: ItemFactors, histories: Histories, *, user_ids: Sequence[str] | None = None
) -> NDArray[np.float64]:
    """(n_users, rank) float64: what `fold_in` computes, one dense system a user.

    Raises InvalidInputError and SingularSystemError as `fold_in` does.
    """
    check_histories(items, histories, user_ids)
    x = np.zeros((histories.n_users, items.rank))
    for u in range(histories.n_users):
        rows = slice(histories.indptr[u], histories.indptr[u + 1])
        a, b = normal_equations(items, histories.indices[rows], histories.strengths[rows])
        if not b.any():
            continue  # the minimum is at 0 whatever A is: no positive row, or none at all
        check_regular(a, name_user(u, user_ids), items.objective.reg_param)
        x[u] = nnls(a, b) if items.objective.nonnegative else np.linalg.solve(a, b)
    return x


def nnls(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """The minimum of ½xᵀAx - bᵀx over x >= 0: Lawson and Hanson 1974, chapter 23, on A and b."""
    x = np.zeros(len(b))
    passive = np.zeros(len(b), dtype=bool)
    tolerance = 1e-12 * np.abs(b).max()
    while True:
        gradient = b - a @ x
        candidates = np.where(passive, -np.inf, gradient)
        if candidates.max() <= tolerance:
            return x
        passive[candidates.argmax()] = True
        while True:
            s = np.zeros(len(b))
            s[passive] = np.linalg.solve(a[np.ix_(passive, passive)], b[passive])
            blocking = passive & (s <= 0)
            if not blocking.any():
                x = s
                break
            step = (x[blocking] / (x[blocking] - s[blocking])).min()
            x = x + step * (s - x)
            passive &= x > 1e-15 * np.abs(x).max()
            x[~passive] = 0.0
