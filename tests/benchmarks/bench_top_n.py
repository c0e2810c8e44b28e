"""Top-10 for all users through Spark: foldin, which solves, filters seen items and ranks, against MLlib, which ranks.

`make bench-top-n`; one table, rounds in turns, also written to build/bench/top_n.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyspark.ml.recommendation import ALS
from pyspark.sql import functions as F

from foldin.config import load_config
from foldin.folding import fold
from foldin.histories import HistoryDefinition, histories, slim
from foldin.kernels import Objective, prepare, top_n
from foldin.registry import Model
from foldin.schemas import Position
from foldin.session import build_session
from foldin.shipping import ShippedModel

REPORT = Path(__file__).parents[2] / "build" / "bench" / "top_n.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=20_000)
    parser.add_argument("--items", type=int, default=50_000)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()

    config = load_config(sets=["spark.conf.spark.driver.memory=6g", "history.transform=identity"])
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    spark = build_session(config, log_file=REPORT.parent / "spark.log")
    rng = np.random.default_rng(0)
    # Lognormal histories over Zipf items, and every item once so that all have factors.
    lengths = np.clip(rng.lognormal(2.7, 0.95, options.users).astype(int), 1, 1000)
    users = np.concatenate(
        [np.repeat(np.arange(options.users), lengths), rng.integers(options.users, size=options.items)]
    )
    weight = 1.0 / np.arange(1, options.items + 1) ** 0.8
    drawn = rng.choice(options.items, lengths.sum(), p=weight / weight.sum())
    items = np.concatenate([drawn, np.arange(options.items)])
    table = pa.table({"user": users.astype(np.int32), "item": items.astype(np.int32)})
    rows = spark.createDataFrame(table).distinct().withColumn("rating", F.lit(1.0).cast("float")).persist()
    events = rows.selectExpr(
        "concat(user, ':', item) as event_id", "cast(user as string) as user_id", "cast(item as string) as item_id",
        "'view' as event_type", "1D as value", "timestamp_seconds(1700000000 + item) as event_time",
    )  # fmt: skip
    als = ALS(
        rank=options.rank, maxIter=2, implicitPrefs=True, alpha=10.0, regParam=0.1, userCol="user", ratingCol="rating"
    ).fit(rows)

    factors = als.itemFactors.withColumn("hash", F.xxhash64(F.col("id").cast("string"))).toArrow().sort_by("hash")
    factors = factors.combine_chunks()
    matrix = np.ascontiguousarray(factors.column("features").combine_chunks().flatten().to_numpy(), dtype=np.float32)
    definition = HistoryDefinition.of(config)
    model = Model(
        items=prepare(
            matrix.reshape(factors.num_rows, options.rank), Objective(0.1, alpha=10.0), model_version="benchmark"
        ),
        item_ids=factors.column("id").cast(pa.string()).combine_chunks(),
        item_hashes=factors.column("hash").to_numpy(),
        popularity=np.ones(factors.num_rows, dtype=np.float32),
        definition=definition,
        as_of_us=2_000_000_000_000_000,
        cut=Position(0),
    )
    shipped = ShippedModel.ship(spark.sparkContext, model)
    all_histories = histories(slim(events, definition.types), definition.max_events).persist()
    n_users = all_histories.count()
    user_factors = als.userFactors.persist()
    user_factors.count()
    rank = options.rank

    def only_rank(batches):
        for batch in batches:
            vectors = batch.column("features").flatten().to_numpy().reshape(-1, rank)
            found = top_n(shipped.value().items, vectors, 10)
            yield pa.RecordBatch.from_arrays(
                [batch.column("id"), pa.array(list(found.indices)), pa.array(list(found.scores))],
                names=["id", "items", "scores"],
            )

    ranked = user_factors.mapInArrow(only_rank, "id int, items array<int>, scores array<float>")
    contenders = {
        "MLlib recommendForAllUsers(10), no filter": lambda: als.recommendForAllUsers(10),
        "foldin top-10, no filter": lambda: ranked,
        "foldin fold-in + seen filter + top-10": lambda: fold(all_histories, shipped, 10, Position(1)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for round_number in range(options.rounds + 1):  # the first warms up
        for name, frame in contenders.items():
            started = time.monotonic()
            frame().write.format("noop").mode("overwrite").save()
            if round_number:
                seconds[name].append(time.monotonic() - started)
    base = statistics.median(seconds["MLlib recommendForAllUsers(10), no filter"])
    print(f"{n_users:,} users x {factors.num_rows:,} items, rank {rank}, medians of {options.rounds} rounds in turns")
    report = []
    for name, taken in seconds.items():
        median = statistics.median(taken)
        print(f"{name:<44} {median:7.2f} s  {n_users / median:9,.0f} users/s  {base / median:5.1f} x MLlib")
        report.append({"contender": name, "seconds": taken, "times_mllib": base / median})
    REPORT.write_text(
        json.dumps({"users": n_users, "items": factors.num_rows, "rank": rank, "table": report}, indent=1)
    )
    spark.stop()


if __name__ == "__main__":
    main()
