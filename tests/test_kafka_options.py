"""Options of Kafka's consumer: what is refused, and that a secret is named and never shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from foldin import redaction
from foldin.config import load_config
from foldin.errors import ConfigError
from foldin.redaction import hide
from foldin.secrets import fill

SECRET = "hunter2-4711"
LOGIN = "org.apache.kafka.common.security.plain.PlainLoginModule required"
KAFKA = ("ingest.source=kafka", "kafka.bootstrap_servers='h:9092'", "kafka.topics=t")


def option(key: str, value: str) -> str:
    return f"kafka.options={{ '{key}' = '''{value}''' }}"


@pytest.mark.parametrize(
    ("sets", "rule"),
    [
        (("ingest.source=kafka",), "ingest.source = 'kafka' needs kafka.bootstrap_servers and kafka.topics"),
        (("ingest.source=delta",), "ingest.source = 'delta' needs ingest.table"),
        ((*KAFKA, "kafka.bootstrap_servers=h"), "kafka.bootstrap_servers = 'h': string should match"),
        ((*KAFKA, "kafka.topics='a b'"), "kafka.topics = 'a b': string should match"),
        ((*KAFKA, option("subscribe", "t")), "'subscribe' is not to be set: kafka.topics says it"),
        ((*KAFKA, option("failOnDataLoss", "false")), "messages that are gone unread always stop the job"),
        ((*KAFKA, option("startingOffset", "latest")), "did you mean 'startingOffsets'?"),
        ((*KAFKA, option("security.protocol", "SSL")), "did you mean 'kafka.security.protocol'?"),
    ],
)
def test_what_spark_would_pass_over_is_refused(sets: tuple[str, ...], rule: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config(sets=sets)
    assert rule in str(raised.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("kafka.ssl.truststore.password", SECRET),
        ("kafka.ssl.keystore.key", f"-----BEGIN PRIVATE KEY-----{SECRET}"),
        ("kafka.ssl.key.password", f"${{env:HALF}}{SECRET}"),
        ("kafka.sasl.jaas.config", f'{LOGIN} username="u" password="{SECRET}";'),
        ("kafka.sasl.jaas.config", f'{LOGIN} username="${{env:U}}" password = {SECRET};'),
        ("kafka.sasl.jaas.config", f"{LOGIN} clientId='${{env:U}}' clientSecret='{SECRET}';"),
        ("kafka.sasl.jaas.config", f'{LOGIN} password="${{env:P}}{SECRET}";'),
        ("kafka.SASL.JAAS.Config", f'{LOGIN} password="{SECRET}";'),
    ],
)
def test_a_secret_that_is_written_out_is_refused_and_not_repeated(key: str, value: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config(sets=[*KAFKA, option(key, value)])
    how = 'put it into the environment or a file and write "${env:NAME}" or "${file:/path}" here'
    assert f"'{key}' holds a secret: {how}" in str(raised.value)
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize(
    "text",
    [
        f"[kafka]\noptions = '{SECRET}'",
        f"[kafka]\noptions = {{ 'kafka.ssl.key.password' = ['{SECRET}'] }}",
        f"[kafka]\npassword = '{SECRET}'",
        f"[kafka]\n'kafka.sasl.jaas.config' = '{SECRET}'",
        f"[kafka.options.kafka.ssl.key]\npassword = '{SECRET}'",
        f"[ingest]\nsasl_password = '{SECRET}'",
    ],
)
def test_a_secret_in_the_wrong_place_is_not_repeated_either(tmp_path: Path, text: str) -> None:
    file = tmp_path / "job.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as raised:
        load_config(file)
    assert SECRET not in str(raised.value)
    assert str(raised.value).startswith(f"{file}: ")


@pytest.mark.parametrize("text", [f"kafka={SECRET}", f"kafka.options={SECRET}", f"password={SECRET}"])
def test_nor_is_one_on_the_command_line(text: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config(sets=[text])
    assert SECRET not in str(raised.value)


def test_options_are_filled_from_the_environment_and_nothing_else_of_them_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORD", 'a"b\\c')
    options = {
        "kafka.sasl.jaas.config": f'{LOGIN} username="u" password="${{env:WORD}}";',
        "kafka.ssl.key.password": "${env:WORD}",
        "kafka.sasl.mechanism": "PLAIN",
    }
    assert load_config(sets=KAFKA).kafka.options == {}
    assert fill("kafka.options", options) == {
        "kafka.sasl.jaas.config": f'{LOGIN} username="u" password="a\\"b\\\\c";',  # within JAAS's quotes
        "kafka.ssl.key.password": 'a"b\\c',
        "kafka.sasl.mechanism": "PLAIN",
    }


def test_a_variable_that_is_not_set_is_named_with_its_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THERE", SECRET)
    monkeypatch.delenv("NOT_THERE", raising=False)
    options = {"kafka.ssl.key.password": "${env:THERE}", "kafka.sasl.jaas.config": "${env:THERE}${env:NOT_THERE}"}
    with pytest.raises(ConfigError) as raised:
        fill("kafka.options", options)
    assert str(raised.value) == (
        "kafka.options: 'kafka.sasl.jaas.config' needs the environment variable NOT_THERE, which is not set"
    )


def test_what_others_say_is_shown_without_the_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORD", 'a"b\\c')
    monkeypatch.setenv("LINE", f'{LOGIN} username="u" password="{SECRET}";')
    monkeypatch.setenv("PLACE", "/etc/trust.jks")
    options = {
        "kafka.ssl.key.password": "${env:WORD}",
        "kafka.sasl.jaas.config": "${env:LINE}",
        "kafka.ssl.truststore.location": "${env:PLACE}",
    }
    monkeypatch.setattr(redaction, "_known", frozenset())
    fill("kafka.options", options)
    said = f'no: a"b\\c, a\\"b\\\\c, {SECRET} in /etc/trust.jks'
    assert hide(said) == "no: [hidden], [hidden], [hidden] in /etc/trust.jks"
