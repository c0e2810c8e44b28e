"""Raw rows to events: parse, judge by the contract, give every row an identity.

DataFrames in, DataFrames out, all in Spark's own expressions; reading and writing is `ingest`'s.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import (
    ArrayType,
    DataType,
    DateType,
    MapType,
    StringType,
    StructType,
    TimestampNTZType,
    TimestampType,
    VariantType,
)

from foldin.config import EventsConfig
from foldin.errors import ConfigError, reason_of
from foldin.mapping import Mapping

__all__ = [
    "JUDGED",
    "MAX_ID_LENGTH",
    "MAX_VALUE",
    "NOT_UTF8",
    "batch_clock",
    "check_expressions",
    "judge",
    "parse",
    "record_hash",
]

MAX_ID_LENGTH = 512
"""Longer ids are refused: they come from broken quoting, and every one of them would sit in the state."""

MAX_VALUE = 1e12
"""Larger values are refused: strengths are float32, where a sum of a few more would swallow everything else."""

JUDGED = ("record_id", "reason", "detail", "raw", "source_file")
"""The columns that `judge` gives beside the event's own."""

NOT_UTF8 = "not UTF-8 text"
"""Detail of a row that `quarantine` cannot keep as it came: what was no text is lost."""

_CORRUPT = "_corrupt"
_REFLECTION = {"reflect", "java_method", "try_reflect"}
_MAX_CSV_COLUMNS = 20_000  # the parser behind from_csv throws at 20,480, and with that the batch would fail
_NESTED_TYPES = (ArrayType, MapType, StructType, VariantType)


def record_hash(raw: Column) -> Column:
    """128 bits of SHA-256 in hex: the identity of a record without one, equal for equal text."""
    return F.substring(F.sha2(raw, 256), 1, 32)


def check_expressions(spark: SparkSession, mapping: Mapping) -> None:
    """Let Spark analyse each expression of a mapping, over no rows, before a query is built of them.

    What it may do is to compute one value of one row: no other table, and no method of the JVM.

    Raises:
        ConfigError: names the key, the expression and Spark's reason in one line.
    """
    empty = spark.createDataFrame([], ", ".join(f"{_quote(c)} string" for c in mapping.columns))
    for key, text in mapping.expressions().items():
        try:
            if (reaches := _beyond_the_row(spark, text)) is not None:  # analysis loads the classes that it names
                raise ConfigError(f"mapping {mapping.name}: {key} = {text!r}: {reaches}")
            analysed = empty.select("*", F.expr(text).alias("verdict"))
            kind = analysed.schema["verdict"].dataType
            plan = analysed._jdf.queryExecution().analyzed()
        except PySparkException as error:
            raise ConfigError(f"mapping {mapping.name}: {key} = {text!r}: {reason_of(error)}") from error
        fault = None
        if plan.nodeName() != "Project" or plan.children().head().children().nonEmpty():
            fault = "must give one value for one row"
        elif not plan.expressions().last().deterministic():
            fault = "must give the same for the same row whenever it is asked"
        elif key.startswith("quarantine.") and kind.simpleString() != "boolean":
            fault = f"must be a condition, is of type {kind.simpleString()}"
        elif key == "event.event_time" and not isinstance(
            kind, (StringType, DateType, TimestampType, TimestampNTZType)
        ):
            fault = f"must be a timestamp, is of type {kind.simpleString()}"
        elif isinstance(kind, _NESTED_TYPES):
            fault = f"must be text or a number, is of type {kind.simpleString()}"
        if fault is not None:
            raise ConfigError(f"mapping {mapping.name}: {key} = {text!r}: {fault}")


def _beyond_the_row(spark: SparkSession, text: str) -> str | None:
    """The rule that an expression breaks by what it calls or reads; None if it breaks none."""
    jvm: Any = spark.sparkContext._jvm
    parsed = spark._jsparkSession.sessionState().sqlParser().parseExpression(text)
    if jvm.org.apache.spark.sql.catalyst.expressions.SubqueryExpression.hasSubquery(parsed):
        return "must not ask another table"
    waiting = [parsed]
    while waiting:
        node = waiting.pop()
        if node.nodeName() == "UnresolvedFunction":
            name = str(node.nameParts().last())
            if name.lower() in _REFLECTION:
                return f"must not call {name}, which runs any method of the JVM"
        children = node.children()
        waiting += [children.apply(i) for i in range(children.size())]
    return None


