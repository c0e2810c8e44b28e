"""A model on its way to the workers: by broadcast, or past a size through one memory-mapped file a host.

Every Python worker unpickles a broadcast for itself. Past MEMORY_MAP_BYTES that is more than a host
should hold once a core, so there the first worker of a host writes the prepared factors to a file named by the
model's version and a digest, and all its workers map that one copy. The version alone is not enough: a training that
is made again after a kill has the name of the dead one, and two installations may name their models alike.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pyspark import Broadcast, SparkContext

from foldin.kernels import MEMORY_MAP_BYTES, ItemFactors, cached
from foldin.registry import Model

__all__ = ["TRIAL", "ShippedModel", "host_cache_dir"]

_DAYS_KEPT = 2

TRIAL = "trial-"
"""How the name of a model begins that is looked at and thrown away."""

_loaded: dict[tuple[str, str, bool], Model] = {}  # the one model of this worker process


@dataclass(frozen=True)
class ShippedModel:
    """What a task's closure carries; small to pickle, whatever the model's size."""

    version: str
    digest: str
    parts: Broadcast[dict[str, Any]]
    """Model's fields but its item factors."""
    items: Broadcast[ItemFactors]
    memory_mapped: bool

    @classmethod
    def ship(cls, context: SparkContext, model: Model, *, threshold: int = MEMORY_MAP_BYTES) -> ShippedModel:
        """Broadcast a model; its factors are unpickled by each worker, or past `threshold` bytes once a host."""
        parts = {f.name: getattr(model, f.name) for f in fields(model) if f.name != "items"}
        mapped = model.items.nbytes > threshold
        return cls(model.version, _digest(model), context.broadcast(parts), context.broadcast(model.items), mapped)

    def value(self) -> Model:
        """The model, in a worker: kept for the tasks that follow, in place of the version before it."""
        key = (self.version, self.digest, self.memory_mapped)
        if key not in _loaded:
            if self.memory_mapped:
                items = cached(host_cache_dir(), self.version, self._build, self.digest)
            else:
                items = self.items.value
            _loaded.clear()
            _loaded[key] = Model(items=items, **self.parts.value)
        return _loaded[key]

    def unpersist(self) -> None:
        """Give up the broadcasts."""
        self.parts.unpersist()
        self.items.unpersist()

    def _build(self) -> ItemFactors:
        """Only the worker that writes the host's file unpickles the broadcast; it also clears away old files."""
        now = time.time()
        for pattern in ("*.items", "*.unfinished"):  # the latter of a worker that was killed
            for file in host_cache_dir().glob(pattern):
                kept = 3600 if file.name.startswith(TRIAL) else _DAYS_KEPT * 86_400
                with suppress(FileNotFoundError):  # another worker clears up, too
                    if file.stat().st_mtime < now - kept:
                        file.unlink()  # who has it mapped keeps it
        return self.items.value


def _digest(model: Model) -> str:
    """Of the factors and of the items that they belong to: a second for a few gigabytes."""
    found = hashlib.blake2b(model.item_hashes.data, digest_size=8)
    found.update(model.items.factors.data)
    return found.hexdigest()


def host_cache_dir() -> Path:
    """This user's folder for model files on this host, readable by nobody else."""
    folder = Path(tempfile.gettempdir()) / f"foldin-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to somebody else")
    return folder
