"""Oryx's formulas with numbers that can be worked out on paper."""

from __future__ import annotations

import numpy as np
import pytest

from foldin.evaluation.additive import AdditiveModel, target


@pytest.mark.parametrize(
    ("value", "current", "wanted"),
    [
        (1.0, 0.0, 0.5),  # half of what is missing to 1
        (3.0, 0.5, 0.875),
        (1.0, -2.0, -1.5),  # below 0 as much is missing as at 0
        (-1.0, 1.0, 0.5),
        (-3.0, 0.5, 0.125),
        (-1.0, 4.0, 3.5),
    ],
)
def test_an_event_moves_the_estimate_by_a_share_of_what_is_missing(value, current, wanted):
    assert target(value, current) == pytest.approx(wanted)


@pytest.mark.parametrize(("value", "current"), [(1.0, 1.0), (2.0, 1.5), (-1.0, 0.0), (-1.0, -0.5), (0.0, 0.5)])
def test_what_is_certain_already_is_not_moved(value, current):
    assert np.isnan(target(value, current))


def test_with_one_item_the_estimate_becomes_the_target():
    model = AdditiveModel(np.array([[0.2, 0.0]]), np.array([[1.0, 0.0]]))
    model.add(0, 0, 1.0)
    # x·y goes from 0.2 to 0.2 + 0.5 · 0.8 = 0.6; the item moves too, from the user's vector as it was:
    # YᵀY of users is 0.04, so y becomes 1 + 0.2 · 0.4 / 0.04 = 3.
    assert model.users[0].tolist() == pytest.approx([0.6, 0.0])
    assert model.items[0].tolist() == pytest.approx([3.0, 0.0])


def test_what_was_moved_counts_when_the_next_batch_is_solved():
    model = AdditiveModel(np.array([[1.0]]), np.array([[1.0], [0.0]]))
    model.add(0, 1, 1.0)  # the new item gets 0.75, so the squares of all items sum to 1.5625
    model.refresh()
    model.add(0, 1, 1.0)
    # From 0.75 half of the way to 1, by 0.125; over the items' Gramian of now, not that of the start.
    assert model.users[0, 0] == pytest.approx(1 + 0.75 * 0.125 / 1.5625)


def test_a_newcomer_starts_from_dont_know():
    model = AdditiveModel(np.array([[0.0], [1.0]]), np.array([[2.0]]))
    model.add(0, 0, 1.0)
    # From 0.5 towards 1 by half: 0.75, by a vector that was 0: x = 0 + 2 · 0.75 / 4.
    assert model.users[0, 0] == pytest.approx(0.375)
    assert model.has_user.tolist() == [True, True]
    assert model.items[0, 0] == 2.0  # a user without a vector says nothing of an item


def test_a_new_item_gets_a_vector_from_a_known_user_and_two_strangers_get_none():
    model = AdditiveModel(np.array([[2.0], [0.0]]), np.array([[1.0], [0.0], [0.0]]))
    model.add(0, 1, 1.0)
    assert model.items[1, 0] == pytest.approx(2 * 0.75 / 4)
    assert model.users[0, 0] == 2.0
    model.add(1, 2, 1.0)
    assert model.has_user.tolist() == [True, False]
    assert model.has_item.tolist() == [True, True, False]
