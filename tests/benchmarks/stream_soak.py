"""Thousands of small micro-batches through one fold-in query: seconds, files and memory must not grow with time."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from pyspark.sql import SparkSession
from stream_queries import FoldInContender, ProgressLog, resident_bytes
from stream_report import Report, median, progress, quantile, slope
from stream_world import Settings, World

from foldin.compaction import Compactor
from foldin.config import load_config
from foldin.schemas import EVENTS

__all__ = ["SoakPlan", "measure_soak"]

_EVENTS = 100
_WARM_UP = 20
_BLOCK = 20
"""Micro-batches a point of the line that the slope is of."""


@dataclass(frozen=True)
class SoakPlan:
    """Users in the state, and micro-batches."""

    users: int
    batches: int


def measure_soak(spark: SparkSession, settings: Settings, plan: SoakPlan, report: Report) -> None:
    """Seconds by tenth of the run with the slope, and what lies in the folders at its start, middle and end."""
    world = World.build(spark, settings, plan.users, "world")
    log = ProgressLog(spark)
    world.bootstrap(lists=True)
    log.drain("fold_in")
    # The product's own settings: its upkeep is what is on trial.
    config = load_config(sets=[f"tables.root={world.root}"])
    product = FoldInContender(log, world.tables, config)
    seconds, counts = [], {}
    for _ in range(_WARM_UP):
        product.take(world.next_batch(_EVENTS))
    started = time.monotonic()
    # The ingest job looks after `events` so; here is none.
    with Compactor(world.tables, (EVENTS,), config.tables) as compactor:
        landed = compactor.after(lambda batch, _: seconds.append(product.take(batch)["batchDuration"] / 1000))
        for number in range(plan.batches):
            if number in (0, plan.batches // 2):
                counts[number] = _count(world.root)
            landed(world.next_batch(_EVENTS), number)
            if number % 50 == 49:
                left = (time.monotonic() - started) / (number + 1) * (plan.batches - number - 1)
                recent = median(seconds[-50:])
                progress(f"soak: batch {number + 1} of {plan.batches}, median {recent:.2f} s, {left / 60:.0f} min left")
        counts[plan.batches] = _count(world.root)
    product.stop()

    tenth = max(1, plan.batches // 10)
    parts = [seconds[n : n + tenth] for n in range(0, plan.batches, tenth)][:10]
    report.table(
        f"Soak: {plan.batches:,} micro-batches of {_EVENTS} events with top-10, {plan.users:,} users",
        ["tenth", *(str(n + 1) for n in range(len(parts)))],
        [["median s", *(f"{median(part):.2f}" for part in parts)],
         ["p90 s", *(f"{quantile(part, 0.9):.2f}" for part in parts)],
         ["max s", *(f"{max(part):.2f}" for part in parts)]],
    )  # fmt: skip
    if plan.batches < 3 * _BLOCK:
        report.say(f"No slope: it takes {3 * _BLOCK} micro-batches (--batches) for three medians of {_BLOCK}.")
    else:
        fitted, low, high = (value * plan.batches for value in slope(seconds, block=_BLOCK, seed=settings.seed))
        whole = median(seconds)
        report.values |= {"slope": low / whole, "slope_fitted": fitted / whole, "slope_high": high / whole}
        report.say(
            f"Growth over the whole run: {fitted:+.3f} s a micro-batch (95% interval {low:+.3f} to {high:+.3f}), that "
            f"is {fitted / whole:+.1%} ({low / whole:+.1%} to {high / whole:+.1%}) of the median {whole:.2f} s."
        )
    report.say()
    names = sorted(set().union(*counts.values()), key=list(counts[plan.batches]).index)
    rows = [[name, *(counts[at].get(name, "") for at in counts)] for name in names]
    report.table("Soak: files and memory", ["what", *(f"after {at:,}" for at in counts)], rows)


def _count(root: Path) -> dict[str, str]:
    """Files by folder, and resident memory."""
    found = {}
    for table in sorted(path for path in root.iterdir() if (path / "_delta_log").is_dir()):
        log = table / "_delta_log"
        data = sum(1 for file in table.rglob("*.parquet") if log not in file.parents)
        entries = sum(1 for file in log.rglob("*") if file.is_file() and not file.name.endswith(".crc"))
        found[f"{table.name}: data files"] = f"{data:,}"
        found[f"{table.name}: log files"] = f"{entries:,}"
    for folder in sorted(path for path in (root / "_checkpoints").rglob("*") if path.is_dir()):
        if folder.name in ("offsets", "commits", "pins", "state"):
            files = sum(1 for file in folder.rglob("*") if file.is_file() and not file.name.endswith(".crc"))
            found[f"{folder.parent.name}/{folder.name}: files"] = f"{files:,}"
    return found | {"resident memory": f"{resident_bytes() / 1e9:.2f} GB"}
