"""A cluster of two workers, the packed environment, and an installation that was begun on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from chaos.logs import Log
from chaos.processes import Installation
from chaos.worlds import World, copy_of
from cluster.standalone import Cluster
from cluster.submitting import DIST, Submitted, unpacked

Submit = Callable[..., Submitted]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here starts several JVMs."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("cluster")


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A master and two workers on loopback, as processes."""
    running = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        running.start(workers=2)
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive of `make package`, unpacked as the submitting host does it."""
    assert (DIST / "foldin-environment.tar.gz").exists(), "`make package` comes first"
    return unpacked(tmp_path_factory.mktemp("submitter") / "environment")


@pytest.fixture(scope="session")
def submit(cluster: Cluster, environment: Path) -> Iterator[Submit]:
    """submit(script, world, executors=1): not started yet. A name is that of a job."""
    made: list[Submitted] = []

    def of(script: str | Path, world: World, executors: int = 1) -> Submitted:
        path = Path("dist/jobs", f"{script}.py") if isinstance(script, str) else script
        made.append(Submitted(cluster, environment, path, cluster.host(), world.settings, executors))
        return made[-1]

    yield of
    for job in made:
        job.lose()


@pytest.fixture(scope="session")
def begun(spark: SparkSession, submit: Submit, tmp_path_factory: pytest.TempPathFactory) -> World:
    """A log taken in and a model trained, both on the cluster. Not to be changed."""
    folder = tmp_path_factory.mktemp("begun")
    (folder / "landing").mkdir()
    world = World(spark, Installation(folder / "tables", folder / "landing"), Log(seed=11), ("", ""))
    world.land(1500)
    ingest = submit("ingest", world).start("--once")
    assert ingest.wait() == 0, ingest.said()[-5000:]
    assert f"{world.log.rows:,} rows in = {len(world.log.events):,} events" in ingest.said()
    train = submit("train", world).start()
    assert train.wait() == 0, train.said()[-5000:]
    return world


@pytest.fixture
def make_world(begun: World, tmp_path: Path) -> Callable[..., World]:
    """make_world(name, landing=...): the tables of what was begun, in another folder."""
    return lambda name, landing=None: copy_of(begun, tmp_path / name, landing=landing)
