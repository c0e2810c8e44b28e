"""A job with secrets: wherever a running job and what it leaves behind can be looked at, no secret is seen.

One job runs with Spark's pages and its event log, a second one fails with an error that repeats a secret. Every part
has been seen to fail against the plain way, which gives all settings to the session's builder and leaves
`spark.redaction.regex` as it is.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import quick

ROOT = Path(__file__).parents[1]
SECONDS = 180
MARK = "Hunter2Marker"  # begins every secret
HIDDEN = "*********(redacted)"

EVENT = '{"event_id": "e", "user_id": "u", "item_id": "i", "event_type": "view", "event_time": "2024-05-01"}\nbroken\n'


@dataclass(frozen=True)
class Seen:
    """What could be seen of the job, by where: a page, a stream, a process, a file."""

    running: dict[str, str]
    left: dict[str, str]
    failed: subprocess.CompletedProcess[str]


def secrets(folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Settings with references, and the environment that they name; files lie in `folder`."""
    for name in ("password", "class"):
        file = folder / name
        file.write_text(f"{MARK}-{name}\n")
        file.chmod(0o400)
    settings = {
        "spark.hadoop.fs.s3a.secret.key": "${env:SHOP_SECRET}",
        "spark.hadoop.fs.s3a.session.token": f"${{file:{folder}/password}}",
        # Spark's own pattern knows neither of these names.
        "spark.hadoop.fs.azure.account.key.shop.dfs.core.windows.net": "${env:SHOP_ACCOUNT}",
        "spark.hadoop.fs.shop.impl": f"${{file:{folder}/class}}",
        "spark.hadoop.javax.jdo.option.ConnectionURL": "jdbc:derby:;databaseName=x;user=u;password=${env:SHOP_SECRET}",
        "spark.executorEnv.SHOP_API_KEY": "${env:SHOP_SECRET}",
    }
    return settings, {"SHOP_SECRET": f"{MARK}-env", "SHOP_ACCOUNT": f"{MARK}-account"}


def command(folder: Path, settings: dict[str, str], *more: str) -> list[str]:
    options = {
        "tables.root": str(folder / "tables"),
        "ingest.landing": str(folder / "landing"),
        "spark.master": "local[2]",
        "kafka.options.kafka.ssl.key.password": "${env:SHOP_SECRET}",
    }
    options |= {f"spark.conf.{key}": value for key, value in settings.items()}
    words = [word for key, value in options.items() for word in ("--set", f"{key}='''{value}'''")]
    return [sys.executable, str(ROOT / "jobs" / "ingest.py"), *words, *more]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def command_lines(parent: int) -> dict[str, str]:
    """The command line of a process and of all its descendants, by process."""
    parents, found = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat, line = (folder / "stat").read_text(), (folder / "cmdline").read_bytes()
        except OSError:  # it has ended
            continue
        pid = int(folder.name)
        parents[pid] = int(stat.rpartition(")")[2].split()[1])
        found[pid] = line.replace(b"\0", b" ").decode(errors="replace")
    mine = {parent}
    for _ in range(8):  # deeper than job, shell, launcher, JVM, daemon, worker
        mine |= {pid for pid, above in parents.items() if above in mine}
    return {f"command line of {pid} {found[pid][:40]}": found[pid] for pid in mine if pid in found}


