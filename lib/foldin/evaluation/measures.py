"""From places on lists to what is reported: hit rate, NDCG and MRR with intervals, coverage, novelty, cost."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foldin.evaluation.intervals import Interval, Resamples
from foldin.evaluation.run import Evaluation

__all__ = ["Row", "gains_by_history", "hit", "ndcg", "quality_by_age", "reciprocal_rank", "summary"]

Floats = NDArray[np.float64]
Places = NDArray[np.int32]


def hit(places: Places) -> Floats:
    """1 where the item was on the list."""
    return (places > 0).astype(np.float64)


def ndcg(places: Places) -> Floats:
    """1 / log2(place + 1): of one item, the best possible gain is 1."""
    return np.where(places > 0, 1.0 / np.log2(np.maximum(places, 1) + 1), 0.0)


def reciprocal_rank(places: Places) -> Floats:
    """1 / place."""
    return np.where(places > 0, 1.0 / np.maximum(places, 1), 0.0)


@dataclass(frozen=True)
class Row:
    """One contender over some observations.

    Attributes:
        coverage: share of the log's items that anybody was shown.
        novelty: mean of -log2(share of users who had the item before the test), over what was shown, in bits.
        seconds: spent on learning from the events of the test, trainings included.
    """

    contender: str
    hit: Interval
    ndcg: Interval
    mrr: Interval
    coverage: float
    novelty: float
    seconds: float


def summary(found: Evaluation, where: NDArray[np.bool_] | None = None) -> list[Row]:
    """Every contender, over all observations or over some of them; coverage, novelty and cost are always of all."""
    resamples = Resamples(found.log.user[found.observations.row], seed=found.plan.seed)
    rows = []
    for name, places in found.observations.places.items():
        coverage, novelty = _shown(found, found.observations.shown[name])
        rows.append(
            Row(
                contender=name,
                hit=resamples.mean(hit(places), where),
                ndcg=resamples.mean(ndcg(places), where),
                mrr=resamples.mean(reciprocal_rank(places), where),
                coverage=coverage,
                novelty=novelty,
                seconds=found.observations.seconds[name] + _training(found, name),
            )
        )
    return rows


def quality_by_age(found: Evaluation, names: list[str], days: int) -> dict[str, list[Interval]]:
    """Hit rate by day since the model of the start was trained."""
    resamples = Resamples(found.log.user[found.observations.row], seed=found.plan.seed)
    day = found.age_days.astype(np.int64)
    return {
        name: [resamples.mean(hit(found.observations.places[name]), day == n) for n in range(days)] for name in names
    }


def gains_by_history(
    found: Evaluation, ours: str, theirs: str, bounds: tuple[int, ...] = (0, 1, 2, 5, 10, 20, 50, 100)
) -> list[tuple[str, int, Interval]]:
    """(events of the user before, observations, difference of hit rates)."""
    resamples = Resamples(found.log.user[found.observations.row], seed=found.plan.seed)
    a, b = (hit(found.observations.places[name]) for name in (ours, theirs))
    rows = []
    for low, high in zip(bounds, [*bounds[1:], np.inf], strict=True):
        where = (found.history >= low) & (found.history < high)
        label = f"{low}" if high == low + 1 else f"{low} to {int(high) - 1}" if np.isfinite(high) else f"{low} and more"
        rows.append((label, int(where.sum()), resamples.difference(a, b, where)))
    return rows


def _shown(found: Evaluation, shown: dict[int, int]) -> tuple[float, float]:
    log = found.log
    start = log.first_at(found.plan.start_us)
    items = np.unique(log.item)
    pairs = np.unique(np.stack([log.item[:start], log.user[:start]], axis=1), axis=0)
    had, users = np.unique(pairs[:, 0], return_counts=True)
    total = max(1, len(np.unique(log.user[:start])))
    keys, times = (np.array(list(part)) for part in (shown.keys(), shown.values()))
    if not len(keys):
        return 0.0, float("nan")
    at = np.minimum(np.searchsorted(had, keys), len(had) - 1)
    share = np.where(had[at] == keys, users[at], 0.5) / total  # nobody had it: half a user, not infinitely novel
    return len(keys) / len(items), float(np.average(-np.log2(share), weights=times))


def _training(found: Evaluation, name: str) -> float:
    return sum(model.seconds for model in found.trainings[1:]) if "retrained" in name else 0.0
