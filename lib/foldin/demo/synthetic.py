"""A log whose truth is known: tastes, popularity, drift, newcomers, a funnel of event types, dirty rows."""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["CONVERT", "GENRES", "NEWCOMER", "SIZES", "Size", "SyntheticLog", "genre_of"]

GENRES = ("jazz", "metal", "folk", "opera", "disco", "blues", "tango", "punk")
"""Each item is of one genre, which its id names; a taste is a weight for each genre."""

CONVERT = "alice"
"""A user with one clear taste, who on the last day buys three items of another."""

NEWCOMER = "zoe"
"""A user whose first events come on the last day."""

_FUNNEL = (("like", 0.30), ("cart", 0.20), ("purchase", 0.12))
_CANDIDATES = 48


@dataclass(frozen=True)
class Size:
    """How large a log is."""

    users: int
    items: int
    days: int
    views_per_day: int


SIZES = {
    "small": Size(users=2_000, items=800, days=14, views_per_day=3_000),
    "medium": Size(users=20_000, items=4_000, days=21, views_per_day=20_000),
    "large": Size(users=100_000, items=20_000, days=28, views_per_day=100_000),
}


def genre_of(item_id: str) -> str:
    """The genre that an item's id names."""
    return item_id.partition("-")[0]


class SyntheticLog:
    """Users with drifting tastes look at Zipf-popular items; whoever likes what they see goes on to buy it.

    P(item | user, day) is proportional to popularity(item) * exp(2 * taste(user, day) . genre(item)).

    Args:
        size: users, items, days and views a day.
        seed: the same seed gives the same log to the letter.
        start: first day.
    """

    def __init__(self, size: Size, *, seed: int = 7, start: dt.date = dt.date(2025, 3, 3)) -> None:
        self.size, self.start = size, start
        self._rng = np.random.default_rng(seed)
        rng, n = self._rng, len(GENRES)
        genre = rng.integers(n, size=size.items)
        self.item_ids = np.array([f"{GENRES[g]}-{i:05d}" for i, g in enumerate(genre)])
        self.item_tastes = np.eye(n)[genre] + rng.normal(0, 0.25, (size.items, n))
        zipf = 1.0 / np.arange(1, size.items + 1) ** 0.9
        self.popularity = rng.permutation(zipf / zipf.sum())
        self.user_tastes = rng.gumbel(0, 1.0, (size.users, n))
        # A fifth of the users join while the log runs.
        self.first_day = np.where(rng.random(size.users) < 0.2, rng.integers(size.days, size=size.users), 0)
        self._activity = rng.lognormal(0, 1.0, size.users)
        self._next_id = 0
        self.days: list[npt.NDArray[np.float64]] = []
        """(users, genres) tastes on each day made so far: the truth that an evaluation can be held to."""

    def day(self, day: int) -> list[str]:
        """The lines of one day, in no order, with about 1% of rows that break the contract."""
        rng, size = self._rng, self.size
        self.user_tastes += rng.normal(0, 0.12, self.user_tastes.shape)  # drift
        self.days.append(self.user_tastes.copy())
        here = np.flatnonzero(self.first_day <= day)
        weight = self._activity[here]
        users = rng.choice(here, size.views_per_day, p=weight / weight.sum())
        items = self._choose(users)
        seconds = rng.integers(0, 86_400 - 3_600, size.views_per_day)
        liking = 1 / (1 + np.exp(-np.einsum("ij,ij->i", self.user_tastes[users], self.item_tastes[items])))
        events = [self._event(f"user-{u:06d}", self.item_ids[i], "view", day, s)
                  for u, i, s in zip(users, items, seconds, strict=True)]  # fmt: skip
        for event_type, share in _FUNNEL:
            went_on = np.flatnonzero(rng.random(users.size) < share * liking)
            for at in went_on:
                later = int(seconds[at]) + int(rng.integers(30, 1_800))
                events.append(self._event(f"user-{users[at]:06d}", self.item_ids[items[at]], event_type, day, later))
        events += self._planted(day)
        return self._with_dirt([json.dumps(event) for event in events])

    def write(self, folder: Path) -> list[Path]:
        """One file of JSON lines a day; the files."""
        folder.mkdir(parents=True, exist_ok=True)
        files = []
        for day in range(self.size.days):
            file = folder / f"{self.start + dt.timedelta(days=day)}.jsonl"
            file.write_text("\n".join(self.day(day)) + "\n", encoding="utf-8")
            files.append(file)
        return files

    def _choose(self, users: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """An item for each user: popular candidates, then one of them by taste (the Gumbel trick)."""
        candidates = self._rng.choice(self.size.items, (users.size, _CANDIDATES), p=self.popularity)
        affinity = np.einsum("uk,uck->uc", self.user_tastes[users], self.item_tastes[candidates])
        chosen = np.argmax(2 * affinity + self._rng.gumbel(size=affinity.shape), axis=1)
        items: npt.NDArray[np.int64] = candidates[np.arange(users.size), chosen]
        return items

    def _planted(self, day: int) -> list[dict[str, Any]]:
        """The convert's steady taste, their change of mind on the last day, and the newcomer."""
        events = []
        if day < self.size.days - 1:
            if day % 3 == 0:
                item = self._of_genre("jazz", 1)[0]
                events.append(self._event(CONVERT, item, "purchase", day, 40_000))
        else:
            for place, item in enumerate(self._of_genre("metal", 3)):
                events.append(self._event(CONVERT, item, "purchase", day, 80_000 + place))
            for place, item in enumerate(self._of_genre("opera", 2)):
                events.append(self._event(NEWCOMER, item, "purchase", day, 81_000 + place))
        return events

    def _of_genre(self, genre: str, n: int) -> list[str]:
        mine = np.flatnonzero(np.char.startswith(self.item_ids, genre))
        # Not the most popular ones: everybody buys those, so they tell little of a taste.
        mine = mine[np.argsort(-self.popularity[mine])][4:40]
        return [str(i) for i in self.item_ids[self._rng.choice(mine, n, replace=False)]]

    def _event(self, user: str, item: str, event_type: str, day: int, second: int) -> dict[str, Any]:
        self._next_id += 1
        at = dt.datetime.combine(self.start, dt.time()) + dt.timedelta(days=day, seconds=int(second))
        return {
            "event_id": f"e{self._next_id:09d}",
            "user_id": user,
            "item_id": str(item),
            "event_type": event_type,
            "event_time": at.isoformat() + "Z",
        }

    def _with_dirt(self, lines: list[str]) -> list[str]:
        """Exact repeats, and one row in 200 that breaks the contract in one of six ways."""
        rng = self._rng
        spoilt = [
            lambda event: json.dumps(event)[:-7],
            lambda event: json.dumps(event | {"user_id": None}),
            lambda event: json.dumps(event | {"item_id": " "}),
            lambda event: json.dumps(event | {"event_type": "telepathy"}),
            lambda event: json.dumps(event | {"event_time": "the day before yesterday"}),
            lambda event: json.dumps(event | {"event_time": "2199-01-01T00:00:00Z"}),
        ]
        bad = []
        for k, at in enumerate(rng.integers(len(lines), size=max(6, len(lines) // 200))):
            event = json.loads(lines[at]) | {"event_id": f"bad{self._next_id + k:09d}"}
            bad.append(spoilt[k % len(spoilt)](event))
        repeats = [lines[at] for at in rng.integers(len(lines), size=len(lines) // 200)]
        mixed = lines + bad + repeats
        return [mixed[at] for at in rng.permutation(len(mixed))]
