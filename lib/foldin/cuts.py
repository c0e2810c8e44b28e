"""Which events a training reads, and up to where it may say that it has seen them all."""

from __future__ import annotations

import datetime as dt
import logging
from dataclasses import dataclass

from py4j.protocol import Py4JError
from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from foldin.commits import CommitLog
from foldin.errors import reason_of
from foldin.fitting import EmptyTrainingCutError
from foldin.schemas import EVENTS, MODELS
from foldin.tables import Tables

__all__ = ["Cut", "cut_at"]

log = logging.getLogger("foldin.train")

_NOTHING = -1  # of `events` every version comes after it
_SKEW = 60.0  # seconds by which the clocks of hosts may differ


@dataclass(frozen=True)
class Cut:
    """The events of a training.

    Attributes:
        events: rows of EVENTS.
        version: Delta version of `events`: what it and those before it have appended is in `events`. Whoever brings the
            model into force refolds the users with events after it, so it may be too old, but never too new.
    """

    events: DataFrame
    version: int


def cut_at(tables: Tables, until: dt.datetime | None = None) -> Cut:
    """All events, or those that were ingested before a moment: the same whenever it is asked.

    Args:
        until: with a time zone.

    Raises:
        EmptyTrainingCutError: no event was ingested before that moment.
    """
    newest = tables.version(EVENTS)
    events = tables.read(EVENTS, version=newest)
    if until is None:
        return Cut(events, newest)
    late = _late(until)
    if events.where(late).isEmpty():  # the statistics of the files tell
        return Cut(events, newest)
    if events.where(~late).isEmpty():
        raise EmptyTrainingCutError(f"nothing to train on: no event was ingested before {until.isoformat()}")
    version = _version_in_log(tables, newest, until)
    if version is None:
        version = _version_in_models(tables, until.timestamp() - _SKEW)
        log.info(
            "the log of events no longer says what version it had at %s: taking %d, of which `models` knows; "
            "more users are refolded when the model comes into force",
            until.isoformat(timespec="seconds"), version,
        )  # fmt: skip
    return Cut(events.where(~late), version)


def _late(until: dt.datetime) -> Column:
    moment = F.timestamp_micros(F.lit(round(until.timestamp() * 1_000_000)))
    return F.coalesce(F.col("ingested_at") >= moment, F.lit(True))


def _version_in_log(tables: Tables, newest: int, until: dt.datetime) -> int | None:
    """The newest version that was committed before the moment and that has no event of after it; None: no longer known.

    A commit comes after the stamp of its rows, so by one clock the first says the second; the rows say it by any.
    """
    commits = CommitLog(tables, EVENTS)
    oldest = commits.oldest()
    low, high = oldest.version, newest
    if oldest.at >= until.timestamp():
        return None
    while low < high:
        middle = (low + high + 1) // 2
        commit = commits.commit(middle)
        if commit is not None and commit.at < until.timestamp():
            low = middle
        else:
            high = middle - 1
    try:
        return low if tables.read(EVENTS, version=low).where(_late(until)).isEmpty() else None
    except (PySparkException, Py4JError) as error:  # the log has lost the checkpoint that it is read from
        log.debug("version %d of events cannot be read: %s", low, reason_of(error))
        return None


def _version_in_models(tables: Tables, at: float) -> int:
    """The newest version of `events` that some row of `models` speaks of which was written by then."""
    seen = F.greatest("cut_version", F.col("caught_up_version") - 1)
    row = tables.read(MODELS).where(F.unix_micros("at") <= round(at * 1_000_000)).agg(F.max(seen).alias("seen")).first()
    return int(row["seen"]) if row is not None and row["seen"] is not None else _NOTHING
