"""The batched solution of every user's regularised least squares."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from foldin.errors import InvalidInputError
from foldin.kernels.checks import check_histories
from foldin.kernels.dense import solve_densely
from foldin.kernels.grouping import groups_by_length
from foldin.kernels.iterative import solve_iteratively
from foldin.kernels.nonnegative import solve_nonnegative
from foldin.kernels.prepare import ItemFactors
from foldin.kernels.systems import Floats, Group, solve_directly
from foldin.kernels.types import UNKNOWN, Histories, name_user

__all__ = ["PRECISIONS", "fold_in"]

PRECISIONS = ("mixed", "float64", "float32")

TOLERANCE = {"mixed": 4e-7, "float32": 1e-6}
"""Bound on |δx| / |x|; for float32 only the fall of a residual that is itself rounded."""

DIRECT_ROWS = 24
"""Up to this length LAPACK in float64 is faster than steps in float32 and their refinement."""

LONG = 8
"""Histories longer than this times the rank are added up one user at a time."""

USERS_TO_ROTATE = 512
"""Solutions that are rotated back in one product, which a few users alone would not fill."""

NEGLIGIBLE = 1e-12
"""D below this share of |y|² is no regularisation: dividing by it would lose all digits."""


def fold_in(
    items: ItemFactors,
    histories: Histories,
    *,
    user_ids: Sequence[str] | None = None,
    precision: str = "mixed",
) -> NDArray[np.float32]:
    """(n_users, rank) float32: the factors of each user, given the history and the model.

    A user without a row that counts (no history, no item that the model knows, in implicit mode no
    strength above 0) gets zeros. Each factor vector is within 4e-7 (relative norm, before it is
    rounded to float32) of the exact solution in precision "mixed". "float64" is LAPACK throughout;
    "float32" leaves out the refinement and is for comparison only.

    user_ids, (n_users,), are used in messages. Raises InvalidInputError for input that is not
    finite or not of this model, SingularSystemError for a user without a unique solution.
    """
    if precision not in PRECISIONS:
        raise InvalidInputError(f"precision must be one of {PRECISIONS} (found {precision!r})")
    check_histories(items, histories, user_ids)
    x = np.zeros((histories.n_users, items.rank), dtype=np.float32)
    solvable = _without_idle_rows(items, histories)
    if items.objective.nonnegative:
        solve_nonnegative(items, solvable, x, user_ids)
        return x
    with np.errstate(over="ignore", invalid="ignore", divide="ignore", under="ignore"):
        # What overflows in float32 is noticed as unsolved and solved again in float64.
        _Solver(items, solvable, precision).solve(x, user_ids)
    return x


def _without_idle_rows(items: ItemFactors, histories: Histories) -> Histories:
    """The histories less the rows that add nothing, and less all rows of users who get zeros."""
    strengths, indptr = histories.strengths, histories.indptr
    counts = strengths > 0 if items.objective.implicit_prefs else strengths != 0
    keep = histories.indices != UNKNOWN
    counts &= keep
    if items.objective.implicit_prefs:
        keep &= strengths != 0
    total = np.concatenate(([0], np.cumsum(counts)))
    idle = total[indptr[1:]] == total[indptr[:-1]]
    keep &= np.repeat(~idle, np.diff(indptr))
    if keep.all():
        return histories
    kept = np.concatenate(([0], np.cumsum(keep)))
    return Histories(kept[indptr], histories.indices[keep], strengths[keep])


class _Solver:
    """The state of one call: the model's arrays, the histories and the workspace."""

    def __init__(self, items: ItemFactors, histories: Histories, precision: str) -> None:
        self.items, self.histories, self.precision = items, histories, precision
        self.implicit = items.objective.implicit_prefs
        self.y = items.rotated
        self.lengths = np.diff(histories.indptr)
        self.n_regularised = self._counted_rows()
        self.buffer = np.empty(0)
        self.spare = np.empty(0)

    def _counted_rows(self) -> NDArray[np.int64]:
        """(n_users,): the n of n·regParam: rows above 0, or all rows in explicit mode."""
        if not self.implicit:
            return self.lengths
        indptr = self.histories.indptr
        total = np.concatenate(([0], np.cumsum(self.histories.strengths > 0)))
        counted: NDArray[np.int64] = total[indptr[1:]] - total[indptr[:-1]]
        return counted

    def solve(self, x: NDArray[np.float32], user_ids: Sequence[str] | None) -> None:
        """Fill x, (n_users, rank)."""
        one_by_one = (self.lengths > 0) & self._needs_care()
        batched = np.where(one_by_one, 0, self.lengths)
        waiting: list[tuple[NDArray[np.intp], Floats]] = []
        for users, n in groups_by_length(batched, self.items.rank):
            waiting.append((users, self._solve_group(users, n)))
            if sum(len(users) for users, _ in waiting) >= USERS_TO_ROTATE:
                self._rotate_back(waiting, x)
                waiting.clear()
        if waiting:
            self._rotate_back(waiting, x)
        one_by_one |= ~np.isfinite(x).all(axis=1)
        indptr, indices, strengths = (
            self.histories.indptr,
            self.histories.indices,
            self.histories.strengths,
        )
        for user in np.flatnonzero(one_by_one):
            rows = slice(indptr[user], indptr[user + 1])
            name = name_user(int(user), user_ids)
            x[user] = solve_densely(self.items, indices[rows], strengths[rows], name)

    def _rotate_back(self, solved: list[tuple[NDArray[np.intp], Floats]], x: NDArray[np.float32]) -> None:
        """Put solutions into x, (n_users, rank), in the original basis."""
        users = np.concatenate([users for users, _ in solved])
        rotated = np.concatenate([solution for _, solution in solved])
        x[users] = rotated @ self.items.eigenvectors.T if self.implicit else rotated

    def _needs_care(self) -> NDArray[np.bool_]:
        """(n_users,): users whose system is not one for the batched forms."""
        items = self.items
        smallest = self.n_regularised * items.objective.reg_param
        if self.implicit:
            smallest = smallest + items.eigenvalues[0]
        care = (smallest <= NEGLIGIBLE * items.largest_norm_squared) | (self.lengths > LONG * items.rank)
        if self.implicit and items.objective.alpha < 1e-6:
            care[:] = True  # c / W^½ would divide by next to nothing
        return care

    def _solve_group(self, users: NDArray[np.intp], n: int) -> Floats:
        """(len(users), rank): the solutions in the eigenbasis."""
        group = self._gather(users, n)
        spare = self.spare[: group.y.size]
        few = self.items.rank if self.precision == "float64" else DIRECT_ROWS
        if n <= min(few, self.items.rank):
            return solve_directly(group, spare.reshape(group.y.shape))
        lengths = self.lengths[users]
        if self.precision == "float64":
            x: Floats = np.empty(group.d.shape)
            solved = np.zeros(len(users), dtype=np.bool_)
        else:
            work = spare.view(np.float32)[: group.y.size].reshape(group.y.shape)
            np.copyto(work, group.y, casting="same_kind")
            x, solved = solve_iteratively(group, work, TOLERANCE[self.precision], refine=self.precision == "mixed")
        # A short history is the better conditioned in its dual form, which padding may hide.
        short = lengths <= self.items.rank
        for left in (~solved & short, ~solved & ~short):
            if left.any():
                try:
                    x[left] = solve_directly(group.only(left, int(lengths[left].max())))
                except np.linalg.LinAlgError:
                    x[left] = np.nan  # one of them is singular: one by one it is found out which
        return x

    def _gather(self, users: NDArray[np.intp], n: int) -> Group:
        """The users' rows, padded to n; what is padded repeats the first row with weight 0."""
        histories, objective = self.histories, self.items.objective
        lengths = self.lengths[users]
        position = np.arange(n)
        rows = histories.indptr[users][:, None] + position
        padding = None
        if lengths.min() < n:
            padding = position >= lengths[:, None]
            rows[padding] = 0
        size = len(users) * n * self.items.rank
        if size > self.buffer.size:
            self.buffer = np.empty(size)
            self.spare = np.empty(size)
        y = self.buffer[:size].reshape(len(users), n, self.items.rank)
        # Indices were checked; mode="clip" spares take a second check and a copy of its output.
        np.take(self.y, histories.indices[rows], axis=0, out=y, mode="clip")
        strengths = histories.strengths[rows].astype(np.float64)
        if self.implicit:
            w = np.abs(strengths)
            w *= objective.alpha
            root_w = np.sqrt(w)
            w += 1.0
            c_over_root_w = np.where(strengths > 0, w, 0.0)
            c_over_root_w /= root_w
            d = self.items.eigenvalues
        else:
            root_w = np.ones_like(strengths)
            c_over_root_w = strengths
            d = np.zeros(self.items.rank)
        if padding is not None:
            root_w[padding] = 0.0
            c_over_root_w[padding] = 0.0
        d = d + (self.n_regularised[users] * objective.reg_param)[:, None]
        return Group(y, d, root_w, c_over_root_w)
