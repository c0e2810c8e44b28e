"""Histories to strengths: strength(user, item) = f(sum of weight(type) * value * decay), one float32 rounding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["UserItems", "user_items"]

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class UserItems:
    """Strengths of (user, item) pairs, sorted by user, then item; a pair occurs once.

    Attributes:
        user: (n_pairs,) int64, row of the user in the batch.
        item: (n_pairs,) int64, hash of the item.
        strength: (n_pairs,) float32, never 0 where it is a sum (a pair that says nothing is left out).
        events: (n_users,) int32, events that the user's bounded history holds.
    """

    user: Ints
    item: Ints
    strength: npt.NDArray[np.float32]
    events: npt.NDArray[np.int32]


def user_items(
    *,
    user: npt.NDArray[Any],
    n_users: int,
    time: npt.NDArray[Any],
    event: npt.NDArray[Any],
    item: npt.NDArray[Any],
    type: npt.NDArray[Any],
    value: npt.NDArray[Any],
    weights: Floats,
    half_life_us: float,
    oldest_us: int | None,
    max_events: int,
    log1p: bool,
    explicit: bool,
) -> UserItems:
    """Strengths of a batch of histories, independent of the order of its events.

    Args:
        user: (n,) row of each event's user, 0 <= user < n_users.
        time: (n,) event times in microseconds.
        event: (n,) hash of the event's id: breaks ties of time.
        item: (n,) hash of the item.
        type: (n,) number of the event's type, an index into `weights`.
        value: (n,) value of the event (1 where it has none).
        weights: (n_types,) weight of one event of each type; events of weight 0 say nothing of the item.
        half_life_us: microseconds after which an event counts half, from the user's latest; inf: no decay.
        oldest_us: events before this time do not count; None: all do.
        max_events: only this many of a user's most recent events count, by (time, event).
        log1p: f(s) = sign(s) * log(1 + |s|) instead of s.
        explicit: the last rating, that is the value of the pair's last event of a type with a weight, not a sum.
    """
    time, event = time.astype(np.int64, copy=False), event.astype(np.int64, copy=False)
    order = np.lexsort((event, time, user))
    if oldest_us is not None:
        order = order[time[order] >= oldest_us]
    user = user.astype(np.int64, copy=False)[order]
    counts = np.bincount(user, minlength=n_users)
    ends = np.cumsum(counts)
    recent = np.arange(user.size) >= (ends - max_events)[user]  # the last max_events of each user
    latest = time[order[np.maximum(ends - 1, 0)]] if order.size else np.zeros(n_users, np.int64)
    bounded = np.minimum(counts, max_events).astype(np.int32)

    weight = weights[type[order]]
    keep = recent & (weight != 0.0)
    order, user, weight = order[keep], user[keep], weight[keep]
    item, value = item.astype(np.int64, copy=False)[order], value[order].astype(np.float64)
    # 2^(-age / half-life); age counts from the user's own latest event, so the clock has no say.
    decay = np.exp2(-(latest[user] - time[order]) / half_life_us)

    pairs = np.lexsort((np.arange(order.size), item, user))  # within a pair: by (time, event)
    user, item = user[pairs], item[pairs]
    first = np.ones(user.size, dtype=bool)
    first[1:] = (user[1:] != user[:-1]) | (item[1:] != item[:-1])
    starts = np.flatnonzero(first)
    if explicit:
        last = np.append(starts[1:], user.size)[: starts.size] - 1
        strength = value[pairs][last]
        said = np.ones(starts.size, dtype=bool)
    else:
        terms = (weight * value * decay)[pairs]
        total = np.add.reduceat(terms, starts) if starts.size else np.zeros(0)
        strength = np.sign(total) * np.log1p(np.abs(total)) if log1p else total
        said = strength.astype(np.float32) != 0.0
    starts = starts[said]
    return UserItems(user[starts], item[starts], strength[said].astype(np.float32), bounded)
