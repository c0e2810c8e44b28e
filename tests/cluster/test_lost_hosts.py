"""Both streams on a cluster whose machines are lost in mid-batch with their disks: the tables of a calm run."""

from __future__ import annotations

from collections.abc import Callable

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
from cluster.standalone import Cluster
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
