"""Why an item is recommended: its score as a sum over the user's own history."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from foldin.errors import InvalidInputError
from foldin.kernels.checks import check_histories
from foldin.kernels.dense import check_regular, normal_equations_in_blocks
from foldin.kernels.nonnegative import nonnegative_least_squares
from foldin.kernels.prepare import ItemFactors
from foldin.kernels.types import UNKNOWN, Histories

__all__ = ["Explanation", "explain"]


@dataclass(frozen=True, eq=False)
class Explanation:
    """The score of one item for one user, taken apart. Arrays have one entry a row of the history."""

    item: int
    """The item that is explained, a row of the item factors."""
    score: float
    """y·x of the item and the user's folded-in factors: the sum of the contributions."""
    indices: NDArray[np.int32]
    """(n,) the history's items; -1 for those that the model does not know."""
    contributions: NDArray[np.float64]
    """(n,) weight times similarity; 0 for unknown items and for strengths of 0 or less."""
    weights: NDArray[np.float64]
    """(n,) what the row counts: the confidence 1 + alpha·r if r > 0 else 0, or the rating."""
    similarities: NDArray[np.float64]
    """(n,) of the row's item to the explained one, as this user sees it: ŝ = yᵢᵀ A⁻¹ yⱼ."""
    item_ids: NDArray[np.str_] | None = None
    """(n_items,) what the items are called, where the model knows it."""

    def shares(self) -> NDArray[np.float64]:
        """(n,) contributions as shares of the sum of their magnitudes; all 0 if that is 0."""
        total = np.abs(self.contributions).sum()
        return self.contributions / total if total > 0 else np.zeros_like(self.contributions)

    def readable(self, name: Callable[[int], str] | None = None, *, limit: int = 3, verb: str = "bought") -> str:
        """A sentence: "because you bought X (41%), Y (22%) and 2 more (37%)".

        `name` turns an item index into text (default: the model's ids). Repeated rows of an item
        are one reason. What speaks against the item follows: "; despite Z (-8%)".
        """
        shares = self.shares()
        reasons: dict[int, float] = {}
        for index, share in zip(self.indices.tolist(), shares.tolist(), strict=True):
            if share:
                reasons[index] = reasons.get(index, 0.0) + share
        ranked = sorted(reasons.items(), key=lambda reason: (-abs(reason[1]), reason[0]))
        label = name or self._default_name
        parts = []
        for opening, chosen in (
            (f"because you {verb} ", [r for r in ranked if r[1] > 0]),
            ("despite ", [r for r in ranked if r[1] < 0]),
        ):
            shown = [f"{label(index)} ({share:.0%})" for index, share in chosen[:limit]]
            rest = chosen[limit:]
            if rest:
                more = f"{len(rest)} more ({sum(share for _, share in rest):.0%})"
                parts.append(f"{opening}{', '.join(shown)} and {more}")
            elif shown:
                parts.append(opening + ", ".join(shown))
        return "; ".join(parts) or "nothing in the history speaks for or against it"

    def _default_name(self, index: int) -> str:
        return f"item {index}" if self.item_ids is None else str(self.item_ids[index])


def explain(items: ItemFactors, indices: ArrayLike, strengths: ArrayLike, item: int) -> Explanation:
    """The contributions of a user's history, (n,) indices and strengths, to the score of `item`.

    Hu, Koren and Volinsky 2008, section 5: x = A⁻¹ Σⱼ cⱼ yⱼ, so yᵢ·x = Σⱼ cⱼ (yᵢᵀ A⁻¹ yⱼ). Rows
    with r <= 0 have cⱼ = 0: they act through A alone, by making the user's view of what is similar
    to them less certain. In nonnegative models A⁻¹ is that of the factors that are above 0, given
    which the solution is linear again. Raises InvalidInputError and SingularSystemError.
    """
    if not 0 <= item < items.n_items:
        raise InvalidInputError(f"item {item} is not one of the model's {items.n_items} items")
    row = np.asarray(indices, dtype=np.int32).reshape(-1)
    history = Histories(np.array([0, len(row)]), row, np.asarray(strengths, dtype=np.float32))
    check_histories(items, history, None)
    known = row != UNKNOWN
    r = history.strengths.astype(np.float64)
    if items.objective.implicit_prefs:
        weights = np.where(r > 0, 1.0 + items.objective.alpha * r, 0.0)
    else:
        weights = r
    weights = np.where(known, weights, 0.0)
    similarities = np.zeros(len(row))
    if weights.any():
        a, b = normal_equations_in_blocks(items, row[known], history.strengths[known])
        check_regular(a, "the user", items.objective.reg_param)
        free = np.ones(items.rank, dtype=np.bool_)
        if items.objective.nonnegative:
            free = nonnegative_least_squares(a[None], b[None])[0] > 0
        target = items.factors[item].astype(np.float64)
        seen_by_user = np.zeros(items.rank)
        seen_by_user[free] = np.linalg.solve(a[np.ix_(free, free)], target[free])
        similarities[known] = items.factors[row[known]].astype(np.float64) @ seen_by_user
    contributions = weights * similarities
    return Explanation(
        item,
        float(contributions.sum()),
        row,
        contributions,
        weights,
        similarities,
        items.item_ids,
    )
