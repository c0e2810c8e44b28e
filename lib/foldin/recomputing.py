"""Whether Spark has computed a part of a micro-batch twice, as it does when a host is lost with what it had shuffled.

Tables and state do not mind: the part is the same. What is counted in passing (`observe`, a metric of an operator)
does: a task that has run twice has counted twice.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from typing import Any

from pyspark import SparkContext, SparkStageInfo

from foldin.errors import FoldinError

__all__ = ["Recomputations", "RecomputedError"]

_PATIENCE = 30.0
"""Seconds to wait until Spark's own record of a job that has ended says so; it is milliseconds behind."""


class RecomputedError(FoldinError):
    """A part of the batch was computed twice, so what was counted in passing is not what came in."""


@dataclass
class Recomputations:
    """Of the jobs of one group: a streaming query's are in the group that its run id names."""

    context: SparkContext
    group: str
    _before: frozenset[int] = field(default=frozenset(), init=False)

    def __post_init__(self) -> None:
        self._tracker = self.context.statusTracker()
        # Within the driver's own JVM nothing is lost that does not take the job with it.
        self._possible = not re.match(r"local(\[|$)", self.context.master or "")

    def begin(self) -> None:
        """From here on they count."""
        if self._possible:
            self._before = frozenset(self._tracker.getJobIdsForGroup(self.group))

    def found(self) -> bool:
        """Whether there was one since `begin`. The jobs since then must have ended."""
        if not self._possible:
            return False
        jobs = set(self._tracker.getJobIdsForGroup(self.group)) - self._before
        stages = {stage for job in jobs for stage in self._stages(job)}
        lineages: set[str] = set()
        for stage in filter(None, map(self._tracker.getStageInfo, stages)):
            if stage.numCompletedTasks == 0:
                continue  # skipped: what it gives is there
            if _ran_twice(stage) or (lineage := self._lineage(stage.stageId)) in lineages:
                return True
            lineages.add(lineage)
        return False

    def _stages(self, job: int) -> list[int]:
        deadline = time.monotonic() + _PATIENCE
        while (info := self._tracker.getJobInfo(job)) is not None and info.status == "RUNNING":
            if time.monotonic() > deadline:
                raise FoldinError(f"Spark's status store does not say after {_PATIENCE:.0f} s that job {job} has ended")
            time.sleep(0.005)
        return list(info.stageIds) if info is not None else []

    def _lineage(self, stage: int) -> str:
        """The ids of its RDDs: a stage of a later job that makes again what was lost in between has the same."""
        jvm: Any = self.context._jsc
        return str(jvm.sc().statusStore().lastStageAttempt(stage).rddIds().mkString(" "))


def _ran_twice(stage: SparkStageInfo) -> bool:
    """A second attempt makes what was lost; within an attempt, lost tasks are done again and count as completed twice.

    A task that failed, or was killed because a copy of it was faster, has counted nothing.
    """
    return stage.currentAttemptId > 0 or stage.numCompletedTasks > stage.numTasks
