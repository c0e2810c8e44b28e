"""Lists to a key-value store as a stream: a query over `recommendations` that keeps Redis as the tables are.

Rows of a model come before the model is active, and its row in `models` after all that it needs. So readers are pointed
to a model once the stream has read what `recommendations` held when the model was seen to be active; also when no row
comes any more, as after a way back to a model whose lists are all there.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from types import TracebackType

import pyarrow as pa
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from foldin.checkpoints import PUSHES, Checkpoint
from foldin.commits import CommitLog
from foldin.config import Config, byte_count
from foldin.errors import ConfigError, FoldinError, reason_of
from foldin.leases import Lease
from foldin.monitoring import Monitor, observe_arrival
from foldin.reading import popular_items
from foldin.redis_lists import LostListsError, RedisLists, Target, redis_failures
from foldin.registry import Promotion, Registry
from foldin.schemas import RECOMMENDATIONS, Position
from foldin.streaming import GracefulStop, run
from foldin.tables import Tables

__all__ = ["Push"]

log = logging.getLogger("foldin.push")

_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_TICK = 0.5  # seconds between two looks at `models`: each is one look at a file name
_LONGEST = 60.0  # between two looks that fail
_LISTS_A_CALL = 200  # a script keeps every other client of Redis waiting: these take about a millisecond
_PUSHED = "written bigint, older bigint, failure string"


@dataclass
class Push:
    """One query that pushes lists to one Redis.

    Attributes:
        name: of its checkpoint; several targets need one each.
        written: lists that this run has written.
    """

    tables: Tables
    config: Config
    target: Target
    name: str = "redis"
    written: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ConfigError(f"--name {self.name!r}: it must match {_NAME.pattern}")
        self.checkpoint = Checkpoint(self.tables.spark, self.tables.path("_checkpoints", PUSHES, self.name))

    @property
    def rebuild(self) -> str:
        """What a person does when Redis and the checkpoint do not fit any more."""
        return f"delete {self.checkpoint.path} and start again: all lists are pushed anew."

    def run(self, *, once: bool, stop: GracefulStop | None = None) -> int:
        """Push everything that is there (`once`) or until a signal; the number of lists written.

        Raises:
            ConfigError: Redis refuses the login.
            FoldinError: Redis does not answer, or fails.
            LeaseError: another process runs this query.
            StateMismatchError: Redis does not hold what this query has pushed before.
        """
        stop = stop or GracefulStop()
        with (
            stop.at_signals(),
            Lease(self.checkpoint, self.config.fold_in.lease_seconds) as lease,
            self.target.connect() as client,
        ):
            self._lists = RedisLists(client, self.target.prefix)
            self._run(lease, once=once, stop=stop)
        return self.written

    def _run(self, lease: Lease, *, once: bool, stop: GracefulStop) -> None:
        settings = self.config.fold_in
        rows = self.tables.stream(
            RECOMMENDATIONS,
            maxFilesPerTrigger=settings.max_files_per_trigger,
            maxBytesPerTrigger=byte_count(settings.max_bytes_per_trigger),
        )
        lists = observe_arrival(rows, "folded_at").select("model_version", "user_id", _as_json().alias("list"))
        query = f"{PUSHES}/{self.name}"
        with (
            Monitor(self.tables, self.config, query, self.checkpoint, stop, stamped=not once) as self._monitor,
            _Swaps(self.tables, self.config, self.checkpoint, self._lists, self.explained, stop) as self._swaps,
        ):
            run(
                lists.writeStream.outputMode("append"),
                self._monitor.around(self._process),
                checkpoint=self.checkpoint,
                name=query,
                rebuild=self.rebuild,
                once=once,
                lease=lease,
                trigger_seconds=settings.trigger_seconds,
                stop=stop,
                on_start=self._monitor.follow,
            )
            self._swaps.finish()

    def _process(self, batch: DataFrame, batch_id: int) -> None:
        started, query_id = time.monotonic(), self.checkpoint.query_id()
        offset = self.checkpoint.delta_offset(batch_id)
        assert offset is not None  # Spark writes the offsets before it runs the batch
        with self._swaps.batches, self.explained():
            self._lists.check(query_id, batch_id - 1)
            self._swaps.look()
            pushed = batch.mapInArrow(_pusher(self.target, self._swaps.retired), _PUSHED).collect()
            for row in pushed:
                if row["failure"] is not None:
                    raise FoldinError(row["failure"])
            self._lists.done(query_id, batch_id)
            self._swaps.reached = None if offset.in_snapshot else offset.position
            self._swaps.look()
        written, older = (sum(row[name] for row in pushed) for name in ("written", "older"))
        self.written += written
        self._monitor.note(batch_id, published=not offset.in_snapshot)
        log.info(
            "batch %d: %s lists written, %s were there as new or newer, %.2f s",
            batch_id, f"{written:,}", f"{older:,}", time.monotonic() - started,
        )  # fmt: skip

    @contextmanager
    def explained(self) -> Iterator[None]:
        """What Redis raises or has lost within, as one line for a person."""
        try:
            with redis_failures(self.target):
                yield
        except LostListsError as error:
            raise LostListsError(f"{self.target} {error}. To go on, {self.rebuild}") from None


def _as_json() -> Column:
    """A row's list as Redis holds it; the scripts there read the position from the front."""
    at = F.unix_micros("folded_at").alias("folded_at_us")
    return F.to_json(F.struct("events_version", "events_index", at, "source", "items"))


