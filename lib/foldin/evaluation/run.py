"""A whole evaluation: models trained as every night, contenders, replay, costs."""

from __future__ import annotations

import logging
import math
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from foldin.config import Config
from foldin.demo.synthetic import SyntheticLog
from foldin.errors import FoldinError, LeakError
from foldin.evaluation.contenders import Additive, Contender, Folded, ModelAt, Popular
from foldin.evaluation.log import EventLog, Past, load_log
from foldin.evaluation.plan import DAY_US, MOST_TRAININGS, Plan
from foldin.evaluation.replay import Steps, audit, cut_by_number, cut_by_time, judged, replay
from foldin.evaluation.results import Cost, Replayed, Setting, moment
from foldin.evaluation.truth import Truth
from foldin.fitting import model_of
from foldin.folding import fold
from foldin.histories import HistoryDefinition
from foldin.schemas import Position
from foldin.shipping import TRIAL, ShippedModel
from foldin.tables import Tables

__all__ = ["Evaluation", "Models", "evaluate"]

log_ = logging.getLogger("foldin.evaluate")

Ints = npt.NDArray[np.int64]

LAGS = (60.0, 600.0, 3600.0, 21_600.0, 86_400.0, 604_800.0)
"""Seconds by which a stream is late in the freshness curve."""

WINDOWS = (1, 3, 7, 14, 30, 90)
"""Days of recent popularity that are tried."""

_SPARK_TRIES = 5


@dataclass
class Models:
    """Trains as `jobs/train.py` does, each cut of the log once.

    Attributes:
        trained: (name, latest event_time in microseconds, seconds) of every training, in order.
    """

    tables: Tables
    events: DataFrame
    log: EventLog
    config: Config
    trained: list[tuple[str, int, float]] = field(default_factory=list)
    _models: dict[int, ModelAt] = field(default_factory=dict)

    def at(self, cut: int, *, keep: bool = True) -> ModelAt:
        """The model of the events before position `cut`.

        Args:
            keep: it will be asked for again.

        Raises:
            LeakError: it has seen an event that came later.
        """
        if cut not in self._models:
            before, began = self.events, time.monotonic()
            if cut < len(self.log):
                following = (int(self.log.time[cut]), int(self.log.event[cut]))
                at = F.struct(F.unix_micros("event_time").alias("time"), F.xxhash64("event_id").alias("event"))
                before = before.where(at < F.struct(*[F.lit(part).cast("long") for part in following]))
            name = f"{TRIAL}{secrets.token_hex(6)}"
            model = model_of(self.tables, before, self.config, name)
            if cut == 0 or model.as_of_us > self.log.time[cut - 1]:
                raise LeakError(
                    f"the model of the first {cut:,} events has seen one of "
                    f"{np.datetime64(model.as_of_us, 'us')}, which came later"
                )
            self.trained.append((name, model.as_of_us, time.monotonic() - began))
            found = ModelAt(model, cut)
            if not keep:
                return found
            self._models[cut] = found
        return self._models[cut]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A replay with what is needed to look closer: the log, the start's model, where micro-batches begin."""

    replayed: Replayed
    log: EventLog
    start: ModelAt
    steps: Steps


def evaluate(
    tables: Tables, events: DataFrame, config: Config, plan: Plan, title: str, *, made: SyntheticLog | None = None
) -> Evaluation:
    """Replay `events` (columns of that table) in order of time.

    Args:
        tables: where training keeps its checkpoints; nothing is written to the tables.
        made: the generator of the log, where its truth is known.

    Raises:
        FoldinError: there is nothing to train on, or nothing to foretell.
        LeakError: a contender knew what had not happened yet.
    """
    definition = HistoryDefinition.of(config)
    # As the log has them: an event of another type must not decide how far a training has seen.
    events = events.where(F.col("event_type").isin(list(definition.types)))
    events = events.select("event_id", "user_id", "item_id", "event_type", "value", "event_time").persist()
    try:
        log = load_log(events, definition)
        return _Run(tables, events, config, plan, title, log, made).evaluation()
    finally:
        events.unpersist()


