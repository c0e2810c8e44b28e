"""Small files merged in passing: fewer of them, the same rows, and nobody who reads or appends notices."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from foldin.compaction import Compactor, compact
from foldin.publishing import Publisher
from foldin.registry import Registry
from foldin.schemas import EVENTS, METRICS, RECOMMENDATIONS, USER_FACTORS, Position, TableSpec
from foldin.tables import Tables
from foldin.trimming import trim
from world import ITEMS, assert_same_vectors, bought, fold_once, latest_vectors, vectors, wait_until


def files(tables: Tables, spec) -> int:
    """Files that the table consists of now."""
    return tables.spark.sql(f"describe detail {tables.name(spec)}").first()["numFiles"]


def operations(tables: Tables, spec) -> list[str]:
    """What was done to the table, newest first."""
    history = tables.spark.sql(f"describe history {tables.name(spec)}")
    return [row["operation"] for row in history.orderBy("version", ascending=False).collect()]


def test_a_stream_merges_the_files_of_its_tables_and_readers_see_the_same(folded, config, make_config, events_frame):
    for k in range(4):
        folded.append(events_frame(bought(f"x{k}", f"u{k % 3}", ITEMS[(5 * k) % 12])), EVENTS)
    before = files(folded, USER_FACTORS), folded.read(USER_FACTORS).count()
    fold_once(folded, make_config("fold_in.max_files_per_trigger=1", "tables.compact_every=4"))
    for spec in (USER_FACTORS, RECOMMENDATIONS):
        assert operations(folded, spec)[0] == "OPTIMIZE"
        assert files(folded, spec) == 1, spec.name
        assert folded.read(spec).count() == before[1] + 4
        log = Path(folded.path(spec.name), "_delta_log")
        assert max(int(file.name[:20]) for file in log.glob("0*.checkpoint*")) == folded.version(spec), spec.name
    assert before[0] > 1
    publisher, version = Publisher(folded, 3), Registry(folded).active_version()
    now = folded.version(EVENTS)
    users = publisher.histories_at(publisher.model(version), now)
    assert_same_vectors(latest_vectors(folded), vectors(publisher.folded(users, version, Position.after(now))))


def test_a_stream_skips_the_merge_of_its_source(folded, config, events_frame):
    for k in range(3):
        folded.append(events_frame(bought(f"x{k}", "u1", ITEMS[k])), EVENTS)
    assert compact(folded, EVENTS)[0] >= 3
    assert fold_once(folded, config) == 1  # the events from before the merge, once
    assert compact(folded, EVENTS) == (0, 0)
    assert fold_once(folded, config) == 0
    row = folded.read(USER_FACTORS).where("user_id = 'u1'").orderBy("events_version", ascending=False).first()
    assert row["events"] == 4 + 3


def test_a_merge_keeps_other_processes_waiting_and_not_this_ones_appends(tables, events_frame):
    def another_process_gets_the_lock() -> bool:
        program = "import fcntl, sys; fcntl.flock(open(sys.argv[1], 'ab'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
        command = [sys.executable, "-c", program, f"{tables.root}/_locks/events"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0 or "BlockingIOError" in done.stderr
        return done.returncode == 0

    with ThreadPoolExecutor(1) as pool, tables.merging(EVENTS):
        pool.submit(tables.append, events_frame(bought("a", "u", "i")), EVENTS).result(120)
        assert not another_process_gets_the_lock()
    with tables.locked(EVENTS), tables.locked(EVENTS):
        assert not another_process_gets_the_lock()
    assert another_process_gets_the_lock()
    assert tables.read(EVENTS).count() == 1


def test_appends_beside_merges_lose_nothing(tables, events_frame):
    ended, ids = threading.Event(), []

    def merge() -> int:
        rounds = 0
        while not ended.is_set():
            rounds += compact(tables, EVENTS) != (0, 0)
        return rounds

    deadline = time.monotonic() + 240
    with ThreadPoolExecutor(4) as pool:
        merges = [pool.submit(merge) for _ in range(2)]  # of two merges at once Delta would refuse one
        try:
            while len(ids) < 10 or operations(tables, EVENTS).count("OPTIMIZE") < 2:
                assert time.monotonic() < deadline
                new = [f"{writer}-{len(ids)}" for writer in "ab"]
                frames = [events_frame(bought(event_id, "u", "i")) for event_id in new]
                for work in [pool.submit(tables.append, frame, EVENTS) for frame in frames]:
                    work.result()
                ids += new
        finally:
            ended.set()
        assert sum(work.result() for work in merges) >= 2
    compact(tables, EVENTS)
    assert operations(tables, EVENTS).count("WRITE") == len(ids)
    assert sorted(row["event_id"] for row in tables.read(EVENTS).select("event_id").collect()) == sorted(ids)
    assert files(tables, EVENTS) == 1


def test_tasks_of_a_merge_start_only_where_a_micro_batch_has_none(tables, make_config, events_frame):
    for k in range(40):
        tables.append(events_frame(bought(f"{k}", "u", "i")), EVENTS)
    context = tables.spark.sparkContext._jsc.sc()
    before = {stage.stageId() for stage in _merges(tables)}

    def run() -> list[Any]:
        return [stage for stage in _merges(tables) if stage.stageId() not in before]

    with Compactor(tables, (EVENTS,), make_config("tables.compact_every=1").tables) as compactor:
        compactor.after(lambda _batch, _batch_id: None)(None, 0)
    assert files(tables, EVENTS) == 1
    # Spark tells of its stages a little later than they end; the one that writes reads a shuffle of the other.
    wait_until(lambda: len(run()) == 2, 60)
    assert {stage.schedulingPool() for stage in run()} == {"upkeep"}
    assert max(stage.numTasks() for stage in run()) >= 3  # none of them keeps a core for as long as the merge takes
    least = {name: context.getPoolForName(name).get().minShare() for name in ("default", "upkeep")}
    assert least["upkeep"] == 0
    assert least["default"] > context.defaultParallelism()  # it is always owed more, so its tasks come first


def _merges(tables: Tables) -> list[Any]:
    """Spark's record (StageData) of each stage of merges that has ended."""
    gateway = tables.spark.sparkContext._gateway
    assert gateway is not None
    store = tables.spark.sparkContext._jsc.sc().statusStore()
    stages = store.stageList(None, False, False, gateway.new_array(gateway.jvm.double, 0), None)
    every = (stages.apply(k) for k in range(stages.size()))
    return [s for s in every if str(s.status()) == "COMPLETE" and "Optimizing" in str(s.description())]


