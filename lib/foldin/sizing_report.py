"""What `python -m foldin size` prints: a page for a person, JSON, or settings to paste."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from foldin.measurements import measured
from foldin.sizing import MOST_PARTITIONS, Range, Size

__all__ = ["foldin_toml", "render_size", "size_to_dict", "spark_properties"]

_WIDTH = 116
_TOOLS = {1 << 30: "g", 1 << 20: "m"}


def render_size(size: Size) -> str:
    """The page; its predictions as "likely (from to)"."""
    return "\n".join(_lines(size))


def size_to_dict(size: Size) -> dict[str, Any]:
    """All of it, for JSON: seconds and bytes."""
    return asdict(size)


def foldin_toml(size: Size) -> str:
    """The settings of foldin, for a file that `--config` names."""
    return "\n".join(
        [
            "[train]",
            f"rank = {size.load.rank}",
            f"blocks = {min(1000, max(4, size.cores))}",
            "",
            "[ingest]",
            f"state_partitions = {min(MOST_PARTITIONS, size.ingest_cores)}",
            "",
            "[fold_in]",
            f"trigger_seconds = {size.trigger_seconds:.1f}",
            f'max_bytes_per_trigger = "{_spark_size(size.bytes_a_trigger)}"',
            f"state_partitions = {size.partitions}",
            f"lists = {str(size.load.lists).lower()}",
        ]
    )


def spark_properties(size: Size) -> str:
    """The settings of Spark for the fold-in stream, to be put below conf/cluster/foldin.properties."""
    settings = {
        "spark.cores.max": size.cores,
        "spark.executor.instances": size.executors,
        "spark.executor.cores": size.cores_an_executor,
        "spark.executor.memory": _spark_size(size.executor_heap),
        "spark.executor.memoryOverhead": _spark_size(size.executor_overhead),
        "spark.driver.memory": _spark_size(size.driver_heap),
        "spark.driver.memoryOverhead": _spark_size(size.driver_overhead),
        "spark.driver.maxResultSize": _spark_size(size.largest_result),
    }
    return "\n".join(f"{key} {value}" for key, value in settings.items())


def _lines(size: Size) -> Iterator[str]:
    load = size.load
    kind = "with lists" if load.lists else "factors alone"
    yield (
        f"{load.events_per_second:,g} events/s of {load.users:,} users with {load.events_per_user:,g} events each, "
        f"{load.items:,} items, rank {load.rank}, {kind}"
    )
    for title, rows in _parts(size):
        yield ""
        yield title
        for name, value, why in rows:
            indent = " " * 54
            wrapped = textwrap.wrap(why, _WIDTH - len(indent)) or [""]
            yield f"  {name:<23}{value:<29}{wrapped[0]}".rstrip()
            yield from (indent + line for line in wrapped[1:])
    yield ""
    yield "how far to trust it"
    for remark in size.remarks:
        yield from textwrap.wrap(remark, _WIDTH, initial_indent="  - ", subsequent_indent="    ")


_Rows = list[tuple[str, str, str]]


def _parts(size: Size) -> Iterator[tuple[str, _Rows]]:
    load = size.load
    latest = measured("freshness p50 at 1,000 events/s").value
    yield (
        "fold_in",
        [
            ("cores", f"{size.cores}", f"busy {size.busy:.0%} of the time at this rate"),
            ("state partitions", f"{size.partitions}", "fixed when the checkpoint is born: think of next year's rate"),
            ("trigger", f"{size.trigger_seconds} s", "a whole second at least: each micro-batch is a commit a table"),
            ("micro-batch", _seconds(size.micro_batch), "of what comes in a trigger's time"),
            ("full rate", _rate(size.full_rate), "in micro-batches of 100,000, when it catches up"),
            (
                "freshness p50",
                _seconds(size.freshness),
                f"from landing to list; {latest:g} s measured at 1,000/s on 2 cores",
            ),
            ("most a micro-batch", _spark_size(size.bytes_a_trigger), "max_bytes_per_trigger: five minutes' work"),
            ("state built", _minutes(size.build), "of a new or rebuilt checkpoint"),
        ],
    )
    way = "one mapped file a host" if size.memory_mapped else "one copy a Python worker"
    unit, name = _unit(size.factors)
    yield (
        "memory",
        [
            ("item factors", f"{_short(size.factors / unit)} {name}", f"items x rank x 12 bytes; {way}"),
            ("RocksDB", _bytes_range(size.rocksdb), "outside the heap, over all executors"),
            ("executors", f"{size.executors} x {size.cores_an_executor} cores", ""),
            ("executor heap", _spark_size(size.executor_heap), "spark.executor.memory"),
            ("executor overhead", _spark_size(size.executor_overhead), "RocksDB, Python workers, factors"),
            ("driver", f"{_spark_size(size.driver_heap)} + {_spark_size(size.driver_overhead)}",
             "heap + Python, which prepares up to three models"),
            ("largest result", _spark_size(size.largest_result), "spark.driver.maxResultSize: the item factors"),
        ],
    )  # fmt: skip
    yield (
        "disk",
        [
            ("local, executors", _bytes_range(size.local_disk), "the state's, over all executors (spark.local.dir)"),
            ("checkpoint", _bytes_range(size.checkpoint), "on the file system that all hosts see"),
            ("events a day", _bytes_range(size.events_a_day), "for good; at this rate all day, 20 to 80 bytes a row"),
            ("ingest's checkpoint", _bytes_range(size.ingest_state_a_day), "more every day, for good: 41 bytes an id"),
            ("user_factors a day", _bytes_range(size.factors_a_day), "kept until maintain retires their model"),
            ("recommendations a day", _bytes_range(size.lists_a_day), "the same"),
        ],
    )  # fmt: skip
    yield (
        "the other jobs",
        [
            ("cores of ingest", f"{size.ingest_cores}", "beside those of fold_in"),
            ("one fit", _minutes(size.fit), f"on {size.cores} cores, rank {load.rank}, 10 iterations"),
            ("train", _minutes(size.night), "with judging, which may fit twice more, and everyone's lists"),
            ("train keeps", _bytes_range(size.training_cache), "in memory, the rest on spark.local.dir"),
        ],
    )


def _spark_size(count: int) -> str:
    unit = next(unit for unit in _TOOLS if count >= unit and count % unit == 0)
    return f"{count // unit}{_TOOLS[unit]}"


def _seconds(span: Range) -> str:
    return _span(span, 1.0, " s")


def _minutes(span: Range) -> str:
    for unit, name in ((3600.0, " h"), (60.0, " min")):
        if span.likely >= 2 * unit:
            return _span(span, unit, name)
    return _span(span, 1.0, " s")


def _rate(span: Range) -> str:
    return f"{span.likely:,.0f}/s ({span.low:,.0f} to {span.high:,.0f})"


def _bytes_range(span: Range) -> str:
    unit, name = _unit(span.likely)
    return _span(span, unit, f" {name}") if span.likely else "none"


def _unit(count: float) -> tuple[float, str]:
    units = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
    return next((found for found in units if count >= found[0]), (1.0, "B"))


def _span(span: Range, unit: float, name: str) -> str:
    likely, low, high = (_short(value / unit) for value in (span.likely, span.low, span.high))
    return f"{likely}{name} ({low} to {high})"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"
