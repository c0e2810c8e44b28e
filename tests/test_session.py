"""The session: what foldin relies on is set, and a JVM's chatter goes where it is sent."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from foldin.config import load_config
from foldin.session import _REQUIRED, _local_cores, _stderr_to, build_session


def test_what_foldin_relies_on_is_set_whatever_the_defaults_are(spark: SparkSession) -> None:
    assert {key: spark.conf.get(key) for key in _REQUIRED} == _REQUIRED
    assert spark.sql("select current_timezone()").first()[0] == "UTC"


def test_settings_of_the_configuration_win(spark: SparkSession) -> None:
    assert spark.conf.get("spark.driver.memory") == "3g"
    assert spark.sparkContext.master == "local[2]"
    assert spark.conf.get("spark.sql.shuffle.partitions") == "2"


def test_a_session_that_is_there_is_reused(spark: SparkSession) -> None:
    assert build_session(load_config(sets=["spark.app_name=another"])) is spark


def test_workers_run_this_interpreter_with_one_blas_thread_each(spark: SparkSession) -> None:
    def look(_: int) -> tuple[str, str | None]:
        return sys.executable, os.environ.get("OPENBLAS_NUM_THREADS")

    assert spark.sparkContext.parallelize([0], 1).map(look).collect() == [(sys.executable, "1")]


@pytest.mark.parametrize(
    ("master", "cores"),
    [
        ("local[2]", 2),
        ("local[3,4]", 3),
        ("local[*]", os.cpu_count()),
        ("local[*,2]", os.cpu_count()),
        ("local", 1),
        ("local-cluster[2,1,1024]", 2),
    ],
)
def test_shuffles_have_as_many_partitions_as_there_are_cores(master: str, cores: int) -> None:
    assert _local_cores(master) == cores


def test_stderr_of_a_child_goes_to_the_log_file_and_comes_back(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "deep" / "spark.log"
    say = [sys.executable, "-c", "import sys; print(sys.argv[1], file=sys.stderr)"]
    for text in ("one", "two"):
        with _stderr_to(log):
            subprocess.run([*say, text], check=True)
    with _stderr_to(None):
        subprocess.run([*say, "three"], check=True)
    assert log.read_text() == "one\ntwo\n"
    assert capfd.readouterr().err == "three\n"
