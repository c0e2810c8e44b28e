"""Every rule of the event contract: a row, and the reason for which it is no event (None: it is one)."""

from __future__ import annotations

import datetime as dt
import hashlib
import json

import pytest
from pyspark.sql import DataFrame, Row, SparkSession
from pyspark.sql import functions as F

from foldin.config import EventsConfig, load_config
from foldin.events import MAX_ID_LENGTH, check_expressions, judge, parse
from foldin.mapping import Mapping, contract, load_mapping, load_settings

CONFIG = load_config(
    sets=["events.weights={view=1, purchase=5, rating=1}", "events.value_required=['rating']"],
)
JSON, CSV, PARQUET = (contract(load_config(sets=[f"ingest.format={name}"])) for name in ("json", "csv", "parquet"))
GOOD = {"event_id": "e1", "user_id": "u1", "item_id": "i1", "event_type": "view", "event_time": "2024-05-01 10:00:00"}


def _in_minutes(minutes: float) -> str:
    return (dt.datetime.now(dt.UTC) + dt.timedelta(minutes=minutes)).isoformat()


def _json(**change: object) -> str:
    """A good event with some fields changed, or left out where the value is `...`."""
    return json.dumps({k: v for k, v in (GOOD | change).items() if v is not ...})


JSON_CASES = {
    "a whole event": (_json(value=2.5), None),
    "no event_id": (_json(event_id=...), None),
    "null event_id": (_json(event_id=None), None),
    "blank event_id": (_json(event_id=" "), None),
    "numeric ids": (_json(event_id=7, user_id=12345678901234567890, item_id=1.5), None),
    "an id that only looks like a list": (_json(user_id="[1]"), None),
    "an id that only looks like an object": (_json(item_id='{"a": 1}'), None),
    "text before and after": ("  " + _json() + "\t", None),
    "unknown keys": (_json(colour="red"), None),
    "letters of the world": (_json(user_id="Zoë", item_id="日本🎌"), None),
    "longest ids": (_json(event_id="e" * 512, user_id="u" * 512, item_id="i" * 512), None),
    "value zero": (_json(value=0), None),
    "negative value": (_json(value=-3), None),
    "value as text": (_json(value="2.5"), None),
    "blank value": (_json(value=" "), None),
    "null value": (_json(value=None), None),
    "largest value": (_json(value=1e12), None),
    "rating with a value": (_json(event_type="rating", value=4), None),
    "time with a zone": (_json(event_time="2024-05-01T10:00:00+02:00"), None),
    "a date alone": (_json(event_time="2024-05-01"), None),
    "just inside the future": (_json(event_time=_in_minutes(50)), None),
    "cut off": ('{"event_id": "e1", "user_id"', "broken json"),
    "no JSON": ("hello", "broken json"),
    "a list": ("[" + _json() + "]", "broken json"),
    "a list of two events": ("[" + _json() + "," + _json(event_id="e2") + "]", "broken json"),
    "a number": ("17", "broken json"),
    "a string": ('"event"', "broken json"),
    "null": ("null", "broken json"),
    "two events on a line": (_json() + " " + _json(event_id="e2"), "broken json"),
    "two events on a line with a comma": (_json() + "," + _json(event_id="e2"), "broken json"),
    "something after the event": (_json() + "]x", "broken json"),
    "a trailing comma": (_json()[:-1] + ",}", "broken json"),
    "depth without end": ('{"user_id": ' + "[" * 5000 + "]" * 5000 + "}", "broken json"),
    "digits without end": ('{"user_id": ' + "1" * 5000 + "}", "broken json"),
    "an empty object": ("{}", "missing user_id"),
    "no user_id": (_json(user_id=...), "missing user_id"),
    "null user_id": (_json(user_id=None), "missing user_id"),
    "empty user_id": (_json(user_id=""), "missing user_id"),
    "blank user_id": (_json(user_id="  "), "missing user_id"),
    "a tab as user_id": (_json(user_id="\t"), "missing user_id"),
    "invisible user_id": (_json(user_id="\u00a0\u200b\ufeff\u0000"), "missing user_id"),
    "no item_id": (_json(item_id=...), "missing item_id"),
    "null item_id": (_json(item_id=None), "missing item_id"),
    "empty item_id": (_json(item_id=""), "missing item_id"),
    "an object as user_id": (_json(user_id={"id": "u1"}), "nested user_id"),
    "a list as item_id": (_json(item_id=["i1"]), "nested item_id"),
    "an object as event_id": (_json(event_id={}), "nested event_id"),
    "overlong event_id": (_json(event_id="e" * 513), "overlong event_id"),
    "overlong user_id": (_json(user_id="u" * 513), "overlong user_id"),
    "overlong item_id": (_json(item_id="i" * 513), "overlong item_id"),
    "unknown type": (_json(event_type="teleport"), "unknown event_type"),
    "type in capitals": (_json(event_type="VIEW"), "unknown event_type"),
    "no type": (_json(event_type=...), "unknown event_type"),
    "an object as type": (_json(event_type={"view": 1}), "unknown event_type"),
    "no time": (_json(event_time=...), "unparsable event_time"),
    "null time": (_json(event_time=None), "unparsable event_time"),
    "a word as time": (_json(event_time="yesterday"), "unparsable event_time"),
    "a thirteenth month": (_json(event_time="2024-13-01 00:00:00"), "unparsable event_time"),
    "a number as time": (_json(event_time=1714557600), "unparsable event_time"),
    "a time without a date": (_json(event_time="12:30"), "unparsable event_time"),
    "a year alone": (_json(event_time="2024"), "unparsable event_time"),
    "a time before our era": (_json(event_time="-0044-03-15"), "unparsable event_time"),
    "the year 0": (_json(event_time="0000-01-01"), "unparsable event_time"),
    "just beyond the future": (_json(event_time=_in_minutes(75)), "future event_time"),
    "the far future": (_json(event_time="9999-12-31 00:00:00"), "future event_time"),
    "NaN": (_json(value=float("nan")), "invalid value"),
    "NaN as text": (_json(value="NaN"), "invalid value"),
    "infinite": (_json(value=float("-inf")), "invalid value"),
    "infinite as text": (_json(value="Infinity"), "invalid value"),
    "overflows to infinite": (_json(value="1e400"), "invalid value"),
    "absurdly large": (_json(value=1.1e12), "invalid value"),
    "absurdly small": (_json(value=-1e30), "invalid value"),
    "a word as value": (_json(value="many"), "invalid value"),
    "a boolean as value": (_json(value=True), "invalid value"),
    "an object as value": (_json(value={"a": 1}), "invalid value"),
    "a rating without a value": (_json(event_type="rating"), "missing value"),
    "a rating with a blank value": (_json(event_type="rating", value=""), "missing value"),
    "NaN as a rating": (_json(event_type="rating", value=float("nan")), "invalid value"),
}

