"""Kafka as a source: every message accounted for, none lost without a word, no password in what is said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from broker import PASSWORD, STORE_PASSWORD, Broker, Client, free_port, guarded
from pyspark.sql import DataFrame, SparkSession

from foldin.config import Config
from foldin.errors import ConfigError, FoldinError, StateMismatchError
from foldin.ingest import Account, Ingest
from foldin.kafka import read_topics
from foldin.mapping import contract
from foldin.schemas import EVENTS, QUARANTINE
from foldin.tables import Tables

pytestmark = pytest.mark.kafka


def event(event_id: str, user: str = "u", **change: str) -> bytes:
    row = {"event_id": event_id, "user_id": user, "item_id": "i", "event_type": "view", "event_time": "2024-05-01"}
    return json.dumps(row | change).encode()


def ingest(tables: Tables, config: Config) -> Account:
    return Ingest(tables, config, contract(config)).run(once=True)


def ids(tables: Tables) -> list[str]:
    return sorted(row["event_id"] for row in tables.read(EVENTS).select("event_id").collect())


def quarantined(tables: Tables) -> list[tuple[str, str, str | None]]:
    rows = tables.read(QUARANTINE).collect()
    return sorted(
        ((row["source_file"], row["reason"], row["detail"]) for row in rows), key=lambda r: int(r[0].split("/")[-1])
    )


def checkpoint(config: Config) -> Path:
    return Path(config.tables.root, "_checkpoints", "ingest")


def test_every_message_is_an_event_or_quarantined_with_its_place_or_a_duplicate(
    tables: Tables, kafka_config: Callable[..., Config], client: Client, topic: str
) -> None:
    pretty = json.dumps(json.loads(event("pretty")), indent=2).encode()
    client.send(topic, event("a"), event("b") + b"\r\n", event("a"), None, None, b"  \n", partition=0)
    client.send(topic, b"\xff\xfe\x00", event("c") + b"\n" + event("d"), pretty, event("x", user=""), partition=0)
    client.send_aborted(topic, event("never"))
    config = kafka_config()
    account = ingest(tables, config)
    assert (account.rows_in, account.events, account.quarantined.total(), account.duplicates) == (10, 3, 4, 3)
    assert ids(tables) == ["a", "b", "pretty"]
    assert quarantined(tables) == [
        (f"kafka:{topic}/0/3", "broken json", "a message without a value"),
        (f"kafka:{topic}/0/6", "broken json", "not UTF-8 text"),
        (f"kafka:{topic}/0/7", "broken json", "not one JSON object on one line"),
        (f"kafka:{topic}/0/9", "missing user_id", "user_id is null or blank"),
    ]

    # A lost checkpoint: everything is read again, the tombstone too, and nothing is doubled.
    shutil.rmtree(checkpoint(config))
    again = ingest(tables, config)
    assert (again.rows_in, again.events, again.quarantined.total(), again.duplicates) == (10, 0, 0, 10)
    assert ids(tables) == ["a", "b", "pretty"]


def test_of_a_csv_message_with_two_lines_neither_is_lost(
    tables: Tables, kafka_config: Callable[..., Config], client: Client, topic: str
) -> None:
    header = b"event_id,user_id,item_id,event_type,value,event_time\n"
    line = "{},u,i,view,,2024-05-01"
    client.send(topic, header, line.format("a").encode() + b"\n", "\n".join(map(line.format, "bc")).encode(), None)
    account = ingest(tables, kafka_config("ingest.format=csv"))
    assert (account.rows_in, account.events, account.quarantined.total()) == (3, 1, 2)
    assert ids(tables) == ["a"]


def test_messages_that_retention_deleted_unread_stop_the_job_with_their_offsets_and_the_way_on(
    tables: Tables, kafka_config: Callable[..., Config], client: Client, topic: str
) -> None:
    config = kafka_config()
    client.send(topic, event("a"), event("b"), partition=1)
    ingest(tables, config)
    client.send(topic, event("c"), event("d"), event("e"), partition=1)
    client.delete_records(topic, before={1: 4})
    with pytest.raises(StateMismatchError) as raised:
        ingest(tables, config)
    assert f"never read: {topic}/1 offsets 2 to 3." in str(raised.value)
    assert f"delete the checkpoint {checkpoint(config)} and start again" in str(raised.value)
    assert ids(tables) == ["a", "b"]

    shutil.rmtree(checkpoint(config))  # as the message says
    account = ingest(tables, config)
    assert (account.rows_in, account.events) == (1, 1)
    assert ids(tables) == ["a", "b", "e"]

    client.delete_records(topic, before={1: 5})  # all of it was read: nothing is lost
    assert ingest(tables, config).rows_in == 0


def test_messages_that_retention_deletes_before_a_running_query_has_read_them_stop_it_too(
    tables: Tables, kafka_config: Callable[..., Config], client: Client, topic: str
) -> None:
    class Overtaken(Ingest):
        def _process(self, batch: DataFrame, batch_id: int) -> None:
            super()._process(batch, batch_id)
            client.delete_records(topic, before={0: 5})

    # Sent and fetched one at a time, or the consumer has them all before they are deleted.
    config = kafka_config("kafka.max_offsets_per_trigger=1", "kafka.options.kafka.max.partition.fetch.bytes='1'")
    for event_id in "abcdef":
        client.send(topic, event(event_id), partition=0)
    with pytest.raises(StateMismatchError) as raised:
        Overtaken(tables, config, contract(config)).run(once=True)
    found = ids(tables)
    assert f"never read: {topic}/0 offsets {len(found)} to 4." in str(raised.value)
    assert f"delete the checkpoint {checkpoint(config)} and start again" in str(raised.value)
    assert found == list("abcde")[: len(found)]  # the consumer may have had one more already; there is no gap


def test_a_topic_that_was_made_anew_is_not_taken_for_the_old_one(
    tables: Tables, kafka_config: Callable[..., Config], client: Client, topic: str
) -> None:
    config = kafka_config()
    client.send(topic, event("a"), event("b"), partition=0)
    ingest(tables, config)
    client.delete_topic(topic)
    with pytest.raises(ConfigError, match=f"'{topic}': a topic does not exist"):
        ingest(tables, config)
    client.create_topic(topic, partitions=2)
    client.send(topic, event("c"), partition=0)
    with pytest.raises(StateMismatchError, match=f"{topic}/0 ends at offset 1, before 2: it was made anew"):
        ingest(tables, config)


def test_a_checkpoint_of_another_source_or_of_more_topics_is_refused(
    tables: Tables, make_config: Callable[..., Config], kafka_config: Callable[..., Config], client: Client, topic: str
) -> None:
    files = make_config()
    Path(files.ingest.landing, "1.json").write_bytes(event("a"))
    ingest(tables, files)
    with pytest.raises(StateMismatchError, match=r"another source than Kafka. Give this job an ingest\.name"):
        ingest(tables, kafka_config())

    client.create_topic(f"{topic}.more", partitions=1)
    both = kafka_config("ingest.name=both", f"kafka.topics='{topic},{topic}.more'")
    ingest(tables, both)
    with pytest.raises(StateMismatchError, match=f"leaves out {topic}.more, which the checkpoint"):
        ingest(tables, kafka_config("ingest.name=both"))
    with pytest.raises(StateMismatchError, match=r"both cannot go on from its checkpoint: \[MALFORMED_LOG_FILE\]"):
        ingest(tables, make_config("ingest.name=both"))


def test_by_tls_passwords_come_from_the_environment_whatever_characters_they_have(
    tables: Tables,
    kafka_config: Callable[..., Config],
    client: Client,
    broker: Broker,
    topic: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client.send(topic, event("a"))
    config = kafka_config(*guarded(broker))
    monkeypatch.delenv("KAFKA_WORD", raising=False)
    monkeypatch.setenv("KAFKA_STORE_WORD", STORE_PASSWORD)
    with pytest.raises(ConfigError, match=r"'kafka\.sasl\.jaas\.config' needs the environment variable KAFKA_WORD"):
        ingest(tables, config)
    monkeypatch.setenv("KAFKA_WORD", "a wrong one")
    with pytest.raises(ConfigError, match=r"refuses the login.*Authentication failed") as raised:
        ingest(tables, config)
    assert "a wrong one" not in str(raised.value)
    monkeypatch.setenv("KAFKA_WORD", PASSWORD)
    monkeypatch.setenv("KAFKA_STORE_WORD", "a wrong one")
    with pytest.raises(ConfigError, match="trust store does not open with its password") as raised:
        ingest(tables, config)
    assert "a wrong one" not in str(raised.value)
    distrustful = {key: word for key, word in config.kafka.options.items() if "truststore" not in key}
    stranger = config.model_copy(update={"kafka": config.kafka.model_copy(update={"options": distrustful})})
    with pytest.raises(ConfigError, match=f"Kafka at {broker.guarded}.*unable to find valid certification path"):
        ingest(tables, stranger)
    assert not tables.read(EVENTS).count()
    monkeypatch.setenv("KAFKA_STORE_WORD", STORE_PASSWORD)
    assert ingest(tables, config).events == 1


def test_the_text_of_a_plan_shows_no_secret_option(
    spark: SparkSession, kafka_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAFKA_WORD", "-----BEGIN PRIVATE KEY-----")
    config = kafka_config("kafka.options.kafka.ssl.keystore.key='${env:KAFKA_WORD}'")
    plan = read_topics(spark, config.kafka)._jdf.queryExecution().toString()
    assert f"subscribe={config.kafka.topics}" in plan  # options are shown
    assert "kafka.ssl.keystore.key=" in plan
    assert "PRIVATE KEY" not in plan


def test_when_no_broker_answers_the_job_waits_with_a_line_and_then_says_so(
    spark: SparkSession,
    tables: Tables,
    make_config: Callable[..., Config],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("foldin.kafka._TELL", 0.0)
    address = f"127.0.0.1:{free_port()}"
    config = make_config(
        "ingest.source=kafka",
        f"kafka.bootstrap_servers='{address}'",
        "kafka.topics=t",
        "kafka.options.kafka.default.api.timeout.ms='2000'",
        "kafka.options.kafka.request.timeout.ms='1000'",
    )
    with pytest.raises(FoldinError, match=f"'{address}': no broker answers") as raised:
        ingest(tables, config)
    assert raised.value.exit_code == 1
    assert f"no answer from Kafka at {address} for" in caplog.text
