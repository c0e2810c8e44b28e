"""From a landed file to a written recommendation: ingest and fold-in as jobs of their own, at a steady rate of events.

Afterwards the tables' logs are read, without Spark. An event of version v of `events` (file i of it) is included by the
first rows of its user in `recommendations` whose position (events_version, events_index) lies past v (or is v with an
index of at least i). The moment of a write is the time of its commit file, a few milliseconds before it is visible;
the rows' folded_at is earlier.
"""

from __future__ import annotations

import datetime as dt
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pyarrow.parquet as pq
from stream_queries import resident_bytes
from stream_report import Report, median, progress, quantile
from stream_world import Settings, World, session

__all__ = ["FreshnessPlan", "measure_freshness"]

_FILES_A_SECOND = 4
_TIMEOUT = 900.0
_MERGE = re.compile(r"(?P<at>[\d:]{8}) foldin\.compaction: .* merged into .* (?P<seconds>[\d.]+) s$")
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class FreshnessPlan:
    """How many users, for how long, how many events a second, Spark's master of each job, for how long and how many
    commits of recommendations the jobs warm up, and which jobs run side by side, one such group after the other.
    """

    users: int
    seconds: float
    rate: int
    job_master: str
    warm_up_seconds: float
    warm_up_commits: int
    groups: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Commit:
    """An append to a Delta table: its version, its moment, its files in order."""

    version: int
    at: float
    files: tuple[Path, ...]


def measure_freshness(settings: Settings, plan: FreshnessPlan, report: Report) -> None:
    """A table of percentiles for each group of jobs; the aims go by the first."""
    # A session of ours would stand in the way of the jobs: another process makes the world, and ends.
    builder = multiprocessing.get_context("spawn").Process(target=_build, args=(settings, plan.users))
    builder.start()
    builder.join()
    if builder.exitcode != 0:
        raise RuntimeError("the world of the freshness section could not be made")
    for group in plan.groups:
        work = settings.work / "+".join(group)
        shutil.copytree(settings.work / "world", work / "world")  # Delta's paths are relative
        _measure_group(group, replace(settings, work=work), plan, report)
        shutil.rmtree(work)


def _measure_group(group: tuple[str, ...], settings: Settings, plan: FreshnessPlan, report: Report) -> None:
    root, landing = settings.work / "world", settings.work / "landing"
    landing.mkdir()
    producer = Producer(landing, settings, plan)
    jobs = {name: _start(name, root, landing, plan, settings.work) for name in group}
    try:
        producer.start()
        since = _wait_for_warm_up(root, jobs, plan)
        time.sleep(plan.seconds)
        until = time.time()
        resident = {name: resident_bytes(job.pid) for name, job in jobs.items()}
        time.sleep(2)  # the last events measured meet the same rate as the others
        producer.stop()
        landed = {event: at for event, at in producer.landed.items() if since <= at < until}
        rows = _await_all(root, landed, jobs)
    finally:
        producer.stop()
        for job in jobs.values():
            job.send_signal(signal.SIGTERM)
        codes = {name: job.wait(_TIMEOUT) for name, job in jobs.items()}
    _report(report, plan, np.array(rows), since, until, root, resident)
    merging = sum(_merging(settings.work / f"{name}.log", since, until) for name in jobs)
    report.say(f"Small files were being merged for {merging:.0f} s of the {until - since:.0f}.")
    report.say(f"Ended on SIGTERM with {', '.join(f'{code} ({name})' for name, code in codes.items())}.")
    report.say()


