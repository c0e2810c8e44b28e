"""Folded users to the tables: what training, the stream and the batch job write, written in one place."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from foldin.folding import fold
from foldin.histories import histories, slim
from foldin.registry import Model, Promotion, Registry
from foldin.schemas import EVENTS, RECOMMENDATIONS, USER_FACTORS, Position
from foldin.shipping import ShippedModel
from foldin.tables import Tables, Transaction, position_columns

__all__ = ["Publisher"]

log = logging.getLogger("foldin.publish")


@dataclass
class Publisher:
    """Folds histories under one model at a time and appends factors and lists with the position they include."""

    tables: Tables
    top_n: int
    registry: Registry = field(init=False)
    _model: Model | None = None
    _shipped: ShippedModel | None = None

    def __post_init__(self) -> None:
        self.registry = Registry(self.tables)

    def model(self, model_version: str) -> Model:
        """The model, loaded and on its way to the workers; the one before it is given up."""
        if self._model is None or self._model.version != model_version:
            self.use(self.registry.load(model_version))
        assert self._model is not None
        return self._model

    def use(self, model: Model) -> None:
        """Ship a model that is at hand already, in place of the one shipped before."""
        if self._shipped is not None:
            self._shipped.unpersist()
        self._model, self._shipped = model, ShippedModel.ship(self.tables.spark.sparkContext, model)

    def folded(self, users: DataFrame, model_version: str, position: Position) -> DataFrame:
        """`users` (user_id, history, seen) folded, with the stamps that both tables share."""
        self.model(model_version)
        assert self._shipped is not None
        rows = fold(users, self._shipped, self.top_n)
        rows = position_columns(rows.withColumn("model_version", F.lit(model_version)), position)
        return rows.withColumn("folded_at", F.current_timestamp())

    def publish(
        self, users: DataFrame, model_version: str, position: Position, transaction: Transaction | None = None
    ) -> int:
        """Fold `users` under a version and append their factors, then their lists; the number of users."""
        rows = self.folded(users, model_version, position).persist()
        try:
            count = rows.count()
            if count:
                self.tables.append(rows, USER_FACTORS, transaction)
                self.tables.append(rows, RECOMMENDATIONS, transaction)
        finally:
            rows.unpersist()
        return count

    def histories_at(self, model: Model, version: int, users: DataFrame | None = None) -> DataFrame:
        """The histories of all users (or of `users`: user_id) as of a Delta version of `events`."""
        events = self.tables.read(EVENTS, version=version)
        if users is not None:
            events = events.join(users, "user_id", "left_semi")
        return histories(slim(events, model.definition.types), model.definition.max_events)

    def catch_up(
        self, model_version: str, since: Position, until: Position, transaction: Transaction | None = None
    ) -> int:
        """Refold every user with an event after `since`, on all events up to `until`; the number of users."""
        touched = self.tables.appended(EVENTS, since.version, until.last_version).select("user_id").distinct()
        model = self.model(model_version)
        users = self.histories_at(model, until.last_version, touched)
        return self.publish(users, model_version, until, transaction)

    def activate(self, model_version: str, *, reason: str) -> Promotion:
        """Without a stream: refold who has events after the training cut, then make the version active.

        Raises:
            PromotionConflictError: another promotion came first.
        """
        expected = self.registry.promotion()
        until = Position.after(self.tables.version(EVENTS))
        count = self.catch_up(model_version, self.model(model_version).cut, until)
        log.info("caught up to %s: %d users refolded", until, count)
        return self.registry.promote(model_version, until, reason=reason, expected=expected)
