"""What the raw results of a replay say, with intervals: one number an event, means over events, users resampled.

Every event counts, also of users and of items that no model knows: there a contender has a miss, the event stays. Gains
are what foldin has more than another contender on the same events.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt

from foldin.errors import FoldinError
from foldin.evaluation.intervals import Bootstrap, Interval
from foldin.evaluation.results import KINDS, Replayed, moment

__all__ = ["HISTORY_BINS", "METRICS", "Costs", "Late", "Measures", "Slice", "measures_of"]

FOLDIN, STALE, ORACLE = "foldin", "stale", "oracle"
DAY = 86_400
HISTORY_BINS = ((0, 0), (1, 4), (5, 19), (20, 99), (100, None))
"""Events of the user before the micro-batch, first and last of each bin."""
LEAST_EVENTS = 50
"""A bin of model age with fewer events is left out."""

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.bool_]

METRICS: dict[str, Callable[[Floats], Floats]] = {
    "hit": lambda rank: np.ones_like(rank),
    "ndcg": lambda rank: 1 / np.log2(1 + rank),  # one item was taken: the best possible is 1
    "mrr": lambda rank: 1 / rank,
}
"""What a place on the list (1 to k) is worth; off the list every metric is 0."""


@dataclass(frozen=True)
class Slice:
    """Some of the events.

    Attributes:
        label: which.
        events, users: how many.
        scores: contender -> metric -> mean; only contenders that were asked at every event of the slice.
        gains: another contender -> metric -> mean of foldin's minus its.
    """

    label: str
    events: int
    users: int
    scores: Mapping[str, Mapping[str, Interval]]
    gains: Mapping[str, Mapping[str, Interval]]

    def hit(self, contender: str) -> Interval:
        """Hit rate."""
        return self.scores[contender]["hit"]

    def gain(self, contender: str) -> Interval:
        """Hit rate of foldin minus that of another."""
        return self.gains[contender]["hit"]


@dataclass(frozen=True)
class Late:
    """A point of the freshness curve.

    Attributes:
        name: of the contender.
        seconds: how late its stream is; 0 for foldin, infinite for the stale model, which never gets an event.
        hit: hit rate.
        gain: hit rate minus that of the stale model, paired.
    """

    name: str
    seconds: float
    hit: Interval
    gain: Interval


@dataclass(frozen=True)
class Costs:
    """Seconds on the machine of the run; NaN where something was not measured.

    Attributes:
        batch_events: events a micro-batch, mean.
        train: of one training from scratch, median; retraining at each micro-batch costs this a micro-batch.
        kernel: of the numerical work of a micro-batch, mean.
        spark: of folding a micro-batch as a Spark job, without state and tables, median of a few.
        period_events: events between two retrainings, mean.
        retrained: how often that is, in words.
    """

    batch_events: float
    train: float
    kernel: float
    spark: float
    period_events: float
    retrained: str

    @property
    def kernel_share(self) -> float:
        """Of a training, what the numerical work of a micro-batch costs."""
        return self.kernel / self.train

    @property
    def spark_share(self) -> float:
        """Of a training, what folding a micro-batch as a Spark job costs."""
        return self.spark / self.train

    @property
    def per_event(self) -> dict[str, float]:
        """Seconds an event, by way of keeping recommendations fresh; what was measured only."""
        ways = {
            "fold-in, numerical work": self.kernel / self.batch_events,
            "fold-in, as a Spark job": self.spark / self.batch_events,
            f"retraining {self.retrained}": self.train / self.period_events,
            "retraining every micro-batch": self.train / self.batch_events,
        }
        return {way: seconds for way, seconds in ways.items() if math.isfinite(seconds) and seconds > 0}


class Measures:
    """All figures of a report; slices are worked out when they are asked for, once."""

    def __init__(self, replayed: Replayed) -> None:
        self.replayed = replayed
        self.setting = replayed.setting
        if not replayed.rows.num_rows:
            start, end = (moment(us) for us in (self.setting.start_us, self.setting.end_us))
            raise FoldinError(
                f"no event to judge in {self.setting.title} from {start} to {end} UTC: the log has none in that time"
                + ("" if self.setting.repeats else ", or only of items that their users had before, which are left out")
                + "; choose another start or end"
            )
        missing = {FOLDIN, STALE} - set(replayed.contenders)
        if missing:
            raise FoldinError(f"a report needs foldin and the stale model; not replayed: {', '.join(sorted(missing))}")
        codes = replayed.rows.column("user_id").combine_chunks().dictionary_encode().indices
        self.bootstrap = Bootstrap(codes.to_numpy().astype(np.int64))
        self.ranked = {name: replayed.ranks(name) for name in replayed.contenders}
        self.complete = tuple(name for name, ranks in self.ranked.items() if (ranks >= 0).all())
        """Contenders that were asked at every event; the others are compared where they were asked, or not at all."""
        self.reachable_rows = replayed.numbers("reachable").astype(bool)
        self.moment_rows = replayed.numbers("same_moment").astype(bool)

    def values(self, contender: str, metric: str) -> Floats:
        """(n_rows,) worth of each event; 0 where the item is not on the list, and where the contender was not asked."""
        ranks = self.ranked[contender] if contender in self.ranked else self.replayed.ranks(contender)
        values = np.zeros(len(ranks))
        values[ranks > 0] = METRICS[metric](ranks[ranks > 0].astype(np.float64))
        return values

    def slice(self, label: str, where: Rows, also: tuple[str, ...] = ()) -> Slice:
        """The events of `where`, (n_rows,), with the contenders that were asked at every event, and those of `also`."""
        names = [name for name in self.ranked if name in self.complete or name in also]
        keys = [(name, metric) for name in names for metric in METRICS]
        worth = {key: self.values(*key) for key in keys}
        others = [key for key in keys if key[0] != FOLDIN]
        columns = [worth[key] for key in keys] + [worth[FOLDIN, key[1]] - worth[key] for key in others]
        found = self.bootstrap.means(np.column_stack(columns), where)
        scores: dict[str, dict[str, Interval]] = {name: {} for name in names}
        gains: dict[str, dict[str, Interval]] = {name: {} for name in names if name != FOLDIN}
        for (name, metric), interval in zip(keys, found[: len(keys)], strict=True):
            scores[name][metric] = interval
        for (name, metric), interval in zip(others, found[len(keys) :], strict=True):
            gains[name][metric] = interval
        users = len(np.unique(self.bootstrap.users[where]))
        return Slice(label, int(np.count_nonzero(where)), users, scores, gains)

    @cached_property
    def every(self) -> Slice:
        """All events."""
        return self.slice("all events", np.ones(self.replayed.rows.num_rows, dtype=bool))

    @cached_property
    def reachable(self) -> Slice:
        """Events whose item the start's model has a factor of."""
        return self.slice("reachable events", self.reachable_rows)

    @cached_property
    def apart(self) -> Slice:
        """Events of another moment than those that their user had in an earlier micro-batch."""
        return self.slice("without events of an order that is already begun", ~self.moment_rows)

    @cached_property
    def together(self) -> Slice:
        """The others: the user has an event of this very time in an earlier micro-batch."""
        return self.slice("events of an order that is already begun", self.moment_rows)

    @cached_property
    def oracle(self) -> Slice | None:
        """The events at which the oracle was asked; None where it never was."""
        asked = self.oracle_rows
        return self.slice("events at which the oracle was asked", asked, (ORACLE,)) if asked.any() else None

    @cached_property
    def kinds(self) -> tuple[Slice, ...]:
        """By the kind of user."""
        kind = self.replayed.numbers("kind")
        return tuple(self.slice(name, kind == name) for name in KINDS)

    @cached_property
    def histories(self) -> tuple[Slice, ...]:
        """By events of the user before the micro-batch."""
        length = self.replayed.numbers("history").astype(np.int64)
        named = {(first, last): f"{first}-{last}" if last else f"{first}+" for first, last in HISTORY_BINS} | {
            (0, 0): "0"
        }
        return tuple(
            self.slice(named[first, last], (length >= first) & (length <= (length.max() if last is None else last)))
            for first, last in HISTORY_BINS
        )

    @cached_property
    def ages(self) -> tuple[Slice, ...]:
        """By age of the start's model, in days; bins wide enough for their events, thin ones left out."""
        age = self.replayed.numbers("model_age_days").astype(np.float64)
        width = next((days for days in (1, 2, 7, 14, 30, 91) if np.ptp(age) / days <= 14), 365)
        bins = np.floor(age / width).astype(np.int64)
        numbers, counts = np.unique(bins, return_counts=True)
        return tuple(
            self.slice(f"{number * width}-{(number + 1) * width}", bins == number)
            for number, count in zip(numbers.tolist(), counts.tolist(), strict=True)
            if count >= LEAST_EVENTS
        )

    @cached_property
    def lateness(self) -> tuple[Late, ...]:
        """The freshness curve: foldin, foldin with a stream that is late, the stale model."""
        points = {FOLDIN: 0.0, **dict(sorted(self.replayed.lags.items(), key=lambda lag: lag[1])), STALE: math.inf}
        hits = np.column_stack([self.values(name, "hit") for name in points])
        means, gains = self.bootstrap.means(hits), self.bootstrap.means(hits - hits[:, -1:])
        return tuple(
            Late(name, seconds, mean, gain)
            for (name, seconds), mean, gain in zip(points.items(), means, gains, strict=True)
        )

    @cached_property
    def closed(self) -> Interval | None:
        """Share of the gap between stale and oracle that foldin closes; None where the gap itself is not there."""
        if self.oracle is None or not self.gap.excludes_zero or self.gap.value < 0:
            return None
        foldin, stale, oracle = (self.values(name, "hit") for name in (FOLDIN, STALE, ORACLE))
        return self.bootstrap.ratio_of_differences(foldin, stale, oracle, stale, self.oracle_rows)

    @cached_property
    def gap(self) -> Interval:
        """Hit rate of the oracle minus that of the stale model, where the oracle was asked."""
        return self.bootstrap.difference(self.values(ORACLE, "hit"), self.values(STALE, "hit"), self.oracle_rows)

    @cached_property
    def oracle_rows(self) -> Rows:
        """(n_rows,) where the oracle was asked."""
        return self.ranked[ORACLE] >= 0 if ORACLE in self.ranked else np.zeros(self.replayed.rows.num_rows, dtype=bool)

    def part(self, where: Rows, a: str, b: str, within: Rows | None = None) -> float:
        """Of the mean of a's hits minus b's, over the rows of `within`, what the rows of `where` contribute to it."""
        more = self.values(a, "hit") - self.values(b, "hit")
        within = np.ones(len(more), dtype=bool) if within is None else within
        return float(more[where & within].sum() / max(1, np.count_nonzero(within)))

    @cached_property
    def costs(self) -> Costs:
        """What fold-in and training cost."""
        cost, setting = self.replayed.cost, self.setting
        days = (setting.end_us - setting.start_us) / 1e6 / DAY
        return Costs(
            batch_events=_over(cost.folded_events, setting.steps),
            train=cost.train,
            kernel=_over(cost.fold_seconds, setting.steps),
            spark=cost.spark,
            period_events=_over(cost.folded_events, max(1.0, days / (setting.retrain_days or 1))),
            retrained=setting.retrained,
        )


@lru_cache(maxsize=1)
def measures_of(replayed: Replayed) -> Measures:
    """The figures of a replay; the last one's are kept, for its tables, its pictures and its summary.

    Raises:
        FoldinError: there is no event, or foldin or the stale model is missing.
    """
    return Measures(replayed)


def _over(above: float, below: float) -> float:
    return above / below if below > 0 and above > 0 else math.nan
