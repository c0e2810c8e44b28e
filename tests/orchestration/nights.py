"""A small installation, made by the real ingest job, and the nights that schedulers make of it."""

from __future__ import annotations

import datetime as dt
import json
import shlex
import shutil
import sqlite3
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from warm import ask

import quick
from landing import event
from world import ITEMS, SMALL

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
PATIENCE = 240
"""Seconds after which a wait has failed."""

GOOD = ("judge.k=5", "judge.least_users=10", "judge.holdout=0.24")  # a little less than the late slices have
BAD = ("train.reg_param=1000.0", "train.alpha=0.0001")  # all of its factors are next to nothing


def environment(**more: str) -> dict[str, str]:
    """As after a plain login; all but the warm JVM live for some seconds."""
    return quick.environment(**{"JDK_JAVA_OPTIONS": quick.SHORT_JVM} | more)


def purchase(event_id: str, user: str, item: str, day: int) -> str:
    """A line of JSON."""
    when = f"2025-03-{1 + day:02d} 00:00:00"
    return event(event_id, user, item, event_type="purchase", event_time=when) + "\n"


def slices() -> tuple[list[str], list[str], list[str]]:
    """Forty users of two tastes: three items each at first, the fourth of their taste later, then a fifth."""
    first, second, third = [], [], []
    for u in range(40):
        mine = [ITEMS[(u % 2) * 6 + (u // 2 + k) % 6] for k in range(5)]
        first += [purchase(f"e{u}-{k}", f"u{u}", item, k) for k, item in enumerate(mine[:3])]
        second.append(purchase(f"e{u}-3", f"u{u}", mine[3], 20))
        third.append(purchase(f"e{u}-4", f"u{u}", mine[4], 25))
    return first, second, third


@dataclass(frozen=True)
class Installation:
    """Tables under a folder, and how the jobs are told of them.

    Attributes:
        moments: just after each slice was ingested.
    """

    folder: Path
    socket: Path
    moments: tuple[dt.datetime, ...] = ()

    def settings(self, *sets: str) -> list[str]:
        """--set options."""
        given = (
            f"tables.root={self.folder / 'tables'}",
            f"ingest.landing={self.folder / 'landing'}",
            "spark.master='local[2]'",
            "spark.conf.spark.driver.memory=1g",
            f"spark.conf.spark.sql.warehouse.dir={self.folder / 'warehouse'}",
            *(f"spark.conf.{key}={value}" for key, value in quick.SETTINGS.items()),
            *SMALL,
            *GOOD,
            *sets,
        )
        return [word for setting in given for word in ("--set", setting)]

    def ask(self, *words: str) -> str:
        """Run something in the warm process; it must end with 0."""
        code, output = ask(str(self.socket), [*words, *self.settings()])
        assert code == 0, output
        return output

    def land_and_ingest(self, name: str, lines: list[str]) -> dt.datetime:
        """The moment after it."""
        (self.folder / "landing").mkdir(parents=True, exist_ok=True)
        (self.folder / "landing" / name).write_text("".join(lines), encoding="utf-8")
        self.ask("jobs/ingest.py", "--once")
        return dt.datetime.now(dt.UTC)

    def look(self, *options: str) -> dict[str, Any]:
        """What its tables hold."""
        lines = self.ask("tests/orchestration/look.py", *options).splitlines()
        (found,) = [json.loads(line.removeprefix("LOOK ")) for line in lines if line.startswith("LOOK ")]
        return dict(found)

    def copy(self, to: Path) -> Installation:
        """Another one with the same tables; nothing more is to be landed."""
        shutil.copytree(self.folder / "tables", to / "tables")
        return Installation(to, self.socket, self.moments)

    def prefixes(self) -> tuple[str, str]:
        """What stands before a job's name, and before a command's."""
        before = f"{sys.executable} {HERE / 'warm.py'} {self.socket}"
        return f"{before} jobs/", f"{before} -m foldin"


@dataclass(frozen=True)
class Night:
    """What became of a night.

    Attributes:
        tasks: by name, its state and how often it was tried.
        told: lines for somebody.
    """

    code: int
    output: str
    tasks: dict[str, tuple[str, int]] = field(default_factory=dict)
    told: tuple[str, ...] = ()

    def states(self) -> dict[str, str]:
        """By task."""
        return {name: state for name, (state, _) in self.tasks.items()}


@dataclass(frozen=True)
class Airflow:
    """An Airflow of its own, on its default database."""

    home: Path
    command: Path = ROOT / ".venv-airflow" / "bin" / "airflow"

    def prepare(self) -> None:
        """Make the database."""
        done = self._run(["db", "migrate"], {})
        assert done.returncode == 0, done.stdout

    def night(
        self,
        installation: Installation,
        moment: dt.datetime,
        *sets: str,
        jobs: str | None = None,
        commands: str | None = None,
    ) -> Night:
        """`airflow dags test foldin_nightly MOMENT`.

        Args:
            jobs, commands: what stands before their names; by default, what asks the warm process.
        """
        alerts = installation.folder / "alerts"
        alerts.unlink(missing_ok=True)
        notifier = {"notifier": "told.ToFile", "file": str(alerts), "text": "{{ foldin_alert }}"}
        warm = installation.prefixes()
        variables = {
            "FOLDIN_HOME": str(ROOT),
            "FOLDIN_JOBS": jobs or warm[0],
            "FOLDIN_COMMANDS": commands or warm[1],
            "FOLDIN_OPTIONS": shlex.join(installation.settings(*sets)),
            "FOLDIN_ALERT": json.dumps([notifier]),
        }
        done = self._run(["dags", "test", "foldin_nightly", moment.isoformat()], variables)
        told = tuple(alerts.read_text().splitlines()) if alerts.exists() else ()
        return Night(done.returncode, done.stdout, self._tasks(), told)

    def _tasks(self) -> dict[str, tuple[str, int]]:
        """Of the newest run."""
        with sqlite3.connect(self.home / "airflow.db") as database:
            rows = database.execute(
                "select task_id, state, try_number from task_instance "
                "where run_id = (select run_id from dag_run order by id desc limit 1)"
            ).fetchall()
        return {name: (state, tries) for name, state, tries in rows}

    def _run(self, words: list[str], variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
        return run(
            [str(self.command), *words],
            self.home,
            PYTHONPATH=f"{ROOT / 'lib'}:{HERE}",
            AIRFLOW_HOME=str(self.home),
            AIRFLOW__CORE__DAGS_FOLDER=str(ROOT / "conf" / "orchestration" / "airflow"),
            AIRFLOW__CORE__LOAD_EXAMPLES="False",
            FOLDIN_RETRIES="1",
            FOLDIN_RETRY_SECONDS="1",
            PYSPARK_PYTHON=sys.executable,
            **{f"AIRFLOW_VAR_{name}": value for name, value in variables.items()},
        )


def run(command: list[str], folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end as after a plain login; its stdout has both outputs."""
    return subprocess.run(
        command,
        env=environment(**variables),
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def start_warm(folder: Path) -> tuple[Path, subprocess.Popen[bytes]]:
    """A warm process, and where it listens."""
    socket = folder / "warm.socket"
    log = (folder / "warm.log").open("wb")
    process = subprocess.Popen(
        [sys.executable, str(HERE / "warm.py"), "serve", str(socket)],
        cwd=ROOT,
        env=environment(JDK_JAVA_OPTIONS=quick.JVM),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
    )
    deadline = time.monotonic() + PATIENCE
    while not socket.exists():
        assert process.poll() is None, (folder / "warm.log").read_text()
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
    return socket, process
