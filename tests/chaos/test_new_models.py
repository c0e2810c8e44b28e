"""A model is trained and adopted while events arrive, and a process is killed at each step of it.

One installation lives through all cases. At every moment readers see one whole version: a list for everybody, of the
active model; and in the end the active factors include every event.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from chaos.equal import assert_account_adds_up, assert_latest_is_a_refold
from chaos.processes import Job, wait_until
from chaos.worlds import World, copy_of
from foldin.maintenance import maintain
from foldin.reading import latest_recommendations
from foldin.registry import Registry

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

CASES = [
    ("train", "after train item_factors", "item factors written, users' not"),
    ("train", "after train recommendations", "all written, not a candidate yet"),
    ("train", "after train models", "a candidate that nobody has asked for"),
    ("train", "after ask", "asked for, the one who asked is gone"),
    ("fold_in", "before catch up", "asked for, nothing refolded"),
    ("fold_in", "after catch up", "users refolded, not promoted"),
    ("fold_in", "after promote", "promoted, not written down by the stream"),
    ("fold_in", "after write adopted", "written down"),
]
# Four JVMs share the cores: the streams leave some of it to the training.
SETTINGS = (
    "train.adoption_minutes=3",
    "ingest.trigger_seconds=1.0",
    "fold_in.trigger_seconds=1.0",
    "metrics.flush_seconds=5.0",
    "tables.compact_every=20",
    "maintain.keep_models=1",
)


class Reader(threading.Thread):
    """Looks all the time: everybody who had a list has one, and all are of one version."""

    def __init__(self, world: World) -> None:
        super().__init__(daemon=True)
        self.tables, self.ended = world.tables, threading.Event()
        self.looks, self.failures, self.versions, self.users = 0, list[str](), list[str](), 0

    def run(self) -> None:
        while not self.ended.wait(1.0):
            version = Registry(self.tables).active_version()
            users = latest_recommendations(self.tables, version).where("size(items) > 0").count()
            self.looks += 1
            if not self.versions or self.versions[-1] != version:
                self.versions.append(version)
            if users < self.users:
                self.failures.append(f"{users} users have a list under {version}, {self.users} had one before")
            self.users = max(self.users, users)

    def end(self) -> None:
        self.ended.set()
        self.join()
        assert not self.failures, self.failures[:3]
        assert self.looks > 1


class Feeder(threading.Thread):
    """Lands a file every second, and never runs far ahead of the jobs."""

    def __init__(self, world: World) -> None:
        super().__init__(daemon=True)
        self.world, self.ended = world, threading.Event()

    def run(self) -> None:
        while not self.ended.wait(2.0):
            if self.world.waiting() < 6:
                self.world.land(20)

    def end(self) -> None:
        self.ended.set()
        self.join()


@dataclass
class Story:
    """The installation and its running jobs."""

    world: World
    jobs: dict[str, Job] = field(default_factory=dict)

    def running(self) -> tuple[Job, ...]:
        return self.jobs["ingest"], self.jobs["fold_in"]

    def settle(self) -> None:
        wait_until(lambda: self.world.installation.ingested(self.world.names), "files ingested", *self.running())
        wait_until(self.world.installation.folded, "events folded", *self.running())


@pytest.fixture(scope="module")
def story(past: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    world = copy_of(past, tmp_path_factory.mktemp("models") / "world", *SETTINGS)
    story = Story(world, {name: world.job(name, arm=True) for name in ("ingest", "fold_in", "train")})
    world.land()
    try:
        for job in story.running():
            job.start()
        story.settle()
        yield story
    finally:
        for job in story.jobs.values():
            if job.process is not None:
                job.kill()


@pytest.mark.parametrize(("name", "boundary", "what"), CASES, ids=[f"{c[0]}: {c[2]}" for c in CASES])
def test_killed_on_the_way_to_a_new_model_and_started_again_one_whole_version_serves_at_every_moment(
    story: Story, name: str, boundary: str, what: str, say: Callable[[str], None], summary: list[str]
) -> None:
    world, victim, training = story.world, story.jobs[name], story.jobs["train"]
    tables = world.tables
    before = Registry(tables).active_version()
    assert victim.arm is not None
    fired = victim.arm.with_name(f"{victim.arm.name}.fired")
    fired.unlink(missing_ok=True)
    victim.arm.write_text(boundary)
    reader, feeder, began = Reader(world), Feeder(world), time.monotonic()
    reader.start()
    feeder.start()
    try:
        training.start()
        wait_until(fired.exists, f"{name} comes to {boundary!r}", *(j for j in story.running() if j is not victim))
        assert victim.wait_for_death() == -9
        victim.start()
        code = training.wait_for_death()
        assert code == 0, training.said()[-3000:]
        wait_until(lambda: Registry(tables).active_version() != before, "another model is active", *story.running())
    finally:
        feeder.end()
        reader.end()
    story.settle()
    assert_account_adds_up(tables, world.log.rows)
    assert_latest_is_a_refold(tables)
    seconds = time.monotonic() - began
    line = f"{name:8} killed: {what}; {reader.looks} looks, {len(reader.versions)} versions, {seconds:.0f} s"
    say(f"  {line}")
    summary.append(f"new model          {line}")


def test_maintenance_beside_a_running_stream_and_a_running_training(
    story: Story, say: Callable[[str], None], summary: list[str]
) -> None:
    world, training = story.world, story.jobs["train"]
    before = Registry(world.tables).active_version()
    reader, feeder, runs, retired = Reader(world), Feeder(world), 0, list[str]()
    reader.start()
    feeder.start()
    try:
        training.start()
        while training.process is not None and training.process.poll() is None:
            for job in story.running():
                job.assert_alive()
            retired += maintain(world.tables, world.config).retired
            runs += 1
        assert training.wait_for_death() == 0, training.said()[-3000:]
    finally:
        feeder.end()
        reader.end()
    assert Registry(world.tables).active_version() != before
    world.land(20)  # the stream's last batch is folded under the new model
    story.settle()
    retired += maintain(world.tables, world.config).retired
    assert before in retired
    assert_account_adds_up(world.tables, world.log.rows)
    assert_latest_is_a_refold(world.tables)
    for job in story.running():
        assert job.terminate() == 0, job.said()[-3000:]
    line = f"maintenance, {runs} runs beside the stream and a training: {len(retired)} models retired, tables equal"
    say(f"  {line}")
    summary.append(line)
