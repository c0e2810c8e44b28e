"""Batched non-negative least squares: the conditions of the optimum, not a tolerance on the way."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import errors, model, random_histories

from foldin.kernels import Histories, Objective, fold_in, fold_in_reference
from foldin.kernels.nonnegative import nonnegative_least_squares
from foldin.kernels.reference import nnls


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 20), st.integers(1, 6), st.integers(0, 2**32 - 1), st.floats(-4, 0))
def test_the_optimality_conditions_hold(rank: int, batch: int, seed: int, ridge: float) -> None:
    rng = np.random.default_rng(seed)
    y = rng.normal(size=(batch, rank + 2, rank))
    a = y.transpose(0, 2, 1) @ y + 10**ridge * np.eye(rank)
    b = rng.normal(size=(batch, rank))
    x = nonnegative_least_squares(a, b)
    gradient = np.matmul(a, x[:, :, None])[:, :, 0] - b
    scale = np.abs(a).max(axis=(1, 2), keepdims=True)[:, :, 0] * (1 + np.abs(x).max())
    assert (x >= 0).all()
    assert (gradient >= -1e-9 * scale).all()
    assert (np.abs(gradient[x > 0]) <= 1e-9 * np.broadcast_to(scale, x.shape)[x > 0]).all()
    for one in range(batch):
        np.testing.assert_allclose(x[one], nnls(a[one], b[one]), atol=1e-7 * (1 + x[one].max()))


@pytest.mark.timeout(20)
def test_it_ends_where_full_swaps_alone_go_round_in_circles() -> None:
    """Found by a search: 1 in 50,000 systems of this kind makes full swaps come back to a guess."""
    a = np.array(
        [
            [10.875, 0.625, 0.5, 0.375, 2.0, -1.25],
            [0.625, 5.5, -5.125, 0.25, 0.25, -3.25],
            [0.5, -5.125, 14.5, 2.625, -2.5, 3.875],
            [0.375, 0.25, 2.625, 3.0, -2.5, -0.75],
            [2.0, 0.25, -2.5, -2.5, 3.375, -0.125],
            [-1.25, -3.25, 3.875, -0.75, -0.125, 2.625],
        ]
    )
    b = np.array([0.625, 1.375, -0.125, 0.25, 0.5, -1.0])
    np.testing.assert_allclose(nonnegative_least_squares(a[None], b[None])[0], nnls(a, b), atol=1e-12)


@pytest.mark.parametrize("implicit_prefs", [False, True])
def test_folding_in_equals_the_reference(implicit_prefs: bool) -> None:
    objective = Objective(0.1, 2.0, implicit_prefs, nonnegative=True)
    items = model(objective, rank=16)
    histories = random_histories([0, 1, 2, 15, 16, 17, 60, 300], negative=0.4)
    found = fold_in(items, histories)
    assert (found >= 0).all()
    assert errors(found, fold_in_reference(items, histories)).max() <= 1e-6


def test_a_user_whom_every_item_repels_gets_zeros() -> None:
    items = model(Objective(0.1, implicit_prefs=False, nonnegative=True))
    histories = Histories.from_rows([[(1, -1.0), (2, -3.0)], [(1, 1.0)]])
    found = fold_in(items, histories)
    assert not found[0].any()
    assert found[1].any()
