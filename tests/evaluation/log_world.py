"""Small logs in memory, and contenders that anyone can check."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foldin.evaluation.contenders import Lists, ModelAt
from foldin.evaluation.log import EventLog, Past
from foldin.histories import HistoryDefinition
from foldin.kernels import Objective, prepare
from foldin.registry import Model
from foldin.schemas import Position

MINUTE = 60_000_000

PLAIN = HistoryDefinition(
    types=("purchase", "cancellation"),
    weights=(1.0, -1.0),
    max_events=3,
    half_life_days=float("inf"),
    retention_days=float("inf"),
    transform="identity",
    explicit=False,
)


def log_of(*rows: tuple[int, str, str] | tuple[int, str, str, str]) -> EventLog:
    """From (minute, user, item) or (minute, user, item, type), in order of time; users and items numbered by name."""
    users = sorted({row[1] for row in rows})
    items = sorted({row[2] for row in rows})
    kinds = [row[3] if len(row) == 4 else "purchase" for row in rows]
    return EventLog(
        time=np.array([row[0] for row in rows], dtype=np.int64) * MINUTE,
        event=np.arange(len(rows), dtype=np.int64),
        user=np.array([users.index(row[1]) for row in rows], dtype=np.int32),
        item=np.array([items.index(row[2]) for row in rows], dtype=np.int32),
        type=np.array([PLAIN.types.index(kind) for kind in kinds], dtype=np.int8),
        value=np.ones(len(rows)),
        user_ids=pa.array(users),
        item_ids=pa.array(items),
        item_hashes=100 + np.arange(len(items), dtype=np.int64),
        definition=PLAIN,
    )


def model_of(log: EventLog, cut: int, factors: dict[str, list[float]]) -> ModelAt:
    """A model that knows the items of `factors`."""
    names = log.item_ids.to_pylist()
    known = np.array([names.index(name) for name in factors])
    order = np.argsort(known)
    matrix = np.array(list(factors.values()), dtype=np.float32)[order]
    model = Model(
        items=prepare(matrix, Objective(reg_param=0.1, alpha=10.0), model_version="tiny"),
        item_ids=log.item_ids.take(pa.array(known[order])),
        item_hashes=log.item_hashes[known[order]],
        popularity=np.arange(len(known), 0, -1).astype(np.float32),
        definition=log.definition,
        as_of_us=int(log.time[cut - 1]),
        cut=Position(0),
    )
    return ModelAt(model, cut)


class Told:
    """Recommends by a function of the past and the user's name; notes the order in which it is asked and told."""

    def __init__(self, name: str, choose: Callable[[Past, str], list[str]]) -> None:
        self.name, self._choose = name, choose
        self.calls: list[tuple[str, int]] = []

    def recommend(self, past: Past, users: npt.NDArray[np.integer], k: int) -> Lists:
        self.calls.append(("asked", past.end))
        names = past.log.item_ids.to_pylist()
        items = np.full((len(users), k), -1, dtype=np.int32)
        for row, user in enumerate(users):
            chosen = [names.index(name) for name in self._choose(past, past.log.user_ids[int(user)].as_py())][:k]
            items[row, : len(chosen)] = chosen
        return Lists(items, np.zeros(len(users), dtype=bool))

    def learn(self, past: Past, end: int) -> None:
        self.calls.append(("told", end))
