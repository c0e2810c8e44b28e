"""MLlib ALS on events: histories to strengths, strengths to factors."""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from pyspark.ml.recommendation import ALS, ALSModel
from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

import foldin
from foldin.config import Config
from foldin.errors import FoldinError
from foldin.histories import HistoryDefinition, histories, slim, user_strengths
from foldin.registry import Model, assemble
from foldin.schemas import STRENGTHS
from foldin.tables import Tables

__all__ = ["EmptyTrainingCutError", "Fitted", "fit", "fit_events", "model_of"]

log = logging.getLogger("foldin.train")


class EmptyTrainingCutError(FoldinError):
    """There is nothing to train on."""


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


@dataclass(frozen=True)
class Fitted:
    """MLlib's model of some events, and what it was made of; `caches` holds the frames that are kept for it.

    Attributes:
        users: (user_id, user), the int32 ids of MLlib's user factors.
        histories: of all users, as `histories` gives them.
        item_rows: rows of ITEM_FACTORS.
        row: what `models` is to say of it.
    """

    model: ALSModel
    users: DataFrame
    histories: DataFrame
    item_rows: DataFrame
    row: dict[str, Any]
    caches: ExitStack

    def done(self) -> None:
        """Give the cached frames back."""
        self.caches.close()


def fit_events(tables: Tables, events: DataFrame, cut: int, config: Config, version: str) -> Fitted:
    """Train on `events`, of which `cut` is the Delta version, a model of that name; nothing of it is written.

    Raises:
        EmptyTrainingCutError: no event carries a weight.
        FoldinError: two items share a 64-bit hash.
    """
    with ExitStack() as caches:  # given back at once if this fails
        fitted = _fit_within(caches, tables, events, cut, config, version)
        return replace(fitted, caches=caches.pop_all())


def _fit_within(caches: ExitStack, tables: Tables, events: DataFrame, cut: int, config: Config, version: str) -> Fitted:
    def kept(frame: DataFrame) -> DataFrame:
        caches.callback(frame.unpersist)
        return frame.persist()

    started, definition = time.monotonic(), HistoryDefinition.of(config)
    facts = events.agg(F.count("*").alias("events"), F.unix_micros(F.max("event_time")).alias("as_of_us")).first()
    if facts is None or facts["as_of_us"] is None:
        raise EmptyTrainingCutError("nothing to train on: the events table is empty; run ingest first")
    as_of_us = int(facts["as_of_us"])
    users_histories = kept(histories(slim(events, definition.types), definition.max_events))
    strengths = users_histories.select("user_id", "history").mapInArrow(user_strengths(definition, as_of_us), STRENGTHS)
    strengths = kept(strengths)
    n_strengths = strengths.count()
    if n_strengths == 0:
        raise EmptyTrainingCutError("nothing to train on: no event in the cut has a weight other than 0")
    model, users, items = fit(strengths, config, tables.path("_checkpoints", "als"))
    for frame in (users, items):
        caches.callback(frame.unpersist)
    log.info(
        "ALS: rank %d, %d iterations on %s strengths, %.1f s",
        config.train.rank, config.train.iterations, f"{n_strengths:,}", time.monotonic() - started,
    )  # fmt: skip
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
    names = kept(events.select("item_id").distinct().withColumn("item", F.xxhash64("item_id")))
    item_rows = _item_rows(model, items, names, strengths, version)
    return Fitted(model, users, users_histories, item_rows, row, caches)


def model_of(tables: Tables, events: DataFrame, config: Config, name: str, *, cut: int = 0) -> Model:
    """A model of some events to be looked at, not to serve: nothing of it is written.

    Args:
        name: beginning with `TRIAL`.

    Raises:
        EmptyTrainingCutError: no event carries a weight.
    """
    fitted = fit_events(tables, events, cut, config, name)
    try:
        return assemble(fitted.item_rows, fitted.row)
    finally:
        fitted.done()


def _item_rows(model: ALSModel, items: DataFrame, names: DataFrame, strengths: DataFrame, version: str) -> DataFrame:
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
