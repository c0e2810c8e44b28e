"""One size of bench_stream: seconds a micro-batch against a copy stream and MERGE, sustained rates, the state."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyspark.sql import SparkSession
from stream_merge import MergeContender
from stream_queries import (
    Contender,
    FoldInContender,
    Phases,
    Progress,
    ProgressLog,
    QueryContender,
    await_quiet,
    resident_bytes,
)
from stream_report import Report, median, progress, quantile
from stream_world import Settings, World, folder_bytes

from foldin.config import load_config
from foldin.schemas import EVENTS
from foldin.tables import Tables

__all__ = ["SizePlan", "measure_size"]

_HEADER = ("stream", "batches", "median s", "p90 s", "CPU s", "× copy")
_TRIGGER = "fold_in.trigger_seconds=0.5"  # one stream that waits must not take the other's cores by asking for more


@dataclass(frozen=True)
class SizePlan:
    """What to measure at one size, and how often."""

    users: int
    warm_up: int
    batches: int
    merge_batches: int
    rate_batches: int
    rate_events: int
    rate_events_lists: int
    sections: frozenset[str]
    kinds: tuple[str, ...]
    """Of `factors` (alone) and `lists` (too), each with a state of its own."""


def measure_size(spark: SparkSession, settings: Settings, plan: SizePlan, report: Report) -> None:
    """All of one size, table by table."""
    progress(f"{plan.users:,} users: writing about {plan.users * 30:,} events")
    world = World.build(spark, settings, plan.users, "world")
    log = ProgressLog(spark)
    feeds = iter(range(100))

    def feed() -> Tables:
        """Tables whose `events` a stream beside the product's reads."""
        root = settings.work / f"feed{next(feeds)}"
        return Tables.of(spark, load_config(sets=[f"tables.root={root}"]).tables)

    states: list[list[str]] = []
    for kind in plan.kinds:
        lists = kind == "lists"
        progress(f"{plan.users:,} users, {kind}: bootstrap")
        seconds = world.bootstrap(lists=lists)
        log.drain("fold_in")
        config = world.config(_TRIGGER, f"fold_in.lists={str(lists).lower()}")
        product = FoldInContender(log, world.tables, config)
        last: Progress = {}
        if plan.sections & {"batch", "merge"}:
            last = _in_turns(world, log, plan, report, product, feed, lists=lists)
        if "sustained" in plan.sections:
            last = _sustained(world, plan, report, product, lists=lists)
        states.append(_state(world, kind, seconds, last or product.take(world.next_batch())))
        product.stop()
    header = ["kept for", "bootstrap s", "events/s", "users", "RocksDB memory", "SST files", "checkpoint", "RSS of all"]
    report.table(f"State of {plan.users:,} users, {plan.users * 30:,} events", header, states)
    report.say(f"Tables of {plan.users:,} users on disk: events {_size(folder_bytes(world.root / 'events'))}.")
    report.say()


def _in_turns(
    world: World, log: ProgressLog, plan: SizePlan, report: Report, product: Contender, feed: Any, *, lists: bool
) -> Progress:
    name = "top-10 too" if lists else "factors alone"
    copy = _copy_stream(log, feed())
    taken: dict[str, list[Progress]] = {"copy stream": [], name: []}
    phases = Phases()
    with phases.measured():
        for turn in range(plan.warm_up + plan.batches):
            batch = world.next_batch()
            for contender, label in ((copy, "copy stream"), (product, name)):
                taken[label].append(contender.take(batch))
            if turn == 0:  # the state has been loaded for it
                waited = await_quiet()
                progress(f"{plan.users:,} users: quiet after {waited:.0f} s")
            if turn % 5 == 0:
                shown = ", ".join(f"{label} {_seconds(rows[-1]):.2f} s" for label, rows in taken.items())
                progress(f"{plan.users:,} users, batch {turn}: {shown}")
        taken = {label: rows[plan.warm_up :] for label, rows in taken.items()}
        profile = phases.medians(plan.batches)
    copy.stop()
    rows = [_row(label, rows, taken["copy stream"]) for label, rows in taken.items()]
    report.values[f"seconds {name} {plan.users}"] = median([_seconds(p) for p in taken[name]])
    report.values[f"copy {name} {plan.users}"] = _ratio(taken[name], taken["copy stream"])
    report.table(f"{plan.users:,} users: seconds a micro-batch of 10,000 events", _HEADER, rows)
    _report_phases(report, f"{plan.users:,} users, {name}", taken[name], profile)
    if "merge" in plan.sections and not lists:
        _merge(world, log, plan, report, product, feed())
    return taken[name][-1]


