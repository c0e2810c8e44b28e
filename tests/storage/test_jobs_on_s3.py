"""The jobs as a user runs them on S3: landing, tables and checkpoints in a bucket, keys from the environment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from buckets import CONFIG, KEYS, Bucket
from loop import BROKEN, FIRST, SECOND, events_of_both, lines, rows_landed
from pyspark.sql import SparkSession

from chaos.equal import assert_account_adds_up, assert_latest_is_a_refold
from chaos.processes import Job, wait_until
from foldin.checkpoints import Checkpoint
from foldin.config import load_config
from foldin.fold_in import FoldIn
from foldin.ingest import Ingest
from foldin.maintenance import maintain
from foldin.mapping import contract
from foldin.recommending import recommend_all
from foldin.schemas import EVENTS
from foldin.tables import Tables
from foldin.training import train
from world import SMALL

pytestmark = [pytest.mark.storage, pytest.mark.timeout(900)]


def jobs_of(bucket: Bucket, folder: Path) -> Callable[..., Job]:
    """Makes jobs over the shipped configuration, the bucket's place and a small model."""
    small = ("spark.master='local[2]'", "spark.conf.spark.driver.memory=1g", "fold_in.trigger_seconds=0.1", *SMALL)

    def make(name: str, *sets: str, log: str = "") -> Job:
        return Job(name, (*bucket.settings(), *small, *sets), folder / f"{log or name}.log")

    return make


def test_jobs_on_s3_lose_and_double_nothing_and_of_two_streams_one_runs(
    spark: SparkSession, bucket: Bucket, tmp_path: Path
) -> None:
    job = jobs_of(bucket, tmp_path)
    bucket.put("landing/1.json", lines(FIRST, BROKEN))
    ingest = job("ingest").start("--config", str(CONFIG), "--once")
    assert ingest.wait_for_death() == 0, ingest.said()[-3000:]
    config = load_config(sets=[f"tables.root={bucket.uri}/foldin", f"ingest.landing={bucket.uri}/landing", *SMALL])
    tables = Tables.of(spark, config.tables)
    train(tables, config)

    # Of two streams that start at the same moment one runs.
    streams = [job("fold_in", log=f"stream-{number}") for number in range(2)]
    commits = Checkpoint(spark, f"{bucket.uri}/foldin/_checkpoints/fold_in/commits")
    for stream in streams:
        stream.start("--config", str(CONFIG))
    try:
        wait_until(lambda: any(stream.process.poll() is not None for stream in streams), "one of them is refused")
        refused, running = sorted(streams, key=lambda stream: stream.process.poll() is None)
        assert refused.wait_for_death() == 8, refused.said()[-3000:]
        wait_until(lambda: commits.list(""), "a first micro-batch", running)
        assert running.terminate() == 0, running.said()[-3000:]
    finally:
        for stream in streams:
            stream.kill()

    # Another process goes on where they left off.
    bucket.put("landing/2.json", lines(SECOND))
    account = Ingest(tables, config, contract(config)).run(once=True)
    assert (account.events, account.duplicates) == (3, 1)
    assert FoldIn(tables, config).run(once=True) == 2
    assert recommend_all(tables, config) == 25
    maintain(tables, config)

    assert Counter(map(tuple, tables.read(EVENTS).select("event_id", "user_id", "item_id").collect())) == (
        events_of_both()
    )
    assert_account_adds_up(tables, rows_landed())
    assert_latest_is_a_refold(tables, top_n=3)
    assert {path.name for path in tmp_path.iterdir() if path.suffix != ".log"} <= {"spark-warehouse"}
    said = "".join(file.read_text(errors="replace") for file in tmp_path.glob("*.log"))
    assert f"{bucket.uri}/foldin: two jobs that write at the same time can lose commits; run one at a time" in said
    assert KEYS["AWS_SECRET_ACCESS_KEY"] not in said
