"""One definition of history: bounded natively, independent of order, batches, replays; the same in a stream."""

from __future__ import annotations

import random

import pytest
from pyspark.sql import functions as F

from foldin.histories import HistoryDefinition, histories, slim
from foldin.schemas import EVENTS

TYPES = ("view", "like", "cart", "purchase")


def random_events(n: int, seed: int, users: int = 4):
    """Events with many ties of time."""
    rng = random.Random(seed)
    return [
        (
            f"e{k}",
            f"u{rng.randrange(users)}",
            f"i{rng.randrange(12)}",
            rng.choice(TYPES),
            rng.choice([None, 2.0]),
            f"2025-01-{rng.randrange(1, 6):02d} 00:00:00",
        )
        for k in range(n)
    ]


def collected(frame):
    """{user: (set of event hashes, set of seen item hashes)}"""
    return {row["user_id"]: ({e["event"] for e in row["history"]}, set(row["seen"])) for row in frame.collect()}


def expected(spark, rows, bound):
    """The definition, by plain Python over the hashes that Spark gives."""
    hashed = spark.createDataFrame(
        [(r[0], r[1], r[2], r[5]) for r in rows], "id string, user string, item string, at string"
    ).select("user", "at", F.xxhash64("id").alias("event"), F.xxhash64("item").alias("item"))
    users = {}
    for row in hashed.collect():
        users.setdefault(row["user"], []).append((row["at"], row["event"], row["item"]))
    return {user: ({e for _, e, _ in sorted(mine)[-bound:]}, {i for _, _, i in mine}) for user, mine in users.items()}


@pytest.mark.parametrize("bound", [1, 5, 1000])
def test_a_history_is_the_most_recent_events_and_seen_is_every_item(spark, events_frame, bound):
    rows = random_events(80, seed=bound)
    found = collected(histories(slim(events_frame(*rows), TYPES), bound))
    assert found == expected(spark, rows, bound)


def test_micro_batches_of_any_cut_and_order_give_the_history_of_one_batch(spark, events_frame, tables, tmp_path):
    rows = random_events(90, seed=3)
    random.Random(1).shuffle(rows)  # late events come after younger ones
    state = {}

    def keep(batch, _):
        state.update(collected(batch))

    for cut in ((0, 7), (7, 50), (50, 51), (51, 90)):
        tables.append(events_frame(*rows[slice(*cut)]), EVENTS)
        query = (
            histories(slim(tables.stream(EVENTS), TYPES), 5)
            .writeStream.outputMode("update")
            .option("checkpointLocation", str(tmp_path / "checkpoint"))
            .trigger(availableNow=True)
            .foreachBatch(keep)
            .start()
        )
        query.awaitTermination()
    assert state == expected(spark, rows, 5)


def test_types_without_a_number_are_left_out(events_frame):
    rows = [
        ("e1", "u", "i", "view", None, "2025-01-01 00:00:00"),
        ("e2", "u", "j", "wish", None, "2025-01-02 00:00:00"),
    ]
    found = slim(events_frame(*rows), TYPES).collect()
    assert [row["type"] for row in found] == [0]


def test_a_definition_survives_the_models_row(config):
    definition = HistoryDefinition.of(config)
    assert HistoryDefinition.from_json(definition.to_json()) == definition
    assert definition.half_life_days == float("inf")
