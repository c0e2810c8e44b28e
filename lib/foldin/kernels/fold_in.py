"""The batched solution of every user's regularised least squares."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from foldin.errors import InvalidInputError, SingularSystemError
from foldin.kernels.checks import check_histories
from foldin.kernels.prepare import ItemFactors
from foldin.kernels.reference import nnls
from foldin.kernels.types import Histories, name_user

__all__ = ["fold_in"]


def fold_in(
    items: ItemFactors,
    histories: Histories,
    *,
    user_ids: Sequence[str] | None = None,
    precision: str = "mixed",
) -> NDArray[np.float32]:
    """(n_users, rank) float32: the factors of each user, given the history and the model.

    A user without a row that counts (no history, no item that the model knows, in implicit mode no
    strength above 0) gets zeros. Raises InvalidInputError and SingularSystemError, naming the user.
    """
    if precision not in ("mixed", "float32", "float64"):
        raise InvalidInputError(
            f"precision must be mixed, float32 or float64 (found {precision!r})"
        )
    check_histories(items, histories, user_ids)
    objective, rank = items.objective, items.rank
    x = np.zeros((histories.n_users, rank), dtype=np.float32)
    for u in range(histories.n_users):
        rows = slice(histories.indptr[u], histories.indptr[u + 1])
        known = histories.indices[rows] >= 0
        y = items.factors[histories.indices[rows][known]].astype(np.float64)
        r = histories.strengths[rows][known].astype(np.float64)
        if objective.implicit_prefs:
            w = objective.alpha * np.abs(r)
            c = np.where(r > 0, 1 + w, 0.0)
            a = items.gramian + (y.T * w) @ y
            n = int(np.count_nonzero(r > 0))
        else:
            c, a, n = r, y.T @ y, len(r)
        b = y.T @ c
        if not b.any():
            continue
        a[np.diag_indices(rank)] += n * objective.reg_param
        try:
            np.linalg.cholesky(a)
        except np.linalg.LinAlgError as error:
            raise SingularSystemError(
                f"{name_user(u, user_ids)}: the normal equations are singular with regParam "
                f"{objective.reg_param}: use a regParam above 0"
            ) from error
        x[u] = nnls(a, b) if objective.nonnegative else np.linalg.solve(a, b)
    return x
