"""Top-N against a full sort; factors are small integers, so that scores are exact and tie."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foldin.errors import InvalidInputError
from foldin.kernels import ItemFactors, Objective, TopN, prepare, top_n, top_n_reference

# Scores of one user with factor 1: 3, 1, 3, 0, 2.
ITEMS = prepare(np.array([[3.0], [1.0], [3.0], [0.0], [2.0]]), Objective(0.1), model_version="m")
ONE = np.ones((1, 1), np.float32)


def seen(*users: list[int]) -> tuple[np.ndarray, np.ndarray]:
    indptr = np.concatenate(([0], np.cumsum([len(items) for items in users])))
    return indptr, np.array([item for items in users for item in items], dtype=np.int32)


def assert_same(found: TopN, wanted: TopN) -> None:
    np.testing.assert_array_equal(found.indices, wanted.indices)
    np.testing.assert_array_equal(found.scores, wanted.scores)
    assert found.indices.dtype == np.int32
    assert found.scores.dtype == np.float32


@settings(max_examples=150, deadline=None)
@given(
    n_items=st.integers(1, 60),
    n_users=st.integers(0, 5),
    n=st.integers(1, 70),
    tile_bytes=st.sampled_from([1, 64, 500, 1 << 20]),
    seed=st.integers(0, 2**32 - 1),
)
def test_it_equals_a_full_sort(n_items: int, n_users: int, n: int, tile_bytes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    items = prepare(rng.integers(-2, 3, (n_items, 3)), Objective(0.1), model_version="m")
    users = rng.integers(-2, 3, (n_users, 3)).astype(np.float32)
    lengths = rng.integers(0, n_items + 5, n_users)
    history = (
        np.concatenate(([0], np.cumsum(lengths))),
        rng.integers(-1, n_items, lengths.sum()).astype(np.int32),
    )
    deny = rng.integers(-1, n_items, rng.integers(0, 5))
    found = top_n(items, users, n, seen=history, deny=deny, tile_bytes=tile_bytes)
    assert_same(found, top_n_reference(items, users, n, seen=history, deny=deny))


def many_items() -> tuple[ItemFactors, np.ndarray]:
    rng = np.random.default_rng(1)
    items = prepare(rng.integers(-3, 4, (9000, 4)), Objective(0.1), model_version="m")
    return items, rng.integers(-3, 4, (300, 4)).astype(np.float32)


@pytest.mark.parametrize("n", [1, 10, 5000])
def test_it_equals_a_full_sort_over_many_tiles_of_users_and_items(n: int) -> None:
    items, users = many_items()
    assert_same(top_n(items, users, n), top_n_reference(items, users, n))


@pytest.mark.parametrize("ranker", [top_n, top_n_reference])
class TestBoth:
    def test_the_best_come_first_and_of_equals_the_lower_index(self, ranker: object) -> None:
        found = ranker(ITEMS, ONE, 4)
        assert found.indices.tolist() == [[0, 2, 4, 1]]
        assert found.scores.tolist() == [[3.0, 3.0, 2.0, 1.0]]

    def test_seen_and_denied_items_make_room_for_others(self, ranker: object) -> None:
        found = ranker(ITEMS, ONE, 2, seen=seen([4, 0, -1, 0]), deny=[2, 2, -1])
        assert found.indices.tolist() == [[1, 3]]

    def test_each_user_has_seen_only_the_own_items(self, ranker: object) -> None:
        found = ranker(ITEMS, np.ones((3, 1)), 1, seen=seen([0], [], [0, 2]))
        assert found.indices.tolist() == [[2], [0], [4]]

    def test_places_without_candidates_hold_minus_one_and_minus_infinity(self, ranker: object) -> None:
        found = ranker(ITEMS, ONE, 7, seen=seen([1, 2, 4]))
        assert found.indices.tolist() == [[0, 3, -1, -1, -1, -1, -1]]
        assert found.scores.tolist() == [[3.0, 0.0] + [-np.inf] * 5]

    def test_who_has_seen_everything_gets_nothing(self, ranker: object) -> None:
        found = ranker(ITEMS, ONE, 2, seen=seen([0, 1, 2, 3, 4]))
        assert found.indices.tolist() == [[-1, -1]]

    def test_a_user_with_zero_factors_gets_the_first_items(self, ranker: object) -> None:
        assert ranker(ITEMS, np.zeros((1, 1)), 3).indices.tolist() == [[0, 1, 2]]

    def test_a_wrong_input_is_refused_with_its_place(self, ranker: object) -> None:
        with pytest.raises(InvalidInputError, match="n must be at least 1"):
            ranker(ITEMS, ONE, 0)
        with pytest.raises(InvalidInputError, match=r"\(n_users, 1\)"):
            ranker(ITEMS, np.ones((1, 2)), 1)
        with pytest.raises(InvalidInputError, match=r"user_factors\[1, 0\] is nan"):
            ranker(ITEMS, np.array([[1.0], [np.nan]]), 1)
        with pytest.raises(InvalidInputError, match="seen: 5 at position 1"):
            ranker(ITEMS, ONE, 1, seen=seen([1, 5]))
        with pytest.raises(InvalidInputError, match="deny: 7"):
            ranker(ITEMS, ONE, 1, deny=[7])
        with pytest.raises(InvalidInputError, match="3 offsets for 1 users"):
            ranker(ITEMS, ONE, 1, seen=seen([1], [2]))
