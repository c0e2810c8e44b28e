"""Is a model good enough to serve? Judged on events that came after everything it has seen.

The last part of the log by event time is held out. A model of the candidate's settings is trained on the events before
it; its lists, made by the production code from histories of before the split, are compared with what users took
afterwards: against those of the active model and of popularity, over the same users and events. Users without a
history and items without factors are counted: a list by popularity, a miss. The judged model is thrown away; what may
serve is trained on all events with the same settings.

The active model is judged by its own factors only on events that it has not seen. When too few users have come since
its training cut, a model with its settings is trained on the same events as the candidate's, and stands for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from foldin.config import Config
from foldin.folding import fold
from foldin.histories import histories, slim
from foldin.kernels.metrics import coverage, ranking_metrics
from foldin.registry import Model
from foldin.schemas import Position
from foldin.shipping import ShippedModel

__all__ = ["Contender", "HeldOut", "Judgement", "Score", "judge_model", "sides", "split_time"]

Contender = Callable[[DataFrame], Model]
"""A model of the events that it is given, or one that is there already and has seen no others."""

_NOWHERE = Position(0)  # lists of a judgement are compared, never published


@dataclass(frozen=True)
class Score:
    """Means over users who took something new after the split; NaN where there were none."""

    hit: float
    recall: float
    ndcg: float
    mrr: float
    coverage: float


@dataclass(frozen=True)
class Judgement:
    """What the held-out events say.

    Attributes:
        split_us: event_time from which on events are held out, microseconds since 1970 UTC.
        users: users who took something new after the split; of them `cold` had no history before it.
        taken: (user, item) pairs judged; of them `unknown` are of items that the candidate has no factors of.
        k: length of the lists.
        scores: by contender: candidate, popularity and, where it could be judged, active.
        remark: how the active model was judged, or why it was not; "" if by its own factors.
    """

    split_us: int
    users: int
    cold: int
    taken: int
    unknown: int
    k: int
    scores: dict[str, Score]
    remark: str = ""

    def to_dict(self) -> dict[str, object]:
        """For the model's row, as JSON, which knows no NaN."""
        scores = {
            name: {key: value if math.isfinite(value) else None for key, value in asdict(score).items()}
            for name, score in self.scores.items()
        }
        return asdict(self) | {"scores": scores}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Judgement:
        """The inverse of `to_dict`."""
        scores = {
            name: Score(**{key: math.nan if value is None else value for key, value in score.items()})
            for name, score in data["scores"].items()
        }
        return cls(**{**data, "scores": scores})

    def verdict(self, margin: float, least_users: int) -> str:
        """Why the candidate must not serve; "" if it may.

        Args:
            margin: share of NDCG by which it may be worse than another contender.
            least_users: with fewer users nothing is said against it.
        """
        if self.users < least_users:
            return ""
        mine = self.scores["candidate"].ndcg
        for name, score in self.scores.items():
            if name != "candidate" and mine < score.ndcg * (1 - margin):
                return (
                    f"NDCG@{self.k} {mine:.4f} is more than {margin:.0%} worse than that of {name} "
                    f"({score.ndcg:.4f}), on what {self.users:,} users took after the split"
                )
        return ""


def split_time(events: DataFrame, share: float, *, not_before_us: int | None = None) -> int | None:
    """The event_time from which on the last `share` of the events is held out; None where nothing comes after.

    Args:
        not_before_us: the latest event that another contender has seen: the split comes after it.
    """
    at = F.unix_micros("event_time")
    row = events.agg(F.percentile_approx(at, 1 - share, 10_000).alias("split"), F.max(at).alias("last")).first()
    if row is None or row["split"] is None:
        return None
    split = int(row["split"]) if not_before_us is None else max(int(row["split"]), not_before_us + 1)
    return split if split <= row["last"] else None


