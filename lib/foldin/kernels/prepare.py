"""What is computed once a model: the item factors with the eigenpairs of their Gramian."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foldin.errors import InvalidInputError
from foldin.kernels.types import Objective

__all__ = ["ItemFactors", "prepare"]

ROWS_AT_A_TIME = 16_384


@dataclass(frozen=True, eq=False)
class ItemFactors:
    """Item factors of one model, ready to fold users in. Immutable."""

    factors: NDArray[np.float32]
    """(n_items, rank): Y, as MLlib stores it."""
    gramian: NDArray[np.float64]
    """(rank, rank): YᵀY over all items."""
    eigenvalues: NDArray[np.float64]
    """(rank,): Λ of YᵀY = Q Λ Qᵀ, rising, never below 0."""
    eigenvectors: NDArray[np.float64]
    """(rank, rank): Q, one eigenvector a column."""
    objective: Objective
    model_version: str
    item_ids: NDArray[np.str_] | None
    """(n_items,) or None."""
    path: str | None = None
    """The file that the arrays are mapped from; it is shipped in place of them."""

    @cached_property
    def rotated(self) -> NDArray[np.float64]:
        """(n_items, rank): Ỹ = Y Q, or Y in explicit mode, whose systems lack the Gramian.

        In float64, since rounding Ỹ to float32 is itself an error that ill-conditioned models
        magnify. Made when first needed, never shipped.
        """
        rotated = np.empty(self.factors.shape)
        for start in range(0, self.n_items, ROWS_AT_A_TIME):
            block = self.factors[start : start + ROWS_AT_A_TIME].astype(np.float64)
            rotated[start : start + ROWS_AT_A_TIME] = (
                block @ self.eigenvectors if self.objective.implicit_prefs else block
            )
        rotated.setflags(write=False)
        return rotated

    @cached_property
    def largest_norm_squared(self) -> float:
        """The largest |y|² of an item: the scale against which regularisation counts."""
        return float(np.vecdot(self.factors, self.factors).max())

    def __reduce__(self) -> tuple[Any, ...]:
        """Ship the arrays without what each worker can make, or just the path of a mapped file."""
        if self.path is not None:
            from foldin.kernels.cache import load  # which imports this module

            return load, (self.path,)
        return _frozen, tuple(getattr(self, field.name) for field in fields(self))

    @property
    def nbytes(self) -> int:
        """Bytes that a worker holds: the factors, in float32 and rotated, and the ids."""
        ids = 0 if self.item_ids is None else self.item_ids.nbytes
        return self.factors.nbytes * 3 + self.gramian.nbytes * 2 + ids

    @property
    def n_items(self) -> int:
        """Items that the model knows."""
        return int(self.factors.shape[0])

    @property
    def rank(self) -> int:
        """Latent factors, k in the papers."""
        return int(self.factors.shape[1])


def prepare(
    factors: NDArray[np.floating],
    objective: Objective,
    *,
    model_version: str,
    item_ids: Sequence[str] | NDArray[np.str_] | None = None,
) -> ItemFactors:
    """Prepare a model's item factors, (n_items, rank), for fold-in, top-N and explanation.

    Raises InvalidInputError for a wrong shape, for NaN or infinity, or for ids that do not match.
    """
    given = np.asarray(factors)
    if given.ndim != 2 or 0 in given.shape:
        raise InvalidInputError(f"factors must be 2D and not empty (found shape {given.shape})")
    with np.errstate(over="ignore"):  # what float32 cannot hold is found as infinity below
        y = np.array(given, dtype=np.float32, order="C")
    bad = np.argwhere(~np.isfinite(y))
    if len(bad):
        row, column = bad[0]
        raise InvalidInputError(f"factors[{row}, {column}] is {y[row, column]}: must be finite")
    ids = None if item_ids is None else np.array(item_ids, dtype=np.str_)
    if ids is not None and ids.shape != (len(y),):
        raise InvalidInputError(f"item_ids has shape {ids.shape} for {len(y)} items")
    gramian = np.zeros((y.shape[1], y.shape[1]))
    for start in range(0, len(y), ROWS_AT_A_TIME):  # a float64 copy of all factors would double the peak
        block = y[start : start + ROWS_AT_A_TIME].astype(np.float64)
        gramian += block.T @ block
    eigenvalues, eigenvectors = np.linalg.eigh(gramian)
    eigenvalues = np.maximum(eigenvalues, 0.0)  # rounding can push a zero below zero
    return _frozen(y, gramian, eigenvalues, eigenvectors, objective, model_version, ids)


def _frozen(*parts: Any) -> ItemFactors:
    """ItemFactors whose arrays refuse writes; pickle does not keep that."""
    for part in parts:
        if isinstance(part, np.ndarray):
            part.setflags(write=False)
    return ItemFactors(*parts)
