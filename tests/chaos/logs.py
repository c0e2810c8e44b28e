"""A generated log, file by file, that knows what must become of every line."""

from __future__ import annotations

import datetime as dt
import json
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

TYPES = ("view", "like", "cart", "purchase")
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_START = dt.datetime(2025, 6, 1, tzinfo=dt.UTC)


@dataclass
class Log:
    """Lines of JSON from a seed: events of two tastes, out of order, late by months, repeated, far ahead, or junk."""

    seed: int
    users: int = 300
    items: int = 60
    rows: int = 0
    """Lines handed out."""
    events: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    """What `events` must hold: {event_id: (event_id, user_id, item_id, event_type, value, microseconds)}."""
    junk: dict[str, str] = field(default_factory=dict)
    """What `quarantine` must hold: {line: reason}."""

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._lines: list[str] = []

    def file(self, lines: int) -> str:
        """The next file."""
        text = "".join(f"{self._line()}\n" for _ in range(lines))
        self.rows += lines
        return text

    def multiset(self) -> Counter[tuple[Any, ...]]:
        """`events`, as `equal.without_stamps` gives it."""
        return Counter(self.events.values())

    def reasons(self) -> Counter[tuple[str, str]]:
        """(raw, reason) of `quarantine`."""
        return Counter(self.junk.items())

    def _line(self) -> str:
        kind = self._random.random()
        if kind < 0.12 and self._lines:
            return self._random.choice(self._lines)  # a duplicate: of this file or of any before it, junk or not
        line = self._junk() if kind < 0.2 else self._event()
        self._lines.append(line)
        return line

    def _event(self) -> str:
        user = self._random.randrange(self.users)
        taste = (user % 2) * (self.items // 2)
        item = taste + min(int(self._random.expovariate(0.1)), self.items // 2 - 1)
        if self._random.random() < 0.1:
            item = self._random.randrange(self.items)
        # Whole hours, so that times tie; two years of them, so that most are late and none is in order.
        hours = self._random.randrange(24) if self._random.random() < 0.5 else self._random.randrange(24 * 700)
        at = _START - dt.timedelta(hours=hours)
        value = round(self._random.uniform(0.5, 3), 2) if self._random.random() < 0.3 else None
        kind = self._random.choice(TYPES)
        event_id = f"e{len(self.events)}"
        row = {"event_id": event_id, "user_id": f"u{user}", "item_id": f"i{item}", "event_type": kind}
        micros = (at - _EPOCH) // dt.timedelta(microseconds=1)
        self.events[event_id] = (event_id, f"u{user}", f"i{item}", kind, value, micros)
        return json.dumps(row | {"value": value, "event_time": at.isoformat()})

    def _junk(self) -> str:
        n = len(self.junk)
        row = {"event_id": f"j{n}", "user_id": "u1", "item_id": "i1", "event_type": "view", "event_time": "2025-01-01"}
        reason, line = self._random.choice(
            [
                ("broken json", f'{{"event_id": "j{n}", '),
                ("missing user_id", json.dumps(row | {"user_id": None})),
                ("unknown event_type", json.dumps(row | {"event_type": "stare"})),
                ("unparsable event_time", json.dumps(row | {"event_time": "yesterday"})),
                ("future event_time", json.dumps(row | {"event_time": f"2999-01-01 00:00:{n % 60:02d}"})),
                ("invalid value", json.dumps(row | {"value": "many"})),
            ]
        )
        self.junk[line] = reason
        return line
