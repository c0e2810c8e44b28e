"""One Spark session a run, and small tables to try things on."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
from pyspark.sql import DataFrame, SparkSession

import quick
from foldin.config import Config, load_config
from foldin.fold_in import FoldIn
from foldin.schemas import EVENTS
from foldin.session import build_session
from foldin.tables import Tables
from foldin.training import train
from world import SMALL, events_of, initial_rows

ROOT = Path(__file__).parents[1]

# Their targets install what they import: `make readers`, `make storage`.
collect_ignore = [] if find_spec("deltalake") else ["readers", "storage"]


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The real event logs: FOLDIN_DATA, or beside the checkout."""
    folder = Path(os.environ.get("FOLDIN_DATA", ROOT.parent / "shared" / "data"))
    assert folder.is_dir(), f"real event logs not found in {folder}: set FOLDIN_DATA"
    return folder


@pytest.fixture(scope="session")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkSession]:
    """A local session with two cores and two shuffle partitions."""
    folder = tmp_path_factory.mktemp("spark")
    settings = quick.SETTINGS | {
        "spark.sql.warehouse.dir": str(folder / "warehouse"),
        "spark.driver.extraJavaOptions": f"{quick.JVM} -Dderby.system.home={folder}",
        "spark.driver.memory": "3g",
    }
    sets = ["spark.master='local[2]'"] + [f"spark.conf.{key}='{value}'" for key, value in settings.items()]
    session = build_session(load_config(sets=sets), log_file=folder / "spark.log")
    yield session
    session.stop()


@pytest.fixture(autouse=True)
def _no_logs_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Delta keeps the log of every table that it has seen for an hour, with the plans and rows of its state: the tables
    of a hundred tests fill the heap.
    """
    yield
    if "spark" in request.fixturenames:
        session: SparkSession = request.getfixturevalue("spark")
        session._jvm.org.apache.spark.sql.delta.DeltaLog.clearCache()


@pytest.fixture(scope="module")
def compiled(spark: SparkSession) -> Iterator[None]:
    """What has many rows compiles everything, as users' sessions do."""
    key = "spark.sql.codegen.factoryMode"
    spark.conf.set(key, "FALLBACK")
    yield
    spark.conf.set(key, quick.SETTINGS[key])


@pytest.fixture
def make_config(tmp_path: Path) -> Callable[..., Config]:
    """A configuration whose tables and landing folder lie in the test's own folder, and a small model."""

    def make(*sets: str) -> Config:
        (tmp_path / "landing").mkdir(exist_ok=True)
        places = (f"tables.root={tmp_path / 'tables'}", f"ingest.landing={tmp_path / 'landing'}")
        return load_config(sets=[*places, *SMALL, *sets])

    return make


@pytest.fixture
def config(make_config: Callable[..., Config]) -> Config:
    """The small configuration as it is."""
    return make_config()


@pytest.fixture(scope="session")
def empty_root(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tables without rows; tests work on copies."""
    root = tmp_path_factory.mktemp("empty") / "tables"
    Tables.of(spark, load_config(sets=[f"tables.root={root}"]).tables)
    return root


@pytest.fixture
def tables(spark: SparkSession, empty_root: Path, tmp_path: Path, config: Config) -> Tables:
    """Fresh tables in the test's own folder."""
    shutil.copytree(empty_root, tmp_path / "tables")
    return Tables.of(spark, config.tables)


@pytest.fixture
def events_frame(spark: SparkSession) -> Callable[..., DataFrame]:
    """Rows of `events` from (event_id, user_id, item_id, event_type, value, "yyyy-mm-dd hh:mm:ss")."""
    return partial(events_of, spark)


@pytest.fixture(scope="session")
def trained_root(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tables with the small world's events and one active model; tests work on copies."""
    root = tmp_path_factory.mktemp("world") / "tables"
    config = load_config(sets=[f"tables.root={root}", *SMALL])
    tables = Tables.of(spark, config.tables)
    tables.append(events_of(spark, *initial_rows()), EVENTS)
    train(tables, config)
    return root


@pytest.fixture
def world(spark: SparkSession, trained_root: Path, tmp_path: Path, config: Config) -> Tables:
    """A copy of the small world: events, one active model, no checkpoint yet."""
    shutil.copytree(trained_root, tmp_path / "tables")
    return Tables.of(spark, config.tables)


@pytest.fixture(scope="session")
def folded_root(spark: SparkSession, trained_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small world, its events in the state of the fold-in query; tests work on copies."""
    root = tmp_path_factory.mktemp("folded") / "tables"
    shutil.copytree(trained_root, root)
    config = load_config(sets=[f"tables.root={root}", *SMALL])
    FoldIn(Tables.of(spark, config.tables), config).run(once=True)
    return root


@pytest.fixture
def folded(spark: SparkSession, folded_root: Path, tmp_path: Path, config: Config) -> Tables:
    """A copy of the small world with the checkpoint of its fold-in query."""
    shutil.copytree(folded_root, tmp_path / "tables")
    return Tables.of(spark, config.tables)
