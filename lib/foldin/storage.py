"""What a job refuses before it writes tables somewhere, and what it warns of there.

Of two commits of the same version of a table one must lose. On a local disk foldin's own lock sees to it; on HDFS,
Azure and Google's storage Delta does. On S3 Delta's default log store looks first and writes then, which is safe within
one driver and not beside a second one.
"""

from __future__ import annotations

import logging
from pathlib import Path
from urllib.parse import urlsplit

from pyspark.sql import SparkSession

from foldin.checkpoints import Checkpoint
from foldin.config import TablesConfig
from foldin.errors import ConfigError
from foldin.schemas import MODELS
from foldin.session import is_local
from foldin.tables import Tables

__all__ = ["check_catalog", "check_root", "dangers", "warn_of_dangers"]

log = logging.getLogger("foldin.storage")

_IN_MEMORY = ["org.apache.spark.sql.delta.catalog.DeltaCatalog", "in-memory"]  # Delta's is a view of Spark's own
_ONE_DRIVER = "io.delta.storage.S3SingleDriverLogStore"


def check_root(spark: SparkSession, config: TablesConfig) -> None:
    """Whether every host finds the tables and checkpoints where the driver does.

    Raises:
        ConfigError: a relative path on a cluster: executors would write below their own working directories.
    """
    master = str(spark.sparkContext.master)
    if not urlsplit(config.root).scheme and not Path(config.root).is_absolute() and not is_local(master):
        raise ConfigError(
            f"tables.root = {config.root!r}: under {master} it must be one place for all hosts, "
            "with its scheme (hdfs://..., s3a://...), or an absolute path that is mounted on each"
        )


def check_catalog(spark: SparkSession, config: TablesConfig) -> None:
    """Whether tables can be kept under `tables.catalog`.

    Raises:
        ConfigError: there is no such schema, or the catalog lasts only as long as the session.
    """
    if not config.catalog:
        return
    name = config.catalog.rpartition(".")[0] or spark.catalog.currentCatalog()
    settings = [spark.conf.get(f"spark.sql.{key}") for key in ("catalog.spark_catalog", "catalogImplementation")]
    if name == "spark_catalog" and settings == _IN_MEMORY:
        raise ConfigError(
            f"tables.catalog = {config.catalog!r}: this session's catalog is in memory, it forgets its tables when the "
            'job ends; set "spark.sql.catalogImplementation" = "hive" in [spark.conf], or name a catalog of yours'
        )
    if not spark.catalog.databaseExists(config.catalog):
        raise ConfigError(
            f"tables.catalog = {config.catalog!r}: there is no such schema; create it first, by: "
            f"create schema {config.catalog}"
        )


def dangers(tables: Tables) -> list[str]:
    """What may go wrong where the tables lie, one line each, with the setting that prevents it."""
    found = []
    place = tables.location(MODELS) if tables.catalog else tables.root
    scheme = urlsplit(place).scheme
    if scheme in ("s3", "s3a", "s3n"):
        setting = f"spark.delta.logStore.{scheme}.impl"
        conf = tables.spark.sparkContext.getConf()
        if conf.get(setting, conf.get("spark.delta.logStore.class", _ONE_DRIVER)) == _ONE_DRIVER:
            found.append(
                f"{place}: two jobs that write at the same time can lose commits; run one at a time, or set {setting} "
                "(see conf/storage/s3.toml)"
            )
    if not Checkpoint(tables.spark, tables.root).creates_one:
        found.append(
            f"{tables.root}: two jobs that start at the same moment could both take a checkpoint; it needs hadoop-aws "
            "3.4.2 or later with fs.s3a.create.conditional.enabled, and a store that knows If-None-Match"
        )
    return found


def warn_of_dangers(tables: Tables) -> None:
    """Log them."""
    for danger in dangers(tables):
        log.warning("%s", danger)
