"""The files of a folder that a query reads: those that Spark's file source has given to it, and those that wait."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from pyspark.sql import SparkSession

from foldin.backlog import Waiting
from foldin.checkpoints import Checkpoint

__all__ = ["AS_PATHS", "LANDING", "FileBacklog", "FileLog", "input_paths", "plain_path"]

_FOLDER = "sources/0"
_COMPACT = ".compact"
_NUMBER = re.compile(r'"batchId":(\d+)\}$')

LANDING = "landing.json"
"""In the checkpoint: which files of which folder the query reads, for those who look at it from outside."""


AS_PATHS = {"__globPaths__": "false", "recursiveFileLookup": "true"}
"""Options to read files by path, where names may look like patterns. Beside one that does, Spark 4.2 reads all others
twice (SPARK-58518), unless it is to look into folders."""


def plain_path(uri: str) -> str:
    """A URI's path, for comparison: Spark writes file:/x and file:///x, encoded and not."""
    return re.sub(r"^file:/+", "/", unquote(uri))


def input_paths(spark: SparkSession, files: Any) -> list[str]:
    """The files of one of Spark's relations or file indexes (in Java), in its order, as `plain_path` has them."""
    # One call for all of them: going through Java's array would take one a file.
    jvm: Any = spark._jvm
    text = jvm.org.apache.hadoop.util.StringUtils.join("\n", files.inputFiles())
    return [plain_path(path) for path in text.split("\n") if path]


@dataclass(frozen=True)
class FileLog:
    """What Spark's file source has written down of the files that it gave to batches. Paths are URIs, encoded."""

    checkpoint: Checkpoint

    def end(self, batch_id: int) -> int:
        """The entry of the log up to which a batch has read; -1 where there is no such batch."""
        offset = self.checkpoint.first_offset(batch_id)
        return int(offset["logOffset"]) if offset is not None else -1

    def of_batch(self, batch_id: int) -> list[str]:
        """The files of a batch."""
        return list(self.between(self.end(batch_id - 1), self.end(batch_id)))

    def between(self, start: int, end: int) -> Iterator[str]:
        """The files of the entries after `start` up to `end`."""
        # Every tenth file holds all entries so far; earlier ones are gone after a while.
        names = self.checkpoint.list(_FOLDER) if start + 1 < end else []
        whole = [int(name.removesuffix(_COMPACT)) for name in names if name.endswith(_COMPACT)]
        if base := max((number for number in whole if start < number <= end), default=None):
            yield from self._after(start, base)
            start = base
        for number in range(start + 1, end + 1):
            yield from self._after(number - 1, number)

    def _after(self, start: int, number: int) -> Iterator[str]:
        text = self.checkpoint.read(f"{_FOLDER}/{number}")
        if text is None:
            text = self.checkpoint.read(f"{_FOLDER}/{number}{_COMPACT}") or ""
        for line in text.split("\n")[1:]:  # not `splitlines`: a path may hold U+2028
            entry = _NUMBER.search(line)
            if entry is not None and int(entry[1]) > start:
                yield str(json.loads(line)["path"])


@dataclass
class FileBacklog:
    """The files of a folder that a query has not read yet; each entry of its log is read once."""

    checkpoint: Checkpoint
    folder: str
    pattern: str
    _read: set[str] = field(default_factory=set)
    _until: int = -1
    _waiting: dict[str, tuple[int, float]] = field(default_factory=dict)
    """By path: bytes, and since when."""

    def beyond(self, end: int, since: float) -> Waiting:
        """What is in the folder and not in the log.

        Args:
            end: the entry of the log up to which the query has read.
            since: of a file that is seen to wait for the first time it is not known that it waited before that (seconds
                since the epoch): its own time may be of years before it landed.
        """
        self._read.update(map(plain_path, FileLog(self.checkpoint).between(self._until, end)))
        self._until = max(self._until, end)
        paths, statuses = self._listed()
        found = set[str]()
        for at, path in enumerate(paths):
            if path in self._read:
                continue
            found.add(path)
            if path not in self._waiting:
                status = statuses.apply(at)
                self._waiting[path] = (int(status.getLen()), max(since, int(status.getModificationTime()) / 1000))
        for path in self._waiting.keys() - found:
            del self._waiting[path]
        return Waiting(
            len(found),
            sum(size for size, _ in self._waiting.values()),
            min((first for _, first in self._waiting.values()), default=None),
        )

    def _listed(self) -> tuple[list[str], Any]:
        """Paths, and what the file system says of each, as Spark's file source lists them: no file is opened."""
        options = {"pathGlobFilter": self.pattern, "recursiveFileLookup": "true"}
        frame = self.checkpoint.spark.read.format("binaryFile").options(**options).load(self.folder)
        files = frame._jdf.queryExecution().analyzed().relation().location()
        return input_paths(self.checkpoint.spark, files), files.allFiles()
