"""The replay tests before it folds, counts every event, and catches who peeks."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foldin.errors import FoldinError
from foldin.evaluation.contenders import Additive, Folded, Popularity, Served
from foldin.evaluation.log import EventLog, Past
from foldin.evaluation.replay import LeakError, assert_no_peeking, observe, steps_of
from foldin.histories import HistoryDefinition
from foldin.kernels import Objective, prepare
from foldin.registry import Model
from foldin.schemas import Position

DEFINITION = HistoryDefinition(("view", "buy"), (0.0, 1.0), 50, float("inf"), float("inf"), "identity", False)
POSITIVE = np.array([False, True])


def log_of(*rows: tuple[int, int, int]) -> EventLog:
    """(user, item, time) of purchases, in order of time."""
    user, item, time = (np.array(column, dtype=np.int64) for column in zip(*rows, strict=True))
    names = pa.array([f"u{n}" for n in range(int(user.max()) + 1)])
    ones = np.ones(len(rows), dtype=np.int8)
    return EventLog(names, user, time, np.arange(len(rows)), item, ones, np.full(len(rows), np.nan))


def random_log(events: int = 300, users: int = 12, items: int = 20, seed: int = 1) -> EventLog:
    rng = np.random.default_rng(seed)
    return log_of(*zip(rng.integers(0, users, events), rng.integers(0, items, events), range(events), strict=True))


def model_of(items: int = 20, rank: int = 4, seed: int = 0) -> Model:
    rng = np.random.default_rng(seed)
    factors = prepare(rng.normal(size=(items, rank)).astype(np.float32), Objective(0.1, 5.0), model_version="m")
    return Model(
        factors,
        pa.array([f"i{n}" for n in range(items)]),
        np.arange(items),
        np.arange(items, 0, -1).astype(np.float32),
        DEFINITION,
        0,
        Position(0),
    )


def served_of(past: Past, model: Model) -> Served:
    return Served(0, model, past.met, past.counts.copy(), 1.0)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=40), st.integers(0, 40))
@settings(deadline=None)
def test_a_users_past_is_what_was_met_in_order_of_time(pairs, upto):
    log = log_of(*((user, item, at) for at, (user, item) in enumerate(pairs)))
    past = Past(log)
    upto = min(upto, len(log))
    past.meet(upto // 2)
    past.meet(upto)
    users = np.arange(len(log.user_ids))
    indptr, rows = past.rows_of(users)
    for user in users:
        expected = [n for n in range(upto) if pairs[n][0] == user]
        assert rows[indptr[user] : indptr[user + 1]].tolist() == expected
    batch = past.histories(users)
    assert batch.column("seen").to_pylist() == [[pairs[n][1] for n in range(upto) if pairs[n][0] == u] for u in users]
    assert [len(h) for h in batch.column("history").to_pylist()] == past.counts.tolist()
    with pytest.raises(FoldinError, match="cannot go back"):
        past.meet(-1)


def test_steps_cover_all_events_once():
    log = log_of(*((0, n, at) for n, at in enumerate([0, 1, 2, 10, 11, 30])))
    assert steps_of(log, 0, 6, events=4) == [(0, 4), (4, 6)]
    assert steps_of(log, 0, 6, span_us=10) == [(0, 3), (3, 5), (5, 6)]
    assert steps_of(log, 2, 6, span_us=10) == [(2, 5), (5, 6)]


class Fixed:
    """Shows everybody the same list, and remembers what had been met when it was asked."""

    seconds = 0.0

    def __init__(self, name: str, shown: list[int], past: Past) -> None:
        self.name, self.shown, self.past, self.asked = name, shown, past, []

    def lists(self, users):
        self.asked.append(self.past.met)
        return np.tile(np.array(self.shown), (len(users), 1))

    def meet(self, start, end):
        assert self.past.met == end


def test_every_event_is_an_observation_tested_before_it_is_met():
    log = log_of((0, 1, 0), (0, 2, 1), (1, 3, 2), (0, 1, 3), (2, 9, 4), (2, 9, 5))
    past = Past(log)
    past.meet(1)
    contender = Fixed("fixed", [2, 3, -1], past)
    found = observe(past, [contender], steps_of(log, 1, 6, events=2), positive=POSITIVE)
    # Row 3 is an item that the user had; row 5 one that came in the same step. The unknown item 9 is a miss.
    assert found.row.tolist() == [1, 2, 4]
    assert found.places["fixed"].tolist() == [1, 2, 0]
    assert contender.asked == [1, 3, 5][: len(contender.asked)]
    assert found.shown["fixed"] == {2: 3, 3: 3}
    past = Past(log)
    past.meet(1)
    again = observe(past, [Fixed("fixed", [1], past)], steps_of(log, 1, 6, events=2), positive=POSITIVE, repeats=True)
    assert again.row.tolist() == [1, 2, 3, 4, 5]
    assert again.places["fixed"].tolist() == [0, 0, 1, 0, 0]


def test_what_is_not_worth_recommending_is_no_observation():
    log = log_of((0, 1, 0), (0, 2, 1))
    log.type[:] = 0
    found = observe(Past(log), [], steps_of(log, 0, 2, events=1), positive=POSITIVE)
    assert found.row.tolist() == []


def contenders_of(past: Past, model: Model, repeats: bool = False):
    served = served_of(past, model)
    weights = np.array(DEFINITION.weights)
    return [
        Folded("stale", past, [served], 5, frozen=True, repeats=repeats),
        Folded("foldin", past, [served], 5, repeats=repeats),
        Additive("additive", past, served, 5, repeats=repeats),
        Popularity("popular", past, weights, 5, repeats=repeats),
        Popularity("recent", past, weights, 5, window_us=20, repeats=repeats),
    ]


@pytest.mark.parametrize("repeats", [False, True])
def test_lists_have_no_item_twice_and_none_that_the_user_had(repeats):
    log = random_log()
    past = Past(log)
    past.meet(150)
    for contender in contenders_of(past, model_of(), repeats):
        past_seen = [set(log.item[:150][log.user[:150] == user].tolist()) for user in range(12)]
        for user, shown in enumerate(contender.lists(np.arange(12)).tolist()):
            items = [item for item in shown if item != -1]
            assert len(items) == len(set(items)), contender.name
            if not repeats:
                assert not past_seen[user] & set(items), contender.name


def test_the_stale_model_learns_nothing_and_fold_in_is_the_production_fold():
    log, model = random_log(), model_of()
    past = Past(log)
    past.meet(100)
    stale, folded, *_ = contenders_of(past, model, repeats=True)
    users = np.arange(12)
    before = stale.lists(users)
    assert np.array_equal(before, folded.lists(users))  # nothing has come since the cut
    past.meet(300)
    folded.meet(100, 300)
    assert np.array_equal(before, stale.lists(users))
    assert not np.array_equal(before, folded.lists(users))
    fresh = Past(log)
    fresh.meet(300)
    assert np.array_equal(
        folded.lists(users), Folded("x", fresh, [served_of(fresh, model)], 5, repeats=True).lists(users)
    )
    assert folded.seconds > 0


def test_the_newest_model_that_serves_is_taken():
    log = random_log()
    past = Past(log)
    past.meet(100)
    old, new = model_of(seed=0), model_of(seed=5)
    models = [Served(0, old, 100, past.counts.copy(), 0), Served(200, new, 200, past.counts.copy(), 0)]
    both = Folded("both", past, models, 5)
    users = np.arange(12)
    assert np.array_equal(both.lists(users), Folded("old", past, models[:1], 5).lists(users))
    past.meet(200)
    assert np.array_equal(both.lists(users), Folded("new", past, models[1:], 5).lists(users))


def test_recent_popularity_forgets_and_all_time_popularity_does_not():
    log = log_of((0, 1, 0), (1, 1, 1), (2, 2, 100), (3, 3, 101), (4, 3, 102))
    past = Past(log)
    always = Popularity("always", past, np.array([0.0, 1.0]), 2)
    recent = Popularity("recent", past, np.array([0.0, 1.0]), 2, window_us=50)
    for upto in (2, 5):
        past.meet(upto)
        always.meet(0, upto)
        recent.meet(0, upto)
    newcomer = np.array([5]) if len(log.user_ids) > 5 else np.array([0])
    assert recent.lists(newcomer).tolist() == [[3, 2]]
    assert Popularity("repeats", past, np.array([0.0, 1.0]), 3, repeats=True).lists(newcomer).tolist() == [[1, 3, 2]]


def test_additive_takes_the_step_of_oryx():
    model = model_of()
    log = log_of((0, 3, 0), (0, 4, 1))
    past = Past(log)
    contender = Additive("additive", past, served_of(past, model), 5)
    past.meet(1)
    contender.meet(0, 1)
    y = model.items.factors[3].astype(np.float64)
    # Nothing was known of the user: x = 0, q = 0, and strength 1 pulls half of the way to 1.
    expected = np.linalg.solve(model.items.gramian, y * 0.5)
    assert contender._vectors[0] == pytest.approx(expected)


class Peeks(Popularity):
    def lists(self, users):
        met = self.past.met
        self._counts[self._number[met : met + 50]] += 100
        return super().lists(users)


def test_a_planted_leak_is_caught_and_nobody_else_is_accused():
    log, model, users = random_log(), model_of(), np.arange(12)

    def peeks(past):
        return Peeks("peeks", past, np.array([0.0, 1.0]), 5)

    with pytest.raises(LeakError, match=r"peeks peeks: .* of 12 lists change"):
        assert_no_peeking(log, peeks, 100, 200, users, step=10)
    for n in range(5):
        assert_no_peeking(log, lambda past, n=n: contenders_of(past, model)[n], 100, 200, users, step=10)
