"""The jobs as real processes over one installation: started, killed, waited for, and what they left on disk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import quick

ROOT = Path(__file__).parents[2]
LAUNCHER = Path(__file__).with_name("launcher.py")
PATIENCE = 300
"""Seconds after which a wait has failed; a start takes 12 s on a quiet machine and a minute on a busy one."""

JVM = f"{quick.SHORT_JVM} -XX:ReservedCodeCacheSize=240m"


def settings_of(root: Path, landing: Path, *more: str) -> tuple[str, ...]:
    """What every chaos run is told: small, fast triggers, and a bound that some users exceed."""
    return (
        f"tables.root={root}",
        f"ingest.landing={landing}",
        "ingest.trigger_seconds=0.1",
        "ingest.max_files_per_trigger=4",
        "fold_in.trigger_seconds=0.1",
        "fold_in.max_files_per_trigger=4",
        "fold_in.lease_seconds=3",
        "tables.compact_every=5",
        "metrics.flush_seconds=0.5",
        "history.max_events_per_user=20",
        "history.half_life_days=90",
        "train.rank=8",
        "train.iterations=2",
        "train.blocks=2",
        "recommend.top_n=5",
        "judge.holdout=0",  # it is not quality that is tried here
        "spark.master='local[2]'",
        "spark.conf.spark.driver.memory=1g",
        *more,
    )


@dataclass
class Job:
    """jobs/NAME.py in a process group of its own; several starts write to one log."""

    name: str
    settings: tuple[str, ...]
    log: Path
    arm: Path | None = None
    """With it the launcher runs the job and kills it at the boundary that this file names."""
    wrapper: tuple[str, ...] = ()
    jvm: str = ""
    """Options of its JVM, beside the ones that all have."""
    process: subprocess.Popen[bytes] | None = field(default=None, init=False, repr=False)
    started: float = field(default=0.0, init=False)

    def start(self, *options: str) -> Job:
        """Start it."""
        assert self.process is None or self.process.poll() is not None, f"{self.name} runs already"
        job = str(ROOT / "jobs" / f"{self.name}.py")
        program = [str(LAUNCHER), str(self.arm), job] if self.arm is not None else [job]
        sets = [word for setting in (*self.settings, *self._jvm()) for word in ("--set", setting)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.wrapper, sys.executable, *program, *options, *sets],
                cwd=self.log.parent,
                env=quick.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.started = time.monotonic()
        return self

    def kill(self) -> None:
        """SIGKILL the process, its JVM and its workers, and wait until none is left."""
        assert self.process is not None
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.wait_for_death()

    def wait_for_death(self, seconds: float = PATIENCE) -> int:
        """The exit code; every process of the group is gone."""
        assert self.process is not None
        pid = self.process.pid
        code = self.process.wait(seconds)
        wait_until(lambda: not _group_lives(pid), f"{self.name}'s processes are gone")
        return code

    def terminate(self) -> int:
        """SIGTERM, as an orchestrator stops a job; its exit code."""
        assert self.process is not None
        self.process.terminate()
        return self.wait_for_death()

    def jvm_pid(self) -> int:
        """The process that is its JVM."""
        assert self.process is not None
        mine = [stat.pid for stat in processes() if stat.pgrp == self.process.pid]
        (pid,) = (pid for pid in mine if Path(f"/proc/{pid}/comm").read_text() == "java\n")
        return pid

    def said(self) -> str:
        """All that its starts have printed."""
        return self.log.read_text(errors="replace")

    def assert_alive(self) -> None:
        """It did not end by itself."""
        assert self.process is not None
        assert self.process.poll() is None, f"{self.name} ended with {self.process.poll()}:\n{self.said()[-3000:]}"

    def _jvm(self) -> Iterable[str]:
        if not any(setting.startswith("spark.conf.spark.driver.extraJavaOptions=") for setting in self.settings):
            yield f"spark.conf.spark.driver.extraJavaOptions='{JVM} {self.jvm}'"


def _group_lives(pgid: int) -> bool:
    try:
        os.killpg(pgid, 0)
    except ProcessLookupError:
        return False
    return any(stat.state != "Z" for stat in processes() if stat.pgrp == pgid)


@dataclass(frozen=True)
class Stat:
    """A line of /proc: what `ps` would say."""

    pid: int
    parent: int
    pgrp: int
    state: str
    rss: int
    """Bytes."""


def processes() -> list[Stat]:
    """All processes of this machine."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                text = (folder / "stat").read_text()
            except OSError:
                continue  # gone meanwhile
            state, parent, pgrp, *rest = text.rpartition(")")[2].split()
            pages = int(rest[18])
            found.append(Stat(int(folder.name), int(parent), int(pgrp), state, pages * os.sysconf("SC_PAGESIZE")))
    return found


def tree_rss(pid: int) -> int:
    """Resident bytes of a process and all of its descendants; shared pages count once a process."""
    alive = processes()
    family, size = {pid}, 0
    while len(family) != size:
        size = len(family)
        family |= {stat.pid for stat in alive if stat.parent in family}
    return sum(stat.rss for stat in alive if stat.pid in family)


