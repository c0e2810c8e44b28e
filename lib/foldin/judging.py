"""Is a model good enough to serve? Judged on events that came after everything it has seen.

The last part of the log by event time is held out. A model of the candidate's settings is trained on the events before
it; its lists, made by the production code from histories of before the split, are compared with what users took
afterwards: against those of the active model and of popularity, over the same users and events. Users without a
history and items without factors are counted: a list by popularity, a miss. The judged model is thrown away; what may
serve is trained on all events with the same settings.

The active model is judged by its own factors only on events that it has not seen: the split is never before the latest
event of its training cut. When too little has come since, it is not judged, and the report says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from foldin.config import Config
from foldin.folding import fold
from foldin.histories import HistoryDefinition, histories, slim
from foldin.kernels.metrics import coverage, ranking_metrics
from foldin.registry import Model
from foldin.schemas import Position
from foldin.shipping import ShippedModel

__all__ = ["HeldOut", "Judgement", "Score", "judge_model", "sides", "split_time"]

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
        why_not_active: why the active model was not judged; "" if it was.
    """

    split_us: int
    users: int
    cold: int
    taken: int
    unknown: int
    k: int
    scores: dict[str, Score]
    why_not_active: str = ""

    def to_dict(self) -> dict[str, object]:
        """For the model's row, as JSON."""
        return asdict(self)

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
    def of(cls, before: DataFrame, after: DataFrame, definition: HistoryDefinition, k: int) -> HeldOut:
        """From the events on both sides of the split; of `definition` the types and the bound count."""
        past = histories(slim(before, definition.types), definition.max_events)
        later = slim(after, definition.types).groupBy("user_id").agg(F.collect_set("item").alias("later"))
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
    events: DataFrame,
    split_us: int,
    train: Callable[[DataFrame], Model],
    active: Model | None,
    config: Config,
) -> Judgement:
    """Train on what came before the split, and compare lists with what came after it.

    Args:
        events: the training cut.
        train: a model of the candidate's settings, of the events that it is given.
        active: the model that serves; judged if it has seen nothing from the split on.
    """
    before, after = sides(events, split_us)
    candidate = train(before)
    contenders = {"candidate": candidate}
    why_not = "" if active is not None else "no model is active"
    if active is not None and active.as_of_us >= split_us:
        why_not = f"model {active.version} has seen events after the split"
    elif active is not None:
        contenders["active"] = active
    held_out = HeldOut.of(before, after, candidate.definition, config.judge.k)
    try:
        scores = {"popularity": held_out.popularity(candidate)}
        scores |= {name: held_out.score(model) for name, model in contenders.items()}
        return Judgement(
            split_us=split_us, k=config.judge.k, scores=scores, why_not_active=why_not, **held_out.facts(candidate)
        )
    finally:
        held_out.done()


def sides(events: DataFrame, split_us: int) -> tuple[DataFrame, DataFrame]:
    """The events before a moment, and those from it on."""
    at = F.unix_micros("event_time")
    return events.where(at < split_us), events.where(at >= split_us)
