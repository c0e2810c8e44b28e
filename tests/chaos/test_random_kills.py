"""Ingest and fold-in as real processes, killed at random moments while files land; the tables are those of a calm run.

Half of the kills find a process of each query, the other half the one that runs both and takes over from them.
`make chaos SEED=...`: the seed is printed, so that the same choices can be made again (the moments within
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
QUERIES = {"ingest": ("ingest",), "fold_in": ("fold_in",), "stream": ("ingest", "fold_in")}
"""By job."""
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
        self.job, self.installation = job, world.installation
        self.waited_for: dict[str, int] = {}
        """Its queries that are not back yet, with their last commit before the start."""

    def start(self) -> None:
        queries = QUERIES[self.job.name]
        self.waited_for = {name: self.installation.checkpoint(name).last("commits") for name in queries}
        self.job.start()

    def is_back(self) -> bool:
        for name, commit in list(self.waited_for.items()):
            if self.installation.checkpoint(name).last("commits") > commit:
                del self.waited_for[name]
        return not self.waited_for

    def where_killed(self) -> str:
        return "; ".join(
            f"{name} {self.installation.where_killed(name, WRITES[name])}" for name in QUERIES[self.job.name]
        )


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
        recoveries = kill_and_restart(world, victims, jobs, chance, kills, say)
    finally:
        feeder.end()
    running = [victim.job for victim in victims.values()]
    wait_until(lambda: world.installation.ingested(world.names), "all files ingested", *running)
    seconds = wait_until(world.installation.folded, "all events folded", *running)
    say(f"settled {seconds:.0f} s after the last of {len(world.names)} files, {world.log.rows:,} rows in all")
    for job in running:
        assert job.terminate() == 0, job.said()[-3000:]

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
    world: World,
    victims: dict[str, Victim],
    jobs: list[Job],
    chance: random.Random,
    kills: int,
    say: Callable[[str], None],
) -> list[float]:
    """Until the count is reached; seconds from a start to the first commit after it.

    At half of it a model becomes active, and `victims` are replaced by one, which is added to `jobs`.
    """
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
            for victim in victims.values():
                assert victim.job.terminate() == 0, victim.job.said()[-3000:]
            victims.clear()
            victims["stream"] = Victim(world.job("stream"), world)
            jobs.append(victims["stream"].job)
            victims["stream"].start()
            names = []
        if names and chance.random() < 0.25:
            time.sleep(chance.uniform(0, 10))  # the one that was just killed is killed again while it starts
        else:
            all_back()
            one, *other = victims
            names = chance.choices([[one], other, [one, *other]], weights=[2, 2, 1])[0] if other else [one]
            time.sleep(chance.uniform(0, 2.5))
        for name in names:
            victims[name].job.assert_alive()
            victims[name].job.kill()
        say(f"kill {n} of {kills}: {'; '.join(victims[name].where_killed() for name in names)}")
        for name in names:
            victims[name].start()
    all_back()
    return recoveries
