"""The fast fold-in against the reference, by properties and at the edges."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import errors, model, objectives, random_histories, users_of

from foldin.errors import InvalidInputError, SingularSystemError
from foldin.kernels import Histories, Objective, fold_in, fold_in_reference, prepare
from foldin.kernels.reference import normal_equations

IMPLICIT = Objective(0.1, alpha=2.0)
EXPLICIT = Objective(0.1, implicit_prefs=False)
BOTH = pytest.mark.parametrize("objective", [IMPLICIT, EXPLICIT], ids=["implicit", "explicit"])
# The bound of precision "mixed" and the rounding of the result to float32.
MIXED = 4e-7 + 1.2e-7
SPREAD = [0, 1, 2, 7, 8, 9, 19, 20, 21, 22, 40, 63, 64, 65, 66, 100, 300, 513]

lengths = st.lists(st.integers(0, 90), min_size=1, max_size=12)
seeds = st.integers(0, 2**32 - 1)


@settings(max_examples=60, deadline=None)
@given(objectives, lengths, seeds, st.sampled_from([1, 3, 8, 24]))
def test_it_equals_the_reference(objective: Objective, lengths: list[int], seed: int, rank: int) -> None:
    items = model(objective, rank=rank, seed=seed)
    histories = random_histories(lengths, seed=seed)
    wanted = fold_in_reference(items, histories)
    assert errors(fold_in(items, histories), wanted).max() <= MIXED
    # float32 holds the result, so the rounding is all that float64 may differ by.
    exact = fold_in(items, histories, precision="float64")
    assert errors(exact, wanted).max() <= 1.2e-7


@settings(max_examples=40, deadline=None)
@given(objectives, lengths, seeds)
def test_the_normal_equations_hold(objective: Objective, lengths: list[int], seed: int) -> None:
    items = model(objective, seed=seed)
    histories = random_histories(lengths, seed=seed)
    for user, x in enumerate(fold_in(items, histories).astype(np.float64)):
        one = users_of(histories, [user])
        a, b = normal_equations(items, one.indices, one.strengths)
        # |Ax - b| <= |A| |δx|, and |δx| is bounded relative to |x|.
        if b.any():
            assert np.linalg.norm(a @ x - b) <= MIXED * np.linalg.norm(a, 2) * np.linalg.norm(x)


@settings(max_examples=40, deadline=None)
@given(objectives, lengths, seeds)
def test_the_order_of_events_does_not_matter(objective: Objective, lengths: list[int], seed: int) -> None:
    items = model(objective, seed=seed)
    histories = random_histories(lengths, seed=seed)
    rng = np.random.default_rng(seed)
    order = np.concatenate(
        [
            np.empty(0, dtype=np.int64),
            *(
                rng.permutation(np.arange(a, b))
                for a, b in zip(histories.indptr[:-1], histories.indptr[1:], strict=True)
            ),
        ]
    )
    shuffled = Histories(histories.indptr, histories.indices[order], histories.strengths[order])
    assert errors(fold_in(items, shuffled), fold_in(items, histories)).max() <= 2 * MIXED


@settings(max_examples=40, deadline=None)
@given(objectives, lengths, seeds)
def test_a_batch_equals_its_users_one_by_one(objective: Objective, lengths: list[int], seed: int) -> None:
    items = model(objective, seed=seed)
    histories = random_histories(lengths, seed=seed)
    together = fold_in(items, histories)
    for user in range(histories.n_users):
        alone = fold_in(items, users_of(histories, [user]))
        assert errors(alone, together[user : user + 1]).max() <= 2 * MIXED


@settings(max_examples=40, deadline=None)
@given(lengths, seeds, st.sampled_from([0.25, 8.0, 1024.0]))
def test_explicit_factors_scale_with_the_ratings(lengths: list[int], seed: int, scale: float) -> None:
    items = model(EXPLICIT, seed=seed)
    histories = random_histories(lengths, seed=seed)
    scaled = Histories(histories.indptr, histories.indices, histories.strengths * np.float32(scale))
    wanted = scale * fold_in(items, histories).astype(np.float64)
    assert errors(fold_in(items, scaled), wanted).max() <= 2 * MIXED


@settings(max_examples=40, deadline=None)
@given(lengths, seeds, st.sampled_from([0.25, 8.0, 1024.0]))
def test_in_implicit_mode_alpha_and_strengths_count_as_their_product(
    lengths: list[int], seed: int, scale: float
) -> None:
    histories = random_histories(lengths, seed=seed)
    scaled = Histories(histories.indptr, histories.indices, histories.strengths * np.float32(scale))
    found = fold_in(model(Objective(0.1, alpha=2.0), seed=seed), scaled)
    wanted = fold_in(model(Objective(0.1, alpha=2.0 * scale), seed=seed), histories)
    assert errors(found, wanted).max() <= 2 * MIXED


@BOTH
@pytest.mark.parametrize("rank", [8, 32, 64])
def test_every_length_takes_a_path_that_is_right(objective: Objective, rank: int) -> None:
    items = model(objective, rank=rank, n_items=400)
    histories = random_histories([*SPREAD, 8 * rank, 8 * rank + 9], n_items=400)
    found = fold_in(items, histories)
    assert errors(found, fold_in_reference(items, histories)).max() <= MIXED


@BOTH
def test_hard_systems_are_left_to_lapack_and_stay_right(objective: Objective) -> None:
    """Strengths of 1e6 and a hundred rows of one item: eigenvalues far apart."""
    items = model(objective, rank=32)
    rows = [(u, 1e6) for u in range(40)] + [(3, 1e6)] * 100
    histories = Histories.from_rows([rows[:30], rows, rows * 2, [(1, 1e6)], [(1, 1e-6), (2, 1e6)]])
    found = fold_in(items, histories)
    assert errors(found, fold_in_reference(items, histories)).max() <= MIXED


def test_strengths_that_overflow_float32_when_squared_are_solved_in_float64() -> None:
    items = model(IMPLICIT, rank=8)
    histories = Histories.from_rows([[(i, 1e30) for i in range(m)] for m in (1, 8, 25, 70)])
    found = fold_in(items, histories)
    # All confidence on one item means that its preference of 1 is met.
    assert items.factors[0] @ found[0] == pytest.approx(1.0, abs=1e-6)
    spanning = users_of(histories, [1, 2, 3])
    assert errors(found[1:], fold_in_reference(items, spanning)).max() <= MIXED


@BOTH
def test_users_without_a_row_that_counts_get_zeros(objective: Objective) -> None:
    histories = Histories.from_rows([[], [(-1, 3.0), (-1, 1.0)], [(0, 0.0), (1, 0.0)], [(1, 1.0)]])
    found = fold_in(model(objective), histories)
    assert not found[:3].any()
    assert found[3].any()


def test_only_negative_strengths_give_zeros_in_implicit_mode() -> None:
    histories = Histories.from_rows([[(0, -1.0), (5, -4.0)]])
    assert not fold_in(model(IMPLICIT), histories).any()


def test_only_negative_ratings_count_in_explicit_mode() -> None:
    histories = Histories.from_rows([[(0, -1.0)], [(0, 1.0)]])
    found = fold_in(model(EXPLICIT), histories)
    np.testing.assert_allclose(found[0], -found[1])
    assert found[0].any()


def test_unknown_items_and_in_implicit_mode_zeros_change_nothing() -> None:
    plain = Histories.from_rows([[(3, 2.0), (4, 1.0)]])
    padded = Histories.from_rows([[(-1, 9.0), (3, 2.0), (7, 0.0), (4, 1.0), (-1, -2.0)]])
    np.testing.assert_allclose(fold_in(model(IMPLICIT), padded), fold_in(model(IMPLICIT), plain), rtol=1e-6)


def test_a_rating_of_zero_is_a_rating() -> None:
    items = model(EXPLICIT)
    with_zero = Histories.from_rows([[(3, 2.0), (7, 0.0)]])
    without = Histories.from_rows([[(3, 2.0)]])
    assert errors(fold_in(items, with_zero), fold_in_reference(items, with_zero)).max() <= MIXED
    assert errors(fold_in(items, with_zero), fold_in(items, without)).max() > 0.01


def test_duplicate_rows_count_each_as_in_mllib() -> None:
    items = model(IMPLICIT)
    twice = fold_in(items, Histories.from_rows([[(3, 1.0), (3, 1.0)]]))
    wanted = fold_in_reference(items, Histories.from_rows([[(3, 1.0), (3, 1.0)]]))
    assert errors(twice, wanted).max() <= MIXED
    merged = fold_in(items, Histories.from_rows([[(3, 2.0)]]))
    assert errors(twice, merged).max() > 0.01  # two rows are regularised twice, and 1 + 1 counts 2


@BOTH
@pytest.mark.parametrize("n", [8, 9, 4000])
def test_as_many_events_as_factors_and_far_more(objective: Objective, n: int) -> None:
    items = model(objective, rank=8)
    histories = random_histories([n, n, 3], seed=n)
    found = fold_in(items, histories)
    assert errors(found, fold_in_reference(items, histories)).max() <= MIXED


@BOTH
def test_items_with_zero_factors_add_only_regularisation(objective: Objective) -> None:
    y = np.random.default_rng(0).normal(size=(50, 8))
    y[7] = 0.0
    items = prepare(y, objective, model_version="m")
    histories = Histories.from_rows([[(7, 3.0)], [(7, 3.0), (8, 2.0)]])
    found = fold_in(items, histories)
    assert not found[0].any()
    assert errors(found, fold_in_reference(items, histories)).max() <= MIXED


def test_alpha_zero_leaves_preference_without_confidence() -> None:
    items = model(Objective(0.1, alpha=0.0))
    histories = random_histories([1, 5, 30, 90])
    assert errors(fold_in(items, histories), fold_in_reference(items, histories)).max() <= MIXED


@pytest.mark.parametrize("nonnegative", [False, True])
def test_a_system_without_regularisation_names_the_user_and_the_cause(nonnegative: bool) -> None:
    items = model(Objective(0.0, implicit_prefs=False, nonnegative=nonnegative), rank=8)
    enough = [(i, 1.0 + i) for i in range(30)]
    histories = Histories.from_rows([enough, [(1, 1.0), (2, 1.0)]])
    with pytest.raises(SingularSystemError, match=r"user 'bea'.*regParam 0\.0"):
        fold_in(items, histories, user_ids=["abe", "bea"])
    with pytest.raises(SingularSystemError, match=r"user 'bea'.*regParam 0\.0"):
        fold_in_reference(items, histories, user_ids=["abe", "bea"])


def test_a_history_that_spans_all_factors_needs_no_regularisation() -> None:
    items = model(Objective(0.0, implicit_prefs=False), rank=8)
    histories = random_histories([40, 90])
    assert errors(fold_in(items, histories), fold_in_reference(items, histories)).max() <= MIXED


def test_an_implicit_model_with_a_dead_factor_and_no_regularisation_is_singular() -> None:
    y = np.random.default_rng(0).normal(size=(50, 4))
    y[:, 2] = 0.0
    items = prepare(y, Objective(0.0), model_version="m")
    with pytest.raises(SingularSystemError, match="the user at position 1"):
        fold_in(items, Histories.from_rows([[], [(1, 1.0)]]))
    regular = prepare(y, Objective(0.1), model_version="m")
    found = fold_in(regular, Histories.from_rows([[], [(1, 1.0)]]))
    assert found[1, [0, 1, 3]].all()
    assert found[1, 2] == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e39])
def test_strengths_that_are_not_finite_are_refused_with_the_place(bad: float) -> None:
    histories = Histories.from_rows([[(0, 1.0)], [(1, 1.0), (2, bad)]])
    with pytest.raises(InvalidInputError, match=r"user 'bea': strengths\[2\] is .*(nan|inf)"):
        fold_in(model(IMPLICIT), histories, user_ids=["abe", "bea"])


@pytest.mark.parametrize("bad", [-2, 200])
def test_items_that_the_model_does_not_have_are_refused_with_the_place(bad: int) -> None:
    histories = Histories.from_rows([[], [(bad, 1.0)]])
    with pytest.raises(InvalidInputError, match=rf"position 1: indices\[0\] is {bad}"):
        fold_in(model(IMPLICIT), histories)


def test_user_ids_of_another_length_and_unknown_precisions_are_refused() -> None:
    histories = Histories.from_rows([[(1, 1.0)]])
    with pytest.raises(InvalidInputError, match="2 user_ids for 1 users"):
        fold_in(model(IMPLICIT), histories, user_ids=["a", "b"])
    with pytest.raises(InvalidInputError, match="'half'"):
        fold_in(model(IMPLICIT), histories, precision="half")


def test_no_users_give_no_factors() -> None:
    assert fold_in(model(IMPLICIT), Histories.from_rows([])).shape == (0, 8)


@pytest.mark.parametrize("alike", [False, True], ids=["lognormal", "all of length 24"])
def test_a_user_of_100000_events_beside_10000_small_ones_stays_below_256_mb(alike: bool) -> None:
    items = model(IMPLICIT, rank=256, n_items=2000)
    assert items.rotated.shape == (2000, 256)  # made before, once a model
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(2.7, 1.0, 10_000), 1, 1000).astype(int)
    if alike:
        lengths[:] = 24
    histories = random_histories([100_000, *lengths.tolist()], n_items=2000)
    tracemalloc.start()
    try:
        fold_in(items, histories)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 256 << 20
