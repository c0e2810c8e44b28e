"""Figures of small replays, worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from results_world import COST, made_up, replayed_of

from foldin.errors import FoldinError
from foldin.evaluation.measures import Measures, measures_of
from foldin.evaluation.verdicts import FAILS, HOLDS, UNKNOWN, verdicts

WIDE = ("recent", "stale", "nightly", "additive", "foldin", "oracle")


def verdict(measures: Measures, word: str):
    (found,) = [verdict for verdict in verdicts(measures) if word in verdict.aim]
    return found


def crowd(users: int = 40, **ranks):
    """Each user has one event with the given ranks."""
    return [{"user": f"u{number}", **ranks} for number in range(users)]


def test_metrics_are_their_definitions():
    rows = [{"user": "a", "stale": 0, "foldin": 1}, {"user": "b", "stale": 3, "foldin": 0}]
    every = Measures(replayed_of(rows)).every
    foldin, stale = every.scores["foldin"], every.scores["stale"]
    assert [foldin[m].value for m in ("hit", "ndcg", "mrr")] == [0.5, 0.5, 0.5]
    assert [stale[m].value for m in ("hit", "ndcg", "mrr")] == [0.5, pytest.approx(0.5 / 2), pytest.approx(0.5 / 3)]
    assert every.gain("stale").value == 0
    assert every.gains["stale"]["mrr"].value == pytest.approx(0.5 - 0.5 / 3)


def test_an_item_that_the_model_does_not_know_is_a_miss_and_stays():
    rows = [
        {"user": "a", "stale": 1, "foldin": 1},
        {"user": "b", "stale": 0, "foldin": 0, "reachable": False},
        {"user": "new", "kind": "new", "history": 0, "stale": 0, "foldin": 0},
        {"user": "c", "stale": 0, "foldin": 2},
    ]
    measures = Measures(replayed_of(rows))
    assert measures.every.hit("foldin").value == 2 / 4
    assert measures.reachable.hit("foldin").value == 2 / 3
    assert (measures.every.events, measures.reachable.events) == (4, 3)


def test_slices_by_kind_and_by_history_hold_every_event_once():
    rows = [
        {"user": "a", "kind": kind, "history": history, "stale": 0, "foldin": rank}
        for kind, history, rank in [
            ("known", 0, 0), ("known", 1, 1), ("returning", 4, 0), ("known", 5, 1),
            ("returning", 19, 2), ("known", 20, 0), ("known", 99, 0), ("known", 100, 3),
        ]
    ]  # fmt: skip
    measures = Measures(replayed_of(rows))
    assert [(part.label, part.events) for part in measures.histories] == [
        ("0", 1), ("1-4", 2), ("5-19", 2), ("20-99", 2), ("100+", 1),
    ]  # fmt: skip
    assert [part.hit("foldin").value for part in measures.histories] == [0, 0.5, 1, 0, 1]
    assert [(part.label, part.events) for part in measures.kinds] == [("known", 6), ("returning", 2), ("new", 0)]
    assert math.isnan(measures.kinds[2].hit("foldin").value)


def test_the_oracle_is_compared_only_where_it_was_asked():
    rows = [
        {"user": "a", "stale": 0, "foldin": 1, "oracle": 1},
        {"user": "b", "stale": 0, "foldin": 0, "oracle": 1},
        {"user": "c", "stale": 1, "foldin": 1, "oracle": None},
    ]
    measures = Measures(replayed_of(rows, ("stale", "foldin", "oracle")))
    assert "oracle" not in measures.every.scores
    assert measures.oracle is not None
    assert measures.oracle.events == 2
    assert {name: measures.oracle.hit(name).value for name in measures.oracle.scores} == {
        "stale": 0, "foldin": 0.5, "oracle": 1,
    }  # fmt: skip


def test_events_of_a_begun_order_are_told_from_the_others():
    rows = [
        {"user": "a", "stale": 0, "foldin": 1, "same_moment": True},
        {"user": "b", "stale": 0, "foldin": 1, "same_moment": True},
        {"user": "c", "stale": 1, "foldin": 0},
    ]
    measures = Measures(replayed_of(rows))
    assert (measures.together.events, measures.together.gain("stale").value) == (2, 1)
    assert measures.apart.gain("stale").value == -1
    assert measures.part(measures.moment_rows, "foldin", "stale") == pytest.approx(2 / 3)


def test_bins_of_age_are_wide_enough_and_thin_ones_are_left_out():
    rows = [{"user": f"u{n}", "stale": 0, "foldin": 1, "model_age_days": age} for age in (0.5, 1.5) for n in range(60)]
    rows += [{"user": "u", "stale": 0, "foldin": 1, "model_age_days": 2.5}] * 3
    assert [(part.label, part.events) for part in Measures(replayed_of(rows)).ages] == [("0-1", 60), ("1-2", 60)]


def test_lateness_runs_from_foldin_to_the_stale_model():
    rows = [
        {"user": "a", "stale": 0, "foldin": 1, "late 1 h": 1, "late 1 min": 1},
        {"user": "b", "stale": 0, "foldin": 1, "late 1 h": 0, "late 1 min": 1},
    ]
    measures = Measures(replayed_of(rows, lags={"late 1 h": 3600.0, "late 1 min": 60.0}))
    assert [(late.name, late.seconds, late.gain.value) for late in measures.lateness] == [
        ("foldin", 0, 1), ("late 1 min", 60, 1), ("late 1 h", 3600, 0.5), ("stale", math.inf, 0),
    ]  # fmt: skip
    assert "late 1 h" not in measures.every.scores


def test_costs_are_shares_of_a_training_and_seconds_an_event():
    rows = [{"user": "a", "stale": 0, "foldin": 1}]
    costs = Measures(replayed_of(rows, cost=replace(COST, spark_seconds=(0.2, 0.3, 4.0)))).costs
    # 1,000 events in 10 micro-batches over 28 days; trainings of 20, 30 and 40 s; 0.5 s of numerical work.
    assert (costs.batch_events, costs.train, costs.kernel, costs.spark) == (100, 30, 0.05, 0.3)
    assert (costs.kernel_share, costs.spark_share) == (pytest.approx(0.05 / 30), pytest.approx(0.01))
    assert costs.per_event == pytest.approx(
        {
            "fold-in, numerical work": 0.0005,
            "fold-in, as a Spark job": 0.003,
            "retraining every night": 30 * 28 / 1000,
            "retraining every micro-batch": 0.3,
        }
    )


def test_what_was_not_timed_is_not_among_the_costs():
    rows = [{"user": "a", "stale": 0, "foldin": 1}]
    measures = Measures(replayed_of(rows, cost=replace(COST, train_seconds=(), fold_seconds=0.0)))
    assert measures.costs.per_event == {}
    assert verdict(measures, "costs").outcome == UNKNOWN


def test_each_aim_holds_where_the_data_says_so():
    rows = crowd(recent=0, stale=0, nightly=0, additive=0, foldin=1, oracle=1)
    found = verdicts(Measures(replayed_of(rows, WIDE)))
    assert [verdict.outcome for verdict in found] == [HOLDS] * 6
    assert found[0].figures == "+100.00 points (+100.00 to +100.00)"


def test_no_aim_holds_where_the_data_says_the_opposite():
    rows = crowd(recent=1, stale=1, nightly=1, additive=1, foldin=0, oracle=1)
    measures = Measures(replayed_of(rows, WIDE, cost=replace(COST, spark_seconds=(3.0,))))
    found = verdicts(measures)
    assert [verdict.outcome for verdict in found] == [FAILS, FAILS, FAILS, FAILS, UNKNOWN, FAILS]
    assert "nightly is better" in found[1].why
    assert "no gap" in found[4].why
    assert "numerical work alone would hold" in found[5].why


def test_a_difference_that_may_be_chance_does_not_hold():
    rows = [
        {"user": f"u{n}", "stale": int(n % 10 < 5), "foldin": int((n % 10 < 6 and n % 10 > 0) or n == 0)}
        for n in range(40)
    ]
    found = verdict(Measures(replayed_of(rows)), "beats the stale model")
    assert found.outcome == FAILS
    assert "zero is in the interval" in found.why


def test_a_gap_is_closed_by_the_share_that_foldin_has_of_it():
    rows = crowd(80, stale=0, foldin=1, oracle=1) + [
        {"user": f"v{n}", "stale": 0, "foldin": 0, "oracle": 1, "reachable": False} for n in range(20)
    ]
    measures = Measures(replayed_of(rows, ("stale", "foldin", "oracle")))
    assert measures.closed is not None
    assert measures.closed.value == pytest.approx(0.8)
    found = verdict(measures, "closes")
    assert found.outcome == FAILS
    assert "of +20.00 points" in found.why
    assert "+20.00 from items that the start's model does not know" in found.why


def test_an_oracle_that_is_worse_leaves_no_gap():
    found = verdict(Measures(replayed_of(crowd(stale=1, foldin=1, oracle=0), ("stale", "foldin", "oracle"))), "closes")
    assert found.outcome == UNKNOWN
    assert "worse than the stale model" in found.why


def test_recent_popularity_is_compared_for_known_users_only():
    rows = crowd(recent=0, stale=0, foldin=1) + [
        {"user": f"n{n}", "kind": "new", "recent": 1, "stale": 0, "foldin": 0} for n in range(200)
    ]
    measures = Measures(replayed_of(rows, ("recent", "stale", "foldin")))
    assert measures.every.gain("recent").value < 0
    found = verdict(measures, "recent")
    assert (found.outcome, found.figures[:7]) == (HOLDS, "+100.00")
    assert "of +100.00 points" in found.why


def test_absent_contenders_and_few_users_are_said():
    found = verdicts(Measures(replayed_of(crowd(9, stale=0, foldin=1))))
    assert [verdict.outcome for verdict in found[:5]] == [UNKNOWN] * 5
    assert "an interval needs 10" in found[0].why
    assert "nightly was not replayed" in found[1].why
    assert "oracle was not replayed" in found[4].why


def test_a_replay_without_events_names_its_time_and_says_why():
    with pytest.raises(FoldinError, match=r"2011-09-01 00:00 to 2011-09-29 00:00.*had before, which are left out"):
        Measures(replayed_of([]))
    with pytest.raises(FoldinError) as raised:
        Measures(replayed_of([], repeats=True))
    assert "left out" not in str(raised.value)


def test_a_replay_without_foldin_is_refused():
    with pytest.raises(FoldinError, match="not replayed: foldin"):
        Measures(replayed_of([{"user": "a", "stale": 1}], ("stale",)))


def test_figures_are_worked_out_once_for_a_replay():
    replayed = made_up(users=20, events=100, lags={})
    assert measures_of(replayed) is measures_of(replayed)
    assert measures_of(replayed) is not measures_of(made_up(users=20, events=100, lags={}))
