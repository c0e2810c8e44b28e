"""What a crash, a person or a disk may do to the files that a job lives on: nothing is lost, or the job says so."""

from __future__ import annotations

import copy
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chaos.equal import (
    assert_account_adds_up,
    assert_latest_is_a_refold,
    assert_nothing_published_twice,
    assert_same_multiset,
    without_stamps,
)
from chaos.worlds import World, copy_of
from foldin.errors import StateMismatchError
from foldin.fold_in import FoldIn
from foldin.schemas import EVENTS, QUARANTINE

pytestmark = pytest.mark.timeout(900)


def fold_in(world: World) -> None:
    FoldIn(world.tables, world.config).run(once=True)


def assert_as_it_should_be(world: World) -> None:
    tables = world.tables
    assert_same_multiset(without_stamps(tables, EVENTS), world.log.multiset(), "events")
    rows = tables.read(QUARANTINE).select("raw", "reason").collect()
    assert_same_multiset(Counter(tuple(row) for row in rows), world.log.reasons(), "quarantine")
    assert_latest_is_a_refold(tables)


def checkpoint(world: World, query: str) -> Path:
    return world.installation.checkpoint(query).path


def take_back(folder: Path) -> None:
    """Delete the newest file of a checkpoint's log."""
    newest = max((path for path in folder.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))
    newest.unlink()
    newest.with_name(f".{newest.name}.crc").unlink(missing_ok=True)


@pytest.fixture(scope="module")
def saved(past: World, tmp_path_factory: pytest.TempPathFactory) -> World:
    """Some batches of both queries are done; beside it lies a copy of all files as they were then."""
    folder = tmp_path_factory.mktemp("damage") / "world"
    world = copy_of(past, folder, "ingest.max_files_per_trigger=1", "fold_in.max_files_per_trigger=1")
    for _ in range(3):
        world.land()
    world.ingest().run(once=True)
    fold_in(world)
    shutil.copytree(folder, folder.with_name("saved"))
    return world


@pytest.fixture
def folded(saved: World) -> World:
    """The files as they were, at the same place: a checkpoint knows its landing folder by its path."""
    folder = saved.installation.root.parent
    end_of_process(saved)
    shutil.rmtree(folder)
    shutil.copytree(folder.with_name("saved"), folder)
    delta_log(saved).clearCache()
    return replace(saved, log=copy.deepcopy(saved.log), names=list(saved.names))


def delta_log(world: World) -> Any:
    """Delta's object of this name; it keeps what it knows of a table by its path."""
    jvm: Any = world.spark._jvm
    return jvm.org.apache.spark.sql.delta.DeltaLog


def end_of_process(world: World) -> None:
    """What the end of a job's process would do: else Spark's upkeep of states, every minute, writes to this one yet."""
    jvm: Any = world.spark._jvm
    jvm.org.apache.spark.sql.execution.streaming.state.StateStore.stop()


def test_a_committed_batch_that_is_replayed_changes_nothing(folded: World) -> None:
    queries = ("ingest", "fold_in")
    versions = [folded.installation.delta_version(t) for t in ("events", "user_factors", "recommendations")]
    for query in queries:
        take_back(checkpoint(folded, query) / "commits")
    folded.ingest().run(once=True)
    fold_in(folded)
    assert versions == [folded.installation.delta_version(t) for t in ("events", "user_factors", "recommendations")]
    for query in queries:  # the replay, and what has landed meanwhile
        take_back(checkpoint(folded, query) / "commits")
    folded.land()
    folded.ingest().run(once=True)
    fold_in(folded)
    assert_as_it_should_be(folded)
    assert_account_adds_up(folded.tables, folded.log.rows)
    assert_nothing_published_twice(folded.tables)


def test_with_both_checkpoints_lost_no_event_is_doubled_and_factors_are_the_same(folded: World) -> None:
    end_of_process(folded)
    shutil.rmtree(folded.installation.root / "_checkpoints")
    landed = folded.log.rows
    again = sum(len(path.read_text().splitlines()) for path in folded.installation.landing.iterdir())
    folded.land()
    folded.ingest().run(once=True)
    fold_in(folded)
    assert_as_it_should_be(folded)
    # A new ingest checkpoint reads the whole landing folder again: the account says so, and calls them duplicates.
    assert_account_adds_up(folded.tables, landed + again + 40)


