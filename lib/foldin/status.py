"""The health of an installation: what its tables, its model and its streams look like now. Nothing is written."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import Row, Window
from pyspark.sql import functions as F

from foldin.backlog import DeltaBacklog, Waiting
from foldin.checkpoints import Checkpoint
from foldin.config import Config
from foldin.errors import AccountingError, AlarmError, MissingModelError
from foldin.landed import LANDING, FileBacklog, FileLog
from foldin.leases import holder_of
from foldin.schemas import EVENTS, INGEST_LOG, METRICS, MODELS, QUARANTINE, TABLES, Position
from foldin.tables import Tables

__all__ = [
    "AccountHealth",
    "Health",
    "ModelHealth",
    "StreamHealth",
    "TableHealth",
    "freshness_of",
    "health",
    "held",
]

BATCHES = 100
"""Freshness and throughput of a stream are of its last micro-batches, this many."""

_RECENT = dt.timedelta(minutes=10)

_BY_WEIGHT = (AccountingError.exit_code, AlarmError.exit_code, MissingModelError.exit_code)


@dataclass(frozen=True)
class TableHealth:
    """A table: its rows, the files and bytes of its current version, its last commit."""

    name: str
    rows: int
    files: int
    bytes: int
    last_commit: dt.datetime


@dataclass(frozen=True)
class AccountHealth:
    """`ingest_log`, summed: rows_in = events + quarantined + duplicates.

    Attributes:
        events_apart, quarantine_apart: rows that the tables have more than the log says: a batch under way is ahead of
            it. Negative, they have fewer: rows were lost, or deleted without a row in the log that says so.
        reasons: the most frequent reasons in `quarantine`, with their rows.
    """

    rows_in: int
    events: int
    quarantined: int
    duplicates: int
    events_apart: int
    quarantine_apart: int
    reasons: tuple[tuple[str, int], ...]

    @property
    def apart(self) -> tuple[tuple[str, int], ...]:
        """(table, rows that it has more than the log says)."""
        return ("events", self.events_apart), ("quarantine", self.quarantine_apart)

    @property
    def adds_up(self) -> bool:
        """No row was lost or counted twice."""
        return self.rows_in == self.events + self.quarantined + self.duplicates


@dataclass(frozen=True)
class ModelHealth:
    """A version in `models`: what training said of it and what became of it since.

    Attributes:
        trained, active_since: None where `models` does not say.
        caught_up: position of `events` up to which users were folded when it was promoted.
    """

    model_version: str
    status: str
    trained: dt.datetime | None
    active_since: dt.datetime | None
    rank: int | None
    users: int | None
    items: int | None
    parity: float | None
    caught_up: str | None


@dataclass(frozen=True)
class StreamHealth:
    """A query by its last micro-batches, its checkpoint and its lease.

    Attributes:
        batch_id, at: the last micro-batch with rows, and when it was done; None before the first.
        batches: micro-batches that the next two speak of.
        rows_per_second: while a batch ran.
        freshness: p50, p95, p99 in seconds; None where not known.
        last_p95: of the last batch alone: what the alarm goes by.
        lag_seconds: for how long the first unread row (or file) has waited, now; else what the last batch reported.
        waiting_files: in the source, now; None where the source does not tell.
        holder: the lease's holder, None when nobody runs the query.
    """

    query: str
    batch_id: int | None
    at: dt.datetime | None
    batches: int
    rows_per_second: float | None
    freshness: tuple[float, float, float] | None
    last_p95: float | None
    lag_seconds: float | None
    waiting_files: int | None
    state_rows: int | None
    state_bytes: int | None
    model_version: str | None
    holder: dict[str, Any] | None


@dataclass(frozen=True)
class Health:
    """An installation at one moment.

    Attributes:
        missing: tables that are not there.
        problems: (exit code, what is wrong).
    """

    root: str
    at: dt.datetime
    tables: tuple[TableHealth, ...]
    missing: tuple[str, ...]
    account: AccountHealth | None
    model: ModelHealth | None
    candidates: tuple[ModelHealth, ...]
    streams: tuple[StreamHealth, ...]
    problems: tuple[tuple[int, str], ...]

    @property
    def exit_code(self) -> int:
        """0: healthy; 5: the account does not add up; 9: a limit of `[alarm]` is broken; 3: no model is active."""
        found = {code for code, _ in self.problems}
        return next((code for code in _BY_WEIGHT if code in found), 0)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: times in ISO 8601."""
        data = dataclasses.asdict(self) | {"exit_code": self.exit_code}
        text: dict[str, Any] = _plain(data)
        return text


