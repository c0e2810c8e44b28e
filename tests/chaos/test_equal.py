"""The equality that chaos is judged by sees what it must see, and nothing else."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from chaos.equal import assert_same_factors, assert_same_lists, assert_same_multiset

BEST = [("a", 3.0), ("b", 2.0), ("c", 1.000004), ("d", 1.0)]


@pytest.mark.parametrize(
    "found",
    [
        BEST,
        [("a", 3.000005), ("b", 2.0), ("c", 1.0), ("d", 1.0)],
        [("a", 3.0), ("b", 2.0), ("d", 1.0), ("c", 1.0)],
        [("a", 3.0), ("b", 2.0), ("c", 1.000004), ("e", 1.000004)],
    ],
    ids=["the same", "scores within 1e-5", "a swap within 1e-5", "another item as good as the last"],
)
def test_lists_are_equal_up_to_swaps_of_equal_scores(found: list[tuple[str, float]]) -> None:
    assert_same_lists({"u": found}, {"u": BEST})


@pytest.mark.parametrize(
    "found",
    [
        BEST[:3],
        [("a", 3.0001), *BEST[1:]],
        [("b", 3.0), ("a", 2.0), *BEST[2:]],
        [("a", 3.0), ("e", 2.0), *BEST[2:]],
        [("a", 3.0), ("a", 2.0), *BEST[2:]],
    ],
    ids=["too short", "another score", "a swap of unequal scores", "another item in the middle", "an item twice"],
)
def test_lists_that_differ_are_found(found: list[tuple[str, float]]) -> None:
    with pytest.raises(AssertionError, match="lists of 1 of 1 users differ"):
        assert_same_lists({"u": found}, {"u": BEST})


def test_factors_are_equal_within_a_millionth_of_their_norm_and_users_must_be_the_same() -> None:
    wanted = {"u": np.array([3.0, 4.0]), "zero": np.zeros(2)}
    assert_same_factors({"u": np.array([3.0, 4.000004]), "zero": np.zeros(2)}, wanted)
    for found in ({"u": np.array([3.0, 4.00001])}, {"u": wanted["u"] * np.nan}, {"zero": np.array([0.0, 1e-5])}):
        with pytest.raises(AssertionError, match="factors of 1 of 2 users differ"):
            assert_same_factors(wanted | found, wanted)
    with pytest.raises(AssertionError, match="1 users are missing"):
        assert_same_factors({"u": wanted["u"]}, wanted)
    with pytest.raises(AssertionError, match="1 users are too many"):
        assert_same_factors(wanted, {"u": wanted["u"]})


def test_multisets_count() -> None:
    assert_same_multiset(Counter("aab"), Counter("aba"), "rows")
    with pytest.raises(AssertionError, match=r"rows: 1 rows are missing, such as .*'b'.*; 1 are too many.*'a'"):
        assert_same_multiset(Counter("aaa"), Counter("aab"), "rows")
