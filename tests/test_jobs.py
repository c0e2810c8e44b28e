"""Jobs as people and orchestrators run them: real processes, their exit codes and what they print."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from foldin.cli import parser, run_job
from foldin.schemas import EVENTS, INGEST_LOG
from foldin.tables import Tables

ROOT = Path(__file__).parents[1]
JOB = "jobs/ingest.py"
DELTA = "io.delta:delta-spark_4.2_2.13:4.4.0"
SECONDS = 150  # a session starts in 12 s; a machine may be busy


def event(event_id: str) -> str:
    row = {"event_id": event_id, "user_id": "u", "item_id": "i", "event_type": "view", "event_time": "2024-05-01"}
    return json.dumps(row) + "\n"


def environment(**more: str) -> dict[str, str]:
    """As after a plain login: neither this process's Spark nor its threads."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYSPARK_", "SPARK_")) and "_NUM_THREADS" not in k}
    return kept | {"PYTHONPATH": str(ROOT / "lib")} | more


def options(folder: Path) -> list[str]:
    settings = {
        "tables.root": folder / "tables",
        "ingest.landing": folder / "landing",
        "spark.master": "'local[2]'",
        "spark.conf.spark.driver.memory": "1g",
        "spark.conf.spark.sql.warehouse.dir": folder / "warehouse",
    }
    return [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]


def test_once_from_a_checkout_with_a_blank_in_its_path_prints_the_account_and_exits_0(tmp_path: Path) -> None:
    checkout = tmp_path / "my code"
    checkout.mkdir()
    for name in ("lib", "conf", "jobs"):
        (checkout / name).symlink_to(ROOT / name)
    (tmp_path / "landing").mkdir()
    (tmp_path / "landing" / "1.json").write_text(event("a") + event("b") + event("a") + "broken\n{}\n")
    done = subprocess.run(
        [sys.executable, JOB, "--once", *options(tmp_path)],
        cwd=checkout,
        env=environment(PYTHONPATH=str(checkout / "lib")),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "5 rows in = 2 events + 2 quarantined + 1 duplicates",
        "  quarantined, broken json: 1",
        "  quarantined, missing user_id: 1",
    ]
    assert " ERROR " not in done.stderr
    assert "Traceback" not in done.stderr


def test_a_bad_setting_exits_2_with_one_line_on_stderr(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, JOB, "--once", "--set", "train.rnk=64"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "foldin: --set: unknown key train.rnk = 64, did you mean train.rank?\n"


def test_spark_submit_passes_the_exit_code_of_a_missing_landing_folder_on(tmp_path: Path) -> None:
    submit = Path(sys.executable).with_name("spark-submit")
    settings = {"ui.enabled": "false", "databricks.delta.snapshotPartitions": "2", "driver.memory": "1g"}
    confs = [word for key, value in settings.items() for word in ("--conf", f"spark.{key}={value}")]
    done = subprocess.run(
        [submit, "--packages", DELTA, "--master", "local[2]", *confs, JOB, "--once", *options(tmp_path)],
        cwd=ROOT,
        env=environment(PYSPARK_PYTHON=sys.executable),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    line = f"foldin: ingest.landing = '{tmp_path}/landing': there is no such folder"
    # spark-submit sends a Python program's stderr to its own stdout.
    assert done.stdout.splitlines()[-1] == line, done.stderr
    assert done.returncode == 2
    assert "Traceback" not in done.stdout + done.stderr


def test_in_continuous_mode_sigterm_finishes_the_batch_prints_the_account_and_exits_0(
    tmp_path: Path, spark: SparkSession
) -> None:
    landing = tmp_path / "landing"
    landing.mkdir()
    (landing / "0.json").write_text(event("0"))
    log = tmp_path / "stderr.log"
    with log.open("w") as stderr:
        job = subprocess.Popen(
            [sys.executable, JOB, *options(tmp_path), "--set", "ingest.trigger_seconds=0.1"],
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
        try:
            commits = tmp_path / "tables" / "_checkpoints" / "ingest" / "commits"
            offsets = commits.with_name("offsets")
            wait_until(lambda: (commits / "0").exists(), job)
            (landing / "1.json").write_text(event("1") + event("0"))
            wait_until(lambda: (offsets / "1").exists(), job)  # its batch has begun
            job.send_signal(signal.SIGTERM)
            stdout, _ = job.communicate(timeout=SECONDS)
        finally:
            job.kill()
            job.wait()
    assert job.returncode == 0, log.read_text()
    assert "Traceback" not in log.read_text()

    tables = Tables(spark, str(tmp_path / "tables"))
    done = sorted(row["batch_id"] for row in tables.read(INGEST_LOG).collect())
    assert done == sorted(int(path.name) for path in commits.iterdir() if path.name.isdigit())
    ids = sorted(row["event_id"] for row in tables.read(EVENTS).collect())
    # The signal came before the batch's first write or after: it was not begun, or finished.
    assert (ids, stdout) in (
        (["0"], "1 rows in = 1 events + 0 quarantined + 0 duplicates\n"),
        (["0", "1"], "3 rows in = 2 events + 0 quarantined + 1 duplicates\n"),
    )


@pytest.mark.parametrize(
    ("more", "code", "line"),
    [
        (["--set", "ingest.landing=/no/such/folder"], 2, "ingest.landing = '/no/such/folder': there is no such folder"),
        (["--mapping", "none"], 2, "no mapping 'none'; known: movielens, online_retail, or a path to a .toml file"),
        (["--config", "none.toml"], 2, "cannot read none.toml: No such file or directory"),
    ],
)
def test_an_error_that_a_person_can_mend_is_one_line_on_stderr(
    spark: SparkSession, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], code: int, line: str
) -> None:
    from foldin.ingest import Ingest

    def ingest(job: object) -> None:
        Ingest(job.tables, job.config, job.mapping).run(once=True)  # type: ignore[attr-defined]

    assert run_job(ingest, parser("a test"), [*options(tmp_path), *more]) == code
    assert capsys.readouterr().err == f"foldin: {line}\n"


def wait_until(holds: Callable[[], bool], job: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + SECONDS
    while not holds():
        assert job.poll() is None, "the job ended by itself"
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
