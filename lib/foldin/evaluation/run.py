"""One evaluation: models trained as of past moments, contenders, the replay, and what to compare."""

from __future__ import annotations

import datetime as dt
import logging
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from foldin.config import Config
from foldin.errors import FoldinError
from foldin.evaluation.contenders import Additive, Contender, Folded, Popularity, Served
from foldin.evaluation.log import EventLog, Past
from foldin.evaluation.replay import LeakError, Observations, assert_no_peeking, observe, steps_of
from foldin.histories import HistoryDefinition
from foldin.registry import Model
from foldin.schemas import EVENTS
from foldin.tables import Tables
from foldin.training import model_of

__all__ = ["Evaluation", "Plan", "evaluate"]

log_ = logging.getLogger("foldin.evaluate")

_HOUR = 3_600_000_000
_DAY = 24 * _HOUR
_WINDOWS = (1, 3, 6, 12, 24, 72, 168, 336, 720)  # hours, of recent popularity

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Plan:
    """What to replay.

    Attributes:
        start_us, end_us: the tested part of the log, by event time; the models of the start know what came before.
        batch_events, batch_us: size of a micro-batch; one of them is 0.
        nightly: retrain at every midnight (UTC) in between, beside the model of the start.
        oracle_steps: on so many first micro-batches retrain before each one; 0: no oracle.
        tune_us: length of the time before the start on which the window of recent popularity is chosen.
    """

    start_us: int
    end_us: int
    k: int
    batch_events: int
    batch_us: int
    nightly: bool
    oracle_steps: int
    repeats: bool
    tune_us: int
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What came of it.

    Attributes:
        reachable: (n,) by observation: its item has a factor in the model of the start.
        kind: (n,) of its user: "new" (no event before the start), "returning" (none in the 30 days before this one),
            "known".
        history: (n,) events of the user before the observation.
        age_days: (n,) from the start of the test to the observation.
        oracle: of the first micro-batches, with the oracle among the contenders; None without.
        window_hours: that recent popularity was given.
    """

    plan: Plan
    log: EventLog
    observations: Observations
    reachable: Bools
    kind: NDArray[np.str_]
    history: Ints
    age_days: NDArray[np.float64]
    oracle: Observations | None
    window_hours: int
    trainings: list[Served]
    events: int
    seconds: float = field(default=0.0)


def evaluate(tables: Tables, config: Config, plan: Plan) -> Evaluation:
    """Train, replay, observe.

    Raises:
        FoldinError: there is nothing to train on, or nothing to test.
        LeakError: a contender's lists depend on what comes after them.
    """
    began = time.monotonic()
    events = tables.read(EVENTS)
    definition = HistoryDefinition.of(config)
    log = EventLog.of(events, definition.types)
    start, end = log.first_at(plan.start_us), log.first_at(plan.end_us)
    if start == 0 or start == end:
        raise FoldinError(f"{start} events before the test and {end - start} in it: there must be some of both")
    weights = np.asarray(definition.weights)
    positive = weights > 0
    trainer = _Trainer(tables, events, config, log)

    first = trainer.at(plan.start_us, row=0)
    nights = [trainer.at(night) for night in _midnights(plan)] if plan.nightly else []
    window = _tuned_window(log, start, plan, weights, positive)
    steps = steps_of(log, start, end, events=plan.batch_events, span_us=plan.batch_us)
    log_.info("%d events in %d micro-batches, %d nightly models", end - start, len(steps), len(nights))

    def contenders(past: Past) -> Iterator[Contender]:
        k, repeats = plan.k, plan.repeats
        yield Popularity("popular, all time", past, weights, k, repeats=repeats)
        yield Popularity("popular, recent", past, weights, k, window * _HOUR, repeats)
        yield Folded("stale", past, [first], k, frozen=True, repeats=repeats)
        if nights:
            yield Folded("retrained nightly", past, [first, *nights], k, frozen=True, repeats=repeats)
        yield Additive("additive update", past, first, k, repeats=repeats)
        yield Folded("foldin", past, [first], k, repeats=repeats)
        if nights:
            yield Folded("foldin, retrained nightly", past, [first, *nights], k, repeats=repeats)

    _audit(log, contenders, start, end, plan)
    past = _past(log, start)
    observations = observe(past, list(contenders(past)), steps, positive=positive, repeats=plan.repeats)
    oracle = _oracle(log, contenders, trainer, first, steps[: plan.oracle_steps], plan, positive)
    rows = observations.row
    return Evaluation(
        plan=plan,
        log=log,
        observations=observations,
        reachable=first.model.index_of(log.item[rows]) >= 0,
        kind=_kinds(log, rows, start),
        history=_met_before(log, rows),
        age_days=(log.time[rows] - plan.start_us) / _DAY,
        oracle=oracle,
        window_hours=window,
        trainings=[first, *nights],
        events=end - start,
        seconds=time.monotonic() - began,
    )


class _Trainer:
    """Models as of a moment, by the nightly training on the events before it."""

    def __init__(self, tables: Tables, events: DataFrame, config: Config, log: EventLog) -> None:
        self._tables, self._events, self._config, self._log = tables, events, config, log

    def at(self, time_us: int, *, row: int | None = None) -> Served:
        """The model that serves from a moment on; `row`: from that row of the log on instead."""
        began, cut = time.monotonic(), self._log.first_at(time_us)
        before = self._events.where(F.unix_micros("event_time") < time_us)
        return self._served(before, cut, cut if row is None else row, began)

    def before_row(self, cut: int) -> Served:
        """The model of exactly the first `cut` events."""
        began, log = time.monotonic(), self._log
        if cut and cut < len(log) and log.time[cut - 1] == log.time[cut]:
            same = self._events.where(F.unix_micros("event_time") == int(log.time[cut]))
            same = same.where(F.xxhash64("event_id") < int(log.event[cut]))
            before = self._events.where(F.unix_micros("event_time") < int(log.time[cut])).unionByName(same)
        else:
            before = self._events.where(F.unix_micros("event_time") < int(log.time[cut]))
        return self._served(before, cut, cut, began)

    def _served(self, before: DataFrame, cut: int, row: int, began: float) -> Served:
        model: Model = model_of(self._tables, before, self._config, f"trial-{secrets.token_hex(6)}")
        if cut < len(self._log) and model.as_of_us > self._log.time[cut]:
            raise LeakError(f"a model of {cut} events has seen one of {model.as_of_us}, which comes after them")
        past = _past(self._log, cut)
        seconds = time.monotonic() - began
        log_.info("model of %s events trained in %.1f s", f"{cut:,}", seconds)
        return Served(row, model, cut, past.counts.copy(), seconds)


def _past(log: EventLog, upto: int) -> Past:
    past = Past(log)
    past.meet(upto)
    return past


def _midnights(plan: Plan) -> Iterator[int]:
    night = dt.datetime.fromtimestamp(plan.start_us / 1e6, dt.UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    at = int(night.timestamp()) * 1_000_000 + _DAY
    while at < plan.end_us:
        if at > plan.start_us:
            yield at
        at += _DAY


def _tuned_window(log: EventLog, start: int, plan: Plan, weights: NDArray[np.float64], positive: Bools) -> int:
    """Hours of recent popularity with the best hit rate on the time before the test."""
    first = log.first_at(plan.start_us - plan.tune_us)
    if first >= start:
        return 24
    past = _past(log, first)
    tried = [
        Popularity(str(hours), past, weights, plan.k, window_us=hours * _HOUR, repeats=plan.repeats)
        for hours in _WINDOWS
    ]
    steps = steps_of(log, first, start, events=plan.batch_events, span_us=plan.batch_us)
    found = observe(past, tried, steps, positive=positive, repeats=plan.repeats)
    return int(max(found.places, key=lambda hours: (np.count_nonzero(found.places[hours]), -int(hours))))


def _audit(log: EventLog, contenders: Callable[[Past], Iterator[Contender]], start: int, end: int, plan: Plan) -> None:
    """No contender's lists may depend on what comes after them: tried in the middle of the test."""
    middle = start + (end - start) // 2
    middle = min(middle, start + 50 * max(plan.batch_events, 20))
    users = np.unique(log.user[middle : middle + 200])
    number = sum(1 for _ in contenders(_past(log, start)))
    for n in range(number):

        def make(past: Past, n: int = n) -> Contender:
            return list(contenders(past))[n]

        assert_no_peeking(log, make, start, middle, users, step=max(1, plan.batch_events or 100))


