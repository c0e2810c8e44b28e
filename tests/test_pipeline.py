"""Ingest and fold-in in one process: as each alone, and the end of one is the end of both."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path

import pytest
from pyspark.sql import DataFrame

from foldin.checkpoints import Checkpoint
from foldin.config import Config
from foldin.errors import AlarmError, FoldinError, LeaseError, StateMismatchError
from foldin.leases import Lease
from foldin.mapping import contract
from foldin.pipeline import Pipeline
from foldin.reading import latest_recommendations
from foldin.schemas import METRICS
from foldin.streaming import GracefulStop
from foldin.tables import Tables
from landing import event, land
from world import latest_lists, latest_vectors

QUICK = ("ingest.trigger_seconds=0.05", "fold_in.trigger_seconds=0.05", "alarm.action=exit")


@pytest.fixture
def quick(make_config: Callable[..., Config]) -> Config:
    return make_config(*QUICK)


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
    return max((int(name) for name in pipeline.fold_in.checkpoint.list(kind) if name.isdigit()), default=-1)


def partitions(checkpoint: Checkpoint) -> str:
    """Of a query's state, fixed with its first offsets."""
    offsets = Path(checkpoint.path, "offsets", "0").read_text().splitlines()
    return str(json.loads(offsets[1])["conf"]["spark.sql.shuffle.partitions"])


def test_what_lands_comes_out_as_lists_while_both_run_and_a_stop_ends_both(
    world: Tables, make_config: Callable[..., Config]
) -> None:
    quick = make_config(*QUICK, "ingest.state_partitions=4", "fold_in.state_partitions=3")
    pipeline = Pipeline(world, quick, contract(quick))
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
    assert (partitions(pipeline.ingest.checkpoint), partitions(pipeline.fold_in.checkpoint)) == ("4", "3")
    assert world.spark.conf.get("spark.sql.shuffle.partitions") == "2"  # the tests' own


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


def test_once_a_stop_that_comes_while_it_takes_in_leaves_the_folding_to_the_next_start(
    world: Tables, quick: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop, pipeline = GracefulStop(), Pipeline(world, quick, contract(quick))
    process = pipeline.ingest._process

    def asked_meanwhile(batch: DataFrame, batch_id: int) -> None:
        stop.ask()
        process(batch, batch_id)

    monkeypatch.setattr(pipeline.ingest, "_process", asked_meanwhile)
    land(quick, "1.json", bought("a", "new"))
    pipeline.run(once=True, stop=stop)
    assert pipeline.ingest.account.events == 1
    assert pipeline.fold_in.checkpoint.is_new()
    Pipeline(world, quick, contract(quick)).run(once=True)
    assert "new" in latest_vectors(world)


def test_the_failure_of_one_comes_out_once_the_other_has_finished_its_batch(
    world: Tables, quick: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = Pipeline(world, quick, contract(quick))
    folding, landed, failed = threading.Event(), threading.Event(), threading.Event()
    take_in, fold = pipeline.ingest._process, pipeline.fold_in._process

    def fails_at_the_second_file(batch: DataFrame, batch_id: int) -> None:
        if landed.is_set():
            failed.set()
            raise FoldinError("broken on purpose")
        take_in(batch, batch_id)

    def is_in_the_middle_meanwhile(batch: DataFrame, batch_id: int) -> None:
        if pipeline.fold_in.reached is not None:  # it has rebuilt its state
            folding.set()
            assert failed.wait(60)
            time.sleep(2.2)  # two looks of who waits for the end: were it stopped at once, it would not come to write
        fold(batch, batch_id)

    monkeypatch.setattr(pipeline.ingest, "_process", fails_at_the_second_file)
    monkeypatch.setattr(pipeline.fold_in, "_process", is_in_the_middle_meanwhile)
    with running(pipeline) as future:
        wait_until(lambda: pipeline.fold_in.reached, future)
        land(quick, "1.json", bought("a"))
        wait_until(folding.is_set, future)
        landed.set()
        land(quick, "2.json", bought("b"))
        wait([future], 120)
    with pytest.raises(FoldinError, match=r"^broken on purpose$"):
        future.result()
    assert_both_have_ended(pipeline)
    assert pipeline.fold_in.users == 1
    assert last(pipeline, "commits") == last(pipeline, "offsets") == 1


def ends_with(*errors: Exception | None) -> Callable[..., None]:
    """A query's `run` that ends so when it is asked to stop, or at once with the first error given."""

    def run(*, once: bool, stop: GracefulStop) -> None:
        assert not once
        first, *then = errors
        if first is not None:
            raise first
        while not stop.asked:
            time.sleep(0.01)
        for error in then:
            raise error

    return run


LATER = [
    (None, "at once"),
    (FoldinError("later"), "at once"),  # whoever starts both again sees it again
    (StateMismatchError("refused"), "refused"),  # it must not be started again
]


@pytest.mark.parametrize(("later", "raised"), LATER, ids=["none", "may pass", "a person must mend"])
def test_of_two_failures_the_first_comes_out_but_for_one_that_a_person_must_mend(
    world: Tables,
    quick: Config,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    later: Exception | None,
    raised: str,
) -> None:
    pipeline = Pipeline(world, quick, contract(quick))
    monkeypatch.setattr(pipeline.fold_in, "run", ends_with(FoldinError("at once")))
    monkeypatch.setattr(pipeline.ingest, "run", ends_with(None, *([later] if later else [])))
    with pytest.raises(FoldinError, match=rf"^{raised}$"):
        pipeline.run(once=False)
    said = [record.getMessage() for record in caplog.records if record.name == "foldin.pipeline"]
    assert said[0] == "fold_in has ended, and so does the other query after its batch: at once"
    assert len(said) == (2 if later else 1)


def test_one_that_hangs_keeps_the_failure_of_the_other_back_for_a_while_only(
    world: Tables, quick: Config, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("foldin.pipeline._PATIENCE", 0.2)
    pipeline, over = Pipeline(world, quick, contract(quick)), threading.Event()
    monkeypatch.setattr(pipeline.ingest, "run", ends_with(FoldinError("at once")))
    monkeypatch.setattr(pipeline.fold_in, "run", lambda **_: over.wait(60))
    try:
        with pytest.raises(FoldinError, match=r"^at once$"):
            pipeline.run(once=False)
    finally:
        over.set()
    assert "the other query is still in its batch after 0 s, and is left there" in caplog.text


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
    config = make_config(*QUICK, "alarm.freshness_seconds=0.001")
    pipeline = Pipeline(world, config, contract(config))
    land(config, "1.json", bought("a"))
    with running(pipeline) as future:
        wait_until(lambda: pipeline.fold_in.reached, future)  # it has rebuilt: that raises no alarm
        land(config, "2.json", bought("b"))
        wait([future], 120)
    with pytest.raises(AlarmError, match=r"^fold_in: freshness_seconds"):
        future.result()
    assert_both_have_ended(pipeline)
