"""What is to be replayed: the options, checked before anything is started."""

from __future__ import annotations

import datetime as dt
import math
from dataclasses import dataclass

from foldin.errors import ConfigError

__all__ = ["DAY_US", "MOST_TRAININGS", "Plan"]

DAY_US = 86_400_000_000

MOST_TRAININGS = 30
"""A log of years would be trained on for hours: unless it is asked for, a model is not trained more often."""


@dataclass(frozen=True)
class Plan:
    """How to replay a log.

    Attributes:
        start: moment (UTC) from which on events are foretold; None: the last fifth of them.
        days: how long; None: to the end of the log.
        k: length of the lists.
        batch_events: events of a micro-batch; 0: it is cut by time.
        batch_seconds: seconds of a micro-batch; 0: it is cut by number.
        repeats: items that a user had before may be listed, and count.
        retrain_days: days between two retrainings of the contenders with nightly retraining; 0: they do not take part;
            None: every night, or as rarely as it takes for `MOST_TRAININGS` of them.
        model_age_days: how old the start's model is at the start.
        oracle: micro-batches, evenly spread, at which a model is trained from scratch; 0: no oracle.
        tune_days: days before the start on which the window of recent popularity is tuned.
    """

    start: dt.datetime | None = None
    days: float | None = None
    k: int = 20
    batch_events: int = 20
    batch_seconds: float = 0.0
    repeats: bool = False
    retrain_days: float | None = None
    model_age_days: float = 0.0
    oracle: int = 0
    tune_days: float = 7.0

    def __post_init__(self) -> None:
        rules = (
            ("--days", self.days, self.days is None or 0 < self.days < math.inf, "must be above 0"),
            ("-k", self.k, 1 <= self.k <= 1000, "must lie between 1 and 1000"),
            ("--batch-events", self.batch_events, self.batch_events >= 0, "must be at least 1"),
            (
                "--batch-seconds",
                self.batch_seconds,
                0 <= self.batch_seconds <= 86_400,
                "must lie between 1 and 86400, a day",
            ),
            ("--batch-seconds", self.batch_seconds, not 0 < self.batch_seconds < 1, "must be at least 1"),
            (
                "--batch-events",
                self.batch_events,
                bool(self.batch_events) != bool(self.batch_seconds),
                "and --batch-seconds: one of them says how a micro-batch is cut, the other is 0",
            ),
            (
                "--retrain-days",
                self.retrain_days,
                self.retrain_days is None or self.retrain_days == 0 or 1 / 24 <= self.retrain_days < math.inf,
                "must be 0, for none, or at least an hour (0.0417)",
            ),
            ("--model-age", self.model_age_days, 0 <= self.model_age_days < math.inf, "must be at least 0 days"),
            ("--oracle", self.oracle, self.oracle >= 0, "must be at least 0"),
            ("--tune-days", self.tune_days, 0 < self.tune_days < math.inf, "must be above 0"),
        )
        for option, value, holds, rule in rules:
            if not holds:
                raise ConfigError(f"{option} {value}: {rule}")

    @property
    def start_us(self) -> int | None:
        """The start in microseconds since 1970 UTC."""
        if self.start is None:
            return None
        start = self.start if self.start.tzinfo else self.start.replace(tzinfo=dt.UTC)
        return round(start.timestamp()) * 1_000_000
