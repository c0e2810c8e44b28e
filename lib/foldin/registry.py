"""The log of models: what was trained, which one serves, and how it is loaded for the kernels."""

from __future__ import annotations

import getpass
import uuid
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame, Row
from pyspark.sql import functions as F

from foldin.errors import FoldinError, MissingModelError
from foldin.histories import HistoryDefinition
from foldin.kernels import ItemFactors, Objective, prepare
from foldin.schemas import ITEM_FACTORS, MODELS, Position
from foldin.tables import Tables, Transaction

__all__ = ["Model", "Promotion", "PromotionConflictError", "Registry", "Standing", "State", "assemble"]

_PROMOTIONS = "foldin-promotions"


class PromotionConflictError(FoldinError):
    """Somebody else promoted a model at the same time; nothing was changed."""


@dataclass(frozen=True)
class Promotion:
    """A row of `models` that made a version active."""

    model_version: str
    sequence: int
    caught_up: Position
    """Users with events after the training cut and up to here were folded under this version."""


@dataclass(frozen=True)
class State:
    """Where `models` stands.

    Attributes:
        promotion: the one in force.
        asked: the version that the running stream was asked last to adopt, while it is neither refused nor overtaken.
        turn: the number of the last row in sequence (promotions, requests, refusals, retirements): whoever changes
            something takes the next.
    """

    promotion: Promotion | None
    asked: str | None
    turn: int

    def serves(self, model_version: str) -> bool:
        """Whether a version is in force, and no other one was asked for."""
        return self.promotion is not None and self.promotion.model_version == model_version and self.asked is None


@dataclass(frozen=True)
class Standing:
    """Where a version stands.

    Attributes:
        status: of its newest row: candidate, requested, refused, active (it is, or was), retired.
        cut_version: Delta version of `events` that its training read.
        sequence: number of its last promotion; None if it never served.
    """

    model_version: str
    status: str
    cut_version: int
    sequence: int | None


