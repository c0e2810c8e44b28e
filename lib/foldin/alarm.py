"""The alarm of `[alarm]`: a line when a value passes its limit, a line when it is back, and maybe the job's end."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from foldin.config import AlarmConfig
from foldin.errors import AlarmError
from foldin.streaming import GracefulStop

__all__ = ["Alarm"]

log = logging.getLogger("foldin.alarm")


@dataclass
class Alarm:
    """Lag and freshness of one running query against their limits."""

    config: AlarmConfig
    query: str
    stop: GracefulStop
    broken: dict[str, float] = field(default_factory=dict)
    """The limits that are broken now, with the values that broke them."""
    _fatal: str | None = None

    def lag(self, seconds: float | None, about: str = "") -> None:
        """How far the stream is behind its source; None says nothing."""
        self._judge("lag_seconds", seconds, self.config.lag_seconds, about)

    def freshness(self, seconds: float | None) -> None:
        """The p95 of a batch; None says nothing."""
        self._judge("freshness_seconds", seconds, self.config.freshness_seconds, "")

    def check(self) -> None:
        """Raise what ended the query.

        Raises:
            AlarmError: a limit was broken, and the action is `exit`.
        """
        if self._fatal is not None:
            raise AlarmError(self._fatal)

    def _judge(self, name: str, value: float | None, limit: float, about: str) -> None:
        if value is None:
            return
        if value <= limit:
            if self.broken.pop(name, None) is not None:
                log.warning("%s: alarm over: %s = %.1f, the limit is %g", self.query, name, value, limit)
            return
        entered = name not in self.broken
        self.broken[name] = value
        if not entered:
            return
        text = f"{name} = {value:.1f}, alarm.{name} allows {limit:g}{about and f' ({about})'}"
        log.error("%s: ALARM: %s", self.query, text)
        if self.config.action == "exit" and self._fatal is None:
            self._fatal = f"{self.query}: {text}"
            self.stop.ask()
