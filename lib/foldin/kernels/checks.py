"""Refuse what has no defined answer, naming the value and the place."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from foldin.errors import InvalidInputError
from foldin.kernels.prepare import ItemFactors
from foldin.kernels.types import UNKNOWN, Histories, name_user

__all__ = ["check_histories"]


def check_histories(items: ItemFactors, histories: Histories, user_ids: Sequence[str] | None) -> None:
    """Raise InvalidInputError for the first row that does not fit the model or is not a number."""
    if user_ids is not None and len(user_ids) != histories.n_users:
        raise InvalidInputError(f"{len(user_ids)} user_ids for {histories.n_users} users")
    for rows, what in (
        (~np.isfinite(histories.strengths), "strengths[{row}] is {strength}: must be finite"),
        (
            (histories.indices < UNKNOWN) | (histories.indices >= items.n_items),
            "indices[{row}] is {index}: must be -1 or below the {n_items} items of the model",
        ),
    ):
        if rows.any():
            row = int(np.argmax(rows))
            user = int(np.searchsorted(histories.indptr, row, side="right")) - 1
            text = what.format(
                row=row,
                strength=histories.strengths[row],
                index=histories.indices[row],
                n_items=items.n_items,
            )
            raise InvalidInputError(f"{name_user(user, user_ids)}: {text}")
