"""A disk that fills up: one line that names it, exit code 1, and after room is made nothing is lost."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest

from chaos.equal import assert_account_adds_up, assert_latest_is_a_refold, assert_same_multiset, without_stamps
from chaos.processes import Installation, Job, wait_until
from chaos.worlds import World
from foldin.fold_in import FoldIn
from foldin.schemas import EVENTS

pytestmark = pytest.mark.timeout(900)

MEGABYTES = 48


@dataclass(frozen=True)
class Disk:
    """A mount that only processes in a certain namespace see."""

    holder: int
    """Process id that keeps the namespace."""
    mount: Path
    """Where the processes in there find it."""

    @property
    def outside(self) -> Path:
        """Where we find it. (Java resolves this link to the path that it has in there.)"""
        return Path(f"/proc/{self.holder}/root{self.mount}")

    @property
    def enter(self) -> tuple[str, ...]:
        """Words before a command that is to see it."""
        return ("nsenter", f"--target={self.holder}", "--user", "--mount", "--preserve-credentials")

    def fill(self) -> None:
        """Leave no byte."""
        with (self.outside / "ballast").open("wb", buffering=0) as file:
            try:
                while file.write(bytes(1 << 12)):
                    pass
            except OSError:
                return

    def make_room(self) -> None:
        """Take the ballast away."""
        (self.outside / "ballast").unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A tmpfs of some megabytes.

    A user namespace lets anybody mount one, root in a container included, unless the machine forbids such
    namespaces; then there is no small disk to be had.
    """
    mount = tmp_path / "disk"
    mount.mkdir()
    script = f"mount -t tmpfs -o size={MEGABYTES}m tmpfs '{mount}' && echo ready && exec sleep 3600"
    holder = subprocess.Popen(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert holder.stdout is not None
        said = holder.stdout.readline().strip()
        if said != "ready":
            pytest.skip(f"no small disk on this machine: {said}")
        yield Disk(holder.pid, mount)
    finally:
        holder.kill()
        holder.wait()


def test_a_full_disk_is_named_in_one_line_and_the_jobs_go_on_once_there_is_room(
    make_world: Callable[..., World], disk: Disk, jobs: list[Job], summary: list[str]
) -> None:
    world = make_world()
    world.land()
    world.ingest().run(once=True)
    FoldIn(world.tables, world.config).run(once=True)
    shutil.copytree(world.installation.root, disk.outside / "tables")
    inside = replace(world, installation=Installation(disk.mount / "tables", world.installation.landing))
    world.land()

    for name in ("ingest", "fold_in"):
        job = replace(inside.job(name), log=disk.mount.with_name(f"{name}.log"), wrapper=disk.enter)
        jobs.append(job)
        disk.fill()
        assert job.start("--once").wait_for_death() == 1, job.said()[-3000:]
        assert_named(job, disk)
        disk.make_room()
        assert job.start("--once").wait_for_death() == 0, job.said()[-3000:]
    assert_nothing_lost(world, disk)
    summary.append(
        "full disk          both jobs ended with 1 and one line, and went on once there was room; nothing lost"
    )


def test_a_disk_that_fills_up_while_the_jobs_run_ends_them_in_one_line_and_nothing_is_lost(
    make_world: Callable[..., World], disk: Disk, jobs: list[Job], summary: list[str]
) -> None:
    """In the middle of a backlog: somewhere between a batch's offsets, its state, its tables and its end."""
    # Unmerged, each batch of ingest is one of fold_in.
    limits = ("ingest.max_files_per_trigger=1", "fold_in.max_files_per_trigger=1", "tables.compact_every=0")
    world = make_world("world", *limits)
    shutil.copytree(world.installation.root, disk.outside / "tables")
    inside = replace(world, installation=Installation(disk.mount / "tables", world.installation.landing))
    for _ in range(8):
        world.land()

    for name in ("ingest", "fold_in"):
        job = replace(inside.job(name), log=disk.mount.with_name(f"running {name}.log"), wrapper=disk.enter)
        jobs.append(job)
        commits = disk.outside / "tables" / "_checkpoints" / name / "commits"
        before = set(commits.glob("[0-9]*"))
        job.start()
        more = partial(_so_many_more, commits, before, 2)
        wait_until(more, f"{name} is in the middle of its backlog", job)
        disk.fill()
        assert job.wait_for_death() == 1, job.said()[-3000:]
        assert_named(job, disk)
        disk.make_room()
        assert job.start("--once").wait_for_death() == 0, job.said()[-3000:]
    assert_nothing_lost(world, disk)
    summary.append(
        "disk fills up      both jobs ended with 1 and one line in mid-batch, and went on with room; nothing lost"
    )


def _so_many_more(folder: Path, before: set[Path], files: int) -> bool:
    return len(set(folder.glob("[0-9]*")) - before) >= files


def assert_named(job: Job, disk: Disk) -> None:
    """The last line, and no other of ours, says what has happened where."""
    said = job.said().splitlines()
    ours = [line for line in said if line.startswith("foldin: ")]
    assert ours == said[-1:], said[-20:]
    assert "No space left on device" in ours[0]
    assert str(disk.mount) in ours[0]


def assert_nothing_lost(world: World, disk: Disk) -> None:
    shutil.rmtree(world.installation.root)
    shutil.copytree(disk.outside / "tables", world.installation.root)
    world.spark._jvm.org.apache.spark.sql.delta.DeltaLog.clearCache()
    tables = world.tables
    assert_same_multiset(without_stamps(tables, EVENTS), world.log.multiset(), "events")
    assert_account_adds_up(tables, world.log.rows)
    assert_latest_is_a_refold(tables)
