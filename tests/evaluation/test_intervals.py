"""Intervals on data whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from foldin.errors import InvalidInputError
from foldin.evaluation import intervals
from foldin.evaluation.intervals import Bootstrap, Interval

RANDOM = np.random.default_rng(7)


def width(interval: Interval) -> float:
    return interval.high - interval.low


def test_a_mean_is_over_rows_not_over_users():
    users = np.array([0, 0, 0, *range(1, 12)])
    values = np.array([1, 1, 1, *[0] * 11])
    found = Bootstrap(users).mean(values)
    assert found.value == pytest.approx(3 / 14)
    assert found.low == 0  # the one user with hits is missing from a third of the resamples
    assert found.high > 3 / 14


def test_the_width_is_that_of_the_binomial_where_each_user_has_one_row():
    values = np.repeat([0.0, 1.0], 200)
    found = Bootstrap(np.arange(400)).mean(values)
    expected = 1.96 * math.sqrt(0.25 / 400)
    assert (found.value - found.low, found.high - found.value) == (
        pytest.approx(expected, rel=0.1),
        pytest.approx(expected, rel=0.1),
    )


def test_it_covers_the_truth_about_as_often_as_it_says():
    covered = 0
    for seed in range(200):
        random = np.random.default_rng(seed)
        taste = random.beta(2, 6, 60)  # mean 0.25
        users = np.repeat(np.arange(60), 8)
        found = Bootstrap(users, seed=seed, resamples=300).mean(random.uniform(size=480) < taste[users])
        covered += found.low <= 0.25 <= found.high
    assert 176 <= covered <= 199


def test_events_of_the_same_user_widen_it():
    values = np.repeat(RANDOM.integers(0, 2, 40), 10).astype(float)
    clustered = Bootstrap(np.repeat(np.arange(40), 10)).mean(values)
    as_if_apart = Bootstrap(np.arange(400)).mean(values)
    assert width(clustered) > 2.5 * width(as_if_apart)


def test_a_paired_difference_is_narrower_than_two_means():
    users = np.repeat(np.arange(100), 4)
    a = (RANDOM.uniform(size=400) < 0.4).astype(float)
    b = a.copy()
    b[::40] = 0  # b has nearly the hits of a
    bootstrap = Bootstrap(users)
    unpaired = math.hypot(width(bootstrap.mean(a)), width(bootstrap.mean(b)))
    assert width(bootstrap.difference(a, b)) < unpaired / 2


def test_of_two_that_are_the_same_the_difference_is_exactly_zero():
    a = RANDOM.uniform(size=50)
    found = Bootstrap(np.arange(50)).difference(a, a)
    assert found == Interval(0, 0, 0)
    assert not found.excludes_zero


def test_a_share_of_a_gap_has_the_known_value_and_an_interval_around_it():
    stale, oracle = np.zeros(400), np.ones(400)
    foldin = np.tile([1.0, 1.0, 1.0, 0.0], 100)
    found = Bootstrap(np.arange(400)).ratio_of_differences(foldin, stale, oracle, stale)
    assert found.value == pytest.approx(0.75)
    assert found.low == pytest.approx(0.75 - 1.96 * math.sqrt(0.75 * 0.25 / 400), abs=0.01)


def test_only_the_asked_rows_count():
    users = np.tile(np.arange(20), 2)
    values = np.repeat([1.0, 0.0], 20)
    where = np.repeat([True, False], 20)
    assert Bootstrap(users).mean(values, where) == Interval(1, 1, 1)


def test_users_elsewhere_do_not_make_up_for_few_users_here():
    where = np.arange(100) < 9
    found = Bootstrap(np.arange(100)).mean(np.ones(100), where)
    assert found.value == 1
    assert not found.known
    assert Bootstrap(np.arange(100)).mean(np.ones(100), np.arange(100) < 10).known


@pytest.mark.parametrize("users", [np.zeros(0, dtype=np.int64), np.zeros(30, dtype=np.int64)])
def test_without_rows_or_with_one_user_there_are_no_bounds(users):
    found = Bootstrap(users).mean(np.ones(len(users)))
    assert not found.known
    assert not found.excludes_zero
    assert math.isnan(found.value) == (len(users) == 0)


def test_the_same_seed_gives_the_same_interval_and_another_gives_another():
    values = RANDOM.uniform(size=60)
    one, two, other = (Bootstrap(np.arange(60), seed=seed).mean(values) for seed in (1, 1, 2))
    assert one == two
    assert one != other


def test_blocks_and_forgotten_weights_change_nothing(monkeypatch):
    values = RANDOM.uniform(size=60)
    whole = Bootstrap(np.arange(60))
    expected = whole.mean(values)
    assert whole.mean(values) == expected  # from the weights that were kept
    monkeypatch.setattr(intervals, "_HELD", 0)
    forgetful = Bootstrap(np.arange(60))
    assert (forgetful.mean(values), forgetful.mean(values)) == (expected, expected)
    monkeypatch.setattr(intervals, "_BLOCK", 60 * 7)
    assert Bootstrap(np.arange(60)).mean(values).low == pytest.approx(expected.low)


def test_an_interval_excludes_zero_on_either_side_only():
    assert Interval(1, 0.5, 2).excludes_zero
    assert Interval(-1, -2, -0.5).excludes_zero
    assert not Interval(1, 0, 2).excludes_zero
    assert not Interval(1, math.nan, math.nan).excludes_zero


def test_it_is_written_with_its_bounds_or_says_that_there_are_none():
    assert Interval(0.123, 0.1, 0.15).percent == "12.3% (10.0 to 15.0)"
    assert Interval(0.0123, -0.01, 0.02).points == "+1.23 points (-1.00 to +2.00)"
    assert Interval(0.5, math.nan, math.nan).percent == "50.0% (too few users for an interval)"
    assert Interval(math.nan, math.nan, math.nan).points == "–"


def test_users_that_are_no_codes_are_refused():
    with pytest.raises(InvalidInputError, match="1D"):
        Bootstrap(np.zeros((2, 2), dtype=np.int64))
