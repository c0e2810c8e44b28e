"""Ingest and fold-in in one process: one JVM that loads and compiles Spark once, and knows `events` when it is written.

A JVM of each query compiles the same 80,000 methods, on the cores that the micro-batches wait for, and reads what the
other has committed from its log. What the queries are is the same either way: checkpoints, leases, metrics.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue

from pyspark.java_gateway import ensure_callback_server_started

from foldin.config import Config
from foldin.errors import AccountingError, ConfigError, StateMismatchError, reason_of
from foldin.fold_in import FoldIn
from foldin.ingest import Ingest
from foldin.mapping import Mapping
from foldin.streaming import GracefulStop
from foldin.tables import Tables

__all__ = ["Pipeline"]

log = logging.getLogger("foldin.pipeline")

_FINAL = (ConfigError, StateMismatchError, AccountingError)
"""What a person must mend: who starts the job again after other failures must not miss it."""
_PATIENCE = 600.0
"""Seconds for one query's batch after the other has failed; should it hang, both would stand still for ever."""


class Pipeline:
    """The two queries of an installation, side by side.

    Attributes:
        ingest, fold_in: the queries; what they have done so far stands there.
    """

    def __init__(self, tables: Tables, config: Config, mapping: Mapping) -> None:
        self.ingest = Ingest(tables, config, mapping)
        self.fold_in = FoldIn(tables, config)

    def run(self, *, once: bool, stop: GracefulStop | None = None) -> None:
        """Take in what has landed, then fold it in (`once`); or both at once, until a signal or `stop`.

        When one of them ends by itself, the other finishes its batch and ends too: half a pipeline is not what somebody
        asked for, and whoever starts it again starts both.

        Raises:
            Exception: what ended the first of them, as `Ingest.run` or `FoldIn.run` raises it, or what ended the other
                if a person must mend that alone. The log has both.
        """
        stop = stop or GracefulStop()
        with stop.at_signals():
            if not once:
                self._run_both(stop)
                return
            self.ingest.run(once=True, stop=stop.of_another())
            if not stop.asked:
                self.fold_in.run(once=True, stop=stop.of_another())

    def _run_both(self, stop: GracefulStop) -> None:
        ended: SimpleQueue[BaseException | None] = SimpleQueue()

        def run_one(name: str, query: Callable[..., object]) -> None:
            failure: BaseException | None = None
            try:
                query(once=False, stop=stop.of_another())
            except BaseException as error:
                failure = error
                log.error("%s has ended, and so does the other query after its batch: %s", name, reason_of(error))
                log.debug("%s", name, exc_info=True)
            stop.ask()
            ended.put(failure)

        # pyspark starts it with the first foreachBatch, and two that do so at once would be in each other's way.
        ensure_callback_server_started(self.ingest.tables.spark.sparkContext._gateway)  # type: ignore[no-untyped-call]
        for name, query in ((self.ingest.name, self.ingest.run), ("fold_in", self.fold_in.run)):
            # Daemons, so that one that hangs keeps no interpreter from its end.
            threading.Thread(target=run_one, args=(name, query), name=name, daemon=True).start()
        failures = [ended.get()]
        try:
            failures.append(ended.get(timeout=_PATIENCE if failures[0] is not None else None))
        except Empty:
            log.error("the other query is still in its batch after %.0f s, and is left there", _PATIENCE)
        found = [failure for failure in failures if failure is not None]
        if found:
            raise next((failure for failure in found if isinstance(failure, _FINAL)), found[0])
