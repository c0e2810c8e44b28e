"""The pictures of a report: each a matplotlib Figure, with a title that says what the data says.

Matplotlib is imported where a figure is made: only reports need it. Figures are made without pyplot, which would keep
them all. Whiskers and bands are 95% intervals; a contender has the same colour everywhere.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from foldin.evaluation.intervals import Interval
from foldin.evaluation.measures import Measures, Slice

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["PICTURES", "age_picture", "cost_picture", "freshness_picture", "gain_picture", "headline_picture"]
__all__ += ["human", "overview"]

# Okabe and Ito's colours, which most people with a colour deficiency tell apart.
COLOURS = {
    "popularity": "#C9C9C9",
    "recent": "#E0B84C",
    "stale": "#8C8C8C",
    "nightly": "#0072B2",
    "additive": "#CC79A7",
    "foldin": "#D55E00",
    "foldin nightly": "#009E73",
    "oracle": "#222222",
}
KIND_NAMES = {"known": "known\nto the model", "returning": "here before,\nnot in the model", "new": "new"}


def headline_picture(measures: Measures) -> Figure:
    """Hit rate of every contender, over all events."""
    figure, (axes,) = _figure(10, 4.2)
    _headline(axes, measures)
    return figure


def freshness_picture(measures: Measures) -> Figure | None:
    """Hit rate against how late the stream is; None without a contender that is late."""
    if not measures.replayed.lags:
        return None
    figure, (axes,) = _figure(10, 4.8)
    _freshness(axes, measures)
    return figure


def age_picture(measures: Measures) -> Figure | None:
    """Hit rate against the age of the start's model; None with a single age."""
    if len(measures.ages) < 2:
        return None
    figure, (axes,) = _figure(10, 4.8)
    _ageing(axes, measures)
    return figure


def gain_picture(measures: Measures) -> Figure:
    """What foldin has more than the stale model, by history length and by kind of user."""
    figure, (left, right) = _figure(10, 4.6, 2, (5, 3))
    _gain(left, measures.histories, "events of the user before the micro-batch", "history length", {})
    _gain(right, measures.kinds, "user at the moment of the event", "kind of user", KIND_NAMES)
    bottom, top = (pick(axes.get_ylim()[n] for axes in (left, right)) for n, pick in ((0, min), (1, max)))
    for axes in (left, right):
        axes.set_ylim(bottom, top)
    right.set_ylabel("")
    gains = [(part.gain("stale").value, part.label) for part in measures.histories if part.events]
    most, least = max(gains), min(gains)
    says = f"Gain over the stale model: {most[0] * 100:+.1f} points for users with {most[1]} events"
    says += f", {least[0] * 100:+.1f} with {least[1]}" if len(gains) > 1 else ""
    figure.suptitle(says, x=0.01, ha="left", fontsize=13, fontweight="bold")
    return figure


def cost_picture(measures: Measures) -> Figure | None:
    """Seconds an event of each way to be fresh; None when nothing was timed."""
    if not measures.costs.per_event:
        return None
    figure, (axes,) = _figure(10, 3.0)
    _cost(axes, measures)
    return figure


def overview(measures: Measures) -> Figure:
    """The whole story in one wide picture, for a README."""
    draws: list[Callable[[Axes, Measures], None]] = [_headline]
    draws += [_freshness] if measures.replayed.lags else []
    draws += [_cost] if measures.costs.per_event else []
    figure, all_axes = _figure(4.6 * len(draws), 4.6, len(draws))
    for axes, draw in zip(all_axes, draws, strict=True):
        draw(axes, measures)
    return figure


PICTURES: dict[str, Callable[[Measures], Figure | None]] = {
    "headline": headline_picture,
    "freshness": freshness_picture,
    "age": age_picture,
    "gain": gain_picture,
    "cost": cost_picture,
    "overview": overview,
}
"""By the name of its file, without its ending."""


def human(seconds: float) -> str:
    """A span as one says it: 0, 10 min, 1 day, 80 µs."""
    if seconds == 0:
        return "0"
    units = {"week": 604_800, "day": 86_400, "h": 3_600, "min": 60, "s": 1, "ms": 1e-3, "µs": 1e-6}
    unit, size = next(((unit, size) for unit, size in units.items() if seconds >= size), ("µs", 1e-6))
    number = f"{seconds / size:.3g}"
    return f"{number} {unit}" + "s" * (unit in ("week", "day") and number != "1")


