from __future__ import annotations

import numpy as np
import pytest

from evaluation.log_world import MINUTE, Told, log_of, model_of
from foldin.errors import FoldinError, LeakError
from foldin.evaluation.contenders import Additive, Folded, Popular
from foldin.evaluation.log import Past
from foldin.evaluation.replay import Steps, audit, cut_by_number, cut_by_time, judged, replay

NONE = np.zeros(0, dtype=np.int64)

LOG = log_of(
    (0, "ann", "x"),
    (1, "bob", "x"),
    (2, "bob", "y"),
    # from here on it is foretold, with a model of the three above that knows x and y
    (3, "ann", "y"),
    (3, "ann", "z"),
    (4, "cat", "x"),
    (5, "cat", "y", "cancellation"),
    (5, "cat", "y"),
    (5, "ann", "y"),
    (5, "cat", "z"),
)
START = model_of(LOG, 3, {"x": [1.0, 0.0], "y": [0.8, 0.2]})


def steps(*bounds: int) -> Steps:
    return Steps(np.array(bounds))


def test_everybody_is_asked_about_a_micro_batch_before_anybody_is_told_of_it():
    one = Told("one", lambda past, user: [])
    replay(LOG, steps(3, 5, 7, 10), [one], 2, START)
    assert one.calls == [("asked", 3), ("told", 5), ("asked", 5), ("told", 7), ("asked", 7), ("told", 10)]


def test_ranks_kinds_and_facts_are_those_of_a_count_by_hand():
    always = Told("always", lambda past, user: ["y", "z"])
    rows = replay(LOG, steps(3, 4, 6, 10), [always], 2, START).rows.to_pylist()
    # The cancellation is no taking, and after it y is not new to cat; ann's second y is not new to her.
    assert [(row["user_id"], row["item_id"]) for row in rows] == [
        ("ann", "y"), ("ann", "z"), ("cat", "x"), ("cat", "z"),
    ]  # fmt: skip
    assert [row["rank_always"] for row in rows] == [1, 2, 0, 2]
    assert [row["kind"] for row in rows] == ["known", "known", "new", "returning"]
    assert [row["history"] for row in rows] == [1, 2, 0, 1]
    assert [row["reachable"] for row in rows] == [True, False, True, False]
    # ann's z has the minute of her y, which was told in the micro-batch before.
    assert [row["same_moment"] for row in rows] == [False, True, False, False]
    assert [row["step"] for row in rows] == [0, 1, 1, 2]
    assert [row["model_age_days"] * 1440 for row in rows] == pytest.approx([1, 1, 2, 3])


def test_who_is_still_at_the_first_order_is_new():
    log = log_of((0, "a", "x"), (5, "b", "x"), (5, "b", "y"), (6, "b", "z"))
    rows = replay(log, steps(1, 2, 3, 4), [Told("one", lambda past, user: [])], 2, model_of(log, 1, {"x": [1.0]})).rows
    assert rows.column("kind").to_pylist() == ["new", "new", "returning"]
    assert rows.column("same_moment").to_pylist() == [False, True, False]


def test_with_repeats_what_was_had_before_counts_too():
    always = Told("always", lambda past, user: ["y"])
    rows = replay(LOG, steps(3, 10), [always], 1, START, repeats=True).rows.to_pylist()
    assert [(row["user_id"], row["item_id"], row["rank_always"]) for row in rows] == [
        ("ann", "y", 1), ("ann", "z", 0), ("cat", "x", 0), ("cat", "y", 1), ("ann", "y", 1), ("cat", "z", 0),
    ]  # fmt: skip


def test_an_item_that_no_model_knows_and_a_user_whom_nobody_knows_are_misses():
    foretold = replay(LOG, steps(3, 10), [Folded("foldin", lambda _: START)], 2, START)
    rows = {(row["user_id"], row["item_id"]): row["rank_foldin"] for row in foretold.rows.to_pylist()}
    assert rows[("ann", "z")] == 0
    assert rows[("cat", "z")] == 0
    assert rows[("cat", "x")] == 1  # to a newcomer the model's most popular items
    assert foretold.shown["foldin"].popularity_lists == 0.5


def test_a_contender_that_is_not_asked_has_no_rank():
    late = Folded("late", lambda _: START, asked=lambda past: past.end == 5)
    rows = replay(LOG, steps(3, 5, 10), [late], 2, START).rows
    assert rows.column("rank_late").is_null().to_pylist() == [True, True, False, False]


def test_the_stale_model_knows_no_history_that_came_after_its_cut():
    seen_by = {}

    def watch(past: Past, name: str, users: np.ndarray, lists: object) -> None:
        seen_by.setdefault(name, []).append(lists.by_popularity.tolist())

    contenders = [
        Folded("stale", lambda _: START, horizon=lambda _, serving: serving.cut),
        Folded("foldin", lambda _: START),
    ]
    replay(LOG, steps(5, 6, 10), contenders, 2, START, watch=watch)
    # cat, who is new, then is folded in; the stale model never learns of her.
    assert seen_by == {"stale": [[True], [True]], "foldin": [[True], [False]]}


def test_nothing_to_foretell_is_said():
    with pytest.raises(FoldinError, match=r"nothing to foretell.*new to the user"):
        replay(LOG, steps(8, 9), [Told("one", lambda past, user: [])], 2, START)


