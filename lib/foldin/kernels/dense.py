"""The normal equations of one user formed as they stand, in float64, for the cases that are rare.

Histories far longer than the rank, models without regularisation, weights that underflow: here A is
added up in blocks of rows, so that the workspace does not depend on the history, and a system
without a unique solution is refused.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from foldin.errors import SingularSystemError
from foldin.kernels.prepare import ItemFactors

__all__ = ["check_regular", "normal_equations_in_blocks", "solve_densely"]

BLOCK_BYTES = 4 << 20

Float64s = NDArray[np.float64]


def normal_equations_in_blocks(
    items: ItemFactors, indices: NDArray[np.int32], strengths: NDArray[np.float32]
) -> tuple[Float64s, Float64s]:
    """A (rank, rank) and b (rank,) of one user whose items are all known; see `reference`."""
    objective, rank = items.objective, items.rank
    a = items.gramian.copy() if objective.implicit_prefs else np.zeros((rank, rank))
    b = np.zeros(rank)
    n = 0
    rows = max(1, BLOCK_BYTES // (8 * rank))
    for start in range(0, len(indices), rows):
        y = items.factors[indices[start : start + rows]].astype(np.float64)
        r = strengths[start : start + rows].astype(np.float64)
        if objective.implicit_prefs:
            w = objective.alpha * np.abs(r)
            n += int(np.count_nonzero(r > 0))
            b += np.where(r > 0, 1.0 + w, 0.0) @ y
            a += y.T @ (y * w[:, None])
        else:
            n += len(r)
            b += r @ y
            a += y.T @ y
    a.reshape(-1)[:: rank + 1] += n * objective.reg_param
    return a, b


def check_regular(a: Float64s, user: str, reg_param: float) -> None:
    """Raise SingularSystemError if A, (rank, rank), is singular to working precision.

    A pivot of Cholesky's factorisation that is lost in the rounding of the diagonal means that the
    solution would be made of rounding errors.
    """
    lost = len(a) * np.finfo(np.float64).eps * a.diagonal().max()
    try:
        regular = bool((np.linalg.cholesky(a).diagonal() ** 2).min() > lost)
    except np.linalg.LinAlgError:
        regular = False
    if not regular:
        raise SingularSystemError(
            f"{user}: the normal equations have no unique solution: regParam {reg_param} is too "
            f"small for a history that does not span all {len(a)} factors"
        )


def solve_densely(
    items: ItemFactors, indices: NDArray[np.int32], strengths: NDArray[np.float32], user: str
) -> Float64s:
    """x, (rank,), of one user, in the original basis; `user` is for messages."""
    a, b = normal_equations_in_blocks(items, indices, strengths)
    if not b.any():
        return np.zeros(items.rank)
    check_regular(a, user, items.objective.reg_param)
    return np.linalg.solve(a, b).astype(np.float64, copy=False)
