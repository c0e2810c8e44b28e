"""Tables by name: the whole loop in a session's catalog, and jobs over a catalog that outlives them."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import metastore
import pytest
from loop import BROKEN, FIRST, events_of_both, lines, rows_landed, run_loop
from pyspark.sql import SparkSession

from chaos.equal import assert_account_adds_up, assert_same_input, assert_same_output
from chaos.processes import ROOT, Job
from foldin.cli import parser, run_job
from foldin.config import Config, load_config
from foldin.reading import recommendations_for
from foldin.schemas import EVENTS, TABLES
from foldin.status import health
from foldin.tables import Tables
from landing import land
from world import SMALL

pytestmark = [pytest.mark.storage, pytest.mark.timeout(600)]


def config_of(folder: Path, *sets: str) -> Config:
    (folder / "landing").mkdir()
    return load_config(sets=[f"tables.root={folder / 'root'}", f"ingest.landing={folder / 'landing'}", *SMALL, *sets])


def lander(config: Config) -> Callable[[str, str], object]:
    return lambda name, text: land(config, name, *text.splitlines())


@pytest.fixture(scope="module")
def by_path(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Tables:
    """What the loop leaves behind in tables by path: tables by name are held to it."""
    config = config_of(tmp_path_factory.mktemp("by_path"))
    tables = Tables.of(spark, config.tables)
    run_loop(tables, config, lander(config))
    return tables


@pytest.mark.parametrize("catalog", ["foldin_short", "spark_catalog.foldin_long"])
def test_the_loop_over_tables_by_name_leaves_what_the_loop_over_paths_leaves(
    spark: SparkSession, by_path: Tables, tmp_path: Path, catalog: str
) -> None:
    config = config_of(tmp_path, f"tables.catalog={catalog}")
    spark.sql(f"create schema {catalog}")
    try:
        tables = Tables.of(spark, config.tables)
        assert run_loop(tables, config, lander(config)) == 25
        assert Counter(map(tuple, tables.read(EVENTS).select("event_id", "user_id", "item_id").collect())) == (
            events_of_both()
        )
        assert_account_adds_up(tables, rows_landed())
        assert_same_input(tables, by_path)
        assert_same_output(tables, by_path)
        assert recommendations_for(tables, "new").source == "als"

        found = health(tables, config)
        assert (found.root, found.missing, found.exit_code) == (catalog, (), 0)
        assert found.account is not None and found.account.adds_up  # noqa: PT018 (the first is for the second)
        assert [path.name for path in (tmp_path / "root").iterdir() if not path.name.startswith("_")] == []
    finally:
        spark.sql(f"drop schema {catalog} cascade")


def test_a_catalog_that_forgets_its_tables_with_the_session_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = [word for each in (f"tables.root={tmp_path}", "tables.catalog=default") for word in ("--set", each)]
    assert run_job(lambda job: pytest.fail("it ran"), parser("a test"), sets) == 2
    assert capsys.readouterr().err == (
        "foldin: tables.catalog = 'default': this session's catalog is in memory, it forgets its tables when the job "
        'ends; set "spark.sql.catalogImplementation" = "hive" in [spark.conf], or name a catalog of yours\n'
    )


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    with metastore.running(tmp_path) as found:
        yield found


def test_jobs_over_a_metastore_find_each_others_tables(address: str, tmp_path: Path) -> None:
    here = {"thrift://metastore-host:9083": address, "/srv/warehouse": str(tmp_path / "warehouse")}
    settings, create = readme_of_catalogs(here)
    file = tmp_path / "foldin.toml"
    file.write_text(settings)
    sets = (
        f"tables.root={tmp_path / 'root'}",
        f"ingest.landing={tmp_path / 'landing'}",
        *SMALL,
        "spark.master='local[2]'",
        "spark.conf.spark.driver.memory=1g",
    )
    (tmp_path / "landing").mkdir()
    (tmp_path / "landing" / "1.json").write_text(lines(FIRST, BROKEN))

    def run(name: str, *options: str) -> Job:
        job = Job(name, sets, tmp_path / f"{name}.log")
        job.start("--config", str(file), *options)
        return job

    too_early = run("ingest", "--once")
    assert too_early.wait_for_death() == 2, too_early.said()[-3000:]
    assert too_early.said().splitlines()[-1] == (
        "foldin: tables.catalog = 'foldin': there is no such schema; create it first, by: create schema foldin"
    )
    command, *words = shlex.split(create)
    subprocess.run([metastore.SPARK_HOME / "bin" / command, *words], cwd=tmp_path, check=True, timeout=300)
    for name, options in (("ingest", ["--once"]), ("train", [])):
        job = run(name, *options)
        assert job.wait_for_death() == 0, job.said()[-3000:]
    assert {path.name for path in (tmp_path / "warehouse" / "foldin.db").iterdir()} == {spec.name for spec in TABLES}

    status = subprocess.run(
        [sys.executable, "-m", "foldin", "status", "--json", "--config", file]
        + [word for setting in sets for word in ("--set", setting)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT / "lib")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert status.returncode == 0, status.stderr
    found = json.loads(status.stdout)
    assert (found["root"], found["missing"]) == ("foldin", [])
    rows = {table["name"]: table["rows"] for table in found["tables"]}
    assert rows.keys() == {spec.name for spec in TABLES}
    assert (rows["events"], rows["quarantine"], found["model"]["status"]) == (len(FIRST), 1, "active")


def readme_of_catalogs(here: dict[str, str]) -> tuple[str, str]:
    """README's configuration and command for a catalog, its examples replaced by what is `here`."""
    section = (ROOT / "README.md").read_text().partition("**By name.**")[2].partition("**S3.**")[0]
    for example, found in here.items():
        assert example in section
        section = section.replace(example, found)
    (settings,), (command,) = (re.findall(rf"^```{of}\n(.*?)^```$", section, re.M | re.S) for of in ("toml", "sh"))
    return settings, command
