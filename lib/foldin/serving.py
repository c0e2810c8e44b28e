"""The read side without Spark and Java: what an online service asks of the tables, by deltalake and Arrow.

Nothing here imports pyspark. Two tables make one answer, so the order of the reads matters: first which model is
active, then the rows of that model, which were all committed before it became active. Should it be retired between the
two reads (another one has become active by then), they are made again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from foldin.answers import UserRecommendations
from foldin.errors import MissingModelError, PrerequisiteError

if TYPE_CHECKING:
    from deltalake import DeltaTable

__all__ = [
    "ActiveModel",
    "UserRecommendations",
    "active_model",
    "latest_recommendations",
    "latest_user_factors",
    "popular_items",
    "recommendations_for",
]

Options = Mapping[str, str] | None
"""What deltalake needs to reach an object store: `storage_options`."""

# Two rows of one user at one position include the same events: of them, the one made last.
_NEWEST_FIRST = [(name, "descending") for name in ("events_version", "events_index", "folded_at")]


@dataclass(frozen=True)
class ActiveModel:
    """The version that readers see, and the number of the change in `models` that brought it into force."""

    model_version: str
    sequence: int


def active_model(root: str, storage_options: Options = None) -> ActiveModel:
    """The model in force.

    Raises:
        MissingModelError: no model was ever activated, or there are no tables under `root`.
        PrerequisiteError: deltalake is not installed.
    """
    models = _open(root, "models", storage_options).to_pyarrow_table(
        columns=["model_version", "sequence"], filters=[("status", "=", "active")]
    )
    if not models.num_rows:
        raise MissingModelError("no model is active; run the train job first")
    newest = max(models.to_pylist(), key=lambda row: row["sequence"])
    return ActiveModel(newest["model_version"], newest["sequence"])


def latest_recommendations(root: str, storage_options: Options = None) -> pa.Table:
    """One row a user, with the columns of `recommendations`: the newest list under the active model.

    Raises:
        MissingModelError: no model is active.
    """
    return _latest(_of_active_model(root, "recommendations", storage_options)[1])


def latest_user_factors(root: str, storage_options: Options = None) -> pa.Table:
    """One row a user, with the columns of `user_factors`: the newest factors under the active model.

    Raises:
        MissingModelError: no model is active.
    """
    return _latest(_of_active_model(root, "user_factors", storage_options)[1])


def recommendations_for(
    root: str, user_id: str, n: int = 10, storage_options: Options = None
) -> UserRecommendations | None:
    """The newest list of one user, at most `n` long; None for who has none (see `popular_items`).

    It opens every file of the active model: for a look, or a service with few users. With many, push the lists to a
    key-value store instead (`foldin.pushing`).

    Raises:
        MissingModelError: no model is active.
    """
    active, rows = _of_active_model(root, "recommendations", storage_options, pc.field("user_id") == user_id)
    if not rows.num_rows:
        return None
    row = _latest(rows).to_pylist()[0]
    items = tuple((item["item_id"], item["score"]) for item in row["items"][:n])
    return UserRecommendations(user_id, active.model_version, items, row["source"])


def popular_items(root: str, n: int, storage_options: Options = None) -> list[tuple[str, int]]:
    """(item_id, users) of the `n` items with the most users in the active model's training; equal ones in order of id.

    Raises:
        MissingModelError: no model is active.
    """
    _, items = _of_active_model(root, "item_factors", storage_options, columns=["item_id", "users"])
    ranked = items.sort_by([("users", "descending"), ("item_id", "ascending")]).slice(0, n).to_pylist()
    return [(row["item_id"], row["users"]) for row in ranked]


def _of_active_model(
    root: str, name: str, options: Options, rows: pc.Expression | None = None, columns: list[str] | None = None
) -> tuple[ActiveModel, pa.Table]:
    """The active model, and those of its rows in a table that `rows` names (default: all); no other file is opened."""
    active = active_model(root, options)
    while True:
        of_model = pc.field("model_version") == active.model_version
        dataset = _open(root, name, options).to_pyarrow_dataset()
        if next(dataset.get_fragments(of_model), None) is None and (now := active_model(root, options)) != active:
            active = now  # the one before was retired meanwhile
            continue
        return active, dataset.to_table(filter=of_model if rows is None else of_model & rows, columns=columns)


def _latest(rows: pa.Table) -> pa.Table:
    """Of each user's rows, the one that includes most of `events`."""
    keys = rows.select([name for name, _ in _NEWEST_FIRST])
    order = pc.sort_indices(keys, sort_keys=_NEWEST_FIRST)
    places = pa.table({"user_id": rows.column("user_id").take(order), "place": pa.array(range(rows.num_rows))})
    first = places.group_by("user_id").aggregate([("place", "min")]).column("place_min")
    return rows.take(order.take(first))


def _open(root: str, name: str, options: Options) -> DeltaTable:
    """A table as it is now. It is opened anew: a handle that is updated might miss that the log was trimmed."""
    try:
        import deltalake
        import deltalake.exceptions
    except ImportError as error:
        raise PrerequisiteError("reading without Spark needs deltalake: pip install 'deltalake>=1'") from error
    try:
        return deltalake.DeltaTable(f"{root.rstrip('/')}/{name}", storage_options=dict(options) if options else None)
    except deltalake.exceptions.TableNotFoundError as error:
        raise MissingModelError(f"there is no table {name} under {root}") from error