class Producer(threading.Thread):
    """Lands files of JSON lines by atomic rename, at a steady rate."""

    def __init__(self, landing: Path, settings: Settings, plan: FreshnessPlan) -> None:
        super().__init__(name="producer", daemon=True)
        self._landing, self._plan, self._items = landing, plan, settings.items
        self._aside = landing.with_name("aside")
        self._aside.mkdir()
        self._rng = np.random.default_rng(settings.seed)
        self._ended = threading.Event()
        self.landed: dict[str, float] = {}
        """Moment of each event's landing."""

    def run(self) -> None:
        size = self._plan.rate // _FILES_A_SECOND
        begun = time.monotonic()
        number = 0
        while not self._ended.wait(max(0.0, begun + number / _FILES_A_SECOND - time.monotonic())):
            now = dt.datetime.now(dt.UTC).isoformat()
            users = self._rng.integers(self._plan.users, size=size)
            items = (self._rng.random(size) ** 2.4 * self._items).astype(int)
            ids = [f"f{number}-{k}" for k in range(size)]
            lines = [
                json.dumps(
                    {"event_id": e, "user_id": f"u{u}", "item_id": f"i{i}", "event_type": "view", "event_time": now}
                )
                for e, u, i in zip(ids, users, items, strict=True)
            ]
            file = self._aside / f"{number:06d}.jsonl"
            file.write_text("\n".join(lines) + "\n")
            file.rename(self._landing / file.name)
            self.landed.update(dict.fromkeys(ids, time.time()))
            number += 1

    def stop(self) -> None:
        """Land nothing more."""
        self._ended.set()
        if self.is_alive():
            self.join()


def _build(settings: Settings, users: int) -> None:
    spark = session(settings)
    seconds = World.build(spark, settings, users, "world").bootstrap(lists=True)
    progress(f"freshness: state of {users:,} users built in {seconds:.1f} s")
    spark.stop()


def _start(name: str, root: Path, landing: Path, plan: FreshnessPlan, work: Path) -> subprocess.Popen[bytes]:
    sets = {
        "tables.root": root,
        "ingest.landing": landing,
        "spark.master": f"'{plan.job_master}'",
        "spark.conf.spark.local.dir": work / "spark",
    }
    command = [sys.executable, str(ROOT / "jobs" / f"{name}.py")]
    command += [part for key, value in sets.items() for part in ("--set", f"{key}={value}")]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "lib")}
    with (work / f"{name}.log").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=work)


def _check(jobs: dict[str, subprocess.Popen[bytes]], work: Path) -> None:
    for name, job in jobs.items():
        if job.poll() is not None:
            tail = (work / f"{name}.log").read_text(errors="replace")[-2000:]
            raise RuntimeError(f"{name} ended with {job.returncode}:\n{tail}")


def _wait_for_warm_up(root: Path, jobs: dict[str, subprocess.Popen[bytes]], plan: FreshnessPlan) -> float:
    """Until lists have been written for a while; the moment."""
    log = root / "recommendations" / "_delta_log"
    before, deadline, first = len(list(log.glob("*.json"))), time.monotonic() + _TIMEOUT, 0.0
    while time.monotonic() < deadline:
        _check(jobs, root.parent)
        commits = len(list(log.glob("*.json"))) - before
        first = first or (time.monotonic() if commits else 0.0)
        if commits >= plan.warm_up_commits and time.monotonic() - first >= plan.warm_up_seconds:
            progress(f"freshness: warm after {commits} commits of recommendations")
            return time.time()
        time.sleep(0.5)
    raise RuntimeError(f"{commits} commits of recommendations in {_TIMEOUT:.0f} s")


def _await_all(
    root: Path, landed: dict[str, float], jobs: dict[str, subprocess.Popen[bytes]]
) -> list[tuple[float, float, float]]:
    """(landed, committed to events, included in recommendations) of every event, once all are."""
    deadline = time.monotonic() + _TIMEOUT
    while True:
        rows = _joined(root, landed)
        if len(rows) == len(landed):
            return rows
        if time.monotonic() > deadline:
            raise RuntimeError(f"{len(rows)} of {len(landed)} events are in recommendations after {_TIMEOUT:.0f} s")
        _check(jobs, root.parent)
        time.sleep(3)


