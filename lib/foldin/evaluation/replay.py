"""Prequential replay: every micro-batch is first tested on, then learned from; nothing else is ever tested on.

A contender is asked for a list of each user of the batch as of the events before it; each event of the batch is an
observation, the place of its item on that list. Users without a history and items without factors are observations
too: misses, if a contender does not know them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foldin.errors import FoldinError
from foldin.evaluation.contenders import Contender, truncated
from foldin.evaluation.log import EventLog, Past

__all__ = ["LeakError", "Observations", "assert_no_peeking", "observe", "steps_of"]

log_ = logging.getLogger("foldin.evaluate")

Ints = NDArray[np.int64]


class LeakError(FoldinError):
    """A contender's lists depend on events that it must not have seen."""


@dataclass(frozen=True, eq=False)
class Observations:
    """What came of the replay.

    Attributes:
        row: (n,) row of the log of each observation, an event that somebody was to be recommended.
        places: by contender, (n,) int: 1 for the head of the list, 0 where the item was not on it.
        shown: by contender, {item hash: times shown}.
        seconds: by contender, spent on learning.
    """

    row: Ints
    places: dict[str, NDArray[np.int32]]
    shown: dict[str, dict[int, int]]
    seconds: dict[str, float]


def steps_of(log: EventLog, start: int, end: int, *, events: int = 0, span_us: int = 0) -> list[tuple[int, int]]:
    """Bounds of micro-batches of so many events, or of so much time, from row start to row end."""
    if bool(events) == bool(span_us):
        raise ValueError("either events or span_us")
    if events:
        return [(at, min(at + events, end)) for at in range(start, end, events)]
    number = (log.time[start:end] - log.time[start]) // span_us
    cuts = np.flatnonzero(np.diff(number)) + 1 + start
    return list(zip([start, *cuts.tolist()], [*cuts.tolist(), end], strict=True))


def observe(
    past: Past,
    contenders: Sequence[Contender],
    steps: Sequence[tuple[int, int]],
    *,
    positive: NDArray[np.bool_],
    repeats: bool = False,
) -> Observations:
    """Go through the steps, test then fold.

    Args:
        past: has met everything before the first step, and is the contenders' own.
        positive: (n_types,) event types that are worth recommending.
        repeats: an item that the user had before counts again; else only the first time does.
    """
    log, began, said = past.log, time.monotonic(), time.monotonic()
    rows: list[Ints] = []
    places: dict[str, list[NDArray[np.int32]]] = {contender.name: [] for contender in contenders}
    shown: dict[str, dict[int, int]] = {contender.name: {} for contender in contenders}
    for number, (start, end) in enumerate(steps):
        tested = _tested(past, start, end, positive, repeats=repeats)
        if len(tested):
            users, owner = np.unique(log.user[tested], return_inverse=True)
            for contender in contenders:
                lists = contender.lists(users)
                places[contender.name].append(_places(lists[owner], log.item[tested]))
                for item, times in zip(*np.unique(lists[lists != -1], return_counts=True), strict=True):
                    shown[contender.name][int(item)] = shown[contender.name].get(int(item), 0) + int(times)
            rows.append(tested)
        past.meet(end)
        for contender in contenders:
            contender.meet(start, end)
        if time.monotonic() - said > 10:
            said = time.monotonic()
            left = (said - began) / (number + 1) * (len(steps) - number - 1)
            log_.info("step %d of %d, about %.0f s left", number + 1, len(steps), left)
    empty = np.empty(0, np.int64)
    return Observations(
        np.concatenate([empty, *rows]),
        {name: np.concatenate([empty.astype(np.int32), *found]) for name, found in places.items()},
        shown,
        {contender.name: contender.seconds for contender in contenders},
    )


def _tested(past: Past, start: int, end: int, positive: NDArray[np.bool_], *, repeats: bool) -> Ints:
    """Rows of the step that are observations."""
    log = past.log
    rows = np.arange(start, end)
    rows = rows[positive[log.type[rows]]]
    if repeats or not len(rows):
        return rows
    pairs = np.stack([log.user[rows], log.item[rows]], axis=1)
    _, first = np.unique(pairs, axis=0, return_index=True)  # an item twice in a step is new once
    rows = rows[np.sort(first)]
    users = np.unique(log.user[rows])
    indptr, had = past.rows_of(users)
    owner = np.repeat(users, np.diff(indptr))
    known = set(zip(owner.tolist(), log.item[had].tolist(), strict=True))
    return rows[[(u, i) not in known for u, i in zip(log.user[rows].tolist(), log.item[rows].tolist(), strict=True)]]


def _places(lists: Ints, items: Ints) -> NDArray[np.int32]:
    """1 + the column of each item on its list, 0 where it is not there."""
    hits = lists == items[:, None]
    return np.where(hits.any(axis=1), hits.argmax(axis=1) + 1, 0).astype(np.int32)


def assert_no_peeking(
    log: EventLog, make: Callable[[Past], Contender], start: int, upto: int, users: Ints, *, step: int
) -> None:
    """The lists as of row `upto` are the same whatever comes after it.

    Raises:
        LeakError: they are not.
    """
    found = []
    for version in (log, truncated(log, upto)):
        past = Past(version)
        past.meet(start)
        contender = make(past)
        for a, b in steps_of(version, start, upto, events=step):
            past.meet(b)
            contender.meet(a, b)
        found.append(contender.lists(users))
    if not np.array_equal(found[0], found[1]):
        differing = int(np.count_nonzero((found[0] != found[1]).any(axis=1)))
        raise LeakError(
            f"{contender.name} peeks: {differing} of {len(users)} lists change with events that come after them"
        )
