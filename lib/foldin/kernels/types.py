"""The plain data that goes into the kernels, checked once at this border.

Shapes use three letters throughout: ``n_users`` and ``n_items`` count rows, ``rank`` is the number
of latent factors (k in the papers), ``nnz`` the number of (user, item) rows of all histories.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foldin.errors import InvalidInputError

__all__ = ["Histories", "Objective", "name_user"]

UNKNOWN = -1
"""Index of an item that the model does not know. Its row is ignored: MLlib never trained on it."""


@dataclass(frozen=True)
class Objective:
    """The part of ALS's parameters that the solution for one user depends on."""

    reg_param: float
    """MLlib's regParam; multiplied by the number of ratings of the user (ALS-WR)."""
    alpha: float = 1.0
    """Confidence per unit of strength; counts in implicit mode only."""
    implicit_prefs: bool = True
    """Strengths are evidence for a preference of 0 or 1 (True), or ratings to be predicted."""
    nonnegative: bool = False
    """Constrain all factors to be at least 0."""

    def __post_init__(self) -> None:
        for name in ("reg_param", "alpha"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise InvalidInputError(f"{name} must be finite and at least 0 (found {value})")


@dataclass(frozen=True)
class Histories:
    """Ragged histories of many users in CSR form; user u owns rows indptr[u] to indptr[u + 1].

    Rows of one user may come in any order and may repeat an item; every row counts by itself, as
    in MLlib, so the caller aggregates first.
    """

    indptr: NDArray[np.int64]
    """(n_users + 1,) offsets, from 0 up to nnz."""
    indices: NDArray[np.int32]
    """(nnz,) row of the model's item factors, or -1 for an item that the model does not know."""
    strengths: NDArray[np.float32]
    """(nnz,) signed strengths, or ratings; rounded to float32 once, as MLlib does."""

    def __post_init__(self) -> None:
        for name, dtype in (("indptr", np.int64), ("indices", np.int32), ("strengths", np.float32)):
            array = np.asarray(getattr(self, name))
            if array.ndim != 1:
                raise InvalidInputError(f"{name} must be 1D (found shape {array.shape})")
            if name != "strengths" and array.size and not np.issubdtype(array.dtype, np.integer):
                raise InvalidInputError(f"{name} must hold integers (found {array.dtype})")
            if array.dtype != dtype:
                # What float32 cannot hold turns into inf, which the kernels refuse by user.
                with np.errstate(over="ignore"):
                    array = array.astype(dtype)
            object.__setattr__(self, name, np.ascontiguousarray(array))
        indptr, nnz = self.indptr, len(self.indices)
        if len(indptr) == 0 or indptr[0] != 0 or indptr[-1] != nnz:
            raise InvalidInputError(f"indptr must run from 0 to {nnz} (found {indptr})")
        falls = np.flatnonzero(np.diff(indptr) < 0)
        if falls.size:
            raise InvalidInputError(f"indptr must not fall (it does after position {falls[0]})")
        if len(self.strengths) != nnz:
            raise InvalidInputError(f"{len(self.strengths)} strengths for {nnz} indices")

    @property
    def n_users(self) -> int:
        """Users, with and without rows."""
        return len(self.indptr) - 1

    @classmethod
    def from_rows(cls, rows: Sequence[Sequence[tuple[int, float]]]) -> Histories:
        """Histories from one list of (item index, strength) per user; for examples and tests."""
        lengths = [len(row) for row in rows]
        flat = [pair for row in rows for pair in row]
        return cls(
            np.concatenate(([0], np.cumsum(lengths, dtype=np.int64))).astype(np.int64),
            np.array([item for item, _ in flat], dtype=np.int32),
            np.array([strength for _, strength in flat], dtype=np.float64),
        )


def name_user(user: int, user_ids: Sequence[str] | None) -> str:
    """How messages call the user at position `user`: by id where ids are known."""
    return f"user {user_ids[user]!r}" if user_ids is not None else f"the user at position {user}"
