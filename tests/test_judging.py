"""A candidate is judged on what came after everything it has seen, and does not serve when it is worse."""

from __future__ import annotations

import json
import math

import pytest
from pyspark.sql import functions as F

from foldin.errors import ConfigError, FoldinError, RejectedModelError
from foldin.judging import Judgement, Score, judge_model, split_time
from foldin.lineage import lineage, render_lineage
from foldin.registry import Registry
from foldin.schemas import EVENTS, ITEM_FACTORS, MODELS
from foldin.training import _trial_model, train
from world import ITEMS, bought

pytestmark = pytest.mark.lifecycle


def day(n: int) -> str:
    return f"2025-03-{1 + n:02d} 00:00:00"


@pytest.fixture
def tastes(tables, events_frame):
    """Forty users of two tastes: three items each at first, the fourth of their taste later; and two strangers."""
    rows = []
    for u in range(40):
        taste = (u % 2) * 6
        mine = [ITEMS[taste + (u // 2 + k) % 6] for k in range(4)]
        rows += [bought(f"e{u}-{k}", f"u{u}", item, day(k)) for k, item in enumerate(mine[:3])]
        rows.append(bought(f"e{u}-late", f"u{u}", mine[3], day(20)))
    rows += [bought("cold", "stranger", "i0", day(20)), bought("unknown", "u0", "never seen before", day(21))]
    tables.append(events_frame(*rows), EVENTS)
    return tables


def test_what_is_held_out_is_judged_by_those_who_took_it_cold_users_and_unknown_items_counted(tastes, make_config):
    config = make_config("judge.k=5", "judge.least_users=10", "judge.holdout=0.25")
    version = train(tastes, config).model_version
    row = tastes.read(MODELS).where((F.col("model_version") == version) & F.col("rank").isNotNull()).first()
    judged = json.loads(row["judgement"])
    assert (judged["users"], judged["cold"], judged["taken"], judged["unknown"]) == (41, 1, 42, 1)
    assert judged["remark"] == "no model is active, or it cannot be read"
    candidate, popular = judged["scores"]["candidate"], judged["scores"]["popularity"]
    assert candidate["ndcg"] > popular["ndcg"]  # the tastes are there to be found
    assert row["events"] == tastes.read(EVENTS).count()  # what serves is trained on all of them


def test_the_split_comes_after_all_that_the_active_model_has_seen(tastes, make_config, events_frame):
    config = make_config("judge.k=5", "judge.least_users=10", "judge.holdout=0.25")
    first = train(tastes, config).model_version
    rows = [bought(f"n{u}", f"u{u}", ITEMS[(u % 2) * 6 + (u // 2 + 4) % 6], day(25)) for u in range(40)]
    tastes.append(events_frame(*rows), EVENTS)
    train(tastes, config)
    judged = lineage(tastes)[0].judgement
    assert judged["remark"] == ""
    assert judged["split_us"] > Registry(tastes).load(first).as_of_us
    assert judged["users"] == 40
    assert judged["scores"]["active"]["ndcg"] == pytest.approx(judged["scores"]["candidate"]["ndcg"], abs=0.05)


def test_an_active_model_that_has_seen_the_events_is_not_judged_on_them(tastes, make_config):
    config = make_config("judge.k=5", "judge.least_users=10", "judge.holdout=0.25")
    train(tastes, config)
    train(tastes, config)  # nothing has come since
    judged = lineage(tastes)[0].judgement
    assert "has seen the held-out events, and was trained with the same settings" in judged["remark"]
    assert "active" not in judged["scores"]


def test_a_model_with_the_active_ones_settings_stands_for_it_where_it_has_seen_the_events(tastes, make_config):
    sets = ("judge.k=5", "judge.least_users=10", "judge.holdout=0.25")
    first = train(tastes, make_config(*sets)).model_version
    with pytest.raises(RejectedModelError, match=r"worse than that of active"):
        train(tastes, make_config(*sets, "train.reg_param=1000.0", "train.alpha=0.0001"))  # nothing has come since
    judged = lineage(tastes)[0].judgement
    assert judged["remark"] == f"{first} has seen the held-out events: a model with its settings stands for it"
    assert judged["scores"]["active"] == lineage(tastes)[1].judgement["scores"]["candidate"]


def test_few_events_after_the_active_models_cut_do_not_open_the_gate(tastes, make_config, events_frame):
    sets = ("judge.k=5", "judge.least_users=10", "judge.holdout=0.25")
    train(tastes, make_config(*sets))
    tastes.append(events_frame(bought("one", "u1", ITEMS[0], day(26))), EVENTS)
    with pytest.raises(RejectedModelError):
        train(tastes, make_config(*sets, "train.reg_param=1000.0", "train.alpha=0.0001"))


def test_models_of_other_event_types_are_not_compared(tastes, make_config):
    sets = ("judge.k=5", "judge.least_users=10", "judge.holdout=0.25")
    train(tastes, make_config(*sets))
    train(tastes, make_config(*sets, "events.weights={ gift = 2.0, purchase = 1.0 }", "events.value_required=[]"))
    judged = lineage(tastes)[0].judgement
    assert "was trained on other event types" in judged["remark"]
    assert set(judged["scores"]) == {"candidate", "popularity"}


def test_an_active_model_whose_factors_are_damaged_can_be_replaced(tastes, make_config):
    config = make_config("judge.k=5", "judge.least_users=10")
    first = train(tastes, config).model_version
    tastes.spark.sql(f"delete from {tastes.name(ITEM_FACTORS)} where model_version = '{first}' and item_id = 'i0'")
    second = train(tastes, config).model_version
    assert Registry(tastes).active_version() == second


def test_a_candidate_that_is_worse_stays_one_with_the_reason_and_force_is_recorded(tastes, make_config, events_frame):
    good = make_config("judge.k=5", "judge.least_users=10", "judge.holdout=0.25")
    first = train(tastes, good).model_version
    rows = [bought(f"n{u}", f"u{u}", ITEMS[(u % 2) * 6 + (u // 2 + 4) % 6], day(25)) for u in range(40)]
    tastes.append(events_frame(*rows), EVENTS)
    bad = make_config(
        "judge.k=5", "judge.least_users=10", "judge.holdout=0.25", "train.reg_param=1000.0", "train.alpha=0.0001"
    )
    with pytest.raises(RejectedModelError, match=r"stays a candidate: NDCG@5 .* worse than that of") as caught:
        train(tastes, bad)
    assert caught.value.exit_code == 10
    assert Registry(tastes).active_version() == first
    assert lineage(tastes)[0].status == "candidate"
    forced = train(tastes, bad, force=True).model_version
    assert Registry(tastes).active_version() == forced
    assert "forced, although its NDCG@5" in lineage(tastes)[0].changes[-1].reason
    assert lineage(tastes)[0].changes[-1].replaced == first
    text = render_lineage(lineage(tastes), lineage(tastes)[0].trained.astimezone())
    assert first in text
    assert "forced, although" in text


def test_a_planted_leak_is_seen(tastes, make_config):
    """A model that was trained on what is held out scores better: so what a score says depends on what is kept away."""
    config = make_config("judge.k=5", "judge.holdout=0.25")
    events = tastes.read(EVENTS)
    split = split_time(events, 0.25)

    def leaking(before):
        return _trial_model(tastes, events, 1, config)

    def honest(before):
        assert before.agg(F.unix_micros(F.max("event_time"))).first()[0] < split
        return _trial_model(tastes, before, 1, config)

    judged = judge_model(events, split, {"candidate": honest, "leaking": leaking}, config)
    assert judged.scores["leaking"].ndcg > judged.scores["candidate"].ndcg + 0.05
    assert not math.isnan(judged.scores["candidate"].ndcg)


@pytest.mark.parametrize(
    ("mine", "active", "users", "ok"),
    [(0.2, 0.2, 500, True), (0.191, 0.2, 500, True), (0.189, 0.2, 500, False), (0.1, 0.2, 99, True)],
)
def test_the_margin_is_a_share_and_few_users_say_nothing(mine, active, users, ok):
    def score(ndcg: float) -> Score:
        return Score(0.5, 0.5, ndcg, 0.5, 0.5)

    judged = Judgement(0, users, 0, users, 0, 20, {"candidate": score(mine), "active": score(active)})
    assert (judged.verdict(0.05, 100) == "") is ok
    assert issubclass(RejectedModelError, FoldinError)


def test_without_a_holdout_nothing_is_judged_and_nothing_can_be_searched(tastes, make_config):
    config = make_config("judge.holdout=0")
    train(tastes, config)
    assert lineage(tastes)[0].judgement is None
    with pytest.raises(ConfigError, match=r"judge\.holdout must not be 0"):
        train(tastes, config, tune=True)