def _joined(root: Path, landed: dict[str, float]) -> list[tuple[float, float, float]]:
    first_landing = min(landed.values())
    lists: dict[str, list[tuple[float, tuple[int, int]]]] = defaultdict(list)
    for commit in _commits(root / "recommendations", first_landing):
        for file in commit.files:
            table = pq.read_table(file, columns=["user_id", "events_version", "events_index"], partitioning=None)
            users, versions, indexes = (column.to_pylist() for column in table.columns)
            for user, version, index in zip(users, versions, indexes, strict=True):
                lists[user].append((commit.at, (version, index)))
    rows = []
    for commit in _commits(root / "events", first_landing):
        for number, file in enumerate(commit.files):
            table = pq.read_table(file, columns=["event_id", "user_id"], partitioning=None)
            ids, users = (column.to_pylist() for column in table.columns)
            for event, user in zip(ids, users, strict=True):
                if event not in landed:
                    continue
                included = [
                    at for at, (version, index) in lists[user]
                    if version > commit.version or (version == commit.version and index >= number)
                ]  # fmt: skip
                if included:
                    rows.append((landed[event], commit.at, min(included)))
    return rows


def _commits(table: Path, since: float) -> list[Commit]:
    """The appends of a Delta table from a moment on."""
    found = []
    for file in sorted((table / "_delta_log").glob("*.json")):
        at = file.stat().st_mtime
        if at < since or not file.stem.isdigit():
            continue
        actions = [json.loads(line) for line in file.read_text().splitlines()]
        adds = [action["add"] for action in actions if "add" in action]
        files = tuple(table / unquote(add["path"]) for add in adds if add["dataChange"])
        found.append(Commit(int(file.stem), at, files))
    return found


def _merging(log: Path, since: float, until: float) -> float:
    """Seconds between two moments that a job's merges took, by the lines that it logs at the end of each."""
    clock = dt.datetime.fromtimestamp(since)
    total = 0.0
    for line in log.read_text(errors="replace").splitlines():
        if found := _MERGE.match(line):
            at = dt.datetime.combine(clock.date(), dt.time.fromisoformat(found["at"]))
            end = (at - clock).total_seconds()
            if end < 0 and clock.hour == 23 and at.hour == 0:
                end += 86_400
            total += max(0.0, min(end, until - since) - max(0.0, end - float(found["seconds"])))
    return total


def _report(
    report: Report,
    plan: FreshnessPlan,
    rows: np.ndarray,
    since: float,
    until: float,
    root: Path,
    resident: dict[str, int],
) -> None:
    landed, ingested, recommended = rows.T
    spans = {
        "event to recommendation": recommended - landed,
        "landing to commit of events": ingested - landed,
        "commit of events to commit of recommendations": recommended - ingested,
    }
    table = []
    for name, seconds in spans.items():
        table.append([name, *(f"{quantile(list(seconds), share):.2f}" for share in (0.5, 0.95, 0.99, 1.0))])
    for share, key in ((0.5, "fresh_p50"), (0.95, "fresh_p95"), (0.99, "fresh_p99")):
        report.values.setdefault(key, quantile(list(recommended - landed), share))
    report.table(
        f"Freshness in seconds: {len(rows):,} events at {plan.rate:,} a second over {until - since:.0f} s, "
        f"{plan.users:,} users, {' and '.join(f'`jobs/{name}.py`' for name in resident)} with {plan.job_master}",
        ["span", "p50", "p95", "p99", "max"],
        table,
    )
    for name in ("events", "recommendations"):
        times = [commit.at for commit in _commits(root / name, since) if commit.files and commit.at < until]
        gaps = np.diff(times)
        report.say(f"{name}: {len(times)} commits, one every {median(list(gaps)):.2f} s (median).")
    held = ", ".join(f"{name} {size / 1e9:.1f} GB" for name, size in resident.items())
    report.say(f"Resident memory, JVM and workers: {held}. The moment of a write is the time of its commit file.")
