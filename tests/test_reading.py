"""The read side, as library functions and as the SQL of README."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from foldin.compaction import compact
from foldin.errors import LeaseError, MissingModelError, UnknownItemError
from foldin.leases import Lease
from foldin.reading import (
    latest_recommendations,
    latest_user_factors,
    popular_items,
    recommendations_for,
    similar_items,
)
from foldin.recommending import recommend_all
from foldin.registry import Registry
from foldin.schemas import EVENTS, ITEM_FACTORS, RECOMMENDATIONS, TABLES, Position
from foldin.tables import Tables
from foldin.training import train
from world import ITEMS, bought, fold_once, latest_lists

ROOT = Path(__file__).parents[1]


def test_readers_without_a_model_are_told(tables):
    with pytest.raises(MissingModelError):
        recommendations_for(tables, "u0")


def test_a_known_user_gets_the_newest_list(world, config, events_frame):
    before = recommendations_for(world, "u1")
    assert before.source == "als"
    assert len(before.items) == 3
    taken = before.items[0][0]
    fold_once(world, config)
    world.append(events_frame(bought("a", "u1", taken)), EVENTS)
    fold_once(world, config)
    after = recommendations_for(world, "u1")
    assert taken not in [item for item, _ in after.items]
    scores = [score for _, score in after.items]
    assert scores == sorted(scores, reverse=True)


def test_an_unknown_user_gets_popular_items_marked_as_such_without_what_they_had(world, events_frame):
    found = recommendations_for(world, "nobody", n=4)
    assert found.source == "popularity"
    # Eight users have each item, and u0 has i4 beside; equal ones stand in order of id.
    assert found.items == (("i4", 9.0), ("i0", 8.0), ("i1", 8.0), ("i10", 8.0))
    assert [row["item_id"] for row in popular_items(world, 4).collect()] == ["i4", "i0", "i1", "i10"]
    world.append(events_frame(bought("a", "nobody", "i1")), EVENTS)  # not folded in yet
    assert [item for item, _ in recommendations_for(world, "nobody", n=3).items] == ["i4", "i0", "i10"]


def test_an_id_with_quotes_is_only_an_id(world):
    assert recommendations_for(world, "' or '1' = '1").source == "popularity"


def test_lists_for_all_users_in_batch_equal_those_of_the_stream(folded, config, events_frame):
    folded.append(events_frame(bought("a", "u1", "i0"), bought("b", "new", "i7")), EVENTS)
    fold_once(folded, config)
    streamed = latest_lists(folded)
    assert recommend_all(folded, config) == 25
    assert latest_lists(folded) == streamed
    rows = folded.read(RECOMMENDATIONS).where(f"events_version = {folded.version(EVENTS) + 1}")
    assert rows.count() == 25 + 2


def test_lists_that_are_there_are_not_made_again_unless_the_events_the_length_or_a_person_ask_for_it(
    folded, config, make_config, events_frame
):
    folded.append(events_frame(bought("b", "u1", "i0")), EVENTS)
    assert recommend_all(folded, config) == 24
    assert compact(folded, EVENTS)[0] > 1  # moves rows, and brings none
    rows = folded.read(RECOMMENDATIONS).count()
    assert recommend_all(folded, config) is None
    assert folded.read(RECOMMENDATIONS).count() == rows
    assert recommend_all(folded, make_config("recommend.top_n=2")) == 24
    assert recommend_all(folded, config) == 24
    folded.append(events_frame(bought("a", "new", "i0")), EVENTS)
    assert recommend_all(folded, config) == 25
    assert recommend_all(folded, config) is None
    assert recommend_all(folded, config, force=True) == 25
    with Lease.of_job(folded, "recommend", 30), pytest.raises(LeaseError, match="is in use by process"):
        recommend_all(folded, config)


def test_only_the_active_model_is_read(world, config):
    first = Registry(world).active_version()
    second = train(world, config).model_version
    assert {row["model_version"] for row in latest_user_factors(world).collect()} == {second}
    assert {row["model_version"] for row in latest_recommendations(world, first).collect()} == {first}


def test_the_sql_of_the_readme_answers_as_the_library_does(spark, folded, config, events_frame):
    folded.append(events_frame(bought("a", "u1", "i0")), EVENTS)
    fold_once(folded, config)
    blocks = re.findall(r"```sql\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    statements = [s.strip() for block in blocks for s in block.split(";") if s.strip()]
    assert len(statements) == 3, "README shows the active model, the latest factors, one user's list"
    for spec in TABLES:
        statements = [
            re.sub(rf"delta\.`[^`]*/{spec.name}`", f"delta.`{folded.path(spec.name)}`", s) for s in statements
        ]
    active, factors, mine = (spark.sql(re.sub(r"user_id = '[^']*'", "user_id = 'u1'", s)) for s in statements)
    version = Registry(folded).active_version()
    assert [row["model_version"] for row in active.collect()] == [version]
    library = {row["user_id"]: row["factors"] for row in latest_user_factors(folded).collect()}
    assert {row["user_id"]: row["factors"] for row in factors.collect()} == library
    found = [(row["item_id"], row["score"]) for row in mine.collect()]
    assert tuple(found) == recommendations_for(folded, "u1").items
    assert Position.after(folded.version(EVENTS)) == max(
        Position(row["events_version"], row["events_index"]) for row in latest_user_factors(folded).collect()
    )


def with_directions(tables: Tables, directions: dict[str, list[float]]) -> Tables:
    """A second model in force, with the same row in `models` but these factors of its items."""
    registry = Registry(tables)
    row = registry.row(registry.active_version()).asDict() | {"model_version": "made-up", "items": len(directions)}
    rows = [("made-up", item, factors, 1) for item, factors in directions.items()]
    schema = "model_version string, item_id string, factors array<float>, users bigint"
    frame = tables.spark.createDataFrame(rows, schema).selectExpr("*", "xxhash64(item_id) as item_hash")
    tables.append(frame, ITEM_FACTORS)
    registry.candidate({key: value for key, value in row.items() if key not in ("status", "at", "by")})
    registry.promote("made-up", Position(1), reason="test", expected=registry.read())
    return tables


def test_items_of_one_taste_are_similar_to_each_other(world):
    found = similar_items(world, "i0", n=5)
    assert {item for item, _ in found} == set(ITEMS[1:6])
    rest = dict(similar_items(world, "i0", n=100))
    assert rest.keys() == set(ITEMS[1:])
    assert min(similarity for _, similarity in found) > max(rest[item] for item in ITEMS[6:])


def test_similarity_is_the_cosine_whatever_the_length_and_ties_stand_in_order_of_id(world):
    directions = {"a": [3.0, 4.0], "c": [6.0, 8.0], "b": [1.5, 2.0], "across": [-4.0, 3.0], "against": [-3.0, -4.0]}
    found = similar_items(with_directions(world, directions), "a")
    assert [item for item, _ in found] == ["b", "c", "across", "against"]
    assert [similarity for _, similarity in found] == pytest.approx([1.0, 1.0, 0.0, -1.0], abs=1e-6)
    assert found[:2] == similar_items(world, "a", n=2)


def test_an_item_without_a_direction_is_similar_to_nothing(world):
    tables = with_directions(world, {"a": [1.0, 0.0], "b": [1.0, 1.0], "nothing": [0.0, 0.0]})
    assert [item for item, _ in similar_items(tables, "a")] == ["b"]
    assert similar_items(tables, "nothing") == []


def test_an_item_that_the_model_does_not_know_has_no_similar_ones(world):
    with pytest.raises(UnknownItemError, match="no factors of item 'unheard-of'"):
        similar_items(world, "unheard-of")
