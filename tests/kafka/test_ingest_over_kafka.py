"""jobs/ingest.py as a real process over a real broker: both are killed, nothing is lost or doubled, nothing is told."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from broker import PASSWORD, STORE_PASSWORD, Broker, Client, guarded
from pyspark.sql import SparkSession

from chaos.processes import Job, wait_until
from foldin.schemas import EVENTS, INGEST_LOG, QUARANTINE
from foldin.tables import Tables

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
TELLTALES = (b"w0rd-9f3c", b"st0re-of-ke")
"""Of each password, what no quoting and no escaping changes."""

Row = tuple[str, str, str, str, float | None]


def settings(folder: Path, broker: Broker, topic: str, *more: str) -> tuple[str, ...]:
    return (
        f"tables.root={folder / 'tables'}",
        "ingest.source=kafka",
        "ingest.trigger_seconds=0.1",
        f"kafka.bootstrap_servers='{broker.address}'",
        f"kafka.topics='{topic}'",
        "kafka.max_offsets_per_trigger=150",
        "fold_in.lease_seconds=3",
        "spark.master='local[2]'",
        "spark.conf.spark.driver.memory=1g",
        *more,
    )


class Log:
    """Messages with every fault that there is, and what plain Python makes of them."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.sent = 0
        self.events: dict[str, Row] = {}
        self.quarantine: set[tuple[str, str | None]] = set()

    def draw(self, count: int) -> list[bytes | None]:
        """That many further messages."""
        self.sent += count
        return [self._one() for _ in range(count)]

    def _one(self) -> bytes | None:
        kind = self._random.random()
        if kind < 0.04:
            self.quarantine.add(("broken json", None))
            return None
        if kind < 0.08:
            junk = f"{{junk {self._random.randrange(30)}"
            self.quarantine.add(("broken json", junk))
            return junk.encode()
        if kind < 0.12:
            row = {"event_id": f"q{self._random.randrange(30)}", "item_id": "i", "event_type": "view"}
            self.quarantine.add(("missing user_id", json.dumps(row)))
            return json.dumps(row).encode()
        # Of 500 ids, so that many come again: the same content, in this batch or in a later one.
        n = self._random.randrange(500)
        row = {
            "event_id": f"e{n}",
            "user_id": f"u{n % 37}",
            "item_id": f"i{n % 11}",
            "event_type": ("view", "like", "purchase")[n % 3],
            "value": n / 4 if n % 5 else None,
            "event_time": "2025-03-01T12:00:00Z",
        }
        self.events[f"e{n}"] = (f"e{n}", f"u{n % 37}", f"i{n % 11}", ("view", "like", "purchase")[n % 3], row["value"])
        return json.dumps(row).encode()


def found(spark: SparkSession, folder: Path) -> tuple[Counter[Row], Counter[tuple[str, str | None]], int]:
    """The events and the quarantined rows as multisets without stamps, and the rows in."""
    tables = Tables(spark, str(folder / "tables"))
    events = tables.read(EVENTS).select("event_id", "user_id", "item_id", "event_type", "value").collect()
    quarantine = tables.read(QUARANTINE).select("reason", "raw").collect()
    rows_in = sum(row["rows_in"] for row in tables.read(INGEST_LOG).collect())
    return Counter(map(tuple, events)), Counter(map(tuple, quarantine)), rows_in


def test_broker_and_job_are_killed_and_started_again_and_nothing_is_lost_or_doubled(
    spark: SparkSession, broker: Broker, client: Client, topic: str, tmp_path: Path
) -> None:
    log = Log(seed=5)
    job = Job("ingest", settings(tmp_path, broker, topic), tmp_path / "ingest.log")
    commits = tmp_path / "tables" / "_checkpoints" / "ingest" / "commits"

    def done() -> int:
        return max((int(path.name) for path in commits.glob("[0-9]*")), default=-1)

    def after(batch: int) -> Callable[[], bool]:
        return lambda: job.assert_alive() or done() > batch  # type: ignore[func-returns-value]

    client.send(topic, *log.draw(450))
    job.start()
    try:
        wait_until(after(0), "the first batches")
        broker.kill()  # with messages left that it has told of
        broker.start()
        client.send(topic, *log.draw(150))
        wait_until(after(done()), "a batch after the broker's restart")
        client.send(topic, *log.draw(300))
        wait_until(after(done()), "a batch of the last messages")
        job.kill()
        broker.kill()
        broker.start()
        client.send(topic, *log.draw(150))
        job.start("--once")
        assert job.wait_for_death() == 0, job.said()[-3000:]
    finally:
        job.kill()

    events, quarantine, rows_in = found(spark, tmp_path)
    assert events == Counter(log.events.values())
    assert quarantine == Counter(log.quarantine)
    assert rows_in == log.sent


def test_the_passwords_are_nowhere_but_in_the_environment(
    broker: Broker, client: Client, topic: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = tmp_path / "spark-events"
    events.mkdir()
    more = (
        *guarded(broker),
        "spark.conf.spark.log.level=INFO",
        "spark.conf.spark.eventLog.enabled=true",
        "spark.conf.spark.eventLog.compress=false",
        f"spark.conf.spark.eventLog.dir='file:{events}'",
    )
    job = Job("ingest", settings(tmp_path, broker, topic, *more), tmp_path / "ingest.log")
    client.send(topic, *Log(seed=6).draw(50))
    monkeypatch.setenv("KAFKA_WORD", PASSWORD)
    monkeypatch.setenv("KAFKA_STORE_WORD", STORE_PASSWORD)
    job.start("--once")
    try:
        assert job.wait_for_death() == 0, job.said()[-3000:]
    finally:
        job.kill()

    said = job.said()
    assert "50 rows in" in said
    # Kafka has logged its settings: there was something to hide.
    assert "sasl.jaas.config = [hidden]" in said
    assert "ssl.truststore.password = [hidden]" in said
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"ingest.log", "metadata"} <= {path.name for path in files}
    assert any(path.is_relative_to(events) and path.stat().st_size > 10_000 for path in files)
    assert [str(path) for path in files if any(word in path.read_bytes() for word in TELLTALES)] == []


def test_under_spark_submit_a_missing_connector_is_one_line_that_names_it(
    broker: Broker, topic: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PYSPARK_GATEWAY_PORT", "PYSPARK_GATEWAY_SECRET", "SPARK_ENV_LOADED"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "lib"))
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    sets = [word for each in settings(tmp_path, broker, topic) for word in ("--set", each)]
    submit = [Path(sys.executable).with_name("spark-submit"), "--packages", "io.delta:delta-spark_4.2_2.13:4.4.0"]
    confs = ["--master", "local[2]", "--conf", "spark.driver.memory=1g", "--conf", "spark.ui.enabled=false"]
    command = [*submit, *confs, ROOT / "jobs" / "ingest.py", "--once", *sets]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    # spark-submit sends a Python program's stderr to its own stdout.
    assert done.stdout.splitlines()[-1] == (
        "foldin: ingest.source = 'kafka' needs Spark's Kafka connector: pass --packages "
        "org.apache.spark:spark-sql-kafka-0-10_2.13:4.2.0 to spark-submit"
    ), done.stderr[-3000:]
    assert done.returncode == 2
    assert "Traceback" not in done.stdout + done.stderr
