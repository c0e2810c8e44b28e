"""Raw rows to events: parse, judge by the contract, give every row an identity.

DataFrames in, DataFrames out, all in Spark's own expressions; reading and writing is `ingest`'s.
"""

from __future__ import annotations

from collections.abc import Iterator

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from foldin.config import EventsConfig
from foldin.mapping import Mapping

__all__ = ["JUDGED", "MAX_ID_LENGTH", "judge", "parse", "record_hash"]

MAX_ID_LENGTH = 512
"""Longer ids are refused: they come from broken quoting, and every one of them would sit in the state."""

JUDGED = ("record_id", "reason", "detail", "raw", "source_file")
"""The columns that `judge` gives beside the event's own."""

_CORRUPT = "_corrupt"


def record_hash(raw: Column) -> Column:
    """128 bits of SHA-256 in hex: the identity of a record without one, equal for equal text."""
    return F.substring(F.sha2(raw, 256), 1, 32)


def parse(rows: DataFrame, mapping: Mapping) -> DataFrame:
    """Text lines (or Parquet rows) with the mapping's columns beside the raw row.

    Args:
        rows: `raw` and `source_file` for json and csv; `source_file` and the file's columns for Parquet.

    Returns:
        raw, source_file, _corrupt (a reason or null) and the mapping's columns as strings. Blank
        lines and header lines are no rows and are not in it.
    """
    if mapping.format == "parquet":
        columns = [c for c in rows.columns if c != "source_file"]
        raw = F.to_json(F.struct(*[F.col(f"`{c}`") for c in columns]))
        missing = [F.lit(None).cast("string").alias(c) for c in mapping.columns if c not in columns]
        found = [F.col(f"`{c}`").cast("string").alias(c) for c in mapping.columns if c in columns]
        no_fault = F.lit(None).cast("string").alias(_CORRUPT)
        return rows.select(raw.alias("raw"), "source_file", no_fault, *found, *missing)

    rows = rows.where(F.length(F.trim("raw")) > 0)
    schema = ", ".join(f"`{c}` string" for c in (*mapping.columns, _CORRUPT))
    options = {"mode": "PERMISSIVE", "columnNameOfCorruptRecord": _CORRUPT}
    if mapping.format == "csv":
        # A header names the columns that the mapping declares; a byte order mark may precede it.
        header = F.regexp_replace("raw", '^\ufeff|["\\s]', "")
        rows = rows.where(header != ",".join(c.replace(" ", "") for c in mapping.columns))
        record = F.from_csv("raw", schema, options)
        fault = f"expected {len(mapping.columns)} columns: {', '.join(mapping.columns)}"
    else:
        record = F.from_json("raw", schema, options)
        fault = "not a JSON object on one line"
    rows = rows.withColumn("record", record)
    broken = F.col("record").isNull() | F.col(f"record.{_CORRUPT}").isNotNull()
    return rows.select(
        "raw",
        "source_file",
        F.when(broken, fault).alias(_CORRUPT),
        *[F.col(f"record.`{c}`").alias(c) for c in mapping.columns],
    )


