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
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import astuple, dataclass, field
from types import TracebackType

from foldin.checkpoints import Checkpoint
from foldin.commits import Attempt
from foldin.config import Config
from foldin.errors import FoldinError, MissingModelError, RejectedModelError, StateMismatchError, reason_of
from foldin.leases import holder_of
from foldin.publishing import Publisher, stream_runs
from foldin.registry import Model, Promotion, PromotionConflictError, State
from foldin.schemas import EVENTS, Position
from foldin.tables import Tables
from foldin.trimming import Hold

__all__ = ["Adopted", "Adopter", "bring_into_force", "last_adopted"]

log = logging.getLogger("foldin.adopt")

_FILE = "adopted"
_TICK = 0.5  # seconds between two looks at `models`: each is one look at a file name
_LONGEST = 60.0  # between two attempts that fail: each may refold many users


@dataclass(frozen=True)
class Adopted:
    """The version under which every user is folded, and up to which position of `events`."""

    model_version: str
    position: Position


def last_adopted(checkpoint: Checkpoint) -> Adopted | None:
    """What the stream of this checkpoint brought into force last, outside its batches."""
    data = checkpoint.read_object(_FILE)
    return Adopted(data["model_version"], Position(*data["position"])) if data is not None else None


def bring_into_force(
    tables: Tables, config: Config, model_version: str, *, reason: str, wait: float = 0.0, newer: bool = False
) -> bool:
    """Promote a version, or have the running stream do so; True once it is in force, also if it was before.

    Args:
        wait: seconds to wait for the stream; it goes on beyond them.
        newer: refuse a version that has seen less of `events` than the one in force or asked for: of two trainings at
            once, the one that began first may end last.

    Raises:
        RejectedModelError: a newer version is in force, or asked for.
        FoldinError: the stream refused it (the message says why).
        MissingModelError: there is no such version, or it is retired.
        PromotionConflictError: somebody else promoted, asked or retired at the same moment; `models` says so too.
    """
    publisher = Publisher(tables, config.recommend.top_n)
    try:
        return _bring_into_force(publisher, model_version, reason=reason, wait=wait, newer=newer)
    except PromotionConflictError as error:
        now = publisher.registry.read()
        active = now.promotion.model_version if now.promotion is not None else None
        if model_version not in (active, now.asked):  # else somebody else wants the same, and has it
            with suppress(PromotionConflictError):
                publisher.registry.refuse(model_version, reason=str(error), expected=now)
        raise


def _bring_into_force(publisher: Publisher, model_version: str, *, reason: str, wait: float, newer: bool) -> bool:
    tables, registry = publisher.tables, publisher.registry
    checkpoint = Checkpoint(tables.spark, tables.path("_checkpoints", "fold_in"))
    before = registry.read()
    active = before.promotion
    if active is not None and active.model_version == model_version and before.asked is None:
        return True
    if newer and (other := registry.newer_than(model_version, before)) is not None:
        why = f"it is older than {other}, which is {'asked for' if other == before.asked else 'active'}"
        registry.refuse(model_version, reason=why, expected=before)
        raise RejectedModelError(f"model {model_version} stays a candidate: {why}")
    if not stream_runs(tables):
        publisher.activate(model_version, reason=reason, expected=before)
        return True
    if before.asked != model_version:
        request = registry.ask_for(model_version, reason=reason, expected=before)
        log.info("asked the stream (%s) to adopt model %s", holder_of(checkpoint), model_version)
    else:  # by somebody whose patience was over: waited for again
        request = active.sequence + 1 if active is not None else 0
    deadline = time.monotonic() + wait
    while (state := registry.state()).asked == model_version:
        if time.monotonic() > deadline:
            return False
        if not stream_runs(tables):  # it has ended without a look at the request
            publisher.activate(model_version, reason=reason, expected=state)
            return True
        time.sleep(_TICK)
    promotion = registry.promotion(model_version)
    if promotion is None or promotion.sequence < request:
        raise FoldinError(f"model {model_version} was not adopted: {registry.why_not(model_version)}")
    return True


