"""Folded users to the tables: what training, the stream and the batch job write, written in one place."""

from __future__ import annotations

import logging
import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from pyspark.sql import DataFrame

from foldin.checkpoints import Checkpoint
from foldin.commits import Attempt
from foldin.folding import fold
from foldin.histories import histories, slim
from foldin.leases import holder_of
from foldin.registry import Model, Promotion, Registry, State
from foldin.schemas import EVENTS, RECOMMENDATIONS, USER_FACTORS, Position, TableSpec
from foldin.shipping import ShippedModel
from foldin.tables import Tables, few_files
from foldin.trimming import Hold

__all__ = ["Publisher", "stream_runs"]

log = logging.getLogger("foldin.publish")


def stream_runs(tables: Tables) -> bool:
    """Whether a fold-in query is at work on these tables: its lease has not run out."""
    holder = holder_of(Checkpoint(tables.spark, tables.path("_checkpoints", "fold_in")))
    return holder is not None and bool(holder.remaining())


@dataclass
class Publisher:
    """Folds histories under one model at a time and appends factors and lists with the position they include."""

    tables: Tables
    top_n: int
    """Length of a list; 0: factors alone, no list is made or written."""
    registry: Registry = field(init=False)
    phases: dict[str, float] = field(default_factory=dict, init=False)
    """Seconds that the parts of the last `publish` took."""
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
        return fold(users, self._shipped, self.top_n, position)

    def publish(self, users: DataFrame, model_version: str, position: Position, attempt: Attempt | None = None) -> int:
        """Fold `users` under a version and append their factors and, unless they are off, lists; the number of users.

        Args:
            attempt: the micro-batch that this belongs to; what an earlier attempt has written is not written again,
                table by table, so it does not matter where a crash came.
        """
        started = time.monotonic()
        rows = self.folded(users, model_version, position)
        if not self.top_n and attempt is not None:
            count = self._append_factors(rows, attempt)
            self.phases = {"fold_and_write": time.monotonic() - started}
            return count
        rows = rows.persist()
        try:
            # One action computes the batch, whatever is there already: a stream's state is committed by it.
            count = rows.count()
            folded = time.monotonic()
            if count:
                merged = few_files(rows, count)
                append = self.tables.append if attempt is None else partial(attempt.append, self.tables)
                # The two tables are written at the same time: a Delta commit is mostly waiting.
                with ThreadPoolExecutor(len(self.written)) as pool:
                    for write in [pool.submit(append, merged, spec) for spec in self.written]:
                        write.result()
        finally:
            rows.unpersist()
        self.phases = {"fold": folded - started, "write": time.monotonic() - folded}
        return count

    def _append_factors(self, rows: DataFrame, attempt: Attempt) -> int:
        """Factors alone need no cache: the append itself is the one action that computes the batch.

        So the lease is asked before that: who stands still while it computes, for longer than the lease's term, and is
        overtaken, appends the same rows once more.
        """
        if attempt.committed(self.tables, USER_FACTORS) is not None:
            return rows.count()  # a batch that nothing computes leaves no state behind
        attempt.check()
        self.tables.append(rows, USER_FACTORS, metadata=attempt.label)
        commit = attempt.made(self.tables, USER_FACTORS)
        return commit.rows if commit is not None else 0  # of no rows Delta makes no commit

    @property
    def written(self) -> tuple[TableSpec, ...]:
        """The tables that `publish` appends to."""
        return (USER_FACTORS, RECOMMENDATIONS) if self.top_n else (USER_FACTORS,)

    def histories_at(self, model: Model, version: int, users: DataFrame | None = None) -> DataFrame:
        """The histories of all users (or of `users`: user_id) as of a Delta version of `events`."""
        events = self.tables.read(EVENTS, version=version)
        if users is not None:
            events = events.join(users, "user_id", "left_semi")
        return histories(slim(events, model.definition.types), model.definition.max_events)

    def catch_up(self, model_version: str, since: Position, until: Position, attempt: Attempt | None = None) -> int:
        """Refold every user with an event after `since`, on all events up to `until`; the number of users."""
        touched = None
        if since.version > until.last_version or self.tables.has_version(EVENTS, since.version):
            touched = self.tables.appended(EVENTS, since.version, until.last_version).select("user_id").distinct()
        else:
            log.info("the log of events no longer has version %d: refolding every user", since.version)
        users = self.histories_at(self.model(model_version), until.last_version, touched)
        return self.publish(users, model_version, until, attempt)

    def activate(self, model_version: str, *, reason: str, expected: State | None = None) -> Promotion:
        """Without a stream: refold who has events after the training cut, then make the version active.

        Args:
            expected: where `models` stood when this was decided; by default, where it stands now.

        Raises:
            PromotionConflictError: another promotion came first.
        """
        expected = expected or self.registry.read()
        version = self.tables.version(EVENTS)
        until = Position.after(version)
        with Hold(self.tables, f"activate-{secrets.token_hex(3)}", EVENTS, version):
            count = self.catch_up(model_version, self.model(model_version).cut, until)
            log.info("caught up to %s: %d users refolded", until, count)
            promotion = self.registry.promote(model_version, until, reason=reason, expected=expected)
            now = Position.after(self.tables.version(EVENTS))
            if until < now and not stream_runs(self.tables):
                # A stream that ran meanwhile and has ended folded these under the version before; one that still
                # runs finds the promotion and does this itself.
                self.catch_up(model_version, until, now)
        return promotion