def judge(parsed: DataFrame, mapping: Mapping, rules: EventsConfig) -> DataFrame:
    """Each row as an event, or with the reason why it is none.

    Returns:
        event_id, user_id, item_id, event_type, value, event_time; and `JUDGED`: record_id (the event_id, or
        the raw record's hash where `reason` is set), reason and detail (null for an event), raw, source_file.
        The clock is `current_timestamp()`, which a replayed micro-batch sees unchanged.
    """
    fields = mapping.event
    value_text = F.expr(fields.value) if fields.value else F.lit(None)
    mapped = parsed.select(
        "*",
        (F.expr(fields.event_id) if fields.event_id else F.lit(None)).cast("string").alias("e_id"),
        F.expr(fields.user_id).cast("string").alias("e_user"),
        F.expr(fields.item_id).cast("string").alias("e_item"),
        F.expr(fields.event_type).cast("string").alias("e_type"),
        value_text.cast("string").alias("e_value_text"),
        F.expr(fields.event_time).cast("timestamp").alias("e_time"),
    ).withColumn("e_value", F.expr("try_cast(e_value_text as double)"))
    verdict = F.lit(None).cast("struct<reason:string,detail:string>")
    for applies, reason, detail in reversed(list(_rules(mapping, rules))):
        found = F.struct(F.lit(reason).alias("reason"), detail.cast("string").alias("detail"))
        verdict = F.when(F.coalesce(applies, F.lit(False)), found).otherwise(verdict)
    judged = mapped.withColumn("verdict", verdict)
    own_id = F.when(F.length(F.trim("e_id")) > 0, F.col("e_id"))
    hashed = record_hash(F.col("raw"))
    is_event = F.col("verdict").isNull()
    return judged.select(
        F.coalesce(own_id, hashed).alias("event_id"),
        F.col("e_user").alias("user_id"),
        F.col("e_item").alias("item_id"),
        F.col("e_type").alias("event_type"),
        F.col("e_value").alias("value"),
        F.col("e_time").alias("event_time"),
        F.when(is_event, F.coalesce(own_id, hashed)).otherwise(hashed).alias("record_id"),
        F.col("verdict.reason").alias("reason"),
        F.col("verdict.detail").alias("detail"),
        "raw",
        "source_file",
    )


def _rules(mapping: Mapping, rules: EventsConfig) -> Iterator[tuple[Column, str, Column]]:
    """(condition, reason, detail) in the order in which they are asked; the first that holds counts."""
    yield F.col(_CORRUPT).isNotNull(), f"broken {mapping.format}", F.col(_CORRUPT)
    for rule in mapping.quarantine:
        yield F.expr(rule.where), rule.reason, F.lit(rule.why)
    for name, column in (("user_id", "e_user"), ("item_id", "e_item")):
        blank = F.length(F.trim(F.coalesce(column, F.lit("")))) == 0
        yield blank, f"missing {name}", F.lit(f"{name} is null or blank")
    for name, column in (("event_id", "e_id"), ("user_id", "e_user"), ("item_id", "e_item")):
        detail = F.format_string(f"{name} has %d characters, {MAX_ID_LENGTH} are allowed", F.length(column))
        yield F.length(column) > MAX_ID_LENGTH, f"overlong {name}", detail
    known = list(rules.weights)
    detail = F.concat(F.lit("event_type "), _quoted("e_type"), F.lit(f" is none of {', '.join(known)}"))
    yield ~F.coalesce(F.col("e_type").isin(known), F.lit(False)), "unknown event_type", detail
    detail = F.lit(f"event_time, read as {mapping.event.event_time}, is no timestamp")
    yield F.col("e_time").isNull(), "unparsable event_time", detail
    ahead = F.current_timestamp() + F.make_dt_interval(secs=F.lit(60 * rules.max_future_minutes))
    detail = F.concat(
        F.lit("event_time "),
        F.col("e_time").cast("string"),
        F.lit(f" is more than {rules.max_future_minutes:g} minutes ahead of the clock"),
    )
    yield F.col("e_time") > ahead, "future event_time", detail
    given = F.length(F.trim(F.coalesce("e_value_text", F.lit("")))) > 0
    detail = F.concat(F.lit("value "), _quoted("e_value_text"), F.lit(" is not a finite number"))
    finite = ~F.isnan("e_value") & (F.abs("e_value") != float("inf"))
    yield given & ~F.coalesce(finite, F.lit(False)), "invalid value", detail
    required = list(rules.value_required)
    detail = F.concat(F.lit("an event of type "), _quoted("e_type"), F.lit(" needs a value"))
    yield F.col("e_type").isin(required) & F.col("e_value").isNull(), "missing value", detail


def _quoted(column: str) -> Column:
    return F.concat(F.lit("'"), F.coalesce(F.substring(column, 1, 100), F.lit("null")), F.lit("'"))
