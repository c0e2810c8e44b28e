"""One user to look at: what the stale model listed, what foldin listed, and why foldin's list has what was taken."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np

from foldin.evaluation.results import Replayed

__all__ = ["PRINTED", "Example", "choose", "safe"]

PRINTED = 12
"""Events of a history that can be printed; a user with so few is preferred."""
_LEAST = 3  # with fewer there is little to explain a list by


@dataclass(frozen=True)
class Example:
    """A user at the moment of an event, filled by who has the model at hand.

    Attributes:
        user_id: who.
        event_time: when the item was taken.
        taken: the item.
        stale: list of the stale model, best first.
        foldin: foldin's list, best first.
        why: what in the history speaks for the item, in a sentence or two; "" if that was not worked out.
        recent: the user's latest events before the micro-batch, oldest first: event_time, item.
        trained: latest event that the start's model has seen; what is later only foldin knows. None: not told.
        names: what items are called, where they have names.
    """

    user_id: str
    event_time: datetime
    taken: str
    stale: tuple[str, ...]
    foldin: tuple[str, ...]
    why: str
    recent: tuple[tuple[datetime, str], ...]
    trained: datetime | None = None
    names: Mapping[str, str] = field(default_factory=dict)

    def markdown(self) -> str:
        """A paragraph and two tables."""
        name = self._name(self.taken)
        says = f"User {safe(self.user_id)} took **{name}** on {_moment(self.event_time)} UTC. "
        says += "; ".join(
            f"{who} had it in place {items.index(self.taken) + 1}" if self.taken in items else f"{who} did not list it"
            for who, items in (("foldin", self.foldin), ("the stale model", self.stale))
        ).capitalize()
        lines = [f"{says}.", ""]
        if self.recent:
            lines += ["What the user had taken before (latest last):", "", "| when (UTC) | item | who knows of it |"]
            lines += ["|---|---|---|"]
            lines += [f"| {_moment(when)} | {self._name(item)} | {self._who(when)} |" for when, item in self.recent]
            lines += [""]
        lines += ["The lists at that moment (what was taken is bold):", "", "| place | stale model | foldin |"]
        lines += ["|--:|---|---|"]
        for place in range(max(len(self.stale), len(self.foldin))):
            cells = [self._cell(items, place) for items in (self.stale, self.foldin)]
            lines.append(f"| {place + 1} | {cells[0]} | {cells[1]} |")
        lines += ["", f"**Why.** {safe(self.why)}"] if self.why else []
        return "\n".join(lines)

    def _cell(self, items: Sequence[str], place: int) -> str:
        if place >= len(items):
            return "–"
        name = self._name(items[place])
        return f"**{name}**" if items[place] == self.taken else name

    def _name(self, item: str) -> str:
        return f"{safe(self.names[item])} ({safe(item)})" if item in self.names else safe(item)

    def _who(self, when: datetime) -> str:
        if self.trained is None:
            return "not told"
        return "both" if when <= self.trained else "foldin only"


def choose(replayed: Replayed) -> int | None:
    """The row of an event that foldin lists and the stale model does not; None where there is none.

    Rather one that is not the next line of an order that is already begun, of a user whom the stale model knows, with a
    history that can be printed; of these the one that foldin lists first, and of equals the earliest.
    """
    foldin, stale = replayed.ranks("foldin"), replayed.ranks("stale")
    rows = np.flatnonzero((foldin > 0) & (stale == 0))
    if not rows.size:
        return None
    history = replayed.numbers("history").astype(np.int64)[rows]
    order = np.lexsort(
        (
            rows,
            foldin[rows],
            replayed.numbers("kind")[rows] != "known",
            np.maximum(0, history - PRINTED) + np.maximum(0, _LEAST - history),
            replayed.numbers("same_moment").astype(bool)[rows],
        )
    )
    return int(rows[order[0]])


def _moment(when: datetime) -> str:
    return f"{when.astimezone(UTC) if when.tzinfo else when:%Y-%m-%d %H:%M}"


def safe(text: str) -> str:
    """Text of the log in a cell of Markdown: no markup of its own, one line."""
    text = html.escape(" ".join(str(text).split()), quote=False)
    for mark in "\\`*_[]|":
        text = text.replace(mark, f"\\{mark}")
    return text
