"""The nightly model: events to strengths, strengths to MLlib ALS, its factors to tables."""

from __future__ import annotations

import datetime as dt
import json
import logging
import secrets
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from pyspark.ml.recommendation import ALS, ALSModel
from pyspark.sql import DataFrame, Row, Window
from pyspark.sql import functions as F

import foldin
from foldin.adoption import bring_into_force
from foldin.config import Config
from foldin.errors import ConfigError, FoldinError, MissingModelError, RejectedModelError
from foldin.histories import HistoryDefinition, histories, slim, user_strengths
from foldin.judging import Contender, Judgement, judge_model, sides, split_time
from foldin.publishing import Publisher
from foldin.registry import Model, Registry, assemble
from foldin.schemas import EVENTS, ITEM_FACTORS, RECOMMENDATIONS, STRENGTHS, USER_FACTORS, Position
from foldin.search import as_toml, search
from foldin.shipping import TRIAL
from foldin.tables import Tables
from foldin.trimming import Hold

__all__ = ["EmptyTrainingCutError", "Trained", "fit", "model_of", "train"]

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
    active: bool
    """False for a candidate, and for one that the stream is still adopting."""


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
class _Fitted:
    """MLlib's model of some events, and what it was made of; `caches` holds the frames that are kept for it."""

    model: ALSModel
    users: DataFrame
    histories: DataFrame
    item_rows: DataFrame
    row: dict[str, Any]
    """What `models` is to say of it."""
    caches: ExitStack

    def done(self) -> None:
        """Give the cached frames back."""
        self.caches.close()


def _fit(tables: Tables, events: DataFrame, cut: int, config: Config, version: str) -> _Fitted:
    with ExitStack() as caches:  # given back at once if this fails
        fitted = _fit_within(caches, tables, events, cut, config, version)
        return replace(fitted, caches=caches.pop_all())


def _fit_within(
    caches: ExitStack, tables: Tables, events: DataFrame, cut: int, config: Config, version: str
) -> _Fitted:
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
    return _Fitted(model, users, users_histories, item_rows, row, caches)


def train(tables: Tables, config: Config, *, activate: bool = True, force: bool = False, tune: bool = False) -> Trained:
    """Judge the settings, train on all of `events`, write factors and lists, register and, by default, activate.

    Args:
        force: activate a model that is judged worse than what serves, and write that down.
        tune: search for settings first, and train with the best; see `foldin.search`.

    Raises:
        EmptyTrainingCutError: no event carries a weight.
        FoldinError: two items share a 64-bit hash.
        RejectedModelError: the model is a candidate, but must not serve.
    """
    cut = tables.version(EVENTS)
    # Until the stream has caught up from the cut, the log must have what came after it.
    with Hold(tables, f"train-{secrets.token_hex(3)}", EVENTS, cut):
        return _train(tables, cut, config, activate=activate, force=force, tune=tune)


def _train(tables: Tables, cut: int, config: Config, *, activate: bool, force: bool, tune: bool) -> Trained:
    started = time.monotonic()
    events = tables.read(EVENTS, version=cut)
    publisher = Publisher(tables, config.recommend.top_n)
    active = _active(publisher.registry)
    split, unseen = _split(events, config, active)
    if tune:
        config = _tuned(tables, events, cut, split, config)
    judgement = _judgement(tables, events, cut, split, config, active, unseen=unseen)
    version = f"{dt.datetime.now(dt.UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"
    fitted = _fit(tables, events, cut, config, version)
    row = fitted.row
    log.info("training cut: %s events, version %d of the table", f"{row['events']:,}", cut)
    tables.append(fitted.item_rows, ITEM_FACTORS)
    publisher.use(publisher.registry.load(version, row))
    folded = publisher.folded(fitted.histories, version, Position.after(cut))
    mllib = fitted.model.userFactors.join(fitted.users, F.col("id") == F.col("user")).select("user_id", "features")
    folded = folded.join(mllib, "user_id", "left").persist()
    # MLlib has no row for a user whose history says nothing; fold-in gives such a user the zero vector.
    tables.append(folded.withColumn("factors", F.coalesce("features", "factors")), USER_FACTORS)
    tables.append(folded, RECOMMENDATIONS)
    row["parity"] = _parity(folded, row["users"])
    row["seconds"] = time.monotonic() - started
    row["judgement"] = json.dumps(judgement.to_dict()) if judgement is not None else None
    publisher.registry.candidate(row)
    log.info(
        "model %s: %s users, %s items, fold-in differs from MLlib by %.1e at most, %.1f s",
        version, f"{row['users']:,}", f"{row['items']:,}", row["parity"], row["seconds"],
    )  # fmt: skip
    folded.unpersist()
    fitted.done()
    trained = Trained(version, row["users"], row["items"], row["events"], row["parity"], row["seconds"], active=False)
    if not activate:
        return trained
    settings = config.judge
    worse = judgement.verdict(settings.margin, settings.least_users) if judgement is not None else ""
    if worse and not force:
        raise RejectedModelError(f"model {version} stays a candidate: {worse}")
    reason = f"forced, although its {worse}" if worse else "trained"
    wait = config.train.adoption_minutes * 60
    return replace(trained, active=bring_into_force(tables, config, version, reason=reason, wait=wait, newer=True))


