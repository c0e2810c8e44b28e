"""The nightly model: events to strengths, strengths to MLlib ALS, its factors to tables."""

from __future__ import annotations

import datetime as dt
import json
import logging
import re
import secrets
import time
from dataclasses import dataclass, replace

from pyspark.sql import DataFrame, Row
from pyspark.sql import functions as F

from foldin.config import Config
from foldin.cuts import Cut, cut_at
from foldin.errors import ConfigError, FoldinError, MissingModelError
from foldin.fitting import EmptyTrainingCutError, fit_events, model_of
from foldin.gate import admit
from foldin.histories import HistoryDefinition
from foldin.judging import Contender, Judgement, judge_model, sides, split_time
from foldin.leases import Lease
from foldin.maintenance import drop_models
from foldin.publishing import Publisher
from foldin.registry import Model, Registry
from foldin.schemas import EVENTS, ITEM_FACTORS, MODELS, RECOMMENDATIONS, USER_FACTORS, Position
from foldin.search import as_toml, search
from foldin.shipping import TRIAL
from foldin.tables import Tables
from foldin.trimming import Hold

__all__ = ["Trained", "train"]

log = logging.getLogger("foldin.train")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


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
    again: bool = False
    """It was there already, under the name that was asked for: nothing was trained."""


def train(
    tables: Tables,
    config: Config,
    *,
    activate: bool = True,
    force: bool = False,
    tune: bool = False,
    name: str | None = None,
    until: dt.datetime | None = None,
) -> Trained:
    """Judge the settings, train on all of `events`, write factors and lists, register and, by default, activate.

    Args:
        force: activate a model that is judged worse than what serves, and write that down.
        tune: search for settings first, and train with the best; see `foldin.search`.
        name: of the model; one that is there already is not trained again, and what a killed training left of it goes.
            By default it is named after the clock.
        until: train on the events that were ingested before this moment, with a time zone.

    Raises:
        ConfigError: `name` can name no model; or `tune` and `until`, for a search looks at all events.
        EmptyTrainingCutError: no event carries a weight.
        FoldinError: two items share a 64-bit hash.
        LeaseError: another training with a name is under way.
        RejectedModelError: the model is a candidate, but must not serve.
    """
    if tune and until is not None:
        raise ConfigError("train --search looks at all events: it goes with no --until")
    if name is None:
        version = f"{dt.datetime.now(dt.UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"
        return _train(tables, cut_at(tables, until), config, version, None, activate=activate, force=force, tune=tune)
    if not _NAME.fullmatch(name) or name.startswith(TRIAL):
        raise ConfigError(
            f"{name!r} can name no model: up to 100 letters, digits, '_', '.', '-', the first a letter or digit, "
            f"and not beginning with {TRIAL!r}"
        )
    with Lease.of_job(tables, "train", config.fold_in.lease_seconds) as lease:
        before = next((row for row in Registry(tables).standing() if row.model_version == name), None)
        if before is None:
            drop_models(tables, [name])
            cut = cut_at(tables, until)
            return _train(tables, cut, config, name, lease, activate=activate, force=force, tune=tune)
    trained = _written_down(tables, name)
    return replace(trained, active=admit(tables, config, name, force=force)) if activate else trained


def _written_down(tables: Tables, name: str) -> Trained:
    """A model that is there already, retired or not."""
    rows = tables.read(MODELS).where(F.col("model_version") == name)
    row = rows.where("rank is not null").first()
    assert row is not None  # its first row is that of its training
    facts = {column: row[column] for column in ("users", "items", "events", "parity", "seconds")}
    return Trained(name, **facts, active=False, again=True)


def _train(
    tables: Tables,
    cut: Cut,
    config: Config,
    version: str,
    lease: Lease | None,
    *,
    activate: bool,
    force: bool,
    tune: bool,
) -> Trained:
    # Until the stream has caught up from the cut, the log must have what came after it.
    with Hold(tables, f"train-{secrets.token_hex(3)}", EVENTS, cut.version):
        trained = _trained(tables, cut, config, version, lease, tune=tune)
        return replace(trained, active=admit(tables, config, version, force=force)) if activate else trained


def _trained(tables: Tables, of: Cut, config: Config, version: str, lease: Lease | None, *, tune: bool) -> Trained:
    started = time.monotonic()
    events, cut = of.events, of.version
    publisher = Publisher(tables, config.recommend.top_n)
    active = _active(publisher.registry)
    split, unseen = _split(events, config, active)
    if tune:
        config = _tuned(tables, events, cut, split, config)
    judgement = _judgement(tables, events, cut, split, config, active, unseen=unseen)
    fitted = fit_events(tables, events, cut, config, version)
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
    if lease is not None:
        lease.check()  # of two that trained under one name, neither is written down
    publisher.registry.candidate(row)
    log.info(
        "model %s: %s users, %s items, fold-in differs from MLlib by %.1e at most, %.1f s",
        version, f"{row['users']:,}", f"{row['items']:,}", row["parity"], row["seconds"],
    )  # fmt: skip
    folded.unpersist()
    fitted.done()
    return Trained(version, row["users"], row["items"], row["events"], row["parity"], row["seconds"], active=False)


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
