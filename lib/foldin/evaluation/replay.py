"""Test, then fold: each micro-batch is foretold by everybody before anybody learns it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foldin.errors import FoldinError, LeakError
from foldin.evaluation.contenders import Contender, Lists, ModelAt, fold_users
from foldin.evaluation.log import EventLog, Past
from foldin.evaluation.plan import DAY_US
from foldin.evaluation.results import KINDS, Shown, rank_column

__all__ = ["Foretold", "Steps", "Watch", "audit", "cut_by_number", "cut_by_time", "judged", "replay"]

log_ = logging.getLogger("foldin.evaluate")

Ints = npt.NDArray[np.int64]
Make = Callable[[EventLog], Sequence[Contender]]
Watch = Callable[[Past, str, npt.NDArray[np.integer], Lists], None]
"""Is shown every list: (past, contender, users, lists)."""

_LINE_SECONDS = 10.0
_AUDITED_EVENTS = 500


@dataclass(frozen=True)
class Steps:
    """Micro-batches one after the other: step s has the events from bounds[s] up to bounds[s + 1]."""

    bounds: Ints

    def __len__(self) -> int:
        return len(self.bounds) - 1


def cut_by_number(first: int, last: int, events: int, fresh: Ints) -> Steps:
    """Micro-batches of so many events.

    Args:
        fresh: positions at which a new model serves: a micro-batch ends there.
    """
    bounds = np.arange(first, last, events)
    return Steps(np.unique(np.concatenate((bounds, fresh[(fresh > first) & (fresh < last)], [last]))))


def cut_by_time(log: EventLog, first: int, last: int, start_us: int, seconds: float, fresh: Ints) -> Steps:
    """Micro-batches of so many seconds from the start on; those without an event are none."""
    number = (log.time[first:last] - start_us) // int(seconds * 1e6)
    begins = first + np.flatnonzero(np.diff(number, prepend=-1))
    return Steps(np.unique(np.concatenate((begins, fresh[(fresh > first) & (fresh < last)], [last]))))


def judged(log: EventLog, *, repeats: bool) -> npt.NDArray[np.bool_]:
    """(n,) events that are to be foretold: for an item; unless `repeats`, the first of the user with the item."""
    return log.speaks_for if repeats else log.speaks_for & log.first_of_pair


@dataclass(frozen=True, eq=False)
class Foretold:
    """What a replay saw: columns of `Replayed.rows`, what was shown, and the kernel's seconds."""

    rows: pa.Table
    shown: dict[str, Shown]
    fold_seconds: float
    folded_events: int
    folded_users: int