def parse(rows: DataFrame, mapping: Mapping) -> DataFrame:
    """Text lines (or Parquet rows) with the mapping's columns beside the raw row.

    Args:
        rows: `source_file`, and `raw` (a line) for json and csv, the file's own columns for Parquet. Rows of
            `quarantine` bring the `record_id` that they had.

    Returns:
        raw, source_file, _hash (what identifies a record without an id), _corrupt (a reason or null), _nested (the
        columns that hold an object or a list, among nulls) and the mapping's columns as strings. Blank lines and header
        lines are no rows and are not in it; a null `raw` (a Kafka message without a value) is one, and broken.
    """
    if mapping.format == "parquet":
        return _parse_parquet(rows, mapping)
    rows = rows.where(F.col("raw").isNull() | F.rlike("raw", F.lit(r"(?U)\S")))
    if mapping.format == "csv":
        # A header names the columns that the mapping declares; a byte order mark may precede it.
        header = F.regexp_replace("raw", '^\ufeff|["\\s]', "")
        columns_line = ",".join(c.replace(" ", "") for c in mapping.columns)
        rows = rows.where(F.coalesce(header != columns_line, F.lit(True)))
        rows = rows.withColumn("record", _csv_record(mapping))
        broken = F.col("record").isNull() | F.col(f"record.{_CORRUPT}").isNotNull()
        fault = f"expected {len(mapping.columns)} columns: {', '.join(mapping.columns)}"
        nested = F.array().cast("array<string>")
    else:
        framed = rows.withColumn("framed", _framed_json(mapping))
        rows = framed.withColumn("record", F.get("framed", F.lit(0)))
        broken = F.coalesce(F.size("framed") != 2, F.lit(True)) | F.col("record").isNull()
        fault = "not one JSON object on one line"
        nested = F.array(*[_nested_name(name) for name in mapping.columns])
    unreadable = (
        F.when(F.col("raw").isNull(), "a message without a value")
        .when(~F.is_valid_utf8("raw"), NOT_UTF8)
        .when(broken, fault)
    )
    # The hash is of the bytes as they came; what `quarantine` keeps may have been mended.
    hashed = F.col("record_id") if "record_id" in rows.columns else record_hash(F.coalesce("raw", F.lit("")))
    return rows.select(
        "raw",
        "source_file",
        hashed.alias("_hash"),
        unreadable.alias(_CORRUPT),
        nested.alias("_nested"),
        *[F.col(f"record.{_quote(c)}").alias(c) for c in mapping.columns],
    )


def _csv_record(mapping: Mapping) -> Column:
    """RFC 4180: a quote within quotes is doubled. Null or with `_CORRUPT` where the line is no record."""
    schema = ", ".join(f"{_quote(c)} string" for c in (*mapping.columns, _CORRUPT))
    options = {"mode": "PERMISSIVE", "columnNameOfCorruptRecord": _CORRUPT, "escape": '"'}
    few = (F.length("raw") < _MAX_CSV_COLUMNS) | (F.regexp_count("raw", F.lit(",")) < _MAX_CSV_COLUMNS)
    # A quoted field that the line leaves open goes on in the next line: half of it must not pass for the whole.
    odd = F.regexp_count("raw", F.lit('"')) % 2 == 1
    left_open = odd & F.rlike("raw", F.lit('(^|,)"([^"]|"")*$'))
    # A file's line has none; of a message that holds several lines, all but the first would be forgotten.
    several = F.rlike("raw", F.lit(r"[\r\n]"))
    return F.from_csv(F.when(few & ~left_open & ~several, F.col("raw")), schema, options)


def _framed_json(mapping: Mapping) -> Column:
    """The line as the first of a list of two, or something else where it is not one JSON object.

    `from_json` reads the first object of a line and forgets what follows it; within a list that is closed by a
    second object, it cannot.
    """
    schema = f"array<struct<{', '.join(f'{_quote(c)}: string' for c in mapping.columns)}>>"
    return F.from_json(F.concat(F.lit("["), F.col("raw"), F.lit(",{}]")), schema)


