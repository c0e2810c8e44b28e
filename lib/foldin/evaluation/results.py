"""What a replay leaves behind: one row a judged event with every contender's rank, and what things cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

__all__ = [
    "KINDS",
    "Cost",
    "Replayed",
    "Setting",
    "Shown",
    "moment",
    "rank_column",
]

KINDS = ("known", "returning", "new")
"""Users at the time of an event: in the training cut of the start's model; not in it, but here at an earlier time;
never here before (also with lines of the same moment in an earlier micro-batch)."""


def moment(time_us: int) -> str:
    """Microseconds since 1970 UTC as people read them, to the minute."""
    return str(np.datetime64(time_us, "us"))[:16].replace("T", " ")


def rank_column(contender: str) -> str:
    """Name of the column that holds a contender's ranks: 1 to k; 0: not on the list; null: was not asked."""
    return "rank_" + contender.replace(" ", "_")


@dataclass(frozen=True)
class Setting:
    """What was replayed, and how: stated above every table of the report.

    Attributes:
        title: name of the log.
        start_us: moment from which on events are judged, microseconds since 1970 UTC; models are trained before it.
        end_us: moment at which the replay ends (not included).
        k: length of the lists.
        repeats: items that the user had before may be listed and count; else they are left out of lists and events.
        batch_events: a micro-batch has so many events; 0: it is cut by time.
        batch_seconds: a micro-batch has the events of so many seconds; 0: it is cut by number.
        retrain_days: days between two retrainings of the contenders with nightly retraining; 0: there are none.
        model_age_days: how old the start's model is at the start.
        window_days: window of recent popularity.
        tuned: it was chosen on the days before the start; False where there was nothing to choose on.
        oracle_steps: micro-batches at which the oracle was retrained from scratch.
        steps: micro-batches in all.
    """

    title: str
    start_us: int
    end_us: int
    k: int
    repeats: bool
    batch_events: int
    batch_seconds: float
    retrain_days: float
    model_age_days: float
    window_days: float
    tuned: bool
    oracle_steps: int
    steps: int

    @property
    def retrained(self) -> str:
        """How often a model is trained for the contenders with retraining, in words."""
        return "every night" if self.retrain_days in (0, 1) else f"every {self.retrain_days:.3g} days"

    def called(self, contender: str) -> str:
        """What a contender is called in tables and pictures."""
        names = {
            "popularity": "popularity, all time",
            "recent": "popularity, recent",
            "stale": "stale model",
            "nightly": f"retrained {self.retrained}",
            "additive": "additive update",
            "foldin nightly": f"foldin, retrained {self.retrained}",
            "oracle": "retrained every step",
        }
        return names.get(contender, contender)


@dataclass(frozen=True)
class Shown:
    """What a contender's lists look like, whatever was taken.

    Attributes:
        coverage: share of the items that were known at the start which are on any list.
        novelty: mean of -log2 of the share of users who had the listed item before the start, in bits (Zhou et al.
            2010).
        popularity_lists: share of the lists that were made by popularity, because the user has no factors.
    """

    coverage: float
    novelty: float
    popularity_lists: float


@dataclass(frozen=True)
class Cost:
    """Seconds on the machine of the run.

    Attributes:
        train_seconds: of each training from scratch, in order.
        fold_seconds: of the kernel's work (histories, least squares, top-N) for all micro-batches together.
        folded_events: events in those micro-batches.
        folded_users: users folded in them, one a micro-batch.
        spark_seconds: of folding one typical micro-batch as a Spark job, without state and tables, each of a few tries.
    """

    train_seconds: tuple[float, ...]
    fold_seconds: float
    folded_events: int
    folded_users: int
    spark_seconds: tuple[float, ...] = ()

    @property
    def train(self) -> float:
        """Median seconds of a training from scratch; NaN without one."""
        return float(np.median(self.train_seconds)) if self.train_seconds else float("nan")

    @property
    def spark(self) -> float:
        """Median seconds of folding a micro-batch as a Spark job; NaN where it was not tried."""
        return float(np.median(self.spark_seconds)) if self.spark_seconds else float("nan")


@dataclass(frozen=True, eq=False)
class Replayed:
    """The raw results.

    Attributes:
        rows: one row a judged event, in order of time: step int32, event_time timestamp(us, UTC), user_id, item_id,
            kind (of `KINDS`), history int32 (events of the user before the micro-batch), model_age_days double (of the
            start's model), reachable bool (the start's model has a factor of the item), same_moment bool (the user has
            an event of this very time in an earlier micro-batch), and `rank_column(name)` int16 of each contender.
        contenders: names in the order in which they are shown.
        lags: names of further contenders, foldin with a stream that is so many seconds late, and the seconds; rising.
        shown: by contender.
        cost: of training and of folding.
        truth: by contender, where the log's truth is known: true affinity of the lists as a share of the best possible.
        models: (name, latest event_time in its training cut in microseconds, seconds of training) of each training.
    """

    setting: Setting
    rows: pa.Table
    contenders: tuple[str, ...]
    lags: Mapping[str, float]
    shown: Mapping[str, Shown]
    cost: Cost
    truth: Mapping[str, float] = field(default_factory=dict)
    models: tuple[tuple[str, int, float], ...] = ()

    def ranks(self, contender: str) -> npt.NDArray[np.int64]:
        """(n_rows,) ranks of a contender: 1 to k, 0 for a miss, -1 where it was not asked."""
        column = self.rows.column(rank_column(contender)).fill_null(-1)
        ranks: npt.NDArray[np.int64] = column.to_numpy().astype(np.int64)
        return ranks

    def numbers(self, name: str) -> npt.NDArray[np.generic]:
        """(n_rows,) another column."""
        column: npt.NDArray[np.generic] = self.rows.column(name).to_numpy(zero_copy_only=False)
        return column
