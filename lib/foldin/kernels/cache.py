"""Prepared item factors in one memory-mapped file a host, so that its workers hold one copy.

A file is named by the model's version and a digest of its factors, written once, and never changed: a reader that
finds it finds it complete. Layout: MAGIC, the length of a JSON header (8 bytes, little endian), the header
(version, objective, arrays with dtype, shape and offset), then the arrays, each at a multiple of 64.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from foldin.errors import InvalidInputError
from foldin.kernels.prepare import ItemFactors
from foldin.kernels.types import Objective

__all__ = ["MEMORY_MAP_BYTES", "cache_path", "cached", "load", "save"]

MEMORY_MAP_BYTES = 100 << 20
"""Size of the prepared factors (`ItemFactors.nbytes`) past which workers should share a file: each
Python worker of a host unpickles its own copy of a broadcast."""

MAGIC = b"foldin-items-1\n\0"
ALIGNMENT = 64
ARRAYS = ("factors", "gramian", "eigenvalues", "eigenvectors", "rotated")


def cache_path(directory: Path, model_version: str, digest: str = "") -> Path:
    """Where the factors of a model lie in a host's cache directory.

    Args:
        digest: of the factors, where one name may have been given to two models.
    """
    if not re.fullmatch(r"[\w.-]{1,200}", model_version) or model_version.startswith("."):
        raise InvalidInputError(f"model_version {model_version!r} cannot name a file")
    return Path(directory) / f"{model_version}{digest and '-' + digest}.items"


def save(items: ItemFactors, directory: Path) -> Path:
    """Write the factors, unless the file is there already, and return its path.

    Written under another name, flushed to disk and renamed, under a lock: whoever sees the file
    sees all of it, also after a crash. What a crash leaves behind is overwritten by the next writer.
    """
    path = cache_path(directory, items.model_version)
    cached(path.parent, items.model_version, lambda: items)
    return path


def cached(directory: Path, model_version: str, build: Callable[[], ItemFactors], digest: str = "") -> ItemFactors:
    """The memory-mapped factors of a model, built and written first if this host lacks them.

    Of several processes that call this at once one builds and the others wait for it.
    """
    path = cache_path(directory, model_version, digest)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                items = build()
                if items.model_version != model_version:
                    raise InvalidInputError(f"built model {items.model_version!r} for the cache of {model_version!r}")
                _write(items, path)
    return load(path)


def _write(items: ItemFactors, path: Path) -> None:
    arrays: dict[str, np.ndarray[Any, Any]] = {name: getattr(items, name) for name in ARRAYS}
    if items.item_ids is not None:
        arrays["item_ids"] = items.item_ids
    offset = 0
    places = {}
    for name, array in arrays.items():
        offset = -(-offset // ALIGNMENT) * ALIGNMENT
        places[name] = {"dtype": array.dtype.str, "shape": array.shape, "offset": offset}
        offset += array.nbytes
    header = json.dumps(
        {
            "model_version": items.model_version,
            "objective": asdict(items.objective),
            "arrays": places,
            "bytes": offset,
        }
    ).encode()
    unfinished = path.with_suffix(".unfinished")
    with unfinished.open("wb") as file:
        file.write(MAGIC + len(header).to_bytes(8, "little") + header)
        base = _first_array(len(header))
        for name, array in arrays.items():
            file.seek(base + places[name]["offset"])
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        file.truncate(base + offset)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def _first_array(header_bytes: int) -> int:
    start = len(MAGIC) + 8 + header_bytes
    return -(-start // ALIGNMENT) * ALIGNMENT


def load(path: Path) -> ItemFactors:
    """The factors in a file that `save` wrote, mapped read-only: pages are shared by all readers.

    Raises InvalidInputError for a file that is not one or is cut short.
    """
    with Path(path).open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise InvalidInputError(f"{path} does not hold prepared item factors")
        header_bytes = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(header_bytes))
        base = _first_array(header_bytes)
        size = os.fstat(file.fileno()).st_size
        if size != base + header["bytes"]:
            raise InvalidInputError(f"{path} has {size} bytes, not {base + header['bytes']}")
        whole = np.memmap(file, mode="r")
    arrays = {}
    for name, place in header["arrays"].items():
        dtype, start = np.dtype(place["dtype"]), base + place["offset"]
        count = int(np.prod(place["shape"]))
        # A plain view: np.memmap's own bookkeeping would cost at every slice.
        raw = whole[start : start + count * dtype.itemsize].view(np.ndarray)
        arrays[name] = raw.view(dtype).reshape(place["shape"])
    rotated = arrays.pop("rotated")
    items = ItemFactors(
        **{"item_ids": None, **arrays},
        objective=Objective(**header["objective"]),
        model_version=header["model_version"],
        path=str(path),
    )
    vars(items)["rotated"] = rotated  # fills the cached property
    return items