def _nested_name(name: str) -> Column:
    """The name where the raw JSON holds an object or a list under it; as a string it would look like an id.

    Not with AND: null AND x asks for x too, and of two such terms Spark computes what they share for every row.
    """
    text = F.col(f"record.{_quote(name)}")
    at = "$['" + name.replace("\\", "\\\\").replace("'", "\\'") + "']"
    kind = F.schema_of_variant(F.try_variant_get(F.try_parse_json("raw"), at, "variant"))
    is_nested = F.coalesce(F.rlike(kind, F.lit("^(OBJECT|ARRAY)")), F.lit(True))
    return F.when(F.rlike(text, F.lit(r"^[\[{]")), F.when(is_nested, F.lit(name)))


def _parse_parquet(rows: DataFrame, mapping: Mapping) -> DataFrame:
    kinds = {field.name: field.dataType for field in rows.schema if field.name != "source_file"}
    # By name: the same record is the same text, whatever the order of a file's columns. Values as the mapping sees
    # them, so that it sees them again when a quarantined row is replayed.
    texts = {c: _quote(c) if isinstance(k, _NESTED_TYPES) else f"cast({_quote(c)} as string)" for c, k in kinds.items()}
    raw = F.to_json(F.struct(*[F.expr(texts[c]).alias(c) for c in sorted(kinds)]))
    columns, nested, valid = [], [], F.lit(True)
    for name in mapping.columns:
        if name not in kinds:
            columns.append(F.lit(None).cast("string").alias(name))
            continue
        column = F.col(_quote(name))
        columns.append(column.cast("string").alias(name))
        valid = valid & F.coalesce(F.is_valid_utf8(column.cast("string")), F.lit(True))
        if isinstance(kinds[name], _NESTED_TYPES):
            nested.append(F.when(column.isNotNull(), F.lit(name)))
    return rows.select(
        raw.alias("raw"),
        "source_file",
        record_hash(raw).alias("_hash"),
        F.when(~valid, NOT_UTF8).alias(_CORRUPT),
        F.array(*nested).cast("array<string>").alias("_nested"),
        *columns,
    )


def batch_clock() -> Column:
    """`current_timestamp()` of the micro-batch, or of the query: a replayed micro-batch sees the same.

    Spark writes a timestamp that is a constant of the plan into the code that it generates, and so would compile the
    code of every micro-batch anew. Lambdas it interprets: what is in one does not change the code.
    """
    return F.get(F.transform(F.array(F.lit(0)), lambda _: F.current_timestamp()), F.lit(0))


def judge(parsed: DataFrame, mapping: Mapping, rules: EventsConfig) -> DataFrame:
    """Each row as an event, or with the reason why it is none.

    Returns:
        event_id, user_id, item_id, event_type, value, event_time; and `JUDGED`: record_id (the event_id, or
        the raw record's hash where `reason` is set), reason and detail (null for an event), raw, source_file.
        The clock is `batch_clock()`, which a replayed micro-batch sees unchanged.
    """
    fields = mapping.event
    event_id, value = (
        (F.expr(text) if text else F.lit(None)).cast("string") for text in (fields.event_id, fields.value)
    )
    event_time = F.expr(fields.event_time)
    kind = parsed.select(event_time.alias("at")).schema["at"].dataType
    event = F.struct(
        event_id.alias("id"),
        F.expr(fields.user_id).cast("string").alias("user"),
        F.expr(fields.item_id).cast("string").alias("item"),
        F.expr(fields.event_type).cast("string").alias("type"),
        value.alias("value_text"),
        value.try_cast("double").alias("value"),
        event_time.cast("string").alias("time_text"),
        _timestamp(event_time, kind).alias("time"),
    )
    mapped = parsed.withColumn("_event", event)
    verdict = F.lit(None).cast("struct<reason:string,detail:string>")
    for applies, reason, detail in reversed(list(_rules(mapping, rules))):
        found = F.struct(F.lit(reason).alias("reason"), detail.cast("string").alias("detail"))
        verdict = F.when(F.coalesce(applies, F.lit(False)), found).otherwise(verdict)
    judged = mapped.withColumn("verdict", verdict)
    own_id = F.when(~_blank("_event.id"), F.col("_event.id"))
    hashed = F.col("_hash")
    is_event = F.col("verdict").isNull()
    return judged.select(
        F.coalesce(own_id, hashed).alias("event_id"),
        F.col("_event.user").alias("user_id"),
        F.col("_event.item").alias("item_id"),
        F.col("_event.type").alias("event_type"),
        F.col("_event.value").alias("value"),
        F.col("_event.time").alias("event_time"),
        F.when(is_event, F.coalesce(own_id, hashed)).otherwise(hashed).alias("record_id"),
        F.col("verdict.reason").alias("reason"),
        F.make_valid_utf8(F.col("verdict.detail")).alias("detail"),
        F.make_valid_utf8("raw").alias("raw"),
        "source_file",
    )


