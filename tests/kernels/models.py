"""Models and histories for the tests of the kernels, drawn by Hypothesis or from a seed."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from foldin.kernels import Histories, ItemFactors, Objective, prepare

objectives = st.builds(
    Objective,
    reg_param=st.sampled_from([0.01, 0.1, 1.0]),
    alpha=st.sampled_from([0.5, 1.0, 40.0]),
    implicit_prefs=st.booleans(),
    nonnegative=st.just(False),
)


def model(objective: Objective, *, n_items: int = 200, rank: int = 8, seed: int = 0) -> ItemFactors:
    """Items whose factors decay over the dimensions, as those of trained models do."""
    rng = np.random.default_rng(seed)
    y = rng.normal(size=(n_items, rank)) * np.linspace(1.0, 0.3, rank)
    return prepare(np.abs(y) if objective.nonnegative else y, objective, model_version="m")


def random_histories(lengths: list[int], *, n_items: int = 200, seed: int = 0, negative: float = 0.2) -> Histories:
    """Histories of these lengths; a share of the strengths is negative, a tenth of items unknown."""
    rng = np.random.default_rng(seed)
    nnz = sum(lengths)
    strengths = np.ceil(rng.exponential(3.0, nnz)) * np.where(rng.random(nnz) < negative, -1, 1)
    indices = np.where(rng.random(nnz) < 0.1, -1, rng.integers(0, n_items, nnz))
    return Histories(
        np.concatenate(([0], np.cumsum(lengths, dtype=np.int64))),
        indices.astype(np.int32),
        strengths.astype(np.float32),
    )


def users_of(histories: Histories, users: list[int]) -> Histories:
    """The histories of some users, in this order."""
    rows = [np.arange(histories.indptr[u], histories.indptr[u + 1]) for u in users]
    flat = np.concatenate([np.empty(0, dtype=np.int64), *rows]).astype(np.int64)
    indptr = np.concatenate(([0], np.cumsum([len(r) for r in rows], dtype=np.int64)))
    return Histories(indptr.astype(np.int64), histories.indices[flat], histories.strengths[flat])


def errors(found: NDArray[np.floating], wanted: NDArray[np.floating]) -> NDArray[np.float64]:
    """|found - wanted| / |wanted| by user; where nothing is wanted, |found|."""
    norm = np.linalg.norm(wanted, axis=1)
    return np.linalg.norm(found - wanted, axis=1) / np.where(norm > 0, norm, 1.0)
