"""The read side, as library functions and as the SQL of README."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from foldin.errors import MissingModelError
from foldin.reading import latest_recommendations, latest_user_factors, popular_items, recommendations_for
from foldin.recommending import recommend_all
from foldin.registry import Registry
from foldin.schemas import EVENTS, RECOMMENDATIONS, TABLES, Position
from foldin.training import train
from world import bought, fold_once, latest_lists

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
    assert recommend_all(folded, 3) == 25
    assert latest_lists(folded) == streamed
    rows = folded.read(RECOMMENDATIONS).where(f"events_version = {folded.version(EVENTS) + 1}")
    assert rows.count() == 25 + 2


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
