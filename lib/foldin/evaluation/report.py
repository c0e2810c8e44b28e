"""The report: Markdown with pictures, for a person who looks for a minute."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from foldin.errors import PrerequisiteError
from foldin.evaluation.intervals import Interval, Resamples
from foldin.evaluation.measures import Row, gains_by_history, hit, quality_by_age, summary
from foldin.evaluation.run import Evaluation

__all__ = ["write_report"]

_OURS = "foldin"
_COLORS = {
    "foldin": "#d62728",
    "foldin, retrained nightly": "#ff9896",
    "stale": "#7f7f7f",
    "retrained nightly": "#1f77b4",
    "additive update": "#9467bd",
    "popular, all time": "#bcbd22",
    "popular, recent": "#8c564b",
}


def write_report(found: Evaluation, folder: Path, *, title: str, command: str) -> Path:
    """README.md of `folder`, with its pictures beside it; the path.

    Raises:
        PrerequisiteError: matplotlib is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = summary(found)
    pictures = [
        _contenders_picture(rows, found, folder / "contenders.png"),
        _age_picture(found, folder / "age.png"),
        _history_picture(found, folder / "history.png"),
    ]
    text = [f"# {title}", "", *_headline(found, rows), "", *_table(rows, found), "", *pictures, *_parts(found)]
    text += [*_oracle(found), "", *_method(found, command)]
    path = folder / "README.md"
    path.write_text("\n".join(text) + "\n", encoding="utf-8")
    return path


def _date(us: int) -> str:
    return f"{dt.datetime.fromtimestamp(us / 1e6, dt.UTC):%Y-%m-%d}"


def _headline(found: Evaluation, rows: Sequence[Row]) -> list[str]:
    """What the numbers say, whichever way."""
    resamples = Resamples(found.log.user[found.observations.row], seed=found.plan.seed)
    mine = hit(found.observations.places[_OURS])
    said = []
    for row in rows:
        if row.contender.startswith(_OURS):
            continue
        gain = resamples.difference(mine, hit(found.observations.places[row.contender]))
        verdict = (
            "better than" if gain.low > 0 else "worse than" if gain.high < 0 else "no different, beyond chance, from"
        )
        said.append(f"- {verdict} *{row.contender}*: {_signed(gain)}")
    first = (
        f"Hit rate at {found.plan.k} of {len(found.observations.row):,} events, {_date(found.plan.start_us)} to "
        f"{_date(found.plan.end_us)}: foldin {next(row.hit for row in rows if row.contender == _OURS)}. It is"
    )
    return [first, "", *said]


def _signed(gain: Interval) -> str:
    return f"{gain.mean:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]"


def _table(rows: Sequence[Row], found: Evaluation) -> list[str]:
    k = found.plan.k
    lines = [
        f"| contender | hit rate@{k} | NDCG@{k} | MRR@{k} | coverage | novelty, bits | seconds of learning |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        lines.append(
            f"| {row.contender} | {row.hit} | {row.ndcg} | {row.mrr} | {row.coverage:.1%} | {row.novelty:.1f} "
            f"| {row.seconds:,.1f} |"
        )
    repeated = (
        "items that the user had before count again" if found.plan.repeats else "only items new to the user count"
    )
    return [*lines, "", f"Means over events with 95 % intervals (bootstrap over users); {repeated}."]


def _parts(found: Evaluation) -> list[str]:
    """The same over parts of the observations."""
    parts = {"items that the model of the start knows": found.reachable}
    parts |= {f"{kind} users": found.kind == kind for kind in ("known", "returning", "new")}
    names = list(found.observations.places)
    lines = [
        f"| hit rate@{found.plan.k} over | events | {' | '.join(names)} |",
        f"| --- | --- |{' --- |' * len(names)}",
    ]
    for label, where in parts.items():
        if not where.any():
            continue
        rows = {row.contender: row.hit for row in summary(found, where)}
        lines.append(f"| {label} | {int(where.sum()):,} | {' | '.join(str(rows[name]) for name in names)} |")
    return [*lines, ""]


