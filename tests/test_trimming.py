"""Logs kept short, and whoever is still to read a commit finds it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from foldin.checkpoints import Checkpoint
from foldin.fold_in import FoldIn
from foldin.schemas import EVENTS, MODELS, QUARANTINE, TABLES, USER_FACTORS
from foldin.training import train
from foldin.trimming import Hold, needed, trim
from world import ITEMS, bought, fold_once, wait_until

pytestmark = pytest.mark.lifecycle


def log_of(tables, spec) -> Path:
    return Path(tables.path(spec.name), "_delta_log")


def commits(tables, spec) -> list[int]:
    return sorted(int(file.stem) for file in log_of(tables, spec).glob("*.json"))


def aged(tables, spec, minutes: float, versions=None) -> None:
    """The log's files as if the first had been written so long ago, the others every five minutes."""
    for file in log_of(tables, spec).iterdir():
        number = file.name.lstrip(".")[:20]
        if number.isdigit() and (versions is None or int(number) in versions):
            then = time.time() - 60 * (minutes - 5 * int(number))
            os.utime(file, (then, then))


def checkpointed_often(tables, spec) -> None:
    """What goes of a log ends at a checkpoint; ours are far apart: make it ten commits, as Delta has it."""
    tables.spark.sql(f"alter table {tables.name(spec)} set tblproperties ('delta.checkpointInterval' = '10')")


def append(tables, events_frame, numbers) -> None:
    for k in numbers:
        tables.append(events_frame(bought(f"x{k}", f"u{k % 4}", ITEMS[k % len(ITEMS)])), EVENTS)


def test_a_log_loses_what_nobody_reads_and_the_table_nothing(tables, events_frame):
    checkpointed_often(tables, EVENTS)
    append(tables, events_frame, range(25))
    aged(tables, EVENTS, 600)
    append(tables, events_frame, range(25, 45))
    rows = tables.read(EVENTS).count()
    assert needed(tables, EVENTS) is None
    gone = trim(tables, EVENTS, 3)
    left = commits(tables, EVENTS)
    assert gone == 47 - len(left) >= 15
    assert left[0] <= 27 <= 27 + 19 == left[-1]  # of the young ones, none is gone
    assert all(int(file.name[:20]) >= left[0] for file in log_of(tables, EVENTS).glob("0*"))
    assert tables.read(EVENTS).count() == rows == 45
    append(tables, events_frame, [45])
    assert tables.read(EVENTS).count() == 46
    assert trim(tables, EVENTS, 3) == 0


def test_a_log_is_checkpointed_where_nothing_of_it_can_go(tables, events_frame):
    append(tables, events_frame, range(3))
    folder = log_of(tables, EVENTS)
    assert not list(folder.glob("*.checkpoint*.parquet"))  # by itself Delta writes one after a thousand commits
    assert trim(tables, EVENTS, 3) == 0
    version = tables.version(EVENTS)
    assert list(folder.glob(f"{version:020d}.checkpoint*.parquet"))
    assert commits(tables, EVENTS) == list(range(version + 1))


def test_a_stream_that_stands_still_finds_every_commit_that_it_has_not_read(folded, config, events_frame):
    checkpointed_often(folded, EVENTS)
    append(folded, events_frame, range(17))
    assert fold_once(folded, config) == 4
    append(folded, events_frame, range(17, 20))  # a checkpoint of the table's state lies between the two batches
    assert fold_once(folded, config) == 3
    append(folded, events_frame, range(20, 40))
    aged(folded, EVENTS, 600)
    at = FoldIn(folded, config).checkpoint.delta_offset(1).position.version  # Spark plans that batch once more
    trim(folded, EVENTS, 1)
    assert 0 < commits(folded, EVENTS)[0] <= at  # something has gone, and all that it needs is there
    assert fold_once(folded, config) == 4
    assert folded.read(EVENTS).count() == sum(
        row["events"] for row in folded.read(USER_FACTORS).groupBy("user_id").agg({"events": "max"})
        .withColumnRenamed("max(events)", "events").collect()
    )  # fmt: skip
    append(folded, events_frame, [40])
    fold_once(folded, config)
    aged(folded, EVENTS, 600)
    trim(folded, EVENTS, 1)
    assert commits(folded, EVENTS)[0] > at  # it has read them


def test_a_replayed_batch_finds_what_its_first_attempt_has_written(folded, config, events_frame):
    checkpointed_often(folded, USER_FACTORS)
    for _ in range(12):
        folded.append(folded.read(USER_FACTORS).limit(1), USER_FACTORS)
    append(folded, events_frame, [0])
    fold_once(folded, config)
    checkpoint = FoldIn(folded, config).checkpoint
    last = max(int(name) for name in checkpoint.list("commits"))
    for _ in range(15):  # somebody else's: models change, users are refolded
        folded.append(folded.read(USER_FACTORS).limit(1), USER_FACTORS)
    aged(folded, USER_FACTORS, 600)
    assert trim(folded, USER_FACTORS, 1) > 0
    before = folded.read(USER_FACTORS).count()
    checkpoint.delete(f"commits/{last}")  # killed just before it was done
    fold_once(folded, config)
    assert folded.read(USER_FACTORS).count() == before
    assert needed(folded, USER_FACTORS) is not None


def test_a_query_in_its_first_batch_holds_the_whole_log(folded, config):
    checkpoint = FoldIn(folded, config).checkpoint
    for name in ("commits", "offsets"):
        for number in checkpoint.list(name):
            checkpoint.delete(f"{name}/{number}")
    assert needed(folded, EVENTS) == 0


