"""How sure a mean over events is: a paired bootstrap over users.

A user's events hang together (who buys one candle buys more), so users are resampled, each with all of their events
(a cluster bootstrap; Field and Welsh 2007). The same resamples serve every contender: of two that are judged on the
same events only the difference varies, and its interval is as narrow as the pairing allows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from foldin.errors import InvalidInputError

__all__ = ["LEAST_USERS", "LEVEL", "RESAMPLES", "Bootstrap", "Interval"]

RESAMPLES = 2_000
SEED = 20_111_209  # any number: a report of the same rows is the same report
LEVEL = 0.95
LEAST_USERS = 10
"""With fewer users there is nothing to resample: no interval is given."""

_HELD = 512 * 2**20  # bytes of weights that are kept; more are drawn again each time
_BLOCK = 2**22  # weights that are made float64 at once

Floats = npt.NDArray[np.float64]
Where = npt.NDArray[np.bool_] | None


@dataclass(frozen=True)
class Interval:
    """A figure and the bounds of its 95% interval; NaN where there is no figure, or too few users for bounds."""

    value: float
    low: float
    high: float

    @property
    def known(self) -> bool:
        """There are bounds."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    @property
    def excludes_zero(self) -> bool:
        """The figure can be told from zero; never where there are no bounds."""
        return self.known and (self.low > 0 or self.high < 0)

    def shifted(self, by: float) -> Interval:
        """The same interval around another origin."""
        return Interval(self.value + by, self.low + by, self.high + by)

    @property
    def percent(self) -> str:
        """As a share: 12.3% (11.8 to 12.9)."""
        return self._text(1, "%", "")

    @property
    def points(self) -> str:
        """As a difference of shares: +1.23 points (+0.98 to +1.48)."""
        return self._text(2, " points", "+")

    def _text(self, digits: int, unit: str, sign: str) -> str:
        if not math.isfinite(self.value):
            return "–"
        value, low, high = (format(100 * number, f"{sign}.{digits}f") for number in (self.value, self.low, self.high))
        return f"{value}{unit} ({low} to {high})" if self.known else f"{value}{unit} (too few users for an interval)"


@dataclass(frozen=True, eq=False)
class Bootstrap:
    """Resamples of the users of some rows.

    Attributes:
        users: (n_rows,) the user of each row, numbered from 0 without gaps.
        seed: of the resamples.
        resamples: how many.
    """

    users: npt.NDArray[np.int64]
    seed: int = SEED
    resamples: int = RESAMPLES
    _held: list[npt.NDArray[np.uint8]] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.users.ndim != 1 or (self.users.size and self.users.min() < 0):
            raise InvalidInputError(f"users must be 1D and not negative (found shape {self.users.shape})")

    @property
    def n_users(self) -> int:
        """How many users are resampled."""
        return int(self.users.max(initial=-1)) + 1

    def mean(self, values: npt.ArrayLike, where: Where = None) -> Interval:
        """Of (n_rows,) values, over the rows of `where`."""
        return self.means(np.asarray(values, dtype=np.float64)[:, None], where)[0]

    def difference(self, a: npt.ArrayLike, b: npt.ArrayLike, where: Where = None) -> Interval:
        """Mean of a - b, row by row."""
        return self.mean(np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64), where)

    def means(self, columns: Floats, where: Where = None) -> list[Interval]:
        """Of each column of (n_rows, n_columns) values, over the rows of `where`: one pass over the resamples."""
        sums, enough = self._sums(columns, where)
        return self._intervals(sums[:, :-1], sums[:, -1:], enough)

    def ratio_of_differences(
        self, a: npt.ArrayLike, b: npt.ArrayLike, c: npt.ArrayLike, d: npt.ArrayLike, where: Where = None
    ) -> Interval:
        """(mean a - mean b) / (mean c - mean d), as the share of a gap that is closed.

        Means something only where the interval of c - d excludes zero, else a resample's gap may be near zero and of
        either sign; that is the caller's to see to.
        """
        a, b, c, d = (np.asarray(values, dtype=np.float64) for values in (a, b, c, d))
        sums, enough = self._sums(np.column_stack([a - b, c - d]), where)
        return self._intervals(sums[:, :1], sums[:, 1:2], enough)[0]

    def _sums(self, columns: Floats, where: Where) -> tuple[Floats, bool]:
        """(1 + resamples, n_columns + 1) sums over rows, the last of ones: first of all users, then of each resample.

        Are there enough users, is the second value.
        """
        rows = np.flatnonzero(where) if where is not None else np.arange(len(self.users))
        users, columns = self.users[rows], columns[rows]
        counts = np.bincount(users, minlength=self.n_users).astype(np.float64)
        of_user = [np.bincount(users, weights=column, minlength=self.n_users) for column in columns.T]
        by_user = np.column_stack([*of_user, counts])
        total = by_user.sum(axis=0, keepdims=True)
        if np.count_nonzero(counts) < LEAST_USERS:
            return total, False
        return np.concatenate([total, *(weights @ by_user for weights in self._weights())]), True

    @staticmethod
    def _intervals(above: Floats, below: Floats, enough: bool) -> list[Interval]:
        """Ratios of sums: the first row is the figure, the others give its percentiles."""
        with np.errstate(invalid="ignore", divide="ignore"):
            ratios = above / below
        found = []
        for column in ratios.T:
            value = float(column[0])
            # A resample may have none of the few users who have such rows: it says nothing.
            drawn = column[1:][np.isfinite(column[1:])]
            if not enough or not math.isfinite(value) or not drawn.size:
                found.append(Interval(value if math.isfinite(value) else math.nan, math.nan, math.nan))
                continue
            low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
            found.append(Interval(value, float(low), float(high)))
        return found

    def _weights(self) -> Iterator[Floats]:
        """How often each user is in each resample, in blocks of (some, n_users): multinomial, n_users draws each."""
        users = self.n_users
        block = max(1, _BLOCK // max(users, 1))
        if self._held:
            yield from (weights.astype(np.float64) for weights in self._held)
            return
        keep = users * self.resamples <= _HELD
        random = np.random.default_rng(self.seed)
        drawn = []
        for start in range(0, self.resamples, block):
            some = min(block, self.resamples - start)
            # Drawing n_users users one by one is the multinomial, and faster than asking for it.
            flat = random.integers(0, users, (some, users)) + np.arange(some)[:, None] * users
            weights = np.bincount(flat.ravel(), minlength=some * users).reshape(some, users)
            if keep:
                drawn.append(weights.astype(np.uint8))  # more than 255 times the same user: never
            yield weights.astype(np.float64)
        self._held.extend(drawn)
