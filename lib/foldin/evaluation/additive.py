"""The online update of Oryx 2, as a contender only: what fold-in is compared with, nothing that foldin serves.

Oryx 2, `ALSUtils.computeTargetQui` and `computeUpdatedXu` (app/oryx-app-common): an event of strength v moves the
estimate of (user, item) towards 1 by the share v / (1 + v) of what is missing, and the user's vector by the least
change that has this effect on average over all items, solve(YᵀY, y · ΔQ); the item's vector likewise over all users.
Neither knows lambda or alpha, nor the history: what was added stays. Events are applied here one after the other; in
Oryx a user's second event of a batch overwrites the first.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["AdditiveModel", "target"]

Floats = npt.NDArray[np.float64]


def target(value: float, current: float) -> float:
    """What the estimate should become; NaN where the event changes nothing.

    Args:
        value: strength of the event; below 0 it speaks against the item.
        current: the estimate now.
    """
    if value > 0 and current < 1:
        return current + (value / (1 + value)) * (1 - max(0.0, current))
    if value < 0 and current > 0:
        return current + (value / (value - 1)) * -min(1.0, current)
    return float("nan")


def _inverse(gramian: Floats) -> Floats:
    # Oryx refuses to solve a singular system; the pseudo-inverse is the least change there too.
    return np.asarray(np.linalg.pinv(gramian, hermitian=True), dtype=np.float64)


class AdditiveModel:
    """Factors of users and items that every event moves.

    Args:
        users: (n_users, rank), rows of zeros for those who have no factors yet.
        items: (n_items, rank), likewise.
    """

    def __init__(self, users: npt.NDArray[np.floating], items: npt.NDArray[np.floating]) -> None:
        self.users: Floats = users.astype(np.float64)
        self.items: Floats = items.astype(np.float64)
        self.has_user: npt.NDArray[np.bool_] = (self.users != 0).any(axis=1)
        self.has_item: npt.NDArray[np.bool_] = (self.items != 0).any(axis=1)
        self._users_gramian: Floats = self.users.T @ self.users
        self._items_gramian: Floats = self.items.T @ self.items
        self.refresh()

    def refresh(self) -> None:
        """Solve with the factors as they are now, as Oryx does from one batch to the next."""
        self._users_solver, self._items_solver = _inverse(self._users_gramian), _inverse(self._items_gramian)

    def add(self, user: int, item: int, value: float) -> None:
        """One event (or the sum of a batch's events of a user with an item)."""
        x, y = self.users[user].copy(), self.items[item].copy()
        known_user, known_item = self.has_user[user], self.has_item[item]
        if known_item and (moved := self._moved(x, y, known_user, value, self._items_solver)) is not None:
            self.users[user], self.has_user[user] = moved, True
            self._users_gramian += np.outer(moved, moved) - np.outer(x, x)
        if known_user and (moved := self._moved(y, x, known_item, value, self._users_solver)) is not None:
            self.items[item], self.has_item[item] = moved, True
            self._items_gramian += np.outer(moved, moved) - np.outer(y, y)

    @staticmethod
    def _moved(mine: Floats, other: Floats, known: np.bool_, value: float, solver: Floats) -> Floats | None:
        current = float(mine @ other) if known else 0.0
        wanted = target(value, current if known else 0.5)  # 0.5: don't know
        if np.isnan(wanted):
            return None
        moved: Floats = mine + solver @ (other * (wanted - current))
        return moved
