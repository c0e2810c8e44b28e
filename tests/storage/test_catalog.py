"""Tables by name: the whole loop in a session's catalog, and jobs over a catalog that outlives them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

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


def test_jobs_over_a_hive_catalog_find_each_others_tables(tmp_path: Path) -> None:
    settings = (
        f"tables.root={tmp_path / 'root'}",
        f"ingest.landing={tmp_path / 'landing'}",
        *SMALL,
        "spark.master='local[2]'",
        "spark.conf.spark.driver.memory=1g",
        "spark.conf.spark.sql.catalogImplementation=hive",
        f"spark.conf.spark.sql.warehouse.dir={tmp_path / 'warehouse'}",
        f"spark.conf.spark.hadoop.javax.jdo.option.ConnectionURL='jdbc:derby:;databaseName={tmp_path}/hive;create=true'",
    )
    (tmp_path / "landing").mkdir()
    (tmp_path / "landing" / "1.json").write_text(lines(FIRST, BROKEN))

    def run(name: str, *options: str, catalog: str = "default") -> Job:
        job = Job(name, (*settings, f"tables.catalog={catalog}"), tmp_path / f"{name}.log")
        job.start(*options)
        return job

    nowhere = run("ingest", "--once", catalog="nowhere")
    assert nowhere.wait_for_death() == 2, nowhere.said()[-3000:]
    assert nowhere.said().splitlines()[-1] == (
        "foldin: tables.catalog = 'nowhere': there is no such schema; create it first, by: create schema nowhere"
    )
    for name, options in (("ingest", ["--once"]), ("train", [])):  # one at a time: so Derby wants it
        job = run(name, *options)
        assert job.wait_for_death() == 0, job.said()[-3000:]

    sets = [word for each in (*settings, "tables.catalog=default") for word in ("--set", each)]
    status = subprocess.run(
        [sys.executable, "-m", "foldin", "status", "--json", *sets],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT / "lib")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert status.returncode == 0, status.stderr
    found = json.loads(status.stdout)
    assert (found["root"], found["missing"]) == ("default", [])
    rows = {table["name"]: table["rows"] for table in found["tables"]}
    assert rows.keys() == {spec.name for spec in TABLES}
    assert (rows["events"], rows["quarantine"], found["model"]["status"]) == (len(FIRST), 1, "active")
