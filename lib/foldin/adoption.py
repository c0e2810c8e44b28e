"""How a model comes into force while events keep arriving.

Whoever folds users promotes. A running stream holds a lease; others ask it, by a row in `models`, to adopt a version.
It refolds every user with an event after the training cut beside its batches, does the rest with its batches held
back, and promotes with the position of `events` that it has come to: so no event is missing from the active factors.
When somebody else has promoted (there was no stream when they looked), it refolds what lies between the position
they caught up to and its own, also when no event arrives. Without a stream the same is done in batch.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from dataclasses import dataclass, field
from types import TracebackType

from foldin.checkpoints import Checkpoint
from foldin.config import Config
from foldin.errors import FoldinError, MissingModelError, RejectedModelError, reason_of
from foldin.leases import holder_of
from foldin.publishing import Publisher
from foldin.registry import Promotion, PromotionConflictError, State
from foldin.schemas import Position
from foldin.tables import Tables

__all__ = ["Adopted", "Adopter", "bring_into_force", "last_adopted"]

log = logging.getLogger("foldin.adopt")

_FILE = "adopted"
_TICK = 0.5  # seconds between two looks at `models`: each is one look at a file name


@dataclass(frozen=True)
class Adopted:
    """The version under which every user is folded, and up to which position of `events`."""

    model_version: str
    position: Position


def last_adopted(checkpoint: Checkpoint) -> Adopted | None:
    """What the stream of this checkpoint brought into force last, outside its batches."""
    text = checkpoint.read(_FILE)
    if text is None:
        return None
    data = checkpoint.parsed(_FILE, text)
    return Adopted(data["model_version"], Position(*data["position"]))


def bring_into_force(
    tables: Tables, config: Config, model_version: str, *, reason: str, wait: float = 0.0, newer: bool = False
) -> bool:
    """Promote a version, or have the running stream do so; True once it is in force.

    Args:
        wait: seconds to wait for the stream; it goes on beyond them.
        newer: refuse a version that has seen less of `events` than the one in force: of two trainings at once, the one
            that began first may end last.

    Raises:
        RejectedModelError: the version is older than the one in force, and must not be.
        FoldinError: the stream refused it (the message says why).
        MissingModelError: there is no such version, or it is retired.
        PromotionConflictError: somebody else promoted, asked or retired at the same moment.
    """
    publisher = Publisher(tables, config.recommend.top_n)
    before = publisher.registry.read()
    if newer and publisher.registry.is_older(model_version, before):
        assert before.promotion is not None
        why = f"it is older than {before.promotion.model_version}, which is active"
        publisher.registry.refuse(model_version, reason=why, expected=before)
        raise RejectedModelError(f"model {model_version} stays a candidate: {why}")
    holder = holder_of(Checkpoint(tables.spark, tables.path("_checkpoints", "fold_in")))
    if holder is None or not holder.remaining():
        publisher.activate(model_version, reason=reason, expected=before)
        return True
    publisher.registry.ask_for(model_version, reason=reason, expected=before)
    log.info("asked the stream (%s) to adopt model %s", holder, model_version)
    deadline = time.monotonic() + wait
    while publisher.registry.state().asked == model_version:
        if time.monotonic() > deadline:
            return False
        time.sleep(_TICK)
    promotion = publisher.registry.current()
    if promotion is None or promotion.model_version != model_version:
        raise FoldinError(f"model {model_version} was not adopted: {publisher.registry.why_not(model_version)}")
    return True


@dataclass
class Adopter:
    """Beside a running fold-in query: adopts what is asked for and what others promoted (`with`).

    Attributes:
        batches: held by a micro-batch while it runs, and by an adoption for its last step.
        reached: the position that the query's batches have come to; None while the state is not whole.
        settled: the version under which they published last.
    """

    publisher: Publisher
    checkpoint: Checkpoint
    batches: threading.Lock
    reached: Position | None = None
    settled: str | None = None
    failures: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_looking, name="adopt", daemon=True)

    def __enter__(self) -> Adopter:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()

    def _keep_looking(self) -> None:
        while not self._ended.wait(_TICK):
            try:
                self.look()
            except Exception as error:  # the stream goes on under the model that it has; the next look tries again
                self.failures += 1
                if self.failures == 1:
                    log.warning("cannot adopt a model now, will try again: %s", reason_of(error))
                log.debug("adoption", exc_info=True)
            else:
                self.failures = 0

    def look(self) -> None:
        """Adopt what is to be adopted by now."""
        if self.reached is None:
            return
        state = self.publisher.registry.state()
        if state.asked is not None:
            self._adopt(state.asked, state)
        elif state.promotion is not None and state.promotion.model_version != self.settled:
            self._settle(state.promotion)

    def _adopt(self, model_version: str, before: State) -> None:
        registry, started = self.publisher.registry, time.monotonic()
        try:
            cut = self.publisher.model(model_version).cut
        except MissingModelError as error:
            log.warning("model %s is refused: %s", model_version, error)
            registry.refuse(model_version, reason=str(error), expected=before)
            return
        assert self.reached is not None
        so_far = self.reached
        users = self.publisher.catch_up(model_version, cut, so_far)
        with self.batches:
            users += self._rest(model_version, so_far)
            try:
                registry.promote(model_version, self.reached, reason="adopted by the stream", expected=before)
            except PromotionConflictError as error:
                log.info("%s; looking again", error)
                return
            self._done(model_version)
        seconds = time.monotonic() - started
        log.info("model %s adopted: %s users refolded, %.1f s", model_version, f"{users:,}", seconds)

    def _settle(self, promotion: Promotion) -> None:
        """Somebody else has promoted: what this query folded meanwhile, it folded under the version before."""
        with self.batches:
            if self.settled == promotion.model_version:
                return  # a batch was faster
            users = self._rest(promotion.model_version, promotion.caught_up)
            self._done(promotion.model_version)
        log.info("model %s has become active: %s users refolded", promotion.model_version, f"{users:,}")

    def _rest(self, model_version: str, since: Position) -> int:
        assert self.reached is not None
        return self.publisher.catch_up(model_version, since, self.reached) if since < self.reached else 0

    def _done(self, model_version: str) -> None:
        assert self.reached is not None
        position = [self.reached.version, self.reached.index]
        self.checkpoint.write(_FILE, json.dumps({"model_version": model_version, "position": position}))
        self.settled = model_version
