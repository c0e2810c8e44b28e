"""What is compared: each is asked for lists before it meets the events that judge them."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from foldin.evaluation.additive import AdditiveUpdate
from foldin.evaluation.log import EventLog, Past
from foldin.folding import Stamps, fold_batch
from foldin.kernels import top_n
from foldin.registry import Model
from foldin.schemas import Position

__all__ = ["Additive", "Contender", "Folded", "Popularity", "Served"]

Ints = NDArray[np.int64]
NONE = np.int64(-1)
"""Stands for no item; an item of that hash would be one in 2^64."""

_STAMPS = Stamps("replay", Position(0), dt.datetime(1970, 1, 1, tzinfo=dt.UTC))


class Contender(Protocol):
    """Attributes: name; seconds: spent on learning from events so far (not on lists, which all must make)."""

    name: str
    seconds: float

    def lists(self, users: Ints) -> Ints:
        """(n_users, k) item hashes, best first, NONE where there are fewer, as of the events met so far."""
        ...

    def meet(self, start: int, end: int) -> None:
        """Learn from rows start to end of the log; `past` has met them by now."""
        ...


@dataclass(frozen=True)
class Served:
    """A model, from the row of the log on at which it serves.

    Attributes:
        cut: rows of the log that its training read.
        counts: (n_users,) of them, by user.
        seconds: that its training took.
    """

    row: int
    model: Model
    cut: int
    counts: Ints
    seconds: float


@dataclass
class Folded:
    """Lists by the production code under the newest model: of histories up to now, or frozen at the training cut.

    The stream writes a user's list when it folds an event of theirs; since a list depends on the user's own history and
    on the model alone, that list is the one made here when it is asked for.

    Attributes:
        models: in the order in which they serve; the first one from row 0 of the test on.
        frozen: True: the stale model; a user who came after the cut has no factors.
        repeats: items may be recommended again.
    """

    name: str
    past: Past
    models: Sequence[Served]
    k: int
    frozen: bool = False
    repeats: bool = False
    seconds: float = field(default=0.0, init=False)

    def lists(self, users: Ints) -> Ints:
        """By `fold_batch`, as in a micro-batch."""
        served = self._served()
        counts = served.counts if self.frozen else None
        batch = self.past.histories(users, counts, seen=not self.repeats)
        return hashes_of(fold_batch(batch, served.model, self.k, _STAMPS), served.model, self.k)

    def meet(self, start: int, end: int) -> None:
        """Fold the users of these rows, as a micro-batch would, for what it costs; lists are made when asked for."""
        if self.frozen:
            return
        users = np.unique(self.past.log.user[start:end])
        began = time.perf_counter()
        fold_batch(self.past.histories(users), self._served().model, 0, _STAMPS)
        self.seconds += time.perf_counter() - began

    def _served(self) -> Served:
        return [served for served in self.models if served.row <= self.past.met][-1]


def hashes_of(folded: pa.RecordBatch, model: Model, k: int) -> Ints:
    """(n_users, k) item hashes of the lists in rows of FOLDED."""
    lists = folded.column("items")
    rows = pc.index_in(lists.flatten().field("item_id"), value_set=model.item_ids).to_numpy(zero_copy_only=False)
    return padded(model.item_hashes[rows.astype(np.int64)], lists.value_lengths().to_numpy(), k)


def padded(flat: Ints, lengths: NDArray[np.int32], k: int) -> Ints:
    """Ragged rows one after the other, (n_rows, k), filled up with NONE."""
    table = np.full((len(lengths), k), NONE, dtype=np.int64)
    starts = np.cumsum(lengths) - lengths
    place = np.arange(len(flat)) - np.repeat(starts, lengths)
    table[np.repeat(np.arange(len(lengths)), lengths), place] = flat
    return table


@dataclass
class Popularity:
    """The items that most events were of, of all time or of the last `window_us`, without what the user had.

    Attributes:
        weights: of an event type; only events of a positive weight count.
    """

    name: str
    past: Past
    weights: NDArray[np.float64]
    k: int
    window_us: int | None = None
    repeats: bool = False
    seconds: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        log = self.past.log
        self._items, self._number = np.unique(log.item, return_inverse=True)
        self._counts = np.zeros(len(self._items), dtype=np.int64)
        self._first = self._last = 0
        self._move()

    def lists(self, users: Ints) -> Ints:
        """Equal counts in order of the hash."""
        indptr, rows = self.past.rows_of(users)
        longest = 0 if self.repeats or not len(users) else int(np.diff(indptr).max())
        best = self._best(self.k + longest)
        found = np.full((len(users), self.k), NONE, dtype=np.int64)
        for n in range(len(users)):
            own = rows[:0] if self.repeats else rows[indptr[n] : indptr[n + 1]]
            unseen = best[~np.isin(best, self._number[own])][: self.k]
            found[n, : len(unseen)] = self._items[unseen]
        return found

    def meet(self, start: int, end: int) -> None:
        """Count the new events, forget those that have left the window."""
        began = time.perf_counter()
        self._move()
        self.seconds += time.perf_counter() - began

    def _best(self, n: int) -> Ints:
        n = min(n, len(self._items))
        bar = np.partition(self._counts, len(self._items) - n)[len(self._items) - n] if n else 0
        near = np.flatnonzero((self._counts >= bar) & (self._counts > 0))
        return near[np.lexsort((near, -self._counts[near]))][:n]

    def _move(self) -> None:
        log, met = self.past.log, self.past.met
        self._count(self._last, met, 1)
        self._last = met
        if self.window_us is not None and met:
            first = max(self._first, log.first_at(int(log.time[met - 1]) - self.window_us))
            self._count(self._first, first, -1)
            self._first = first

    def _count(self, start: int, end: int, sign: int) -> None:
        rows = np.arange(start, end)
        rows = rows[self.weights[self.past.log.type[rows]] > 0]
        np.add.at(self._counts, self._number[rows], sign)


@dataclass
class Additive:
    """Oryx 2's update from the stale model's vectors on, event by event."""

    name: str
    past: Past
    served: Served
    k: int
    repeats: bool = False
    seconds: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self._update = AdditiveUpdate(self.served.model.items)
        self._vectors: dict[int, NDArray[np.float64]] = {}

    def lists(self, users: Ints) -> Ints:
        """Of the vectors as they are; popular items where a user has none."""
        model, batch = self.served.model, self.past.histories(users, self.served.counts, seen=not self.repeats)
        base = fold_batch(batch, model, self.k, _STAMPS)
        found = hashes_of(base, model, self.k)
        moved = np.array([n for n, user in enumerate(users) if int(user) in self._vectors], dtype=np.int64)
        if len(moved):
            vectors = np.array([self._vectors[int(users[n])] for n in moved], dtype=np.float32)
            indptr, rows = self.past.rows_of(users[moved])
            seen = None if self.repeats else (indptr, model.index_of(self.past.log.item[rows]))
            best = top_n(model.items, vectors, self.k, seen=seen).indices
            found[moved] = np.where(best >= 0, model.item_hashes[best], NONE)
        return found

    def meet(self, start: int, end: int) -> None:
        """One step an event, on items that the model knows."""
        began = time.perf_counter()
        log, model = self.past.log, self.served.model
        weights = np.asarray(model.definition.weights)
        strengths = weights[log.type[start:end]] * np.nan_to_num(log.value[start:end], nan=1.0)
        items = model.index_of(log.item[start:end])
        for user, item, strength in zip(log.user[start:end], items, strengths, strict=True):
            if item >= 0 and strength != 0:
                self._vectors[int(user)] = self._update.step(self._vector(int(user)), int(item), float(strength))
        self.seconds += time.perf_counter() - began

    def _vector(self, user: int) -> NDArray[np.float64]:
        if user not in self._vectors:
            batch = self.past.histories(np.array([user]), self.served.counts)
            factors = fold_batch(batch, self.served.model, 0, _STAMPS).column("factors")
            self._vectors[user] = factors.flatten().to_numpy().astype(np.float64)
        return self._vectors[user]


def truncated(log: EventLog, row: int) -> EventLog:
    """The log as if what comes from `row` on were of other items: what a contender that does not peek cannot tell."""
    item = log.item.copy()
    item[row:] = np.random.default_rng(0).permutation(item[row:])[::-1]
    return EventLog(log.user_ids, log.user, log.time, log.event, item, log.type, log.value)
