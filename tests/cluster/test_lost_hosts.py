"""Both streams on a cluster whose machines are lost in mid-batch with their disks: the tables of a calm run."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from chaos.equal import (
    assert_account_adds_up,
    assert_nothing_published_twice,
    assert_same_input,
    assert_same_multiset,
    assert_same_output,
    without_stamps,
)
from chaos.processes import wait_until
from chaos.worlds import World
from cluster.standalone import Cluster, Host
from cluster.submitting import Submitted
from foldin.fold_in import FoldIn
from foldin.schemas import EVENTS


@pytest.mark.timeout(900)
def test_with_workers_and_drivers_lost_in_mid_batch_the_tables_equal_those_of_a_calm_run(
    make_world: Callable[..., World], submit: Callable[..., Submitted], cluster: Cluster
) -> None:
    world = make_world("lost")
    ingest, fold_in = submit("ingest", world, executors=2).start(), submit("fold_in", world, executors=2).start()
    world.land()
    settle(world, ingest, fold_in)

    # A worker: the executors on it, and with them tasks, shuffle files and the local copy of the state.
    mid_batch(world, "fold_in", ingest, fold_in)
    cluster.workers.pop(0).lose()
    world.land()
    settle(world, ingest, fold_in)  # on what is left
    cluster.add_worker()

    # The drivers, one after the other; each is started again on another machine.
    mid_batch(world, "fold_in", ingest, fold_in)
    fold_in.lose()
    fold_in = submit("fold_in", world, executors=2).start()
    mid_batch(world, "ingest", ingest)
    ingest.lose()
    ingest = submit("ingest", world, executors=2).start()
    world.land()
    settle(world, ingest, fold_in)
    for job in (ingest, fold_in):
        assert job.terminate() == 0, job.said()[-5000:]
        assert "Traceback" not in job.said()

    tables = world.tables
    assert_same_multiset(without_stamps(tables, EVENTS), world.log.multiset(), "events")
    assert_account_adds_up(tables, world.log.rows)
    assert_nothing_published_twice(tables)
    calm = make_world("calm", landing=world.installation.landing)
    calm.ingest().run(once=True)
    FoldIn(calm.tables, calm.config).run(once=True)
    assert_same_input(tables, calm.tables)
    assert_same_output(tables, calm.tables)


SLOW = """
name = "the event contract, but the rows of one user take their time"
format = "json"
columns = ["event_id", "user_id", "item_id", "event_type", "value", "event_time"]

[event]
event_id = "event_id"
user_id = "user_id"
item_id = "item_id"
event_type = "event_type"
value = "value"
event_time = """ + json.dumps(
    "if(aggregate(sequence(1, if(user_id = 'slow', 6000, 1)), 0L, (all, n) -> all + aggregate("
    "sequence(1, if(user_id = 'slow', 6000, 1)), 0L, (sum, m) -> sum + m * n)) > 0, event_time, null)"
)
"""Not of a constant, which would be computed once, nor in a branch, which Spark may compute for all rows."""


@pytest.mark.timeout(600)
def test_rows_that_were_read_twice_because_a_host_was_lost_are_no_duplicates(
    make_world: Callable[..., World], submit: Callable[..., Submitted], cluster: Cluster, tmp_path: Path
) -> None:
    world, mapping = make_world("counted"), tmp_path / "slow.toml"
    mapping.write_text(SLOW)
    slow = {"event_id": "slow", "user_id": "slow", "item_id": "i1", "event_type": "view", "event_time": "2025-01-01"}
    world.installation.land("slow.json", f"{world.log.file(100)}{json.dumps(slow)}\n")  # the larger one is begun first
    world.log.rows += 1
    world.land(40)
    checkpoint = world.installation.checkpoint("ingest")
    before = {id(worker): shuffled(worker) for worker in cluster.workers}
    ingest = submit("ingest", world, executors=2).start("--once", "--mapping", str(mapping))

    # One executor is busy with the slow row while the other has read and shuffled its part: that one is lost.
    def done() -> list[Host]:
        begun = checkpoint.last("offsets") == 0
        found = []
        for worker in cluster.workers:
            files = shuffled(worker)
            if not begun:
                before[id(worker)] = files
            elif files - before[id(worker)]:
                found.append(worker)
        return found

    wait_until(done, "an executor has shuffled its part", ingest)
    (lost,) = done()
    assert checkpoint.last("commits") == -1
    cluster.workers.remove(lost)
    lost.lose()
    try:
        assert ingest.wait() == 0, ingest.said()[-5000:]
    finally:
        cluster.add_worker()

    assert "batch 0: a part of it was lost with its host, and read twice; running it again" in ingest.said()
    assert_account_adds_up(world.tables, world.log.rows)
    ids = [row["event_id"] for row in world.tables.read(EVENTS).select("event_id").collect()]
    assert sorted(ids) == sorted([*world.log.events, "slow"])


@pytest.mark.timeout(600)
def test_only_what_has_run_twice_to_its_end_counts_as_recomputed(
    begun: World, submit: Callable[..., Submitted]
) -> None:
    job = submit(Path(__file__).with_name("lost_parts.py"), begun, executors=2).start()
    assert job.wait() == 0, job.said()[-5000:]
    tried = {found["name"]: found for found in map(json.loads, re.findall(r'^{"name".*', job.said(), re.MULTILINE))}
    for name, found, seen in (
        ("calm", False, range(100, 101)),
        ("a task fails", False, range(100, 101)),
        ("an executor is lost between two jobs", True, range(101, 201)),
    ):
        assert tried[name]["got"] == 100
        assert tried[name]["found"] == found, tried[name]
        assert tried[name]["seen"] in seen, tried[name]


def shuffled(worker: Host) -> set[str]:
    """The shuffle files on its disk: one for each task that is done and has the next stage waiting."""
    names = (name for _, _, files in os.walk(worker.folder) for name in files)
    return {name for name in names if name.startswith("shuffle_") and name.endswith(".data")}


def settle(world: World, *jobs: Submitted) -> None:
    """Wait until all that has landed is taken in and folded."""
    wait_until(lambda: world.installation.ingested(world.names), "all files ingested", *jobs)
    wait_until(world.installation.folded, "all events folded", *jobs)


def mid_batch(world: World, query: str, *jobs: Submitted) -> None:
    """Land files until the query is caught in a batch: planned, not yet committed."""
    checkpoint = world.installation.checkpoint(query)

    def caught() -> bool:
        if world.waiting() == 0 and checkpoint.is_idle():
            world.land(60)
        return checkpoint.last("offsets") > checkpoint.last("commits")

    wait_until(caught, f"{query} is in a batch", *jobs)
