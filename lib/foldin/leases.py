"""One process a checkpoint or a job: a lease that its holder renews, and that outlives a killed holder for its term.

Two queries over one checkpoint would fold the same batch at once. The lease is a folder beside the checkpoint's
files. A holder creates the file of the next generation (of two that try, one succeeds), then renews by
files that carry the time in their names, so that no reader ever finds a file half written:

    lease/7                     who holds it
    lease/7-renewed-1732482000000
    lease/7-released            after an orderly end

A holder that died without a word is told apart where that is certain (same kernel, its processes are gone), and its
lease is free at once; on another host it is free when its term is over. Clocks of hosts must agree to well within a
term.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import os
import socket
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from foldin.checkpoints import Checkpoint
from foldin.errors import LeaseError
from foldin.tables import Tables

__all__ = ["Holder", "Lease", "holder_of"]

log = logging.getLogger("foldin.lease")

_FOLDER = "lease"


@dataclass(frozen=True)
class Holder:
    """Who holds a lease, or held it last.

    Attributes:
        generation: how often the lease had been taken, this time included.
        host, pid: where the holder runs.
        kernel: names the running kernel and process namespace, so that `processes` mean something; "" where unknown.
        processes: (pid, start time in clock ticks) of the holder and of its JVM.
        since: when it was taken, ISO 8601 UTC.
        term: seconds that it holds after each renewal.
        renewed: when it was last renewed, seconds since the epoch by the holder's clock.
        released: it was given back.
    """

    generation: int
    host: str
    pid: int
    kernel: str
    processes: tuple[tuple[int, int], ...]
    since: str
    term: float
    renewed: float = 0.0
    released: bool = False

    def remaining(self) -> float:
        """Seconds for which the lease still holds; 0 when it is free."""
        if self.released or self._is_dead():
            return 0.0
        return max(0.0, self.renewed + self.term - time.time())

    def _is_dead(self) -> bool:
        """Certain only on the same kernel: every process of the holder is gone (or its pid is another's now)."""
        return bool(self.kernel) and self.kernel == _kernel() and all(_started(p) != at for p, at in self.processes)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"


def holder_of(checkpoint: Checkpoint) -> Holder | None:
    """Who holds the checkpoint's lease, or held it last (`remaining` tells); None if nobody ever did."""
    names = checkpoint.list(_FOLDER)
    generations = [int(name) for name in names if name.isdigit()]
    if not generations:
        return None
    newest = max(generations)
    text = checkpoint.read(f"{_FOLDER}/{newest}")
    if text is None:  # taken over in this very moment
        return holder_of(checkpoint)
    # Empty only where a file system cannot create a file whole, and the holder died (or is) between the two steps.
    name = f"{_FOLDER}/{newest}"
    data = checkpoint.parsed(name, text) if text else _unnamed(checkpoint.modified(name))
    prefix = f"{newest}-renewed-"
    renewed = max([data.pop("renewed", 0.0)] + [int(n[len(prefix) :]) / 1000 for n in names if n.startswith(prefix)])
    data["processes"] = tuple((int(pid), int(at)) for pid, at in data["processes"])
    return Holder(**data | {"generation": newest, "renewed": renewed, "released": f"{newest}-released" in names})


def _unnamed(renewed: float) -> dict[str, Any]:
    unknown: dict[str, Any] = {"host": "an unknown host", "pid": 0, "kernel": "", "processes": (), "since": "its start"}
    return unknown | {"term": 30.0, "renewed": renewed}


class Lease:
    """A checkpoint's lease, held for the length of a `with` block and renewed by a thread of its own.

    Raises:
        LeaseError: on entering, when another process holds it.
    """

    def __init__(self, checkpoint: Checkpoint, term: float) -> None:
        self.checkpoint, self.term = checkpoint, term
        self._generation = 0
        self._renewed = 0.0  # by the monotonic clock
        self._ended = threading.Event()
        self._lost: str | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Lease:
        before = holder_of(self.checkpoint)
        if before is not None and (seconds := before.remaining()):
            raise LeaseError(
                f"{self.checkpoint.path} is in use by {before}; if that process is dead, "
                f"its lease is over in {seconds:.0f} s"
            )
        self._generation = before.generation + 1 if before is not None else 1
        now = time.time()
        jvm: Any = self.checkpoint.spark.sparkContext._jvm
        pids = (os.getpid(), int(jvm.java.lang.ProcessHandle.current().pid()))
        me = Holder(
            generation=self._generation,
            host=socket.gethostname(),
            pid=os.getpid(),
            kernel=_kernel(),
            processes=tuple((pid, _started(pid)) for pid in pids),
            since=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            term=self.term,
            renewed=now,
        )
        mine = f"{_FOLDER}/{self._generation}"
        if not self.checkpoint.create(mine, json.dumps(asdict(me))):
            raise LeaseError(f"{self.checkpoint.path} was taken by another process at the same moment")
        if self._newest() != self._generation:  # others came and went since we looked, and cleared our number away
            self.checkpoint.delete(mine)
            raise LeaseError(f"{self.checkpoint.path} was taken by another process at the same moment")
        self._renewed = time.monotonic()
        if before is not None and not before.released:
            log.info("%s: took over the lease of %s", self.checkpoint.path, before)
        for name in self.checkpoint.list(_FOLDER):
            if name.partition("-")[0] != str(self._generation):
                self.checkpoint.delete(f"{_FOLDER}/{name}")
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        assert self._thread is not None
        self._thread.join(self.term)
        if self._lost is None:
            self.checkpoint.create(f"{_FOLDER}/{self._generation}-released", "")

    @classmethod
    def of_job(cls, tables: Tables, job: str, term: float) -> Lease:
        """Of a job without a checkpoint that must not run twice at once on the same tables."""
        # `_jobs`: no query can be named so.
        return cls(Checkpoint(tables.spark, tables.path("_checkpoints", "_jobs", job)), term)

    def check(self) -> None:
        """Still the holder?

        Raises:
            LeaseError: somebody else is, or may be by now, since the term went by without a renewal.
        """
        if self._lost is None and time.monotonic() - self._renewed > self.term:
            self._lost = f"was not renewed for {time.monotonic() - self._renewed:.0f} s, its term is {self.term:.0f}"
        if self._lost is not None:
            raise LeaseError(f"the lease on {self.checkpoint.path} {self._lost}")

    def _newest(self) -> int:
        return max(0, self.checkpoint.newest(_FOLDER))

    def _keep(self) -> None:
        previous: str | None = None
        while not self._ended.wait(self.term / 3):
            try:
                if self._newest() != self._generation:
                    self._lost = "was taken over by another process"
                    return
                begun = time.monotonic()
                name = f"{_FOLDER}/{self._generation}-renewed-{round(time.time() * 1000)}"
                self.checkpoint.create(name, "")
                self._renewed = begun
                if previous is not None:
                    self.checkpoint.delete(previous)
                previous = name
            except Exception as error:  # of the file system; `check` ends the query when the term is over
                log.warning("%s: the lease could not be renewed: %s", self.checkpoint.path, error)


def _kernel() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _started(pid: int) -> int:
    """When a process started, in clock ticks since boot; -1 if there is none (a zombie is none)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return -1
    return -1 if fields[0] in "ZX" else int(fields[19])