def pages(port: int) -> dict[str, str]:
    """What Spark shows on its pages and by its REST interface."""

    def get(path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as answer:
            return str(answer.read().decode())

    app = json.loads(get("/api/v1/applications"))[0]["id"]
    executions = json.loads(get(f"/api/v1/applications/{app}/sql?length=1000"))
    paths = ["/environment/", "/SQL/", "/StreamingQuery/", "/jobs/", "/stages/", "/executors/"]
    paths += [f"/SQL/execution/?id={execution['id']}" for execution in executions[-3:]]
    paths += [f"/api/v1/applications/{app}/{name}" for name in ("environment", "sql?details=true&length=1000", "jobs")]
    return {path: get(path) for path in paths}


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    folder, kept = tmp_path_factory.mktemp("job"), tmp_path_factory.mktemp("kept")
    settings, variables = secrets(kept)
    (folder / "landing").mkdir()
    (folder / "events").mkdir()
    (folder / "landing" / "1.json").write_text(EVENT)
    port = free_port()
    spark = {
        "spark.ui.enabled": "true",
        "spark.ui.port": str(port),
        "spark.logConf": "true",
        "spark.log.level": "INFO",
        "spark.eventLog.enabled": "true",
        "spark.eventLog.dir": (folder / "events").as_uri(),
        "spark.eventLog.compress": "false",
        "spark.driver.memory": "1g",
        "spark.sql.warehouse.dir": str(folder / "warehouse"),
        "spark.local.dir": str(folder / "local"),
    }
    running: dict[str, str] = {}
    with (folder / "stdout").open("w") as stdout, (folder / "stderr").open("w") as stderr:
        job = subprocess.Popen(
            command(folder, spark | settings),
            cwd=ROOT,
            env=quick.environment(**variables),
            stdout=stdout,
            stderr=stderr,
        )
        try:
            commit = folder / "tables" / "_checkpoints" / "ingest" / "commits" / "0"
            deadline = time.monotonic() + SECONDS
            while not commit.exists():
                assert job.poll() is None, (folder / "stderr").read_text()[-2000:]
                assert time.monotonic() < deadline, "waited in vain"
                running |= command_lines(job.pid)
                time.sleep(0.02)  # the shell that starts the JVM is there for a moment only
            running |= pages(port)
            job.terminate()
            job.wait(SECONDS)
        finally:
            job.kill()
            job.wait()
    assert job.returncode == 0, (folder / "stderr").read_text()[-2000:]
    failed = subprocess.run(
        command(
            folder, settings | {"spark.driver.memory": "1g"}, "--once", "--set", "ingest.landing='shop://goods/in'"
        ),
        cwd=ROOT,
        env=quick.environment(**variables),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    return Seen(running, dict(contents(folder)), failed)


def contents(folder: Path) -> Iterator[tuple[str, str]]:
    """Every file below `folder`, as it is, and of Parquet files the rows too, which are compressed."""
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        yield str(file.relative_to(folder)), file.read_bytes().decode(errors="replace")
        if file.suffix == ".parquet":
            yield f"rows of {file.name}", str(pq.ParquetFile(file).read().to_pylist())


def leaks(texts: dict[str, str]) -> list[str]:
    return [where for where, text in texts.items() if MARK.lower() in text.lower()]


def test_no_command_line_has_a_secret(seen: Seen) -> None:
    lines = {where: text for where, text in seen.running.items() if where.startswith("command line")}
    assert any("SparkSubmit" in line and "spark.eventLog.enabled=true" in line for line in lines.values())
    assert leaks(lines) == []


def test_no_page_of_spark_has_a_secret_and_the_settings_are_there(seen: Seen) -> None:
    # The page of the environment takes what it shows from there.
    rest = json.loads(next(text for where, text in seen.running.items() if where.endswith("/environment")))
    properties = dict(rest["sparkProperties"]) | dict(rest["hadoopProperties"])
    assert properties["spark.sql.session.timeZone"] == "UTC"
    keys = secrets_of(seen)
    assert len(keys) == 6
    assert {key: properties[key] for key in keys} == dict.fromkeys(keys, HIDDEN)
    assert "ingest" in seen.running["/StreamingQuery/"]
    assert leaks(seen.running) == []


def secrets_of(seen: Seen) -> list[str]:
    """The settings with references, as the job's command line names them."""
    line = next(
        text for where, text in seen.running.items() if "jobs/ingest.py" in text and where.startswith("command")
    )
    return re.findall(r"spark\.conf\.(\S+?)='''[^']*\$\{", line)


def test_the_event_log_the_tables_and_the_checkpoints_have_no_secret(seen: Seen) -> None:
    log = "".join(text for where, text in seen.left.items() if where.startswith("events/"))
    assert "SparkListenerSQLExecutionStart" in log
    assert f'"spark.hadoop.fs.s3a.secret.key":"{HIDDEN}"' in log
    assert any(where.startswith("tables/quarantine/_delta_log/") for where in seen.left)
    assert any("_checkpoints/ingest/offsets/0" in where for where in seen.left)
    assert any(where.startswith("rows of") and "broken json" in text for where, text in seen.left.items())
    assert leaks(seen.left) == []


def test_what_the_job_says_has_no_secret(seen: Seen) -> None:
    assert "2 rows in = 1 events + 1 quarantined + 0 duplicates" in seen.left["stdout"]
    assert "spark.hadoop.fs.s3a.secret.key=" in seen.left["stderr"]  # spark.logConf prints all settings
    assert leaks({name: seen.left[name] for name in ("stdout", "stderr")}) == []


def test_an_error_that_repeats_a_secret_is_said_without_it(seen: Seen) -> None:
    said = seen.failed.stdout + seen.failed.stderr
    assert seen.failed.returncode == 2, said
    # That the class is looked for shows that the secret has come to where it is used.
    assert re.search(r"foldin: ingest\.landing = 'shop://goods/in': .*Class \[hidden\] not found", said), said
    assert leaks({"said": said}) == []
