"""A log of events in memory, in the order in which the replay meets them, and the part of it that has been met.

About 60 bytes an event: a log of some millions of events fits a laptop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from foldin.errors import FoldinError
from foldin.histories import slim
from foldin.schemas import HISTORY_ITEM

__all__ = ["EventLog", "Past"]

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class EventLog:
    """Events in order of (time, event), as histories hold them.

    Attributes:
        user_ids: (n_users,) names.
        user: (n,) row of each event's user.
        time: (n,) event_time, microseconds since 1970 UTC.
        event: (n,) hash of the event's id, which breaks ties of time.
        item: (n,) hash of the item.
        type: (n,) number of the event's type.
        value: (n,) magnitude; NaN where there is none.
    """

    user_ids: pa.Array
    user: Ints
    time: Ints
    event: Ints
    item: Ints
    type: NDArray[np.int8]
    value: NDArray[np.float64]

    @classmethod
    def of(cls, events: DataFrame, types: Sequence[str]) -> EventLog:
        """Of rows of `events`; other event types are left out, as the stream leaves them out.

        Raises:
            FoldinError: there are none.
        """
        rows = slim(events, types).withColumn("value", F.coalesce("value", F.lit(float("nan")))).toArrow()
        if rows.num_rows == 0:
            raise FoldinError(f"nothing to replay: no event is of the types {', '.join(types)}")
        rows = rows.sort_by([("time", "ascending"), ("event", "ascending")]).combine_chunks()
        users = rows.column("user_id").combine_chunks().dictionary_encode()
        names = ("time", "event", "item", "type", "value")
        return cls(
            users.dictionary,
            users.indices.to_numpy().astype(np.int64),
            *(rows.column(name).combine_chunks().to_numpy(zero_copy_only=False) for name in names),
        )

    def __len__(self) -> int:
        return len(self.user)

    def first_at(self, time_us: int) -> int:
        """The row of the first event at or after a moment."""
        return int(np.searchsorted(self.time, time_us))


@dataclass(eq=False)
class Past:
    """What has been met of a log so far: the first `met` events, by user.

    Attributes:
        met: events met.
        counts: (n_users,) of them, by user.
    """

    log: EventLog
    met: int = field(default=0, init=False)
    counts: Ints = field(init=False)

    def __post_init__(self) -> None:
        users = len(self.log.user_ids)
        self.counts = np.zeros(users, dtype=np.int64)
        self._rows = np.argsort(self.log.user, kind="stable")  # each user's in order of time
        self._starts = np.concatenate(([0], np.cumsum(np.bincount(self.log.user, minlength=users))))

    def meet(self, upto: int) -> None:
        """Go on to the first `upto` events.

        Raises:
            FoldinError: time does not go back.
        """
        if upto < self.met:
            raise FoldinError(f"the replay has met {self.met} events, and cannot go back to {upto}")
        np.add.at(self.counts, self.log.user[self.met : upto], 1)
        self.met = upto

    def rows_of(self, users: Ints, counts: Ints | None = None) -> tuple[Ints, Ints]:
        """(indptr, rows of the log) of what these users did; `counts`: only so many of each one's first events."""
        lengths = (self.counts if counts is None else counts)[users]
        indptr = np.concatenate(([0], np.cumsum(lengths)))
        within = np.arange(indptr[-1]) - np.repeat(indptr[:-1], lengths)
        return indptr, self._rows[np.repeat(self._starts[users], lengths) + within]

    def histories(self, users: Ints, counts: Ints | None = None, *, seen: bool = True) -> pa.RecordBatch:
        """What the stream's state holds of these users: the columns that `fold_batch` takes.

        Args:
            counts: (n_users of the log,) histories of so many first events; seen items are always those of now.
            seen: False: nobody has seen anything, so that items may come again.
        """
        indptr, rows = self.rows_of(users, counts)
        log = self.log
        values = pa.array(log.value[rows], from_pandas=True)  # NaN is null, as in the state
        columns = [pa.array(log.time[rows]), pa.array(log.event[rows]), pa.array(log.item[rows])]
        events = pa.StructArray.from_arrays([*columns, pa.array(log.type[rows]), values], names=HISTORY_ITEM.names)
        seen_indptr, seen_rows = self.rows_of(users) if seen else (np.zeros(len(users) + 1, np.int64), rows[:0])
        return pa.RecordBatch.from_arrays(
            [
                log.user_ids.take(pa.array(users)),
                pa.ListArray.from_arrays(pa.array(indptr, pa.int32()), events),
                pa.ListArray.from_arrays(pa.array(seen_indptr, pa.int32()), pa.array(log.item[seen_rows])),
            ],
            names=["user_id", "history", "seen"],
        )
