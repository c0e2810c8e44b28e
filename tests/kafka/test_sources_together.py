"""Files, Kafka and the quarantine replayed, all at once as real processes that are killed: every event once."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from pathlib import Path

import pytest
from broker import Broker, Client
from pyspark.sql import SparkSession
from test_ingest_over_kafka import settings

from chaos.processes import Job, wait_until
from foldin.checkpoints import REPLAYS
from foldin.schemas import EVENTS, INGEST_LOG, QUARANTINE
from foldin.tables import Tables

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(600)]

KNOWN, MORE = 60, 240
WEIGHTS = "events.weights={view=1, rating=2}"


def lines(kind: str, count: int) -> list[str]:
    """Rows of one type, whose ids are its first letter and a number."""
    at = {"event_type": kind, "event_time": "2025-03-01T12:00:00Z"}
    return [
        json.dumps({"event_id": f"{kind[0]}{n}", "user_id": f"u{n % 7}", "item_id": "i"} | at) for n in range(count)
    ]


def test_files_kafka_and_the_replayed_quarantine_at_once_give_each_event_once_though_all_are_killed(
    spark: SparkSession, broker: Broker, client: Client, topic: str, tmp_path: Path
) -> None:
    chance, checkpoints, landing = random.Random(11), tmp_path / "tables" / "_checkpoints", tmp_path / "landing"
    landing.mkdir()
    common = settings(tmp_path, broker, topic)
    by_files = (*common, "ingest.source=files", f"ingest.landing={landing}", "ingest.max_files_per_trigger=2")
    files = Job("ingest", (*by_files, WEIGHTS), tmp_path / "files.log")
    kafka = Job(
        "ingest", (*common, "ingest.name=topics", "kafka.max_offsets_per_trigger=40", WEIGHTS), tmp_path / "k.log"
    )
    again = Job("ingest", (*by_files, WEIGHTS, "ingest.max_bytes_per_trigger='1k'"), tmp_path / "again.log")
    jobs = (files, kafka, again)

    # Ratings that nobody has given a weight: they wait in the quarantine, in several files, until somebody has.
    ratings, views = lines("rating", KNOWN), lines("view", MORE)
    for n in range(0, KNOWN, 10):
        (landing / f"r{n:03}.json").write_text("\n".join(ratings[n : n + 10]) + "\n")
    first = Job("ingest", (*by_files, "events.weights={view=1}"), tmp_path / "first.log")
    assert first.start("--once").wait_for_death() == 0, first.said()[-3000:]

    # The same rows by Kafka and in files, in another order and cut, while the quarantine is judged anew.
    rows = [*ratings, *views]
    for n, part in enumerate(range(0, len(rows), 20)):
        (landing / f"s{n:03}.json").write_text("\n".join(rows[part : part + 20]) + "\n")
    chance.shuffle(rows)
    client.send(topic, *(row.encode() for row in rows))

    def begun() -> bool:
        for job in jobs:
            job.assert_alive()
        return bool([*(checkpoints / REPLAYS).glob("*/offsets/0"), *(checkpoints / "topics" / "offsets").glob("0")])

    try:
        files.start()
        kafka.start()
        again.start("--replay-quarantine")
        wait_until(begun, "a first batch")
        time.sleep(chance.uniform(0, 2))
        for job in jobs:
            job.kill()
        again.start("--replay-quarantine")
        kafka.start("--once")
        files.start("--once")
        for job in jobs:
            assert job.wait_for_death() == 0, job.said()[-3000:]
    finally:
        for job in jobs:
            if job.process is not None:
                job.kill()

    tables = Tables(spark, str(tmp_path / "tables"))
    events = Counter(row["event_id"] for row in tables.read(EVENTS).select("event_id").collect())
    assert events == Counter([f"r{n}" for n in range(KNOWN)] + [f"v{n}" for n in range(MORE)])
    assert tables.read(QUARANTINE).count() == KNOWN
    # Every row of every source is accounted for, by a row of the log for each batch.
    log = tables.read(INGEST_LOG)
    assert log.select("query_id", "batch_id").distinct().count() == log.count()
    sums = log.groupBy("query_id").sum("rows_in", "events", "quarantined", "duplicates").collect()
    assert all(rows_in == sum(rest) for _, rows_in, *rest in sums)
    assert Counter(rows_in for _, rows_in, *_ in sums)[KNOWN + MORE] == 1  # the topic
    assert Counter(rows_in for _, rows_in, *_ in sums)[KNOWN + KNOWN + MORE] == 1  # the folder
    assert {rows_in for _, rows_in, *_ in sums} == {KNOWN, KNOWN + MORE, KNOWN + KNOWN + MORE}  # and the replays
    assert sum(row["sum(events)"] for row in sums) == KNOWN + MORE
