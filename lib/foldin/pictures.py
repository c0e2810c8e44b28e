"""Pictures for notebooks and reports. They take plain values and give a Figure; nothing is shown or kept.

matplotlib comes with the extra `report` and is imported when a picture is drawn. Figures are made without pyplot, which
would keep them all and choose a window system.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from foldin.errors import PrerequisiteError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "GREY",
    "bars",
    "grouped_bars",
    "heat_map",
    "micro_batches",
    "palette",
    "places",
    "ranked",
    "scatter",
    "stacked_bars",
    "timeline",
]

GREY = "#8a8f98"
_INK = "#22262e"
# Okabe and Ito's colours, told apart by colour-blind readers too.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#B8A800", "#5D3A9B")


def palette(names: Iterable[str]) -> dict[str, str]:
    """A colour for each name, in their order; after eight they come again."""
    return {name: _COLOURS[k % len(_COLOURS)] for k, name in enumerate(names)}


def bars(
    values: Mapping[str, float],
    title: str,
    x: str,
    *,
    colours: Mapping[str, str] | None = None,
    form: str = "{:,.0f}",
    line: tuple[str, float] | None = None,
) -> Figure:
    """One horizontal bar a name, the first on top, with its value.

    Args:
        line: a name and a value to hold the bars against.
    """
    figure = _figure(8, 1.3 + 0.36 * len(values))
    axes = _axes(figure, title, x, "")
    names, numbers = list(values), [float(value) for value in values.values()]
    colour = [(colours or {}).get(name, _COLOURS[0]) for name in names]
    drawn = axes.barh(range(len(names)), numbers, color=colour, height=0.7)
    axes.bar_label(drawn, [form.format(number) for number in numbers], padding=4, color=_INK)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter("{x:,g}")
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.12)
    if line is not None:
        axes.axvline(line[1], color=_INK, linestyle="--", linewidth=1.2, label=f"{line[0]} ({form.format(line[1])})")
        _legend_below(figure, axes)
    return figure


def stacked_bars(
    frame: pd.DataFrame, title: str, x: str, y: str, *, colours: Mapping[str, str] | None = None
) -> Figure:
    """One bar a row of `frame`, its columns on top of each other; the index names the bars."""
    figure = _figure(9, 4)
    axes = _axes(figure, title, x, y)
    shades = colours or palette(frame.columns)
    below = np.zeros(len(frame))
    for name in frame.columns:
        height = frame[name].fillna(0).to_numpy(dtype=float)
        axes.bar(range(len(frame)), height, bottom=below, color=shades[name], label=name, width=0.8)
        below += height
    axes.set_xticks(range(len(frame)), [str(label) for label in frame.index], rotation=45 if len(frame) > 8 else 0)
    axes.grid(axis="x", visible=False)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    figure.legend(loc="outside right center", frameon=False, reverse=True)
    return figure


def grouped_bars(
    frame: pd.DataFrame, title: str, x: str, y: str, *, colours: Mapping[str, str] | None = None, form: str = ""
) -> Figure:
    """One group of bars a row of `frame`, one bar a column, side by side.

    Args:
        form: how each bar's value is written on it; "" for not at all.
    """
    figure = _figure(9, 3.8)
    axes = _axes(figure, title, x, y)
    shades, width = colours or palette(frame.columns), 0.82 / len(frame.columns)
    for k, name in enumerate(frame.columns):
        at = np.arange(len(frame)) + (k - (len(frame.columns) - 1) / 2) * width
        drawn = axes.bar(at, frame[name].to_numpy(dtype=float), width=width, color=shades[name], label=name)
        if form:
            labels = ["" if np.isnan(value) else form.format(value) for value in frame[name]]
            axes.bar_label(drawn, labels, padding=2, fontsize=8, color=_INK)
    axes.axhline(0, color=_INK, linewidth=0.8)
    axes.set_xticks(range(len(frame)), [str(label) for label in frame.index])
    axes.grid(axis="x", visible=False)
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    return figure


def heat_map(
    frame: pd.DataFrame, title: str, x: str, y: str, unit: str, *, form: str = "{:.2f}", signed: bool = False
) -> Figure:
    """The values of `frame` as shades, written into the cells; nothing where there is none.

    Args:
        signed: shades go two ways from 0.
    """
    values = frame.to_numpy(dtype=float)
    rows, columns = values.shape
    figure = _figure(3.2 + 0.62 * columns, 1.9 + 0.38 * rows)
    axes = _axes(figure, title, x, y)
    axes.grid(visible=False)
    top = float(np.nanmax(np.abs(values))) or 1.0
    low = -top if signed else min(0.0, float(np.nanmin(values)))
    shown = axes.imshow(values, cmap="RdBu_r" if signed else "Blues", vmin=low, vmax=top, aspect="auto")
    for row, column in zip(*np.nonzero(np.isfinite(values)), strict=True):
        share = abs(values[row, column]) / top
        colour = "white" if share > 0.6 else _INK
        axes.text(column, row, form.format(values[row, column]), ha="center", va="center", fontsize=8, color=colour)
    long = max(len(str(name)) for name in frame.columns) > 6
    axes.set_xticks(range(columns), [str(name) for name in frame.columns], rotation=40 if long else 0)
    if long:
        for label in axes.get_xticklabels():
            label.set_horizontalalignment("right")
            label.set_rotation_mode("anchor")
    axes.set_yticks(range(rows), [str(name) for name in frame.index])
    axes.tick_params(length=0)
    figure.colorbar(shown, ax=axes, label=unit, shrink=0.9, pad=0.02)
    return figure


def ranked(series: Mapping[str, Iterable[float]], title: str, x: str, y: str) -> Figure:
    """Values from the largest to the smallest over their rank, both logarithmic; one curve a name."""
    figure = _figure(8, 4)
    axes = _axes(figure, title, x, y)
    for (name, values), colour in zip(series.items(), _COLOURS, strict=False):
        ordered = np.sort(np.asarray(list(values), dtype=float))[::-1]
        axes.loglog(np.arange(1, len(ordered) + 1), ordered, color=colour, linewidth=2.2, label=name)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.legend(frameon=False)
    return figure


def scatter(
    points: ArrayLike,
    groups: Sequence[str],
    title: str,
    x: str,
    y: str,
    *,
    sizes: ArrayLike = 30.0,
    colours: Mapping[str, str] | None = None,
) -> Figure:
    """(n, 2) points, coloured by the group that each is of; a group's name stands in its middle."""
    figure = _figure(7.5, 6)
    axes = _axes(figure, title, x, y)
    at, member = np.asarray(points, dtype=float), np.asarray(groups)
    shades = colours or palette(sorted(set(groups)))
    area = np.broadcast_to(np.asarray(sizes, dtype=float), len(at))
    for name, colour in shades.items():
        mine = member == name
        if not mine.any():
            continue
        axes.scatter(at[mine, 0], at[mine, 1], s=area[mine], color=colour, alpha=0.55, linewidths=0)
        label = axes.annotate(name, np.median(at[mine], axis=0), ha="center", va="center", color=colour, weight="bold")
        label.set_bbox({"facecolor": "white", "alpha": 0.85, "edgecolor": colour, "boxstyle": "round,pad=0.25"})
    return figure


