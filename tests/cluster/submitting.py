"""What `make package` made, submitted to a cluster as the pages in conf/cluster say."""

from __future__ import annotations

import os
import signal
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

import quick
from chaos.processes import ROOT
from cluster.standalone import SPARK_HOME, Cluster, Host

DIST = ROOT / "dist"
PROPERTIES = ROOT / "conf" / "cluster" / "foldin.properties"

SMALL = {
    # Up to three JVMs of a job on two cores; each has a minute to live.
    "spark.driver.memory": "1g",
    "spark.executor.memory": "1g",
    "spark.executor.cores": "1",
    "spark.sql.shuffle.partitions": "2",
    "spark.driver.extraJavaOptions": quick.SHORT_JVM,
    "spark.executor.extraJavaOptions": quick.SHORT_JVM,
    # All on loopback; the JARs come from this user's cache.
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.jars.ivy": str(Path.home() / ".ivy2.5.2"),
    "spark.ui.enabled": "false",
    **quick.SETTINGS,
}


def unpacked(folder: Path) -> Path:
    """The environment as a submitting host unpacks it."""
    folder.mkdir(parents=True)
    with tarfile.open(DIST / "foldin-environment.tar.gz") as archive:
        archive.extractall(folder, filter="fully_trusted")  # bin/python is a link to this machine's Python
    return folder


@dataclass
class Submitted:
    """A job script, submitted from a host of its own: what it writes locally dies with it."""

    cluster: Cluster
    environment: Path
    script: Path
    host: Host
    settings: tuple[str, ...] = ()
    executors: int = 1
    name: str = field(init=False)

    def __post_init__(self) -> None:
        self.name = self.script.stem

    def start(self, *options: str) -> Submitted:
        """Submit it."""
        jars = ",".join((DIST / "jars.txt").read_text().split())
        confs = [word for key, value in SMALL.items() for word in ("--conf", f"{key}={value}")]
        sets = [word for setting in self.settings for word in ("--set", setting)]
        self.host.environment |= {
            "SPARK_HOME": str(SPARK_HOME),
            "PYSPARK_PYTHON": "./environment/bin/python",
            "PYSPARK_DRIVER_PYTHON": str(self.environment / "bin" / "python"),
        }
        self.host.run(
            SPARK_HOME / "bin" / "spark-submit", "--master", self.cluster.url, "--properties-file", PROPERTIES,
            "--packages", jars, "--archives", f"{DIST / 'foldin-environment.tar.gz'}#environment",
            "--total-executor-cores", str(self.executors), *confs, self.script, *options, *sets,
        )  # fmt: skip
        return self

    def assert_alive(self) -> None:
        """It did not end by itself."""
        assert self.host.process is not None
        code = self.host.process.poll()
        assert code is None, f"{self.name} ended with {code}:\n{self.said()[-5000:]}"

    def wait(self, seconds: float = 240) -> int:
        """Its exit code."""
        assert self.host.process is not None
        return self.host.process.wait(seconds)

    def terminate(self) -> int:
        """SIGTERM to the job's own process, which is a child of spark-submit; the exit code that spark-submit gives."""
        assert self.host.process is not None
        (driver,) = (pid for pid in self.host.family() if _is_python(pid))
        os.kill(driver, signal.SIGTERM)
        return self.wait()

    def said(self) -> str:
        """What it has printed: spark-submit sends a Python program's stderr to its own stdout."""
        return self.host.said()

    def lose(self) -> None:
        """SIGKILL driver and JVM, and lose the host's disk."""
        self.host.lose()


def _is_python(pid: int) -> bool:
    """It runs a Python program; spark-submit itself is a JVM."""
    words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return b"python" in words[0] and b".py" in b" ".join(words[1:])
