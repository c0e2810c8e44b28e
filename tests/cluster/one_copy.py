"""Submitted by a test: what two executors of one host see of a model that is past the size for a broadcast.

Prints a line of JSON for each of two tasks that run at the same time, on an executor each.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyspark import BarrierTaskContext

from foldin.cli import Job, parser, run_job
from foldin.registry import Registry
from foldin.shipping import ShippedModel


def main(job: Job) -> None:
    registry, context = Registry(job.tables), job.spark.sparkContext
    shipped = ShippedModel.ship(context, registry.load(registry.active_version()), threshold=0)

    def look(_: Iterator[int]) -> Iterator[dict[str, Any]]:
        BarrierTaskContext.get().barrier()
        items = shipped.value().items
        BarrierTaskContext.get().barrier()  # both have it now
        maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
        yield {
            "executor": str(Path.cwd()),
            "pid": os.getpid(),
            "items": len(items.factors),
            "mapped": sorted({(words[3], words[4]) for words in maps if words[-1].endswith(".items")}),
            "prefix": sys.prefix,
            "path": sys.path,
            "modules": {name: str(sys.modules[name].__file__) for name in ("foldin", "numpy", "pyarrow")},
            "for developers": [name for name in ("pytest", "hypothesis", "mypy") if importlib.util.find_spec(name)],
        }

    for found in context.parallelize(range(2), 2).barrier().mapPartitions(look).collect():
        print(json.dumps(found))


if __name__ == "__main__":
    sys.exit(run_job(main, parser(__doc__)))
