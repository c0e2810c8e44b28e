"""The body of `jobs/evaluate.py`: a log from files, the generator or the tables; a report in a folder."""

from __future__ import annotations

import argparse
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path

from pyspark.sql import DataFrame

from foldin.checkpoints import Checkpoint
from foldin.cli import Job
from foldin.config import Config
from foldin.demo.staging import fitting_mapping
from foldin.demo.synthetic import SIZES, SyntheticLog
from foldin.errors import ConfigError, PrerequisiteError
from foldin.evaluation.plan import Plan
from foldin.evaluation.report import RAW, check_folder, summary, write_report
from foldin.evaluation.run import evaluate
from foldin.evaluation.worked import worked_example
from foldin.ingest import Ingest
from foldin.mapping import Mapping
from foldin.schemas import EVENTS
from foldin.session import is_local
from foldin.tables import Tables

__all__ = ["check_options", "evaluate_job", "take_in"]


def check_options(options: argparse.Namespace) -> None:
    """Check what can be checked before Spark starts; find the mapping of files that say by their header what they are.

    Raises:
        ConfigError: an option breaks a rule, or no shipped mapping fits the files.
        PrerequisiteError: matplotlib is not installed.
    """
    if options.batch_events is None:
        options.batch_events = 0 if options.batch_seconds else Plan.batch_events
    options.batch_seconds = options.batch_seconds or 0.0
    options.plan = Plan(**{f.name: getattr(options, f.name) for f in fields(Plan)})
    check_folder(options.report)
    if options.data is not None and options.mapping is None:
        options.mapping = fitting_mapping(options.data)
    if options.data is not None and not options.data.is_dir():
        raise ConfigError(f"--data {options.data}: there is no such folder")
    if options.generated is not None and options.mapping is not None:
        raise ConfigError("--generated needs no --mapping: a generated log follows the event contract")
    if find_spec("matplotlib") is None:
        raise PrerequisiteError("the report needs matplotlib: pip install 'matplotlib>=3.8'")


def evaluate_job(job: Job) -> None:
    """Replay, write the report, print what it says."""
    options, made = job.options, None
    with _work(job) as work:
        if options.generated is not None:
            made = SyntheticLog(SIZES[options.generated])
            landing = Checkpoint(job.spark, f"{work}/landing")
            with tempfile.TemporaryDirectory(prefix="foldin-evaluate-") as here:
                for file in made.write(Path(here)):
                    landing.write(file.name, file.read_text(encoding="utf-8"))
            tables, events = take_in(job, work, landing.path, job.mapping)
        elif options.data is not None:
            tables, events = take_in(job, work, str(options.data), job.mapping)
        elif job.tables.exists(EVENTS):
            tables, events = job.tables, job.tables.read(EVENTS)
        else:
            raise ConfigError(f"no events under {job.tables.root}: name a log by --data FOLDER or --generated SIZE")
        title = options.title or (f"a generated log ({options.generated})" if made else _title(job))
        found = evaluate(tables, events, job.config, options.plan, title, made=made)
        example = worked_example(found)
    raw = RAW if _on_this_machine(job) else job.tables.path("_reports", secrets.token_hex(6))
    report = write_report(options.report, found.replayed, example, raw=raw)
    rows = job.spark.createDataFrame(found.replayed.rows).coalesce(1)
    path = str((options.report / RAW).absolute()) if raw == RAW else raw
    rows.write.format("delta").mode("overwrite").option("overwriteSchema", True).save(path)
    print(summary(found.replayed))
    print(f"report: {report}" + ("" if raw == RAW else f", raw results: {raw}"))


def take_in(job: Job, work: str, folder: str, mapping: Mapping) -> tuple[Tables, DataFrame]:
    """Files through the production's ingest into tables of their own under `work`; prints the account of their rows."""
    config: Config = job.config
    places = {
        "tables": config.tables.model_copy(update={"root": f"{work}/tables", "catalog": ""}),
        "ingest": config.ingest.model_copy(update={"source": "files", "landing": folder}),
    }
    config = config.model_copy(update=places)
    tables = Tables.of(job.spark, config.tables)
    print(Ingest(tables, config, mapping).run(once=True).report())
    return tables, tables.read(EVENTS)


def _on_this_machine(job: Job) -> bool:
    return is_local(str(job.spark.sparkContext.master))


@contextmanager
def _work(job: Job) -> Iterator[str]:
    """A folder for tables that are thrown away: here, or on a cluster under the root, which all hosts see."""
    if _on_this_machine(job):
        with tempfile.TemporaryDirectory(prefix="foldin-evaluate-") as folder:
            yield folder
        return
    shared, name = Checkpoint(job.spark, job.tables.path("_evaluate")), secrets.token_hex(6)
    try:
        yield f"{shared.path}/{name}"
    finally:
        shared.delete(name)


def _title(job: Job) -> str:
    return job.mapping.name if job.options.data is not None else "the events of this installation"