@dataclass(frozen=True)
class CheckpointFolder:
    """A query's checkpoint, read from outside, as files."""

    path: Path

    def last(self, kind: str) -> int:
        """The newest batch that has an entry in `offsets` or `commits`; -1 where there is none."""
        folder = self.path / kind
        names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
        return max((int(name) for name in names if name.isdigit()), default=-1)

    def is_idle(self) -> bool:
        """Every batch that was begun is committed, and there was one."""
        return self.last("offsets") == self.last("commits") >= 0

    def delta_version(self) -> int:
        """Version of the Delta source that the last committed batch reached; -1 where there is none."""
        try:
            lines = (self.path / "offsets" / str(self.last("commits"))).read_text().splitlines()
        except OSError:
            return -1
        return int(json.loads(lines[2])["reservoirVersion"])

    def files(self, upto: str = "commits") -> set[str]:
        """Names of the files that batches up to the last committed (or, "offsets", begun) one took from sources.

        A source writes its log before Spark writes the batch's offsets: only what those include is taken.
        """
        found = set()
        try:
            lines = (self.path / "offsets" / str(self.last(upto))).read_text().splitlines()[2:]
        except OSError:
            return found
        for number, line in enumerate(lines):
            reached = json.loads(line).get("logOffset", -1) if line.startswith("{") else -1
            for log in (self.path / "sources" / str(number)).glob("[0-9]*"):
                try:
                    entries = log.read_text().splitlines()[1:]  # the first line is the format's version
                except OSError:
                    continue  # compacted meanwhile
                files = [entry for entry in map(json.loads, entries) if entry["batchId"] <= reached]
                found |= {Path(entry["path"]).name for entry in files}
        return found

    def query_id(self) -> str | None:
        """As Spark wrote it."""
        metadata = self.path / "metadata"
        return str(json.loads(metadata.read_text())["id"]) if metadata.exists() else None


@dataclass(frozen=True)
class Installation:
    """A root of tables and its landing folder, seen from outside."""

    root: Path
    landing: Path

    def checkpoint(self, name: str) -> CheckpointFolder:
        """Of a query."""
        return CheckpointFolder(self.root / "_checkpoints" / name)

    def land(self, name: str, text: str | bytes) -> None:
        """Move a file into the landing folder, whole."""
        staged = self.landing.with_name(f".{name}.staged")
        staged.write_bytes(text.encode() if isinstance(text, str) else text)
        staged.rename(self.landing / name)

    def delta_version(self, table: str) -> int:
        """The table's newest version, by its log's file names."""
        log = self.root / table / "_delta_log"
        return max(int(entry.stem) for entry in log.glob("[0-9]*.json") if entry.stem.isdigit())

    def newest_append(self, table: str) -> int:
        """The newest version that brought rows (a merge of small files brings none)."""
        log = self.root / table / "_delta_log"
        for version in range(self.delta_version(table), -1, -1):
            lines = (log / f"{version:020d}.json").read_text().splitlines()
            if any(json.loads(line).get("add", {}).get("dataChange") for line in lines):
                return version
        return -1

    def has_written(self, table: str, app_id: str, batch: int) -> bool:
        """Whether the table's log has what the batch of a query appended."""
        log = self.root / table / "_delta_log"
        for version in range(self.delta_version(table), -1, -1):
            try:
                actions = [json.loads(line) for line in (log / f"{version:020d}.json").read_text().splitlines()]
            except OSError:
                return False
            for action in actions:
                label = action.get("commitInfo", {}).get("userMetadata", "")
                if app_id in label:
                    return int(json.loads(label)["batch"]) >= batch
        return False

    def ingested(self, names: Iterable[str], query: str = "ingest") -> bool:
        """Every one of the files is part of a committed batch, and accounted for."""
        checkpoint = self.checkpoint(query)
        if not checkpoint.is_idle():
            return False
        accounts = checkpoint.path / "accounts"  # written down, not yet in ingest_log
        waiting = accounts.is_dir() and any(entry.name.isdigit() for entry in accounts.iterdir())
        return checkpoint.files() >= set(names) and checkpoint.is_idle() and not waiting

    def waiting(self, names: Iterable[str], query: str) -> int:
        """How many of the files no micro-batch of the query has begun with yet."""
        return len(set(names) - self.checkpoint(query).files("offsets"))

    def folded(self) -> bool:
        """The fold-in query has committed a batch that reaches the newest event."""
        checkpoint = self.checkpoint("fold_in")
        return checkpoint.is_idle() and checkpoint.delta_version() > self.newest_append("events")

    def where_killed(self, query: str, tables: tuple[str, ...]) -> str:
        """The boundary at which a kill found a query, in words."""
        checkpoint = self.checkpoint(query)
        begun, done = checkpoint.last("offsets"), checkpoint.last("commits")
        if begun == done:
            return "before the first batch" if begun < 0 else f"between batches {begun} and {begun + 1}"
        app_id = checkpoint.query_id()
        written = [table for table in tables if app_id and self.has_written(table, app_id, begun)]
        return f"in batch {begun}, written: {', '.join(written) or 'nothing'}"


def wait_until(holds: Callable[[], Any], what: str, *jobs: Job, seconds: float = PATIENCE) -> float:
    """Seconds that it took; fails after `seconds`, or as soon as one of `jobs` has ended by itself."""
    began = time.monotonic()
    while not holds():
        for job in jobs:
            job.assert_alive()
        if time.monotonic() - began > seconds:
            logs = "\n".join(f"--- {job.name}:\n{job.said()[-3000:]}" for job in jobs)
            raise AssertionError(f"waited {seconds:.0f} s in vain: {what}\n{logs}")
        time.sleep(0.05)
    return time.monotonic() - began
