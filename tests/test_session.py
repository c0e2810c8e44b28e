"""The session: what foldin relies on is set, and a JVM's chatter goes where it is sent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from foldin.config import load_config
from foldin.session import _REQUIRED, _local_cores, _stderr_to, build_session
from quick import environment


def test_what_foldin_relies_on_is_set_whatever_the_defaults_are(spark: SparkSession) -> None:
    assert {key: spark.conf.get(key) for key in _REQUIRED} == _REQUIRED
    assert spark.sql("select current_timezone()").first()[0] == "UTC"


def test_settings_of_the_configuration_win(spark: SparkSession) -> None:
    assert spark.conf.get("spark.driver.memory") == "3g"
    assert spark.sparkContext.master == "local[2]"
    assert spark.conf.get("spark.sql.shuffle.partitions") == "2"


def test_a_session_that_is_there_is_reused(spark: SparkSession) -> None:
    spark.createDataFrame([], "n int")  # the active one is, for pyspark, whichever made the last frame
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


def test_a_submitters_settings_hold_and_what_is_to_be_hidden_is_added_up(tmp_path: Path) -> None:
    script = tmp_path / "show.py"
    script.write_text(
        "import json\n"
        "from foldin.config import load_config\n"
        "from foldin.session import build_session\n"
        "config = load_config()\n"
        "config.spark.conf['spark.redaction.regex'] = 'ours'\n"
        "spark = build_session(config)\n"
        "names = ['spark.redaction.regex', 'spark.sql.shuffle.partitions', 'spark.sql.session.timeZone']\n"
        "root = spark._jvm.java.net.URI('file:///')\n"
        "files = spark._jvm.org.apache.hadoop.fs.FileSystem.get(root, spark._jsc.hadoopConfiguration())\n"
        "print(json.dumps([spark.conf.get(name) for name in names] + [files.getClass().getSimpleName()]))\n"
    )
    settings = {"redaction.regex": "theirs", "sql.shuffle.partitions": "7", "ui.enabled": "false"}
    settings["hadoop.fs.file.impl"] = "org.apache.hadoop.fs.LocalFileSystem"
    confs = [word for key, value in settings.items() for word in ("--conf", f"spark.{key}={value}")]
    submit = Path(sys.executable).with_name("spark-submit")
    done = subprocess.run(
        [submit, "--master", "local[1]", *confs, script],
        cwd=tmp_path,
        env=environment(PYSPARK_PYTHON=sys.executable),
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    redaction, partitions, zone, files = json.loads(done.stdout.splitlines()[-1])
    assert redaction.startswith(_REQUIRED["spark.redaction.regex"])
    assert {"(?:ours)", "(?:theirs)"} <= set(redaction.split("|"))
    assert (partitions, zone, files) == ("7", "UTC", "LocalFileSystem")


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
