"""Build what a cluster is given, into dist/: the wheel, an environment for drivers and workers, JARs, job scripts.

    dist/foldin-VERSION-py3-none-any.whl
    dist/foldin-environment.tar.gz   Python packages at the locked versions, foldin itself among them, but no pyspark
    dist/jars.txt                    Maven coordinates for `--packages`, one a line
    dist/jobs/                       what spark-submit is told to run

The environment is a virtual one that may lie anywhere: Python finds its packages by where `bin/python` is. That is a
link, so hosts need the Python that made it at the same path (`dist/python.txt`). pyspark comes with the cluster.
"""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from delta import configure_spark_with_delta_pip
from environment import FOLDER, ROOT, Pin, Venv, Wheelhouse, cache_folder, normal, read_lock
from packaging.requirements import Requirement
from pyspark.sql import SparkSession

from foldin.kafka import CONNECTOR

LOCK = FOLDER / "requirements.lock"
DIST = ROOT / "dist"
BUILD = ROOT / "build" / "environment"
EXTRAS = ("search", "report")
WITH_SPARK = {"pyspark", "py4j"}
"""Spark brings these to drivers and workers, in the version of the cluster."""


def needed(name: str, extras: tuple[str, ...] = ()) -> set[str]:
    """Names of all packages that one needs, and those that they need, as installed here; without Spark's own."""
    found: set[str] = set()
    waiting = [(name, extras)]
    while waiting:
        package, wanted = waiting.pop()
        for requirement in map(Requirement, importlib.metadata.requires(package) or []):
            marker = requirement.marker
            applies = marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *wanted))
            other = normal(requirement.name)
            if applies and other not in found | WITH_SPARK:
                found.add(other)
                waiting.append((other, tuple(requirement.extras)))
    return found


def locked(names: set[str]) -> list[Pin]:
    """The lock's pins of these packages."""
    pins = [pin for pin in read_lock(LOCK) if normal(pin.name) in names]
    if lacking := names - {normal(pin.name) for pin in pins}:
        sys.exit(f"foldin: {LOCK.name} lacks {', '.join(sorted(lacking))}: make lock remakes it")
    return pins


def run(*command: str | Path) -> None:
    done = subprocess.run([*map(str, command)], cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"foldin: {command[0]} failed:\n{done.stdout}{done.stderr}")


def build_wheel() -> Path:
    run(sys.executable, "-I", "-m", "hatchling", "build", "-t", "wheel", "-d", DIST)
    (wheel,) = DIST.glob("foldin-*.whl")
    return wheel


def build_environment(wheel: Path) -> None:
    """A virtual environment with the locked packages and the wheel, and nothing that knows where it was made."""
    shutil.rmtree(BUILD, ignore_errors=True)
    run(getattr(sys, "_base_executable", sys.executable), "-I", "-m", "venv", "--without-pip", BUILD)
    house = Wheelhouse(cache_folder(), Venv.of(None))
    requirements = BUILD / "requirements.txt"
    requirements.write_text(house.requirements(locked(needed("foldin", EXTRAS))))
    pip = (sys.executable, "-I", "-m", "pip", "--isolated", "--python", BUILD / "bin" / "python", "install")
    offline = ("--quiet", "--disable-pip-version-check", "--no-deps", "--no-index", "--no-cache-dir")
    run(*pip, *offline, "--require-hashes", "--find-links", house.wheels, "--requirement", requirements)
    run(*pip, *offline, wheel)
    for script in (BUILD / "bin").iterdir():
        if not script.name.startswith("python"):
            script.unlink()  # they begin with the path of this checkout
    configuration = BUILD / "pyvenv.cfg"
    lines = configuration.read_text().splitlines(keepends=True)
    configuration.write_text("".join(line for line in lines if not line.startswith("command")))


def pack(archive: Path) -> None:
    """Times of files are kept: by them Python knows that its compiled files are still good."""

    def wanted(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
        # A third of all files: every executor unpacks the archive before its first task.
        return None if entry.isdir() and Path(entry.name).name == "tests" else entry

    with tarfile.open(archive, "w:gz", compresslevel=3) as packed:
        for entry in sorted(BUILD.iterdir()):
            packed.add(entry, entry.name, filter=wanted)


def jars() -> list[str]:
    """Delta's artefact for the Scala and Spark that are locked, and the Kafka connector."""
    builder = configure_spark_with_delta_pip(SparkSession.Builder())
    return [*builder._options["spark.jars.packages"].split(","), CONNECTOR]


def main() -> int:
    shutil.rmtree(DIST, ignore_errors=True)
    DIST.mkdir()
    wheel = build_wheel()
    build_environment(wheel)
    archive = DIST / "foldin-environment.tar.gz"
    pack(archive)
    (DIST / "jars.txt").write_text("".join(f"{coordinate}\n" for coordinate in jars()))
    (DIST / "python.txt").write_text(f"{(BUILD / 'bin' / 'python').resolve()} {sys.version.split()[0]}\n")
    (DIST / "jobs").mkdir()
    for job in sorted((ROOT / "jobs").glob("*.py")):
        shutil.copy(job, DIST / "jobs")
    for path in sorted(DIST.iterdir()):
        size = f"{path.stat().st_size / 1e6:.1f} MB" if path.suffix in (".whl", ".gz") else ""
        print(f"{path.relative_to(ROOT)}  {size}".rstrip())
    return 0


if __name__ == "__main__":
    sys.exit(main())