def _oracle(
    log: EventLog,
    contenders: Callable[[Past], Iterator[Contender]],
    trainer: _Trainer,
    first: Served,
    steps: list[tuple[int, int]],
    plan: Plan,
    positive: Bools,
) -> Observations | None:
    """The same contenders and one that is retrained from scratch before every step."""
    if not steps:
        return None
    models = [first]
    for number, (begins, _) in enumerate(steps[1:]):
        models.append(trainer.before_row(begins))
        log_.info("oracle: %d of %d models", number + 2, len(steps))
    past = _past(log, steps[0][0])
    oracle = Folded("oracle, retrained every step", past, models, plan.k, frozen=True, repeats=plan.repeats)
    found = observe(past, [*contenders(past), oracle], steps, positive=positive, repeats=plan.repeats)
    found.seconds[oracle.name] = sum(model.seconds for model in models[1:])
    return found


def _kinds(log: EventLog, rows: Ints, start: int) -> NDArray[np.str_]:
    """Of the user of each observation."""
    known = np.bincount(log.user[:start], minlength=len(log.user_ids)) > 0
    order = np.lexsort((np.arange(len(log)), log.user))
    before = np.full(len(log), np.iinfo(np.int64).min // 2)
    same = log.user[order][1:] == log.user[order][:-1]
    before[order[1:][same]] = log.time[order[:-1][same]]
    away = log.time[rows] - before[rows] > 30 * _DAY
    return np.where(~known[log.user[rows]], "new", np.where(away, "returning", "known"))


def _met_before(log: EventLog, rows: Ints) -> Ints:
    """Events of the same user before each row."""
    order = np.argsort(log.user, kind="stable")
    starts = np.concatenate(([0], np.cumsum(np.bincount(log.user, minlength=len(log.user_ids)))))
    place = np.empty(len(log), np.int64)
    place[order] = np.arange(len(log)) - starts[log.user[order]]
    return place[rows]
