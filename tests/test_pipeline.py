"""Ingest and fold-in in one process: as each alone, and the end of one is the end of both."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager

import pytest

from foldin.config import Config
from foldin.errors import AlarmError, FoldinError, LeaseError
from foldin.leases import Lease
from foldin.mapping import contract
from foldin.pipeline import Pipeline
from foldin.reading import latest_recommendations
from foldin.schemas import EVENTS, METRICS
from foldin.streaming import GracefulStop
from foldin.tables import Tables
from landing import event, land
from world import latest_lists, latest_vectors


@pytest.fixture
def quick(make_config: Callable[..., Config]) -> Config:
    return make_config("ingest.trigger_seconds=0.05", "fold_in.trigger_seconds=0.05", "alarm.action=exit")


def bought(event_id: str, user: str = "u1", item: str = "i0") -> str:
    return event(event_id, user, item, event_type="purchase")


@contextmanager
def running(pipeline: Pipeline) -> Iterator[Future[None]]:
    """It runs beside the block, and is asked to stop at its end, however that comes."""
    stop = GracefulStop()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(pipeline.run, once=False, stop=stop)
        try:
            yield future
        finally:
            stop.ask()


def wait_until(holds: Callable[[], object], future: Future[None], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        if future.done():
            future.result()
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def assert_both_have_ended(pipeline: Pipeline) -> None:
    """No query of it runs, and its leases are free."""
    for query in (pipeline.ingest, pipeline.fold_in):
        assert not query.tables.spark.streams.active
        with Lease(query.checkpoint, 1):
            pass


def last(pipeline: Pipeline, kind: str) -> int:
    """The last batch that fold-in has begun ("offsets") or done ("commits")."""
    return max(int(name) for name in pipeline.fold_in.checkpoint.list(kind) if name.isdigit())


def test_what_lands_comes_out_as_lists_while_both_run_and_a_stop_ends_both(world: Tables, quick: Config) -> None:
    pipeline = Pipeline(world, quick, contract(quick))
    before = world.spark.conf.get("spark.sql.shuffle.partitions")
    land(quick, "1.json", bought("a", "new", "i7"), bought("a", "new", "i7"), "broken")
    with running(pipeline) as future:
        wait_until(lambda: pipeline.fold_in.users and "new" in latest_lists(world), future)
        land(quick, "2.json", bought("b", "newer", "i1"))
        wait_until(lambda: "newer" in latest_lists(world), future)
    future.result()
    account = pipeline.ingest.account
    assert (account.rows_in, account.events, account.duplicates) == (4, 2, 1)
    assert "i7" not in latest_lists(world)["new"]
    assert {row["query"] for row in world.read(METRICS).select("query").collect()} == {"ingest", "fold_in"}
    assert_both_have_ended(pipeline)
    assert world.spark.conf.get("spark.sql.shuffle.partitions") == before  # fold-in has a session of its own


def test_once_folds_in_what_it_has_taken_in_and_a_second_time_nothing(world: Tables, quick: Config) -> None:
    land(quick, "1.json", bought("a", "new", "i7"), bought("b", "u1", "i5"))
    pipeline = Pipeline(world, quick, contract(quick))
    pipeline.run(once=True)
    assert pipeline.ingest.account.events == 2
    assert "new" in latest_vectors(world)
    again = Pipeline(world, quick, contract(quick))
    again.run(once=True)
    assert (again.ingest.account.rows_in, again.fold_in.users) == (0, 0)
    assert latest_recommendations(world).where("user_id = 'new'").count() == 1


@pytest.mark.parametrize("also", [False, True])
def test_the_failure_of_one_comes_out_once_the_other_has_finished_its_batch(
    world: Tables, quick: Config, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, *, also: bool
) -> None:
    """`also`: the other fails, too, and says so in the log."""
    pipeline = Pipeline(world, quick, contract(quick))
    folding, failed = threading.Event(), threading.Event()
    process_batch, fold = pipeline.ingest._process, pipeline.fold_in._process

    def fails_in_its_second(batch: object, batch_id: int) -> None:
        if batch_id == 0:
            process_batch(batch, batch_id)
            return
        assert folding.wait(60)
        failed.set()
        raise FoldinError("broken on purpose")

    def is_in_the_middle_meanwhile(batch: object, batch_id: int) -> None:
        if not world.read(EVENTS).where("event_id = 'a'").count():
            fold(batch, batch_id)
            return
        folding.set()
        assert failed.wait(60)
        time.sleep(2.2)  # two looks of who waits for the end: were it stopped at once, it would not come to its writes
        if also:
            raise FoldinError("and this one")
        fold(batch, batch_id)

    monkeypatch.setattr(pipeline.ingest, "_process", fails_in_its_second)
    monkeypatch.setattr(pipeline.fold_in, "_process", is_in_the_middle_meanwhile)
    land(quick, "1.json", bought("a"))
    with caplog.at_level(logging.INFO, "foldin"), running(pipeline) as future:
        assert folding.wait(120)
        land(quick, "2.json", bought("b"))
        wait([future], 120)
    with pytest.raises(FoldinError, match=r"^broken on purpose$"):
        future.result()
    assert_both_have_ended(pipeline)
    said = [record.getMessage() for record in caplog.records if record.name == "foldin.pipeline"]
    assert said == (["then the other query failed, too: and this one"] if also else [])
    assert pipeline.fold_in.users == (0 if also else 1)
    assert last(pipeline, "commits") == last(pipeline, "offsets") - also


def test_a_query_that_another_process_runs_is_refused_and_the_other_does_not_go_on_alone(
    world: Tables, quick: Config
) -> None:
    pipeline = Pipeline(world, quick, contract(quick))
    land(quick, "1.json", bought("a"))
    with (
        Lease(pipeline.ingest.checkpoint, 30),
        pytest.raises(LeaseError, match="is in use"),
        running(pipeline) as future,
    ):
        future.result(120)
    assert_both_have_ended(pipeline)


def test_an_alarm_that_ends_one_ends_both(world: Tables, make_config: Callable[..., Config]) -> None:
    config = make_config(
        "ingest.trigger_seconds=0.05", "fold_in.trigger_seconds=0.05", "alarm.action=exit",
        "alarm.freshness_seconds=0.001",
    )  # fmt: skip
    pipeline = Pipeline(world, config, contract(config))
    land(config, "1.json", bought("a"))
    with running(pipeline) as future:
        wait_until(lambda: pipeline.fold_in.reached, future)  # it has rebuilt: that raises no alarm
        land(config, "2.json", bought("b"))
        wait([future], 120)
    with pytest.raises(AlarmError, match=r"^fold_in: freshness_seconds"):
        future.result()
    assert_both_have_ended(pipeline)
