"""The additive online update of Oryx 2, as a contender: here alone, never in the product.

An event moves the user's vector by (YᵀY)⁻¹ (q' − q) y, where q = x·y is the preference so far and q' the target that
the event's strength pulls it to (Oryx 2, ALSUtils.computeTargetQui and computeUpdatedXu). It knows neither lambda nor
alpha, and the sum of such steps is not the least-squares solution of the history.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from foldin.kernels import ItemFactors

__all__ = ["AdditiveUpdate", "target"]


def target(strength: float, current: float, *, implicit: bool) -> float:
    """The preference that an event pulls to; NaN where it changes nothing."""
    if not implicit:
        return strength
    if strength > 0 and current < 1:
        return current + strength / (1 + strength) * (1 - max(0.0, current))
    if strength < 0 and current > 0:
        return current + strength / (strength - 1) * -min(1.0, current)
    return float("nan")


class AdditiveUpdate:
    """User vectors, updated event by event."""

    def __init__(self, items: ItemFactors) -> None:
        self._items = items
        # A singular YᵀY has no inverse: the least-norm step is taken, as Oryx refuses such models.
        self._inverse = np.linalg.pinv(items.gramian, hermitian=True)

    def step(self, x: NDArray[np.float64], item: int, strength: float) -> NDArray[np.float64]:
        """The vector (rank,) after an event on an item that the model knows."""
        y = self._items.factors[item].astype(np.float64)
        current = float(x @ y)
        wanted = target(strength, current, implicit=self._items.objective.implicit_prefs)
        return x if np.isnan(wanted) else x + self._inverse @ (y * (wanted - current))
