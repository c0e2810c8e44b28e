"""The one definition of history, used by training and by fold-in alike.

user factor = solve(history(events), item factors): a pure function of events and model. `slim` and `histories` are
Spark's own expressions, so the same aggregation runs in a batch and as a stream's state;
`user_strengths` turns its result into strengths, in numpy, for both.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.internal import InternalFunction

from foldin.config import Config
from foldin.kernels.strengths import UserItems, user_items
from foldin.schemas import HISTORY_ITEM, STRENGTHS

__all__ = ["HistoryDefinition", "histories", "items_of", "slim", "user_strengths"]

_DAY_US = 86_400_000_000


@dataclass(frozen=True)
class HistoryDefinition:
    """Everything that makes a history from events, as the model's row keeps it.

    Attributes:
        types: event types in the order of their numbers in the state.
        weights: weight of one event of each type, in the same order.
        max_events: bound of a history.
        half_life_days: half-life of a weight, counted from the user's own latest event; inf: no decay.
        retention_days: age past which an event does not count, from the model's as_of; inf: none.
        transform: identity or log1p (signed).
        explicit: the strength is the last rating, not a sum.
    """

    types: tuple[str, ...]
    weights: tuple[float, ...]
    max_events: int
    half_life_days: float
    retention_days: float
    transform: str
    explicit: bool

    @classmethod
    def of(cls, config: Config) -> HistoryDefinition:
        """As configured."""
        return cls(
            types=tuple(config.events.weights),
            weights=tuple(config.events.weights.values()),
            max_events=config.history.max_events_per_user,
            half_life_days=config.history.half_life_days,
            retention_days=config.history.retention_days,
            transform=config.history.transform,
            explicit=config.train.mode == "explicit",
        )

    def to_json(self) -> str:
        """For the model's row."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> HistoryDefinition:
        """From the model's row."""
        data = json.loads(text)
        return cls(**{**data, "types": tuple(data["types"]), "weights": tuple(data["weights"])})


def slim(events: DataFrame, types: Iterable[str]) -> DataFrame:
    """Events as histories hold them: user_id and `HISTORY_ITEM`'s fields. Other types are left out."""
    number = F.lit(None).cast("byte")
    for code, event_type in enumerate(types):
        number = F.when(F.col("event_type") == event_type, F.lit(code).cast("byte")).otherwise(number)
    return events.select(
        "user_id",
        F.unix_micros("event_time").alias("time"),
        F.xxhash64("event_id").alias("event"),
        F.xxhash64("item_id").alias("item"),
        number.alias("type"),
        F.col("value"),
    ).where("type is not null")


def histories(slimmed: DataFrame, max_events: int, *, seen: bool = True) -> DataFrame:
    """Each user's history and seen items; in a batch, or as a stream's state with update mode.

    Returns:
        user_id; history: at most `max_events` of `HISTORY_ITEM`, the most recent by (time, event);
        seen: the hash of every item that the user ever had, whatever the bound; null where only factors are asked for.
    """
    event = F.struct(*HISTORY_ITEM.names)
    # The fields begin with (time, event), so the largest are the most recent. max_by(event, ..., k) gives the same, but
    # its buffer has room for k events and their order from the first one on, 5 KB for every user.
    recent = InternalFunction.collect_top_k(event, max_events, False)
    users = slimmed.groupBy("user_id")
    if seen:
        return users.agg(recent.alias("history"), F.collect_set("item").alias("seen"))
    return users.agg(recent.alias("history")).withColumn("seen", F.lit(None).cast("array<bigint>"))


def items_of(history: pa.ListArray, definition: HistoryDefinition, as_of_us: int) -> UserItems:
    """The strengths of one Arrow batch of histories: (user row, item hash, strength) in user order."""
    events = history.flatten()
    lengths = history.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    columns = {name: _numbers(events.field(name)) for name in ("time", "event", "item", "type")}
    retention = definition.retention_days * _DAY_US
    return user_items(
        user=np.repeat(np.arange(len(history), dtype=np.int64), lengths),
        n_users=len(history),
        **columns,
        value=_numbers(events.field("value").fill_null(1.0)),
        weights=np.asarray(definition.weights, dtype=np.float64),
        half_life_us=definition.half_life_days * _DAY_US,
        oldest_us=None if np.isinf(retention) else int(as_of_us - retention),
        max_events=definition.max_events,
        log1p=definition.transform == "log1p",
        explicit=definition.explicit,
    )


def user_strengths(
    definition: HistoryDefinition, as_of_us: int
) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """For mapInArrow over `histories`: rows of `STRENGTHS`."""

    def convert(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            found = items_of(batch.column("history"), definition, as_of_us)
            users = batch.column("user_id").take(pa.array(found.user))
            yield pa.RecordBatch.from_arrays(
                [users, pa.array(found.item), pa.array(found.strength)], names=STRENGTHS.names
            )

    return convert


def _numbers(array: pa.Array) -> npt.NDArray[Any]:
    numbers: npt.NDArray[Any] = array.to_numpy(zero_copy_only=False)
    return numbers
