"""Two running jobs, killed at each boundary between two writes, joined by others, and stopped.

One installation lives through all rounds: in each, one job after the other is armed and killed in its next batch, and
both are started again.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest

from chaos.equal import (
    assert_account_adds_up,
    assert_latest_is_a_refold,
    assert_nothing_published_twice,
    assert_same_multiset,
    without_stamps,
)
from chaos.processes import Installation, Job, wait_until
from chaos.worlds import World, copy_of
from foldin.fold_in import FoldIn
from foldin.publishing import Publisher
from foldin.schemas import EVENTS, QUARANTINE

pytestmark = pytest.mark.timeout(900)

BOUNDARIES = {
    "ingest": (
        ("begin batch", "offset written, nothing else"),
        ("before append quarantine", "state committed, nothing written"),
        ("after append quarantine", "quarantine written, events not"),
        ("after append events", "events written, ingest_log not"),
        ("end batch", "all written, commit log not"),
    ),
    "fold_in": (
        ("begin batch", "offset written, nothing else"),
        ("after write pins", "model pinned, state not committed"),
        ("before append user_factors", "state committed, nothing written"),
        ("only append user_factors", "factors written, lists not"),
        ("only append recommendations", "lists written, factors not"),
        ("end batch", "all written, commit log not"),
    ),
}
ROUNDS = [
    # Fold-in first: a batch of its own comes of what a living ingest takes in.
    [(name, *boundaries[n]) for name in ("fold_in", "ingest") if n < len(boundaries := BOUNDARIES[name])]
    for n in range(max(map(len, BOUNDARIES.values())))
]


@dataclass
class Story:
    """The installation, its two jobs, and what was promoted while one of them was dead."""

    world: World
    jobs: dict[str, Job]
    promotions: int = 0
    more_rows: int = 0
    """Rows landed beside those that the log counts."""

    def settle(self) -> float:
        running = tuple(self.jobs.values())
        seconds = wait_until(lambda: self.world.installation.ingested(self.world.names), "files ingested", *running)
        return seconds + wait_until(self.world.installation.folded, "events folded", *running)

    def die_at(self, job: Job, boundary: str, *alive: Job) -> None:
        """The job, which is armed, is killed at a boundary of the batch that lands now."""
        assert job.arm is not None
        fired = job.arm.with_name(f"{job.arm.name}.fired")
        fired.unlink(missing_ok=True)
        job.arm.write_text(boundary)
        self.world.land(100)
        wait_until(fired.exists, f"{job.name} comes to {boundary!r}", *alive)
        assert job.wait_for_death() == -9

    def second_fold_in(self) -> str:
        """What a fold-in job says that finds another on its checkpoint; it ends with 8."""
        second = self.world.job("fold_in")
        second = replace(second, log=second.log.with_name("second.log")).start()
        assert second.wait_for_death() == 8
        return second.said()

    def promote_other(self) -> None:
        """The other model: forward, then back again."""
        self.promotions += 1
        Publisher(self.world.tables, 5).activate(self.world.models[self.promotions % 2], reason="while it was dead")


@pytest.fixture(scope="module")
def story(past: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    world = copy_of(past, tmp_path_factory.mktemp("boundaries") / "world")
    story = Story(world, {name: world.job(name, arm=True) for name in ("ingest", "fold_in")})
    world.land()
    try:
        for job in story.jobs.values():
            job.start()
        story.settle()
        yield story
    finally:
        for job in story.jobs.values():
            if job.process is not None:
                job.kill()


def assert_as_it_should_be(story: Story) -> None:
    tables, log = story.world.tables, story.world.log
    assert_same_multiset(without_stamps(tables, EVENTS), log.multiset(), "events")
    rows = tables.read(QUARANTINE).select("raw", "reason").collect()
    assert_same_multiset(Counter(tuple(row) for row in rows), log.reasons(), "quarantine")
    assert_account_adds_up(tables, log.rows + story.more_rows)
    assert_nothing_published_twice(tables)
    assert_latest_is_a_refold(tables)


@pytest.mark.parametrize("kills", ROUNDS, ids=["; ".join(f"{k[0]}: {k[2]}" for k in kills) for kills in ROUNDS])
def test_killed_at_a_boundary_and_started_again_the_tables_are_as_they_should_be(
    story: Story, kills: list[tuple[str, str, str]], say: Callable[[str], None], summary: list[str]
) -> None:
    world = story.world
    alive = dict(story.jobs)
    lines = []
    for name, boundary, what in kills:
        job = alive.pop(name)
        story.die_at(job, boundary, *alive.values())
        checkpoint = world.installation.checkpoint(name)
        batch = checkpoint.last("offsets")
        assert checkpoint.last("commits") == batch - 1
        if boundary.startswith("only append"):
            story.promote_other()  # the replay goes on under the model that the batch had pinned
        lines.append(f"{name:8} killed in batch {batch}: {what}")
    for name, _, _ in kills:
        story.jobs[name].start()
    seconds = story.settle()
    for line in lines:
        say(f"  {line}; recovered in {seconds:.1f} s")
        summary.append(f"boundary           {line}; recovered in {seconds:.1f} s")

    assert_as_it_should_be(story)


def test_a_second_fold_in_job_on_the_same_checkpoint_is_refused_and_the_first_goes_on(story: Story) -> None:
    said = story.second_fold_in()
    first = story.jobs["fold_in"].process
    assert first is not None
    path = story.world.installation.checkpoint("fold_in").path
    assert f"foldin: {path} is in use by process {first.pid} " in said.splitlines()[-1]
    story.world.land()
    story.settle()
    assert_as_it_should_be(story)


def test_two_ingest_jobs_over_overlapping_files_give_each_event_once_though_one_is_killed(
    story: Story, seed: int, say: Callable[[str], None], summary: list[str]
) -> None:
    world, chance = story.world, random.Random(seed)
    landing = world.installation.landing.with_name("landing-b")
    landing.mkdir()
    there = Installation(world.installation.root, landing)
    other = world.job("ingest", f"ingest.landing={landing}", "ingest.name=ingest_b")
    other = replace(other, log=other.log.with_name("ingest_b.log"))
    checkpoint = there.checkpoint("ingest_b")
    names: list[str] = []

    def land_in_both() -> None:
        # A file of which the other folder gets the same lines, at the same time and in another cut.
        text = world.log.file(30)
        lines = text.splitlines(keepends=True)
        for part in (lines[:10], lines[10:]):
            names.append(f"b{len(names):04d}.json")
            there.land(names[-1], "".join(part))
        story.more_rows += len(lines)
        world.names.append(f"a{len(world.names):04d}.json")
        world.installation.land(world.names[-1], text)

    try:
        for kill in range(2):
            before = checkpoint.last("commits")
            other.start()
            while checkpoint.last("commits") <= before + 1:
                other.assert_alive()
                if (
                    there.waiting(names, "ingest_b") < 8
                ):  # what gathers while it starts keeps the end of the test waiting
                    land_in_both()
                time.sleep(0.5)
            if kill == 0:
                land_in_both()
                time.sleep(chance.uniform(0, 1.5))
                other.kill()
        wait_until(lambda: there.ingested(names, "ingest_b"), "the second folder ingested", other)
        story.settle()
        assert other.terminate() == 0, other.said()[-3000:]
    finally:
        if other.process is not None:
            other.kill()
    assert_as_it_should_be(story)
    line = f"two ingest jobs, the same {story.more_rows} rows in both folders, one killed: every event once"
    say(f"  {line}")
    summary.append(line)


def test_a_job_whose_jvm_is_killed_says_so_and_goes_on_when_it_is_started_again(story: Story) -> None:
    world, job = story.world, story.jobs["ingest"]
    os.kill(job.jvm_pid(), signal.SIGKILL)  # as a machine without memory does
    assert job.wait_for_death() == 1
    assert job.said().splitlines()[-1].startswith("foldin: Spark's JVM is gone")
    world.land()
    job.start()
    story.settle()
    assert_as_it_should_be(story)


def test_sigterm_to_all_processes_of_a_job_ends_it_though_the_batch_is_lost(story: Story) -> None:
    # Seen with a JVM that shuts down in an orderly way: it waits for RocksDB's threads, and they for a task of its own.
    world = story.world
    for name, job in story.jobs.items():
        checkpoint = world.installation.checkpoint(name)
        done = checkpoint.last("commits")
        world.land()
        wait_until(lambda c=checkpoint, d=done: c.last("offsets") > d, "a batch has begun", *story.jobs.values())
        assert job.process is not None
        os.killpg(job.process.pid, signal.SIGTERM)
        assert job.wait_for_death(60) in (0, 1)  # its workers may have been done
        job.start()
    story.settle()
    assert_as_it_should_be(story)


def test_both_in_one_process_die_together_and_go_on_together(
    story: Story, say: Callable[[str], None], summary: list[str]
) -> None:
    world, two = story.world, story.jobs
    for job in two.values():
        assert job.terminate() == 0
    both = world.job("stream", arm=True)
    story.jobs = {"stream": both}
    try:
        both.start()
        for boundary in ("after append events", "only append user_factors"):
            story.settle()
            story.die_at(both, boundary)
            world.land()
            both.start()
        seconds = story.settle()
        story.second_fold_in()
        world.land()
        story.settle()
        assert both.terminate() == 0, both.said()[-3000:]
    finally:
        both.kill()
        story.jobs = two
        for job in two.values():
            job.start()
    line = f"both in one process, killed with events written, with factors written; recovered in {seconds:.1f} s"
    say(f"  {line}")
    summary.append(line)
    assert_as_it_should_be(story)


def test_sigterm_lets_the_fold_in_job_finish_its_batch_and_exit_0(story: Story) -> None:
    world, job = story.world, story.jobs["fold_in"]
    checkpoint = world.installation.checkpoint("fold_in")
    done, said = checkpoint.last("commits"), len(job.said())
    world.land()
    wait_until(lambda: checkpoint.last("offsets") > done, "a batch has begun", job)
    assert job.terminate() == 0
    assert "Traceback" not in job.said()[said:]
    # The signal came before the batch's first write or after: it was not begun, or finished.
    batch, app_id = checkpoint.last("offsets"), checkpoint.query_id()
    assert app_id is not None
    for table in ("user_factors", "recommendations"):
        assert world.installation.has_written(table, app_id, batch) == checkpoint.is_idle()
    wait_until(lambda: world.installation.ingested(world.names), "files ingested", story.jobs["ingest"])
    FoldIn(world.tables, world.config).run(once=True)
    assert_as_it_should_be(story)
