"""Strengths: against a plain loop, and the properties that make a history a pure function of its events."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foldin.kernels.strengths import user_items

DAY = 86_400_000_000
WEIGHTS = np.array([1.0, 5.0, -1.0, 0.0])

event_rows = st.lists(
    st.tuples(
        st.integers(0, 3),  # user
        st.integers(0, 5),  # day: few, so that times tie
        st.integers(-3, 3),  # item
        st.integers(0, 3),  # type
        st.sampled_from([1.0, 0.5, 4.0, -2.0]),
    ),
    max_size=40,
)


def strengths(rows, **options):
    """{(user, item): strength} for (user, time, event, item, type, value) rows."""
    columns = [np.array([row[k] for row in rows], dtype=np.float64) for k in range(6)]
    user, time, event, item, kind = (column.astype(np.int64) for column in columns[:5])
    defaults = {
        "half_life_us": math.inf,
        "oldest_us": None,
        "max_events": 256,
        "log1p": False,
        "explicit": False,
        "weights": WEIGHTS,
    }
    found = user_items(
        user=user,
        n_users=4,
        time=time,
        event=event,
        item=item,
        type=kind,
        value=columns[5],
        **{**defaults, **options},
    )
    assert found.strength.dtype == np.float32
    keys = list(zip(found.user.tolist(), found.item.tolist(), strict=True))
    assert keys == sorted(set(keys))
    return dict(zip(keys, found.strength.tolist(), strict=True)), found.events.tolist()


def plain(rows, *, half_life_us, oldest_us, max_events, log1p, explicit):
    """The definition of DESIGN in a loop, a user at a time."""
    result, counts = {}, []
    for user in range(4):
        mine = sorted((r for r in rows if r[0] == user), key=lambda r: (r[1], r[2]))
        if oldest_us is not None:
            mine = [r for r in mine if r[1] >= oldest_us]
        mine = mine[-max_events:]
        counts.append(len(mine))
        sums = {}
        for _, time, _, item, kind, value in mine:
            if WEIGHTS[kind] == 0:
                continue
            if explicit:
                sums[item] = value
            else:
                decay = 2.0 ** (-(mine[-1][1] - time) / half_life_us)
                sums[item] = sums.get(item, 0.0) + WEIGHTS[kind] * value * decay
        for item, total in sums.items():
            f = math.copysign(math.log1p(abs(total)), total) if log1p and not explicit else total
            if explicit or np.float32(f) != 0:
                result[user, item] = float(np.float32(f))
    return result, counts


@settings(max_examples=200, deadline=None)
@given(
    rows=event_rows,
    half_life=st.sampled_from([math.inf, 2.0, 0.5]),
    oldest=st.sampled_from([None, 2]),
    bound=st.integers(1, 6),
    log1p=st.booleans(),
    explicit=st.booleans(),
    order=st.randoms(use_true_random=False),
)
def test_strengths_equal_the_plain_definition_in_any_order(rows, half_life, oldest, bound, log1p, explicit, order):
    events = [(u, d * DAY, e * 7919 % 101, i, t, v) for e, (u, d, i, t, v) in enumerate(rows)]
    options = {
        "half_life_us": half_life * DAY,
        "oldest_us": None if oldest is None else oldest * DAY,
        "max_events": bound,
        "log1p": log1p,
        "explicit": explicit,
    }
    expected, counts = plain(events, **options)
    shuffled = list(events)
    order.shuffle(shuffled)
    for given_rows in (events, shuffled):
        found, lengths = strengths(given_rows, **options)
        assert found.keys() == expected.keys()
        assert lengths == counts
        for key, value in expected.items():
            assert found[key] == pytest.approx(value, rel=2e-7)


def test_a_purchase_and_its_cancellation_leave_nothing():
    found, events = strengths([(0, 0, 1, 7, 0, 1.0), (0, DAY, 2, 7, 2, 1.0)])
    assert found == {}
    assert events[0] == 2


def test_decay_counts_from_the_users_own_latest_event_even_if_it_has_no_weight():
    rows = [(0, 0, 1, 7, 0, 1.0), (0, 4 * DAY, 2, 8, 3, 1.0), (1, 0, 3, 7, 0, 1.0)]
    found, _ = strengths(rows, half_life_us=2.0 * DAY)
    assert found == {(0, 7): 0.25, (1, 7): 1.0}


def test_the_bound_keeps_the_most_recent_and_breaks_ties_by_the_events_hash():
    rows = [(0, DAY, 5, 1, 0, 1.0), (0, DAY, 9, 2, 0, 1.0), (0, DAY, 7, 3, 0, 1.0)]
    found, events = strengths(rows, max_events=2)
    assert set(found) == {(0, 2), (0, 3)}
    assert events[0] == 2


def test_in_explicit_mode_the_last_rating_counts_and_a_zero_rating_stays():
    rows = [(0, DAY, 1, 7, 0, 4.0), (0, 2 * DAY, 2, 7, 0, 0.0), (0, 2 * DAY, 1, 8, 0, 3.0)]
    found, _ = strengths(rows, explicit=True)
    assert found == {(0, 7): 0.0, (0, 8): 3.0}


def test_no_events_give_no_strengths():
    assert strengths([]) == ({}, [0, 0, 0, 0])
