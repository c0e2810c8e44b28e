"""What every job's command line shares: options, logging, exit codes."""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from py4j.protocol import Py4JError
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from foldin.config import Config
from foldin.errors import DISK_FULL, FoldinError, reason_of
from foldin.mapping import Mapping, load_settings
from foldin.redaction import hide
from foldin.session import DRIVER_MEMORY, build_session
from foldin.storage import check_catalog, check_root, warn_of_dangers
from foldin.tables import Tables

__all__ = ["Job", "parser", "run_job", "setup_logging"]


@dataclass(frozen=True)
class Job:
    """What a job's body is given."""

    options: argparse.Namespace
    config: Config
    mapping: Mapping
    spark: SparkSession
    tables: Tables


def parser(description: str) -> argparse.ArgumentParser:
    """A parser with the options that all jobs have."""
    made = argparse.ArgumentParser(description=description, allow_abbrev=False)
    made.add_argument("--config", metavar="FILE", help="TOML file with the settings that differ from the default")
    made.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], dest="sets", help="one setting: train.rank=64"
    )
    made.add_argument(
        "--mapping", metavar="NAME|FILE", help="mapping of a foreign log, shipped (online_retail, movielens) or a file"
    )
    return made


def run_job(
    body: Callable[[Job], None],
    options: argparse.ArgumentParser,
    argv: Sequence[str] | None = None,
    *,
    prepare: Callable[[argparse.Namespace], None] | None = None,
    create: bool = True,
    driver_memory: str = DRIVER_MEMORY,
) -> int:
    """Parse, configure, run `body`; the exit code: 0, or the code of the error that a person reads in one line.

    Args:
        prepare: looks at the options before anything is started, and may complete them.
        create: make the tables that are missing.
        driver_memory: heap of a local JVM where the configuration has no `spark.driver.memory`.
    """
    setup_logging()
    parsed = options.parse_args(argv)
    folders: list[str] = []
    try:
        if prepare is not None:
            prepare(parsed)
        config, mapping = load_settings(parsed.config, parsed.sets, parsed.mapping)
        folders = [config.tables.root, config.spark.conf.get("spark.local.dir", tempfile.gettempdir())]
        spark = build_session(config, driver_memory=driver_memory)
        check_root(spark, config.tables)
        check_catalog(spark, config.tables)
        tables = Tables.of(spark, config.tables, create=create)
        if create:  # who only reads cannot lose anything
            warn_of_dangers(tables)
        body(Job(parsed, config, mapping, spark, tables))
    except FoldinError as error:
        _complain(" ".join(str(error).split()), folders)
        return error.exit_code
    except (PySparkException, Py4JError, ConnectionError) as error:
        logging.getLogger("foldin").debug("the whole of it", exc_info=True)
        _complain(reason_of(error), folders)
        return FoldinError.exit_code
    except OSError as error:
        # Of a file beside the tables (a lease, a pin); the log has where from.
        logging.getLogger("foldin").debug("the whole of it", exc_info=True)
        _complain(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", folders)
        return FoldinError.exit_code
    return 0


def _complain(reason: str, folders: Sequence[str]) -> None:
    """One line for a person. Few of the errors of a full disk say which one it is, so that is looked up."""
    if DISK_FULL.search(reason):
        full = [folder for folder in folders if Path(folder).exists() and _is_full(folder)]
        reason += f" (disk of {' and of '.join(full)})" if full else ""
    print(f"foldin: {hide(reason)}", file=sys.stderr)


def _is_full(folder: str) -> bool:
    usage = shutil.disk_usage(folder)
    return usage.free < max(1 << 20, usage.total // 100)


class _HidingFormatter(logging.Formatter):
    """Whoever logs what, a secret in use is not in it."""

    def format(self, record: logging.LogRecord) -> str:
        return hide(super().format(record))


def setup_logging() -> None:
    """Progress lines on stderr, one an event worth knowing, without the secrets in use."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_HidingFormatter("%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S"))
    logging.basicConfig(handlers=[handler])
    logging.getLogger("foldin").setLevel(logging.INFO)
    # Pages about errors that we report in one line, and about the interrupt that ends a query on request.
    for name in ("SQLQueryContextLogger", "py4j.clientserver"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
