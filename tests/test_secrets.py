"""Secrets: a literal is refused, a reference is looked up late, and what was looked up is said nowhere."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from py4j.protocol import Py4JNetworkError

from foldin import redaction, secrets
from foldin.cli import setup_logging
from foldin.config import load_config
from foldin.errors import ConfigError, reason_of
from foldin.redaction import hide, is_secret, remember
from foldin.secrets import check_secret, fill

SECRET = "hunter2-4711"
HOW = 'put it into the environment or a file and write "${env:NAME}" or "${file:/path}" here'
ON_COMMAND_LINE = "goes onto the command line of a JVM, which everybody can read: no secret there"
JDBC = "jdbc:postgresql://db:5432/metastore?user=foldin&password="

SECRET_KEYS = [
    "spark.hadoop.fs.s3a.secret.key",
    "spark.hadoop.fs.s3a.access.key",
    "spark.hadoop.fs.s3a.session.token",
    "spark.hadoop.fs.s3a.bucket.shop.secret.key",
    "spark.hadoop.fs.s3a.server-side-encryption.key",
    "spark.hadoop.fs.s3a.encryption.key",
    "spark.hadoop.fs.azure.account.key.shop.dfs.core.windows.net",
    "spark.hadoop.fs.azure.account.oauth2.client.secret.shop.dfs.core.windows.net",
    "spark.hadoop.fs.azure.sas.events.shop.blob.core.windows.net",
    "spark.hadoop.fs.azure.sas.fixed.token.shop.dfs.core.windows.net",
    "spark.hadoop.fs.gs.auth.service.account.private.key",
    "spark.hadoop.javax.jdo.option.ConnectionPassword",
    "spark.ssl.keyPassword",
    "spark.ssl.ui.keyStorePassword",
    "spark.authenticate.secret",
    "spark.kubernetes.authenticate.driver.oauthToken",
    "spark.executorEnv.AWS_SECRET_ACCESS_KEY",
    "spark.executorEnv.AWS_ACCESS_KEY_ID",
    "spark.yarn.appMasterEnv.API_KEY",
]
PLAIN = {
    "spark.hadoop.fs.s3a.endpoint": "http://127.0.0.1:9000",
    "spark.hadoop.fs.s3a.aws.credentials.provider": "org.apache.hadoop.fs.s3a.SimpleAWSCredentialsProvider",
    "spark.hadoop.hadoop.security.credential.provider.path": "jceks://hdfs/shop.jceks",
    "spark.hadoop.fs.azure.sas.token.provider.type.shop.dfs.core.windows.net": "org.example.Provider",
    "spark.kubernetes.driver.secrets.shop-token": "/etc/secrets",
    "spark.kubernetes.executor.secretKeyRef.AWS_SECRET_ACCESS_KEY": "aws:key",
    "spark.kubernetes.authenticate.driver.oauthTokenFile": "/etc/token",
    "spark.authenticate.secretBitLength": "256",
    "spark.sql.warehouse.dir": "abfss://tables@shop.dfs.core.windows.net/foldin",
    "spark.driver.extraJavaOptions": "-Dtoken.cache=/tmp -Xmx1g",
}


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one test takes for a secret is none in another."""
    monkeypatch.setattr(redaction, "_known", frozenset())
    monkeypatch.setattr(secrets, "_told", set())


def conf(key: str, value: str) -> str:
    return f"spark.conf.{key}='''{value}'''"


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("key", SECRET_KEYS)
@pytest.mark.parametrize("value", [SECRET, f"${{env:HALF}}{SECRET}", f"${{ENV:HALF}} {SECRET}", ""])
def test_a_secret_of_spark_that_is_written_out_is_refused_and_not_repeated(
    key: str, value: str, tmp_path: Path
) -> None:
    file = tmp_path / "job.toml"
    file.write_text(f"[spark.conf]\n'{key}' = '{value}'\n")
    for source, options in (("--set", {"sets": [conf(key, value)]}), (str(file), {"file": file})):
        with pytest.raises(ConfigError) as raised:
            load_config(**options)  # type: ignore[arg-type]
        assert str(raised.value) == f"{source}: spark.conf: {key!r} holds a secret: {HOW}"
        assert raised.value.exit_code == 2
        assert SECRET not in f"{raised.value!r} {raised.value.__cause__}"  # what a stack trace would print