def replay(
    log: EventLog,
    steps: Steps,
    contenders: Sequence[Contender],
    k: int,
    start: ModelAt,
    *,
    repeats: bool = False,
    age_from_us: int | None = None,
    timed: Callable[[Past], ModelAt] | None = None,
    watch: Watch | None = None,
) -> Foretold:
    """Ask every contender before every micro-batch, for the users who are in it.

    Args:
        start: the model of the start: says who is known and what can be reached.
        age_from_us: moment from which the age of the start's model counts.
        timed: the model under which the micro-batch is folded once more, to take the time.
        watch: is shown every list.

    Raises:
        FoldinError: there is nothing to foretell.
    """
    wanted = judged(log, repeats=repeats)
    reachable = start.model.index_of(log.item_hashes) >= 0
    sight = _Sight(log, int(steps.bounds[0]))
    parts: list[dict[str, npt.NDArray[np.generic]]] = []
    asked = {contender.name: False for contender in contenders}
    seconds, folded_events, folded_users, said = 0.0, 0, 0, time.monotonic()
    for step in range(len(steps)):
        begin, end = int(steps.bounds[step]), int(steps.bounds[step + 1])
        past = Past(log, begin, repeats)
        at = begin + np.flatnonzero(wanted[begin:end])
        if at.size:
            users, row = np.unique(log.user[at], return_inverse=True)
            columns = _facts(past, start, users, row, at) | {"step": np.full(at.size, step)}
            columns["reachable"] = reachable[log.item[at]]
            for contender in contenders:
                lists = contender.recommend(past, users, k)
                asked[contender.name] |= lists is not None
                columns[contender.name] = _ranks(lists, row, log.item[at])
                if lists is not None:
                    sight.add(contender.name, lists)
                    if watch is not None:
                        watch(past, contender.name, users, lists)
            parts.append(columns)
        for contender in contenders:
            contender.learn(past, end)
        if timed is not None:
            model, now = timed(past).model, Past(log, end, repeats)
            began = time.perf_counter()
            everybody = np.unique(log.user[begin:end])
            fold_users(model, now.histories(everybody), k)
            seconds += time.perf_counter() - began
            folded_events, folded_users = folded_events + end - begin, folded_users + everybody.size
        if time.monotonic() - said > _LINE_SECONDS:
            said = time.monotonic()
            log_.info("micro-batch %s of %s", f"{step + 1:,}", f"{len(steps):,}")
    if not parts:
        raise FoldinError(
            "nothing to foretell: between start and end no user takes "
            + ("an item" if repeats else "an item that is new to the user (--repeats counts the others too)")
        )
    names = [name for name, was in asked.items() if was]
    shown = {name: sight.shown(name) for name in names}
    return Foretold(_table(log, parts, names, start, age_from_us), shown, seconds, folded_events, folded_users)


def _facts(
    past: Past, start: ModelAt, users: npt.NDArray[np.integer], row: Ints, at: Ints
) -> dict[str, npt.NDArray[np.generic]]:
    """What is to be known of the judged events, `at` (row: index of each one's user in `users`)."""
    log = past.log
    before, bounds = log.positions(users, past.end)
    history, known = np.diff(bounds), past.before(start.cut).counts(users) > 0
    # Who has only lines of this very moment is at their first order, and as new as with its first line.
    earliest = np.full(len(users), np.iinfo(np.int64).max)
    earliest[history > 0] = log.time[before[bounds[:-1][history > 0]]]
    kind = np.where(known[row], 0, np.where(earliest[row] < log.time[at], 1, 2))
    latest = np.full(len(users), np.iinfo(np.int64).min)
    latest[history > 0] = log.time[before[bounds[1:][history > 0] - 1]]
    return {"at": at, "kind": kind, "history": history[row], "same_moment": latest[row] == log.time[at]}


def _ranks(lists: Lists | None, row: Ints, item: npt.NDArray[np.int32]) -> npt.NDArray[np.int16]:
    """(n_events,) place of each event's item on its user's list, 0 for none, -1 where nobody was asked."""
    if lists is None:
        return np.full(len(row), -1, dtype=np.int16)
    found = lists.items[row] == item[:, None]
    return np.where(found.any(axis=1), found.argmax(axis=1) + 1, 0).astype(np.int16)


def _table(
    log: EventLog,
    parts: list[dict[str, npt.NDArray[np.generic]]],
    names: Sequence[str],
    start: ModelAt,
    age_from_us: int | None,
) -> pa.Table:
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    at = columns["at"].astype(np.int64)
    made_us = age_from_us if age_from_us is not None else int(log.time[max(start.cut - 1, 0)])
    age_us: npt.NDArray[np.float64] = (log.time[at] - made_us).astype(np.float64)
    table = {
        "step": pa.array(columns["step"].astype(np.int32)),
        "event_time": pa.array(log.time[at], pa.timestamp("us", tz="UTC")),
        "user_id": log.user_ids.take(pa.array(log.user[at])),
        "item_id": log.item_ids.take(pa.array(log.item[at])),
        "kind": pa.array(np.array(KINDS)[columns["kind"].astype(np.int64)]),
        "history": pa.array(columns["history"].astype(np.int32)),
        "model_age_days": pa.array(age_us / DAY_US),
        "reachable": pa.array(columns["reachable"]),
        "same_moment": pa.array(columns["same_moment"]),
    }
    for name in names:
        ranks = columns[name].astype(np.int16)
        table[rank_column(name)] = pa.array(ranks, mask=ranks < 0)
    return pa.table(table)