CSV_CASES = {
    "a whole event": ("e1,u1,i1,view,2.5,2024-05-01 10:00:00", None),
    "no event_id, no value": (",u1,i1,view,,2024-05-01", None),
    "quoted": ('"e1","u1","i1","view","1","2024-05-01"', None),
    "a quoted comma": ('e1,u1,"lamp, red",view,1,2024-05-01', None),
    "a doubled quote and a comma": ('e1,u1,"6"" lamp, red",view,1,2024-05-01', None),
    "a backslash before a quote": ('e1,u1,"a\\",view,1,2024-05-01', None),
    "a bare quote": ('e1,u1,6" lamp,view,1,2024-05-01', None),
    "a comma first in quotes and a bare quote": ('e1,",u",6" lamp,view,1,2024-05-01', None),
    "too few columns": ("e1,u1,i1,view,1", "broken csv"),
    "too many columns": ("e1,u1,i1,view,1,2024-05-01,x", "broken csv"),
    "an unquoted comma": ("e1,u1,lamp, red,view,1,2024-05-01", "broken csv"),
    "a quote left open": ('e1,"u1,i1,view,1,2024-05-01', "broken csv"),
    "a last quote left open": ('e1,u1,i1,view,1,"2024-05-01', "broken csv"),
    "commas without end": ("e1" + "," * 30_000, "broken csv"),
    "one word": ("hello", "broken csv"),
    "the header in another order": ("user_id,event_id,item_id,event_type,value,event_time", "unknown event_type"),
    "empty user_id": ("e1,,i1,view,1,2024-05-01", "missing user_id"),
    "quoted empty user_id": ('e1,"",i1,view,1,2024-05-01', "missing user_id"),
    "unknown type": ("e1,u1,i1,teleport,1,2024-05-01", "unknown event_type"),
    "a space before the type": ("e1,u1,i1, view,1,2024-05-01", "unknown event_type"),
    "no time": ("e1,u1,i1,view,1,", "unparsable event_time"),
    "NaN": ("e1,u1,i1,view,nan,2024-05-01", "invalid value"),
    "a rating without a value": ("e1,u1,i1,rating,,2024-05-01", "missing value"),
}