def _active(registry: Registry) -> Model | None:
    promotion = registry.promotion()
    if promotion is None:
        return None
    try:
        return registry.load(promotion.model_version)
    except MissingModelError as error:  # all the more reason to train another one
        log.warning("the active model cannot be judged: %s", error)
        return None


def _split(events: DataFrame, config: Config, active: Model | None) -> tuple[int | None, bool]:
    """From when on events are held out, and whether the active model has seen none of them."""
    if not config.judge.holdout:
        return None, False
    if active is not None:
        split = split_time(events, config.judge.holdout, not_before_us=active.as_of_us)
        if split is not None:
            users = sides(events, split)[1].select("user_id").distinct().count()
            if users >= config.judge.least_users:
                return split, True
    return split_time(events, config.judge.holdout), False


def _settings_of(active: Row, config: Config) -> Config:
    """The configuration with which the active model was trained."""
    definition = HistoryDefinition.from_json(active["history"])
    train = {name: active[name] for name in ("mode", "rank", "iterations", "reg_param", "alpha", "nonnegative", "seed")}
    history = {
        "max_events_per_user": definition.max_events,
        "half_life_days": definition.half_life_days,
        "retention_days": definition.retention_days,
        "transform": definition.transform,
    }
    weights = dict(zip(definition.types, definition.weights, strict=True))
    return config.model_copy(
        update={
            "train": config.train.model_copy(update=train),
            "history": config.history.model_copy(update=history),
            "events": config.events.model_copy(update={"weights": weights}),
        }
    )


def model_of(tables: Tables, events: DataFrame, config: Config, name: str, *, cut: int = 0) -> Model:
    """A model of some events to be looked at, not to serve: nothing of it is written.

    Args:
        name: no two models may share one, since workers know them by it; beginning with `TRIAL`.

    Raises:
        EmptyTrainingCutError: no event carries a weight.
    """
    fitted = _fit(tables, events, cut, config, name)
    try:
        return assemble(fitted.item_rows, fitted.row)
    finally:
        fitted.done()


def _trial_model(tables: Tables, events: DataFrame, cut: int, config: Config) -> Model:
    return model_of(tables, events, config, f"{TRIAL}{secrets.token_hex(6)}", cut=cut)


def _judgement(
    tables: Tables,
    events: DataFrame,
    cut: int,
    split: int | None,
    config: Config,
    active: Model | None,
    *,
    unseen: bool,
) -> Judgement | None:
    """What held-out events say of the settings; None where there are none to hold out."""
    if split is None:
        return None

    def fitted(settings: Config) -> Contender:
        return lambda before: _trial_model(tables, before, cut, settings)

    contenders, remark = {"candidate": fitted(config)}, ""
    if active is None:
        remark = "no model is active, or it cannot be read"
    elif active.definition.types != HistoryDefinition.of(config).types:
        remark = f"{active.version} was trained on other event types: not compared"
    elif unseen:
        contenders["active"] = lambda _: active
    else:
        settings = _settings_of(Registry(tables).row(active.version), config)
        if settings == config:
            remark = f"{active.version} has seen the held-out events, and was trained with the same settings"
        else:
            remark = f"{active.version} has seen the held-out events: a model with its settings stands for it"
            contenders["active"] = fitted(settings)
    try:
        judgement = judge_model(events, split, contenders, config, remark=remark)
    except EmptyTrainingCutError:  # all events are of one moment, say
        return None
    log.info("judged: %s", judgement)
    return judgement


def _tuned(tables: Tables, events: DataFrame, cut: int, split: int | None, config: Config) -> Config:
    if not config.judge.holdout:
        raise ConfigError("train --search scores settings on events held out: judge.holdout must not be 0")
    if split is None:
        raise EmptyTrainingCutError("nothing to search on: the events table is empty, or all events are of one moment")
    found = search(tables, config, cut, split, lambda before, tried: _trial_model(tables, before, cut, tried))
    gain = ""
    if found.before is not None and found.before.score and found.best.score is not None:
        gain = f", {found.best.score / found.before.score - 1:+.1%} over the settings as they were"
    log.info("study %s: NDCG@%d %.4f by trial %d%s; in a configuration file:", found.study.name, config.judge.k,
             found.best.score, found.best.number, gain)  # fmt: skip
    for line in as_toml(found.config):
        log.info("    %s", line)
    return found.config


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
