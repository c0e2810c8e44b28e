"""Submitted by a test: what `observe` counts of 100 rows, and what foldin says of it, when parts of the work are lost.

Prints a line of JSON for each way to lose them.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

from pyspark import TaskContext
from pyspark.sql import Column, DataFrame, Observation
from pyspark.sql import functions as F

from foldin.cli import Job, parser, run_job
from foldin.recomputing import Recomputations

GROUP = "tried"


def main(job: Job) -> None:
    context = job.spark.sparkContext
    context.setJobGroup(GROUP, "")
    jvm: Any = context._jsc

    def executors() -> set[str]:
        return set(jvm.sc().getExecutorMemoryStatus().keys().mkString(" ").split())

    def tried(name: str, between: Callable[[DataFrame], None], row: Callable[[Column], Column] = lambda id: id) -> None:
        observation = Observation()
        rows = job.spark.range(0, 100, 1, 2).select(row(F.col("id")).alias("id"))
        rows = rows.observe(observation, F.count(F.lit(1)).alias("rows")).repartition(2, "id").persist()
        recomputations = Recomputations(context, GROUP)
        recomputations.begin()
        between(rows)
        got = sum(r["count"] for r in rows.groupBy(F.col("id") % 3).count().collect())
        print(json.dumps({"name": name, "got": got, "found": recomputations.found(), "seen": observation.get["rows"]}))

    def lose_one(rows: DataFrame) -> None:
        rows.foreachPartition(lambda _: None)
        before = executors()
        jvm.sc().killAndReplaceExecutor("0")
        deadline = time.monotonic() + 60
        while not (before - executors() and len(executors()) == len(before)):
            assert time.monotonic() < deadline, (before, executors())
            time.sleep(0.1)

    @F.udf("long")
    def fails_once(number: int) -> int:
        task = TaskContext.get()
        assert task is None or task.attemptNumber() > 0 or task.partitionId() > 0, "the first attempt fails"
        return number

    tried("calm", lambda _: None)
    tried("a task fails", lambda _: None, fails_once)
    tried("an executor is lost between two jobs", lose_one)


if __name__ == "__main__":
    sys.exit(run_job(main, parser(__doc__)))
