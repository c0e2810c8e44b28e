"""What a micro-batch may hold: a bot with a million events, 100,000 users, 5,000,000 rows after an outage.

Jobs as real processes with a driver of 2 GB: they end with 0 and stay below MOST of memory, JVM and Python workers
together. Minutes each: `make chaos`, not with `KILLS=8`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from chaos.equal import assert_latest_is_a_refold
from chaos.processes import Job, tree_rss
from chaos.worlds import World
from foldin.reading import latest_user_factors
from foldin.schemas import EVENTS, INGEST_LOG

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]

DRIVER = ("spark.conf.spark.driver.memory=2g", "history.max_events_per_user=256", "fold_in.max_files_per_trigger=1000")
CATALOGUE = 50_000
MOST = 4 << 30  # bytes: the heap, RocksDB, the JVM's own, two Python workers and the driver's Python


def events_of(spark: SparkSession, rows: int, users: int, prefix: str, parts: int) -> DataFrame:
    """Rows of `events`: user n % users with an item of the catalogue, an hour after the other."""
    return spark.range(0, rows, 1, parts).select(
        F.format_string(f"{prefix}%d", "id").alias("event_id"),
        F.format_string(f"{prefix}u%d", F.col("id") % users).alias("user_id"),
        F.format_string("i%d", F.pmod(F.hash("id"), F.lit(CATALOGUE))).alias("item_id"),
        F.lit("view").alias("event_type"),
        F.lit(None).cast("double").alias("value"),
        F.timestamp_seconds(1_735_689_600 + F.col("id") % 10_000_000).alias("event_time"),
        F.lit("test").alias("source_file"),
        F.current_timestamp().alias("ingested_at"),
        F.current_date().alias("ingest_date"),
    )


class Peak:
    """The largest resident size of a process tree."""

    def __init__(self) -> None:
        self.bytes, self.seconds = 0, 0.0


@contextmanager
def measured(job: Job) -> Iterator[Peak]:
    """Run a job to its end, and measure it."""
    peak, ended = Peak(), threading.Event()
    job.start("--once")
    assert job.process is not None
    pid = job.process.pid

    def watch() -> None:
        while not ended.wait(0.2):
            peak.bytes = max(peak.bytes, tree_rss(pid))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        code = job.wait_for_death(3000)
        peak.seconds = time.monotonic() - job.started
        assert code == 0, job.said()[-3000:]
        yield peak
    finally:
        ended.set()
        watcher.join()
        job.kill()


def once(world: World, name: str, say: Callable[[str], None], what: str) -> None:
    job = world.job(name)
    job = replace(job, log=job.log.with_name(f"{name}-{time.monotonic_ns()}.log"))
    with measured(job) as peak:
        batches = [line for line in job.said().splitlines() if " batch " in line]
        state = sum(f.stat().st_size for f in world.installation.checkpoint(name).path.rglob("*") if f.is_file())
        say(
            f"\n  {what}: {peak.seconds:.0f} s in all, peak {peak.bytes / 2**30:.2f} GB, "
            f"checkpoint {state / 2**20:.0f} MB"
            f"\n    {batches[-1] if batches else ''}"
        )
        assert peak.bytes < MOST, what


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    return make_world("world", *DRIVER)


def test_a_bot_with_a_million_events_costs_its_bound(world: World, say: Callable[[str], None]) -> None:
    for part in range(10):
        world.tables.append(
            events_of(world.spark, 100_000, 1, f"bot{part}-", 1).withColumn("user_id", F.lit("bot")), EVENTS
        )
    once(world, "fold_in", say, "a bot with 1,000,000 events, from nothing")
    for user in ("bot", "u1"):
        one = events_of(world.spark, 1, 1, f"more-{user}", 1).withColumn("user_id", F.lit(user))
        world.tables.append(one, EVENTS)
        once(world, "fold_in", say, f"one more event of {user}")
    row = latest_user_factors(world.tables).where("user_id = 'bot'").select("events").first()
    assert row is not None
    assert row["events"] == 20  # the model's bound; the state's is 256
    assert_latest_is_a_refold(world.tables)


def test_a_hundred_thousand_users_in_one_batch(world: World, say: Callable[[str], None]) -> None:
    once(world, "fold_in", say, "the past alone")
    world.tables.append(events_of(world.spark, 300_000, 100_000, "many-", 2), EVENTS)
    once(world, "fold_in", say, "100,000 users, 3 events each, in one batch")
    assert latest_user_factors(world.tables).where("user_id like 'many-%'").count() == 100_000


@pytest.mark.parametrize(("limit", "batches"), [("10g", range(1, 2)), ("256m", range(2, 10))])  # 256m: the default
def test_five_million_rows_after_an_outage(
    make_world: Callable[..., World], say: Callable[[str], None], limit: str, batches: range
) -> None:
    world = make_world("world", *DRIVER, "ingest.max_files_per_trigger=0", f"ingest.max_bytes_per_trigger={limit}")
    before = world.tables.read(INGEST_LOG).count()
    once(world, "fold_in", say, "the past alone")
    rows = events_of(world.spark, 5_000_000, 500_000, "flood-", 10)
    event = F.to_json(
        F.struct(*[c for c in EVENTS.schema.names if c not in ("source_file", "ingested_at", "ingest_date")])
    )
    rows.select(event.alias("line")).write.mode("append").text(str(world.installation.landing))
    once(world, "ingest", say, f"5,000,000 rows, at most {limit} a batch, ingest")
    log = world.tables.read(INGEST_LOG).orderBy(F.desc("logged_at")).collect()[:-before]
    assert len(log) in batches
    assert [sum(row[name] for row in log) for name in ("rows_in", "events")] == [5_000_000, 5_000_000]
    once(world, "fold_in", say, "5,000,000 rows of 500,000 users, fold-in")
    assert latest_user_factors(world.tables).where("user_id like 'flood-%'").count() == 500_000