def _timestamp(column: Column, kind: DataType) -> Column:
    """Null where it is none. Text must begin with a whole date: Spark reads "12:30" as today, by the clock."""
    at = column.try_cast("timestamp")
    if isinstance(kind, StringType):
        at = F.when(F.rlike(column, F.lit(r"^\s*[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}")), at)
    return F.when(F.year(at) >= 1, at)  # Python knows no year 0


def _blank(column: str) -> Column:
    """Null, or nothing to see: white space (not just ASCII's), control and format characters."""
    return ~F.coalesce(F.rlike(F.col(column), F.lit(r"(?U)[^\s\p{Cc}\p{Cf}]")), F.lit(False))


def _quote(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"


def _rules(mapping: Mapping, rules: EventsConfig) -> Iterator[tuple[Column, str, Column]]:
    """(condition, reason, detail) in the order in which they are asked; the first that holds counts."""
    yield F.col(_CORRUPT).isNotNull(), f"broken {mapping.format}", F.col(_CORRUPT)
    for rule in mapping.quarantine:
        yield F.expr(rule.where), rule.reason, F.lit(rule.why)
    ids = (("event_id", "_event.id"), ("user_id", "_event.user"), ("item_id", "_event.item"))
    for name in (name for name, _ in ids if getattr(mapping.event, name) in mapping.columns):
        # Only where the field is a column as it stands: an expression knows what it takes out of an object.
        nested = F.array_contains("_nested", F.lit(getattr(mapping.event, name)))
        yield nested, f"nested {name}", F.lit(f"{name} is an object or a list, not text or a number")
    for name, column in ids[1:]:
        yield _blank(column), f"missing {name}", F.lit(f"{name} is null or blank")
    for name, column in ids:
        detail = F.format_string(f"{name} has %d characters, {MAX_ID_LENGTH} are allowed", F.length(column))
        yield F.length(column) > MAX_ID_LENGTH, f"overlong {name}", detail
    known = list(rules.weights)
    detail = F.concat(F.lit("event_type "), _quoted("_event.type"), F.lit(f" is none of {', '.join(known)}"))
    yield ~F.coalesce(F.col("_event.type").isin(known), F.lit(False)), "unknown event_type", detail
    read_as = f", read as {mapping.event.event_time}, is no timestamp"
    detail = F.concat(F.lit("event_time "), _quoted("_event.time_text"), F.lit(read_as))
    yield F.col("_event.time").isNull(), "unparsable event_time", detail
    ahead = batch_clock() + F.make_dt_interval(secs=F.lit(60 * rules.max_future_minutes))
    detail = F.concat(
        F.lit("event_time "),
        F.col("_event.time").cast("string"),
        F.lit(f" is more than {rules.max_future_minutes:g} minutes ahead of the clock"),
    )
    yield F.col("_event.time") > ahead, "future event_time", detail
    detail = F.concat(
        F.lit("value "), _quoted("_event.value_text"), F.lit(f" is not a number from -{MAX_VALUE:g} to {MAX_VALUE:g}")
    )
    usable = ~F.isnan("_event.value") & (F.abs("_event.value") <= MAX_VALUE)
    yield ~_blank("_event.value_text") & ~F.coalesce(usable, F.lit(False)), "invalid value", detail
    required = list(rules.value_required)
    detail = F.concat(F.lit("an event of type "), _quoted("_event.type"), F.lit(" needs a value"))
    yield F.col("_event.type").isin(required) & F.col("_event.value").isNull(), "missing value", detail


def _quoted(column: str) -> Column:
    return F.concat(F.lit("'"), F.coalesce(F.substring(column, 1, 100), F.lit("null")), F.lit("'"))
