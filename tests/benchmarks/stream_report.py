"""What bench_stream prints and keeps: tables as soon as they are known, and the aims beside what was measured."""

from __future__ import annotations

import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

__all__ = ["AIMS", "Report", "aims_table", "machine", "median", "progress", "quantile", "slope"]

_STARTED = time.monotonic()


def progress(text: str) -> None:
    """A line on stderr that says what goes on, with the seconds since the start of this process."""
    print(f"[{time.monotonic() - _STARTED:7.1f} s] {text}", file=sys.stderr, flush=True)


@dataclass
class Report:
    """Tables in Markdown, printed when they are added, and the numbers behind the aims."""

    lines: list[str] = field(default_factory=list)
    values: dict[str, float] = field(default_factory=dict)

    def say(self, text: str = "") -> None:
        """A line of text."""
        self.lines.append(text)
        print(text, flush=True)

    def table(self, title: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A Markdown table, aligned for the eye; all but its first column to the right."""
        texts = [[str(cell) for cell in row] for row in [header, *rows]]
        widths = [max(len(row[c]) for row in texts) for c in range(len(header))]
        self.say(f"### {title}")
        self.say()
        for n, row in enumerate(texts):
            cells = [cell.rjust(w) if c else cell.ljust(w) for c, (cell, w) in enumerate(zip(row, widths, strict=True))]
            self.say("| " + " | ".join(cells) + " |")
            if n == 0:
                self.say("| " + " | ".join("-" * (w - 1) + ":" if c else "-" * w for c, w in enumerate(widths)) + " |")
        self.say()


def machine() -> str:
    """Cores, memory and versions, without names of hosts or people."""
    kilobytes = 0
    with open("/proc/meminfo") as lines:  # noqa: PTH123 - not a path of ours
        kilobytes = int(next(lines).split()[1])
    packages = ", ".join(f"{name} {version(name)}" for name in ("pyspark", "delta-spark", "numpy", "pyarrow"))
    return (
        f"{os.cpu_count()} cores ({platform.machine()}), {kilobytes / 2**20:.0f} GB; "
        f"Python {platform.python_version()}, {packages}; load average at the start {os.getloadavg()[0]:.1f}"
    )


def median(numbers: Sequence[float]) -> float:
    """NaN of nothing."""
    return statistics.median(numbers) if numbers else float("nan")


def quantile(numbers: Sequence[float], share: float) -> float:
    """The smallest number that at least `share` of them do not exceed; NaN of nothing."""
    ordered = sorted(numbers)
    return ordered[max(0, -(-len(ordered) * round(share * 1000) // 1000) - 1)] if ordered else float("nan")


def slope(numbers: Sequence[float], *, block: int, seed: int, rounds: int = 2000) -> tuple[float, float, float]:
    """Growth a step of a line through the medians of blocks, and its 95% interval from resampled blocks.

    Medians, because one stall of the machine must not draw the line; blocks, because neighbours are alike.
    """
    points = [(n + block / 2, median(numbers[n : n + block])) for n in range(0, len(numbers) - block + 1, block)]
    if len(points) < 3:
        return float("nan"), float("nan"), float("nan")
    draw = random.Random(seed)
    found = []
    while len(found) < rounds:
        sample = draw.choices(points, k=len(points))
        if len({x for x, _ in sample}) > 1:
            found.append(statistics.linear_regression(*zip(*sample, strict=True)).slope)
    return (
        statistics.linear_regression(*zip(*points, strict=True)).slope,
        quantile(found, 0.025),
        quantile(found, 0.975),
    )


AIMS = (
    ("flat", "{large} users against {small}, seconds a micro-batch, factors", "≤ 1.3", "{:.2f} ×", lambda v: v <= 1.3),
    ("flat_lists", "{most} against {small}, with top-10", "≤ 1.3", "{:.2f} ×", lambda v: v <= 1.3),
    ("copy_factors", "factors alone against a copy stream, at {middle} users", "≤ 2.2", "{:.2f} ×", lambda v: v <= 2.2),
    ("copy_lists", "with top-10 of {items} items, at {middle} users", "≤ 4", "{:.2f} ×", lambda v: v <= 4),
    ("merge", "MERGE against factors alone, at {large} users", "≥ 6", "{:.1f} ×", lambda v: v >= 6),
    (
        "rate_factors",
        "events a second sustained at {middle} users, factors",
        "≥ 20,000",
        "{:,.0f}",
        lambda v: v >= 20_000,
    ),
    (
        "rate_lists",
        "events a second sustained at {middle} users, with top-10",
        "≥ 6,000",
        "{:,.0f}",
        lambda v: v >= 6_000,
    ),
    ("fresh_p50", "event to recommendation, p50", "≤ 2.5 s", "{:.2f} s", lambda v: v <= 2.5),
    ("fresh_p95", "event to recommendation, p95", "≤ 4 s", "{:.2f} s", lambda v: v <= 4),
    ("slope", "soak: growth over the whole run, lower end of its 95% interval", "≤ 0", "{:+.1%}", lambda v: v <= 0),
    ("slope_high", "soak: its upper end: a run too noisy to tell is none", "≤ 10%", "{:+.1%}", lambda v: v <= 0.1),
)
"""(key of the value, what, aim, how a value is written, whether it meets the aim)."""


def aims_table(report: Report, values: dict[str, float], **sizes: str) -> None:
    """The last table. Aims are set at 250k, 1M and 4M users and 50,000 items.

    Args:
        values: what was measured, by key of `AIMS`; a key that is missing was not.
        sizes: what stands for small, middle and large; the most users that were measured with lists; the items.
    """
    rows = []
    for key, about, aim, shown, reached in AIMS:
        what = about.format(**sizes)
        if key in values:
            rows.append([what, aim, shown.format(values[key]), "yes" if reached(values[key]) else "NO"])
        else:
            rows.append([what, aim, "not measured", ""])
    report.table("Aims (set at 250k, 1M and 4M users, 50,000 items)", ["what", "aim", "measured", "met"], rows)
