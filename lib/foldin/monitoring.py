"""A running query seen from outside: a row of `metrics` and a log line a micro-batch, and the alarm.

Spark's own report of a batch (rows, phases, state) is merged with what only the job knows. It is taken from the query
as JSON, by a thread of the monitor: pyspark's StreamingQueryListener makes a hundred calls into the JVM of
each report, 60 to 190 ms of a batch of one second; the JSON is one call and takes 1 to 5 ms.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import pyarrow as pa
from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import to_arrow_schema
from pyspark.sql.streaming import StreamingQuery

from foldin.alarm import Alarm
from foldin.backlog import DeltaBacklog, Waiting
from foldin.checkpoints import Checkpoint, Offset
from foldin.config import Config
from foldin.errors import reason_of
from foldin.landed import FileBacklog
from foldin.schemas import METRICS, Position
from foldin.streaming import GracefulStop
from foldin.tables import Tables

__all__ = ["Monitor", "observe_arrival"]

log = logging.getLogger("foldin.metrics")

_ARRIVAL = "foldin_arrival"
_TICK = 0.5  # seconds between two looks at the query
_IDLE = 10.0  # seconds without a batch after which a stream is said to be idle
_KEPT = 10_000  # rows that are kept while they cannot be written
_JOIN = 30.0  # seconds that the end of a run waits for a write under way


def observe_arrival(rows: DataFrame, column: str) -> DataFrame:
    """`rows` with an eye on when they arrived (`column`, a timestamp): quantiles of the batch in passing.

    It costs about a microsecond a row; a second look at the batch would compute it again.
    """
    at = F.unix_millis(column)
    # The oldest are the least fresh: freshness at p is taken of the quantile 1 - p of arrival.
    quantiles = F.percentile_approx(at, [0.5, 0.05, 0.01], 1000)
    return rows.observe(_ARRIVAL, F.max(at).alias("newest"), quantiles.alias("quantiles"))


@dataclass
class _Note:
    """What the job says of a batch."""

    began: float = field(default_factory=time.monotonic)
    done: float | None = None
    """When its writes were done, seconds since the epoch."""
    users: int | None = None
    model_version: str | None = None
    published: bool = True
    phases: dict[str, float] = field(default_factory=dict)


@dataclass
class Monitor:
    """Watches one query, from its start (`with`) to its end, whatever way it ends.

    Rows of `metrics` are appended every `metrics.flush_seconds` and at the end: a Delta commit takes 0.3 s, and one a
    batch would slow the stream. A SIGKILL loses the rows of those seconds; their log lines are out.
    Whatever goes wrong in here is logged once, counted in `errors`, and never reaches the stream.

    Attributes:
        query: its name.
        stamped: freshness counts from a time that foldin itself stamped, so that the alarm may go by it. A file's
            time of modification may be years old on the day the file lands.
        files: of a query over a folder of files, what waits there. The folder is listed for that, so it is looked at
            every `metrics.flush_seconds`; batches in between do not know their lag.

    Raises:
        AlarmError: on leaving, when an alarm ended the query.
    """

    tables: Tables
    config: Config
    query: str
    checkpoint: Checkpoint
    stop: GracefulStop
    stamped: bool = True
    files: FileBacklog | None = None
    errors: int = field(default=0, init=False)
    batches: int = field(default=0, init=False)
    rows: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.alarm = Alarm(self.config.alarm, self.query, self.stop)
        self._running: StreamingQuery | None = None
        self._notes: dict[int, _Note] = {}
        self._under_way: int | None = None
        self._recorded = -1
        self._looked = ""
        self._buffer: list[dict[str, Any]] = []
        self._flushed = self._quiet_since = time.monotonic()
        self._idle = False
        self._backlogs: dict[str, DeltaBacklog] = {}
        self._ended = threading.Event()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Monitor:
        self._started = time.monotonic()
        self._listed = time.time()
        self._list_next = self._started
        self._guard(lambda: log.info("event=start query=%s %s", self.query, self._how_it_starts()))
        # All that may hang is done on a thread that the end of a run need not wait for.
        for name, work in (("metrics", self._keep_looking), ("alarm", self._watch_the_clock)):
            thread = threading.Thread(target=work, name=name, daemon=True)
            thread.start()
            self._threads.append(thread)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._ended.set()
        deadline = time.monotonic() + _JOIN
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        if any(thread.is_alive() for thread in self._threads):
            self._warn(f"their last rows are not written after {_JOIN:.0f} s")
        told = {"query": self.query, "batches": self.batches, "rows": self.rows}
        told["seconds"] = round(time.monotonic() - self._started, 1)
        if self.errors:
            told |= {"metrics_errors": self.errors, "rows_not_in_metrics": len(self._buffer)}
        if error is not None:
            log.error("%s", _line("failure", told | {"reason": reason_of(error)}))
            return
        log.info("%s", _line("end", told))
        self.alarm.check()

    def follow(self, query: StreamingQuery) -> None:
        """The query has started."""
        self._running = query

    def around(self, process: Callable[[DataFrame, int], None]) -> Callable[[DataFrame, int], None]:
        """`process` for foreachBatch, with its beginning and its end noted."""

        def noted(batch: DataFrame, batch_id: int) -> None:
            note = self._notes[batch_id] = _Note()
            self._under_way = batch_id
            process(batch, batch_id)
            note.done = time.time()
            self._under_way, self._quiet_since, self._idle = None, time.monotonic(), False

        return noted

    def note(
        self,
        batch_id: int,
        *,
        users: int | None = None,
        model_version: str | None = None,
        published: bool = True,
        phases: dict[str, float] | None = None,
    ) -> None:
        """What the job knows of its batch under way.

        Args:
            published: its events are visible to readers now; without, it has no freshness.
            phases: seconds by phase.
        """
        note = self._notes.setdefault(batch_id, _Note())
        note.users, note.model_version, note.published, note.phases = users, model_version, published, phases or {}

    def _guard(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:
            log.debug("%s: %s", self.query, reason_of(error), exc_info=True)
            self._warn(reason_of(error))

    def _warn(self, reason: str) -> None:
        self.errors += 1
        if self.errors == 1:
            log.warning("%s: metrics are incomplete, the stream goes on: %s", self.query, reason)

    def _keep_looking(self) -> None:
        while not self._ended.wait(_TICK):
            self._guard(self._collect)
            self._guard(self._look_for_idleness)
            if time.monotonic() - self._flushed >= self.config.metrics.flush_seconds:
                self._guard(self._flush)
        self._guard(self._collect)
        self._guard(self._flush)

    def _watch_the_clock(self) -> None:
        """A batch that hangs reports nothing: its alarm goes by the clock, and looks at nothing that may hang too."""
        while not self._ended.wait(_TICK):
            batch_id = self._under_way
            note = self._notes.get(batch_id) if batch_id is not None else None
            if note is not None and (seconds := time.monotonic() - note.began) > self.config.alarm.lag_seconds:
                self.alarm.lag(seconds, f"batch {batch_id} is not done yet")

    def _look_for_idleness(self) -> None:
        threshold = max(_IDLE, 2 * self.config.fold_in.trigger_seconds, 2 * self.config.ingest.trigger_seconds)
        if self._running is None or self._idle or time.monotonic() - self._quiet_since < threshold:
            return
        # Before its first batch it is not idle: a start takes seconds.
        if self._under_way is None and self._running._jsq.status().message().startswith("Waiting for data"):
            self._idle = True
            self.alarm.lag(0.0)
            log.info("%s", _line("idle", {"query": self.query, "next_batch": self._recorded + 1}))

    def _how_it_starts(self) -> str:
        planned, done = self.checkpoint.newest("offsets"), self.checkpoint.newest("commits")
        # Batch ids of this run begin here: Spark's report of an older one is not ours.
        self._recorded = done
        if planned < 0:
            return "as=new"
        return f"as=replaying batch={planned}" if planned > done else f"as=resumed batch={done + 1}"

    def _collect(self) -> None:
        """Take in what Spark reports of the batches that are done since the last look."""
        if self._running is None:
            return
        reports = self._running._jsq.recentProgress()
        new = []
        for at in reversed(range(len(reports))):
            if reports[at].batchId() <= self._recorded or reports[at].timestamp() == self._looked:
                break
            new.append(json.loads(reports[at].json()))
        for report in reversed(new):
            if "addBatch" not in report["durationMs"]:
                continue  # every 10 s of idleness Spark reports the batch that is still to come
            if missed := report["batchId"] - self._recorded - 1:
                self._warn(
                    f"{missed} micro-batches before {report['batchId']} were over before their reports were read"
                )
            self._recorded = report["batchId"]
            note = self._notes.pop(self._recorded, _Note())
            for batch_id in [b for b in self._notes if b < self._recorded]:
                del self._notes[batch_id]
            if report["sources"][0]["numInputRows"]:
                self._record(report, note)
        if new:
            self._looked = new[0]["timestamp"]

    def _record(self, report: dict[str, Any], note: _Note) -> None:
        source, arrival = report["sources"][0], report["observedMetrics"].get(_ARRIVAL, {})
        done = note.done or time.time()
        phases = {_snake(name): ms / 1000 for name, ms in report["durationMs"].items()}
        waiting = self._waiting(source)
        newest = arrival.get("newest") if self.files is None else None  # a file's time may be of years ago
        lag: float | None = None
        if waiting is not None and waiting.nothing:
            lag = 0.0
        elif waiting is not None and (behind := newest / 1000 if newest else waiting.since):
            lag = max(0.0, done - behind)
        fresh = [max(0.0, done - at / 1000) for at in arrival.get("quantiles") or ()] if note.published else []
        p50, p95, p99 = fresh or (None, None, None)
        state = report["stateOperators"][0] if report["stateOperators"] else {}
        at = dt.datetime.fromtimestamp(done, dt.UTC)
        row = {
            "query": self.query,
            "query_id": report["id"],
            "run_id": report["runId"],
            "batch_id": report["batchId"],
            "at": at,
            "rows": source["numInputRows"],
            "users": note.users,
            "seconds": phases.pop("trigger_execution", report["batchDuration"] / 1000),
            "phases": phases | note.phases,
            "freshness_p50": p50,
            "freshness_p95": p95,
            "freshness_p99": p99,
            "lag_seconds": lag,
            "lag_files": waiting.files if waiting is not None else None,
            "lag_bytes": waiting.bytes if waiting is not None else None,
            "state_rows": state.get("numRowsTotal"),
            "state_bytes": state.get("memoryUsedBytes"),
            "model_version": note.model_version,
            "metrics_date": at.date(),
        }
        self.batches, self.rows = self.batches + 1, self.rows + row["rows"]
        self._buffer.append(row)
        log.info("%s", _line("batch", row))
        self.alarm.lag(lag)
        if self.stamped:
            self.alarm.freshness(p95)

    def _waiting(self, source: dict[str, Any]) -> Waiting | None:
        """What waits in the source after a batch; None where it does not tell, or was asked a moment ago."""
        end, metrics = source["endOffset"], source.get("metrics") or {}
        if self.files is not None:
            if time.monotonic() < self._list_next:
                return None
            self._list_next = time.monotonic() + self.config.metrics.flush_seconds
            since, self._listed = self._listed, time.time()
            try:
                return self.files.beyond(int(end["logOffset"]), since)
            except (PySparkException, Py4JJavaError) as error:
                self._warn(reason_of(error))
                return None
        if isinstance(end, dict) and "reservoirVersion" in end:
            path = source["description"].partition("[")[2].rstrip("]")
            log_folder = Checkpoint(self.tables.spark, f"{path}/_delta_log")
            backlog = self._backlogs.setdefault(path, DeltaBacklog(log_folder))
            position = Position(int(end["reservoirVersion"]), int(end["index"]))
            return backlog.beyond(Offset(position, bool(end["isStartingVersion"])))
        if "maxOffsetsBehindLatest" in metrics:  # Kafka
            size = int(float(metrics.get("estimatedTotalBytesBehindLatest", 0)))
            return Waiting(0, size, None, complete=not int(float(metrics["maxOffsetsBehindLatest"])))
        return None

    def _flush(self) -> None:
        self._flushed = time.monotonic()
        rows = self._buffer[:]
        if not rows:
            return
        del self._buffer[: max(0, len(rows) - _KEPT)]
        rows = self._buffer[:]
        pairs = [row | {"phases": list(row["phases"].items())} for row in rows]
        local = pa.Table.from_pylist(pairs, to_arrow_schema(METRICS.schema, timezone="UTC"))
        frame = self.tables.spark.createDataFrame(local, METRICS.schema)
        self.tables.append(frame.coalesce(1), METRICS)
        del self._buffer[: len(rows)]


def _line(event: str, facts: dict[str, Any]) -> str:
    """One line of key=value; a value with a blank or a quote stands in quotes."""
    flat: dict[str, Any] = {"event": event}
    for key, value in facts.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{name}": part for name, part in value.items()}
        elif key != "metrics_date":
            flat[key] = value
    return " ".join(f"{key}={_text(value)}" for key, value in flat.items() if value is not None)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    text = value.isoformat(timespec="milliseconds") if isinstance(value, dt.datetime) else str(value)
    return json.dumps(text, ensure_ascii=False) if not text or set(text) & set(' "=\n') else text


def _snake(name: str) -> str:
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name)
