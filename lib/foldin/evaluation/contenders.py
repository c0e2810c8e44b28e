"""Who takes part: each is told the past, and says what it would recommend.

Whatever needs a model folds users by `foldin.folding.fold_batch`, which is what the stream's workers run.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from foldin.evaluation.additive import AdditiveModel
from foldin.evaluation.log import EventLog, Past
from foldin.folding import Stamps, fold_batch
from foldin.kernels import Objective, prepare, top_n
from foldin.registry import Model
from foldin.schemas import Position

__all__ = ["Additive", "Contender", "Folded", "Lists", "ModelAt", "Popular", "fold_users"]

Codes = npt.NDArray[np.int32]
_EVERYTHING = Objective(reg_param=1.0)  # of a model of rank 1 that nobody is folded into
_USERS_AT_ONCE = 4096


@dataclass(frozen=True, eq=False)
class Lists:
    """What is recommended to some users."""

    items: Codes
    """(n_users, k) numbers of items in the log, best first, -1 for none."""
    by_popularity: npt.NDArray[np.bool_]
    """(n_users,) whether popularity made the list, because the user has no factors."""


@dataclass(frozen=True)
class ModelAt:
    """A model and how much of the log it was trained on: the events before `cut`."""

    model: Model
    cut: int


class Contender(Protocol):
    """Recommends from the past, then learns what happened."""

    name: str

    def recommend(self, past: Past, users: npt.NDArray[np.integer], k: int) -> Lists | None:
        """Lists for `users`, made of nothing but the past; None: not asked at this moment."""

    def learn(self, past: Past, end: int) -> None:
        """The events from `past.end` up to `end` have happened."""


def fold_users(model: Model, batch: pa.RecordBatch, k: int) -> pa.RecordBatch:
    """What the stream would publish for (user_id, history, seen): rows of FOLDED, whose stamps say nothing."""
    return fold_batch(batch, model, k, Stamps(model.version, Position(0), dt.datetime.fromtimestamp(0, dt.UTC)))


class Folded:
    """ALS: users are folded into a model, with their histories as they were at some moment.

    Args:
        model_at: the model that serves, by the past.
        horizon: up to which position of the log histories are known to it; none: up to the present.
        asked: whether the contender takes part at this moment.
    """

    def __init__(
        self,
        name: str,
        model_at: Callable[[Past], ModelAt],
        *,
        horizon: Callable[[Past, ModelAt], int] | None = None,
        asked: Callable[[Past], bool] = lambda _: True,
    ) -> None:
        self.name, self._model_at, self._horizon, self._asked = name, model_at, horizon, asked

    def recommend(self, past: Past, users: npt.NDArray[np.integer], k: int) -> Lists | None:
        """The lists of the stream (or of the night)."""
        if not self._asked(past):
            return None
        serving = self._model_at(past)
        until = None if self._horizon is None else self._horizon(past, serving)
        items = np.full((len(users), k), -1, dtype=np.int32)
        by_popularity = np.zeros(len(users), dtype=bool)
        for first in range(0, len(users), _USERS_AT_ONCE):
            part = slice(first, first + _USERS_AT_ONCE)
            folded = fold_users(serving.model, past.histories(users[part], until=until), k)
            items[part] = _numbers(folded.column("items"), past.log, k)
            by_popularity[part] = pc.equal(folded.column("source"), "popularity").to_numpy(zero_copy_only=False)
        return Lists(items, by_popularity)

    def learn(self, past: Past, end: int) -> None:
        """Nothing to do: a factor is a function of the history."""


def _numbers(lists: pa.ListArray, log: EventLog, k: int) -> Codes:
    """(n_users, k) numbers in the log of listed items."""
    found = np.full((len(lists), k), -1, dtype=np.int32)
    lengths = lists.value_lengths().to_numpy()
    filled = np.arange(k) < lengths[:, None]
    # An item of the model is one of the log: the model was trained on it.
    found[filled] = [log.number_of[item] for item in lists.flatten().field("item_id").to_pylist()]
    return found


class Popular:
    """The items that most events were about, of all time or of the last `window_us` microseconds.

    Args:
        log: what happens; only what is told by `learn` is counted.
        begin: events before this position have happened already.
    """

    def __init__(self, name: str, log: EventLog, begin: int, *, window_us: int | None = None) -> None:
        self.name, self._window, self._first = name, window_us, 0
        self._counts = np.zeros(log.n_items)
        self._count(log, 0, begin, 1)
        self._last = begin

    def recommend(self, past: Past, users: npt.NDArray[np.integer], k: int) -> Lists:
        """The same for everybody, but for what each has had."""
        log = past.log
        if self._window is not None and past.end:
            # The next request comes no earlier than the last event.
            first = log.position(int(log.time[past.end - 1]) - self._window)
            self._count(log, self._first, first, -1)
            self._first = max(self._first, first)
        bounds, seen = past.seen(users)
        # The production's top-N, over popularity as a model of rank 1: ties fall as they do there.
        items = prepare(self._counts[:, None], _EVERYTHING, model_version=self.name)
        nobody = np.flatnonzero(self._counts <= 0)
        ranked = top_n(items, np.ones((len(users), 1), np.float32), k, seen=(bounds, seen), deny=nobody)
        return Lists(ranked.indices, np.ones(len(users), dtype=bool))

    def learn(self, past: Past, end: int) -> None:
        """Count."""
        self._count(past.log, self._last, end, 1)
        self._last = end

    def _count(self, log: EventLog, begin: int, end: int, by: int) -> None:
        if begin < end:
            spoken_for = log.item[begin:end][log.speaks_for[begin:end]]
            self._counts += by * np.bincount(spoken_for, minlength=log.n_items)


class Additive:
    """Oryx 2's update of the start's model; see `foldin.evaluation.additive`."""

    name = "additive"

    def __init__(self, past: Past, start: ModelAt, *, batch: int = 20) -> None:
        log, model = past.log, start.model
        rank = model.items.rank
        items = np.zeros((log.n_items, rank), dtype=np.float32)
        known = model.index_of(log.item_hashes)
        items[known >= 0] = model.items.factors[known[known >= 0]]
        users = np.zeros((len(log.user_ids), rank), dtype=np.float32)
        here = np.unique(log.user[: start.cut])
        for first in range(0, len(here), _USERS_AT_ONCE):
            part = here[first : first + _USERS_AT_ONCE]
            folded = fold_users(model, past.histories(part, until=start.cut), 1)
            users[part] = folded.column("factors").flatten().to_numpy().reshape(len(part), rank)
        self._model = AdditiveModel(users, items)
        self._items = model.items
        self._fallback = Folded("popular", lambda _: start, horizon=lambda _, __: 0)
        for begin in range(start.cut, past.end, batch):  # an old model: what came since was added as it came
            self.learn(past.before(begin), min(begin + batch, past.end))

    def recommend(self, past: Past, users: npt.NDArray[np.integer], k: int) -> Lists:
        """By the moved factors; whoever has none gets what the model gives to a newcomer."""
        mine = self._model
        items = replace(self._items, factors=mine.items.astype(np.float32))
        without = np.flatnonzero(~mine.has_item)
        found = top_n(items, mine.users[users].astype(np.float32), k, seen=past.seen(users), deny=without)
        lists = found.indices.copy()
        new: npt.NDArray[np.bool_] = ~mine.has_user[users]
        if new.any():
            popular = self._fallback.recommend(past, users[new], k)
            assert popular is not None  # it is asked whenever it is called
            lists[new] = popular.items
        return Lists(lists, new)

    def learn(self, past: Past, end: int) -> None:
        """A batch's events of a user with an item count together, as in Oryx; in order of the first of them."""
        self._model.refresh()
        log, batch = past.log, slice(past.end, end)
        pairs = log.user[batch].astype(np.int64) * log.n_items + log.item[batch]
        distinct, first, inverse = np.unique(pairs, return_index=True, return_inverse=True)
        total = np.bincount(inverse, weights=log.weight[batch] * log.value[batch], minlength=len(distinct))
        if log.definition.transform == "log1p":
            total = np.sign(total) * np.log1p(np.abs(total))
        for at in np.argsort(first):
            user, item = divmod(int(distinct[at]), log.n_items)
            self._model.add(user, item, float(total[at]))
