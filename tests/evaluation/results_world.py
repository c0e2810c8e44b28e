"""Raw results of a replay, made up: row by row for known answers, or at random with a truth that one chooses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa

from foldin.evaluation.results import Cost, Replayed, Setting, Shown, rank_column

START = datetime(2011, 9, 1, tzinfo=UTC)
US = 1_000_000

SETTING = Setting(
    title="A made-up shop",
    start_us=int(START.timestamp()) * US,
    end_us=int((START + timedelta(days=28)).timestamp()) * US,
    k=10,
    repeats=False,
    batch_events=100,
    batch_seconds=0,
    retrain_days=0,
    model_age_days=0.0,
    window_days=7.0,
    tuned=True,
    oracle_steps=0,
    steps=10,
)
COST = Cost(train_seconds=(20.0, 40.0, 30.0), fold_seconds=0.5, folded_events=1_000, folded_users=200, spark_seconds=())


def replayed_of(
    rows: Iterable[Mapping[str, object]],
    contenders: tuple[str, ...] = ("stale", "foldin"),
    lags: Mapping[str, float] | None = None,
    *,
    cost: Cost = COST,
    **setting: object,
) -> Replayed:
    """Of rows that say what matters: `user` and, by contender, the rank (None: not asked); the rest has defaults."""
    lags = lags or {}
    columns: dict[str, list[object]] = {}
    for number, row in enumerate(rows):
        full = {
            "step": number,
            "event_time": START + timedelta(minutes=number),
            "user_id": row["user"],
            "item_id": f"item {number}",
            "kind": "known",
            "history": 5,
            "model_age_days": 0.5,
            "reachable": True,
            "same_moment": False,
        }
        full |= {key: value for key, value in row.items() if key in full}
        full |= {rank_column(name): row[name] for name in (*contenders, *lags)}
        for key, value in full.items():
            columns.setdefault(key, []).append(value)
    table = pa.table(columns) if columns else pa.table({"user_id": pa.array([], pa.string())})
    for name in (*contenders, *lags) if columns else ():
        at = table.schema.get_field_index(rank_column(name))
        table = table.set_column(at, rank_column(name), table.column(at).cast(pa.int16()))
    shown = {name: Shown(coverage=0.25, novelty=6.5, popularity_lists=0.1) for name in contenders}
    return Replayed(
        setting=replace(SETTING, **setting),  # type: ignore[arg-type]
        rows=table,
        contenders=contenders,
        lags=lags,
        shown=shown,
        cost=cost,
    )


FULL = ("popularity", "recent", "stale", "nightly", "additive", "foldin", "foldin nightly", "oracle")
LAGS = {"late 60": 60.0, "late 600": 600.0, "late 3600": 3600.0, "late 21600": 21600.0, "late 86400": 86400.0}
LAGS |= {"late 604800": 604800.0}


def made_up(
    users: int = 200,
    events: int = 4_000,
    contenders: tuple[str, ...] = FULL,
    *,
    lags: Mapping[str, float] = LAGS,
    lead: float = 0.06,
    oracle_share: float = 0.2,
    seed: int = 1,
) -> Replayed:
    """Random rows in which foldin hits `lead` more of the events than the stale model, which gets worse with age."""
    random = np.random.default_rng(seed)
    age = np.sort(random.uniform(0, 28, events))
    who = random.integers(0, users, events)
    history = np.floor(random.exponential(30, users)[who] * random.uniform(0, 1, events)).astype(int)
    kind = np.where(history == 0, "new", np.where(who % 5 == 0, "returning", "known"))
    reachable = random.uniform(size=events) > 0.01 + 0.004 * age
    same_moment = (random.uniform(size=events) < 0.6) & (history > 0)
    taste = random.uniform(0, 1, events)  # of the event, shared by the contenders: they are hard or easy together
    ease = random.beta(2, 10, users)[who]
    worse = {name: 0.06 * (0.2 + np.log10(1 + seconds) / 7) for name, seconds in lags.items()}
    fresh = ease + lead * (history > 0) * (0.5 + same_moment)
    chance = {
        "popularity": 0.03 + 0 * ease,
        "recent": 0.045 + 0 * ease,
        "stale": ease * (1 - age / 60),
        "nightly": ease + 0.1 * lead,
        "additive": ease + 0.3 * lead,
        "foldin": fresh,
        "foldin nightly": fresh + 0.01,
        "oracle": fresh + 0.005,
    } | {name: fresh - lost for name, lost in worse.items()}
    asked = random.uniform(size=events) < oracle_share
    rows = {
        "step": pa.array((np.arange(events) // 100).astype(np.int32)),
        "event_time": pa.array([START + timedelta(days=float(days)) for days in age], pa.timestamp("us", "UTC")),
        "user_id": pa.array([f"u{number}" for number in who]),
        "item_id": pa.array([f"i{number}" for number in random.integers(0, 900, events)]),
        "kind": pa.array(kind.tolist()),
        "history": pa.array(history.astype(np.int32)),
        "model_age_days": pa.array(age),
        "reachable": pa.array(reachable),
        "same_moment": pa.array(same_moment),
    }
    for name in (*contenders, *lags):
        known = reachable | np.isin(name, ["nightly", "foldin nightly", "oracle", "popularity", "recent"])
        place = np.minimum(10, random.geometric(0.25, events))
        ranks = np.where((taste < chance[name]) & known, place, 0)
        rows[rank_column(name)] = pa.array(ranks, pa.int16(), mask=~asked if name == "oracle" else None)
    return Replayed(
        setting=replace(
            SETTING,
            retrain_days=1.0 if "nightly" in contenders else 0.0,
            steps=events // 100,
            oracle_steps=8 if "oracle" in contenders else 0,
        ),
        rows=pa.table(rows),
        contenders=contenders,
        lags=lags,
        shown={name: Shown(0.1 + 0.05 * n, 4.0 + n / 2, 0.05) for n, name in enumerate(contenders)},
        cost=Cost((24.0, 26.0, 25.0), 0.012 * events / 100, events, events // 3, (0.9, 1.1, 1.0)),
    )