def places(
    lists: Mapping[str, Sequence[str]], colours: Mapping[str, str], title: str, x: str, *, legend: Mapping[str, str]
) -> Figure:
    """How lists change: one column a list, a line for each item from its place in one to its place in the next.

    Args:
        lists: items, best first, by the column's label.
        colours: of each item.
        legend: what the colours mean.
    """
    figure = _figure(2.2 * len(lists) + 1.5, 5.2)
    axes = _axes(figure, title, x, "place in the list")
    columns = list(lists.values())
    for k, items in enumerate(columns):
        for place, item in enumerate(items, 1):
            axes.text(
                k, place, item, ha="center", va="center", fontsize=8.5, color="white",
                bbox={"facecolor": colours[item], "edgecolor": "none", "boxstyle": "round,pad=0.35"},
            )  # fmt: skip
            if k + 1 < len(columns) and item in columns[k + 1]:
                there = list(columns[k + 1]).index(item) + 1
                axes.plot([k, k + 1], [place, there], color=colours[item], alpha=0.5, linewidth=2, zorder=0)
    longest = max(map(len, columns))
    axes.set_xlim(-0.55, len(columns) - 0.45)
    axes.set_ylim(longest + 0.7, 0.3)
    axes.set_yticks(range(1, longest + 1))
    axes.set_xticks(range(len(columns)), list(lists))
    axes.grid(visible=False)
    _key(figure, legend)
    return figure


