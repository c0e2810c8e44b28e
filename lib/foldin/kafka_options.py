"""The options of Kafka's consumer: which there are, which hold a secret, and how a secret stays one.

A secret stands in the environment, the configuration only names its variable ("${env:NAME}"), and whatever is said
about a failure passes through `hide`.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping

from foldin.errors import ConfigError

__all__ = ["check_options", "fill", "hide", "is_secret"]

_ENV = re.compile(r"\$\{env:(?P<name>[A-Za-z_][A-Za-z0-9_]*)\}")
_SECRET = re.compile(r"(password|passphrase|secret|token|jaas\.config|keystore\.key)$", re.IGNORECASE)
# An option of a JAAS line that holds a secret, with a value that does not come from the environment.
_JAAS_SECRET = re.compile(
    r"""[\w.]*(password|passphrase|secret)[\w.]*["']?\s*=\s*(?!["']?\$\{env:\w+\}["']?(\s|;|$))""", re.IGNORECASE
)
_IN_JAAS = re.compile(r"""(?:password|secret)\w*["']?\s*=\s*["']?([^\s"';]+)""", re.IGNORECASE)
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


def is_secret(option: str) -> bool:
    """Whether the value of an option must not be seen: by the option's name."""
    return _SECRET.search(option) is not None


def check_options(options: Mapping[str, str]) -> None:
    """Refuse what Spark would pass over without a word, and a secret that is written out.

    Raises:
        ValueError: names the option, never its value.
    """
    for key, value in options.items():
        if said := _TAKEN.get(key.lower()):
            raise ValueError(f"{key!r} is not to be set: {said}")
        if not key.startswith("kafka.") and key not in _OF_SPARK:
            near = difflib.get_close_matches(key, _OF_SPARK, n=1, cutoff=0.7) or [f"kafka.{key}"]
            raise ValueError(f"unknown option {key!r}, did you mean {near[0]!r}?")
        is_jaas = key.lower().endswith("jaas.config")
        if is_secret(key) and (_JAAS_SECRET.search(value) if is_jaas else not _ENV.fullmatch(value.strip())):
            raise ValueError(f'{key!r} holds a secret: put it in the environment and write "${{env:NAME}}" here')


def fill(options: Mapping[str, str]) -> dict[str, str]:
    """The options with each "${env:NAME}" replaced from the environment.

    Raises:
        ConfigError: names the option and the variable that is missing, never a value.
    """
    return {key: _filled(key, text) for key, text in options.items()}


def _filled(key: str, text: str) -> str:
    def value(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in os.environ:
            raise ConfigError(f"kafka.options: {key!r} needs the environment variable {name}, which is not set")
        found = os.environ[name]
        if text[: match.start()].endswith('"') and text[match.end() :].startswith('"'):
            found = _escaped(found)  # within the quotes of a JAAS line, a quote of the password's own would end it
        return found

    return _ENV.sub(value, text)


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def hide(text: str, options: Mapping[str, str]) -> str:
    """`text` without what the environment puts into secret options, whoever wrote it there."""
    for key, option in options.items():
        for name in _ENV.findall(option) if is_secret(key) else ():
            secret = os.environ.get(name, "")
            # As the environment has it, and as it stands in a JAAS line.
            for form in filter(None, (secret, _escaped(secret), *_IN_JAAS.findall(secret))):
                text = text.replace(form, "[hidden]")
    return text
