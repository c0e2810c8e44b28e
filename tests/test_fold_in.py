"""The fold-in query: fresh for everyone, once for every event, under one model, whatever happens to it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pyspark.sql import functions as F

from foldin.config import Config
from foldin.errors import FoldinError, StateMismatchError
from foldin.fold_in import FoldIn
from foldin.publishing import Publisher
from foldin.registry import Registry
from foldin.schemas import EVENTS, RECOMMENDATIONS, USER_FACTORS, Position
from foldin.tables import Tables
from foldin.training import train
from world import (
    ITEMS,
    assert_same_vectors,
    bought,
    copy_of,
    fold_once,
    latest_lists,
    latest_vectors,
    vectors,
)


def folded_in_batch(tables: Tables, version: str) -> dict[str, np.ndarray]:
    """The factors that DESIGN defines: every user's history as of now, solved under the version."""
    publisher = Publisher(tables, 3)
    now = tables.version(EVENTS)
    histories = publisher.histories_at(publisher.model(version), now)
    return vectors(publisher.folded(histories, version, Position.after(now)))


def fold_until_killed_before_lists(tables: Tables, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the query, and let it die between its two writes: factors are written, lists are not."""
    append = Tables.append

    def crash(self, rows, spec, *, metadata=None):
        if spec is RECOMMENDATIONS:
            raise FoldinError("killed")
        append(self, rows, spec, metadata=metadata)

    monkeypatch.setattr(Tables, "append", crash)
    with pytest.raises(FoldinError, match="killed"):
        fold_once(tables, config)
    monkeypatch.undo()


def versions(tables: Tables) -> tuple[int, int]:
    return tables.version(USER_FACTORS), tables.version(RECOMMENDATIONS)


def test_a_new_user_gets_factors_and_a_list_with_the_first_batch(folded, config, events_frame):
    folded.append(events_frame(bought("n1", "new", "i0"), bought("n2", "new", "i1")), EVENTS)
    assert fold_once(folded, config) == 1
    mine = latest_lists(folded)["new"]
    assert len(mine) == 3
    assert set(mine) <= {"i2", "i3", "i4", "i5"}  # the taste of i0 and i1, without them
    assert np.linalg.norm(latest_vectors(folded)["new"]) > 0


def test_latest_factors_are_the_pure_function_of_events_and_model(folded, config, events_frame):
    late = bought("late", "u2", "i11", "2024-06-01 00:00:00")  # months before all others
    folded.append(events_frame(bought("a", "u1", "i0"), late), EVENTS)
    folded.append(events_frame(bought("b", "u1", "i1"), bought("c", "new", "i3")), EVENTS)
    fold_once(folded, config)
    version = Registry(folded).active_version()
    assert_same_vectors(latest_vectors(folded), folded_in_batch(folded, version))


def test_two_events_of_a_user_in_one_batch_both_count(folded, config, events_frame):
    folded.append(events_frame(bought("a", "u1", "i0"), bought("b", "u1", "i1")), EVENTS)
    fold_once(folded, config)
    row = folded.read(USER_FACTORS).where("user_id = 'u1'").orderBy(F.desc("events_version")).first()
    assert row["events"] == 6  # four from before, two in the batch


def test_many_micro_batches_end_where_one_does(folded, config, make_config, events_frame, tmp_path, spark):
    copy_of(tmp_path / "tables", tmp_path / "other")
    other_config = make_config(f"tables.root={tmp_path / 'other'}")
    other = Tables.of(spark, other_config.tables)
    rows = [bought(f"x{k}", f"u{k % 5}", ITEMS[(3 * k) % 12], f"2025-02-{9 - k} 00:00:00") for k in range(5)]
    for row in rows:
        folded.append(events_frame(row), EVENTS)
    one_file_a_batch = make_config("fold_in.max_files_per_trigger=1")
    fold_once(folded, one_file_a_batch)
    other.append(events_frame(*reversed(rows)), EVENTS)
    fold_once(other, other_config)
    assert_same_vectors(latest_vectors(folded), latest_vectors(other))
    assert latest_lists(folded) == latest_lists(other)


def test_factors_alone_are_the_same_factors_and_a_replay_of_their_batch_changes_nothing(
    world, make_config, events_frame, tmp_path
):
    config = make_config("fold_in.lists=false")
    fold_once(world, config)
    lists = world.version(RECOMMENDATIONS)
    world.append(events_frame(bought("a", "u1", "i0"), bought("b", "new", "i3")), EVENTS)
    assert fold_once(world, config) == 2
    before = versions(world)
    assert before[1] == lists
    undo_newest_commit(tmp_path)
    assert fold_once(world, config) == 2
    assert versions(world) == before
    world.append(events_frame(bought("c", "u1", "i1")), EVENTS)  # the replay has committed the state that this needs
    fold_once(world, config)
    assert_same_vectors(latest_vectors(world), folded_in_batch(world, Registry(world).active_version()))


def undo_newest_commit(tmp_path: Path) -> None:
    """As if killed after the writes and before the commit."""
    commits = tmp_path / "tables" / "_checkpoints" / "fold_in" / "commits"
    newest = max((f for f in commits.iterdir() if f.name.isdigit()), key=lambda f: int(f.name))
    newest.unlink()
    (commits / f".{newest.name}.crc").unlink(missing_ok=True)


def test_a_second_run_changes_nothing(folded, config, events_frame):
    folded.append(events_frame(bought("a", "u1", "i0")), EVENTS)
    fold_once(folded, config)
    before = versions(folded)
    assert fold_once(folded, config) == 0
    assert versions(folded) == before


def test_a_replayed_batch_writes_nothing_twice(folded, config, events_frame, tmp_path):
    folded.append(events_frame(bought("a", "u1", "i0")), EVENTS)
    fold_once(folded, config)
    before = versions(folded)
    undo_newest_commit(tmp_path)
    fold_once(folded, config)
    assert versions(folded) == before


def test_a_crash_between_the_two_writes_loses_and_doubles_nothing(folded, config, events_frame, monkeypatch):
    folded.append(events_frame(bought("a", "u1", "i0")), EVENTS)
    fold_until_killed_before_lists(folded, config, monkeypatch)
    fold_once(folded, config)
    fresh = "user_id = 'u1' and events = 5"
    assert folded.read(USER_FACTORS).where(fresh).count() == 1
    assert folded.read(RECOMMENDATIONS).where("user_id = 'u1'").count() == 2  # training's and this one
    assert "i0" not in latest_lists(folded)["u1"]


def test_a_batch_keeps_its_model_through_a_crash_and_a_promotion(folded, config, events_frame, monkeypatch):
    first = Registry(folded).active_version()
    folded.append(events_frame(bought("a", "u1", "i0")), EVENTS)
    fold_until_killed_before_lists(folded, config, monkeypatch)
    second = train(folded, config).model_version
    folded.append(events_frame(bought("b", "u3", "i1")), EVENTS)
    fold_once(folded, config)
    for spec in (USER_FACTORS, RECOMMENDATIONS):  # the crashed batch ended under the model it began with
        rows = folded.read(spec).where(F.col("model_version") == first)
        assert rows.where("user_id = 'u1'").count() == 2
    assert_same_vectors(latest_vectors(folded, second), folded_in_batch(folded, second))


def test_the_race_of_a_batch_promotion_with_a_running_stream_loses_no_event(world, config, events_frame):
    """A batch job catches up to C, the stream folds C+1 under the old model, then the new one is active."""
    fold_once(world, config)
    second = train(world, config, activate=False).model_version
    registry = Registry(world)
    expected, caught_up = registry.read(), Position.after(world.version(EVENTS))
    world.append(events_frame(bought("c+1", "u1", "i0")), EVENTS)
    fold_once(world, config)
    registry.promote(second, caught_up, reason="test", expected=expected)
    world.append(events_frame(bought("c+2", "u3", "i1")), EVENTS)
    fold_once(world, config)
    assert_same_vectors(latest_vectors(world, second), folded_in_batch(world, second))
    fold_once(world, config)


def test_events_before_the_first_model_are_kept_for_it(tables, config, events_frame):
    from world import initial_rows

    tables.append(events_frame(*initial_rows()), EVENTS)
    assert fold_once(tables, config) == 0
    assert tables.read(USER_FACTORS).count() == 0
    train(tables, config, activate=False)
    tables.append(events_frame(bought("a", "new", "i0")), EVENTS)
    assert fold_once(tables, config) == 0  # a candidate is no model to fold under
    version = tables.read(USER_FACTORS).first()["model_version"]
    Publisher(tables, 3).activate(version, reason="test")
    tables.append(events_frame(bought("b", "new", "i1")), EVENTS)
    fold_once(tables, config)
    assert_same_vectors(latest_vectors(tables), folded_in_batch(tables, version))


def test_a_lost_checkpoint_is_rebuilt_from_events(folded, config, events_frame, tmp_path):
    folded.append(events_frame(bought("a", "u1", "i0")), EVENTS)
    fold_once(folded, config)
    before, written = latest_vectors(folded), versions(folded)
    FoldIn(folded, config).checkpoint.delete("")
    fold_once(folded, config)
    assert versions(folded) == written  # all of it was published already
    folded.append(events_frame(bought("b", "u1", "i1"), bought("c", "u3", "i2")), EVENTS)
    fold_once(folded, config)
    after = latest_vectors(folded)
    assert_same_vectors(after, folded_in_batch(folded, Registry(folded).active_version()))
    assert_same_vectors({u: after[u] for u in ("u0", "u2")}, {u: before[u] for u in ("u0", "u2")})


def test_a_rebuild_publishes_what_the_lost_checkpoint_had_not(folded, config, events_frame):
    FoldIn(folded, config).checkpoint.delete("")
    folded.append(events_frame(bought("a", "u1", "i0")), EVENTS)
    assert fold_once(folded, config) == 1
    assert_same_vectors(latest_vectors(folded), folded_in_batch(folded, Registry(folded).active_version()))


def test_nothing_is_published_while_the_state_is_still_partial(world, make_config, events_frame):
    for k in range(3):
        world.append(events_frame(bought(f"x{k}", "u1", ITEMS[k])), EVENTS)
    config = make_config("fold_in.max_files_per_trigger=1")
    fold_once(world, config)
    version = Registry(world).active_version()
    trained = Position.after(Registry(world).row(version)["cut_version"])
    mine = world.read(USER_FACTORS).where(f"user_id = 'u1' and events_version > {trained.version}")
    assert [row["events"] for row in mine.collect()] == [7]  # never 1, 2, 3 of a history half read
    assert_same_vectors(latest_vectors(world), folded_in_batch(world, version))


@pytest.mark.parametrize(
    ("setting", "name"),
    [
        ("history.max_events_per_user=8", "max_events_per_user"),
        ("fold_in.state_partitions=3", "state_partitions"),
        ("events.weights={view=1.0}", "event_types"),
    ],
)
def test_a_state_built_under_other_settings_is_refused(world, config, make_config, setting, name):
    checkpoint = Path(FoldIn(world, config).checkpoint.path)
    checkpoint.mkdir(parents=True)
    settings = {"layout": 3, "max_events_per_user": 256, "state_partitions": 2, "seen_items": True}
    settings["event_types"] = ["view", "like", "cart", "purchase"]
    (checkpoint / "foldin.json").write_text(json.dumps(settings))
    with pytest.raises(StateMismatchError, match=rf"{name} is .*rebuilt from events") as error:
        FoldIn(world, make_config(setting)).run(once=True)
    assert error.value.exit_code == 4


def test_a_model_of_longer_histories_than_the_state_holds_is_refused(world, make_config, events_frame):
    with pytest.raises(StateMismatchError, match="histories of 256 events"):
        fold_once(world, make_config("history.max_events_per_user=8"))


def test_seen_items_reach_beyond_the_bound_of_the_history(tables, make_config, events_frame):
    from world import initial_rows

    config = make_config("history.max_events_per_user=2")
    tables.append(events_frame(*initial_rows()), EVENTS)
    train(tables, config)
    fold_once(tables, config)
    rows = [bought(f"x{k}", "u0", "i7", f"2025-02-0{k + 1} 00:00:00") for k in range(3)]
    tables.append(events_frame(*rows), EVENTS)
    fold_once(tables, config)
    row = tables.read(USER_FACTORS).where("user_id = 'u0'").orderBy(F.desc("events_version")).first()
    assert row["events"] == 2
    had = {"i0", "i1", "i2", "i3", "i4", "i7"}
    assert not had & set(latest_lists(tables)["u0"])


def test_a_user_whose_factors_are_zero_gets_popular_items_marked_as_such(folded, config, events_frame):
    folded.append(events_frame(bought("a", "stranger", "unheard-of"), bought("b", "fan", "i0")), EVENTS)
    fold_once(folded, config)
    assert not latest_vectors(folded)["stranger"].any()
    rows = {
        row["user_id"]: row for row in folded.read(RECOMMENDATIONS).where("user_id in ('stranger', 'fan')").collect()
    }
    assert rows["stranger"]["source"] == "popularity"
    assert len(rows["stranger"]["items"]) == 3
    scores = [item["score"] for item in rows["stranger"]["items"]]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] == 9.0  # eight users have each item, and u0 has i4 beside
    assert rows["fan"]["source"] == "als"


def test_every_row_is_under_one_model_and_names_its_position(folded, config, events_frame):
    folded.append(events_frame(bought("a", "u1", "i0")), EVENTS)
    fold_once(folded, config)
    version, position = Registry(folded).active_version(), Position.after(folded.version(EVENTS))
    row = folded.read(USER_FACTORS).where("user_id = 'u1' and events = 5").first()
    assert row["model_version"] == version
    assert Position(row["events_version"], row["events_index"]) == position
