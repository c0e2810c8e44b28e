"""A candidate is judged on what came after everything it has seen, and does not serve when it is worse."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from pyspark.sql import functions as F

from foldin.config import load_config
from foldin.errors import ConfigError, FoldinError, RejectedModelError
from foldin.judging import Judgement, Score, judge_model, split_time
from foldin.lineage import lineage, render_lineage
from foldin.registry import Registry
from foldin.schemas import EVENTS, ITEM_FACTORS, MODELS
from foldin.tables import Tables
from foldin.training import _trial_model, train
from world import ITEMS, SMALL, bought, copy_of, events_of

pytestmark = pytest.mark.lifecycle


def day(n: int) -> str:
    return f"2025-03-{1 + n:02d} 00:00:00"


GOOD = ("judge.k=5", "judge.least_users=10", "judge.holdout=0.25")
BAD = (*GOOD, "train.reg_param=1000.0", "train.alpha=0.0001")  # all of its factors are next to nothing


@pytest.fixture(scope="module")
def tastes_root(spark, empty_root, tmp_path_factory) -> Path:
    """Forty users of two tastes: three items each at first, the fourth of their taste later; and two strangers."""
    rows = []
    for u in range(40):
        taste = (u % 2) * 6
        mine = [ITEMS[taste + (u // 2 + k) % 6] for k in range(4)]
        rows += [bought(f"e{u}-{k}", f"u{u}", item, day(k)) for k, item in enumerate(mine[:3])]
        rows.append(bought(f"e{u}-late", f"u{u}", mine[3], day(20)))
    rows += [bought("cold", "stranger", "i0", day(20)), bought("unknown", "u0", "never seen before", day(21))]
    root = copy_of(empty_root, tmp_path_factory.mktemp("tastes") / "tables")
    Tables.of(spark, load_config(sets=[f"tables.root={root}"]).tables).append(events_of(spark, *rows), EVENTS)
    return root


@pytest.fixture(scope="module")
def judged_root(spark, tastes_root, tmp_path_factory) -> Path:
    """The tastes with one active model, trained as GOOD says."""
    root = copy_of(tastes_root, tmp_path_factory.mktemp("judged") / "tables")
    config = load_config(sets=[f"tables.root={root}", *SMALL, *GOOD])
    train(Tables.of(spark, config.tables), config)
    return root


@pytest.fixture
def tastes(spark, tastes_root, tmp_path, config) -> Tables:
    """A copy of the tastes without a model."""
    copy_of(tastes_root, tmp_path / "tables")
    return Tables.of(spark, config.tables)


@pytest.fixture
def judged(spark, judged_root, tmp_path, config) -> Tables:
    """A copy of the tastes with a model."""
    copy_of(judged_root, tmp_path / "tables")
    return Tables.of(spark, config.tables)


def test_what_is_held_out_is_judged_by_those_who_took_it_cold_users_and_unknown_items_counted(judged):
    row = judged.read(MODELS).where(F.col("rank").isNotNull()).first()
    found = json.loads(row["judgement"])
    assert (found["users"], found["cold"], found["taken"], found["unknown"]) == (41, 1, 42, 1)
    assert found["remark"] == "no model is active, or it cannot be read"
    candidate, popular = found["scores"]["candidate"], found["scores"]["popularity"]
    assert candidate["ndcg"] > popular["ndcg"]  # the tastes are there to be found
    assert row["events"] == judged.read(EVENTS).count()  # what serves is trained on all of them


def test_the_split_comes_after_all_that_the_active_model_has_seen(judged, make_config, events_frame):
    registry = Registry(judged)
    first = registry.active_version()
    rows = [bought(f"n{u}", f"u{u}", ITEMS[(u % 2) * 6 + (u // 2 + 4) % 6], day(25)) for u in range(40)]
    judged.append(events_frame(*rows), EVENTS)
    train(judged, make_config(*GOOD))
    found = lineage(judged)[0].judgement
    assert found["remark"] == ""
    assert found["split_us"] > registry.load(first).as_of_us
    assert found["users"] == 40
    assert found["scores"]["active"]["ndcg"] == pytest.approx(found["scores"]["candidate"]["ndcg"], abs=0.05)


def test_an_active_model_that_has_seen_the_events_is_not_judged_on_them(judged, make_config):
    train(judged, make_config(*GOOD))  # nothing has come since
    found = lineage(judged)[0].judgement
    assert "has seen the held-out events, and was trained with the same settings" in found["remark"]
    assert "active" not in found["scores"]


def test_a_model_with_the_active_ones_settings_stands_for_it_where_it_has_seen_the_events(judged, make_config):
    first = Registry(judged).active_version()
    with pytest.raises(RejectedModelError, match=r"worse than that of active"):
        train(judged, make_config(*BAD))  # nothing has come since
    found = lineage(judged)[0].judgement
    assert found["remark"] == f"{first} has seen the held-out events: a model with its settings stands for it"
    assert found["scores"]["active"] == lineage(judged)[1].judgement["scores"]["candidate"]


def test_few_events_after_the_active_models_cut_do_not_open_the_gate(judged, make_config, events_frame):
    judged.append(events_frame(bought("one", "u1", ITEMS[0], day(26))), EVENTS)
    with pytest.raises(RejectedModelError):
        train(judged, make_config(*BAD))


def test_models_of_other_event_types_are_not_compared(judged, make_config):
    train(judged, make_config(*GOOD, "events.weights={ gift = 2.0, purchase = 1.0 }", "events.value_required=[]"))
    found = lineage(judged)[0].judgement
    assert "was trained on other event types" in found["remark"]
    assert set(found["scores"]) == {"candidate", "popularity"}


def test_an_active_model_whose_factors_are_damaged_can_be_replaced(judged, make_config):
    first = Registry(judged).active_version()
    judged.spark.sql(f"delete from {judged.name(ITEM_FACTORS)} where model_version = '{first}' and item_id = 'i0'")
    second = train(judged, make_config(*GOOD)).model_version
    assert Registry(judged).active_version() == second


def test_a_candidate_that_is_worse_stays_one_with_the_reason_and_force_is_recorded(judged, make_config, events_frame):
    first = Registry(judged).active_version()
    rows = [bought(f"n{u}", f"u{u}", ITEMS[(u % 2) * 6 + (u // 2 + 4) % 6], day(25)) for u in range(40)]
    judged.append(events_frame(*rows), EVENTS)
    with pytest.raises(RejectedModelError, match=r"stays a candidate: NDCG@5 .* worse than that of") as caught:
        train(judged, make_config(*BAD))
    assert caught.value.exit_code == 10
    assert Registry(judged).active_version() == first
    assert lineage(judged)[0].status == "candidate"
    forced = train(judged, make_config(*BAD), force=True).model_version
    assert Registry(judged).active_version() == forced
    newest = lineage(judged)[0]
    assert "forced, although its NDCG@5" in newest.changes[-1].reason
    assert newest.changes[-1].replaced == first
    text = render_lineage(lineage(judged), newest.trained.astimezone())
    assert first in text
    assert "forced, although" in text


def test_a_planted_leak_is_seen(tastes, make_config):
    """A model that was trained on what is held out scores better: so what a score says depends on what is kept away."""
    config = make_config(*GOOD)
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
