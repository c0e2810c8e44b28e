"""What is computed once a model, and what is refused at the border."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from foldin.errors import InvalidInputError
from foldin.kernels import Histories, Objective, fold_in, prepare

Y = np.random.default_rng(0).normal(size=(300, 6)).astype(np.float32)
HISTORY = Histories.from_rows([[(1, 2.0), (7, 1.0)]])


def test_the_eigenpairs_are_those_of_the_gramian() -> None:
    items = prepare(Y, Objective(0.1), model_version="m")
    q, y = items.eigenvectors, Y.astype(np.float64)
    np.testing.assert_allclose(items.gramian, y.T @ y, rtol=1e-12)
    np.testing.assert_allclose(q * items.eigenvalues @ q.T, items.gramian, atol=1e-10)
    np.testing.assert_allclose(items.rotated.T @ items.rotated, np.diag(items.eigenvalues), atol=1e-10)


def test_it_is_immutable_and_keeps_no_hold_on_the_callers_array() -> None:
    y = Y.copy()
    items = prepare(y, Objective(0.1), model_version="m", item_ids=[str(i) for i in range(300)])
    y[:] = 0.0
    assert items.factors.any()
    for array in (items.factors, items.gramian, items.eigenvectors, items.item_ids, items.rotated):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = array[1]


def test_it_travels_to_workers_without_what_they_can_make_themselves() -> None:
    items = prepare(Y, Objective(0.1), model_version="m7", item_ids=[f"i{i}" for i in range(300)])
    before = len(pickle.dumps(items))
    folded = fold_in(items, HISTORY)
    shipped = pickle.dumps(items)
    assert len(shipped) == before
    assert before < 1.2 * (items.factors.nbytes + items.item_ids.nbytes) + 4096
    arrived = pickle.loads(shipped)
    np.testing.assert_array_equal(fold_in(arrived, HISTORY), folded)
    assert arrived.model_version == "m7"
    assert arrived.objective == Objective(0.1)
    assert arrived.item_ids.tolist() == items.item_ids.tolist()
    with pytest.raises(ValueError, match="read-only"):
        arrived.factors[0, 0] = 1.0


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        (np.ones(3), r"2D and not empty \(found shape \(3,\)\)"),
        (np.ones((0, 3)), r"found shape \(0, 3\)"),
        (np.array([[1.0, 2.0], [3.0, np.nan]]), r"factors\[1, 1\] is nan"),
        (np.array([[np.inf, 2.0]]), r"factors\[0, 0\] is inf"),
        (np.array([[1e39, 2.0]]), r"factors\[0, 0\] is inf"),
    ],
)
def test_factors_without_a_meaning_are_refused(factors: np.ndarray, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        prepare(factors, Objective(0.1), model_version="m")


def test_ids_must_be_as_many_as_the_items() -> None:
    with pytest.raises(InvalidInputError, match="for 300 items"):
        prepare(Y, Objective(0.1), model_version="m", item_ids=["a"])


@pytest.mark.parametrize("bad", [-0.1, float("nan"), float("inf")])
def test_parameters_out_of_range_are_refused_by_name(bad: float) -> None:
    with pytest.raises(InvalidInputError, match="reg_param must be"):
        Objective(bad)
    with pytest.raises(InvalidInputError, match="alpha must be"):
        Objective(0.1, alpha=bad)


@pytest.mark.parametrize(
    ("indptr", "indices", "strengths", "message"),
    [
        ([0, 1], [[1]], [1.0], "indices must be 1D"),
        ([0, 1], [1.5], [1.0], "indices must hold integers"),
        ([], [], [], "indptr must run from 0 to 0"),
        ([1, 1], [1], [1.0], "indptr must run from 0 to 1"),
        ([0, 2], [1], [1.0], "indptr must run from 0 to 1"),
        ([0, 2, 1, 3], [1, 2, 3], [1.0] * 3, "fall .*after position 1"),
        ([0, 2], [1, 2], [1.0], "1 strengths for 2 indices"),
    ],
)
def test_histories_that_are_no_csr_are_refused(
    indptr: list[int], indices: list[int], strengths: list[float], message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        Histories(np.array(indptr), np.array(indices), np.array(strengths))


def test_histories_round_strengths_to_float32_once() -> None:
    histories = Histories(np.array([0, 1]), np.array([3]), np.array([0.1]))
    assert histories.strengths.dtype == np.float32
    assert histories.strengths[0] == np.float32(0.1)
    assert histories.indices.dtype == np.int32
    assert histories.n_users == 1
