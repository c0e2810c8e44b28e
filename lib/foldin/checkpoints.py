"""A running query's checkpoint folder: its id, its offsets, and what foldin keeps beside them."""

from __future__ import annotations

import builtins
import json
import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from py4j.java_gateway import is_instance_of
from py4j.protocol import Py4JJavaError
from pyspark.sql import SparkSession

from foldin.errors import FoldinError, StateMismatchError
from foldin.schemas import Position

__all__ = ["PUSHES", "REPLAYS", "Checkpoint", "Offset"]

FINGERPRINT = "foldin.json"
REPLAYS = "replay_quarantine"
"""Folder of the checkpoints of runs over `quarantine`."""
PUSHES = "push"
"""Folder of the checkpoints of queries that push lists elsewhere."""

# What an object store says of itself: a file appears, whole, when its stream is closed; and, where that is asked of it,
# only if there is none by then (S3A from Hadoop 3.4.2 on).
_APPEARS_IN_CLOSE = "fs.option.create.in.close"
_IF_ABSENT = "fs.option.create.conditional.overwrite"


@dataclass(frozen=True)
class Offset:
    """End offset of a micro-batch over a Delta source."""

    position: Position
    in_snapshot: bool
    """The source still reads the table as it was at the query's start: histories are partial."""


@dataclass(frozen=True)
class Checkpoint:
    """A query's checkpoint folder, read and written through Hadoop's file system (any URI works)."""

    spark: SparkSession
    path: str

    def query_id(self) -> str:
        """The id that Spark gave the query with its checkpoint: new with every new checkpoint."""
        metadata = self.read_object("metadata")
        assert metadata is not None  # Spark writes it before the first batch
        return str(metadata["id"])

    def delta_offset(self, batch_id: int) -> Offset | None:
        """The end offset of a batch over one Delta source, or None where there is no such batch.

        Raises:
            StateMismatchError: the file is damaged.
        """
        data = self.first_offset(batch_id)
        if data is None:
            return None
        try:
            position = Position(int(data["reservoirVersion"]), int(data["index"]))
            return Offset(position, bool(data["isStartingVersion"]))
        except (KeyError, TypeError, ValueError) as error:
            raise self._damaged(f"offsets/{batch_id}", error) from error

    def first_offset(self, batch_id: int) -> dict[str, Any] | None:
        """The end offset of a batch over its query's first source, in that source's own words.

        None where there is no such batch, or where that source had nothing yet.

        Raises:
            StateMismatchError: the file is damaged.
        """
        name = f"offsets/{batch_id}"
        text = self.read(name) if batch_id >= 0 else None
        if text is None:
            return None
        try:
            line = text.split("\n")[2]  # version, metadata, then one line a source; a path may hold U+2028
        except IndexError as error:
            raise self._damaged(name, error) from error
        return None if line == "-" else self.parsed(name, line)

    def is_new(self) -> bool:
        """No batch was ever planned here."""
        return self.read("offsets/0") is None and self.read("metadata") is None

    def check_fingerprint(self, settings: dict[str, Any], *, rebuild: str) -> None:
        """Write down what is baked into the state, or compare it with what an earlier start wrote.

        Raises:
            StateMismatchError: names the setting, both values and how to rebuild.
        """
        born = self.read_object(FINGERPRINT)
        if born is None:
            if not self.is_new():
                raise StateMismatchError(f"{self.path} has no {FINGERPRINT}: not a checkpoint of foldin. {rebuild}")
            self.write(FINGERPRINT, json.dumps(settings, sort_keys=True))
            return
        for key in sorted(settings.keys() | born.keys()):
            if settings.get(key) != born.get(key):
                raise StateMismatchError(
                    f"{key} is {settings.get(key)!r}, but the state in {self.path} was built with {born.get(key)!r}. "
                    f"Set it back, or: {rebuild}"
                )

    def read_object(self, name: str) -> dict[str, Any] | None:
        """The JSON object that a file holds, or None where there is no such file.

        Raises:
            StateMismatchError: it holds none.
        """
        text = self.read(name)
        return self.parsed(name, text) if text is not None else None

    def parsed(self, name: str, text: str) -> dict[str, Any]:
        """The JSON object of a file whose text was read.

        Raises:
            StateMismatchError: it is none.
        """
        try:
            return dict(json.loads(text))
        except (TypeError, ValueError) as error:
            raise self._damaged(name, error) from error

    def _damaged(self, name: str, error: Exception) -> StateMismatchError:
        return StateMismatchError(
            f"{self.path}/{name} is damaged ({error}): delete {self.path} and start again, what it held is made anew"
        )

    def read(self, name: str) -> str | None:
        """The text of a file in the folder, or None where there is none."""
        fs, path = self._resolve(name)
        if local := _local(fs, path):
            try:
                return local.read_text(encoding="utf-8", errors="replace")
            except FileNotFoundError:
                return None
        try:
            stream = fs.open(path)
        except Py4JJavaError as error:
            if is_instance_of(self.spark.sparkContext._gateway, error.java_exception, "java.io.FileNotFoundException"):
                return None
            raise
        try:
            return str(self._jvm.org.apache.commons.io.IOUtils.toString(stream, "UTF-8"))
        finally:
            stream.close()

    def write(self, name: str, text: str) -> None:
        """Write a file whole: a crash leaves none or all of it.

        On an object store it appears when it is closed; elsewhere it is written under another name, then renamed.
        """
        fs, path = self._resolve(name)
        if local := _local(fs, path):
            partial_file = local.with_name(f".{local.name}.tmp")
            local.parent.mkdir(parents=True, exist_ok=True)
            with partial_file.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            partial_file.replace(local)
            return
        if fs.hasPathCapability(path, _APPEARS_IN_CLOSE):
            _fill(fs.create(path, True), text)
            return
        partial = self._jvm.org.apache.hadoop.fs.Path(path.getParent(), f".{path.getName()}.tmp")
        _fill(fs.create(partial, True), text)
        fs.delete(path, False)
        if not fs.rename(partial, path):
            raise FoldinError(f"cannot write {path.toString()}")

    def create(self, name: str, text: str) -> bool:
        """Write a file that must not be there yet; False if it is. Of several that try at once, one succeeds.

        On a local disk the file appears whole or not at all; elsewhere as atomically as the file system's own
        create-if-absent.
        """
        fs, path = self._resolve(name)
        if target := _local(fs, path):
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
            partial.write_text(text, encoding="utf-8")
            try:
                os.link(partial, target)
            except FileExistsError:
                return False
            finally:
                partial.unlink()
            return True
        at_close = fs.hasPathCapability(path, _IF_ABSENT)
        try:
            if at_close:
                _fill(fs.createFile(path).create().recursive().must(_IF_ABSENT, "true").build(), text)
            else:
                stream = fs.create(path, False)
        except Py4JJavaError:
            if fs.exists(path):
                return False
            raise
        if not at_close:
            _fill(stream, text)
        return True

    @property
    def creates_one(self) -> bool:
        """Of several that `create` the same file at once, one succeeds: S3 must be told to see to it."""
        fs, path = self._resolve(FINGERPRINT)
        return not fs.getScheme().startswith("s3") or bool(fs.hasPathCapability(path, _IF_ABSENT))

    def list(self, name: str) -> builtins.list[str]:
        """The names in a folder, without hidden ones; none where there is no such folder."""
        fs, path = self._resolve(name)
        if not fs.exists(path):
            return []
        names = [str(status.getPath().getName()) for status in fs.listStatus(path)]
        return [found for found in names if not found.startswith(".")]

    def newest(self, folder: str) -> int:
        """The highest number among the names in a folder of batches; -1 for none."""
        return max((int(name) for name in self.list(folder) if name.isdigit()), default=-1)

    def modified(self, name: str) -> float:
        """When a file was written, seconds since the epoch."""
        fs, path = self._resolve(name)
        return float(fs.getFileStatus(path).getModificationTime()) / 1000

    def modified_if_there(self, name: str) -> float | None:
        """The same; None where there is no such file."""
        fs, path = self._resolve(name)
        try:
            return self.modified(name)
        except Py4JJavaError:
            if fs.exists(path):
                raise
            return None

    def newest_within(self, name: str) -> float | None:
        """When the newest file of a folder was written; the folder's own time if it has none; None if it is gone.

        An object store has no folders: S3A says "now" of each.
        """
        fs, path = self._resolve(name)
        times = []
        try:
            files = fs.listFiles(path, True)
            while files.hasNext():
                times.append(float(files.next().getModificationTime()) / 1000)
        except Py4JJavaError:  # somebody deletes it at this moment
            if fs.exists(path):
                raise
            return None
        return max(times) if times else self.modified_if_there(name)

    def delete(self, name: str) -> None:
        """Delete a file or folder, if it is there."""
        fs, path = self._resolve(name)
        fs.delete(path, True)

    @property
    def _jvm(self) -> Any:
        return self.spark.sparkContext._jvm

    def _resolve(self, name: str) -> tuple[Any, Any]:
        path = self._jvm.org.apache.hadoop.fs.Path(f"{self.path}/{name}")
        return path.getFileSystem(self.spark._jsparkSession.sessionState().newHadoopConf()), path


def _fill(stream: Any, text: str) -> None:
    stream.write(bytearray(text, "utf-8"))
    if stream.hasCapability("hsync"):
        stream.hsync()
    stream.close()


def _local(fs: Any, path: Any) -> Path | None:
    """The path where it lies on this machine's own disk: Hadoop starts a process or two for every file there."""
    return Path(path.toUri().getPath()) if fs.getScheme() == "file" else None