class _Run:
    """The parts of one evaluation that know of each other."""

    def __init__(
        self,
        tables: Tables,
        events: DataFrame,
        config: Config,
        plan: Plan,
        title: str,
        log: EventLog,
        made: SyntheticLog | None,
    ) -> None:
        self.plan, self.title, self.log, self.made, self.config = plan, title, log, made, config
        self.models = Models(tables, events, log, config)
        self.tables = tables
        self.start_us, self.end_us = _period(log, plan)
        self.first, self.last = log.position(self.start_us), log.position(self.end_us)
        if self.first == self.last:
            raise FoldinError(
                f"no event between {moment(self.start_us)} and {moment(self.end_us)}: nothing to foretell"
            )
        cut = log.position(self.start_us - round(plan.model_age_days * DAY_US))
        if cut == 0:
            raise FoldinError(
                f"no event before {moment(self.start_us)} less {plan.model_age_days:g} days: nothing to train on "
                f"(the log begins at {moment(int(log.time[0]))})"
            )
        self.cut = cut
        self.retrain_days, self.fresh = self._nights()
        self.steps = self._steps()
        self.oracle = self._oracle_at()

    def evaluation(self) -> Evaluation:
        """Train, audit, replay, take the times."""
        plan, log = self.plan, self.log
        start = self.models.at(self.cut)
        window, tuned = self._tuned_window()
        log_.info(
            "%s: %s events in %s micro-batches from %s to %s, after %s events to train on",
            self.title, f"{self.last - self.first:,}", f"{len(self.steps):,}", moment(self.start_us),
            moment(self.end_us), f"{self.first:,}",
        )  # fmt: skip

        def make(which: EventLog) -> Sequence[Contender]:
            return self._contenders(which, start, window)

        audit(log, self.steps, make, plan.k, repeats=plan.repeats)
        log_.info("audit: with another future every contender recommends the same")
        contenders = make(log)
        truth = Truth(self.made, log) if self.made is not None else None
        foretold = replay(
            log, self.steps, contenders, plan.k, start,
            repeats=plan.repeats,
            age_from_us=self.start_us - round(plan.model_age_days * DAY_US),
            timed=lambda _: start,
            watch=truth.watch if truth is not None else None,
        )  # fmt: skip
        shares = truth.shares() if truth is not None else {}
        lags = {f"lag {seconds:g}": seconds for seconds in LAGS if f"lag {seconds:g}" in foretold.shown}
        replayed = Replayed(
            setting=self._setting(window, tuned),
            rows=foretold.rows,
            contenders=tuple(name for name in foretold.shown if name not in lags),
            lags=lags,
            shown=foretold.shown,
            cost=Cost(
                train_seconds=tuple(seconds for _, _, seconds in self.models.trained),
                fold_seconds=foretold.fold_seconds,
                folded_events=foretold.folded_events,
                folded_users=foretold.folded_users,
                spark_seconds=self._spark_seconds(start),
            ),
            truth={name: share for name, share in shares.items() if name not in lags},
            models=tuple(self.models.trained),
        )
        return Evaluation(replayed, log, start, self.steps)

    def _contenders(self, log: EventLog, start: ModelAt, window_days: float) -> Sequence[Contender]:
        def of_start(_: Past) -> ModelAt:
            return start

        def of_night(past: Past) -> ModelAt:
            return self.models.at(int(self.fresh[np.searchsorted(self.fresh, past.end, side="right") - 1]))

        def of_now(past: Past) -> ModelAt:
            return self.models.at(past.end, keep=False)

        def of_the_cut(_: Past, serving: ModelAt) -> int:
            return serving.cut

        def late(seconds: float) -> Folded:
            def horizon(past: Past, serving: ModelAt) -> int:
                # Counted from the next request: a stream that is late has not folded what came just before it.
                now = int(log.time[min(past.end, len(log) - 1)])
                return max(serving.cut, log.position(now - round(seconds * 1e6) + 1))

            return Folded(f"lag {seconds:g}", of_start, horizon=horizon)

        explicit = log.definition.explicit  # Oryx's update of ratings is another one
        oracle = frozenset(self.oracle.tolist())
        nightly = self.fresh.size > 0
        made: list[Contender] = [
            Popular("popularity", log, self.first),
            Popular("recent", log, self.first, window_us=round(window_days * DAY_US)),
            Folded("stale", of_start, horizon=of_the_cut),
        ]
        made += [Folded("nightly", of_night, horizon=of_the_cut)] if nightly else []
        made += [] if explicit else [Additive(Past(log, self.first), start)]
        made += [Folded("foldin", of_start)]
        made += [Folded("foldin nightly", of_night)] if nightly else []
        made += [Folded("oracle", of_now, asked=lambda past: past.end in oracle)] if oracle else []
        span = (self.end_us - self.start_us) / 1e6
        # On a log of days, "a minute late" would be a day late.
        return [*made, *(late(seconds) for seconds in LAGS if log.tick_us / 1e6 <= seconds < span)]

    def _nights(self) -> tuple[float, Ints]:
        """Days between two retrainings, and the positions at which there is a new model."""
        if self.plan.retrain_days == 0:
            return 0.0, np.zeros(0, dtype=np.int64)
        days = self.plan.retrain_days or 1.0
        fresh = self._every(days)
        if self.plan.retrain_days is None and len(fresh) > MOST_TRAININGS:
            nights, days = len(fresh), math.ceil((self.end_us - self.start_us) / DAY_US / MOST_TRAININGS)
            fresh = self._every(days)
            log_.info("every night would be %d trainings: every %d days instead (--retrain-days)", nights, days)
        return days, fresh

    def _every(self, days: float) -> Ints:
        moments = np.arange(self.start_us, self.end_us, round(days * DAY_US))
        return np.unique(np.searchsorted(self.log.time, moments, side="left"))

    def _steps(self) -> Steps:
        if self.plan.batch_events:
            return cut_by_number(self.first, self.last, self.plan.batch_events, self.fresh)
        return cut_by_time(self.log, self.first, self.last, self.start_us, self.plan.batch_seconds, self.fresh)

    def _oracle_at(self) -> Ints:
        """Positions at which the oracle is trained: micro-batches with something to foretell, evenly spread."""
        wanted = np.cumsum(np.concatenate(([0], judged(self.log, repeats=self.plan.repeats))))
        begins = self.steps.bounds[:-1][np.diff(wanted[self.steps.bounds]) > 0]
        few = min(self.plan.oracle, len(begins))
        return begins[np.linspace(0, len(begins) - 1, few).round().astype(np.int64)] if few else begins[:0]

    def _tuned_window(self) -> tuple[float, bool]:
        """Days of recent popularity with the best hit rate just before the start, and whether there was one."""
        log, plan = self.log, self.plan
        begin_us = self.start_us - round(plan.tune_days * DAY_US)
        begin = log.position(begin_us)
        if begin == 0:  # a short log: the second half of what there is before the start
            begin_us = (int(log.time[0]) + self.start_us) // 2
            begin = log.position(begin_us)
        if begin in (0, self.first) or not judged(log, repeats=plan.repeats)[begin : self.first].any():
            log_.info("nothing before the start to tune recent popularity on: 30 days")
            return 30.0, False
        steps = cut_by_time(log, begin, self.first, begin_us, 3600, np.zeros(0, np.int64))
        tried = [Popular(f"{days} days", log, begin, window_us=days * DAY_US) for days in WINDOWS]
        rows = replay(log, steps, tried, plan.k, self.models.at(self.cut), repeats=plan.repeats).rows
        hits = [np.count_nonzero(rows.column(f"rank_{days}_days").to_numpy()) for days in WINDOWS]
        return float(WINDOWS[int(np.argmax(hits))]), True

    def _spark_seconds(self, start: ModelAt) -> tuple[float, ...]:
        """Of folding the micro-batch of median size by a Spark job, as the stream's worker stage does."""
        sizes = np.diff(self.steps.bounds)
        step = int(np.argsort(sizes)[len(sizes) // 2])
        begin, end = self.steps.bounds[step : step + 2]
        users = np.unique(self.log.user[begin:end])
        rows = pa.Table.from_batches([Past(self.log, int(end)).histories(users)])
        frame = self.tables.spark.createDataFrame(rows)
        shipped = ShippedModel.ship(self.tables.spark.sparkContext, start.model)
        seconds = []
        for _ in range(_SPARK_TRIES + 1):
            began = time.perf_counter()
            fold(frame, shipped, self.plan.k, Position(0)).toArrow()
            seconds.append(time.perf_counter() - began)
        shipped.unpersist()
        return tuple(seconds[1:])  # the first one ships the model

    def _setting(self, window_days: float, tuned: bool) -> Setting:
        plan = self.plan
        return Setting(
            title=self.title,
            start_us=self.start_us,
            end_us=self.end_us,
            k=plan.k,
            repeats=plan.repeats,
            batch_events=plan.batch_events,
            batch_seconds=plan.batch_seconds,
            retrain_days=self.retrain_days,
            model_age_days=plan.model_age_days,
            window_days=window_days,
            tuned=tuned,
            oracle_steps=len(self.oracle),
            steps=len(self.steps),
        )


def _period(log: EventLog, plan: Plan) -> tuple[int, int]:
    """Start and end in microseconds, within the log.

    Raises:
        FoldinError: the start lies outside of it.
    """
    last = int(log.time[-1])
    start = plan.start_us if plan.start_us is not None else int(log.time[len(log) * 4 // 5])
    if plan.start_us is None and start == log.time[0]:
        raise FoldinError(f"four fifths of the events are of one moment, {moment(start)}: name a --start after it")
    if not int(log.time[0]) < start <= last:
        raise FoldinError(
            f"--start {moment(start)} lies outside of the log, "
            f"which goes from {moment(int(log.time[0]))} to {moment(last)}"
        )
    end = last + 1 if plan.days is None else start + round(plan.days * DAY_US)
    return start, min(end, last + 1)
