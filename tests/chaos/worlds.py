"""One installation with a past: the log that lands in it, its tables as this process sees them, its jobs."""

from __future__ import annotations

import copy
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path

from pyspark.sql import SparkSession

from chaos.logs import Log
from chaos.processes import Installation, Job, settings_of
from foldin.config import Config, load_config
from foldin.ingest import Ingest
from foldin.mapping import load_settings
from foldin.tables import Tables
from foldin.training import train


@dataclass
class World:
    """One installation, the log that lands in it, and its jobs."""

    spark: SparkSession
    installation: Installation
    log: Log
    models: tuple[str, str]
    """The active model and a candidate."""
    more: tuple[str, ...] = ()
    names: list[str] = field(default_factory=list)
    """Files landed since the copy was made."""
    jvm: str = ""
    """Options of its jobs' JVMs."""

    @property
    def settings(self) -> tuple[str, ...]:
        return settings_of(self.installation.root, self.installation.landing, *self.more)

    @property
    def config(self) -> Config:
        return load_config(sets=self.settings)

    @property
    def tables(self) -> Tables:
        return Tables.of(self.spark, self.config.tables)

    def land(self, lines: int = 40) -> str:
        """The log's next file; its name."""
        name = f"{len(self.names):04d}.json"
        self.installation.land(name, self.log.file(lines))
        self.names.append(name)
        return name

    def waiting(self) -> int:
        """Files that no micro-batch of ingest has begun with yet."""
        return self.installation.waiting(self.names, "ingest")

    def job(self, name: str, *more: str, arm: bool = False) -> Job:
        """Not started yet."""
        folder = self.installation.root.parent
        armed = folder / f"{name}.arm" if arm else None
        return Job(name, (*self.settings, *more), folder / f"{name}.log", armed, jvm=self.jvm)

    def ingest(self) -> Ingest:
        """In this process."""
        config, mapping = load_settings(sets=self.settings)
        return Ingest(self.tables, config, mapping)


def past_of(spark: SparkSession, folder: Path) -> World:
    """Ingested events, an active model and a candidate."""
    (folder / "landing").mkdir()
    world = World(spark, Installation(folder / "tables", folder / "landing"), Log(seed=7), ("", ""))
    world.land(2500)
    world.ingest().run(once=True)
    active = train(world.tables, world.config)
    candidate = train(world.tables, load_config(sets=[*world.settings, "train.seed=43"]), activate=False)
    world.models = (active.model_version, candidate.model_version)
    return world


def copy_of(past: World, folder: Path, *more: str, landing: Path | None = None) -> World:
    """The past without its checkpoints, in another folder, with a landing folder of its own."""
    shutil.copytree(past.installation.root, folder / "tables", ignore=shutil.ignore_patterns("_checkpoints"))
    landing = landing or folder / "landing"
    landing.mkdir(exist_ok=True)
    there = Installation(folder / "tables", landing)
    return World(past.spark, there, copy.deepcopy(past.log), past.models, more, jvm=past.jvm)


def archive_of(past: World, folder: Path) -> Path:
    """Spark's classes as a job has loaded and verified them, for the JVMs that are started later to map."""
    archive = folder / "classes.jsa"
    job = copy_of(past, folder / "world").job("fold_in")
    job = replace(job, jvm=f"-XX:ArchiveClassesAtExit={archive} -Xlog:cds*=off")  # it names each class that it leaves
    assert job.start("--once").wait_for_death() == 0, job.said()[-3000:]
    return archive
