"""Ranking metrics against their definitions, written out in plain Python."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foldin.errors import InvalidInputError
from foldin.kernels.metrics import coverage, ranking_metrics

ITEMS = 12


@st.composite
def judged(draw):
    users, k = draw(st.integers(0, 6)), draw(st.integers(1, 5))
    lists, taken = [], []
    for _ in range(users):
        shown = draw(st.lists(st.integers(0, ITEMS - 1), max_size=k, unique=True))
        lists.append(shown + [-1] * (k - len(shown)))
        taken.append(
            draw(st.lists(st.integers(0, ITEMS - 1), max_size=8, unique=True)) + [-1] * draw(st.integers(0, 3))
        )
    return np.array(lists, dtype=np.int32).reshape(users, k), taken


def by_definition(shown: list[int], taken: list[int]) -> tuple[float, float, float, float]:
    places = [place for place, item in enumerate(shown) if item != -1 and item in taken]
    gain = sum(1 / math.log2(place + 2) for place in places)
    best = sum(1 / math.log2(place + 2) for place in range(min(len(taken), len(shown))))
    return float(bool(places)), len(places) / len(taken), gain / best, 1 / (places[0] + 1) if places else 0.0


@given(judged())
def test_they_are_what_the_definitions_say(case):
    lists, taken = case
    indptr = np.concatenate(([0], np.cumsum([len(t) for t in taken]))).astype(int)
    found = ranking_metrics(lists, indptr, np.array([i for mine in taken for i in mine], dtype=int))
    for u, mine in enumerate(taken):
        row = (found.hit[u], found.recall[u], found.ndcg[u], found.reciprocal_rank[u])
        if not mine:
            assert all(math.isnan(value) for value in row)
        else:
            assert row == pytest.approx(by_definition(list(lists[u]), mine))
    assert coverage(lists, ITEMS) == len({int(i) for i in lists.ravel()} - {-1}) / ITEMS


def test_the_mean_is_over_users_who_took_something():
    found = ranking_metrics([[0, 1], [2, 3], [4, 5]], [0, 1, 1, 2], [0, 9])
    assert found.means()["hit"] == 0.5
    assert math.isnan(ranking_metrics([[0]], [0, 0], []).means()["ndcg"])


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(InvalidInputError, match="do not fit"):
        ranking_metrics([[0, 1]], [0, 1], [0, 2])