@dataclass(frozen=True)
class Model:
    """One version of the model, ready for the kernels and for shipping to workers.

    Attributes:
        items: prepared factors, (n_items, rank) float32; items in ascending order of hash.
        item_ids: (n_items,) ids, in the same order.
        item_hashes: (n_items,) int64 ascending, xxhash64(item_id).
        popularity: (n_items,) float32, users with a positive strength.
        definition: what a history is under this model.
        as_of_us: latest event_time of the training cut, microseconds since the epoch.
        cut: position of `events` that training read.
    """

    items: ItemFactors
    item_ids: pa.Array
    item_hashes: npt.NDArray[np.int64]
    popularity: npt.NDArray[np.float32]
    definition: HistoryDefinition
    as_of_us: int
    cut: Position

    @property
    def version(self) -> str:
        """Name of the model."""
        return self.items.model_version

    def index_of(self, hashes: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
        """Row of each item hash in the factors, -1 where the model does not know the item."""
        at = np.searchsorted(self.item_hashes, hashes)
        at[at == self.item_hashes.size] = 0
        known = self.item_hashes[at] == hashes if self.item_hashes.size else np.zeros(hashes.shape, bool)
        return np.where(known, at, -1).astype(np.int32)

    @cached_property
    def popular(self) -> ItemFactors:
        """Popularity as a model of rank 1, so that a list by popularity goes through the same top-N."""
        objective = Objective(reg_param=1.0)
        return prepare(self.popularity[:, None], objective, model_version=self.version)


@dataclass
class Registry:
    """Reads and appends `models`. Nothing in it is ever updated."""

    tables: Tables
    _seen: tuple[int, State] | None = None

    def state(self) -> State:
        """Where `models` stands, at the price of one look at a file name while it has not changed.

        A micro-batch asks every time; a query over the table would cost it a tenth of its seconds.
        """
        if self._seen is None or self.tables.has_version(MODELS, self._seen[0] + 1):
            version = self.tables.version(MODELS)  # before the read: what is missed now is seen next time
            self._seen = (version, self.read())
        return self._seen[1]

    def current(self) -> Promotion | None:
        """The promotion in force, by `state`."""
        return self.state().promotion

    def read(self) -> State:
        """Where `models` stands now."""
        rows = self.tables.read(MODELS).where("sequence is not null").orderBy(F.desc("sequence")).collect()
        if not rows:
            return State(None, None, 0)
        active = next((row for row in rows if row["status"] == "active"), None)
        asked, refused = None, set()
        for row in rows:
            if row["status"] == "active":
                break
            if row["status"] == "refused":
                refused.add(row["model_version"])
            elif row["status"] == "requested" and row["model_version"] not in refused:
                asked = row["model_version"]
                break
        return State(_promotion(active) if active is not None else None, asked, rows[0]["sequence"])

    def candidate(self, row: dict[str, Any]) -> None:
        """Append a newly trained model as a candidate; `row` holds the columns of MODELS that training knows."""
        self._append({"status": "candidate", **row})

    def promotion(self, model_version: str | None = None) -> Promotion | None:
        """The promotion in force: the one with the largest sequence (of that version, if one is named)."""
        rows = self.tables.read(MODELS).where("status = 'active'")
        if model_version is not None:
            rows = rows.where(F.col("model_version") == model_version)
        row = rows.orderBy(F.desc("sequence")).first()
        return _promotion(row) if row is not None else None

    def promote(self, model_version: str, caught_up: Position, *, reason: str, expected: State) -> Promotion:
        """Make a version active, if `models` still stands as `expected` (compare and set).

        Raises:
            PromotionConflictError: somebody else promoted, asked or retired first.
        """
        row = {
            "model_version": model_version,
            "status": "active",
            "reason": reason,
            "caught_up_version": caught_up.version,
            "caught_up_index": caught_up.index,
        }
        return Promotion(model_version, self._take_turn(row, expected), caught_up)

    def active_version(self) -> str:
        """The version that readers see.

        Raises:
            MissingModelError: no model was ever activated.
        """
        promotion = self.promotion()
        if promotion is None:
            raise MissingModelError("no model is active; run the train job first")
        return promotion.model_version

    def standing(self) -> list[Standing]:
        """Every version, in the order in which they were trained."""
        rows = self.tables.read(MODELS).orderBy("at").collect()
        found: dict[str, Standing] = {}
        for row in rows:
            before = found.get(row["model_version"], Standing(row["model_version"], row["status"], -1, None))
            status = before.status if before.status == "retired" else row["status"]
            cut = row["cut_version"] if row["cut_version"] is not None else before.cut_version
            sequence = row["sequence"] if row["status"] == "active" else before.sequence
            found[row["model_version"]] = Standing(row["model_version"], status, cut, sequence)
        return list(found.values())

    def ask_for(self, model_version: str, *, reason: str, expected: State | None = None) -> int:
        """Ask whoever runs the stream to adopt a version, instead of one asked for before; the request's number.

        Args:
            expected: where `models` stood when this was decided; by default, where it stands now.

        Raises:
            MissingModelError: there is no such version, or it is retired.
            PromotionConflictError: somebody else asked, promoted or retired at the same moment.
        """
        expected = expected or self.read()
        self.row(model_version)
        return self._take_turn({"model_version": model_version, "status": "requested", "reason": reason}, expected)

    def newer_than(self, model_version: str, state: State) -> str | None:
        """The version in force, or asked for, if it was trained on a later cut of `events` than this one."""
        mine = self.row(model_version)["cut_version"]
        active = state.promotion.model_version if state.promotion is not None else None
        for other in (state.asked, active):
            if other is not None and self.row(other)["cut_version"] > mine:
                return other
        return None

    def refuse(self, model_version: str, *, reason: str, expected: State) -> None:
        """Say why a version does not come into force.

        Raises:
            PromotionConflictError: somebody else asked, promoted or retired at the same moment.
        """
        self._take_turn({"model_version": model_version, "status": "refused", "reason": reason}, expected)

    def why_not(self, model_version: str) -> str:
        """Why a version that was asked for is not in force."""
        rows = self.tables.read(MODELS).where("sequence is not null").orderBy(F.desc("sequence")).collect()
        for row in rows:
            if row["model_version"] == model_version:
                if row["status"] == "refused":
                    return str(row["reason"]).rpartition(" [")[0]
                break
        return f"{rows[0]['status']} {rows[0]['model_version']} came in between" if rows else "nobody asked for it"

    def retire(self, model_version: str, *, reason: str) -> None:
        """Say that a version's factors and lists are about to go; nobody can promote it from then on.

        Raises:
            PromotionConflictError: the version in force; or somebody else promoted or asked at the same moment.
        """
        expected = self.read()
        if expected.promotion is not None and expected.promotion.model_version == model_version:
            raise PromotionConflictError(f"model {model_version} is active: it cannot be retired")
        if expected.asked is not None:
            raise PromotionConflictError(f"model {expected.asked} is about to be adopted: nothing is retired meanwhile")
        self._take_turn({"model_version": model_version, "status": "retired", "reason": reason}, expected)

    def row(self, model_version: str) -> Row:
        """What training wrote down of a version.

        Raises:
            MissingModelError: there is no such version, or it is retired.
        """
        rows = self.tables.read(MODELS).where(F.col("model_version") == model_version).collect()
        if any(row["status"] == "retired" for row in rows):
            raise MissingModelError(f"model {model_version} is retired: its factors are gone")
        trained = [row for row in rows if row["rank"] is not None]
        if not trained:
            raise MissingModelError(f"there is no model {model_version!r}")
        return trained[0]

    def load(self, model_version: str, row: dict[str, Any] | None = None) -> Model:
        """The version's item factors, prepared; about 4 bytes * items * rank on the driver.

        Args:
            row: what `models` says of it, while training has not written that down yet.

        Raises:
            MissingModelError: there is no such version, or some of its item factors are not there.
        """
        row = row if row is not None else self.row(model_version).asDict()
        factors = self.tables.read(ITEM_FACTORS).where(F.col("model_version") == model_version)
        return assemble(factors, row | {"model_version": model_version})

    def _take_turn(self, row: dict[str, Any], expected: State) -> int:
        """Append `row` as the next in the sequence, if nothing that matters has come since `expected`; its number.

        A retirement of another version does not matter: a training is not to fail because maintenance tidies up.
        """
        done = {"active": "promoted"}.get(row["status"], row["status"])
        while not self._taken(row, expected.turn + 1):
            now = self.read()
            same = (now.promotion, now.asked) == (expected.promotion, expected.asked) and now.turn > expected.turn
            if not same or (row["status"] != "retired" and self.is_retired(row["model_version"])):
                raise PromotionConflictError(
                    f"model {row['model_version']} was not {done}: turn {expected.turn + 1} was taken by somebody else"
                )
            expected = now
        return expected.turn + 1

    def _taken(self, row: dict[str, Any], sequence: int) -> bool:
        """Whether `row` is the one that has the number, by now.

        Delta applies a transaction id at most once and lets two writers of the same id conflict, so of two that saw
        the same state one wins and the other is told.
        """
        token = uuid.uuid4().hex[:12]
        try:
            self._append(
                row | {"sequence": sequence, "reason": f"{row['reason']} [{token}]"}, Transaction(_PROMOTIONS, sequence)
            )
        except Exception as error:
            if "ConcurrentTransaction" in type(error).__name__ + str(error):
                return False
            raise
        taken = self.tables.read(MODELS).where(F.col("sequence") == sequence).first()
        return taken is not None and token in taken["reason"]

    def is_retired(self, model_version: str) -> bool:
        """Whether a version's factors and lists are gone, or about to go."""
        rows = self.tables.read(MODELS).where(
            (F.col("model_version") == model_version) & (F.col("status") == "retired")
        )
        return not rows.isEmpty()

    def _append(self, values: dict[str, Any], transaction: Transaction | None = None) -> None:
        row = dict.fromkeys(MODELS.schema.names) | {"by": getpass.getuser()} | values
        frame = self.tables.spark.createDataFrame([row], MODELS.schema)
        self.tables.append(frame.withColumn("at", F.current_timestamp()), MODELS, transaction)


def _promotion(row: Row) -> Promotion:
    return Promotion(row["model_version"], row["sequence"], Position(row["caught_up_version"], row["caught_up_index"]))


def assemble(item_rows: DataFrame, row: dict[str, Any]) -> Model:
    """A model of its rows of ITEM_FACTORS and what `models` says of it.

    Raises:
        MissingModelError: some of the item factors are not there.
    """
    rows = item_rows.select("item_id", "item_hash", "factors", "users").toArrow()
    factors = rows.sort_by("item_hash").combine_chunks()
    if factors.num_rows != row["items"]:
        raise MissingModelError(
            f"model {row['model_version']} has {row['items']} items, but {factors.num_rows} rows of item factors"
        )
    flat = pc.list_flatten(factors.column("factors")).to_numpy()
    objective = Objective(
        reg_param=row["reg_param"],
        alpha=row["alpha"],
        implicit_prefs=row["mode"] == "implicit",
        nonnegative=row["nonnegative"],
    )
    matrix = np.ascontiguousarray(flat.reshape(factors.num_rows, row["rank"]), dtype=np.float32)
    return Model(
        items=prepare(matrix, objective, model_version=row["model_version"]),
        item_ids=factors.column("item_id").combine_chunks(),
        item_hashes=factors.column("item_hash").to_numpy(),
        popularity=factors.column("users").to_numpy().astype(np.float32),
        definition=HistoryDefinition.from_json(row["history"]),
        as_of_us=row["as_of_us"],
        cut=Position.after(row["cut_version"]),
    )