def _headline(axes: Axes, measures: Measures) -> None:
    every = measures.every
    names = list(every.scores)[::-1]
    hits = [every.hit(name) for name in names]
    axes.barh(range(len(names)), _values(hits), color=[COLOURS.get(name, "#999999") for name in names], height=0.7)
    _whiskers(axes, range(len(names)), hits, across=True)
    for place, hit in enumerate(hits):
        end = hit.high if hit.known else hit.value
        axes.annotate(f"{hit.value:.1%}", (end * 100, place), (6, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(names)), _fitted(axes, [measures.setting.called(name) for name in names]))
    axes.set_ylabel("what made the list")
    axes.set_xlabel(_hit_label(measures))
    axes.margins(x=0.14)
    _values_across(axes)
    foldin, stale = every.hit("foldin").value, every.hit("stale").value
    _title(axes, f"The next item is on foldin's list {foldin:.1%} of the time, on the stale model's {stale:.1%}")


def _freshness(axes: Axes, measures: Measures) -> None:
    points = measures.lateness
    late = [point for point in points if 0 < point.seconds < math.inf]
    first, last = math.log10(late[0].seconds), math.log10(late[-1].seconds)
    # Zero and never have no place on a logarithmic axis: they stand apart at its ends, the breaks are marked.
    x = [first - 1.0, *(math.log10(point.seconds) for point in late), last + 1.0]
    stale = points[-1].hit.value
    bands = [point.gain.shifted(stale) for point in points]
    axes.axhline(100 * stale, color=COLOURS["stale"], linestyle="--", linewidth=1.5)
    axes.annotate(
        "stale model", (x[0], 100 * stale), (0, -5), textcoords="offset points", color="#6A6A6A", va="top", fontsize=10
    )
    _band(axes, x, bands, COLOURS["foldin"])
    axes.plot(x, _values([point.hit for point in points]), "o-", color=COLOURS["foldin"], linewidth=2)
    axes.set_xticks(x, [human(point.seconds) for point in points[:-1]] + ["never"], fontsize=9)
    axes.tick_params("x", rotation=45 if _narrow(axes) else 0)
    for middle in (x[0] + 0.5, x[-1] - 0.5):
        axes.plot([middle], [0], marker=[(-1, -2), (1, 2)], color="k", clip_on=False, markersize=9,
                  transform=axes.get_xaxis_transform())  # fmt: skip
    axes.set_xlabel("how late foldin gets the events (log scale)")
    axes.set_ylabel(_hit_label(measures))
    bottom, top = axes.get_ylim()
    axes.set_ylim(max(0, bottom - 0.15 * (top - bottom)), top)
    lead = points[0].gain
    if lead.excludes_zero and lead.value > 0:
        shown = min(late, key=lambda point: abs(math.log(point.seconds / 3_600)))
        left = shown.gain.value / lead.value
        _title(axes, f"Foldin leads the stale model by {100 * lead.value:.1f} points; "
                     f"{human(shown.seconds)} late, {left:.0%} of that is left")  # fmt: skip
    else:
        _title(axes, f"Foldin and the stale model differ by {100 * lead.value:+.1f} points: no lead that can be lost")


def _ageing(axes: Axes, measures: Measures) -> None:
    ages = measures.ages
    x = [sum(map(int, part.label.split("-"))) / 2 for part in ages]
    stale = [part.hit("stale").value for part in ages]
    for name in ("foldin nightly", "nightly", "stale", "foldin"):
        if name not in measures.complete:
            continue
        if name == "foldin":  # paired with the stale model: off its line, the two can be told apart
            gains = [part.gain("stale").shifted(base) for part, base in zip(ages, stale, strict=True)]
            _band(axes, x, gains, COLOURS[name])
        axes.plot(x, _values([part.hit(name) for part in ages]), "o-", color=COLOURS[name], linewidth=2, markersize=5,
                  label=measures.setting.called(name))  # fmt: skip
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    axes.set_xlabel("age of the model that foldin and the stale model share, days")
    axes.set_ylabel(_hit_label(measures))
    axes.set_ylim(bottom=0)
    young, old = ages[0], ages[-1]
    _title(axes, f"Foldin's lead over the stale model: {100 * young.gain('stale').value:+.1f} points at "
                 f"{young.label.replace('-', ' to ')} days, {100 * old.gain('stale').value:+.1f} at "
                 f"{old.label.replace('-', ' to ')}")  # fmt: skip


