"""What the data says about each aim of foldin, and why."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from foldin.evaluation.intervals import LEAST_USERS
from foldin.evaluation.measures import FOLDIN, ORACLE, STALE, Measures, Rows, Slice
from foldin.evaluation.results import KINDS

__all__ = ["AIM_CLOSED", "AIM_COST", "FAILS", "HOLDS", "UNKNOWN", "Verdict", "verdicts"]

HOLDS, FAILS, UNKNOWN = "holds", "does not hold", "cannot be said"
AIM_CLOSED, AIM_COST = 0.9, 0.01


@dataclass(frozen=True)
class Verdict:
    """What the data says about one aim.

    Attributes:
        aim: in words.
        outcome: of `HOLDS`, `FAILS` and `UNKNOWN`.
        figures: with intervals; "" where there are none.
        why: where the difference comes from, or why nothing can be said.
    """

    aim: str
    outcome: str
    figures: str
    why: str


def verdicts(measures: Measures) -> tuple[Verdict, ...]:
    """Every aim of foldin, in the order in which they are shown; all on hit rates."""
    known = measures.kinds[KINDS.index("known")]
    return (
        _beats(measures, "foldin beats the stale model", STALE, measures.every),
        _beats(measures, f"foldin beats retraining {measures.setting.retrained}", "nightly", measures.every),
        _beats(measures, "foldin beats the additive update", "additive", measures.every),
        _beats(measures, "foldin beats recent popularity, for known users", "recent", known),
        _closes(measures),
        _cheap(measures),
    )


def _beats(measures: Measures, aim: str, other: str, events: Slice) -> Verdict:
    """The whole interval of the gain must be above zero."""
    if other not in events.gains:
        return Verdict(aim, UNKNOWN, "", f"{other} was not replayed" + " at every event" * (other in measures.ranked))
    gain = events.gain(other)
    if not gain.known:
        why = f"{events.users} users took something: an interval needs {LEAST_USERS}"
        return Verdict(aim, UNKNOWN, gain.points if events.events else "", why)
    within = None if events is measures.every else measures.replayed.numbers("kind") == events.label
    why = _where_from(measures, FOLDIN, other, within)
    if not gain.excludes_zero:
        return Verdict(
            aim, FAILS, gain.points, f"these events cannot tell the two apart: zero is in the interval; {why}"
        )
    if gain.value < 0:
        return Verdict(aim, FAILS, gain.points, f"{other} is better; {why}")
    return Verdict(aim, HOLDS, gain.points, why)


def _closes(measures: Measures) -> Verdict:
    """At least `AIM_CLOSED` of a gap that is there."""
    aim = f"foldin closes at least {AIM_CLOSED:.0%} of the gap between the stale model and the oracle"
    if measures.oracle is None:
        return Verdict(aim, UNKNOWN, "", "the oracle was not replayed")
    gap = f"the gap is {measures.gap.points}"
    if measures.closed is None:
        why = "zero is in its interval" if measures.gap.known else "too few users"
        why = "the oracle is worse than the stale model" if measures.gap.excludes_zero else why
        return Verdict(aim, UNKNOWN, gap, f"there is no gap to be closed: {why}")
    closed = measures.closed
    why = f"what is left: {_where_from(measures, ORACLE, FOLDIN, measures.oracle_rows)}"
    if closed.low < AIM_CLOSED <= closed.high:
        why = f"{AIM_CLOSED:.0%} lies within the interval; {why}"
        return Verdict(aim, UNKNOWN, f"{closed.percent} closed; {gap}", why)
    return Verdict(aim, HOLDS if closed.low >= AIM_CLOSED else FAILS, f"{closed.percent} closed; {gap}", why)


def _cheap(measures: Measures) -> Verdict:
    """Folding as a Spark job, where it was timed, against a training; a stream adds state and commits to it."""
    costs, aim = measures.costs, f"foldin costs under {AIM_COST:.0%} of retraining at every micro-batch"
    kernel, spark = costs.kernel_share, costs.spark_share
    figures = [
        f"{share:.2%} {what}"
        for share, what in ((kernel, "numerical work"), (spark, "as a Spark job"))
        if math.isfinite(share)
    ]
    if not figures:
        return Verdict(aim, UNKNOWN, "", "not timed: it needs a training and a micro-batch")
    judged = spark if math.isfinite(spark) else kernel
    why = f"a training takes {costs.train:.3g} s, for {costs.batch_events:,.0f} events a micro-batch"
    if kernel < AIM_COST <= spark:
        why += "; the numerical work alone would hold, the rest is what Spark adds"
    elif not math.isfinite(spark):
        why += "; as a Spark job it was not timed"
    return Verdict(aim, HOLDS if judged < AIM_COST else FAILS, ", ".join(figures), why)


def _where_from(measures: Measures, a: str, b: str, within: Rows | None) -> str:
    """The parts of a difference that two kinds of events make."""
    whole, orders, unreachable = (
        100 * measures.part(rows, a, b, within)
        for rows in (np.ones_like(measures.moment_rows), measures.moment_rows, ~measures.reachable_rows)
    )
    return (
        f"of {whole:+.2f} points, {orders:+.2f} come from events of an order that is already begun, "
        f"{unreachable:+.2f} from items that the start's model does not know"
    )