def _oracle(found: Evaluation) -> list[str]:
    if found.oracle is None or not len(found.oracle.row):
        return []
    name = next(name for name in found.oracle.places if name.startswith("oracle"))
    stale, mine, oracle = (hit(found.oracle.places[key]) for key in ("stale", _OURS, name))
    resamples = Resamples(found.log.user[found.oracle.row], seed=found.plan.seed)
    gap = resamples.difference(oracle, stale)
    first = (
        f"Against the oracle, which is retrained from scratch before each of the first {found.plan.oracle_steps} "
        f"micro-batches ({len(found.oracle.row):,} events): stale {resamples.mean(stale)}, foldin "
        f"{resamples.mean(mine)}, oracle {resamples.mean(oracle)}; the gap is {_signed(gap)}."
    )
    lines = [first]
    if gap.low > 0:
        cost = found.oracle.seconds[_OURS] / found.oracle.seconds[name]
        lines.append(f"foldin closes {resamples.share_of_gap(stale, mine, oracle)} of it, at {cost:.2%} of its cost.")
    else:
        lines.append("Its interval does not exclude zero, so no share of it is given.")
    return lines


def _method(found: Evaluation, command: str) -> list[str]:
    size = f"{found.plan.batch_events} events" if found.plan.batch_events else f"{found.plan.batch_us / 6e7:g} minutes"
    how = (
        f"`{command}` in {found.seconds:,.0f} s: {found.events:,} events in micro-batches of {size}, each first tested "
        "on, then learned from. Lists are made by the code of the stream (`fold_batch`); that no list depends on what "
        f"comes after it was checked for every contender. Recent popularity counts {found.window_hours} hours, chosen "
        "on the time before the test. New users, and items that a model does not know, count as misses."
    )
    return ["## How this was made", "", how]


def _plt() -> Any:
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise PrerequisiteError("the report needs matplotlib: pip install 'foldin[report]'") from error
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def _save(plt: Any, path: Path, caption: str) -> str:
    plt.tight_layout()
    plt.savefig(path, dpi=110)
    plt.close()
    return f"![{caption}]({path.name})\n\n*{caption}*\n"


def _contenders_picture(rows: Sequence[Row], found: Evaluation, path: Path) -> str:
    plt = _plt()
    _, axes = plt.subplots(figsize=(8, 0.5 * len(rows) + 1.2))
    for n, row in enumerate(reversed(rows)):
        color = _COLORS.get(row.contender, "black")
        axes.plot([row.hit.low, row.hit.high], [n, n], color=color, lw=3, alpha=0.5)
        axes.plot(row.hit.mean, n, "o", color=color)
    axes.set_yticks(range(len(rows)), [row.contender for row in reversed(rows)])
    axes.set_xlabel(f"hit rate at {found.plan.k} (share of events), 95 % interval over users")
    axes.grid(axis="x", alpha=0.3)
    return _save(plt, path, f"Share of events whose item was on the list of {found.plan.k} shown before it happened.")


def _age_picture(found: Evaluation, path: Path) -> str:
    plt = _plt()
    days = int(np.ceil(found.age_days.max(initial=0))) or 1
    names = [name for name in ("stale", "retrained nightly", _OURS) if name in found.observations.places]
    _, axes = plt.subplots(figsize=(8, 3.5))
    for name, intervals in quality_by_age(found, names, days).items():
        color = _COLORS.get(name, "black")
        axes.plot(range(days), [i.mean for i in intervals], "o-", ms=3, color=color, label=name)
        axes.fill_between(range(days), [i.low for i in intervals], [i.high for i in intervals], color=color, alpha=0.15)
    axes.set_xlabel("age of the model of the start, days")
    axes.set_ylabel(f"hit rate at {found.plan.k}")
    axes.legend()
    axes.grid(alpha=0.3)
    return _save(plt, path, "Quality against the model's age: what freshness is worth as the nightly model grows old.")


def _history_picture(found: Evaluation, path: Path) -> str:
    plt = _plt()
    rows = [row for row in gains_by_history(found, _OURS, "stale") if row[1]]
    _, axes = plt.subplots(figsize=(8, 3.2))
    place = np.arange(len(rows))
    axes.bar(place, [gain.mean for _, _, gain in rows], color=_COLORS[_OURS], alpha=0.7)
    for n, (_, _, gain) in enumerate(rows):
        axes.plot([n, n], [gain.low, gain.high], color="black", lw=1)
    axes.set_xticks(place, [f"{label}\n{count:,}" for label, count, _ in rows])
    axes.set_xlabel("events of the user before (below: events tested)")
    axes.set_ylabel(f"gain of hit rate at {found.plan.k}")
    axes.axhline(0, color="black", lw=0.8)
    return _save(plt, path, "Gain of fold-in over the stale model by the length of the user's history.")