def _report_phases(report: Report, of: str, taken: list[Progress], profile: list[tuple[str, float, float]]) -> None:
    """Spark's own phases, what the product does within addBatch, and the state."""
    rows = []
    for key in taken[-1]["durationMs"]:
        rows.append([key, f"{median([p['durationMs'].get(key, 0) for p in taken]) / 1000:.3f}", ""])
    rows += [[label, f"{seconds:.3f}", f"{cpu:.2f}"] for label, seconds, cpu in profile]
    for key in ("allUpdatesTimeMs", "commitTimeMs"):
        spent = median([p["stateOperators"][0].get(key, 0) for p in taken]) / 1000
        rows.append([f"state, summed over its tasks: {key}", f"{spent:.3f}", ""])
    report.table(f"{of}: where the seconds go (medians)", ["phase", "seconds", "CPU s"], rows)


def _merge(world: World, log: ProgressLog, plan: SizePlan, report: Report, product: Contender, feed: Tables) -> None:
    """Micro-batches of MERGE and of the product, in turns."""
    progress(f"{plan.users:,} users: building the table of histories for MERGE")
    merge = MergeContender(log, world, feed)
    merged, beside = [], []
    for turn in range(2 + plan.merge_batches):
        batch = world.next_batch()
        beside.append(product.take(batch))
        merged.append(merge.take(batch))
        progress(f"{plan.users:,} users, MERGE batch {turn}: {_seconds(merged[-1]):.2f} s")
    difference = merge.largest_difference()
    merge.stop()
    assert difference < 1e-5, f"MERGE and fold-in disagree by {difference}: the baseline does other work"
    merged, beside = merged[2:], beside[2:]
    ratio = _ratio(merged, beside)
    report.values[f"merge {plan.users}"] = ratio
    rows = [_row("MERGE", merged, []), _row("factors alone", beside, [])]
    report.table(f"{plan.users:,} users: MERGE and the product, in turns", _HEADER, rows)
    report.say(f"MERGE takes {ratio:.1f} times as long (median of the turns); the factors differ by {difference:.0e}.")
    report.say()


def _sustained(world: World, plan: SizePlan, report: Report, product: Contender, *, lists: bool) -> Progress:
    events = plan.rate_events_lists if lists else plan.rate_events
    taken = []
    for _ in range(2 + plan.rate_batches):
        taken.append(product.take(world.next_batch(events)))
        progress(f"{plan.users:,} users, batch of {events:,}: {_seconds(taken[-1]):.2f} s")
    kept = taken[2:]
    rate = sum(p["numInputRows"] for p in kept) / sum(_seconds(p) for p in kept)
    report.values[f"rate {'lists' if lists else 'factors'} {plan.users}"] = rate
    users = median([p["stateOperators"][0]["numRowsUpdated"] for p in kept])
    report.table(
        f"{plan.users:,} users: sustained rate, {'top-10 too' if lists else 'factors alone'}",
        ["events a batch", "users a batch", "median s", "events/s", "users/s"],
        [[f"{events:,}", f"{users:,.0f}", f"{median([_seconds(p) for p in kept]):.2f}", f"{rate:,.0f}",
          f"{rate * users / events:,.0f}"]],
    )  # fmt: skip
    return kept[-1]


def _copy_stream(log: ProgressLog, feed: Tables) -> QueryContender:
    """Delta to Delta, nothing else: what any stream of Spark's between two Delta tables costs."""
    query = (
        feed.stream(EVENTS, maxFilesPerTrigger=1)
        .writeStream.queryName("copy")
        .format("delta")
        .partitionBy(*EVENTS.partition_by)
        .option("checkpointLocation", feed.path("_checkpoints", "copy"))
        .trigger(processingTime="500 milliseconds")
        .start(feed.path("copied"))
    )
    return QueryContender(log, lambda batch: feed.append(batch, EVENTS), query)


def _state(world: World, kind: str, bootstrap: float, last: Progress) -> list[str]:
    operator: dict[str, Any] = last["stateOperators"][0]
    return [
        kind,
        f"{bootstrap:.1f}",
        f"{world.users * 30 / bootstrap:,.0f}",
        f"{operator['numRowsTotal']:,}",
        _size(operator["memoryUsedBytes"]),
        _size(operator["customMetrics"].get("rocksdbSstFileSize", 0)),
        _size(folder_bytes(Path(world.checkpoint))),
        _size(resident_bytes()),
    ]


def _row(label: str, taken: list[Progress], copies: list[Progress]) -> list[str]:
    seconds = [_seconds(p) for p in taken]
    times = f"{_ratio(taken, copies):.2f}" if copies and copies is not taken else ""
    cpu = median([p["cpu"] for p in taken])
    return [label, str(len(taken)), f"{median(seconds):.2f}", f"{quantile(seconds, 0.9):.2f}", f"{cpu:.2f}", times]


def _ratio(taken: list[Progress], copies: list[Progress]) -> float:
    """Median of the ratios within a turn."""
    return median([_seconds(a) / _seconds(b) for a, b in zip(taken, copies, strict=True)])


def _seconds(progress: Progress) -> float:
    return float(progress["batchDuration"]) / 1000


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