def health(tables: Tables, config: Config) -> Health:
    """Look at everything: about 30 small queries, no scan of `events` or of factors."""
    now = dt.datetime.now(dt.UTC)
    there = [spec for spec in TABLES if tables.exists(spec)]
    # The log before what it speaks of: a batch that is done in between makes the tables richer, never poorer.
    logged = _sums(tables) if INGEST_LOG in there else None
    found = {spec.name: _table(tables, spec) for spec in there}
    models = _models(tables) if MODELS in there else ()
    active = next((model for model in models if model.status == "active"), None)
    streams = _streams(tables, config, now) if METRICS in there else ()
    account = None
    if logged is not None and EVENTS in there and QUARANTINE in there:
        reasons = tables.read(QUARANTINE).groupBy("reason").count().orderBy(F.desc("count"), "reason").limit(5)
        account = AccountHealth(
            **logged,
            events_apart=found[EVENTS.name].rows - logged["events"],
            quarantine_apart=found[QUARANTINE.name].rows - logged["quarantined"],
            reasons=tuple((row["reason"], row["count"]) for row in reasons.collect()),
        )
    return Health(
        root=tables.catalog or tables.root,
        at=now,
        tables=tuple(found.values()),
        missing=tuple(spec.name for spec in TABLES if spec not in there),
        account=account,
        model=active,
        candidates=tuple(model for model in models if model.status in ("candidate", "requested")),
        streams=streams,
        problems=tuple(_problems(account, active, streams, config, now)),
    )


