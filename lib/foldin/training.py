"""The nightly model: events to strengths, strengths to MLlib ALS, its factors to tables."""

from __future__ import annotations

import datetime as dt
import logging
import secrets
import time
from dataclasses import dataclass
from typing import Any

from pyspark.ml.recommendation import ALS, ALSModel
from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

import foldin
from foldin.adoption import bring_into_force
from foldin.config import Config
from foldin.errors import FoldinError
from foldin.histories import HistoryDefinition, histories, slim, user_strengths
from foldin.publishing import Publisher
from foldin.schemas import EVENTS, ITEM_FACTORS, RECOMMENDATIONS, STRENGTHS, USER_FACTORS, Position
from foldin.tables import Tables

__all__ = ["EmptyTrainingCutError", "Trained", "fit", "train"]

log = logging.getLogger("foldin.train")


class EmptyTrainingCutError(FoldinError):
    """There is nothing to train on."""


@dataclass(frozen=True)
class Trained:
    """A finished training: the model's version and what its row in `models` says."""

    model_version: str
    users: int
    items: int
    events: int
    parity: float
    seconds: float


def fit(strengths: DataFrame, config: Config, checkpoint_dir: str) -> tuple[ALSModel, DataFrame, DataFrame]:
    """MLlib ALS on (user_id, item, strength).

    Returns:
        the fitted model, and the maps (user_id, user) and (item, item_index) of its int32 ids, which number users and
        items in their own order: the same strengths give the same ids.
    """
    users = strengths.select("user_id").distinct()
    users = users.withColumn("user", F.row_number().over(Window.orderBy("user_id")) - 1).persist()
    items = strengths.select("item").distinct()
    items = items.withColumn("item_index", F.row_number().over(Window.orderBy("item")) - 1).persist()
    ratings = strengths.join(users, "user_id").join(items, "item").select("user", "item_index", "strength")
    settings = config.train
    # Without a checkpoint directory MLlib's checkpointInterval does nothing and the lineage grows.
    ratings.sparkSession.sparkContext.setCheckpointDir(checkpoint_dir)
    als = ALS(
        rank=settings.rank,
        maxIter=settings.iterations,
        regParam=settings.reg_param,
        alpha=settings.alpha,
        implicitPrefs=settings.mode == "implicit",
        nonnegative=settings.nonnegative,
        seed=settings.seed,
        numUserBlocks=settings.blocks,
        numItemBlocks=settings.blocks,
        userCol="user",
        itemCol="item_index",
        ratingCol="strength",
        checkpointInterval=10,
    )
    return als.fit(ratings), users, items


