"""A search tries settings on held-out events, remembers every trial, and goes on where it was ended."""

from __future__ import annotations

import math
import uuid

import numpy as np
import pytest
from pyspark.sql import functions as F

from foldin.config import load_config
from foldin.errors import FoldinError
from foldin.histories import HistoryDefinition
from foldin.lineage import lineage
from foldin.registry import Model, assemble
from foldin.schemas import EVENTS, ITEM_FACTORS, TRIALS
from foldin.search import apply, as_toml, configured, search
from foldin.training import train
from world import ITEMS, bought

pytestmark = pytest.mark.lifecycle

SMALL = ("judge.k=4", "judge.holdout=0.25", "search.rank=[2, 8]", "search.trials=4")


def day(n: int) -> str:
    return f"2025-03-{1 + n:02d} 00:00:00"


@pytest.fixture
def log(tables, events_frame):
    """Thirty users of two tastes, a purchase every five days: the tables, and from when on events are the judge's."""
    rows = []
    for u in range(30):
        taste = (u % 2) * 6
        rows += [bought(f"e{u}-{k}", f"u{u}", ITEMS[taste + (u // 2 + k) % 6], day(k * 5)) for k in range(5)]
    tables.append(events_frame(*rows), EVENTS)
    until = tables.read(EVENTS).where(F.col("event_time") >= day(20)).agg(F.unix_micros(F.min("event_time"))).first()[0]
    return tables, until


class Trainer:
    """Tells tastes apart from rank 4 on; counts what it is asked."""

    def __init__(self, spark, fails_below: int = 0) -> None:
        self.spark, self.asked, self.fails_below, self.latest = spark, [], fails_below, 0

    def __call__(self, events, config) -> Model:
        rank = config.train.rank
        self.asked.append(configured(config))
        self.latest = max(self.latest, events.agg(F.unix_micros(F.max("event_time"))).first()[0])
        if rank < self.fails_below:
            raise ValueError(f"rank {rank} cannot be trained")
        rng = np.random.default_rng(rank)
        factors = rng.normal(size=(12, rank)).astype(np.float32)
        if rank >= 4:
            factors[:6, 0], factors[6:, 0] = 5, -5
        rows = [("trial", item, factors[n].tolist(), 1) for n, item in enumerate(ITEMS)]
        frame = self.spark.createDataFrame(
            rows, "model_version string, item_id string, factors array<float>, users long"
        )
        frame = frame.withColumn("item_hash", F.xxhash64("item_id")).select(*ITEM_FACTORS.schema.names)
        return assemble(
            frame,
            {
                "model_version": f"trial-{uuid.uuid4().hex}", "items": 12, "rank": rank,
                "reg_param": config.train.reg_param, "alpha": config.train.alpha,
                "mode": config.train.mode, "nonnegative": False,
                "history": HistoryDefinition.of(config).to_json(), "as_of_us": self.latest, "cut_version": 1,
            },
        )  # fmt: skip


def test_the_best_of_all_trials_is_found_the_settings_in_use_among_them(log, spark, make_config):
    tables, until = log
    config = make_config(*SMALL, "search.trials=8")
    trainer = Trainer(spark)
    found = search(tables, config, 1, until, trainer)
    rows = {row["number"]: row for row in tables.read(TRIALS).collect()}
    assert sorted(rows) == list(range(8))
    assert rows[0]["settings"] == configured(config)
    assert found.best.score == max(row["score"] for row in rows.values())
    assert found.before.score == rows[0]["score"] < found.best.score
    assert found.config == apply(config, rows[found.best.number]["settings"])
    assert found.config.train.rank >= 4
    assert found.config.tables == config.tables
    for row in rows.values():
        assert (row["metric"], row["study"], row["failure"]) == ("NDCG@4", found.study.name, None)


def test_no_trial_sees_an_event_from_the_split_on_nor_the_judges(log, spark, make_config, events_frame):
    tables, until = log
    trainer, config = Trainer(spark), make_config(*SMALL, "search.trials=1")
    found = search(tables, config, 1, until, trainer)
    assert trainer.latest < found.study.split_us < until == found.study.until_us
    # Whatever comes from `until` on, no score changes; what comes before it is what they are made of.
    tables.append(events_frame(*(bought(f"late{u}", f"u{u}", ITEMS[u % 12], day(22)) for u in range(30))), EVENTS)
    again = search(tables, config, 2, until, trainer)
    assert again.study.name != found.study.name
    assert again.best.score == found.best.score
    rows = [bought(f"soon{u}", f"u{u}", ITEMS[(u + 1) % 2 * 6 + u // 2 % 6], day(19)) for u in range(30)]
    tables.append(events_frame(*rows), EVENTS)
    assert search(tables, config, 3, until, trainer).best.score != found.best.score


def test_an_ended_search_goes_on_where_it_was_on_the_same_events(log, spark, make_config, events_frame):
    tables, until = log
    first = search(tables, make_config(*SMALL, "search.trials=3"), 1, until, Trainer(spark))
    tables.append(events_frame(bought("new", "u1", "i0", day(29))), EVENTS)
    trainer = Trainer(spark)
    second = search(tables, make_config(*SMALL, "search.trials=5"), 2, until, trainer)
    assert len(trainer.asked) == 2
    assert second.study == first.study
    assert sorted(row["number"] for row in tables.read(TRIALS).collect()) == [0, 1, 2, 3, 4]
    # With the budget used up, the next search is a new study, of the events that are there then.
    third = search(tables, make_config(*SMALL, "search.trials=5"), 2, until, trainer)
    assert third.study.name != first.study.name
    assert third.study.cut_version == 2


def test_a_search_that_is_killed_loses_the_trials_under_way_alone(log, spark, make_config):
    tables, until = log
    config = make_config(*SMALL, "search.trials=4")

    class Killed(BaseException):
        pass

    class Dies(Trainer):
        def __call__(self, events, config):
            if len(self.asked) == 2:
                raise Killed
            return super().__call__(events, config)

    with pytest.raises(Killed):
        search(tables, config, 1, until, Dies(spark))
    assert tables.read(TRIALS).count() == 2
    trainer = Trainer(spark)
    search(tables, config, 1, until, trainer)
    assert len(trainer.asked) == 2
    assert sorted(row["number"] for row in tables.read(TRIALS).collect()) == [0, 1, 2, 3]


def test_settings_that_cannot_be_trained_are_a_trial_with_a_reason(log, spark, make_config):
    tables, until = log
    found = search(tables, make_config(*SMALL, "search.trials=8"), 1, until, Trainer(spark, fails_below=4))
    failed = tables.read(TRIALS).where("failure is not null").collect()
    assert failed
    assert all("cannot be trained" in row["failure"] and row["score"] is None for row in failed)
    assert found.best.settings["train.rank"] >= 4
    assert found.before is None
    with pytest.raises(FoldinError, match=r"none of 2 trials has a score .*cannot be trained"):
        search(tables, make_config(*SMALL, "search.trials=2", "train.seed=9"), 1, until, Trainer(spark, fails_below=99))


def test_two_trials_at_once(log, spark, make_config):
    tables, until = log
    trainer = Trainer(spark)
    search(tables, make_config(*SMALL, "search.trials=5", "search.parallel=2"), 1, until, trainer)
    assert sorted(row["number"] for row in tables.read(TRIALS).collect()) == [0, 1, 2, 3, 4]
    assert len(trainer.asked) == 5


def test_a_minute_that_is_over_begins_no_trial(log, spark, make_config):
    tables, until = log
    with pytest.raises(FoldinError, match="no trial fits into the budget"):
        search(tables, make_config(*SMALL, "search.minutes=1e-9"), 1, until, Trainer(spark))


def test_a_second_search_on_the_same_events_is_a_study_of_its_own(log, spark, make_config):
    tables, until = log
    config = make_config(*SMALL, "search.trials=2")
    first, second = (search(tables, config, 1, until, Trainer(spark)) for _ in range(2))
    assert first.study.name != second.study.name
    assert tables.read(TRIALS).groupBy("study").count().where("count = 2").count() == 2


def test_a_study_that_has_seen_what_the_judge_holds_out_today_is_not_gone_on_with(log, spark, make_config):
    tables, until = log
    first = search(tables, make_config(*SMALL, "search.trials=2"), 1, until, Trainer(spark))
    earlier = until - 5 * 86_400_000_000
    second = search(tables, make_config(*SMALL, "search.trials=3"), 1, earlier, trainer := Trainer(spark))
    assert second.study.name != first.study.name
    assert trainer.latest < second.study.split_us < earlier


def test_a_number_whose_trial_was_lost_is_tried_again_first(log, spark, make_config):
    tables, until = log
    config = make_config(*SMALL, "search.trials=3")
    search(tables, config, 1, until, Trainer(spark))
    tables.spark.sql(f"delete from {tables.name(TRIALS)} where number = 0")
    found = search(tables, config, 1, until, trainer := Trainer(spark))
    assert trainer.asked == [configured(config)]
    assert found.before.settings == configured(config)


def test_the_lines_for_a_configuration_file_say_what_was_found(make_config, tmp_path):
    config = apply(make_config(), configured(make_config()) | {"train.alpha": 7.5, "events.weights.view": 0.25})
    file = tmp_path / "found.toml"
    file.write_text("\n".join(as_toml(config)))
    read = load_config(file)
    assert read.events.weights == config.events.weights
    assert (read.train.alpha, read.train.rank) == (7.5, config.train.rank)


def test_settings_are_read_and_applied(make_config):
    config = make_config("history.half_life_days=30.0")
    settings = configured(config)
    assert apply(config, settings) == config
    changed = apply(
        config, settings | {"train.rank": 7.0, "history.half_life_days": math.inf, "events.weights.view": 0.5}
    )
    assert changed.train.rank == 7
    assert isinstance(changed.train.rank, int)
    assert changed.history.half_life_days == math.inf
    assert changed.events.weights["view"] == 0.5
    assert set(configured(make_config("train.mode=explicit"))) == {"train.rank", "train.reg_param"}


def test_training_searches_judges_and_serves_what_was_found(log, make_config):
    tables, _ = log
    config = make_config(*SMALL, "search.trials=2", "judge.least_users=10", "judge.margin=1.0")
    version = train(tables, config, tune=True).model_version
    trials = tables.read(TRIALS).orderBy(F.desc("score"), "number").collect()
    newest = lineage(tables)[0]
    assert (newest.model_version, newest.status) == (version, "active")
    assert newest.rank == trials[0]["settings"]["train.rank"]
    assert newest.judgement["split_us"] >= trials[0]["until_us"]
