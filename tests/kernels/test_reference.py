"""The reference against answers that were worked out on paper."""

from __future__ import annotations

import numpy as np

from foldin.kernels import Histories, Objective, fold_in_reference, prepare
from foldin.kernels.reference import nnls, normal_equations

TWO_ITEMS = np.array([[1.0, 0.0], [0.0, 2.0]])


def test_implicit_normal_equations_are_those_of_als_scala() -> None:
    items = prepare(TWO_ITEMS, Objective(0.5, alpha=3.0), model_version="m")
    a, b = normal_equations(items, np.array([0, 1, -1]), np.array([2.0, -1.0, 9.0], np.float32))
    # YᵀY = diag(1, 4); c1 = 6 and 3, times y yᵀ = diag(1, 0) and diag(0, 4); one positive row: 0.5.
    np.testing.assert_array_equal(a, np.diag([1 + 6 + 0.5, 4 + 12 + 0.5]))
    np.testing.assert_array_equal(b, [7.0, 0.0])


def test_explicit_normal_equations_are_those_of_als_scala() -> None:
    items = prepare(TWO_ITEMS, Objective(0.5, implicit_prefs=False), model_version="m")
    a, b = normal_equations(items, np.array([0, 1, -1]), np.array([2.0, -1.0, 9.0], np.float32))
    np.testing.assert_array_equal(a, np.diag([1 + 1.0, 4 + 1.0]))  # two rows: 2 · 0.5
    np.testing.assert_array_equal(b, [2.0, -2.0])


def test_one_event_is_solved_as_on_paper() -> None:
    items = prepare(TWO_ITEMS, Objective(0.5, alpha=3.0), model_version="m")
    x = fold_in_reference(items, Histories.from_rows([[(1, 1.0)], []]))
    # (4 + 3 · 4 + 0.5) x₂ = (1 + 3) · 2
    np.testing.assert_allclose(x, [[0.0, 8.0 / 16.5], [0.0, 0.0]], rtol=1e-15)


def test_nonnegative_least_squares_holds_at_zero_what_would_be_negative() -> None:
    a = np.array([[2.0, 1.0], [1.0, 2.0]])
    # Free, x would be (4/3, -5/3): with x₂ held at 0, x₁ = 1/2.
    np.testing.assert_allclose(nnls(a, np.array([1.0, -2.0])), [0.5, 0.0])
    np.testing.assert_allclose(nnls(a, np.array([3.0, 3.0])), [1.0, 1.0])
    np.testing.assert_array_equal(nnls(a, np.array([-1.0, -1.0])), [0.0, 0.0])