def test_popularity_counts_what_was_told_and_forgets_what_is_older_than_its_window():
    log = log_of(
        (0, "a", "x"), (0, "b", "x"), (0, "c", "x"), (50, "a", "y"), (51, "b", "y"), (52, "c", "z"),
        (53, "a", "z", "cancellation"), (54, "d", "x"),
    )  # fmt: skip
    ever, recent = Popular("ever", log, 3), Popular("recent", log, 3, window_us=10 * MINUTE)
    d = np.array([3])
    for contender in (ever, recent):
        contender.learn(Past(log, 3), 7)
    names = log.item_ids.to_pylist()
    listed = [[names[i] for i in who.recommend(Past(log, 7), d, 3).items[0] if i >= 0] for who in (ever, recent)]
    assert listed == [["x", "y", "z"], ["y", "z"]]


def test_popularity_lists_nothing_that_the_user_had_and_nothing_that_nobody_had_yet():
    log = log_of((0, "a", "x"), (1, "b", "y"), (2, "a", "z"))
    lists = Popular("ever", log, 2).recommend(Past(log, 2), np.array([0, 1]), 3)
    assert lists.items.tolist() == [[1, -1, -1], [0, -1, -1]]


def test_micro_batches_by_number_end_where_a_new_model_serves():
    assert cut_by_number(3, 20, 5, np.array([3, 10, 20])).bounds.tolist() == [3, 8, 10, 13, 18, 20]


def test_micro_batches_by_time_begin_at_the_start_and_have_events():
    log = log_of((0, "a", "x"), (10, "a", "y"), (14, "b", "x"), (15, "b", "y"), (40, "c", "x"), (41, "c", "y"))
    cut = cut_by_time(log, 1, 6, 10 * MINUTE, 5 * 60, np.array([5]))
    assert cut.bounds.tolist() == [1, 3, 4, 5, 6]


def test_what_is_judged_is_taken_and_unless_items_may_repeat_new():
    assert np.flatnonzero(judged(LOG, repeats=False)).tolist() == [0, 1, 2, 3, 4, 5, 9]
    assert np.flatnonzero(judged(LOG, repeats=True)).tolist() == [0, 1, 2, 3, 4, 5, 7, 8, 9]


class TestAudit:
    LOG = log_of(*[(n, f"u{n * 7 % 5}", f"i{n * 5 % 8}") for n in range(60)])
    STEPS = Steps(np.arange(15, 61, 5))

    def test_it_finds_a_planted_leak_and_names_the_contender(self):
        def make(log):
            def peek(past, user):
                coming = [n for n in range(past.end, len(log)) if log.user_ids[int(log.user[n])].as_py() == user]
                return [log.item_ids[int(log.item[n])].as_py() for n in coming[:1]]

            return [Told("honest", lambda past, user: ["i1"]), Told("clairvoyant", peek)]

        with pytest.raises(LeakError, match=r"^clairvoyant peeks: with another future after 1970-01-01"):
            audit(self.LOG, self.STEPS, make, 3)

    def test_it_finds_a_contender_that_learns_too_early(self):
        class Hasty(Popular):
            def learn(self, past, end):
                super().learn(past, min(end + 10, len(past.log)))

        with pytest.raises(LeakError, match=r"^hasty peeks"):
            audit(self.LOG, self.STEPS, lambda log: [Hasty("hasty", log, 15)], 3)

    def test_it_finds_who_is_asked_by_what_is_still_to_come(self):
        def make(log):
            start = model_of(log, 15, {f"i{n}": [1.0, n / 8] for n in range(8)})
            total = int(log.item[15:].sum())
            true = int(self.LOG.item[15:].sum())
            return [Folded("chosen", lambda _: start, asked=lambda _: total == true)]

        with pytest.raises(LeakError, match=r"^chosen peeks: what comes after .* decides whether it is asked"):
            audit(self.LOG, self.STEPS, make, 3)

    def test_honest_contenders_pass(self):
        def make(log):
            start = model_of(log, 15, {f"i{n}": [1.0, n / 8] for n in range(7)})
            return [
                Popular("popularity", log, 15),
                Popular("recent", log, 15, window_us=5 * MINUTE),
                Folded("stale", lambda _: start, horizon=lambda _, serving: serving.cut),
                Folded("foldin", lambda _: start),
                Additive(Past(log, 15), start),
            ]

        audit(self.LOG, self.STEPS, make, 3)


def test_the_additive_update_learns_and_gives_newcomers_what_is_popular():
    additive = Additive(Past(LOG, 3), START)
    ann, cat = np.array([0]), np.array([2])
    assert additive.recommend(Past(LOG, 3), cat, 2).by_popularity.tolist() == [True]
    additive.learn(Past(LOG, 3), 6)
    assert additive.recommend(Past(LOG, 6), cat, 2).by_popularity.tolist() == [False]
    # z had no factors; a user who had some has taken it, so now it can be recommended to others.
    listed = additive.recommend(Past(LOG, 6), np.array([1]), 2).items[0].tolist()
    assert LOG.item_ids.to_pylist().index("z") in listed
    assert additive.recommend(Past(LOG, 6), ann, 3).items[0].tolist() == [-1, -1, -1]  # she has had all three