def test_a_merge_that_fails_is_told_and_the_other_tables_have_theirs(tables, make_config, events_frame, caplog):
    for k in range(2):
        tables.append(events_frame(bought(f"{k}", "u", "i")), EVENTS)
    log = Path(tables.path(METRICS.name), "_delta_log")
    log.rename(log.with_name("elsewhere"))
    batches = []
    with (
        caplog.at_level(logging.WARNING, "foldin.compaction"),
        Compactor(tables, (METRICS, EVENTS), make_config("tables.compact_every=2").tables) as compactor,
    ):
        process = compactor.after(lambda _, batch_id: batches.append(batch_id))
        process(None, 0)
        process(None, 1)
    assert batches == [0, 1]
    assert compactor.rounds == 1
    assert caplog.text.count("metrics: small files are not merged this time") == 1
    assert files(tables, EVENTS) == 1


def test_never_means_never(tables, make_config):
    with Compactor(tables, (EVENTS,), make_config("tables.compact_every=0").tables) as compactor:
        compactor.after(lambda _batch, _batch_id: None)(None, 0)
    assert compactor.rounds == 0


@pytest.mark.parametrize(("commits", "files_left"), [(1, 2), (2, 1), (4, 1)])
def test_a_table_that_has_had_few_commits_since_its_last_merge_waits(
    tables, make_config, events_frame, commits, files_left
):
    config = make_config("tables.compact_every=4").tables

    def appended(k: int) -> None:
        tables.append(events_frame(bought(f"{k}", "u", "i")), EVENTS)

    with Compactor(tables, (EVENTS,), config) as compactor:
        process = compactor.after(lambda _batch, batch_id: appended(batch_id))
        for k in range(4):
            process(None, k)
        wait_until(lambda: operations(tables, EVENTS)[0] == "OPTIMIZE", 60)
        for k in range(commits):
            appended(4 + k)
        later = compactor.after(lambda _batch, _batch_id: None)
        for k in range(4):
            later(None, 4 + k)
    assert compactor.rounds == 2
    assert files(tables, EVENTS) == files_left
    with Compactor(tables, (EVENTS,), config) as compactor:  # a run's first round looks after every table
        later = compactor.after(lambda _batch, _batch_id: None)
        for k in range(4):
            later(None, k)
    assert files(tables, EVENTS) == 1