@dataclass
class Adopter:
    """Beside a running fold-in query: adopts what is asked for and what others promoted (`with`).

    Attributes:
        publisher: its own, with a model of its own: the query's batches go on under theirs.
        fits: raises StateMismatchError for a model that the query's state cannot serve.
        batches: held by a micro-batch while it runs, and by an adoption for its last step.
        reached: the position that the query's batches have come to; None while the state is not whole, or what a batch
            has published is not committed.
        settled: the version under which they published last.
    """

    publisher: Publisher
    checkpoint: Checkpoint
    fits: Callable[[Model], None]
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
        self._end()

    def finish(self, *, adopt: bool) -> None:
        """The last look of a query that ends in order: at what others have promoted and, if so told, at requests."""
        self._end()
        self._look(adopt=adopt)

    def _end(self) -> None:
        self._ended.set()
        self._thread.join()

    def _keep_looking(self) -> None:
        while not self._ended.wait(min(_TICK * 2**self.failures, _LONGEST)):
            try:
                self._look(adopt=True)
            except Exception as error:  # the stream goes on under the model that it has; a later look tries again
                self.failures += 1
                if self.failures == 1:
                    log.warning("cannot adopt a model now, will try again: %s", reason_of(error))
                log.debug("adoption", exc_info=True)
            else:
                self.failures = 0

    def _look(self, *, adopt: bool) -> None:
        """Adopt what is to be adopted by now. Only one thread at a time looks: ours, and after its end `finish`."""
        if self.reached is None:
            return
        state = self.publisher.registry.state()
        try:
            if state.asked is not None and adopt:
                self._adopt(state.asked, state)
            elif state.promotion is not None and state.promotion.model_version != self.settled:
                self._settle(state.promotion)
        except PromotionConflictError as error:
            log.info("%s; looking again", error)

    def _adopt(self, model_version: str, before: State) -> None:
        registry, started = self.publisher.registry, time.monotonic()
        try:
            model = self.publisher.model(model_version)
            self.fits(model)
        except (MissingModelError, StateMismatchError) as error:
            log.warning("model %s is refused: %s", model_version, error)
            registry.refuse(model_version, reason=str(error), expected=before)
            return
        so_far = self.reached
        assert so_far is not None
        # The first pass may take long, and the second must find what came meanwhile.
        with Hold(self.publisher.tables, f"adopt-{secrets.token_hex(3)}", EVENTS, so_far.version):
            users = self._refold(model_version, model.cut, so_far)
            with self.batches:
                if self.reached is None or (self._ended.is_set() and self._thread is threading.current_thread()):
                    return  # a batch has failed, or the query is to end: the request stands for the next start
                users += self._rest(model_version, so_far)
                registry.promote(model_version, self.reached, reason="adopted by the stream", expected=before)
                self._done(model_version)
        seconds = time.monotonic() - started
        log.info("model %s adopted: %s users refolded, %.1f s", model_version, f"{users:,}", seconds)

    def _settle(self, promotion: Promotion) -> None:
        """Somebody else has promoted: what this query folded meanwhile, it folded under the version before."""
        with self.batches:
            if self.reached is None or self.settled == promotion.model_version:
                return  # a batch has failed, or was faster
            users = self._rest(promotion.model_version, promotion.caught_up)
            self._done(promotion.model_version)
        log.info("model %s has become active: %s users refolded", promotion.model_version, f"{users:,}")

    def _rest(self, model_version: str, since: Position) -> int:
        assert self.reached is not None
        return self._refold(model_version, since, self.reached) if since < self.reached else 0

    def _refold(self, model_version: str, since: Position, until: Position) -> int:
        """What a process that was killed on the way to a promotion has published is not published again."""
        work = {"foldin-adopt": model_version, "since": astuple(since), "until": astuple(until)}
        attempt = Attempt.at(work, self.publisher.tables, self.publisher.written)
        return self.publisher.catch_up(model_version, since, until, attempt)

    def _done(self, model_version: str) -> None:
        assert self.reached is not None
        done = {"model_version": model_version, "position": astuple(self.reached)}
        self.checkpoint.write(_FILE, json.dumps(done))
        self.settled = model_version
