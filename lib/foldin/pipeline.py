"""Ingest and fold-in in one process: one JVM that loads and compiles Spark once, and knows `events` when it is written.

A JVM of each query compiles the same 80,000 methods, on the cores that the micro-batches wait for, and reads what the
other has committed from its log. What the queries are is the same either way: checkpoints, leases, metrics.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace

from foldin.config import Config
from foldin.errors import reason_of
from foldin.fold_in import FoldIn
from foldin.ingest import Ingest
from foldin.mapping import Mapping
from foldin.streaming import GracefulStop
from foldin.tables import Tables

__all__ = ["Pipeline"]

log = logging.getLogger("foldin.pipeline")


class Pipeline:
    """The two queries of an installation, side by side.

    Attributes:
        ingest, fold_in: the queries; what they have done so far stands there.
    """

    def __init__(self, tables: Tables, config: Config, mapping: Mapping) -> None:
        self.ingest = Ingest(tables, config, mapping)
        # Each fixes the number of its state's partitions by a setting of its session.
        self.fold_in = FoldIn(replace(tables, spark=tables.spark.newSession()), config)

    def run(self, *, once: bool, stop: GracefulStop | None = None) -> None:
        """Take in what has landed, then fold it in (`once`); or both at once, until a signal or `stop`.

        When one of them ends by itself, the other finishes its batch and ends too: half a pipeline is not what somebody
        asked for, and whoever starts it again starts both.

        Raises:
            Exception: what ended the first of them, as `Ingest.run` or `FoldIn.run` raises it. What the other raised
                after that is logged.
        """
        stop = stop or GracefulStop()
        if once:
            with stop.at_signals():
                self.ingest.run(once=True, stop=stop.of_another())
                self.fold_in.run(once=True, stop=stop.of_another())
            return

        def run_one(query: Callable[..., object]) -> None:
            try:
                query(once=False, stop=stop.of_another())
            finally:
                stop.ask()

        with stop.at_signals(), ThreadPoolExecutor(2, thread_name_prefix="query") as pool:
            running = [pool.submit(run_one, query) for query in (self.ingest.run, self.fold_in.run)]
            failures = [error for done in as_completed(running) if (error := done.exception()) is not None]
        for later in failures[1:]:
            log.error("then the other query failed, too: %s", reason_of(later))
        if failures:
            raise failures[0]
