"""What the benchmarks measured of the product, each figure with where it stands: what `foldin.sizing` is held to."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["GB", "MB", "MEASURED", "Measured", "measured"]

GB, MB = 1e9, 1e6


@dataclass(frozen=True)
class Measured:
    """One figure of the benchmarks: 2 cores, 50,000 items, rank 64, 30 events a user unless `what` says otherwise."""

    what: str
    value: float
    unit: str
    source: str
    users: int = 0
    lists: bool = False
    events: int = 0
    """Of the micro-batch."""


_STREAM = "README, How fast: make bench-stream"
_AFTER = ", after 39 micro-batches of 10,000 events and 5 of 1,000,000"
MEASURED = (
    Measured("micro-batch", 1.13, "s", _STREAM, 250_000, False, 10_000),
    Measured("micro-batch", 1.10, "s", _STREAM, 1_000_000, False, 10_000),
    Measured("micro-batch", 1.17, "s", _STREAM, 4_000_000, False, 10_000),
    Measured("micro-batch", 2.14, "s", _STREAM, 250_000, True, 10_000),
    Measured("micro-batch", 2.01, "s", _STREAM, 1_000_000, True, 10_000),
    Measured("full rate", 48_834, "events/s", _STREAM, 250_000, False, 1_000_000),
    Measured("full rate", 21_829, "events/s", _STREAM, 1_000_000, False, 1_000_000),
    Measured("full rate", 14_769, "events/s", _STREAM, 4_000_000, False, 1_000_000),
    Measured("full rate", 7_027, "events/s", _STREAM, 250_000, True, 100_000),
    Measured("full rate", 6_932, "events/s", _STREAM, 1_000_000, True, 100_000),
    Measured("state built", 224_325, "events/s", _STREAM, 250_000, False),
    Measured("state built", 276_401, "events/s", _STREAM, 1_000_000, False),
    Measured("state built", 140_654, "events/s", _STREAM, 4_000_000, False),
    Measured("state built", 181_701, "events/s", _STREAM, 250_000, True),
    Measured("state built", 217_753, "events/s", _STREAM, 1_000_000, True),
    Measured("RocksDB memory", 75.6 * MB, "bytes", _STREAM, 250_000, False),
    Measured("RocksDB memory", 140 * MB, "bytes", _STREAM, 1_000_000, False),
    Measured("RocksDB memory", 230 * MB, "bytes", _STREAM, 4_000_000, False),
    Measured("RocksDB memory", 120 * MB, "bytes", _STREAM, 250_000, True),
    Measured("RocksDB memory", 140 * MB, "bytes", _STREAM, 1_000_000, True),
    Measured("local files of the state", 0.70 * GB, "bytes", _STREAM, 250_000, False),
    Measured("local files of the state", 2.26 * GB, "bytes", _STREAM, 1_000_000, False),
    Measured("local files of the state", 6.02 * GB, "bytes", _STREAM, 4_000_000, False),
    Measured("checkpoint", 3.14 * GB, "bytes", _STREAM + _AFTER, 250_000, False),
    Measured("checkpoint", 6.98 * GB, "bytes", _STREAM + _AFTER, 1_000_000, False),
    Measured("checkpoint", 19.83 * GB, "bytes", _STREAM + _AFTER, 4_000_000, False),
    Measured("freshness p50 at 1,000 events/s", 2.25, "s", _STREAM + ", jobs/stream.py on 2 cores", 250_000, True),
    Measured("commit of events p50 at 1,000 events/s", 1.14, "s", _STREAM + ", of the above", 250_000, True),
    Measured("kernel, rank 32", 164_345, "users/s a core", "CHANGELOG: make bench-kernel"),
    Measured("kernel, rank 64", 104_786, "users/s a core", "CHANGELOG: make bench-kernel"),
    Measured("kernel, rank 128", 61_618, "users/s a core", "CHANGELOG: make bench-kernel"),
    Measured("kernel, rank 256", 30_549, "users/s a core", "CHANGELOG: make bench-kernel"),
    Measured("kernel within the stream", 16e-6, "s a user", "CHANGELOG, What bounds the rate of the state"),
    Measured("fold-in and top-10 of all", 3.7, "s", "CHANGELOG: make bench-top-n", 20_000, True),
    Measured("file of 1,000,000 items x 128", 1_465 * 2.0**20, "bytes", "CHANGELOG: the kernel"),
    Measured("worker's own beside that file", 28 * MB, "bytes", "CHANGELOG: the kernel"),
    Measured("one fit, Online Retail, rank 40", 15.5, "s", "README, What fold-in is worth: Cost", 4_300),
    Measured("ingest, 541,909 rows of Online Retail", 25, "s", "CHANGELOG, A new ingest checkpoint", 4_300),
    Measured("ingest's state", 41, "bytes an id", "lib/foldin/ingest.py"),
    Measured("row of events, merged", 20, "bytes", "files of make bench-stream; its ids are short"),
    Measured("row of user_factors, merged", 263, "bytes", "files of make bench-stream"),
    Measured("row of recommendations, merged", 75, "bytes", "files of make bench-stream; its ids are short"),
)


def measured(what: str) -> Measured:
    """The one figure of that name."""
    (found,) = (figure for figure in MEASURED if figure.what == what)
    return found
