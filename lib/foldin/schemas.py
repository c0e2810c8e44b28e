"""Column names and table schemas, each declared once."""

from __future__ import annotations

from dataclasses import dataclass, field

from pyspark.sql.types import (
    ArrayType,
    BooleanType,
    ByteType,
    DataType,
    DateType,
    DoubleType,
    FloatType,
    IntegerType,
    LongType,
    MapType,
    StringType,
    StructField,
    StructType,
    TimestampType,
)

__all__ = [
    "BASE_POSITION_INDEX",
    "EVENTS",
    "FOLDED",
    "HISTORY_ITEM",
    "INGEST_LOG",
    "ITEM_FACTORS",
    "METRICS",
    "MODELS",
    "QUARANTINE",
    "RECOMMENDATIONS",
    "STRENGTHS",
    "TABLES",
    "TRIALS",
    "USER_FACTORS",
    "Position",
    "TableSpec",
]

BASE_POSITION_INDEX = -1
"""The index that a Delta source offset carries when every file of the versions before it is included."""


@dataclass(frozen=True, order=True)
class Position:
    """How much of `events` is included: all versions before `version`, and of `version` the files up to `index`.

    It is the end offset of a micro-batch over the Delta source, so positions order totally and survive
    restarts, replays and lost checkpoints, which batch ids and clocks do not.
    """

    version: int
    index: int = BASE_POSITION_INDEX

    @classmethod
    def after(cls, version: int) -> Position:
        """The position that includes the Delta version `version` whole."""
        return cls(version + 1)

    @property
    def last_version(self) -> int:
        """The last Delta version of which this position includes anything."""
        return self.version - 1 if self.index == BASE_POSITION_INDEX else self.version

    def __str__(self) -> str:
        return f"{self.version}:{self.index}"


@dataclass(frozen=True)
class TableSpec:
    """A Delta table: its name, schema, partition columns and Delta properties."""

    name: str
    schema: StructType
    partition_by: tuple[str, ...] = ()
    properties: dict[str, str] = field(default_factory=dict)
    grows: bool = False
    """It has got columns since its first release: whoever opens it to write looks whether they are there."""

    @property
    def trimmed(self) -> bool:
        """It is appended to every second: its log is kept short."""
        return "delta.logRetentionDuration" in self.properties


def _columns(*columns: tuple[str, DataType, str]) -> StructType:
    return StructType([StructField(n, kind, True, {"comment": about}) for n, kind, about in columns])


_LIST = ArrayType(StructType([StructField("item_id", StringType()), StructField("score", FloatType())]))

_INGEST_STAMPS = (
    ("source_file", StringType(), "file (or topic) that the row came from"),
    ("ingested_at", TimestampType(), "clock of the micro-batch that took the row in"),
    ("ingest_date", DateType(), "date of ingested_at: the partition"),
)

_POSITION = (
    ("events_version", LongType(), "position of events that the row includes: Delta version"),
    ("events_index", LongType(), "position of events that the row includes: index, -1 for whole"),
)

# What a table that is appended to every second needs to stay as quick as it was on its first day: files that a merge
# has replaced, and commits of old, leave the log soon. Nobody reads a day back: a stream that fell behind its log is
# refused and rebuilt from the table itself. Delta's auto compaction is off: it merged after every commit of two files.
_APPENDED_EVERY_SECOND = {
    "delta.deletedFileRetentionDuration": "interval 1 day",
    "delta.logRetentionDuration": "interval 2 days",
    # Whoever makes the commit waits for the checkpoint of the log that comes after it, by default after every tenth.
    # Those who look after a table write it beside the stream, long before that many commits.
    "delta.checkpointInterval": "1000",
}

EVENTS = TableSpec(
    "events",
    _columns(
        ("event_id", StringType(), "unique; hash of the raw record where the source has none"),
        ("user_id", StringType(), "who"),
        ("item_id", StringType(), "with what"),
        ("event_type", StringType(), "one of the configured types"),
        ("value", DoubleType(), "optional magnitude or rating; null counts as 1"),
        ("event_time", TimestampType(), "when it happened, UTC"),
        *_INGEST_STAMPS,
    ),
    partition_by=("ingest_date",),
    # With the change feed on, an append costs nothing more, and "the events since version v" is a read
    # that the table itself answers.
    properties=_APPENDED_EVERY_SECOND | {"delta.enableChangeDataFeed": "true"},
)