@pytest.mark.parametrize("key", SECRET_KEYS)
@pytest.mark.parametrize("value", ["${env:NAME}", "${file:/run/secrets/name}", " ${file:name} "])
def test_a_reference_is_accepted_and_not_looked_up_before_it_is_used(key: str, value: str) -> None:
    assert load_config(sets=[conf(key, value)]).spark.conf == {key: value}


@pytest.mark.parametrize("equals", ["=", " =", "= ", "  =  "])
def test_a_reference_in_a_jaas_line_may_have_blanks_about_it_and_a_secret_may_not(equals: str) -> None:
    line = 'org.apache.Login required username="u" password{equals}"{value}";'
    check_secret("sasl.jaas.config", line.format(equals=equals, value="${env:P}"))
    with pytest.raises(ValueError, match="holds a secret"):
        check_secret("sasl.jaas.config", line.format(equals=equals, value=SECRET))


@pytest.mark.parametrize(("key", "value"), PLAIN.items())
def test_what_only_sounds_like_a_secret_is_a_setting_like_any_other(key: str, value: str) -> None:
    assert load_config(sets=[conf(key, value)]).spark.conf == {key: value}


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("spark.hadoop.javax.jdo.option.ConnectionURL", JDBC + SECRET, f"holds a secret: {HOW}"),
        ("spark.hadoop.fs.defaultFS", f"s3a://me:{SECRET}@shop", f"holds a secret: {HOW}"),
        ("spark.hadoop.fs.defaultFS", f"s3a://me:{SECRET}/with/slash@shop", f"holds a secret: {HOW}"),
        ("spark.jars.repositories", f"https://me:{SECRET}@jars.example.com/all", ON_COMMAND_LINE),
        ("spark.jars.repositories", "${env:JARS}", ON_COMMAND_LINE),
        ("spark.driver.extraJavaOptions", f"-Djavax.net.ssl.trustStorePassword={SECRET}", ON_COMMAND_LINE),
        ("spark.executor.extraJavaOptions", "-Djavax.net.ssl.trustStorePassword=${env:P}", ON_COMMAND_LINE),
        (f"spark.a={SECRET}", "b", "is no name of a setting: no blanks, no '='"),
        ("spark.app.id", "a\0b", "the value of 'spark.app.id' has a NUL character"),
    ],
)
def test_a_value_that_holds_a_secret_is_refused_whatever_its_name(
    tmp_path: Path, key: str, value: str, rule: str
) -> None:
    file = tmp_path / "job.toml"
    file.write_text(f"[spark.conf]\n'{key}' = \"{value}\"\n".replace("\0", "\\u0000"))
    with pytest.raises(ConfigError) as raised:
        load_config(file)
    assert rule in str(raised.value)
    assert SECRET not in str(raised.value) or SECRET in key


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (f"tables.root='s3a://me:{SECRET}@shop/foldin'", "--set: tables.root = (not shown): must not hold a login"),
        (f"ingest.landing='https://me:{SECRET}@shop/in'", "--set: ingest.landing = (not shown): must not hold"),
        (f"ingest.table='s3a://me:{SECRET}@shop/in'", "--set: ingest.table = (not shown): must not hold a login"),
        (f"kafka.bootstrap_servers='me:{SECRET}@h:9092'", "--set: kafka.bootstrap_servers = (not shown): string"),
        (f"tables.root.password={SECRET}", "--set 'tables.root.password=...': root is a value"),
        (f"spark.password={SECRET}", "--set: unknown key spark.password = (not shown)"),
        (f"sprak.conf={{ 'my.password' = '{SECRET}' }}", "--set: unknown key sprak = (not shown), did you mean spark?"),
        (f"spark.conf={SECRET}", "--set: spark.conf = (not shown): input should be a valid dictionary"),
        (f"spark.conf {SECRET}", "--set 'spark.conf=...': expected section.key=value"),
        (f"kafka.options.kafka.ssl.key.password {SECRET}", "--set 'kafka.options.kafka.ssl.key.password=...': exp"),
    ],
)
def test_a_secret_in_a_wrong_place_is_not_repeated(text: str, rule: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config(sets=[text])
    assert str(raised.value).startswith(rule)
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize("key", ["tables.root", "ingest.landing", "ingest.table", "ingest.files"])
@pytest.mark.parametrize("fault", ["\0", "\n", "\x1b", "\x7f"])
def test_a_path_with_control_characters_is_refused(tmp_path: Path, key: str, fault: str) -> None:
    section, name = key.split(".")
    file = tmp_path / "job.toml"
    file.write_text(f'[{section}]\n{name} = "a\\u{ord(fault):04x}b"\n')
    with pytest.raises(ConfigError) as raised:
        load_config(file)
    assert str(raised.value) == f"{file}: {key} = {f'a{fault}b'!r}: must not have control characters"


@pytest.mark.parametrize(
    "root",
    ["abfss://tables@shop.dfs.core.windows.net/x", "hdfs://[::1]:8020/x", "hdfs://nn:8020/a:b@c", "/a:b@c/d", "d"],
)
def test_a_user_a_port_or_a_colon_in_a_path_is_no_login(root: str) -> None:
    assert load_config(sets=[f"tables.root='{root}'"]).tables.root == root


# --- where secrets come from ---------------------------------------------------------------------


def test_references_are_filled_from_the_environment_and_from_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "password").write_text(f"{SECRET}\n")
    (tmp_path / "dos").write_bytes(b" two words \r\n")
    monkeypatch.setenv("HOST", "db")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    settings = {
        "a.password": f"${{file:{tmp_path}/password}}",
        "b.password": "${file:dos}",
        "url": f"jdbc://${{env:HOST}}/x?password=${{file:{tmp_path}/password}}",
        "plain": "${env:HOST",
    }
    assert fill("spark.conf", settings) == {
        "a.password": SECRET,
        "b.password": " two words ",
        "url": f"jdbc://db/x?password={SECRET}",
        "plain": "${env:HOST",
    }


