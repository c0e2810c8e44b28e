from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from evaluation.log_world import MINUTE, PLAIN, log_of
from foldin.evaluation.log import EventLog, Past
from foldin.histories import items_of

USERS, ITEMS = "abc", "wxyz"
ROWS = st.lists(
    st.tuples(st.integers(0, 5), st.sampled_from(USERS), st.sampled_from(ITEMS)), min_size=1, max_size=30
).map(lambda rows: sorted(rows, key=lambda row: row[0]))


def item_names(log: EventLog, hashes: list[int]) -> list[str]:
    return [log.item_ids[hash_ - 100].as_py() for hash_ in hashes]


@given(ROWS, st.integers(0, 30))
def test_a_past_holds_the_last_events_before_its_end_and_all_that_was_seen(rows, end):
    log = log_of(*rows)
    end = min(end, len(log))
    users = np.arange(len(log.user_ids))
    batch = Past(log, end).histories(users)
    for row, user in enumerate(log.user_ids.to_pylist()):
        mine = [number for number in range(end) if rows[number][1] == user]
        assert [event["event"] for event in batch.column("history")[row].as_py()] == mine[-PLAIN.max_events :]
        seen = item_names(log, batch.column("seen")[row].as_py())
        assert sorted(seen) == sorted({rows[number][2] for number in mine})
    assert Past(log, end).counts(users).tolist() == [
        sum(row[1] == user for row in rows[:end]) for user in log.user_ids.to_pylist()
    ]


def test_the_strengths_of_a_past_are_made_by_the_production_code():
    log = log_of((0, "a", "x"), (1, "a", "y"), (2, "a", "x"), (3, "a", "x", "cancellation"), (4, "a", "y"))
    found = items_of(Past(log, 4).histories(np.array([0])).column("history"), log.definition, 0)
    # The three last events before position 4: y bought, x bought, x taken back; x says nothing any more.
    assert found.item.tolist() == [101]
    assert found.strength.tolist() == [1.0]


def test_histories_may_end_earlier_than_what_was_seen():
    log = log_of((0, "a", "x"), (1, "a", "y"), (2, "a", "z"))
    batch = Past(log, 3).histories(np.array([0]), until=1)
    assert [event["event"] for event in batch.column("history")[0].as_py()] == [0]
    assert item_names(log, batch.column("seen")[0].as_py()) == ["x", "y", "z"]


def test_where_items_may_repeat_nothing_is_left_out():
    log = log_of((0, "a", "x"), (1, "b", "y"))
    past = Past(log, 2, repeats=True)
    assert past.histories(np.array([0, 1])).column("seen").to_pylist() == [[], []]
    assert past.seen(np.array([0, 1]))[0].tolist() == [0, 0, 0]


def test_there_is_no_past_of_a_later_moment():
    log = log_of((0, "a", "x"), (1, "a", "y"), (2, "a", "z"))
    assert Past(log, 1).before(3).end == 1
    assert Past(log, 3).before_time(MINUTE).end == 1


def test_another_future_leaves_the_past_as_it_was():
    log = log_of(*[(n, USERS[n % 3], ITEMS[n % 4]) for n in range(40)])
    other = log.with_other_future(20)
    for name in ("user", "item", "type", "value"):
        assert (getattr(other, name)[:20] == getattr(log, name)[:20]).all()
        assert (getattr(other, name)[20:] != getattr(log, name)[20:]).any(), name


def test_the_first_of_a_pair_is_found_whatever_its_type():
    log = log_of((0, "a", "x", "cancellation"), (1, "a", "x"), (2, "b", "x"), (3, "a", "y"), (4, "b", "x"))
    assert log.first_of_pair.tolist() == [True, False, True, True, False]


def test_an_event_of_a_negative_strength_speaks_for_nothing():
    log = log_of((0, "a", "x"), (1, "a", "y", "cancellation"), (2, "a", "z"))
    liked = replace(log, value=np.array([1.0, 1.0, -2.0]))  # z has a rating below the middle
    assert liked.speaks_for.tolist() == [True, False, False]
    taken_back = replace(log, value=np.array([1.0, -1.0, 1.0]))
    assert taken_back.speaks_for.tolist() == [True, True, True]


def test_the_clock_of_a_log_is_its_coarsest_step():
    assert log_of((3, "a", "x"), (5, "a", "y"), (9, "b", "x")).tick_us == 2 * MINUTE
