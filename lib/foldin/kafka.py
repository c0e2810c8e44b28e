"""Kafka as a source: topics to raw rows, no message lost without a word, and no secret in what is said.

The connector is `CONNECTOR`; `session` brings it, or spark-submit's `--packages`.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyspark
from py4j.protocol import Py4JError, Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from foldin.checkpoints import Checkpoint
from foldin.config import KafkaConfig
from foldin.errors import ConfigError, FoldinError, StateMismatchError, reason_of
from foldin.redaction import hide
from foldin.secrets import fill

__all__ = ["CONNECTOR", "check_topics", "kafka_failures", "read_topics"]

log = logging.getLogger("foldin.kafka")

CONNECTOR = f"org.apache.spark:spark-sql-kafka-0-10_2.13:{pyspark.__version__}"

# Spark's words, with the reason of the moment; the consumer group at its end is made up and helps nobody.
_DATA_LOSS = re.compile(r"Some data may have been lost[^.]*not available in Kafka.*?Reason:\s*([^\n]+)", re.DOTALL)
_PATIENCE = 60.0  # seconds to wait for a broker at the start: Kafka's own default for one call
_TELL = 10.0  # seconds between two lines that say what is waited for


def read_topics(spark: SparkSession, settings: KafkaConfig) -> DataFrame:
    """The topics as a stream of raw rows: `raw` (the value, null if blank), `source_file` and `arrived_at`.

    `source_file` is "kafka:topic/partition/offset": enough to look the message up. A message without a value (a
    tombstone) is a row too: it is for the contract to say that it is no event.

    Raises:
        ConfigError: the connector is missing, or an option is wrong.
    """
    options = fill("kafka.options", settings.options)
    with _spoken(settings):
        reader = spark.readStream.format("kafka").options(
            **{
                "startingOffsets": "earliest",
                # What a producer took back never happened.
                "kafka.isolation.level": "read_committed",
                **options,
                "kafka.bootstrap.servers": settings.bootstrap_servers,
                "subscribe": ",".join(settings.topic_names),
                "maxOffsetsPerTrigger": str(settings.max_offsets_per_trigger),
                "failOnDataLoss": "true",
            }
        )
        messages = reader.load()
    value = F.col("value").cast("string")
    # A line that was sent with its line end is the line that a file would hold. What is no text stays as it is.
    line = F.when(F.is_valid_utf8(value), F.regexp_replace(value, r"[\r\n]+\z", "")).otherwise(value)
    return messages.select(
        F.when(F.rlike(line, F.lit(r"(?U)\S")), line).alias("raw"),
        F.format_string("kafka:%s/%d/%d", "topic", "partition", "offset").alias("source_file"),
        F.col("timestamp").alias("arrived_at"),
    )


@contextmanager
def kafka_failures(settings: KafkaConfig, checkpoint: Checkpoint) -> Iterator[None]:
    """Refuse to go on where messages are gone unread; say what a person can do about it.

    Raises:
        StateMismatchError: the topics no longer hold the messages that the checkpoint has next.
        FoldinError: any other failure of the query, without a secret.
    """
    try:
        with _spoken(settings):
            yield
    except FoldinError as error:
        lost = _DATA_LOSS.search(str(error.__cause__))
        if lost is None:
            raise
        check_topics(checkpoint.spark, settings, checkpoint)  # knows all the offsets, where Spark names the first
        raise StateMismatchError(_gone(checkpoint, hide(lost[1]).strip())) from None


def check_topics(spark: SparkSession, settings: KafkaConfig, checkpoint: Checkpoint) -> None:
    """Wait for a broker, and compare what the checkpoint reads next with what the topics still hold.

    Raises:
        ConfigError: the connector is missing, a topic does not exist, the login is refused, an option is wrong.
        StateMismatchError: names the partitions and offsets that are gone.
        FoldinError: no broker answers within `kafka.default.api.timeout.ms` (60 s).
    """
    wanted = _next_offsets(checkpoint)
    unnamed = sorted({topic for topic, _ in wanted} - set(settings.topic_names))
    if unnamed:
        raise StateMismatchError(
            f"kafka.topics = {settings.topics!r} leaves out {', '.join(unnamed)}, which the checkpoint "
            f"{checkpoint.path} reads. Set it back, or: {_anew(checkpoint)}"
        )
    options = fill("kafka.options", settings.options)
    with _spoken(settings), _admin(spark, settings, options) as admin:
        _await_topics(spark, admin, settings, options)
        earliest, latest = (_bounds(spark, admin, wanted, spec) for spec in ("earliest", "latest"))
    lost = []
    for (topic, partition), offset in sorted(wanted.items()):
        first, end = earliest.get((topic, partition)), latest.get((topic, partition))
        if first is None or end is None:
            lost.append(f"{topic}/{partition} does not exist any more")
        elif offset < first:
            lost.append(f"{topic}/{partition} offsets {offset} to {first - 1}")
        elif offset > end:
            lost.append(f"{topic}/{partition} ends at offset {end}, before {offset}: it was made anew")
    if lost:
        raise StateMismatchError(_gone(checkpoint, "; ".join(lost)))


def _anew(checkpoint: Checkpoint) -> str:
    return (
        f"delete the checkpoint {checkpoint.path} and start again, which reads all that the topics hold; events that "
        "are known already are not counted twice"
    )


def _gone(checkpoint: Checkpoint, what: str) -> str:
    return (
        f"Kafka no longer holds messages that were never read: {what}. Retention deleted them, or somebody the topic. "
        f"If there is another copy, land it as files; to go on with what is left, {_anew(checkpoint)}"
    )


def _next_offsets(checkpoint: Checkpoint) -> dict[tuple[str, int], int]:
    """{(topic, partition): offset of the first message that no finished batch has read}, empty for a new checkpoint."""
    topics = checkpoint.first_offset(checkpoint.newest("commits"))
    try:
        if topics is None:
            text = checkpoint.read("sources/0/0")
            topics = json.loads("{" + text.partition("{")[2]) if text is not None else {}
        return {(t, int(p)): int(n) for t, parts in topics.items() for p, n in parts.items()}
    except (ValueError, AttributeError):
        raise StateMismatchError(
            f"the checkpoint {checkpoint.path} was begun with another source than Kafka. Give this job an "
            f"ingest.name of its own, or: {_anew(checkpoint)}"
        ) from None


def _bounds(spark: SparkSession, admin: Any, wanted: Any, spec: str) -> dict[tuple[str, int], int]:
    jvm: Any = spark.sparkContext._jvm
    asked = jvm.java.util.HashMap()
    for topic, partition in wanted:
        at = getattr(jvm.org.apache.kafka.clients.admin.OffsetSpec, spec)()
        asked.put(jvm.org.apache.kafka.common.TopicPartition(topic, partition), at)
    results = admin.listOffsets(asked)
    bounds = {}
    for topic, partition in wanted:
        future = results.partitionResult(jvm.org.apache.kafka.common.TopicPartition(topic, partition))
        try:
            bounds[topic, partition] = int(future.get().offset())
        except Py4JJavaError as error:
            if "UnknownTopicOrPartition" not in str(error):
                raise
    return bounds


def _await_topics(spark: SparkSession, admin: Any, settings: KafkaConfig, options: dict[str, str]) -> None:
    """Ask the broker for the topics; it may be starting at the same time as the job."""
    jvm: Any = spark.sparkContext._jvm
    patience = float(options.get("kafka.default.api.timeout.ms", 1000 * _PATIENCE)) / 1000
    began = told = time.monotonic()
    names = jvm.java.util.ArrayList()
    for name in settings.topic_names:
        names.add(name)
    future = admin.describeTopics(names).allTopicNames()
    while True:
        try:
            future.get(500, jvm.java.util.concurrent.TimeUnit.MILLISECONDS)
            return
        except Py4JJavaError as error:
            waited = time.monotonic() - began
            still = error.java_exception.getClass().getName() == "java.util.concurrent.TimeoutException"
            if not still or waited > patience:
                raise
            if time.monotonic() - told >= _TELL:
                told = time.monotonic()
                log.warning(
                    "no answer from Kafka at %s for %.0f s, waiting up to %.0f s",
                    settings.bootstrap_servers,
                    waited,
                    patience,
                )


@contextmanager
def _admin(spark: SparkSession, settings: KafkaConfig, options: dict[str, str]) -> Iterator[Any]:
    jvm: Any = spark.sparkContext._jvm
    properties = jvm.java.util.Properties()
    for key, value in options.items():
        if key.startswith("kafka."):
            properties.put(key.removeprefix("kafka."), value)
    properties.put("bootstrap.servers", settings.bootstrap_servers)
    try:
        admin = jvm.org.apache.kafka.clients.admin.Admin.create(properties)
    except TypeError as error:  # what py4j makes of a class that is not there
        raise ConfigError(
            f"ingest.source = 'kafka' needs Spark's Kafka connector: pass --packages {CONNECTOR} to spark-submit"
        ) from error
    try:
        yield admin
    finally:
        admin.close(jvm.java.time.Duration.ofSeconds(1))


@contextmanager
def _spoken(settings: KafkaConfig) -> Iterator[None]:
    """What Kafka throws, in a line that a person can act on and that holds no secret."""
    try:
        yield
    except FoldinError as error:
        if hide(str(error)) != str(error):
            raise type(error)(hide(str(error))) from error.__cause__
        raise
    except (PySparkException, Py4JError) as error:
        reason, where = hide(_innermost(error)), settings.bootstrap_servers
        if "UnknownTopicOrPartition" in reason or "InvalidTopic" in reason:
            raise ConfigError(f"kafka.topics = {settings.topics!r}: a topic does not exist at {where}") from None
        if re.search(r"Authenti|Authoriz", reason):
            raise ConfigError(f"kafka.options: Kafka at {where} refuses the login or its rights: {reason}") from None
        if re.search(r"ConfigException|IllegalArgument|Jaas|NoSuchFile|AccessDenied", reason):
            raise ConfigError(f"kafka.options: {reason}") from None
        if re.search(r"CertPath|Certificate|SSL", reason):
            raise ConfigError(
                f"kafka.options: Kafka at {where} is not trusted by TLS, or does not speak it: {reason}"
            ) from None
        if "UnrecoverableKey" in reason:
            raise ConfigError(
                f"kafka.options: a key or trust store does not open with its password: {reason}"
            ) from None
        if "Timeout" in reason:
            raise FoldinError(f"kafka.bootstrap_servers = {where!r}: no broker answers: {reason}") from None
        raise FoldinError(f"Kafka at {where}: {reason}") from None


def _innermost(error: Exception) -> str:
    """Class and message of the Java error at the bottom, in one line."""
    if not isinstance(error, Py4JJavaError):
        return reason_of(error)
    cause = error.java_exception
    while cause.getCause() is not None:
        cause = cause.getCause()
    return " ".join(f"{cause.getClass().getSimpleName()}: {cause.getMessage()}".split())
