"""A Spark standalone cluster on loopback: a master and workers as processes of their own, each with its own disk."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyspark

from chaos.processes import processes, wait_until
from quick import SHORT_JVM

SPARK_HOME = Path(pyspark.__file__).parent


def clean_environment(home: Path, **more: str) -> dict[str, str]:
    """What a fresh login on a host has: nothing of this process, its packages or its temporary files."""
    (home / "tmp").mkdir(parents=True, exist_ok=True)
    kept = {name: os.environ[name] for name in ("JAVA_HOME", "LANG") if name in os.environ}
    return kept | {"PATH": os.environ["PATH"], "HOME": str(home), "TMPDIR": str(home / "tmp")} | more


@dataclass
class Host:
    """What would be a machine: a folder for all that its processes write, and those processes."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = field(default=None, init=False, repr=False)

    def run(self, *command: str | Path) -> None:
        """Start a process in a group of its own; all it says goes to `log`."""
        environment = clean_environment(self.folder, **self.environment)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*map(str, command)],
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def said(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def family(self) -> list[int]:
        """The process and all of its descendants."""
        assert self.process is not None
        found, alive = [self.process.pid], processes()
        for pid in found:
            found += [stat.pid for stat in alive if stat.parent == pid]
        return found

    def lose(self) -> None:
        """SIGKILL everything that runs here, and lose the disk."""
        if self.process is not None and self.process.poll() is None:
            pids = self.family()
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            self.process.wait()
            wait_until(lambda: not any(s.pid in pids and s.state != "Z" for s in processes()), f"{self.folder} is dead")
        shutil.rmtree(self.folder, ignore_errors=True)


@dataclass
class Cluster:
    """A master and workers."""

    folder: Path
    url: str = field(default="", init=False)
    workers: list[Host] = field(default_factory=list, init=False)
    _hosts: int = field(default=0, init=False)

    def start(self, workers: int) -> None:
        """All of it; waits until the workers are known to the master."""
        self.master = self.host()
        self.master.run(
            *_spark_class("master.Master"), "--host", "127.0.0.1", "--port", "0", "--webui-port", "0",
        )  # fmt: skip
        wait_until(lambda: self._find_url() != "", "the master says where it is")
        for _ in range(workers):
            self.add_worker()

    def add_worker(self, cores: int = 2) -> Host:
        """One more machine."""
        host = self.host()
        known = self.master.said().count("Registering worker")
        host.run(
            *_spark_class("worker.Worker"), "--host", "127.0.0.1", "--port", "0", "--webui-port", "0",
            "--cores", str(cores), "--memory", "4g", "--work-dir", str(host.folder / "work"), self.url,
        )  # fmt: skip
        wait_until(lambda: self.master.said().count("Registering worker") > known, "the worker is registered")
        self.workers.append(host)
        return host

    def stop(self) -> None:
        """Kill what is left; the master's and workers' folders go too."""
        for host in [*self.workers, self.master]:
            host.lose()

    def host(self) -> Host:
        """A machine where nothing runs yet."""
        self._hosts += 1
        folder = self.folder / f"host-{self._hosts}"
        folder.mkdir(parents=True)
        environment = {
            "SPARK_HOME": str(SPARK_HOME),
            "SPARK_LOCAL_IP": "127.0.0.1",
            "SPARK_LOCAL_DIRS": str(folder / "tmp"),
            "SPARK_DAEMON_JAVA_OPTS": SHORT_JVM,
            "SPARK_DAEMON_MEMORY": "256m",
        }
        return Host(folder, environment)

    def _find_url(self) -> str:
        found = re.search(r"Starting Spark master at (spark://\S+)", self.master.said())
        self.url = found.group(1) if found else ""
        return self.url


def _spark_class(name: str) -> Sequence[str]:
    return [str(SPARK_HOME / "bin" / "spark-class"), f"org.apache.spark.deploy.{name}"]
