"""What waits in a Delta table beyond a position, read from the table's log alone: no query, no Spark job.

Delta's own source reports neither the files nor the bytes that are outstanding (4.4.0: its metrics are empty).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from foldin.checkpoints import Checkpoint, Offset
from foldin.commits import Commit, parse_commit

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
    _commits: dict[int, Commit] = field(default_factory=dict)
    """By Delta version."""

    def beyond(self, offset: Offset) -> Waiting:
        """What a stream with this end offset has not read yet.

        In its first snapshot the number of files that are left is not in the log: `complete` is False then.
        """
        start = offset.position.version
        if offset.in_snapshot:
            start += 1
        for version in [v for v in self._commits if v < start]:
            del self._commits[version]
        version, read, gone = start, 0, False
        while version in self._commits or read < _COMMITS_A_LOOK:
            if version not in self._commits:
                text = self.log.read(f"{version:020d}.json")
                if text is None:
                    # The commit before what waits is there as long as the stream can go on.
                    gone = version == start > 0 and self.log.read(f"{start - 1:020d}.json") is None
                    break
                self._commits[version] = parse_commit(version, text, self.log.path)
                read += 1
            version += 1
        complete = read < _COMMITS_A_LOOK and not offset.in_snapshot and not gone
        files = size = 0
        since: float | None = None
        for at in range(start, version):
            new = self._commits[at].files
            if at == offset.position.version:
                new = new[offset.position.index + 1 :]  # those up to the index are read
            files, size = files + len(new), size + sum(file.bytes for file in new)
            if new and since is None:
                since = self._commits[at].at
        return Waiting(files, size, since, complete)
