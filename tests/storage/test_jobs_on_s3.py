"""The jobs as a user runs them on S3: landing, tables and checkpoints in a bucket, keys from the environment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from buckets import CONFIG, Bucket
from loop import BROKEN, FIRST, SECOND, events_of_both, lines, rows_landed, run_loop
from pyspark.sql import SparkSession

from chaos.equal import assert_account_adds_up, assert_same_input, assert_same_output
from chaos.processes import Job, wait_until
from foldin.checkpoints import Checkpoint
from foldin.config import load_config
from foldin.schemas import EVENTS
from foldin.tables import Tables
from landing import land
from world import SMALL

pytestmark = [pytest.mark.storage, pytest.mark.timeout(900)]


def jobs_of(bucket: Bucket, folder: Path) -> Callable[..., Job]:
    """Makes jobs over the shipped configuration, the bucket's place and a small model."""
    small = ("spark.master='local[2]'", "spark.conf.spark.driver.memory=1g", "fold_in.trigger_seconds=0.1", *SMALL)

    def make(name: str, *sets: str, log: str = "") -> Job:
        return Job(name, (*bucket.settings(), *small, *sets), folder / f"{log or name}.log")

    return make


def ran(job: Job, *options: str) -> Job:
    job.start("--config", str(CONFIG), *options)
    assert job.wait_for_death() == 0, job.said()[-3000:]
    return job


def test_the_loop_on_s3_leaves_what_the_loop_on_a_local_disk_leaves(
    spark: SparkSession, bucket, tmp_path: Path
) -> None:
    job = jobs_of(bucket, tmp_path)
    bucket.put("landing/1.json", lines(FIRST, BROKEN))
    ran(job("ingest"), "--once")
    ran(job("train"))

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

    bucket.put("landing/2.json", lines(SECOND))
    ran(job("ingest"), "--once")
    assert "2 user updates published" in ran(job("fold_in"), "--once").said()
    assert "25 lists of 3 written" in ran(job("recommend")).said()
    ran(job("maintain"))

    local = load_config(sets=[f"tables.root={tmp_path / 'local'}", f"ingest.landing={tmp_path / 'landing'}", *SMALL])
    (tmp_path / "landing").mkdir()
    wanted = Tables.of(spark, local.tables)
    run_loop(wanted, local, lambda name, text: land(local, name, *text.splitlines()))
    found = Tables(spark, f"{bucket.uri}/foldin")
    assert Counter(map(tuple, found.read(EVENTS).select("event_id", "user_id", "item_id").collect())) == (
        events_of_both()
    )
    assert_account_adds_up(found, rows_landed())
    assert_same_input(found, wanted)
    assert_same_output(found, wanted)
    written = [path.name for path in tmp_path.iterdir() if path.suffix != ".log"]
    assert sorted(written) == ["landing", "local"]
