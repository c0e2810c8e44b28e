"""Run a job and SIGKILL its whole process group at a named boundary.

    launcher.py ARM_FILE jobs/NAME.py OPTIONS...

The process dies when it comes to the boundary that ARM_FILE names, and renames the file to ARM_FILE.fired first:
"begin batch", "before append TABLE", "after append TABLE", "only append TABLE" (its twin, which is written at the same
time, is held back), "before write FOLDER", "after write FOLDER" (of the checkpoint: pins, accounts, adopted), "end
batch" (all is written, Spark has not yet committed the batch). An append of a training is "train TABLE"; of a model
that comes into force there are "ask", "catch up" and "promote".
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from foldin.fold_in import Checkpoint
from foldin.publishing import Publisher
from foldin.registry import Registry
from foldin.streaming import GracefulStop
from foldin.tables import Tables

ARM = Path(sys.argv[1])


TWINS = {"append user_factors", "append recommendations"}


def armed() -> str:
    return ARM.read_text() if ARM.exists() else ""


def boundary(name: str) -> None:
    """Die here if that is asked for."""
    if armed() == name:
        ARM.rename(f"{ARM}.fired")
        os.killpg(0, signal.SIGKILL)


def around(function: Callable[..., Any], name: Callable[..., str | None]) -> Callable[..., Any]:
    """`function` between two boundaries, named by its arguments (None: not one of ours)."""

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        what = name(*args, **kwargs)
        if what is None:
            return function(*args, **kwargs)
        boundary(f"before {what}")
        if what in TWINS and armed() == f"only {(TWINS - {what}).pop()}":
            time.sleep(3600)  # the twin's death is ours
        result = function(*args, **kwargs)
        boundary(f"after {what}")
        boundary(f"only {what}")
        return result

    return wrapped


def append_name(_tables: Any, _rows: Any, spec: Any, _transaction: Any = None, *, metadata: Any = None) -> str | None:
    # Only a batch's own commits say whose they are.
    return f"append {spec.name}" if metadata is not None else f"train {spec.name}"


def write_name(_checkpoint: Any, name: str, _text: Any, **_: Any) -> str | None:
    return f"write {name.partition('/')[0]}"


def batches(wrap: Callable[..., Any]) -> Callable[..., Any]:
    """`GracefulStop.wrap` with a boundary at each end of what it wraps."""

    def wrapped(stop: Any, process: Callable[[Any, int], None]) -> Any:
        def bounded(batch: Any, batch_id: int) -> None:
            boundary("begin batch")
            process(batch, batch_id)
            boundary("end batch")

        return wrap(stop, bounded)

    return wrapped


Tables.append = around(Tables.append, append_name)  # type: ignore[method-assign]
Registry.ask_for = around(Registry.ask_for, lambda *_, **__: "ask")  # type: ignore[method-assign]
Registry.promote = around(Registry.promote, lambda *_, **__: "promote")  # type: ignore[method-assign]
Publisher.catch_up = around(Publisher.catch_up, lambda *_, **__: "catch up")  # type: ignore[method-assign]
Checkpoint.write = around(Checkpoint.write, write_name)  # type: ignore[method-assign]
GracefulStop.wrap = batches(GracefulStop.wrap)  # type: ignore[method-assign]

sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
