"""A log in memory, in order of time, and what of it had happened before a moment."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from foldin.errors import FoldinError
from foldin.histories import HistoryDefinition, slim

__all__ = ["EventLog", "Past", "load_log"]

Ints = npt.NDArray[np.int64]
Codes = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class EventLog:
    """Events in order of (time, hash of the id): the order in which histories are bounded. One entry an event.

    Attributes:
        time: (n,) event_time in microseconds since 1970 UTC.
        event: (n,) int64 hash of the event's id.
        user: (n,) number of the user, an index into `user_ids`.
        item: (n,) number of the item, an index into `item_ids` and `item_hashes`.
        type: (n,) int8 number of the type, an index into the definition's weights.
        value: (n,) float64, 1 where the event has none.
        user_ids: (n_users,) text.
        item_ids: (n_items,) text.
        item_hashes: (n_items,) int64.
        definition: what makes a history of events.
    """

    time: Ints
    event: Ints
    user: Codes
    item: Codes
    type: npt.NDArray[np.int8]
    value: npt.NDArray[np.float64]
    user_ids: pa.Array
    item_ids: pa.Array
    item_hashes: Ints
    definition: HistoryDefinition

    def __len__(self) -> int:
        return len(self.time)

    @property
    def n_items(self) -> int:
        """Items that occur anywhere in the log."""
        return len(self.item_hashes)

    @cached_property
    def weight(self) -> npt.NDArray[np.float64]:
        """(n,) weight of each event's type."""
        return np.asarray(self.definition.weights, dtype=np.float64)[self.type]

    @cached_property
    def speaks_for(self) -> npt.NDArray[np.bool_]:
        """(n,) events that speak for their item: those of a positive strength, or any rating."""
        return self.weight > 0 if self.definition.explicit else self.weight * self.value > 0

    @cached_property
    def first_of_pair(self) -> npt.NDArray[np.bool_]:
        """(n,) the first event, of whatever type, of its user with its item."""
        first = np.zeros(len(self), dtype=bool)
        first[np.unique(self.user.astype(np.int64) * self.n_items + self.item, return_index=True)[1]] = True
        return first

    @cached_property
    def number_of(self) -> dict[str, int]:
        """Number of each item by its id."""
        return {item: number for number, item in enumerate(self.item_ids.to_pylist())}

    @cached_property
    def tick_us(self) -> int:
        """The clock of the log: every event_time is a multiple of it, counted from the first."""
        return int(np.gcd.reduce(self.time - self.time[0])) if len(self) else 0

    def position(self, time_us: int) -> int:
        """How many events happened before a moment."""
        return int(np.searchsorted(self.time, time_us, side="left"))

    def with_other_future(self, end: int, seed: int = 0) -> EventLog:
        """The same up to `end`; what comes after it happens to other users, with other items, types and values."""
        rng, n = np.random.default_rng(seed), len(self) - end
        user, item, kind, value = self.user.copy(), self.item.copy(), self.type.copy(), self.value.copy()
        user[end:] = rng.integers(len(self.user_ids), size=n)
        item[end:] = rng.integers(self.n_items, size=n)
        kind[end:] = rng.integers(len(self.definition.types), size=n)
        value[end:] = rng.uniform(0.5, 50, size=n)
        return replace(self, user=user, item=item, type=kind, value=value)

    @cached_property
    def _by_user(self) -> tuple[Ints, Ints]:
        """(n,) positions of the events user by user; (n,) user and position as one number, ascending."""
        order = np.argsort(self.user, kind="stable")
        return order, self.user[order].astype(np.int64) * len(self) + order

    @cached_property
    def _history_items(self) -> pa.StructArray:
        """(n,) the events as the state of the stream holds them."""
        columns = (self.time, self.event, self.item_hashes[self.item], self.type, self.value)
        return pa.StructArray.from_arrays(
            [pa.array(column) for column in columns], names=["time", "event", "item", "type", "value"]
        )

    def positions(self, users: npt.NDArray[np.integer], end: int) -> tuple[Ints, Ints]:
        """Where the events of `users` before `end` stand: (n_found,) positions user by user, (n_users + 1,) bounds."""
        order, key = self._by_user
        base = users.astype(np.int64) * len(self)
        begins, ends = np.searchsorted(key, base), np.searchsorted(key, base + end)
        counts = ends - begins
        bounds = np.concatenate(([0], np.cumsum(counts)))
        at = np.repeat(begins - bounds[:-1], counts) + np.arange(bounds[-1])
        return order[at], bounds


