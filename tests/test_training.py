"""Training: MLlib's own model, written down so that fold-in can repeat its last half-step."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pyspark.sql import functions as F

from foldin.fitting import EmptyTrainingCutError, fit
from foldin.histories import histories, slim, user_strengths
from foldin.publishing import Publisher
from foldin.reading import latest_user_factors
from foldin.registry import Registry
from foldin.schemas import EVENTS, ITEM_FACTORS, MODELS, RECOMMENDATIONS, STRENGTHS, USER_FACTORS, Position
from foldin.training import train
from world import assert_same_vectors, bought, initial_rows, latest_lists, latest_vectors, vectors


def test_an_empty_table_is_an_error_that_says_what_to_run(tables, config):
    with pytest.raises(EmptyTrainingCutError, match="run ingest first"):
        train(tables, config)
    assert tables.read(MODELS).count() == 0


def test_events_without_any_weight_are_an_error(tables, make_config, events_frame):
    tables.append(events_frame(*initial_rows()), EVENTS)
    with pytest.raises(EmptyTrainingCutError, match="weight other than 0"):
        train(tables, make_config("events.weights={purchase = 0.0, view = 1.0}"))


def test_the_models_row_keeps_what_a_saved_als_model_forgets(world):
    row = Registry(world).row(Registry(world).active_version())
    assert (row["mode"], row["rank"], row["iterations"]) == ("implicit", 2, 5)
    assert (row["reg_param"], row["alpha"], row["nonnegative"], row["seed"]) == (0.1, 10.0, False, 42)
    assert (row["events"], row["users"], row["items"], row["strengths"]) == (97, 24, 12, 97)
    assert row["cut_version"] == 1
    assert json.loads(row["history"])["max_events"] == 256
    assert row["parity"] <= 1e-6
    assert row["seconds"] > 0
    statuses = [r["status"] for r in world.read(MODELS).orderBy("sequence").collect()]
    assert statuses == ["candidate", "active"]


def test_the_same_seed_and_events_give_the_same_factors(world, config):
    first = Registry(world).active_version()
    second = train(world, config).model_version
    assert_same_vectors(latest_vectors(world, second), latest_vectors(world, first))


def test_a_candidate_has_factors_and_lists_and_leaves_the_active_model_alone(world, config):
    active = Registry(world).active_version()
    version = train(world, config, activate=False).model_version
    assert Registry(world).active_version() == active
    assert latest_user_factors(world, version).count() == 24
    assert latest_lists(world, version).keys() == latest_lists(world).keys()


def test_activation_without_a_stream_refolds_who_came_after_the_cut(world, config, events_frame):
    version = train(world, config, activate=False).model_version
    world.append(events_frame(bought("a", "u1", "i0"), bought("b", "new", "i1")), EVENTS)
    publisher = Publisher(world, 3)
    promotion = publisher.activate(version, reason="test")
    assert promotion.caught_up == Position.after(world.version(EVENTS))
    now = world.version(EVENTS)
    histories_now = publisher.histories_at(publisher.model(version), now)
    wanted = vectors(publisher.folded(histories_now, version, promotion.caught_up))
    assert_same_vectors(latest_vectors(world), wanted)
    assert "new" in wanted


@pytest.mark.parametrize("mode", ["implicit", "explicit"])
def test_any_ids_train_and_the_factors_are_als_models_own(tables, make_config, events_frame, mode):
    rows = [
        (f"e-{u}-{k}", f"Zoë {u}", f"item/{(3 * u + k * k) % 9} ✓", "purchase", 1.0 + (u + k) % 4, when)
        for u in range(15)
        for k, when in enumerate(("2025-01-01 00:00:00", "2025-01-02 00:00:00", "2025-01-03 00:00:00"))
    ]
    config = make_config(f"train.mode={mode}", "history.transform=identity")
    tables.append(events_frame(*rows), EVENTS)
    trained = train(tables, config)
    model = Registry(tables).load(trained.model_version)
    slimmed = slim(tables.read(EVENTS), model.definition.types)
    strengths = histories(slimmed, 256).select("user_id", "history")
    strengths = strengths.mapInArrow(user_strengths(model.definition, model.as_of_us), STRENGTHS).persist()
    als, users, _ = fit(strengths, config, tables.path("_checkpoints", "als"))
    mine = als.userFactors.join(users, F.col("id") == F.col("user"))
    assert_same_vectors(latest_vectors(tables), vectors(mine.select("user_id", F.col("features").alias("factors"))))
    if mode == "explicit":
        # The ratings are 1, 2, 3 on three items; the weight of a purchase has no say in a rating.
        row = strengths.where("user_id = 'Zoë 0'").agg(F.max("strength")).first()
        assert row[0] == 3.0


def test_a_user_whose_history_says_nothing_gets_the_zero_vector(tables, make_config, events_frame):
    config = make_config("events.weights={purchase = 1.0, view = 0.0, cancel = -1.0}")
    looker = ("v", "looker", "i0", "view", None, "2025-01-05 00:00:00")
    returner = ("r", "returner", "i0", "cancel", None, "2025-01-05 00:00:00")
    tables.append(events_frame(*initial_rows(), looker, returner), EVENTS)
    train(tables, config)
    found = latest_vectors(tables)
    assert not found["looker"].any()
    assert not found["returner"].any()
    sources = {row["user_id"]: row["source"] for row in tables.read(RECOMMENDATIONS).collect()}
    assert sources["looker"] == sources["returner"] == "popularity"
    assert sources["u1"] == "als"


def test_every_trained_row_belongs_to_the_one_version_and_position(world):
    version = Registry(world).active_version()
    for spec in (USER_FACTORS, RECOMMENDATIONS):
        found = world.read(spec).select("model_version", "events_version", "events_index").distinct().collect()
        assert [tuple(row) for row in found] == [(version, 2, -1)]
    items = world.read(ITEM_FACTORS)
    assert [row["model_version"] for row in items.select("model_version").distinct().collect()] == [version]
    assert {len(row["factors"]) for row in items.collect()} == {2}


def test_the_two_tastes_come_apart(world):
    """The world's right answer anyone can see: lists stay within the taste."""
    for user, items in latest_lists(world).items():
        taste = int(user[1:]) % 2
        own = [item for item in items if (int(item[1:]) >= 6) == bool(taste)]
        assert items[: len(own)] == own, f"{user}: another taste's item stands before one of their own"
        assert own


def test_factors_written_are_finite(world):
    for vector in latest_vectors(world).values():
        assert np.isfinite(vector).all()