@pytest.fixture
def bad_file(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    path = tmp_path / "key"
    match request.param:
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "open to all":
            path.write_text(SECRET)
            path.chmod(0o646)
        case content:
            path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("bad_file", "fault"),
    [
        ("folder", "cannot read {}: Is a directory"),
        ("pipe", "{} is not a file"),
        ("open to all", "every user may write {} (mode 0646): chmod o-rw"),
        (b"", "{} is empty"),
        (b"\n", "{} is empty"),
        (b"\xff\xfe", "{} is not UTF-8 text"),
        (b"a\0b", "{} has a NUL character"),
        (b"x" * 70_000, "{} has more than 65536 bytes"),
    ],
    indirect=["bad_file"],
)
def test_a_file_that_holds_no_secret_is_one_line_with_setting_and_file(bad_file: Path, fault: str) -> None:
    with pytest.raises(ConfigError) as raised:
        fill("spark.conf", {"a.password": f"${{file:{bad_file}}}"})
    assert str(raised.value) == f"spark.conf: 'a.password': {fault.format(bad_file)}"
    assert raised.value.exit_code == 2


def test_a_file_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError) as raised:
        fill("kafka.options", {"k": f"${{file:{tmp_path}/none}}"})
    assert str(raised.value) == f"kafka.options: 'k': cannot read {tmp_path}/none: No such file or directory"
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    with pytest.raises(ConfigError) as raised:
        fill("kafka.options", {"k": "${file:none}"})
    message = "kafka.options: 'k': the file 'none' is no full path, and CREDENTIALS_DIRECTORY is not set"
    assert str(raised.value) == message


def test_a_file_that_everybody_may_read_is_warned_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mine, everybodys = tmp_path / "mine", tmp_path / "everybodys"
    for file, mode in ((mine, 0o400), (everybodys, 0o644)):
        file.write_text(SECRET)
        file.chmod(mode)
    for _ in range(2):
        fill("spark.conf", {"a.password": f"${{file:{mine}}}", "b.password": f"${{file:{everybodys}}}"})
    assert caplog.messages == [f"every user may read the secret in {everybodys} (mode 0644)"]


