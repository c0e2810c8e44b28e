"""An installation with a past to be copied, a voice that pytest does not swallow, and a summary."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

import quick
from chaos.processes import JVM, Job
from chaos.worlds import World, archive_of, copy_of, past_of
from foldin.config import load_config
from foldin.session import build_session

_SUMMARY: list[str] = []


KILLS = int(os.environ.get("KILLS") or 30)
LONG = 30
"""From so many kills on what is marked `long` is tried too."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Everything here starts and kills processes, or takes its time."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("chaos")
    left = [item for item in items if KILLS < LONG and item.get_closest_marker("long")]
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if item not in left]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _SUMMARY:
        terminalreporter.section("chaos")
        for line in _SUMMARY:
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def seed() -> int:
    """SEED, or a new one; it is printed, so that the same kills can be tried again."""
    return int(os.environ.get("SEED") or random.randrange(1_000_000))


@pytest.fixture(scope="session")
def kills() -> int:
    return KILLS


@pytest.fixture
def say(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Print a line at once, whatever pytest does with output."""
    capture = request.config.pluginmanager.getplugin("capturemanager")

    def aloud(line: str) -> None:
        with capture.global_and_fixture_disabled():
            print(line, flush=True)

    return aloud


@pytest.fixture(scope="session")
def summary() -> list[str]:
    """Lines of the table at the end."""
    return _SUMMARY


@pytest.fixture(scope="session")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkSession]:
    """As the other tests' session, but quick to start and to do a thing once: its share here is small."""
    folder = tmp_path_factory.mktemp("spark")
    settings = quick.SETTINGS | {
        "spark.sql.warehouse.dir": str(folder / "warehouse"),
        "spark.driver.extraJavaOptions": f"{JVM} -Dderby.system.home={folder}",
        "spark.driver.memory": "2g",
    }
    sets = ["spark.master='local[2]'"] + [f"spark.conf.{key}='{value}'" for key, value in settings.items()]
    session = build_session(load_config(sets=sets), log_file=folder / "spark.log")
    yield session
    session.stop()


@pytest.fixture(scope="session")
def past(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Not to be changed."""
    world = past_of(spark, tmp_path_factory.mktemp("past"))
    # A third of a start's CPU time goes into classes, and there are thirty starts. A JVM that cannot use it ignores it.
    archive = archive_of(world, tmp_path_factory.mktemp("archive"))
    world.jvm = f"-XX:SharedArchiveFile={archive} -Xlog:cds*=off"
    yield world
    archive.unlink(missing_ok=True)  # 200 MB; pytest keeps the folders of its last runs


@pytest.fixture
def make_world(past: World, tmp_path: Path) -> Callable[..., World]:
    """Copies of the past under a name: make_world(name, *settings, landing=...)."""
    return lambda name="world", *more, landing=None: copy_of(past, tmp_path / name, *more, landing=landing)


@pytest.fixture
def jobs() -> Iterator[list[Job]]:
    """Jobs that are killed when the test is over, however it ends."""
    started: list[Job] = []
    yield started
    for job in started:
        if job.process is not None:
            job.kill()