RETAIL_CASES = {
    "a purchase": ("536365,85123A,LAMP,6,2010-12-01 08:26:00,2.55,17850.0,United Kingdom", None),
    "a quoted comma": ('536365,22423,"CAKESTAND, 3 TIER",6,2010-12-01 08:26:00,2.55,17850.0,EIRE', None),
    "a cancellation": ("C536379,22423,LAMP,-1,2010-12-01 09:41:00,27.5,14527.0,United Kingdom", None),
    "a stock adjustment": ("536589,21777,,-10,2010-12-01 16:50:00,0.0,,United Kingdom", "stock adjustment"),
    "nothing sold": ("536589,21777,,0,2010-12-01 16:50:00,0.0,,United Kingdom", "stock adjustment"),
    "bad debt": ("A563185,B,Adjust bad debt,1,2011-08-12 14:50:00,11062.06,,United Kingdom", "bad debt"),
    "bad debt, negative": ("A563186,B,Adjust bad debt,1,2011-08-12 14:51:00,-11062.06,,United Kingdom", "bad debt"),
    "no customer": ("536544,21773,LAMP,1,2010-12-01 14:32:00,2.51,,United Kingdom", "no customer"),
    "postage": ("536370,POST,POSTAGE,3,2010-12-01 08:45:00,18.0,12583.0,France", "not goods"),
    "a refunded manual entry": ("C536642,M,Manual,-1,2010-12-02 11:56:00,1.0,14390.0,United Kingdom", "not goods"),
    "a discount": ("C536379,D,Discount,-1,2010-12-01 09:41:00,27.5,14527.0,United Kingdom", "not goods"),
    "bank charges": ("C569244,BANK CHARGES,,1,2010-12-01 09:41:00,15,14527.0,United Kingdom", "not goods"),
    "no time": ("536365,85123A,LAMP,6,12/1/10 8:26,2.55,17850.0,United Kingdom", "unparsable event_time"),
}

MOVIELENS_CASES = {
    "a rating": ("1,31,2.5,1260759144", None),
    "an empty rating": ("1,31,,1260759144", "missing value"),
    "a word as rating": ("1,31,good,1260759144", "invalid value"),
    "no number as time": ("1,31,2.5,then", "unparsable event_time"),
    "a time beyond all clocks": ("1,31,2.5,9223372036854775807", "future event_time"),
}

TABLES = {
    "json": (JSON, CONFIG.events, JSON_CASES),
    "csv": (CSV, CONFIG.events, CSV_CASES),
    "online_retail": (*reversed(load_settings(mapping="online_retail")), RETAIL_CASES),
    "movielens": (*reversed(load_settings(mapping="movielens")), MOVIELENS_CASES),
}


def as_text(judged: DataFrame) -> DataFrame:
    """Times as text in UTC: Python would show them in the machine's time zone, and some not at all."""
    return judged.withColumn("event_time", F.col("event_time").cast("string"))


def judged_lines(spark: SparkSession, mapping: Mapping, rules: EventsConfig, lines: list[str]) -> list[Row]:
    """The verdict on each line, in order; a line that is no row has none."""
    rows = spark.createDataFrame([(line, str(n)) for n, line in enumerate(lines)], "raw string, source_file string")
    judged = as_text(judge(parse(rows, mapping), mapping, rules)).collect()
    return sorted(judged, key=lambda row: int(row["source_file"]))


@pytest.fixture(scope="module")
def verdicts(spark: SparkSession) -> dict[str, dict[str, Row]]:
    """All cases of each table, judged in one go."""
    result = {}
    for table, (mapping, rules, cases) in TABLES.items():
        rules = getattr(rules, "events", rules)
        rows = judged_lines(spark, mapping, rules, [line for line, _ in cases.values()])
        assert len(rows) == len(cases)
        result[table] = dict(zip(cases, rows, strict=True))
    return result


@pytest.mark.parametrize(
    ("table", "case"), [(table, case) for table, (_, _, cases) in TABLES.items() for case in cases]
)
def test_a_row_is_an_event_or_has_the_reason_of_the_rule_that_it_breaks(
    verdicts: dict[str, dict[str, Row]], table: str, case: str
) -> None:
    line, reason = TABLES[table][2][case]
    row = verdicts[table][case]
    assert row["reason"] == reason, row["detail"]
    assert row["raw"] == line
    assert (row["detail"] is None) == (reason is None)
    if reason is None:
        assert row["record_id"] == row["event_id"]
        assert row["user_id"]
        assert row["item_id"]
        assert row["event_time"] is not None
    else:
        assert row["record_id"] == hashlib.sha256(line.encode()).hexdigest()[:32]


