"""Intervals over users: paired, and as wide as they should be."""

from __future__ import annotations

import numpy as np
import pytest

from foldin.evaluation.intervals import Resamples


def test_the_interval_holds_the_truth_as_often_as_it_says():
    held = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        user = rng.integers(0, 60, 600)
        values = rng.normal(1.0, 1.0, 600) + rng.normal(0, 0.5, 60)[user]
        found = Resamples(user, draws=200, seed=seed).mean(values)
        held += found.low <= 1.0 <= found.high
    assert 0.88 <= held / 200 <= 0.99


def test_events_of_one_user_do_not_count_as_many_witnesses():
    rng = np.random.default_rng(0)
    values = np.repeat(rng.normal(size=20), 100)
    few = Resamples(np.repeat(np.arange(20), 100)).mean(values)
    many = Resamples(np.arange(2000)).mean(values)
    assert few.high - few.low > 5 * (many.high - many.low)


def test_a_difference_is_paired():
    rng = np.random.default_rng(1)
    user = rng.integers(0, 50, 1000)
    a = rng.normal(size=1000)
    found = Resamples(user).difference(a + 0.01, a)
    assert found.mean == pytest.approx(0.01)
    assert found.high - found.low < 1e-9
    assert found.excludes_zero


def test_only_what_counts_is_averaged_and_nothing_gives_nan():
    found = Resamples(np.array([0, 0, 1])).mean(np.array([1.0, 3.0, 100.0]), np.array([True, True, False]))
    assert found.mean == 2.0
    assert np.isnan(Resamples(np.array([0])).mean(np.array([1.0]), np.array([False])).mean)


def test_the_share_of_a_gap():
    low, high = np.zeros(100), np.ones(100)
    found = Resamples(np.arange(100)).share_of_gap(low, np.full(100, 0.9), high)
    assert found.mean == pytest.approx(0.9)
    assert (found.low, found.high) == (pytest.approx(0.9), pytest.approx(0.9))
