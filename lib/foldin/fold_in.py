"""The fold-in query: `events` to user factors and lists, a micro-batch at a time."""

from __future__ import annotations

import json
import logging
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from foldin.adoption import Adopter, last_adopted
from foldin.checkpoints import Checkpoint, Offset
from foldin.commits import Attempt, CommitLog
from foldin.compaction import Compactor
from foldin.config import Config, byte_count
from foldin.errors import StateMismatchError
from foldin.histories import histories, slim
from foldin.leases import Lease
from foldin.monitoring import Monitor, observe_arrival
from foldin.publishing import Publisher
from foldin.registry import Model
from foldin.schemas import EVENTS, METRICS, Position
from foldin.streaming import GracefulStop, run
from foldin.tables import Tables

__all__ = ["FoldIn"]

log = logging.getLogger("foldin.fold_in")

_PINS_KEPT = 200  # Spark keeps the last 100 batches' offsets; a pin must outlive them


@dataclass
class FoldIn:
    """One fold-in query. Histories are its state: a cache of `events`, rebuilt from them when it is lost."""

    tables: Tables
    config: Config
    users: int = field(default=0, init=False)
    """Users published by this run."""
    reached: Position | None = field(default=None, init=False)
    """Position of `events` that this run's last batch included."""

    def __post_init__(self) -> None:
        self.publisher = Publisher(self.tables, self.config.recommend.top_n if self.config.fold_in.lists else 0)
        self.checkpoint = Checkpoint(self.tables.spark, self.tables.path("_checkpoints", "fold_in"))
        self._batches = threading.Lock()
        self._logs = [CommitLog(self.tables, spec) for spec in self.publisher.written]

    def run(self, *, once: bool, stop: GracefulStop | None = None) -> int:
        """Fold everything that is there (`once`) or until a signal; the number of users published.

        Raises:
            LeaseError: another process runs this query.
            StateMismatchError: the checkpoint was born under other settings.
        """
        stop = stop or GracefulStop()
        with stop.at_signals(), Lease(self.checkpoint, self.config.fold_in.lease_seconds) as self._lease:
            self._run(once=once, stop=stop)
        return self.users

    def _run(self, *, once: bool, stop: GracefulStop) -> None:
        settings = self.config
        types = tuple(settings.events.weights)
        bound = settings.history.max_events_per_user
        lists = settings.fold_in.lists
        self.checkpoint.check_fingerprint(
            {
                "layout": 3,
                "max_events_per_user": bound,
                "event_types": list(types),
                "state_partitions": settings.fold_in.state_partitions,
                "seen_items": lists,
            },
            rebuild=self._rebuild,
        )
        events = self.tables.stream(
            EVENTS,
            maxFilesPerTrigger=settings.fold_in.max_files_per_trigger,
            maxBytesPerTrigger=byte_count(settings.fold_in.max_bytes_per_trigger),
        )
        events = observe_arrival(events, "ingested_at")
        with (
            Compactor(self.tables, (*self.publisher.written, METRICS), settings.tables) as compactor,
            Monitor(self.tables, settings, "fold_in", self.checkpoint, stop) as self.monitor,
            self._adopter() as self.adopter,
        ):
            run(
                histories(slim(events, types), bound, seen=lists).writeStream.outputMode("update"),
                self.monitor.around(compactor.after(self._process_alone)),
                checkpoint=self.checkpoint,
                name="fold_in",
                rebuild=self._rebuild,
                once=once,
                lease=self._lease,
                trigger_seconds=settings.fold_in.trigger_seconds,
                state_partitions=settings.fold_in.state_partitions,
                stop=stop,
                on_start=self.monitor.follow,
            )
            self.adopter.finish(adopt=once and not stop.asked)  # what became active while no event came

    @property
    def _rebuild(self) -> str:
        return f"delete {self.checkpoint.path} and start again: the state is rebuilt from events."

    def _adopter(self) -> Adopter:
        """Beside this query, from where its last batch that is done has left off."""
        adopter = Adopter(
            Publisher(self.tables, self.publisher.top_n), self.checkpoint, self._check_fits, self._batches
        )
        begun, done = self.checkpoint.newest("offsets"), self.checkpoint.newest("commits")
        offset = self.checkpoint.delta_offset(done)
        # What a batch that is to be replayed has published already, readers see: it is adopted when that is done.
        if offset is not None and not offset.in_snapshot and begun == done:
            adopted, pin = last_adopted(self.checkpoint), self._read_pin(done)
            adopter.reached = offset.position
            if adopted is not None and adopted.position >= offset.position:
                adopter.settled = adopted.model_version
            elif pin is not None:
                adopter.settled = pin["model_version"]
        return adopter

    def _process_alone(self, batch: DataFrame, batch_id: int) -> None:
        with self._batches:
            self.adopter.reached = None  # until it is done: after a failure nothing may be adopted
            self._process(batch, batch_id)

    def _process(self, batch: DataFrame, batch_id: int) -> None:
        started = time.monotonic()
        offset = self.checkpoint.delta_offset(batch_id)
        before = self.checkpoint.delta_offset(batch_id - 1)
        assert offset is not None  # Spark writes the offsets before it runs the batch
        version, attempt = self._pin(batch_id)
        if version is None or offset.in_snapshot:
            # No model yet, or histories are still partial: take the events into the state, publish nothing.
            batch.write.format("noop").mode("overwrite").save()
            self.reached = offset.position
            self.adopter.reached, self.adopter.settled = None if offset.in_snapshot else offset.position, None
            self.monitor.note(batch_id, published=False)
            log.info(
                "batch %d: events up to %s taken into the state, nothing to publish yet", batch_id, offset.position
            )
            return
        if self._must_catch_up(batch_id, before, version):
            batch.write.format("noop").mode("overwrite").save()
            rebuilt = before is None or before.in_snapshot
            since = self._published(version, rebuilt=rebuilt)
            users = self.publisher.catch_up(version, since, offset.position, attempt)
            kind = f"caught up from {since} under {version}"
        else:
            users = self.publisher.publish(batch, version, offset.position, attempt)
            rebuilt, kind = False, "folded"
        phases = self.publisher.phases
        self.monitor.note(batch_id, users=users, model_version=version, published=not rebuilt, phases=phases)
        self.users += users
        self.reached = self.adopter.reached = offset.position
        self.adopter.settled = version
        log.info(
            "batch %d: %s users %s, events up to %s, %.2f s",
            batch_id, f"{users:,}", kind, offset.position, time.monotonic() - started,
        )  # fmt: skip

    def _must_catch_up(self, batch_id: int, before: Offset | None, version: str) -> bool:
        """The state has just become whole, or another model has become active since the last batch."""
        if before is None or before.in_snapshot:
            return True
        adopted = last_adopted(self.checkpoint)
        if adopted is not None and adopted.model_version == version and adopted.position >= before.position:
            return False
        pin = self._read_pin(batch_id - 1)
        return pin is None or pin["model_version"] != version

    def _pin(self, batch_id: int) -> tuple[str | None, Attempt]:
        """The model version of a batch, fixed durably before its first write: a replay folds under the same one.

        A replay skips what the first attempt has written, so half of a batch under one model and the other half under
        the next would otherwise stand side by side. With the version stands where to look for those writes.
        """
        pin, first = self._read_pin(batch_id), False
        if pin is None:
            promotion = self.publisher.registry.current()
            if promotion is not None:  # a pin is for good: nothing that cannot be served is written there
                self._check_fits(self.publisher.model(promotion.model_version))
            since = {log.table: log.newest() for log in self._logs}
            pin, first = {"model_version": promotion.model_version if promotion else None, "since": since}, True
            self.checkpoint.write(_pin_file(batch_id), json.dumps(pin))
            if batch_id >= _PINS_KEPT:
                self.checkpoint.delete(_pin_file(batch_id - _PINS_KEPT))
        attempt = Attempt.at_batch(
            self.checkpoint.query_id(), batch_id, pin["since"], first=first, check=self._lease.check
        )
        return pin["model_version"], attempt

    def _read_pin(self, batch_id: int) -> dict[str, Any] | None:
        return self.checkpoint.read_object(_pin_file(batch_id))

    def _published(self, version: str, *, rebuilt: bool) -> Position:
        """Up to where every user's factors and list under this version are in the tables already."""
        promotion = self.publisher.registry.promotion(version)
        assert promotion is not None  # only an active version is pinned
        if not rebuilt:
            return promotion.caught_up
        reached = []
        for spec in self.publisher.written:
            rows = self.tables.read(spec).where(F.col("model_version") == version)
            row = rows.selectExpr("max(struct(events_version, events_index)) as position").first()
            reached.append(Position(*row["position"]) if row and row["position"] else promotion.caught_up)
        # After a crash one of the tables may be a batch ahead: the smaller one is what both include.
        return max(promotion.caught_up, min(reached))

    def _check_fits(self, model: Model) -> None:
        definition, version = model.definition, model.version
        mine = tuple(self.config.events.weights)
        if definition.max_events > self.config.history.max_events_per_user or definition.types != mine:
            raise StateMismatchError(
                f"model {version} was trained on histories of {definition.max_events} events of types "
                f"{list(definition.types)}; this state holds {self.config.history.max_events_per_user} "
                f"of {list(mine)}. Train and fold in with the same [events] and [history]."
            )


def _pin_file(batch_id: int) -> str:
    return f"pins/{batch_id}"