def test_who_reads_a_version_can_do_so_as_long_as_it_holds_it(tables, events_frame):
    checkpointed_often(tables, EVENTS)
    append(tables, events_frame, range(14))
    cut = tables.version(EVENTS)
    append(tables, events_frame, range(14, 40))
    aged(tables, EVENTS, 600)
    with Hold(tables, "me", EVENTS, cut):
        trim(tables, EVENTS, 1)
        assert 0 < commits(tables, EVENTS)[0] <= cut
        assert tables.read(EVENTS, version=cut).count() == 14
        assert tables.appended(EVENTS, cut + 1, tables.version(EVENTS)).count() == 26
    trim(tables, EVENTS, 1)
    assert commits(tables, EVENTS)[0] > cut


def test_a_hold_that_no_process_stands_behind_ends_after_a_day(tables):
    Hold(tables, "forgotten", EVENTS, 3).rest()
    with Hold(tables, "alive", EVENTS, 5):
        assert needed(tables, EVENTS) == 3
        assert needed(tables, MODELS) is None
        for file in Path(tables.path("_checkpoints", "_holds")).rglob("versions"):
            os.utime(file, (time.time() - 25 * 3600,) * 2)
        assert needed(tables, EVENTS) == 5
    assert needed(tables, EVENTS) is None
    assert not any(Path(tables.path("_checkpoints", "_holds")).iterdir())


def test_a_hold_ends_with_its_process(tables):
    code = f"""
import os, sys
from foldin.config import load_config
from foldin.schemas import EVENTS
from foldin.session import build_session
from foldin.tables import Tables
from foldin.trimming import Hold
config = load_config(sets=["tables.root={tables.root}", "spark.master='local[1]'"])
tables = Tables.of(build_session(config), config.tables)
Hold(tables, "killed", EVENTS, 3).__enter__()
print("held", flush=True)
sys.stdin.read()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={key: value for key, value in os.environ.items() if not key.startswith(("PYSPARK_GATEWAY", "SPARK_"))}
        | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"held\n"
        assert needed(tables, EVENTS) == 3
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdin.close()
        process.stdout.close()
    wait_until(lambda: needed(tables, EVENTS) is None, 30)  # its JVM takes a moment to be gone


def test_a_reader_that_was_down_for_more_than_two_days_is_not_waited_for(tables, events_frame):
    checkpointed_often(tables, EVENTS)
    append(tables, events_frame, range(25))
    aged(tables, EVENTS, 60 * 60)
    append(tables, events_frame, [25])
    with_admission(tables, "ingest", 2, 3)
    assert trim(tables, EVENTS, 3) >= 15


def test_a_training_holds_its_cut_until_its_model_is_in_force(folded, config, monkeypatch):
    seen = []

    def looked(*_args, **_named) -> bool:
        seen.append(needed(folded, EVENTS))
        return True

    cut = folded.version(EVENTS)
    monkeypatch.setattr("foldin.gate.bring_into_force", looked)
    Checkpoint(folded.spark, folded.path("_checkpoints")).delete("fold_in")
    train(folded, config)
    assert seen == [cut]
    assert needed(folded, EVENTS) is None


@pytest.mark.parametrize("spec", TABLES, ids=lambda spec: spec.name)
def test_only_tables_that_grow_by_the_second_are_trimmed(spec):
    assert spec.trimmed == (spec.name not in ("item_factors", "models", "trials"))


def with_admission(tables, query: str, before: int, after: int, *, done: bool = False) -> None:
    """An ingest query whose last batch, 7, is under way."""
    root = Path(tables.path("_checkpoints", query))
    for name in ("admission", "commits"):
        (root / name).mkdir(parents=True)
    (root / "admission" / "7").write_text(json.dumps({"events": [before, after], "quarantine": [after, after]}))
    if done:
        (root / "commits" / "7").write_text("v1")


def test_an_ingest_query_needs_what_it_has_not_learnt_and_its_own_while_a_batch_is_under_way(tables):
    with_admission(tables, "a", 40, 42)
    assert needed(tables, EVENTS, newest=5000) == 40  # it may look for its own commit
    shutil.rmtree(tables.path("_checkpoints", "a"))
    with_admission(tables, "a", 40, 42, done=True)
    assert needed(tables, EVENTS, newest=50) == 42
    assert needed(tables, EVENTS, newest=5000) is None  # it reads the table instead
    with_admission(tables, "replay_quarantine/3", 7, 9)
    assert needed(tables, EVENTS, newest=50) == 7
    assert needed(tables, QUARANTINE, newest=50) == 9


@pytest.mark.parametrize(("done", "before"), [(3, 9), (9, 3), (0, 0)])
def test_the_slowest_of_several_readers_counts(tables, done, before):
    root = Path(tables.path("_checkpoints"))
    with_admission(tables, "ingest", before, before + 1)
    with_admission(tables, "replay_quarantine/3", before + 1, before + 1)
    (root / "fold_in" / "pins").mkdir(parents=True)
    (root / "fold_in" / "pins" / "7").write_text(json.dumps({"model_version": "m", "since": {"user_factors": done}}))
    Hold(tables, "search", EVENTS, done).rest()
    assert needed(tables, EVENTS) == min(before, done)
    assert needed(tables, USER_FACTORS) == done