QUARANTINE = TableSpec(
    "quarantine",
    _columns(
        ("record_id", StringType(), "hash of the raw record"),
        ("reason", StringType(), "the rule that the row breaks"),
        ("detail", StringType(), "the value that breaks it, or why the mapping sends such rows here"),
        ("raw", StringType(), "the row as it came"),
        *_INGEST_STAMPS,
    ),
    partition_by=("ingest_date",),
    properties=_APPENDED_EVERY_SECOND,
)

INGEST_LOG = TableSpec(
    "ingest_log",
    _columns(
        ("query_id", StringType(), "id of the ingest query (new with every new checkpoint)"),
        ("batch_id", LongType(), "micro-batch of that query"),
        ("rows_in", LongType(), "rows read from the source"),
        ("events", LongType(), "rows appended to events"),
        ("quarantined", LongType(), "rows appended to quarantine"),
        ("duplicates", LongType(), "rows dropped because their id (or raw record) was known"),
        ("logged_at", TimestampType(), "when the batch was done"),
    ),
    properties=_APPENDED_EVERY_SECOND,
)

ITEM_FACTORS = TableSpec(
    "item_factors",
    _columns(
        ("model_version", StringType(), "model that the row belongs to"),
        ("item_id", StringType(), "item"),
        ("item_hash", LongType(), "xxhash64(item_id), as histories hold it"),
        ("factors", ArrayType(FloatType()), "rank numbers"),
        ("users", LongType(), "popularity: users with a positive strength for the item"),
    ),
    partition_by=("model_version",),
)

USER_FACTORS = TableSpec(
    "user_factors",
    _columns(
        ("model_version", StringType(), "model that the row belongs to"),
        ("user_id", StringType(), "user"),
        ("factors", ArrayType(FloatType()), "rank numbers; all zero for a user without a positive row"),
        ("events", IntegerType(), "events in the history that made the factors"),
        *_POSITION,
        ("folded_at", TimestampType(), "clock of the writer: an order only between rows of one position"),
    ),
    partition_by=("model_version",),
    properties=_APPENDED_EVERY_SECOND,
)

RECOMMENDATIONS = TableSpec(
    "recommendations",
    _columns(
        ("model_version", StringType(), "model that the row belongs to"),
        ("user_id", StringType(), "user"),
        ("items", _LIST, "the top N, best first, without items that the user ever had"),
        ("source", StringType(), "als, or popularity where the user's factors are zero"),
        *_POSITION,
        ("folded_at", TimestampType(), "clock of the writer: an order only between rows of one position"),
    ),
    partition_by=("model_version",),
    properties=_APPENDED_EVERY_SECOND,
)

MODELS = TableSpec(
    "models",
    _columns(
        ("model_version", StringType(), "name of the model"),
        ("status", StringType(), "candidate, requested, active, refused or retired: what this row says of the model"),
        ("sequence", LongType(), "number of the change; the largest of an active row is the model in force"),
        ("at", TimestampType(), "when the row was appended"),
        ("by", StringType(), "who appended it"),
        ("reason", StringType(), "why"),
        ("caught_up_version", LongType(), "active: position up to which users were refolded, version"),
        ("caught_up_index", LongType(), "active: position up to which users were refolded, index"),
        ("cut_version", LongType(), "Delta version of events that training read"),
        ("as_of_us", LongType(), "latest event_time in the training cut, microseconds since 1970 UTC"),
        ("mode", StringType(), "implicit or explicit"),
        ("rank", IntegerType(), "number of factors"),
        ("iterations", IntegerType(), "ALS iterations"),
        ("reg_param", DoubleType(), "MLlib's regParam"),
        ("alpha", DoubleType(), "MLlib's alpha"),
        ("nonnegative", BooleanType(), "MLlib's nonnegative"),
        ("seed", LongType(), "seed of the initial factors"),
        ("history", StringType(), "JSON: bound, half-life, retention, transform, weights of types"),
        ("events", LongType(), "events in the training cut"),
        ("users", LongType(), "users with factors"),
        ("items", LongType(), "items with factors"),
        ("strengths", LongType(), "(user, item) pairs trained on"),
        ("parity", DoubleType(), "largest per-user relative norm between fold-in and MLlib's factors"),
        ("seconds", DoubleType(), "seconds that training took"),
        ("judgement", StringType(), "JSON: how its settings did on events held out, beside the active model's"),
        ("foldin_version", StringType(), "version of foldin that trained"),
    ),
    grows=True,
)