def test_an_ingest_checkpoint_from_a_backup_is_refused_and_no_event_is_doubled(folded: World) -> None:
    """Its next batches would have the numbers of those that were done since, and their ids were never in its state."""
    path = checkpoint(folded, "ingest")
    shutil.copytree(path, path.with_name("backup"))
    for _ in range(2):
        folded.land()
    folded.ingest().run(once=True)
    end_of_process(folded)
    shutil.rmtree(path)
    path.with_name("backup").rename(path)
    folded.land()
    before = folded.installation.delta_version("events")
    with pytest.raises(StateMismatchError, match="restored from a backup") as refused:
        folded.ingest().run(once=True)
    assert f"Delete {path}" in str(refused.value)
    assert folded.installation.delta_version("events") == before
    shutil.rmtree(path)
    folded.ingest().run(once=True)
    fold_in(folded)
    assert_as_it_should_be(folded)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def garble(path: Path) -> None:
    path.write_bytes(bytes(byte ^ 0x5A for byte in path.read_bytes()))


@pytest.mark.parametrize(("query", "damage"), [("fold_in", truncate), ("ingest", garble), ("fold_in", Path.unlink)])
def test_damaged_state_is_refused_and_rebuilt_as_the_error_says(
    folded: World, query: str, damage: Callable[[Path], None]
) -> None:
    damaged = [
        path for path in (checkpoint(folded, query) / "state").rglob("*.*") if path.suffix in (".changelog", ".zip")
    ]
    damaged = [path for path in damaged if not path.name.startswith(".")]
    assert damaged
    for path in damaged:
        damage(path)
        path.with_name(f".{path.name}.crc").unlink(missing_ok=True)  # the sum would betray it; a bad disk's does not
    folded.land()
    run = (lambda: folded.ingest().run(once=True)) if query == "ingest" else (lambda: fold_in(folded))
    if query == "fold_in":
        folded.ingest().run(once=True)
    with pytest.raises(StateMismatchError) as refused:
        run()
    assert f"delete {checkpoint(folded, query)}" in str(refused.value)
    assert "\n" not in str(refused.value)
    shutil.rmtree(checkpoint(folded, query))
    folded.ingest().run(once=True)
    fold_in(folded)
    assert_as_it_should_be(folded)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize(
    ("folder", "damage", "done", "sums"),
    [
        ("offsets", empty, True, False),
        ("offsets", empty, False, False),
        ("offsets", garble, True, False),
        ("offsets", garble, True, True),
        ("commits", empty, True, False),
        ("commits", garble, True, True),
        ("pins", truncate, True, False),
    ],
)
def test_a_damaged_checkpoint_is_refused_in_one_line_and_rebuilt(
    folded: World, folder: str, damage: Callable[[Path], None], done: bool, sums: bool
) -> None:
    """Of the last batch, which was done or (a power cut) under way; `sums`: beside the file lies what betrays it."""
    path = checkpoint(folded, "fold_in")
    if not done:
        take_back(path / "commits")
    newest = max((file for file in (path / folder).iterdir() if file.name.isdigit()), key=lambda file: int(file.name))
    damage(newest)
    if not sums:
        newest.with_name(f".{newest.name}.crc").unlink(missing_ok=True)
    folded.land()
    folded.ingest().run(once=True)
    with pytest.raises(StateMismatchError) as refused:
        fold_in(folded)
    assert f"delete {path}" in str(refused.value)
    assert "\n" not in str(refused.value)
    shutil.rmtree(path)
    fold_in(folded)
    assert_as_it_should_be(folded)


def test_a_stream_that_fell_behind_the_log_of_events_is_refused_and_rebuilt(folded: World) -> None:
    behind = folded.installation.delta_version("events")
    for _ in range(4):
        folded.land()
    folded.ingest().run(once=True)
    # As Delta's own cleanup leaves it once everything is older than delta.logRetentionDuration.
    log = folded.installation.root / "events" / "_delta_log"
    delta_log(folded).forTable(folded.spark._jsparkSession, str(log.parent)).checkpoint()
    newest = folded.installation.delta_version("events")
    assert newest >= behind + 4
    for path in log.glob("*.json"):
        if path.stem.isdigit() and int(path.stem) < newest:
            path.unlink()
            path.with_name(f".{path.name}.crc").unlink(missing_ok=True)
    delta_log(folded).clearCache()
    with pytest.raises(StateMismatchError) as refused:
        fold_in(folded)
    assert f"delete {checkpoint(folded, 'fold_in')}" in str(refused.value)
    shutil.rmtree(checkpoint(folded, "fold_in"))
    fold_in(folded)
    assert_as_it_should_be(folded)
