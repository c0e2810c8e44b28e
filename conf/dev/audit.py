"""Is anything known against what the locks install? `make audit`.

pip-audit, installed from conf/dev/audit.lock into an environment that is thrown away, asks its services about every
package of every lock. Where it can be had and a service answers, what is known is printed, and the exit code is 1.

Where not, the locks must speak for themselves: every package at one version, every file of it with a hash. That is
checked in any case. The last line says which of the two was done: a service that knows no package at all (a mirror
without such data) makes pip-audit say "no known vulnerabilities", which would be no answer.

The JARs that Ivy brings are named by version in the code and the locks say nothing of them; they are listed.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from environment import SetupError, read_lock

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "conf" / "dev"
SERVICES = ("pypi", "osv")
SECONDS = 300  # for one call

PINNED = re.compile(r"[A-Za-z0-9][\w.-]*(\[[\w.,-]+\])?==[A-Za-z0-9][\w.!+-]*(\s*;.*)?")
HASH = re.compile(r"[0-9a-f]{64}")


class UnavailableError(Exception):
    """pip-audit cannot be had, or no service answers it; the message says why, in one line."""


@dataclass(frozen=True)
class Answer:
    """What a service said about a lock."""

    known: tuple[str, ...]
    """One line a vulnerability: package, version, id, versions that mend it."""
    asked: int
    """Packages that the service knows."""
    unknown: tuple[str, ...]
    """Those that it does not."""


def lock_faults(lock: Path) -> list[str]:
    """What of a lock would let pip install something else than what was locked."""
    try:
        pins = read_lock(lock)
    except SetupError as error:
        return [str(error)]
    loose = [f"{lock}: {pin.requirement} is not one version" for pin in pins if not PINNED.fullmatch(pin.requirement)]
    bad = [
        f"{lock}: {pin.requirement} has a hash that is none" for pin in pins if not all(map(HASH.fullmatch, pin.hashes))
    ]
    return [*loose, *bad, *([] if pins else [f"{lock}: locks nothing"])]


def judge(report: str) -> Answer:
    """pip-audit's JSON report.

    Raises:
        UnavailableError: it is no report, or the service knew no package of it: nothing was audited.
    """
    try:
        packages = json.loads(report)["dependencies"]
        known = tuple(
            f"{package['name']} {package['version']}: {found['id']}"
            + (f", mended in {', '.join(found['fix_versions'])}" if found["fix_versions"] else ", not mended yet")
            for package in packages
            for found in package.get("vulns", ())
        )
        unknown = tuple(package["name"] for package in packages if "vulns" not in package)
    except (ValueError, KeyError, TypeError) as error:
        raise UnavailableError("no answer") from error
    if packages and len(unknown) == len(packages):
        raise UnavailableError("the service knows none of the packages")
    return Answer(known, len(packages) - len(unknown), unknown)


def run(command: Sequence[str | Path]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=SECONDS)
    except subprocess.TimeoutExpired as error:
        raise UnavailableError(f"no answer within {SECONDS} s") from error


def install(folder: Path) -> Path:
    """The Python of a new environment that has pip-audit."""
    python = folder / "venv" / "bin" / "python"
    lock = FOLDER / "audit.lock"
    for command in (
        [sys.executable, "-I", "-m", "venv", folder / "venv"],
        [
            python,
            "-I",
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--require-hashes",
            "-r",
            lock,
        ],
    ):
        if run(command).returncode != 0:
            raise UnavailableError("pip-audit cannot be installed")
    return python


def ask(python: Path, lock: Path, service: str, folder: Path, more: Sequence[str]) -> Answer:
    """What the service says about the packages of a lock."""
    report = folder / f"{lock.stem}.json"
    report.unlink(missing_ok=True)
    command = [python, "-I", "-m", "pip_audit", "--requirement", lock, "--require-hashes", "--disable-pip"]
    options = ["--vulnerability-service", service, "--format", "json", "--output", report, "--timeout", "10"]
    run([*command, *options, "--progress-spinner", "off", *more])  # 1 for what it finds and for what it fails at
    return judge(report.read_text() if report.exists() else "")


def ask_any(locks: Sequence[Path], more: Sequence[str]) -> tuple[str, list[Answer]]:
    """The first service that answers for every lock, or knows of something in one; and what it says about them.

    Raises:
        UnavailableError: there is none.
    """
    reasons = []
    with tempfile.TemporaryDirectory(prefix="foldin-audit-") as name:
        folder = Path(name)
        python = install(folder)
        for service in SERVICES:
            answers = []
            for lock in locks:
                try:
                    answers.append(ask(python, lock, service, folder, more))
                except UnavailableError as error:
                    reasons.append(f"{service}: {error}")
                    break  # it has had its time
            if len(answers) == len(locks) or any(answer.known for answer in answers):
                return service, answers
    raise UnavailableError("; ".join(reasons))


def jars() -> list[str]:
    """The Maven coordinates of the JARs that foldin asks Ivy for; each has a version, that of the pinned package."""
    pins = dict(
        requirement.split("==")
        for requirement in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
        if "==" in requirement
    )
    spark, delta = pins["pyspark"], pins["delta-spark"]
    short = ".".join(spark.split(".")[:2])
    return [f"io.delta:delta-spark_{short}_2.13:{delta}", f"org.apache.spark:spark-sql-kafka-0-10_2.13:{spark}"]


def main(arguments: Sequence[str]) -> int:
    locks = sorted(FOLDER.glob("*.lock"))
    faults = [fault for lock in locks for fault in lock_faults(lock)]
    for fault in faults:
        print(f"foldin: {fault}; make lock remakes it", file=sys.stderr)
    pins = sum(len(read_lock(lock)) for lock in locks) if not faults else 0
    print(f"foldin: JARs, by version: {', '.join(jars())}")
    try:
        service, answers = ask_any(locks, arguments)
    except UnavailableError as error:
        if not faults:
            print(
                f"foldin: not audited ({error}); checked instead: each of the {pins} pins of {len(locks)} locks is of "
                "one version, and all files have hashes"
            )
        return 1 if faults else 0
    known = sorted({line for answer in answers for line in answer.known})
    for line in known:
        print(f"foldin: {line}", file=sys.stderr)
    unknown = sorted({name for answer in answers for name in answer.unknown})
    told = f", which does not know {', '.join(unknown)}" if unknown else ""
    asked = sum(answer.asked for answer in answers)
    of = f"{len(locks)} locks" if len(answers) == len(locks) else f"{len(answers)} of {len(locks)} locks"
    print(f"foldin: audited {asked} packages of {of} by {service}{told}: {len(known) or 'nothing'} known")
    return 1 if faults or known else 0


if __name__ == "__main__":
    if "PIP_CERT" in os.environ:  # a proxy with its own certificate: pip is told of it in its own way
        os.environ.setdefault("REQUESTS_CA_BUNDLE", os.environ["PIP_CERT"])
    sys.exit(main(sys.argv[1:]))