def _gain(axes: Axes, parts: Sequence[Slice], label: str, title: str, names: dict[str, str]) -> None:
    shown = [part for part in parts if part.events]
    gains = [part.gain("stale") for part in shown]
    axes.bar(range(len(shown)), _values(gains), color=COLOURS["foldin"], width=0.65)
    _whiskers(axes, range(len(shown)), gains)
    ticks = [f"{names.get(part.label, part.label)}\n({part.events:,} events)" for part in shown]
    axes.set_xticks(range(len(shown)), ticks, fontsize=9)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xlabel(label)
    axes.set_ylabel("hit rate, foldin minus stale, points")
    axes.set_title(f"by {title}", loc="left", fontsize=11)


def _cost(axes: Axes, measures: Measures) -> None:
    ways = dict(reversed(measures.costs.per_event.items()))
    seconds = list(ways.values())
    colours = [
        COLOURS["foldin"] if "fold-in" in way else COLOURS["oracle" if "micro-batch" in way else "nightly"]
        for way in ways
    ]
    axes.barh(range(len(ways)), seconds, color=colours, height=0.6)
    for place, value in enumerate(seconds):
        axes.annotate(human(value), (value, place), (5, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(ways)), _fitted(axes, list(ways)))
    axes.set_ylabel("how lists are kept fresh")
    axes.set_xscale("log")
    first, last = math.floor(math.log10(min(seconds) / 2)), math.ceil(math.log10(max(seconds) * 5))
    axes.set_xlim(10.0**first, 10.0**last)
    decades = [10.0**power for power in range(first, last + 1, 2 if _narrow(axes) else 1)]
    axes.set_xticks(decades, [human(value) for value in decades])
    axes.set_xlabel("machine time an event (log scale)")
    _values_across(axes)
    costs = measures.costs
    for share, how in ((costs.spark_share, "as a Spark job"), (costs.kernel_share, "numerical work")):
        if math.isfinite(share):
            _title(axes, f"Folding in a micro-batch ({how}) costs {share:.2%} of a retraining")
            return
    _title(axes, "What keeping up costs")


def _figure(
    width: float, height: float, panels: int = 1, widths: Sequence[float] | None = None
) -> tuple[Figure, list[Axes]]:
    """A figure with panels side by side, plain, with horizontal lines to read values off."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    grid = figure.subplots(1, panels, squeeze=False, width_ratios=widths)
    every: list[Axes] = list(grid[0])
    for axes in every:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(visible=True, axis="y", color="#E6E6E6")
        axes.set_axisbelow(True)
    return figure, every


def _hit_label(measures: Measures) -> str:
    return f"hit rate, % of events\n(the item is among the {measures.setting.k} listed)"


def _title(axes: Axes, says: str) -> None:
    """Over the axes, wrapped to their width."""
    width, size = (36, 11.5) if _narrow(axes) else (84, 13)
    axes.set_title(textwrap.fill(says, width), loc="left", fontsize=size, fontweight="bold")


def _narrow(axes: Axes) -> bool:
    """It is one of several panels."""
    return len(axes.figure.axes) > 1


def _fitted(axes: Axes, labels: Sequence[str]) -> list[str]:
    return [textwrap.fill(label, 14, break_on_hyphens=False) if _narrow(axes) else label for label in labels]


def _values_across(axes: Axes) -> None:
    """Lines to read values off, for bars that lie."""
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x", color="#E6E6E6")


def _values(intervals: Sequence[Interval]) -> list[float]:
    return [100 * interval.value for interval in intervals]


def _whiskers(axes: Axes, places: Sequence[int], intervals: Sequence[Interval], *, across: bool = False) -> None:
    drawn = [(place, interval) for place, interval in zip(places, intervals, strict=True) if interval.known]
    if not drawn:
        return
    at, shown = zip(*drawn, strict=True)
    values = _values(shown)
    # A percentile interval need not hold its own figure.
    errors: Any = [
        [100 * max(0.0, part.value - part.low) for part in shown],
        [100 * max(0.0, part.high - part.value) for part in shown],
    ]
    style: Any = {"fmt": "none", "ecolor": "black", "elinewidth": 1.2, "capsize": 3}
    if across:
        axes.errorbar(values, at, xerr=errors, **style)
    else:
        axes.errorbar(at, values, yerr=errors, **style)


def _band(axes: Axes, x: Sequence[float], intervals: Sequence[Interval], colour: str) -> None:
    low, high = ([100 * getattr(part, side) for part in intervals] for side in ("low", "high"))
    axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