def micro_batches(metrics: pd.DataFrame, title: str) -> Figure:
    """Rows of the table `metrics` of one query: what each batch took in, and how fresh that came out."""
    figure = _figure(9, 5)
    upper, lower = figure.subplots(2, 1, sharex=True)
    _dress(upper, title, "", "events")
    _dress(lower, "", "micro-batch", "seconds")
    at = np.arange(len(metrics))
    drawn = upper.bar(at, metrics["rows"], color=_COLOURS[5], width=0.6)
    upper.bar_label(drawn, fmt="{:,.0f}", padding=2, fontsize=8, color=_INK)
    upper.margins(y=0.18)
    upper.yaxis.set_major_formatter("{x:,.0f}")
    lower.bar(at, metrics["seconds"], color=GREY, alpha=0.5, width=0.6, label="the batch itself")
    fresh = metrics[["freshness_p50", "freshness_p95"]].to_numpy(dtype=float)
    lower.vlines(at, fresh[:, 0], fresh[:, 1], color=_COLOURS[1], linewidth=3, alpha=0.5)
    lower.scatter(at, fresh[:, 0], color=_COLOURS[0], zorder=3, label="freshness, median event")
    ring = {"s": 90, "facecolors": "none", "edgecolors": _COLOURS[1], "linewidths": 2}  # the two may be one
    lower.scatter(at, fresh[:, 1], zorder=3, label="freshness, 95th percentile", **ring)
    lower.set_ylim(bottom=0)
    lower.set_xticks(at, [str(number) for number in metrics["batch_id"]])
    for axes in (upper, lower):
        axes.grid(axis="x", visible=False)
    _legend_below(figure, lower)
    return figure


def timeline(
    reads: Sequence[tuple[float, str, int]], title: str, *, moments: Mapping[str, float] | None = None
) -> Figure:
    """What a reader saw: (seconds, model version, items in the list) a read; a line a version, a dot a read.

    Args:
        moments: seconds of what happened meanwhile, by name.
    """
    figure = _figure(9, 4.6)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[1.3, 1])
    _dress(upper, title, "", "model that answered")
    _dress(lower, "", "seconds since the first read", "items in the list")
    at = np.array([read[0] for read in reads])
    versions = list(dict.fromkeys(read[1] for read in reads))
    shades = palette(versions)
    colour = [shades[read[1]] for read in reads]
    upper.scatter(at, [versions.index(read[1]) for read in reads], color=colour, s=26, alpha=0.8)
    upper.set_yticks(range(len(versions)), versions)
    upper.set_ylim(-0.6, len(versions) - 0.4)
    lower.scatter(at, [read[2] for read in reads], color=colour, s=26, alpha=0.8)
    lower.set_ylim(0, max(read[2] for read in reads) * 1.25)
    for name, when in (moments or {}).items():
        for axes in (upper, lower):
            axes.axvline(when, color=_INK, linewidth=1, linestyle="--")
        upper.annotate(f" {name}", (when, 0.5), xycoords=("data", "axes fraction"), va="center", fontsize=9)
    return figure


def _figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PrerequisiteError("pictures need matplotlib: pip install 'matplotlib>=3.8'") from error
    return Figure(figsize=(width, height), dpi=88, layout="constrained", facecolor="white")


def _axes(figure: Figure, title: str, x: str, y: str) -> Axes:
    axes: Axes = figure.subplots()
    _dress(axes, title, x, y)
    return axes


def _dress(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, loc="left", fontsize=11.5, color=_INK, pad=10)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_axisbelow(True)
    axes.grid(color="#e3e6ea", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)


def _legend_below(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)


def _key(figure: Figure, legend: Mapping[str, str]) -> None:
    from matplotlib.patches import Patch

    handles: list[Any] = [Patch(color=colour, label=name) for name, colour in legend.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
