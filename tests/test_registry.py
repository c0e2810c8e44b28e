"""The log of models: one promotion at a time, and no model with holes."""

from __future__ import annotations

import numpy as np
import pytest
from delta.tables import DeltaTable
from pyspark.sql import functions as F

from foldin.errors import MissingModelError
from foldin.registry import PromotionConflictError, Registry
from foldin.schemas import ITEM_FACTORS, MODELS, Position


def test_without_a_model_the_reader_is_told_what_to_do(tables):
    registry = Registry(tables)
    assert registry.promotion() is None
    with pytest.raises(MissingModelError, match="run the train job first"):
        registry.active_version()
    with pytest.raises(MissingModelError, match="no model 'nope'"):
        registry.load("nope")


def test_of_two_promoters_that_saw_the_same_state_one_is_told_that_it_lost(tables):
    registry = Registry(tables)
    nothing = registry.read()
    first = registry.promote("a", Position(1), reason="test", expected=nothing)
    assert first.sequence == 1
    with pytest.raises(PromotionConflictError, match="model b was not promoted: turn 1 was taken"):
        registry.promote("b", Position(1), reason="test", expected=nothing)
    assert registry.active_version() == "a"
    second = registry.promote("b", Position(2, 7), reason="test", expected=registry.read())
    assert registry.promotion() == second
    assert second.caught_up == Position(2, 7)
    assert registry.promotion("a") == first


def test_a_retirement_of_another_version_is_no_conflict_and_one_of_the_same_is(tables):
    registry = Registry(tables)
    registry.promote("a", Position(1), reason="test", expected=registry.read())
    before = registry.read()
    registry.retire("long gone", reason="maintenance")
    assert registry.promote("b", Position(2), reason="test", expected=before).sequence == before.turn + 2
    before = registry.read()
    registry.retire("c", reason="maintenance")
    with pytest.raises(PromotionConflictError, match="c was not promoted: turn 4 was taken"):
        registry.promote("c", Position(3), reason="test", expected=before)
    assert registry.active_version() == "b"


def test_going_back_to_a_version_is_an_append(tables):
    registry = Registry(tables)
    for version, caught_up in (("a", 1), ("b", 2), ("a", 3)):
        registry.promote(version, Position(caught_up), reason="test", expected=registry.read())
    assert registry.active_version() == "a"
    assert registry.promotion("a").caught_up == Position(3)
    assert tables.read(MODELS).count() == 3


def test_the_current_promotion_is_seen_as_soon_as_it_is_appended(tables):
    registry, other = Registry(tables), Registry(tables)
    assert registry.current() is None
    a = other.promote("a", Position(1), reason="test", expected=other.read())
    assert registry.current() == a
    b = other.promote("b", Position(1), reason="test", expected=other.read())
    assert registry.current() == b == registry.current()


def test_a_loaded_model_finds_its_items_by_hash(world):
    registry = Registry(world)
    model = registry.load(registry.active_version())
    hashes = world.spark.range(1).select(*[F.xxhash64(F.lit(i)) for i in ("i3", "i7", "nothing")]).first()
    found = model.index_of(np.array(list(hashes), dtype=np.int64))
    assert [model.item_ids[int(k)].as_py() for k in found[:2]] == ["i3", "i7"]
    assert found[2] == -1
    assert model.items.factors.shape == (12, 2)
    assert list(model.popularity[found[:2]]) == [8.0, 8.0]


def test_a_model_whose_item_factors_are_incomplete_is_refused(world):
    registry = Registry(world)
    version = registry.active_version()
    DeltaTable.forPath(world.spark, world.path(ITEM_FACTORS.name)).delete("item_id = 'i3'")
    with pytest.raises(MissingModelError, match="has 12 items, but 11 rows of item factors"):
        registry.load(version)


def test_positions_order_by_version_then_index():
    ordered = [Position(1), Position(1, 0), Position(1, 5), Position.after(1), Position(2, 0)]
    assert sorted([*ordered[3:], *ordered[:3]]) == ordered
    assert [p.last_version for p in ordered] == [0, 1, 1, 1, 2]
