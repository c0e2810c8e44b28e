"""Intervals by bootstrap over users: events of one user are not independent, so users are what is drawn again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Interval", "Resamples"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval (percentiles of the resamples)."""

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether a difference is there beyond chance."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        return f"{self.mean:.4f} [{self.low:.4f}, {self.high:.4f}]"


class Resamples:
    """Draws of users with replacement; the same for whatever is asked, so that differences are paired."""

    def __init__(self, user: NDArray[np.int64], *, draws: int = 1000, seed: int = 0) -> None:
        """`user`: (n,) whose each observation is."""
        _, self._user = np.unique(user, return_inverse=True)
        self._users = int(self._user.max(initial=-1)) + 1
        self._draws, self._seed = draws, seed

    def mean(self, values: Floats, where: NDArray[np.bool_] | None = None) -> Interval:
        """Of (n,) observations, those `where` counting."""
        chosen = np.ones(len(values), bool) if where is None else where
        sums = np.bincount(self._user[chosen], values[chosen], minlength=self._users)
        counts = np.bincount(self._user[chosen], minlength=self._users).astype(np.float64)
        return self._interval(sums.astype(np.float64), counts)

    def difference(self, a: Floats, b: Floats, where: NDArray[np.bool_] | None = None) -> Interval:
        """Of the means of two measures of the same observations, a - b."""
        return self.mean(a - b, where)

    def share_of_gap(self, low: Floats, middle: Floats, high: Floats) -> Interval:
        """(mean of middle - mean of low) / (mean of high - mean of low)."""
        gained = np.bincount(self._user, middle - low, minlength=self._users)
        gap = np.bincount(self._user, high - low, minlength=self._users)
        return self._interval(gained.astype(np.float64), gap.astype(np.float64))

    def _interval(self, sums: Floats, counts: Floats) -> Interval:
        if not counts.any():
            return Interval(float("nan"), float("nan"), float("nan"))
        rng, drawn = np.random.default_rng(self._seed), np.empty(self._draws)
        for n in range(self._draws):
            weights = np.bincount(rng.integers(0, self._users, self._users), minlength=self._users)
            below = weights @ counts
            drawn[n] = weights @ sums / below if below else np.nan
        low, high = np.nanpercentile(drawn, [2.5, 97.5])
        return Interval(float(sums.sum() / counts.sum()), float(low), float(high))