def train(tables: Tables, config: Config, *, activate: bool = True) -> Trained:
    """Train on all of `events`, write the model's factors and lists, register it and, by default, activate it.

    Raises:
        EmptyTrainingCutError: no event carries a weight.
        FoldinError: two items share a 64-bit hash.
    """
    started = time.monotonic()
    definition = HistoryDefinition.of(config)
    cut = tables.version(EVENTS)
    events = tables.read(EVENTS, version=cut)
    facts = events.agg(F.count("*").alias("events"), F.unix_micros(F.max("event_time")).alias("as_of_us")).first()
    if facts is None or facts["as_of_us"] is None:
        raise EmptyTrainingCutError("nothing to train on: the events table is empty; run ingest first")
    as_of_us = int(facts["as_of_us"])
    log.info("training cut: %s events, version %d of the table", f"{facts['events']:,}", cut)

    users_histories = histories(slim(events, definition.types), definition.max_events).persist()
    strengths = users_histories.select("user_id", "history").mapInArrow(user_strengths(definition, as_of_us), STRENGTHS)
    strengths = strengths.persist()
    n_strengths = strengths.count()
    if n_strengths == 0:
        raise EmptyTrainingCutError("nothing to train on: no event in the cut has a weight other than 0")
    model, users, items = fit(strengths, config, tables.path("_checkpoints", "als"))
    log.info(
        "ALS: rank %d, %d iterations on %s strengths, %.1f s",
        config.train.rank, config.train.iterations, f"{n_strengths:,}", time.monotonic() - started,
    )  # fmt: skip

    version = f"{dt.datetime.now(dt.UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"
    tables.append(_item_rows(model, items, events, strengths, version), ITEM_FACTORS)
    row: dict[str, Any] = {
        "model_version": version,
        "cut_version": cut,
        "as_of_us": as_of_us,
        "mode": config.train.mode,
        "rank": config.train.rank,
        "iterations": config.train.iterations,
        "reg_param": config.train.reg_param,
        "alpha": config.train.alpha,
        "nonnegative": config.train.nonnegative,
        "seed": config.train.seed,
        "history": definition.to_json(),
        "events": facts["events"],
        "users": users.count(),
        "items": items.count(),
        "strengths": n_strengths,
        "foldin_version": foldin.__version__,
    }
    publisher = Publisher(tables, config.recommend.top_n)
    publisher.use(publisher.registry.load(version, row))
    folded = publisher.folded(users_histories, version, Position.after(cut))
    mllib = model.userFactors.join(users, F.col("id") == F.col("user")).select("user_id", "features")
    folded = folded.join(mllib, "user_id", "left").persist()
    # MLlib has no row for a user whose history says nothing; fold-in gives such a user the zero vector.
    tables.append(folded.withColumn("factors", F.coalesce("features", "factors")), USER_FACTORS)
    tables.append(folded, RECOMMENDATIONS)
    row["parity"] = _parity(folded, row["users"])
    row["seconds"] = time.monotonic() - started
    publisher.registry.candidate(row)
    log.info(
        "model %s: %s users, %s items, fold-in differs from MLlib by %.1e at most, %.1f s",
        version, f"{row['users']:,}", f"{row['items']:,}", row["parity"], row["seconds"],
    )  # fmt: skip
    for frame in (folded, strengths, users_histories, users, items):
        frame.unpersist()
    if activate:
        bring_into_force(tables, config, version, reason="trained", wait=config.train.adoption_minutes * 60)
    return Trained(version, row["users"], row["items"], row["events"], row["parity"], row["seconds"])


def _item_rows(model: ALSModel, items: DataFrame, events: DataFrame, strengths: DataFrame, version: str) -> DataFrame:
    names = events.select("item_id").distinct().withColumn("item", F.xxhash64("item_id")).persist()
    clash = names.groupBy("item").agg(F.collect_list("item_id").alias("ids")).where(F.size("ids") > 1).first()
    if clash is not None:
        raise FoldinError(f"items {clash['ids']} share the 64-bit hash {clash['item']}; rename one of them")
    users = strengths.where("strength > 0").groupBy("item").agg(F.count("*").alias("users"))
    return (
        model.itemFactors.join(items, F.col("id") == F.col("item_index"))
        .join(names, "item")
        .join(users, "item", "left")
        .select(
            F.lit(version).alias("model_version"),
            "item_id",
            F.col("item").alias("item_hash"),
            F.col("features").alias("factors"),
            F.coalesce("users", F.lit(0).cast("long")).alias("users"),
        )
    )


def _parity(folded: DataFrame, users: int) -> float:
    """The largest relative norm of (folded - MLlib's) over users: invariant 1, measured on every model."""
    norm = "sqrt(aggregate({}, 0D, (sum, x) -> sum + x * x))"
    difference = norm.format("zip_with(factors, features, (a, b) -> double(a) - double(b))")
    scale = norm.format("transform(features, x -> double(x))")
    rows = folded.where("features is not null").selectExpr(f"{difference} as d", f"{scale} as s")
    worst = rows.selectExpr("count(*) as users", "max(if(s > 0, d / s, d)) as parity").first()
    if worst is None or worst["users"] != users:
        raise FoldinError(f"parity was to be measured on {users} users, found {worst and worst['users']}")
    return float(worst["parity"])