class _Sight:
    """Coverage and novelty, counted as lists go by."""

    def __init__(self, log: EventLog, begin: int) -> None:
        spoken_for = log.speaks_for[:begin]
        pairs = np.unique(log.user[:begin][spoken_for].astype(np.int64) * log.n_items + log.item[:begin][spoken_for])
        takers = np.bincount(pairs % log.n_items, minlength=log.n_items)
        n_users = max(1, len(np.unique(pairs // log.n_items)))
        self._known = takers > 0
        # One taker more for each: an item that nobody had before the start is novel, not infinitely so.
        self._bits = -np.log2((takers + 1) / (n_users + 1))
        self._listed: dict[str, npt.NDArray[np.bool_]] = {}
        self._sums: dict[str, npt.NDArray[np.float64]] = {}

    def add(self, name: str, lists: Lists) -> None:
        """Of each contender: bits and places; lists by popularity and lists."""
        items = lists.items[lists.items >= 0]
        self._listed.setdefault(name, np.zeros(len(self._known), dtype=bool))[items] = True
        sums = self._sums.setdefault(name, np.zeros(4))
        sums += (self._bits[items].sum(), items.size, lists.by_popularity.sum(), len(lists.by_popularity))

    def shown(self, name: str) -> Shown:
        """Of all lists of a contender."""
        bits, places, by_popularity, lists = self._sums[name].tolist()
        covered = int(np.count_nonzero(self._listed[name] & self._known)) / max(1, int(np.count_nonzero(self._known)))
        return Shown(covered, bits / max(1, places), by_popularity / max(1, lists))


def audit(log: EventLog, steps: Steps, make: Make, k: int, *, repeats: bool = False) -> None:
    """Whether anybody peeks: with another future, the same past must give the same lists.

    At a third and at two thirds of the replay the contenders of two logs are compared that differ in whatever comes
    afterwards: users, items, types and values.

    Raises:
        LeakError: names the contender and the moment.
    """
    true = make(log)
    at = 0
    for third in (1, 2):
        moment = len(steps) * third // 3
        _learn(true, log, steps, at, moment, repeats)
        at, end = moment, int(steps.bounds[moment])
        users = np.unique(log.user[end : end + _AUDITED_EVENTS])
        altered = log.with_other_future(end)
        others = make(altered)
        _learn(others, altered, steps, 0, moment, repeats)
        for one, other in zip(true, others, strict=True):
            mine, theirs = (
                who.recommend(Past(which, end, repeats), users, k) for who, which in ((one, log), (other, altered))
            )
            if (mine is None) != (theirs is None):
                raise LeakError(f"{one.name} peeks: what comes after {_moment(log, end)} decides whether it is asked")
            if mine is None or theirs is None:
                continue
            differ = (mine.items != theirs.items).any(axis=1)
            if differ.any():
                user = log.user_ids[int(users[differ.argmax()])].as_py()
                raise LeakError(
                    f"{one.name} peeks: with another future after {_moment(log, end)} the lists of "
                    f"{np.count_nonzero(differ)} of {users.size} users differ, that of {user!r} among them"
                )


def _learn(contenders: Sequence[Contender], log: EventLog, steps: Steps, first: int, last: int, repeats: bool) -> None:
    for step in range(first, last):
        past = Past(log, int(steps.bounds[step]), repeats)
        for contender in contenders:
            contender.learn(past, int(steps.bounds[step + 1]))


def _moment(log: EventLog, end: int) -> str:
    return str(np.datetime64(int(log.time[max(end - 1, 0)]), "us"))[:19]
