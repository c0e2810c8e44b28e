"""Histories to factors and lists in one pass: DataFrame in, DataFrame out."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark.sql import DataFrame

from foldin.histories import items_of
from foldin.kernels import Histories, fold_in, top_n
from foldin.registry import Model
from foldin.schemas import FOLDED, Position
from foldin.shipping import ShippedModel

__all__ = ["Stamps", "fold", "fold_batch"]


@dataclass(frozen=True)
class Stamps:
    """What every row of one fold carries: the model, the position of `events` that it includes, the writer's clock."""

    model_version: str
    position: Position
    folded_at: dt.datetime

    def columns(self, rows: int) -> list[pa.Array]:
        """The last columns of FOLDED, each (rows,)."""
        values = (
            pa.scalar(self.model_version),
            pa.scalar(self.position.version, pa.int64()),
            pa.scalar(self.position.index, pa.int64()),
            pa.scalar(self.folded_at, pa.timestamp("us", tz="UTC")),
        )
        return [pa.repeat(value, rows) for value in values]


def fold(histories: DataFrame, model: ShippedModel, n: int, position: Position) -> DataFrame:
    """Factors and top-N of every user of `histories` (user_id, history, seen) under one model: rows of FOLDED.

    Both come from one pass because the batch of a stateful query is recomputed for every action on it. With n = 0
    only factors are made, and lists are empty. The stamps are made by the workers too: as literals of the plan, which
    differ from batch to batch, they would have Spark compile the code of every batch anew.
    """
    stamps = Stamps(model.version, position, dt.datetime.now(dt.UTC))
    return histories.select("user_id", "history", "seen").mapInArrow(_folder(model, n, stamps), FOLDED)


def _folder(
    model: ShippedModel, n: int, stamps: Stamps
) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    def convert(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            yield fold_batch(batch, model.value(), n, stamps)

    return convert


def fold_batch(batch: pa.RecordBatch, model: Model, n: int, stamps: Stamps) -> pa.RecordBatch:
    """One Arrow batch of (user_id, history, seen) to one of FOLDED."""
    users = batch.column("user_id")
    found = items_of(batch.column("history"), model.definition, model.as_of_us)
    indptr = np.searchsorted(found.user, np.arange(len(users) + 1))
    histories = Histories(indptr, model.index_of(found.item), found.strength)
    factors = fold_in(model.items, histories, user_ids=users)
    source = np.full(len(users), "als", dtype=object)
    # A zero vector scores every item 0: such users get the most popular items that they have not seen.
    zero = np.flatnonzero(~factors.any(axis=1))
    source[zero] = "popularity"
    indices, scores = _best(batch, model, factors, zero, n) if n else _nothing(len(users))
    return pa.RecordBatch.from_arrays(
        [
            users,
            _lists(pa.array(factors.ravel()), np.full(len(users), factors.shape[1])),
            pa.array(found.events),
            _ranked(model, indices, scores),
            pa.array(source, pa.string()),
            *stamps.columns(len(users)),
        ],
        names=FOLDED.names,
    )


_Ranking = tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]


def _nothing(users: int) -> _Ranking:
    return np.empty((users, 0), np.int32), np.empty((users, 0), np.float32)


def _best(
    batch: pa.RecordBatch, model: Model, factors: npt.NDArray[np.float32], zero: npt.NDArray[np.intp], n: int
) -> _Ranking:
    """The n best unseen items of every user, (n_users, n) rows of the model and scores; by popularity for `zero`."""
    seen = batch.column("seen")
    seen_indptr = np.concatenate(([0], np.cumsum(seen.value_lengths().fill_null(0).to_numpy())))
    seen_items = model.index_of(seen.flatten().to_numpy())
    top = top_n(model.items, factors, n, seen=(seen_indptr, seen_items))
    indices, scores = top.indices.copy(), top.scores.copy()
    if zero.size:
        lengths = np.diff(seen_indptr)[zero]
        of_zero = np.repeat(seen_indptr[zero], lengths) + _ranges(lengths)
        ones = np.ones((zero.size, 1), dtype=np.float32)
        seen_of_zero = (np.concatenate(([0], np.cumsum(lengths))), seen_items[of_zero])
        popular = top_n(model.popular, ones, n, seen=seen_of_zero)
        indices[zero], scores[zero] = popular.indices, popular.scores
    return indices, scores


def _ranked(model: Model, indices: npt.NDArray[np.int32], scores: npt.NDArray[np.float32]) -> pa.ListArray:
    """(n_users, n) item rows, -1 for none, as a list of (item_id, score) a user."""
    filled = indices >= 0
    pairs = pa.StructArray.from_arrays(
        [model.item_ids.take(pa.array(indices[filled])), pa.array(scores[filled])], names=["item_id", "score"]
    )
    return _lists(pairs, filled.sum(axis=1))


def _lists(values: pa.Array, lengths: npt.NDArray[np.int64]) -> pa.ListArray:
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), values)


def _ranges(lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """0..l-1 for every l of `lengths`, one after the other."""
    starts = np.cumsum(lengths) - lengths
    return np.arange(lengths.sum()) - np.repeat(starts, lengths)
