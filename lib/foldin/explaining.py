"""Why a user is recommended an item: the score as an exact sum over the user's own events."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pyspark.sql import functions as F

from foldin import kernels
from foldin.errors import UnknownItemError
from foldin.histories import items_of
from foldin.kernels import Explanation
from foldin.publishing import Publisher
from foldin.reading import recommendations_for
from foldin.registry import Model
from foldin.schemas import EVENTS
from foldin.tables import Tables

__all__ = ["ItemReasons", "UnknownItemError", "explain", "explain_list"]


@dataclass(frozen=True, eq=False)
class ItemReasons:
    """One item of a user's list and what in the user's history speaks for it."""

    item_id: str
    explanation: Explanation
    names: tuple[str | None, ...]
    """(n,) item ids of the history's rows; None for those that the model does not know."""

    def contributions(self) -> dict[str, float]:
        """Score contributed by each item of the history; their sum is the score."""
        total: dict[str, float] = {}
        for name, amount in zip(self.names, self.explanation.contributions.tolist(), strict=True):
            if name is not None:
                total[name] = total.get(name, 0.0) + amount
        return total

    def __str__(self) -> str:
        by_index = dict(zip(self.explanation.indices.tolist(), self.names, strict=True))
        return f"{self.item_id}: {self.explanation.readable(lambda index: str(by_index[index]), verb='chose')}"


def explain(tables: Tables, user_id: str, item_id: str) -> ItemReasons:
    """The contributions of the user's events, as they stand now, to the active model's score of one item.

    Hu, Koren and Volinsky 2008, section 5. They sum to the score that fold-in gives the item.

    Raises:
        MissingModelError: no model is active.
        UnknownItemError: the active model does not know the item.
    """
    return _explain(tables, user_id, [item_id])[0]


def explain_list(tables: Tables, user_id: str, n: int = 10) -> list[ItemReasons]:
    """Reasons for each item of the user's newest list; none for a list by popularity, which has no reasons.

    Raises:
        MissingModelError: no model is active.
    """
    found = recommendations_for(tables, user_id, n)
    if found.source != "als":
        return []
    return _explain(tables, user_id, [item_id for item_id, _ in found.items])


def _explain(tables: Tables, user_id: str, item_ids: list[str]) -> list[ItemReasons]:
    publisher = Publisher(tables, len(item_ids))
    model = publisher.registry.load(publisher.registry.active_version())
    users = tables.spark.createDataFrame([(user_id,)], "user_id string")
    histories = publisher.histories_at(model, tables.version(EVENTS), users).select("history").toArrow()
    hashes = tables.spark.createDataFrame([(i,) for i in item_ids], "item_id string")
    at = model.index_of(np.array([row[0] for row in hashes.select(F.xxhash64("item_id")).collect()], dtype=np.int64))
    if (at < 0).any():
        unknown = item_ids[int(np.argmax(at < 0))]
        raise UnknownItemError(f"model {model.version} has no factors of item {unknown!r}: it was not trained on it")
    found = items_of(histories.column("history").combine_chunks(), model.definition, model.as_of_us)
    indices = model.index_of(found.item)
    names = tuple(_name(model, int(index)) for index in indices)
    return [
        ItemReasons(item_id, kernels.explain(model.items, indices, found.strength, int(index)), names)
        for item_id, index in zip(item_ids, at, strict=True)
    ]


def _name(model: Model, index: int) -> str | None:
    return None if index < 0 else str(model.item_ids[index].as_py())