def held(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """Who runs the query of a checkpoint: host, pid, since, seconds left of the lease; None if nobody does."""
    holder = holder_of(checkpoint)
    if holder is None or not (seconds := holder.remaining()):
        return None
    return {"host": holder.host, "pid": holder.pid, "since": holder.since, "seconds": round(seconds, 1)}


def freshness_of(batches: Sequence[tuple[int, float, float, float]]) -> tuple[float, float, float] | None:
    """p50, p95, p99 over micro-batches, from (rows, p50, p95, p99) of each.

    A batch stands for half of its rows at its p50, 45% at its p95, the rest at its p99: no less than the truth (but for
    the slowest hundredth of a batch), and exact for one batch.
    """
    weighted = sorted(
        (value, rows * share)
        for rows, *quantiles in batches
        for value, share in zip(quantiles, (0.5, 0.45, 0.05), strict=True)
    )
    total = sum(weight for _, weight in weighted)
    if not total:
        return None
    found, passed, levels = [], 0.0, [0.5, 0.95, 0.99]
    for value, weight in weighted:
        passed += weight
        while levels and passed >= levels[0] * total * (1 - 1e-9):
            found.append(value)
            levels.pop(0)
    return found[0], found[1], found[2]


def _problems(
    account: AccountHealth | None,
    active: ModelHealth | None,
    streams: Sequence[StreamHealth],
    config: Config,
    now: dt.datetime,
) -> list[tuple[int, str]]:
    problems = []
    if account is not None:
        if not account.adds_up:
            text = (
                f"ingest_log: {account.rows_in:,} rows in are not {account.events:,} events + "
                f"{account.quarantined:,} quarantined + {account.duplicates:,} duplicates"
            )
            problems.append((AccountingError.exit_code, text))
        for name, apart in account.apart:
            if apart < 0:
                text = f"{name} has {-apart:,} rows fewer than ingest_log says: they are lost, or somebody deleted them"
                problems.append((AccountingError.exit_code, text))
    for stream in streams:
        judged = [("lag_seconds", stream.lag_seconds, config.alarm.lag_seconds)]
        # As its own alarm does. A last batch of long ago says nothing of now, unless something waits.
        resting = stream.at is not None and stream.lag_seconds == 0 and now - stream.at > _RECENT
        if stream.query == "fold_in" and not resting:
            judged.append(("freshness_seconds", stream.last_p95, config.alarm.freshness_seconds))
        for name, value, limit in judged:
            if value is not None and value > limit:
                text = f"{stream.query}: {name} = {value:.1f}, alarm.{name} allows {limit:g}"
                problems.append((AlarmError.exit_code, text))
    if active is None:
        problems.append((MissingModelError.exit_code, "no model is active: run the train job"))
    return problems


def _table(tables: Tables, spec: Any) -> TableHealth:
    detail = tables.spark.sql(f"describe detail {tables.name(spec)}").first()
    assert detail is not None
    rows = tables.read(spec).count()  # Delta answers it from the statistics in its log
    return TableHealth(spec.name, rows, detail["numFiles"], detail["sizeInBytes"], _utc(detail["lastModified"]))


def _sums(tables: Tables) -> dict[str, int]:
    names = ("rows_in", "events", "quarantined", "duplicates")
    row = tables.read(INGEST_LOG).agg(*[F.coalesce(F.sum(n), F.lit(0)).alias(n) for n in names]).first()
    assert row is not None
    return {name: row[name] for name in names}


def _models(tables: Tables) -> tuple[ModelHealth, ...]:
    """Newest first."""
    by_version: dict[str, list[Row]] = {}
    for row in tables.read(MODELS).drop("history").orderBy("at").collect():
        by_version.setdefault(row["model_version"], []).append(row)
    promotions = [row for rows in by_version.values() for row in rows if row["status"] == "active"]
    active = max(promotions, key=lambda row: row["sequence"], default=None)
    found = []
    for version, rows in by_version.items():
        training = next((row for row in rows if row["rank"] is not None), None)
        promotion = max((r for r in rows if r["status"] == "active"), key=lambda row: row["sequence"], default=None)
        status = rows[-1]["status"]
        if status == "active" and (active is None or active["model_version"] != version):
            status = "retired"
        elif active is not None and active["model_version"] == version:
            status = "active"
        found.append(
            ModelHealth(
                model_version=version,
                status=status,
                trained=_utc(training["at"]) if training else None,
                active_since=_utc(promotion["at"]) if promotion else None,
                rank=training["rank"] if training else None,
                users=training["users"] if training else None,
                items=training["items"] if training else None,
                parity=training["parity"] if training else None,
                caught_up=(
                    str(Position(promotion["caught_up_version"], promotion["caught_up_index"])) if promotion else None
                ),
            )
        )
    return tuple(reversed(found))


def _streams(tables: Tables, config: Config, now: dt.datetime) -> tuple[StreamHealth, ...]:
    newest = Window.partitionBy("query").orderBy(F.desc("at"))
    rows = (
        tables.read(METRICS)
        .drop("phases")
        .withColumn("age", F.row_number().over(newest))
        .where(F.col("age") <= BATCHES)
    )
    by_query: dict[str, list[Row]] = {name: [] for name in (config.ingest.name, "fold_in")}
    for row in rows.orderBy("age").collect():
        by_query.setdefault(row["query"], []).append(row)
    return tuple(_stream(tables, query, batches, now) for query, batches in by_query.items())


def _stream(tables: Tables, query: str, batches: list[Row], now: dt.datetime) -> StreamHealth:
    """`batches`: its last ones, the newest first."""
    last = batches[0] if batches else None
    checkpoint = Checkpoint(tables.spark, tables.path("_checkpoints", query))
    if query == "fold_in":
        waiting = _waiting(tables, checkpoint) if tables.exists(EVENTS) else None
    else:
        waiting = _landed(checkpoint, _utc(last["at"]) if last is not None else None)
    lag = last["lag_seconds"] if last is not None else None
    if waiting is not None and waiting.nothing:
        lag = 0.0
    elif waiting is not None and waiting.since is not None:
        lag = max(0.0, now.timestamp() - waiting.since)
    seconds = sum(row["seconds"] for row in batches)
    fresh = [row for row in batches if row["freshness_p50"] is not None]
    return StreamHealth(
        query=query,
        batch_id=last["batch_id"] if last is not None else None,
        at=_utc(last["at"]) if last is not None else None,
        batches=len(batches),
        rows_per_second=sum(row["rows"] for row in batches) / seconds if seconds else None,
        freshness=freshness_of(
            [(row["rows"], row["freshness_p50"], row["freshness_p95"], row["freshness_p99"]) for row in fresh]
        ),
        last_p95=last["freshness_p95"] if last is not None else None,
        lag_seconds=lag,
        waiting_files=waiting.files if waiting is not None else None,
        state_rows=last["state_rows"] if last is not None else None,
        state_bytes=last["state_bytes"] if last is not None else None,
        model_version=last["model_version"] if last is not None else None,
        holder=held(checkpoint),
    )


def _waiting(tables: Tables, checkpoint: Checkpoint) -> Waiting | None:
    """What waits in `events` for a fold-in query, whether it runs or not; None before its first batch."""
    done = checkpoint.newest("commits")
    offset = checkpoint.delta_offset(done)
    if offset is None:
        return None
    return DeltaBacklog(Checkpoint(tables.spark, f"{tables.location(EVENTS)}/_delta_log")).beyond(offset)


def _landed(checkpoint: Checkpoint, last: dt.datetime | None) -> Waiting | None:
    """What waits for a query over a folder of files, since its last batch at the earliest; None for other sources."""
    place = checkpoint.read_object(LANDING)
    if place is None:
        return None
    end = FileLog(checkpoint).end(checkpoint.newest("commits"))
    since = last.timestamp() if last is not None else 0.0
    try:
        waiting = FileBacklog(checkpoint, place["folder"], place["pattern"]).beyond(end, since)
    except (PySparkException, Py4JJavaError):  # the folder is gone, or cannot be read from here
        return None
    # Before the first batch there is only the files' own time, which may be of years before they landed.
    return waiting if last is not None else dataclasses.replace(waiting, since=None)


def _utc(at: dt.datetime) -> dt.datetime:
    """Spark hands out the local time of this process, without saying so."""
    return at.astimezone(dt.UTC)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return value.isoformat(timespec="milliseconds") if isinstance(value, dt.datetime) else value
