"""The options of Kafka's consumer: which there are, and that none has a secret written out."""

from __future__ import annotations

import difflib

from foldin.secrets import check_secret

__all__ = ["check_options"]

# Of Spark's Kafka source, beside what begins with "kafka." and goes to Kafka's consumer.
_OF_SPARK = (
    "startingOffsets",
    "startingTimestamp",
    "startingOffsetsByTimestamp",
    "startingOffsetsByTimestampStrategy",
    "minPartitions",
    "maxRecordsPerPartition",
    "minOffsetsPerTrigger",
    "maxTriggerDelay",
    "groupIdPrefix",
    "kafkaConsumer.pollTimeoutMs",
    "fetchOffset.numRetries",
    "fetchOffset.retryIntervalMs",
)
_TAKEN = {
    "kafka.bootstrap.servers": "kafka.bootstrap_servers says it",
    "subscribe": "kafka.topics says it",
    "assign": "kafka.topics says it",
    "subscribepattern": "kafka.topics says it",
    "maxoffsetspertrigger": "kafka.max_offsets_per_trigger says it",
    "failondataloss": "messages that are gone unread always stop the job",
}


def check_options(options: dict[str, str]) -> dict[str, str]:
    """The options, if none is what Spark would pass over without a word, or a secret that is written out.

    Raises:
        ValueError: names the option, never its value.
    """
    for key, value in options.items():
        if said := _TAKEN.get(key.lower()):
            raise ValueError(f"{key!r} is not to be set: {said}")
        if not key.startswith("kafka.") and key not in _OF_SPARK:
            near = difflib.get_close_matches(key, _OF_SPARK, n=1, cutoff=0.7) or [f"kafka.{key}"]
            raise ValueError(f"unknown option {key!r}, did you mean {near[0]!r}?")
        check_secret(key, value)
    return options