@dataclass(frozen=True, eq=False)
class Past:
    """What had happened before the event at `end`: all that a contender is told."""

    log: EventLog
    end: int
    repeats: bool = False
    """Items that the user had may be recommended again."""

    def before(self, end: int) -> Past:
        """The past of an earlier moment; of a later one there is none to be had."""
        return replace(self, end=min(end, self.end))

    def before_time(self, time_us: int) -> Past:
        """The past of an earlier moment, in microseconds since 1970 UTC."""
        return self.before(self.log.position(time_us))

    def counts(self, users: npt.NDArray[np.integer]) -> Ints:
        """(n_users,) events of each user."""
        counts: Ints = np.diff(self.log.positions(users, self.end)[1])
        return counts

    def histories(self, users: npt.NDArray[np.integer], *, until: int | None = None) -> pa.RecordBatch:
        """user_id, history, seen: what `foldin.histories.histories` makes of the same events.

        Args:
            until: histories end earlier, at this position; what was seen does not: it is left out of every
                contender's list alike.
        """
        log = self.log
        at, bounds = log.positions(users, self.end if until is None else min(until, self.end))
        lengths = np.minimum(np.diff(bounds), log.definition.max_events)
        recent = at[np.repeat(bounds[1:] - np.cumsum(lengths), lengths) + np.arange(lengths.sum())]
        seen_bounds, seen = self.seen(users)
        return pa.RecordBatch.from_arrays(
            [
                log.user_ids.take(pa.array(users)),
                _lists(log._history_items.take(pa.array(recent)), np.concatenate(([0], np.cumsum(lengths)))),
                _lists(pa.array(log.item_hashes[seen]), seen_bounds),
            ],
            names=["user_id", "history", "seen"],
        )

    def seen(self, users: npt.NDArray[np.integer]) -> tuple[Ints, Codes]:
        """What is to be left out of the lists of `users`: (n_users + 1,) bounds and the items' numbers."""
        at, bounds = self.log.positions(users, self.end)
        if self.repeats:
            return np.zeros_like(bounds), self.log.item[:0]
        first = self.log.first_of_pair[at]  # each item once, however often it was had
        return np.concatenate(([0], np.cumsum(first)))[bounds], self.log.item[at[first]]


def load_log(events: DataFrame, definition: HistoryDefinition) -> EventLog:
    """`events` (columns of that table) collected; events of types without a number are no part of any history.

    Raises:
        FoldinError: there are none, or two items share a 64-bit hash.
    """
    names = events.select("item_id", F.xxhash64("item_id").alias("item")).distinct().toArrow().sort_by("item")
    hashes = names.column("item").to_numpy()
    if (hashes[1:] == hashes[:-1]).any():
        raise FoldinError(f"two items share the 64-bit hash {hashes[:-1][hashes[1:] == hashes[:-1]][0]}; rename one")
    rows = slim(events, definition.types).toArrow()
    if not rows.num_rows:
        raise FoldinError("nothing to replay: no row of the log is an event of a type with a weight")
    users = rows.column("user_id").combine_chunks().dictionary_encode()
    numbers = {name: rows.column(name).to_numpy() for name in ("time", "event", "item", "type")}
    order = np.lexsort((numbers["event"], numbers["time"]))
    return EventLog(
        time=numbers["time"][order],
        event=numbers["event"][order],
        user=users.indices.to_numpy().astype(np.int32)[order],
        item=np.searchsorted(hashes, numbers["item"]).astype(np.int32)[order],
        type=numbers["type"].astype(np.int8)[order],
        value=pc.fill_null(rows.column("value"), 1.0).to_numpy()[order],
        user_ids=users.dictionary,
        item_ids=names.column("item_id").combine_chunks(),
        item_hashes=hashes,
        definition=definition,
    )


def _lists(values: pa.Array, bounds: Ints) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(bounds.astype(np.int32)), values)
