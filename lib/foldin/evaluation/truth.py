"""The generated log's truth: what its users would really like best, on the day of the request."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import numpy.typing as npt

from foldin.demo.synthetic import SyntheticLog
from foldin.evaluation.contenders import Lists
from foldin.evaluation.log import EventLog, Past
from foldin.evaluation.plan import DAY_US

__all__ = ["Truth"]

Floats = npt.NDArray[np.float64]


class Truth:
    """Measures lists by the probabilities with which the generated users choose; watches a replay.

    P(item | user, day) ∝ popularity(item) · exp(2 · taste(user, day) · taste(item)), as in `SyntheticLog`.

    Args:
        made: the log whose days have all been made.
        log: the same log as it is replayed.
    """

    def __init__(self, made: SyntheticLog, log: EventLog) -> None:
        self._made = made
        numbers = {f"user-{number:06d}": number for number in range(made.size.users)}
        self._user = np.array([numbers.get(user, -1) for user in log.user_ids.to_pylist()])  # -1: planted by hand
        rows = {item: row for row, item in enumerate(made.item_ids.tolist())}
        self._row = np.array([rows[item] for item in log.item_ids.to_pylist()])
        self._sums: defaultdict[str, Floats] = defaultdict(lambda: np.zeros(2))
        first = np.datetime64(made.start, "us").astype(np.int64)
        self._first_us = int(first)

    def watch(self, past: Past, contender: str, users: npt.NDArray[np.integer], lists: Lists) -> None:
        """A `foldin.evaluation.replay.Watch`."""
        day = int((past.log.time[past.end] - self._first_us) // DAY_US)
        bounds, seen = past.seen(users)
        for at, user in enumerate(self._user[users]):
            if user < 0:
                continue
            chances = self._chances(int(user), day)
            listed = lists.items[at][lists.items[at] >= 0]
            possible = chances.copy()
            possible[seen[bounds[at] : bounds[at + 1]]] = 0.0
            k = min(lists.items.shape[1], possible.size)
            best = np.partition(possible, -k)[-k:].sum()
            self._sums[contender] += (chances[listed].sum() / best, 1.0)

    def shares(self) -> dict[str, float]:
        """By contender: chance that the user's next item is on the list, as a share of the best possible list's."""
        return {name: float(total / count) for name, (total, count) in self._sums.items()}

    def _chances(self, user: int, day: int) -> Floats:
        """(n_items,) of the replayed log's items."""
        affinity = self._made.item_tastes[self._row] @ self._made.days[day][user]
        weights: Floats = self._made.popularity[self._row] * np.exp(2 * affinity)
        return np.asarray(weights / weights.sum(), dtype=np.float64)