def test_every_rule_has_a_case() -> None:
    seen = {reason for _, _, cases in TABLES.values() for _, reason in cases.values()}
    fields = ("event_id", "user_id", "item_id")
    expected = {f"overlong {f}" for f in fields} | {f"nested {f}" for f in fields}
    expected |= {"broken json", "broken csv", "missing user_id", "missing item_id", "unknown event_type"}
    expected |= {"unparsable event_time", "future event_time", "invalid value", "missing value"}
    expected |= {rule.reason for rule in load_mapping("online_retail").quarantine}
    assert seen == expected | {None}


@pytest.mark.parametrize(
    ("table", "case", "field", "value"),
    [
        ("json", "numeric ids", "event_id", "7"),
        ("json", "numeric ids", "user_id", "12345678901234567890"),
        ("json", "numeric ids", "item_id", "1.5"),
        ("json", "a whole event", "value", 2.5),
        ("json", "blank value", "value", None),
        ("json", "time with a zone", "event_time", "2024-05-01 08:00:00"),
        ("json", "no event_id", "event_id", hashlib.sha256(_json(event_id=...).encode()).hexdigest()[:32]),
        ("csv", "no event_id, no value", "event_id", hashlib.sha256(b",u1,i1,view,,2024-05-01").hexdigest()[:32]),
        ("csv", "a doubled quote and a comma", "item_id", '6" lamp, red'),
        ("csv", "a backslash before a quote", "item_id", "a\\"),
        ("csv", "a bare quote", "item_id", '6" lamp'),
        ("online_retail", "a purchase", "user_id", "17850"),
        ("online_retail", "a purchase", "event_type", "purchase"),
        ("online_retail", "a cancellation", "event_type", "cancellation"),
        ("movielens", "a rating", "value", 2.5),
        ("movielens", "a rating", "event_time", "2009-12-14 02:52:24"),
    ],
)
def test_an_event_holds_what_the_row_said(
    verdicts: dict[str, dict[str, Row]], table: str, case: str, field: str, value: object
) -> None:
    assert verdicts[table][case][field] == value


@pytest.mark.parametrize(
    ("case", "detail"),
    [
        ("unknown type", "event_type 'teleport' is none of view, purchase, rating"),
        ("a word as time", "event_time 'yesterday', read as event_time, is no timestamp"),
        ("a word as value", "value 'many' is not a number from -1e+12 to 1e+12"),
        ("overlong user_id", "user_id has 513 characters, 512 are allowed"),
        ("a rating without a value", "an event of type 'rating' needs a value"),
        ("null user_id", "user_id is null or blank"),
    ],
)
def test_the_detail_names_the_value_and_the_rule(verdicts: dict[str, dict[str, Row]], case: str, detail: str) -> None:
    assert verdicts["json"][case]["detail"] == detail
    assert MAX_ID_LENGTH == 512


def test_header_and_blank_lines_are_no_rows(spark: SparkSession) -> None:
    header = "event_id,user_id,item_id,event_type,value,event_time"
    lines = ["", "  ", "\t", "\u00a0", header, "\ufeff" + header, header.replace(",", '","').join('""'), header + "\r"]
    assert judged_lines(spark, CSV, CONFIG.events, lines) == []
    assert judged_lines(spark, JSON, CONFIG.events, ["", " ", "\t "]) == []


def test_lines_that_are_not_utf8_are_quarantined_each_by_its_own_bytes(spark: SparkSession) -> None:
    lines = [
        _json(user_id="caf#").replace("#", "\ufffd").encode().replace("\ufffd".encode(), b) for b in (b"\xe8", b"\xe9")
    ]
    rows = spark.createDataFrame([(bytearray(line),) for line in lines], "raw binary").select(
        F.expr("cast(raw as string)").alias("raw"), F.lit("x").alias("source_file")
    )
    found = judge(parse(rows, JSON), JSON, CONFIG.events).collect()
    assert [row["reason"] for row in found] == ["broken json"] * 2
    assert {row["detail"] for row in found} == {"not UTF-8 text"}
    assert {row["record_id"] for row in found} == {hashlib.sha256(line).hexdigest()[:32] for line in lines}
    assert {row["raw"] for row in found} == {_json(user_id="caf#").replace("#", "\ufffd")}


