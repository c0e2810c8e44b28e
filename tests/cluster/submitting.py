"""What `make package` made, submitted to a cluster by the script that conf/cluster/standalone.md shows."""

from __future__ import annotations

import os
import re
import signal
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

import quick
from chaos.processes import ROOT
from cluster.standalone import SPARK_HOME, Cluster, Host

DIST = ROOT / "dist"
PROPERTIES = ROOT / "conf" / "cluster" / "foldin.properties"
PAGE = ROOT / "conf" / "cluster" / "standalone.md"

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
        for name, target in (("dist", DIST), ("environment", self.environment)):
            (self.host.folder / name).symlink_to(target)
        small = "".join(f"{key} {value}\n" for key, value in SMALL.items())
        (self.host.folder / "my.properties").write_text(PROPERTIES.read_text() + small)
        script = self.host.folder / "submit"
        script.write_text(self._as_on_the_page())
        script.chmod(0o755)
        sets = [word for setting in self.settings for word in ("--set", setting)]
        self.host.environment |= {"FOLDIN_CORES": str(self.executors)}
        self.host.run(script, self.script, *options, *sets)
        return self

    def _as_on_the_page(self) -> str:
        """The page's script, its example paths and address replaced by those of this cluster."""
        (text,) = re.findall(r"^```bash\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
        here = {
            "/srv/foldin": str(self.host.folder),
            "/opt/spark/bin/spark-submit": str(SPARK_HOME / "bin" / "spark-submit"),
            "spark://master-host:7077": self.cluster.url,
        }
        for there, found in here.items():
            assert there in text
            text = text.replace(there, found)
        return text

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
