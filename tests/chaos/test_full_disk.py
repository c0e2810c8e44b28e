"""A disk that fills up: one line that names it, exit code 1, and after room is made nothing is lost."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from chaos.equal import assert_account_adds_up, assert_latest_is_a_refold, assert_same_multiset, without_stamps
from chaos.processes import Installation
from chaos.worlds import World
from foldin.cli import Job as CliJob
from foldin.cli import parser, run_job
from foldin.fold_in import FoldIn
from foldin.ingest import Ingest
from foldin.schemas import EVENTS

pytestmark = pytest.mark.timeout(900)

MEGABYTES = 24


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of some megabytes, mounted where only one process sees it, and reached through that process.

    A user namespace lets anybody do so, root in a container included, unless the machine forbids such
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
        yield Path(f"/proc/{holder.pid}/root{mount}")
    finally:
        holder.kill()
        holder.wait()


def fill(disk: Path) -> Path:
    """Leave no byte; the file to delete for room."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 16))
        except OSError:
            return ballast


def ingest(job: CliJob) -> None:
    Ingest(job.tables, job.config, job.mapping).run(once=True)


def fold_in(job: CliJob) -> None:
    FoldIn(job.tables, job.config).run(once=True)


def test_a_full_disk_is_named_in_one_line_and_the_jobs_go_on_once_there_is_room(
    make_world: Callable[..., World], small_disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = make_world()
    shutil.move(world.installation.root, small_disk / "tables")
    world = replace(world, installation=Installation(small_disk / "tables", world.installation.landing))
    options = [word for setting in world.settings for word in ("--set", setting)]

    for body in (ingest, fold_in):
        world.land()
        if body is fold_in:
            assert run_job(ingest, parser("a test"), options) == 0
        assert run_job(body, parser("a test"), options) == 0  # the query is born
        world.land()
        if body is fold_in:
            assert run_job(ingest, parser("a test"), options) == 0
        ballast = fill(small_disk)
        capsys.readouterr()
        assert run_job(body, parser("a test"), options) == 1
        said = capsys.readouterr().err.splitlines()
        assert len([line for line in said if line.startswith("foldin: ")]) == 1, said
        assert "No space left on device" in said[-1], said
        assert str(small_disk) in said[-1], said
        ballast.unlink()
        assert run_job(body, parser("a test"), options) == 0
    tables = world.tables
    assert_same_multiset(without_stamps(tables, EVENTS), world.log.multiset(), "events")
    assert_account_adds_up(tables, world.log.rows)
    assert_latest_is_a_refold(tables)