def _pusher(target: Target, retired: frozenset[str]) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """Writes rows (model_version, user_id, list) on a worker; what fails is told, not raised as pages of Python."""

    def push(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        rows = written = 0
        failure: str | None = None
        try:
            with redis_failures(target), target.connect() as client:
                lists = RedisLists(client, target.prefix)
                for model_version, chunk in _chunks(batches, retired):
                    rows += len(chunk)
                    written += lists.put(model_version, chunk)
        except FoldinError as error:
            failure = str(error)
            for _ in batches:  # Spark expects its rows to be read
                pass
        yield pa.RecordBatch.from_pylist(
            [{"written": written, "older": rows - written, "failure": failure}],
            pa.schema([("written", pa.int64()), ("older", pa.int64()), ("failure", pa.string())]),
        )

    return push


def _chunks(batches: Iterator[pa.RecordBatch], retired: frozenset[str]) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """(model_version, [(user_id, list)]) in the order of the rows, without those of retired models."""
    chunks: dict[str, list[tuple[str, str]]] = {}
    for batch in batches:
        for model_version, user_id, text in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            if model_version in retired:
                continue  # its lists are dropped, or about to be
            chunk = chunks.setdefault(model_version, [])
            chunk.append((user_id, text))
            if len(chunk) == _LISTS_A_CALL:
                yield model_version, chunks.pop(model_version)
    yield from chunks.items()


class _Swaps:
    """Beside the query: points readers to the active model once its lists are there, forgets retired ones (`with`).

    Attributes:
        batches: held by a micro-batch while it runs, and by a look.
        reached: position of `recommendations` up to which Redis holds all lists; None in the first snapshot.
        retired: models whose lists are not pushed any more.
    """

    def __init__(
        self,
        tables: Tables,
        config: Config,
        checkpoint: Checkpoint,
        lists: RedisLists,
        explained: Callable[[], AbstractContextManager[None]],
        stop: GracefulStop,
    ) -> None:
        self.batches = threading.Lock()
        self.reached: Position | None = None
        self.retired: frozenset[str] = frozenset()
        self._tables, self._top_n, self._checkpoint, self._lists = tables, config.recommend.top_n, checkpoint, lists
        self._explained, self._stop = explained, stop
        self._registry, self._log = Registry(tables), CommitLog(tables, RECOMMENDATIONS)
        self._due: tuple[Promotion, int] | None = None
        self._in_force = self._turn = self._tidy = -1
        self._failure: LostListsError | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_looking, name="swap", daemon=True)

    def __enter__(self) -> _Swaps:
        done = self._checkpoint.newest("commits")
        offset = self._checkpoint.delta_offset(done)
        with self.batches, self._explained():
            if done >= 0:
                self._lists.check(self._checkpoint.query_id(), done)
            if offset is not None and not offset.in_snapshot:
                self.reached = offset.position
            self.look()  # a run over what is there goes beyond what is there by now
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()

    def finish(self) -> None:
        """The last look of a query that ends in order."""
        self._ended.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        with self.batches, self._explained():
            self.look()

    def look(self) -> None:
        """Do what is due by now; the caller holds `batches`."""
        state = self._registry.state()
        if state.turn != self._turn:
            standing = self._registry.standing()
            self.retired = frozenset(row.model_version for row in standing if row.status == "retired")
            self._turn = state.turn
        promotion = state.promotion
        if promotion is None:
            return
        if self._due is None or self._due[0] != promotion:
            # All lists that the model came with were committed before its row in `models`.
            self._due = promotion, self._log.newest()
        if promotion.sequence > self._in_force and self._has_read(self._due[1]):
            popular = popular_items(self._tables, self._top_n, promotion.model_version).collect()
            items = [(row["item_id"], row["users"]) for row in popular]
            self._lists.swap(self._checkpoint.query_id(), promotion.sequence, promotion.model_version, items)
            self._in_force, self._tidy = promotion.sequence, -1
            log.info("readers see the lists of model %s", promotion.model_version)
        if self._in_force >= 0 and self._tidy != self._turn:
            self._lists.drop(self.retired | self._abandoned())
            self._tidy = self._turn

    def _abandoned(self) -> set[str]:
        """Models of which Redis holds lists, and the tables neither a list nor a row: `maintain` dropped them."""
        unknown = self._lists.versions() - {row.model_version for row in self._registry.standing()}
        if not unknown:
            return set()
        rows = self._tables.read(RECOMMENDATIONS).where(F.col("model_version").isin(*unknown))
        return unknown - {row["model_version"] for row in rows.select("model_version").distinct().collect()}

    def _has_read(self, until: int) -> bool:
        """Whether all rows are in Redis that `recommendations` got up to that Delta version."""
        at = self.reached
        if at is None:
            return False
        for version in range(at.version, until + 1):
            commit = self._log.commit(version)
            read = at.index + 1 if version == at.version else 0
            if commit is None or len(commit.files) > read:
                return False
        return True  # what is left moves rows or drops some: a stream skips it

    def _keep_looking(self) -> None:
        failures = 0
        while not self._ended.wait(min(_TICK * 2**failures, _LONGEST)):
            try:
                with self.batches, self._explained():
                    self.look()
                failures = 0
            except LostListsError as error:
                self._failure = error
                self._stop.ask()
                return
            except Exception as error:  # lists go on; a later look tries again
                failures += 1
                if failures == 1:
                    log.warning("cannot look after swaps of models now, will try again: %s", reason_of(error))
                log.debug("swap", exc_info=True)