METRICS = TableSpec(
    "metrics",
    _columns(
        ("query", StringType(), "name of the query: fold_in, push/NAME or the ingest job's"),
        ("query_id", StringType(), "its id (new with every new checkpoint)"),
        ("run_id", StringType(), "id of this start of it"),
        ("batch_id", LongType(), "micro-batch; a replayed one has a row a run"),
        ("at", TimestampType(), "when the batch was done"),
        ("rows", LongType(), "rows read from the source"),
        ("users", LongType(), "fold_in: users folded"),
        ("seconds", DoubleType(), "of the whole batch"),
        ("phases", MapType(StringType(), DoubleType()), "seconds by phase"),
        ("freshness_p50", DoubleType(), "seconds from an event's arrival to its publication, median of the batch"),
        ("freshness_p95", DoubleType(), "the same, 95th percentile"),
        ("freshness_p99", DoubleType(), "the same, 99th percentile"),
        ("lag_seconds", DoubleType(), "how far the batch's end is behind the source; 0 when nothing waits"),
        ("lag_files", LongType(), "files that wait in the source"),
        ("lag_bytes", LongType(), "bytes that wait in the source"),
        ("state_rows", LongType(), "keys in the state: users of fold_in, ids of ingest"),
        ("state_bytes", LongType(), "memory that the state uses"),
        ("model_version", StringType(), "fold_in: model that the batch was folded under"),
        ("metrics_date", DateType(), "date of at: the partition"),
    ),
    partition_by=("metrics_date",),
    properties=_APPENDED_EVERY_SECOND,
)

TRIALS = TableSpec(
    "trials",
    _columns(
        ("study", StringType(), "the search that it belongs to"),
        ("number", IntegerType(), "its number within the study; 0: the settings as configured"),
        ("at", TimestampType(), "when it was done"),
        ("cut_version", LongType(), "Delta version of events that the study reads"),
        ("split_us", LongType(), "event_time from which on events are held out to score by"),
        ("until_us", LongType(), "event_time from which on no event is used: they are the judge's"),
        ("settings", MapType(StringType(), DoubleType()), "what was tried, by key"),
        ("metric", StringType(), "what the score is"),
        ("score", DoubleType(), "on the held-out events; null for a trial that failed"),
        ("seconds", DoubleType(), "training and scoring"),
        ("failure", StringType(), "why it has no score"),
    ),
)

TABLES = (
    EVENTS,
    QUARANTINE,
    INGEST_LOG,
    ITEM_FACTORS,
    USER_FACTORS,
    RECOMMENDATIONS,
    MODELS,
    METRICS,
    TRIALS,
)

HISTORY_ITEM = StructType(
    [
        StructField("time", LongType()),  # event_time, microseconds since the epoch
        StructField("event", LongType()),  # xxhash64(event_id): breaks ties of time
        StructField("item", LongType()),  # xxhash64(item_id)
        StructField("type", ByteType()),  # number of the event type
        StructField("value", DoubleType()),  # null counts as 1
    ]
)
"""One event as the state holds it: 64-bit hashes instead of ids, a byte instead of a type's name."""

STRENGTHS = StructType(
    [
        StructField("user_id", StringType()),
        StructField("item", LongType()),
        StructField("strength", FloatType()),
    ]
)

FOLDED = StructType(
    [
        USER_FACTORS.schema["user_id"],
        USER_FACTORS.schema["factors"],
        USER_FACTORS.schema["events"],
        RECOMMENDATIONS.schema["items"],
        RECOMMENDATIONS.schema["source"],
        *(USER_FACTORS.schema[name] for name in ("model_version", "events_version", "events_index", "folded_at")),
    ]
)
"""What one pass over histories gives for each user: factors and top-N together."""