# --- where they do not go ------------------------------------------------------------------------


def test_no_copy_of_a_configuration_holds_what_its_references_stand_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAME", SECRET)
    config = load_config(sets=[conf("spark.ssl.keyPassword", "${env:NAME}")])
    assert fill("spark.conf", config.spark.conf) == {"spark.ssl.keyPassword": SECRET}
    assert SECRET not in f"{config!r} {config} {config.model_dump()} {config.model_dump_json()}"


@given(
    st.text(st.characters(codec="utf-8"), min_size=1),
    st.text(st.characters(codec="utf-8")),
    st.text(st.characters(codec="utf-8")),
)
def test_what_is_remembered_is_hidden_in_any_text(secret: str, before: str, after: str) -> None:
    if secret in "[hidden]":
        return  # what stands for the secret would be one
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(redaction, "_known", frozenset())
        remember(secret)
        assert secret not in hide(before + secret + after).replace("[hidden]", "\ud800")


def test_a_secret_of_several_lines_is_hidden_line_by_line_and_in_one_line(tmp_path: Path) -> None:
    lines = ["-----BEGIN PRIVATE KEY-----", "MIIEvQIBADANBgkqhkiG9w0B", "-----END PRIVATE KEY-----"]
    file = tmp_path / "key.pem"
    file.write_text("\n".join(lines) + "\n")
    file.chmod(0o400)
    fill("kafka.options", {"kafka.ssl.keystore.key": f"${{file:{file}}}"})
    assert hide(f"bad: {' '.join(lines)}") == "bad: [hidden]"
    assert hide(f"bad line: {lines[1]}") == "bad line: [hidden]"


def test_reasons_and_log_lines_are_without_the_secrets_in_use(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NAME", SECRET)
    fill("spark.conf", {"spark.ssl.keyPassword": "${env:NAME}"})
    error = RuntimeError(f"cannot log in with {SECRET}")
    assert reason_of(error) == "cannot log in with [hidden]"
    with monkeypatch.context() as patch:
        patch.setattr(logging.getLogger(), "handlers", [])
        setup_logging()
        logging.getLogger("foldin.test").warning("tried %s", SECRET, exc_info=error)
    said = capsys.readouterr().err
    assert "foldin.test: tried [hidden]" in said
    assert "cannot log in with [hidden]" in said
    assert SECRET not in said


PARTS = ["fs", "s3a", "key", "id", "access", "account", "private", "sasl", "jaas", "config", "token", "Password", "sas"]


@given(st.lists(st.sampled_from(PARTS), max_size=6), st.sampled_from([".", "_", "-", ""]))
def test_whatever_foldin_takes_for_a_secret_spark_is_told_to_hide(parts: list[str], between: str) -> None:
    key = between.join(parts)
    assert re.search(f"(?i){redaction.WORDS}", key) or not is_secret(key)


@given(
    st.sampled_from([*SECRET_KEYS, "spark.plain"]),
    st.text("abcdefghijklmnopqrstuvwxyz0123456789/+_", min_size=12, max_size=40),
    st.sampled_from(["{}", "password={}", "https://me:{}@host/x", "${{env:A}}{}", "{}${{file:/b}}"]),
)
def test_no_refusal_repeats_a_secret(key: str, secret: str, form: str) -> None:
    if (key, form) == ("spark.plain", "{}") or (key == "spark.plain" and form.startswith(("$", "{}$"))):
        return  # nothing says that this is a secret
    for text in (conf(key, form.format(secret)), f"spark.{key}='{form.format(secret)}'"):
        with pytest.raises(ConfigError) as raised:
            load_config(sets=[text])
        assert secret not in str(raised.value)


def test_a_jvm_that_is_gone_is_named_by_a_module_that_needs_no_spark() -> None:
    for error in (Py4JNetworkError("Answer from Java side is empty"), ConnectionRefusedError(111, "refused")):
        assert reason_of(error).startswith("Spark's JVM is gone")
    code = "import sys, foldin.errors; print([name for name in sys.modules if name.startswith(('py4j', 'pyspark'))])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