@dataclass(frozen=True)
class HeldOut:
    """Who took something new after a moment, and what: lists made from what was before are scored on it.

    Attributes:
        users: user_id, history and seen (of before the split; null for a cold user), taken (item hashes); cached.
        k: length of the lists.
    """

    users: DataFrame
    k: int

    @classmethod
    def of(cls, before: DataFrame, after: DataFrame, types: Sequence[str], max_events: int, k: int) -> HeldOut:
        """From the events on both sides of the split; histories are cut to what each model takes of them later."""
        past = histories(slim(before, types), max_events)
        later = slim(after, types).groupBy("user_id").agg(F.collect_set("item").alias("later"))
        joined = later.join(past, "user_id", "left").withColumn(
            "taken", F.array_except("later", F.coalesce("seen", F.array().cast("array<bigint>")))
        )
        users = joined.where(F.size("taken") > 0).select("user_id", "history", "seen", "taken").orderBy("user_id")
        return cls(users.persist(), k)

    def score(self, model: Model) -> Score:
        """Of the lists that the stream would make under `model`."""
        return self._score(self.users, model)

    def popularity(self, model: Model) -> Score:
        """Of the lists by popularity, as `model` has it, without what the user had before."""
        nothing = F.lit(None).cast(self.users.schema["history"].dataType)
        return self._score(self.users.withColumn("history", nothing), model)

    def facts(self, model: Model) -> dict[str, int]:
        """users, cold, taken and unknown, as `Judgement` has them."""
        rows = self.users.select("taken", F.col("history").isNull().alias("cold")).toArrow()
        known = model.index_of(rows.column("taken").combine_chunks().flatten().to_numpy())
        return {
            "users": rows.num_rows,
            "cold": int(np.count_nonzero(rows.column("cold").to_numpy())),
            "taken": len(known),
            "unknown": int(np.count_nonzero(known < 0)),
        }

    def done(self) -> None:
        """Give the cached users back."""
        self.users.unpersist()

    def _score(self, users: DataFrame, model: Model) -> Score:
        shipped = ShippedModel.ship(users.sparkSession.sparkContext, model)
        try:
            shown = fold(users, shipped, self.k, _NOWHERE).select(
                "user_id", F.transform("items", lambda item: F.xxhash64(item["item_id"])).alias("shown")
            )
            rows = users.select("user_id", "taken").join(shown, "user_id").select("taken", "shown").toArrow()
        finally:
            shipped.unpersist()
        taken, lists = (rows.column(name).combine_chunks() for name in ("taken", "shown"))
        wanted, listed = taken.flatten().to_numpy(), lists.flatten().to_numpy()
        _, numbers = np.unique(np.concatenate([wanted, listed]), return_inverse=True)
        lengths = lists.value_lengths().to_numpy()
        ranked = np.full((rows.num_rows, self.k), -1, dtype=np.int64)
        place = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        ranked[np.repeat(np.arange(rows.num_rows), lengths), place] = numbers[len(wanted) :]
        indptr = np.concatenate(([0], np.cumsum(taken.value_lengths().to_numpy())))
        means = ranking_metrics(ranked, indptr, numbers[: len(wanted)]).means()
        return Score(**means, coverage=coverage(ranked, len(model.item_ids)))


def judge_model(
    events: DataFrame, split_us: int, contenders: Mapping[str, Contender], config: Config, *, remark: str = ""
) -> Judgement:
    """Train on what came before the split, and compare lists with what came after it.

    Args:
        events: the training cut.
        contenders: by name, a model of the events before the split; "candidate" is one of them, and decides which
            event types count. All must know the same types.
        remark: what is to be said of the active model.
    """
    before, after = sides(events, split_us)
    models = {name: contender(before) for name, contender in contenders.items()}
    candidate = models["candidate"]
    bound = max(model.definition.max_events for model in models.values())
    held_out = HeldOut.of(before, after, candidate.definition.types, bound, config.judge.k)
    try:
        scores = {"popularity": held_out.popularity(candidate)}
        scores |= {name: held_out.score(model) for name, model in models.items()}
        return Judgement(split_us=split_us, k=config.judge.k, scores=scores, remark=remark, **held_out.facts(candidate))
    finally:
        held_out.done()


def sides(events: DataFrame, split_us: int) -> tuple[DataFrame, DataFrame]:
    """The events before a moment, and those from it on."""
    at = F.unix_micros("event_time")
    return events.where(at < split_us), events.where(at >= split_us)