def parquet_frame(spark: SparkSession, select: str) -> DataFrame:
    return spark.range(1).selectExpr(*[part.strip() for part in select.split(";")], "'file' as source_file")


TYPED = "'e1' as event_id; 1L as user_id; cast(2 as smallint) as item_id; 'view' as event_type"
PARQUET_CASES = {
    "typed columns": (TYPED + "; 1.5f as value; timestamp'2024-05-01 10:00:00' as event_time", None),
    "a timestamp without a zone": (TYPED + "; 1.5 as value; timestamp_ntz'2024-05-01 10:00:00' as event_time", None),
    "a date": (TYPED + "; null as value; date'2024-05-01' as event_time", None),
    "columns in another order, one more, no value": (
        "'view' as event_type; 'x' as more; '2024-05-01' as event_time; 'i' as item_id; 'u' as user_id",
        None,
    ),
    "columns that are named like ours": (
        "'view' as event_type; 1 as raw; 2 as record; '2024-05-01' as event_time; 'i' as item_id; 'u' as user_id",
        None,
    ),
    "bytes as ids": (
        "encode('u', 'utf-8') as user_id; 'i' as item_id; 'view' as event_type; '2024-05-01' as event_time",
        None,
    ),
    "null user_id": (
        TYPED.replace("1L", "cast(null as bigint)") + "; current_timestamp() as event_time",
        "missing user_id",
    ),
    "no such column": ("1 as something", "missing user_id"),
    "an object as user_id": (
        TYPED.replace("1L", "struct(1)") + "; current_timestamp() as event_time",
        "nested user_id",
    ),
    "a list as item_id": (
        TYPED.replace("cast(2 as smallint)", "array('i')") + "; current_timestamp() as event_time",
        "nested item_id",
    ),
    "NaN": (TYPED + "; double('nan') as value; current_timestamp() as event_time", "invalid value"),
    "too large": (TYPED + "; 1e13 as value; current_timestamp() as event_time", "invalid value"),
    "far future": (TYPED + "; timestamp'2999-01-01' as event_time", "future event_time"),
    "null time": (TYPED + "; cast(null as timestamp) as event_time", "unparsable event_time"),
    "not UTF-8": (TYPED.replace("1L", "X'e9'") + "; current_timestamp() as event_time", "broken parquet"),
}


@pytest.fixture(scope="module")
def parquet_verdicts(spark: SparkSession) -> dict[str, Row]:
    frames = [
        judge(parse(parquet_frame(spark, select), PARQUET), PARQUET, CONFIG.events).withColumn("case", F.lit(case))
        for case, (select, _) in PARQUET_CASES.items()
    ]
    every = frames[0]
    for frame in frames[1:]:
        every = every.union(frame)
    return {row["case"]: row for row in as_text(every).collect()}


@pytest.mark.parametrize("case", PARQUET_CASES)
def test_a_parquet_row_is_judged_by_the_same_rules(parquet_verdicts: dict[str, Row], case: str) -> None:
    row = parquet_verdicts[case]
    assert row["reason"] == PARQUET_CASES[case][1], row["detail"]
    json.loads(row["raw"])


def test_parquet_types_become_the_contracts(parquet_verdicts: dict[str, Row]) -> None:
    row = parquet_verdicts["typed columns"]
    assert (row["user_id"], row["item_id"], row["value"]) == ("1", "2", 1.5)
    assert row["event_time"] == "2024-05-01 10:00:00"
    assert parquet_verdicts["a timestamp without a zone"]["event_time"] == row["event_time"]


def test_a_parquet_record_without_an_id_has_the_same_id_whatever_the_order_of_the_columns(spark: SparkSession) -> None:
    columns = ["'u' as user_id", "'i' as item_id", "'view' as event_type", "timestamp'2024-05-01' as event_time"]
    ids = {
        judge(parse(parquet_frame(spark, "; ".join(order)), PARQUET), PARQUET, CONFIG.events).first()["event_id"]
        for order in (columns, columns[::-1])
    }
    assert len(ids) == 1


def test_the_shipped_mappings_and_the_contract_pass_sparks_analysis(spark: SparkSession) -> None:
    for mapping in (JSON, CSV, PARQUET, load_mapping("online_retail"), load_mapping("movielens")):
        check_expressions(spark, mapping)
