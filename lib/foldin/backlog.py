"""What waits in a Delta table beyond a position, read from the table's log alone: no query, no Spark job.

Delta's own source reports neither the files nor the bytes that are outstanding (4.4.0: its metrics are empty).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from foldin.checkpoints import Checkpoint, Offset

__all__ = ["DeltaBacklog", "Waiting"]

_COMMITS_A_LOOK = 200  # about 2 ms each; a long backlog is read over several looks


@dataclass(frozen=True)
class Waiting:
    """Appended files that a stream has not read yet; at least as many, while `complete` is False.

    Attributes:
        files, bytes: how much; commits without new rows (OPTIMIZE, an erasure) do not count, as for the stream.
        since: when the first of them was committed, seconds since the epoch; None where nothing is known to wait.
        complete: the log was read to its end.
    """

    files: int = 0
    bytes: int = 0
    since: float | None = None
    complete: bool = True

    @property
    def nothing(self) -> bool:
        """The stream has read everything."""
        return self.complete and not self.files


@dataclass
class DeltaBacklog:
    """The log of one Delta table, each commit read once.

    Attributes:
        log: the table's `_delta_log` folder.
    """

    log: Checkpoint
    _commits: dict[int, tuple[list[int], float]] = field(default_factory=dict)
    """Delta version: (bytes of each appended file, when it was committed)."""

    def beyond(self, offset: Offset) -> Waiting:
        """What a stream with this end offset has not read yet.

        In its first snapshot the number of files that are left is not in the log: `complete` is False then.
        """
        start = offset.position.version
        if offset.in_snapshot:
            start += 1
        for version in [v for v in self._commits if v < start]:
            del self._commits[version]
        version, read = start, 0
        while version in self._commits or read < _COMMITS_A_LOOK:
            if version not in self._commits:
                text = self.log.read(f"{version:020d}.json")
                if text is None:
                    break
                self._commits[version] = _appended(text)
                read += 1
            version += 1
        complete = read < _COMMITS_A_LOOK and not offset.in_snapshot
        files = size = 0
        since: float | None = None
        for at in range(start, version):
            sizes, committed = self._commits[at]
            if at == offset.position.version:
                sizes = sizes[offset.position.index + 1 :]  # those up to the index are read
            files, size = files + len(sizes), size + sum(sizes)
            if sizes and since is None:
                since = committed
        return Waiting(files, size, since, complete)


def _appended(commit: str) -> tuple[list[int], float]:
    """Sizes of the files that a commit appends (none where it changes committed rows: it is skipped), and its time."""
    sizes, committed, changes = [], 0.0, False
    for line in commit.splitlines():
        action: dict[str, Any] = json.loads(line) if line.startswith(('{"add"', '{"remove"', '{"commitInfo"')) else {}
        if "commitInfo" in action:
            committed = action["commitInfo"].get("timestamp", 0) / 1000
        elif "add" in action and action["add"]["dataChange"]:
            sizes.append(int(action["add"]["size"]))
        elif "remove" in action and action["remove"]["dataChange"]:
            changes = True
    return ([] if changes else sizes), committed
