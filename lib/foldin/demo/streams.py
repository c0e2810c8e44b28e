"""Ingest and fold-in running in one process, what lands for them, and a reader who looks on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from foldin.config import Config
from foldin.errors import FoldinError
from foldin.ledger import Account
from foldin.mapping import Mapping
from foldin.pipeline import Pipeline
from foldin.reading import UserRecommendations, recommendations_for
from foldin.schemas import EVENTS, Position
from foldin.streaming import GracefulStop
from foldin.tables import Tables

__all__ = ["Look", "Reader", "Streams"]

_DEADLINE = 300.0


class Streams:
    """The two running queries of an installation, and its landing folder."""

    def __init__(self, tables: Tables, config: Config, mapping: Mapping) -> None:
        self.tables = tables
        self.landing = Path(config.ingest.landing)
        self.landing.mkdir(parents=True, exist_ok=True)
        self._pipeline = Pipeline(tables, config, mapping)
        self.ingest, self.fold_in = self._pipeline.ingest, self._pipeline.fold_in
        self.landed = 0
        self._known = 0
        self._stop = GracefulStop()
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def land(self, *files: Path) -> int:
        """Move files into the landing folder, each by one rename; the rows in them."""
        rows = 0
        for file in files:
            rows += sum(1 for line in file.open(encoding="utf-8") if line.strip())
            file.rename(self.landing / f"{len(list(self.landing.iterdir())):04d}-{file.name}")
        self.landed += rows
        return rows

    def ingest_once(self) -> Account:
        """Ingest what has landed, without a running query; the account of it."""
        account = self.ingest.run(once=True)
        self._remember()
        return account

    def start(self) -> None:
        """Start both queries beside the caller."""
        self._stop = GracefulStop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Let both finish the batch under way.

        Raises:
            BaseException: what ended one of them before.
        """
        self._stop.ask()
        if self._thread is not None:
            self._thread.join(60)
        self._remember()
        self._raise_failure()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Both queries, until the block ends."""
        self.start()
        try:
            yield
        finally:
            self.stop()

    def settle(self) -> None:
        """Wait until all that has landed is ingested and folded in."""

        def settled() -> bool:
            if self._known + self.ingest.account.rows_in < self.landed:
                return False
            reached = self.fold_in.reached
            return reached is not None and reached >= Position.after(self.tables.version(EVENTS))

        self._wait(settled, "the stream to take in what has landed")

    def fresh_list(self, user_id: str, before: UserRecommendations) -> tuple[UserRecommendations, float]:
        """Poll as a reader would until the user's list is another one; the list and the seconds it took."""
        started = time.monotonic()
        found: list[UserRecommendations] = []

        def changed() -> bool:
            now = recommendations_for(self.tables, user_id)
            if now.items != before.items and now.source == "als":
                found.append(now)
            return bool(found)

        self._wait(changed, f"a fresh list of {user_id}")
        return found[0], time.monotonic() - started

    def _remember(self) -> None:
        """Add what the last run took in; the next one has an account of its own."""
        self._known += self.ingest.account.rows_in
        self.ingest.account = Account()

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + _DEADLINE
        while not condition():
            self._raise_failure()
            if time.monotonic() > deadline:
                raise FoldinError(f"waited {_DEADLINE:.0f} s for {what}")
            time.sleep(0.05)

    def _run(self) -> None:
        try:
            self._pipeline.run(once=False, stop=self._stop)
        except BaseException as error:
            self._failure = error

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure


@dataclass(frozen=True)
class Look:
    """What a reader saw, `at` seconds after the first look began, and how long the read took."""

    at: float
    seconds: float
    found: UserRecommendations


class Reader:
    """Reads one user's list over and over, as an application would, on a thread of its own (`with`).

    A read that fails is raised at the end of the block: somebody who reads must never notice that anything goes on.
    """

    def __init__(self, tables: Tables, user_id: str, *, pause: float = 0.1) -> None:
        self.looks: list[Look] = []
        self._tables, self._user, self._pause = tables, user_id, pause
        self._ended = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Reader:
        self._began = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join(60)
        if self._failure is not None and error is None:
            raise self._failure

    def versions(self) -> list[str]:
        """The models of the lists that were read, in order; one that came back stands twice."""
        seen = [look.found.model_version for look in self.looks]
        return [version for k, version in enumerate(seen) if k == 0 or seen[k - 1] != version]

    def _read(self) -> None:
        try:
            while not self._ended.is_set():
                asked = time.monotonic()
                found = recommendations_for(self._tables, self._user)
                self.looks.append(Look(asked - self._began, time.monotonic() - asked, found))
                self._ended.wait(self._pause)
        except BaseException as error:
            self._failure = error
