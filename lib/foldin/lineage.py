"""The versions of the model: where each stands, how good it is, who replaced whom and why."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from foldin.schemas import MODELS
from foldin.tables import Tables

__all__ = ["Change", "Version", "lineage", "render_lineage"]


@dataclass(frozen=True)
class Change:
    """A row of `models` after the first: what became of a version.

    Attributes:
        sequence: its number; changes of all versions are in one order.
        replaced: for one that became active, the version that was in force before.
    """

    sequence: int
    status: str
    at: dt.datetime
    by: str
    reason: str
    replaced: str | None


@dataclass(frozen=True)
class Version:
    """A version of the model.

    Attributes:
        status: active (in force), replaced (it was), candidate, requested, refused, retired.
        judgement: how its settings did on held-out events, as training wrote it down; None if they were not judged.
    """

    model_version: str
    status: str
    trained: dt.datetime
    events: int
    users: int
    items: int
    rank: int
    parity: float | None
    judgement: dict[str, Any] | None
    changes: tuple[Change, ...]


def lineage(tables: Tables) -> list[Version]:
    """Every version, the newest first."""
    rows = tables.read(MODELS).orderBy("sequence", "at").collect()  # candidates, which have no number, come first
    changes: dict[str, list[Change]] = {}
    in_force: str | None = None
    for row in rows:
        if row["sequence"] is None:
            continue
        active = row["status"] == "active"
        changes.setdefault(row["model_version"], []).append(
            Change(
                row["sequence"],
                row["status"],
                row["at"],
                row["by"],
                row["reason"].rpartition(" [")[0],  # without the token by which its writer knows it again
                in_force if active else None,
            )
        )
        in_force = row["model_version"] if active else in_force
    found = []
    for row in rows:
        if row["rank"] is None:
            continue
        mine = tuple(changes.get(row["model_version"], ()))
        status = mine[-1].status if mine else "candidate"
        if any(change.status == "active" for change in mine) and status != "retired":
            status = "active" if row["model_version"] == in_force else "replaced"
        found.append(
            Version(
                row["model_version"], status, row["at"], row["events"], row["users"], row["items"], row["rank"],
                row["parity"], json.loads(row["judgement"]) if row["judgement"] else None, mine,
            )
        )  # fmt: skip
    return sorted(found, key=lambda version: version.trained, reverse=True)


def render_lineage(versions: Sequence[Version], now: dt.datetime) -> str:
    """What `python -m foldin models` prints."""
    lines = [f"{'version':<24} {'status':<10} {'age':>7} {'events':>13} {'rank':>5}   NDCG: its own / active / popular"]
    for version in versions:
        age = f"{(now - version.trained.astimezone(dt.UTC)).total_seconds() / 3600:.1f} h"
        lines.append(
            f"{version.model_version:<24} {version.status:<10} {age:>7} {version.events:>13,} {version.rank:>5}   "
            + _scores(version)
        )
        for change in version.changes:
            instead = f" instead of {change.replaced}" if change.replaced else ""
            lines.append(f"    {change.at:%Y-%m-%d %H:%M:%S} {change.status}{instead} by {change.by}: {change.reason}")
    return "\n".join(lines) if versions else "no models yet: run the train job"


def _scores(version: Version) -> str:
    if version.judgement is None:
        return "not judged"
    scores = version.judgement["scores"]
    found = [scores.get(name, {}).get("ndcg") for name in ("candidate", "active", "popularity")]
    shown = ["-" if ndcg is None else f"{ndcg:.4f}" for ndcg in found]
    return f"@{version.judgement['k']} {' / '.join(shown)}"
