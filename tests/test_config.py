"""The configuration: its default, what overlays it in which order, and what an error says."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from foldin.config import Config, _apply_set, _overlay, conf_dir, load_config, read_toml
from foldin.errors import ConfigError


@pytest.fixture
def toml(tmp_path: Path) -> Any:
    def write(text: str) -> Path:
        file = tmp_path / "mine.toml"
        file.write_text(text, encoding="utf-8")
        return file

    return write


def test_the_default_holds_every_key_and_only_known_ones() -> None:
    shipped = tomllib.loads((conf_dir() / "local.toml").read_text(encoding="utf-8"))
    known = {
        section: set(field.annotation.model_fields)  # type: ignore[union-attr]
        for section, field in Config.model_fields.items()
    }
    assert {section: set(values) for section, values in shipped.items()} == known
    load_config()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.rnk=3", "--set: unknown key train.rnk = 3, did you mean train.rank?"),
        (
            "fold_in.trigger_second=3",
            "--set: unknown key fold_in.trigger_second = 3, did you mean fold_in.trigger_seconds?",
        ),
        ("ingest.name=fold_in", "--set: ingest.name = 'fold_in': names a checkpoint of another job"),
        ("trian.rank=3", "--set: unknown key trian = {'rank': 3}, did you mean train?"),
        ("ingest.weights={}", "--set: unknown key ingest.weights = {}, did you mean events.weights?"),
        (
            "recommend.zzz=1",
            "--set: unknown key recommend.zzz = 1; known keys here: top_n",
        ),
        ("fold_in.rnk=1", "--set: unknown key fold_in.rnk = 1, did you mean train.rank?"),
        ("train.rank=0", "--set: train.rank = 0: input should be greater than or equal to 1"),
        ("train.rank=many", "--set: train.rank = 'many': input should be a valid integer"),
        ("train.rank='64'", "--set: train.rank = '64': input should be a valid integer"),
        ("train.rank=true", "--set: train.rank = True: input should be a valid integer"),
        ("train.rank=64.5", "--set: train.rank = 64.5: input should be a valid integer"),
        ("train.nonnegative=1", "--set: train.nonnegative = 1: input should be a valid boolean"),
        ("train.alpha=0", "--set: train.alpha = 0: input should be greater than 0"),
        ("train.alpha=nan", "--set: train.alpha = nan: input should be a finite number"),
        ("train.mode=magic", "--set: train.mode = 'magic': input should be 'implicit' or 'explicit'"),
        ("history.half_life_days=nan", "--set: history.half_life_days = nan: input should be greater than 0"),
        ("ingest.format=xml", "--set: ingest.format = 'xml': input should be 'json', 'csv' or 'parquet'"),
        ("tables.root=", "--set: tables.root = '': string should have at least 1 character"),
        ("events.weights.view=nan", "--set: events.weights: the weight of 'view' must lie in [-1e6, 1e6]"),
        ("events.weights={}", "--set: events.weights: dictionary should have at least 1 item after validation, not 0"),
        ("events.value_required=['rating']", "--set: events: value_required names 'rating', which has no weight"),
        ("spark.conf.a=[]", "--set: spark.conf.a = []: input should be a valid string"),
        ("train.rank.x=3", "--set 'train.rank.x=3': rank is a value, not a section"),
        ("train.rank", "--set 'train.rank': expected section.key=value, such as train.rank=64"),
        ("rank=3", "--set 'rank=3': expected section.key=value, such as train.rank=64"),
        ("=3", "--set '=3': expected section.key=value, such as train.rank=64"),
        ("train.=3", "--set 'train.=3': expected section.key=value, such as train.rank=64"),
    ],
)
def test_an_error_names_the_key_the_value_the_rule_and_the_nearest_known_key(setting: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(sets=[setting])
    assert str(caught.value) == message


def test_all_broken_rules_are_named_at_once_each_with_where_it_stands(toml: Any) -> None:
    file = toml("[train]\nrank = 0\n[ingest]\nformt = 'csv'\n")
    with pytest.raises(ConfigError) as caught:
        load_config(
            file, ["train.alpha=-1"], settings={"history": {"transform": "cube"}}, settings_source="the mapping"
        )
    message = str(caught.value)
    assert f"{file}: unknown key ingest.formt = 'csv', did you mean ingest.format?; train.rank = 0: " in message
    assert "the mapping: history.transform = 'cube': input should be 'identity' or 'log1p'" in message
    assert "--set: train.alpha = -1: input should be greater than 0" in message
    assert "\n" not in message


def test_a_section_that_is_a_plain_value_is_an_error(toml: Any) -> None:
    file = toml("train = 3\n")
    with pytest.raises(ConfigError, match=r"mine\.toml: train = 3: input should be a valid dictionary"):
        load_config(file)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("train.rank=64", 64),
        ("train.rank = 64 # a comment", 64),
        ("train.alpha=3", 3.0),
        ("train.alpha=1e-3", 0.001),
        ("train.nonnegative=true", True),
        ("train.mode=explicit", "explicit"),
        ("train.mode='explicit'", "explicit"),
        ("tables.root=/a b/c=d", "/a b/c=d"),
        ("tables.root=s3a://bucket/x", "s3a://bucket/x"),
        ("spark.app_name=1\n2", "1\n2"),
        ("history.half_life_days=30", 30.0),
        ("history.half_life_days=inf", float("inf")),
        ("events.weights={a = 1, b = 2.5}", {"a": 1.0, "b": 2.5}),
        ("events.weights.view=9", {"view": 9.0, "like": 2.0, "cart": 3.0, "purchase": 5.0}),
        ("events.weights.a.b=9", {"view": 1.0, "like": 2.0, "cart": 3.0, "purchase": 5.0, "a.b": 9.0}),
        ("events.value_required=['view']", ("view",)),
        ("spark.conf.spark.driver.memory=4g", {"spark.driver.memory": "4g"}),
        ("spark.conf.spark.sql.shuffle.partitions=8", {"spark.sql.shuffle.partitions": "8"}),
        ("spark.conf.spark.ui.enabled=true", {"spark.ui.enabled": "true"}),
        ("spark.conf.spark.speculation.quantile=0.9", {"spark.speculation.quantile": "0.9"}),
    ],
)
def test_set_takes_toml_values_plain_strings_and_dotted_keys(setting: str, expected: object) -> None:
    section, key = setting.partition("=")[0].strip().split(".")[:2]
    found = getattr(getattr(load_config(sets=[setting]), section), key)
    assert found == expected
    assert type(found) is type(expected)


def test_set_lies_over_the_file_over_the_mapping_over_the_default(toml: Any) -> None:
    file = toml("[train]\nrank = 3\niterations = 3\n")
    mapping = {"train": {"rank": 2, "iterations": 2, "blocks": 2}}
    train = load_config(file, ["train.rank=4", "train.rank=5"], settings=mapping).train
    assert (train.rank, train.iterations, train.blocks) == (5, 3, 2)
    assert train.alpha == load_config().train.alpha


def test_a_file_replaces_the_weights_whole_and_set_changes_one(toml: Any) -> None:
    file = toml("[events]\nweights = { listen = 1 }\n")
    assert load_config(file).events.weights == {"listen": 1.0}
    assert load_config(file, ["events.weights.skip=-1"]).events.weights == {"listen": 1.0, "skip": -1.0}


def test_the_overlays_are_left_as_they_were() -> None:
    mapping: dict[str, Any] = {"events": {"weights": {"listen": 1.0}}, "spark": {"conf": {}}}
    load_config(sets=["events.weights.skip=-1", "spark.conf.spark.a=b"], settings=mapping)
    assert mapping == {"events": {"weights": {"listen": 1.0}}, "spark": {"conf": {}}}


def test_the_configuration_is_frozen() -> None:
    config = load_config()
    with pytest.raises(ValidationError, match="frozen"):
        config.train.rank = 3
    with pytest.raises(ValidationError, match="frozen"):
        config.train = config.train


def test_a_file_that_is_not_there_or_not_toml_is_named(toml: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^cannot read .*none\.toml: No such file or directory$"):
        load_config(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match=r"mine\.toml is not TOML: .*line 2"):
        load_config(toml("[train]\nrank = = 3\n"))
    (tmp_path / "latin.toml").write_bytes(b"# caf\xe9\n")
    with pytest.raises(ConfigError, match=r"latin\.toml is not TOML"):
        read_toml(tmp_path / "latin.toml")


NAMES = st.text("abcxyz_", min_size=1, max_size=4)
VALUES = (
    st.integers() | st.booleans() | st.text("ab .=", max_size=5) | st.dictionaries(NAMES, st.integers(), max_size=3)
)
SECTIONS = st.dictionaries(NAMES, st.dictionaries(NAMES, VALUES, max_size=4), max_size=4)


@given(base=SECTIONS, over=SECTIONS)
def test_an_overlay_wins_key_by_key_and_shares_nothing(base: dict[str, Any], over: dict[str, Any]) -> None:
    merged: dict[str, Any] = {}
    _overlay(merged, base)
    _overlay(merged, over)
    assert merged == {s: base.get(s, {}) | over.get(s, {}) for s in base.keys() | over.keys()}
    before = repr((base, over))
    for values in merged.values():
        for value in values.values():
            if isinstance(value, dict):
                value["changed"] = 1
        values["changed"] = 1
    assert repr((base, over)) == before


@given(base=SECTIONS, section=NAMES, key=NAMES, value=st.integers() | st.booleans() | st.floats(allow_nan=False))
def test_what_set_gives_as_toml_is_what_stands_there(
    base: dict[str, Any], section: str, key: str, value: int | bool | float
) -> None:
    data: dict[str, Any] = {}
    _overlay(data, base)
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    change = _apply_set(data, f"{section}.{key}={text}")
    assert data[section][key] == value
    assert type(data[section][key]) is type(value)
    assert change == {section: {key: value}}
    assert {s: {k: v for k, v in values.items() if (s, k) != (section, key)} for s, values in data.items()} == (
        {section: {}} | {s: {k: v for k, v in values.items() if (s, k) != (section, key)} for s, values in base.items()}
    )