def test_logs_are_trimmed_four_times_as_often_as_files_are_merged(tables, make_config, events_frame, monkeypatch):
    trims: dict[str, list[int]] = {"events": [], "metrics": []}

    def told(of: Tables, spec: TableSpec, minutes: int) -> int:
        gone = trim(of, spec, minutes)
        trims[spec.name].append(of.version(spec))
        return gone

    def commit(_batch: object, k: int) -> None:
        tables.spark.sql(f"alter table {tables.name(METRICS)} set tblproperties ('k' = '{k}')")
        if k in (0, 1, 4, 5):
            tables.append(events_frame(bought(f"{k}", "u", "i")), EVENTS)

    monkeypatch.setattr("foldin.compaction.trim", told)
    with Compactor(tables, (EVENTS, METRICS), make_config("tables.compact_every=8").tables) as compactor:
        process = compactor.after(commit)
        for k in range(8):
            process(None, k)
            wait_until(lambda k=k: len(trims["metrics"]) == (k + 1) // 2, 60)  # the last table of each round
    assert compactor.rounds == 1
    assert operations(tables, EVENTS).count("OPTIMIZE") == 1
    assert trims == {"events": [2, 4, 5], "metrics": [2, 4, 6, 8]}  # not after the two batches without a commit
    log = Path(tables.path(EVENTS.name), "_delta_log")
    assert {int(file.name[:20]) for file in log.glob("0*.checkpoint*")} == {2, 4, 5}


def test_commits_that_come_while_a_merge_runs_count_for_the_next(tables, make_config, events_frame, monkeypatch):
    def appended(k: int) -> None:
        tables.append(events_frame(bought(f"{k}", "u", "i")), EVENTS)

    merges = []

    def slow(*given: object) -> tuple[int, int]:
        result = compact(*given)
        if not merges:
            appended(2)
            appended(3)
        merges.append(result)
        return result

    monkeypatch.setattr("foldin.compaction.compact", slow)
    with Compactor(tables, (EVENTS,), make_config("tables.compact_every=2").tables) as compactor:
        process = compactor.after(lambda _batch, batch_id: appended(batch_id))
        process(None, 0)
        process(None, 1)
        wait_until(lambda: merges, 60)
        later = compactor.after(lambda _batch, _batch_id: None)
        later(None, 2)
        later(None, 3)
    assert merges == [(2, 1), (3, 1)]
    assert files(tables, EVENTS) == 1


def test_a_merge_that_failed_is_tried_again_a_round_later_without_a_commit(
    tables, make_config, events_frame, monkeypatch
):
    for k in range(2):
        tables.append(events_frame(bought(f"{k}", "u", "i")), EVENTS)
    tries = []

    def refused_once(*given: object) -> tuple[int, int]:
        tries.append(given)
        if len(tries) == 1:
            raise RuntimeError("another writer changed the same files")
        return compact(*given)

    monkeypatch.setattr("foldin.compaction.compact", refused_once)
    with Compactor(tables, (EVENTS,), make_config("tables.compact_every=1").tables) as compactor:
        process = compactor.after(lambda _batch, _batch_id: None)
        process(None, 0)
        wait_until(lambda: tries, 60)
        process(None, 1)
    assert len(tries) == 2
    assert files(tables, EVENTS) == 1
