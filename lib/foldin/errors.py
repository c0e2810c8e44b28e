"""What can go wrong, one class per failure that a caller would handle differently.

Every error carries the exit code with which a job ends, so that an orchestrator can tell a wrong
configuration (never retry) from a refused state (a person must decide) or a failed run (retry).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import ClassVar

from foldin.redaction import hide

__all__ = [
    "DISK_FULL",
    "AccountingError",
    "AlarmError",
    "ConfigError",
    "FoldinError",
    "InvalidInputError",
    "LeakError",
    "LeaseError",
    "MissingModelError",
    "PrerequisiteError",
    "SingularSystemError",
    "StateMismatchError",
    "UnknownItemError",
    "reason_of",
]


DISK_FULL = re.compile(r"No space left on device|Disk quota exceeded")
"""What an error says, whoever raises it, when there is no room left."""


class FoldinError(Exception):
    """Base of all errors that foldin raises on purpose; its message is meant for a person."""

    exit_code: ClassVar[int] = 1


class RejectedModelError(FoldinError):
    """A candidate must not serve: it is worse than what does by more than `judge.margin`, or older."""

    exit_code: ClassVar[int] = 10


class PrerequisiteError(FoldinError):
    """Python or Java is missing or of a version that Spark cannot use."""

    exit_code: ClassVar[int] = 1


class ConfigError(FoldinError):
    """A key or value of the configuration or of a mapping file breaks a rule."""

    exit_code: ClassVar[int] = 2


class MissingModelError(FoldinError):
    """There is no active model (or not the named one) to read from."""

    exit_code: ClassVar[int] = 3


class UnknownItemError(FoldinError):
    """The active model has no factors of the item, so there is no score to explain and nothing similar to it."""


class StateMismatchError(FoldinError):
    """A checkpoint was born under settings that differ from today's; it must be rebuilt."""

    exit_code: ClassVar[int] = 4


class AccountingError(FoldinError):
    """Rows in are not events + quarantined + duplicates: a row was lost or counted twice."""

    exit_code: ClassVar[int] = 5


class SingularSystemError(FoldinError, ValueError):
    """A user's normal equations have no unique solution (regParam 0, too few events)."""

    exit_code: ClassVar[int] = 6


class InvalidInputError(FoldinError, ValueError):
    """A number or shape handed to a kernel has no defined answer (NaN, infinity, out of range)."""

    exit_code: ClassVar[int] = 7


class LeaseError(FoldinError):
    """Another process holds the lease on the checkpoint (or has taken it over): try again when its term is over."""

    exit_code: ClassVar[int] = 8


class LeakError(FoldinError):
    """An evaluation's contender knew what had not happened yet: its figures would be worth nothing."""

    exit_code: ClassVar[int] = 11


class AlarmError(FoldinError):
    """The stream's lag or freshness is worse than `[alarm]` allows, and its action is `exit`."""

    exit_code: ClassVar[int] = 9


def reason_of(error: BaseException) -> str:
    """What went wrong, in one line: of the pages that Spark or a py4j error prints, the line that says why.

    Without the secrets in use, since it goes into logs and tables.
    """
    # By its name: readers without Spark, who have no py4j, import this module.
    if isinstance(error, ConnectionError) or "Py4JNetworkError" in {kind.__name__ for kind in type(error).__mro__}:
        return "Spark's JVM is gone: it was killed, or this machine had no memory left for it (spark.driver.memory)"
    texts = list(_causes(error))
    text = texts[0]
    # The innermost error class is the cause; these two only say that a query failed.
    said = re.findall(r"\[(?!STREAM_FAILED|FOREACH_BATCH)[A-Z][A-Z0-9_.]{3,}\] [^\n]*", text)
    said += re.findall(r"(?:Lost task|Caused by:)[^\n]*?([\w.$]+(?:Exception|Error): [^\n]+)", text)[-1:]
    said += re.findall(r"^: ([\w.$]+[^\n]*)", text, re.MULTILINE)  # py4j puts the Java error on a second line
    said += [line for line in text.splitlines() if line.strip()]
    line = " ".join(said[0].split()) if said else type(error).__name__
    line = re.sub(r"[;,.]? SQLSTATE: \w+|;? line \d+ pos \d+;?$", "", line).rstrip(" ;")
    full = DISK_FULL.search("\n".join(texts))  # of a write that failed Spark only says that it did
    return hide(f"{line}: {full.group()}" if full and full.group() not in line else line)


def _causes(error: BaseException | None) -> Iterator[str]:
    """What it says itself, and what its causes say, in Python and, of Spark's errors, in Java."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        yield str(error)
        error = getattr(error, "_cause", None) or error.__cause__
