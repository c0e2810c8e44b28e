"""Mapping files: the shipped ones, and what a wrong one says."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from foldin.config import conf_dir, load_config
from foldin.errors import ConfigError
from foldin.events import check_expressions
from foldin.mapping import Mapping, contract, load_mapping, load_settings

GOOD = """
name = "Radio"
format = "json"
columns = ["id", "who", "what", "when"]
[event]
user_id = "who"
item_id = "what"
event_type = "'listen'"
event_time = "when"
[settings.events]
weights = { listen = 1.0 }
"""


@pytest.fixture
def radio(tmp_path: Path) -> Path:
    file = tmp_path / "radio.toml"
    file.write_text(GOOD, encoding="utf-8")
    return file


@pytest.mark.parametrize("file", sorted((conf_dir() / "datasets").glob("*.toml")), ids=lambda file: file.stem)
def test_a_shipped_mapping_loads_by_its_name_with_settings_that_hold(file: Path) -> None:
    config, mapping = load_settings(mapping=file.stem)
    assert mapping == load_mapping(file)
    for section, values in mapping.settings.items():
        for key, value in values.items():
            found = getattr(getattr(config, section), key)
            assert found == (tuple(value) if isinstance(value, list) else value)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError) as caught:
        load_mapping("online_retial")
    assert str(caught.value) == (
        "no mapping 'online_retial'; known: movielens, online_retail, or a path to a .toml file"
    )


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^cannot read .*/none\.toml: No such file or directory$"):
        load_mapping(tmp_path / "none.toml")


def test_a_file_of_ones_own_loads_and_its_settings_lie_under_file_and_sets(radio: Path) -> None:
    config, mapping = load_settings(mapping=str(radio), sets=["events.weights.skip=-1"])
    assert mapping.event.event_id is None
    assert mapping.files == "*"
    assert config.events.weights == {"listen": 1.0, "skip": -1.0}
    assert mapping.settings == {"events": {"weights": {"listen": 1.0}}}  # not changed by --set


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('format = "json"', 'format = "xml"', "format = 'xml': input should be 'json', 'csv' or 'parquet'"),
        ('user_id = "who"', "", "missing key event.user_id"),
        ('user_id = "who"', "user_id = 1", "event.user_id = 1: input should be a valid string"),
        ('user_id = "who"', 'user_id = "who"\nvalu = "1"', "unknown key event.valu = '1', did you mean event.value?"),
        ('name = "Radio"', 'name = "Radio"\ncolumn = []', "unknown key column = [], did you mean columns?"),
        ('["id", "who", "what", "when"]', "[]", "columns = []: tuple should have at least 1 item"),
        ('"what", "when"', '"what", "WHO"', "'WHO' occurs twice (case does not count)"),
        ('"id"', '"Raw"', "'Raw' is a name that foldin needs itself; not to be used: raw, source_file, "),
        (
            "[settings.events]",
            '[[quarantine]]\nreason = "r"\nwhere = "true"\n[settings.events]',
            "missing key quarantine.0.why",
        ),
    ],
)
def test_a_mapping_that_breaks_a_rule_says_so(radio: Path, old: str, new: str, message: str) -> None:
    assert GOOD.count(old) == 1
    radio.write_text(GOOD.replace(old, new), encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_mapping(radio)
    assert str(caught.value).startswith(f"{radio}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_wrong_setting_of_a_mapping_is_said_to_come_from_it(radio: Path) -> None:
    radio.write_text(GOOD.replace("weights", "wieghts"), encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_settings(mapping=radio)
    message = f"[settings] of the mapping {radio}: unknown key events.wieghts = {{'listen': 1.0}}, did you mean"
    assert str(caught.value).startswith(message)


def test_without_a_mapping_files_follow_the_contract() -> None:
    config, mapping = load_settings(sets=["ingest.format=csv", "ingest.files=*.csv"])
    assert mapping == contract(config)
    assert (mapping.format, mapping.files) == ("csv", "*.csv")
    assert mapping.columns == ("event_id", "user_id", "item_id", "event_type", "value", "event_time")


def _mapping(key: str, text: str) -> Mapping:
    base = contract(load_config())
    if key == "quarantine.1.where":
        rules = [{"reason": "r", "why": "w", "where": where} for where in ("value = '0'", text)]
        return Mapping.model_validate(base.model_dump() | {"quarantine": rules})
    return base.model_copy(update={"event": base.event.model_copy(update={key.removeprefix("event."): text})})


@pytest.mark.parametrize(
    ("key", "text", "reason"),
    [
        ("event.user_id", "uper(user_id)", "Cannot resolve routine `uper`"),
        ("event.item_id", "itemid", "`itemid` cannot be resolved. Did you mean one of the following? [`item_id`"),
        ("event.value", "try_cast(value as", "Syntax error at or near end of input"),
        ("event.event_type", "'view", "Syntax error"),
        ("event.user_id", "user_id; drop table events", "Syntax error at or near ';'"),
        ("event.event_time", "make_date('x')", "requires 3 parameters"),
        ("event.event_time", "try_cast(event_time as bigint)", "must be a timestamp, is of type bigint"),
        ("event.event_time", "true", "must be a timestamp, is of type boolean"),
        ("event.item_id", "split(item_id, ',')", "must be text or a number, is of type array<string>"),
        ("event.event_id", "uuid()", "must give the same for the same row whenever it is asked"),
        ("event.event_id", "concat(user_id, rand())", "must give the same for the same row whenever it is asked"),
        ("event.value", "count(value)", "GROUP BY"),
        ("event.item_id", "explode(split(item_id, ','))", "must give one value for one row"),
        ("event.value", "max(value) over ()", "must give one value for one row"),
        (
            "event.user_id",
            "reflect('java.lang.System', 'getenv', user_id)",
            "must not call reflect, which runs any method",
        ),
        ("event.value", "upper(JAVA_METHOD('java.lang.System', 'exit', 1))", "must not call JAVA_METHOD, which runs"),
        ("event.item_id", "if(true, `try_reflect`('a.B', 'c'), item_id)", "must not call try_reflect, which runs any"),
        (
            "event.item_id",
            "system.builtin.reflect('a.B', 'c')",
            "must not call reflect, which runs any method of the JVM",
        ),
        ("event.event_id", "transform(array(1), x -> reflect('a.B', 'c'))[0]", "must not call reflect, which runs any"),
        ("event.item_id", "(select max(item_id) from json.`/etc`)", "must not ask another table"),
        ("event.item_id", "upper((select 'a'))", "must not ask another table"),
        ("quarantine.1.where", "exists (select 1)", "must not ask another table"),
        ("quarantine.1.where", "value in (select * from text.`/etc/passwd`)", "must not ask another table"),
        ("event.user_id", "user_id, item_id", "Syntax error at or near ','"),
        ("event.user_id", "user_id from other", "Syntax error"),
        ("quarantine.1.where", "value <", "Syntax error at or near end of input"),
        ("quarantine.1.where", "value", "must be a condition, is of type string"),
    ],
)
def test_a_wrong_expression_is_named_with_its_key_and_sparks_reason_in_one_line(
    spark: SparkSession, key: str, text: str, reason: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        check_expressions(spark, _mapping(key, text))
    message = str(caught.value)
    assert message.startswith(f"mapping event contract: {key} = {text!r}: ")
    assert reason in message
    assert "\n" not in message
    assert "SQLSTATE" not in message


@pytest.mark.parametrize(
    "text", ["event_time", "try_to_timestamp(event_time)", "to_date(event_time)", "current_timestamp()"]
)
def test_a_time_may_be_text_a_timestamp_or_a_date(spark: SparkSession, text: str) -> None:
    check_expressions(spark, _mapping("event.event_time", text))
