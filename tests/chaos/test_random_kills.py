"""Ingest and fold-in as real processes, killed at random moments while files land; the tables are those of a calm run.

`make chaos KILLS=30 SEED=...`: the seed is printed, so that the same choices can be made again (the moments within
a batch are the machine's).
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable

import pytest

from chaos.equal import (
    assert_account_adds_up,
    assert_nothing_published_twice,
    assert_same_input,
    assert_same_multiset,
    assert_same_output,
    without_stamps,
)
from chaos.processes import Job, wait_until
from chaos.worlds import World
from foldin.fold_in import FoldIn
from foldin.publishing import Publisher
from foldin.schemas import EVENTS, QUARANTINE

WRITES = {"ingest": ("quarantine", "events", "ingest_log"), "fold_in": ("user_factors", "recommendations")}
BACKLOG = 12
"""Files: on a busy machine a start takes a minute, and the end of the test would wait for what gathered meanwhile."""


class Feeder(threading.Thread):
    """Moves a file into the landing folder every half second or so, but never runs far ahead of the jobs."""

    def __init__(self, world: World, seed: int) -> None:
        super().__init__(daemon=True)
        self.world, self.random, self.ended = world, random.Random(seed), threading.Event()

    def run(self) -> None:
        while not self.ended.wait(self.random.uniform(0.2, 0.8)):
            if self.world.waiting() < BACKLOG:
                self.world.land(self.random.randrange(1, 60))

    def end(self) -> None:
        self.ended.set()
        self.join()


class Victim:
    """A job that is killed and started again, and when it is back at work."""

    def __init__(self, job: Job, world: World) -> None:
        self.job, self.checkpoint = job, world.installation.checkpoint(job.name)
        self.commit, self.back = -1, False

    def start(self) -> None:
        self.commit, self.back = self.checkpoint.last("commits"), False
        self.job.start()

    def is_back(self) -> bool:
        self.back = self.back or self.checkpoint.last("commits") > self.commit
        return self.back


@pytest.mark.timeout(3600)
def test_killed_at_random_moments_the_tables_equal_those_of_an_undisturbed_run(
    make_world: Callable[..., World],
    jobs: list[Job],
    seed: int,
    kills: int,
    say: Callable[[str], None],
    summary: list[str],
) -> None:
    world, chance = make_world(), random.Random(seed)
    victims = {name: Victim(world.job(name), world) for name in WRITES}
    jobs.extend(victim.job for victim in victims.values())
    world.land()
    say(f"\nchaos: {kills} random kills, SEED={seed}")
    for victim in victims.values():
        victim.start()
    feeder = Feeder(world, seed)
    feeder.start()
    try:
        recoveries = kill_and_restart(world, victims, chance, kills, say)
    finally:
        feeder.end()
    everything = list(victims.values())
    wait_until(lambda: world.installation.ingested(world.names), "all files ingested", *jobs)
    seconds = wait_until(world.installation.folded, "all events folded", *jobs)
    say(f"settled {seconds:.0f} s after the last of {len(world.names)} files, {world.log.rows:,} rows in all")
    for victim in everything:
        assert victim.job.terminate() == 0, victim.job.said()[-3000:]

    tables = world.tables
    assert_same_multiset(without_stamps(tables, EVENTS), world.log.multiset(), "events")
    raws = tables.read(QUARANTINE).select("raw", "reason").collect()
    assert_same_multiset(Counter(tuple(row) for row in raws), world.log.reasons(), "quarantine")
    assert_account_adds_up(tables, world.log.rows)
    assert_nothing_published_twice(tables)

    calm = make_world("calm", landing=world.installation.landing)
    calm.ingest().run(once=True)
    Publisher(calm.tables, calm.config.recommend.top_n).activate(calm.models[1], reason="the same swap")
    FoldIn(calm.tables, calm.config).run(once=True)
    assert_same_input(tables, calm.tables)
    assert_same_output(tables, calm.tables)

    slowest = max(recoveries, default=0.0)
    mean = sum(recoveries) / max(1, len(recoveries))
    summary.append(
        f"random kills       {kills:3d} kills, seed {seed}, {len(world.names)} files, {world.log.rows:,} rows, a model "
        f"swap; back at work in {mean:.0f} s (at most {slowest:.0f} s); tables equal"
    )


def kill_and_restart(
    world: World, victims: dict[str, Victim], chance: random.Random, kills: int, say: Callable[[str], None]
) -> list[float]:
    """Until the count is reached; seconds from a start to the first commit after it."""
    recoveries: list[float] = []
    names: list[str] = []

    def all_back() -> None:
        for name, victim in victims.items():
            wait_until(victim.is_back, f"{name} commits a batch", *(v.job for v in victims.values()))
        if names:
            recoveries.append(time.monotonic() - victims[names[0]].job.started)
            say(f"    {' and '.join(names)}: back at work after {recoveries[-1]:.1f} s")

    for n in range(1, kills + 1):
        if n == kills // 2 + 1:
            all_back()
            promotion = Publisher(world.tables, world.config.recommend.top_n).activate(world.models[1], reason="swap")
            say(f"    model {promotion.model_version} is active now")
        if names and chance.random() < 0.25:
            time.sleep(chance.uniform(0, 10))  # the one that was just killed is killed again while it starts
        else:
            all_back()
            names = chance.choices([["ingest"], ["fold_in"], ["ingest", "fold_in"]], weights=[2, 2, 1])[0]
            time.sleep(chance.uniform(0, 2.5))
        for name in names:
            victims[name].job.assert_alive()
            victims[name].job.kill()
        where = "; ".join(f"{name} {world.installation.where_killed(name, WRITES[name])}" for name in names)
        say(f"kill {n} of {kills}: {where}")
        for name in names:
            victims[name].start()
    all_back()
    return recoveries
