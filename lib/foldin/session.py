"""One way to a Spark session, whoever starts it: python, spark-submit or a notebook."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from delta import configure_spark_with_delta_pip
from pyspark import SparkConf, SparkContext
from pyspark.sql import SparkSession

from foldin.config import Config, conf_dir
from foldin.kafka import CONNECTOR
from foldin.local_files import set_permissions_by_java
from foldin.prerequisites import check_prerequisites
from foldin.redaction import WORDS
from foldin.secrets import fill, refers

__all__ = ["DRIVER_MEMORY", "build_session", "is_local"]

DRIVER_MEMORY = "2g"
"""Heap of a local JVM, unless somebody says otherwise."""

_REDACTION = "spark.redaction.regex"

# What foldin relies on, whatever the cluster's defaults are.
_REQUIRED = {
    "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
    "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
    # Event times are UTC everywhere; a local time zone would shift them in casts and in Python.
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.streaming.stateStore.providerClass": (
        "org.apache.spark.sql.execution.streaming.state.RocksDBStateStoreProvider"
    ),
    "spark.sql.streaming.stateStore.rocksdb.changelogCheckpointing.enabled": "true",
    # A version that the log has can be read, however old: `maintain`'s VACUUM spares its files. Delta goes by the
    # table's retention of deleted files, a day, and would refuse the way back to a model of the day before yesterday.
    "spark.databricks.delta.vacuum.enforceTimeTravelWithinDeletedFileRetentionDuration": "false",
    # Vectors and lists reach Python as Arrow batches; this bounds one batch's rows, so a worker's memory.
    "spark.sql.execution.arrow.maxRecordsPerBatch": "4096",
    # A micro-batch with its appends and metrics runs some 60 generated classes, twice each (driver and tasks): with
    # room for 100, the default, every batch compiled again what the last one had driven out.
    "spark.sql.codegen.cache.maxEntries": "1000",
    # Histories are merged in a hash map of so many users a task before Spark goes over to sorting. That takes every
    # history apart twice, and by default it begins at 128 users, in a micro-batch of 300. Many more would be many
    # objects: at full rate, with 100,000, lists took half as long again.
    "spark.sql.objectHashAggregate.sortBased.fallbackThreshold": "1024",
    # One BLAS thread a task: Spark already runs one task a core.
    "spark.executorEnv.OPENBLAS_NUM_THREADS": "1",
    "spark.executorEnv.OMP_NUM_THREADS": "1",
    "spark.executorEnv.MKL_NUM_THREADS": "1",
    # What Spark must not show of settings and, in the text of a plan, of a source's options: its own pattern lets
    # the private key of a Kafka client through, and the key of an Azure account.
    _REDACTION: f"(?i){WORDS}",
}

# What suits one machine; a cluster brings its own.
_LOCAL = {
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
}
_SMALL = (
    "spark.sql.shuffle.partitions",
    "spark.databricks.delta.snapshotPartitions",
    "spark.sql.sources.parallelPartitionDiscovery.parallelism",  # VACUUM starts as many tasks
)

# Hadoop's FileContext starts several processes (chmod, stat) for each file of a log on a local disk, FileSystem none
# (foldin.local_files): 50 against 2 ms a file, and a micro-batch writes nine. Neither renames more atomically there
# than the other; what keeps writers apart on a local disk are the lease and the lock around appends.
_LOCAL_FILES = {
    "spark.delta.logStore.file.impl": "io.delta.storage.LocalLogStore",
    "spark.sql.streaming.checkpointFileManagerClass": (
        "org.apache.spark.sql.execution.streaming.checkpointing.FileSystemBasedCheckpointFileManager"
    ),
}


def build_session(
    config: Config, *, log_file: str | Path | None = None, driver_memory: str = DRIVER_MEMORY
) -> SparkSession:
    """The Spark session that foldin needs, made or reused.

    Under spark-submit, master, memory and JARs are the submitter's; otherwise the session is local and Ivy brings
    Delta's JARs (once, about 90 MB; later from its cache, without the network) and, where the source is Kafka, the
    connector's.

    Args:
        config: `[spark]` of it is applied last, so it wins; what it asks Spark to hide is hidden beside the rest.
        log_file: where a local JVM's own output goes; by default to this process's stderr.
        driver_memory: heap of a local JVM where the configuration has no `spark.driver.memory`.

    Raises:
        ConfigError: a secret of `[spark] conf` is not where it should be.
        PrerequisiteError: Python or Java is missing or of a version that Spark cannot use.
    """
    active = SparkSession.getActiveSession()
    if active is not None:
        return active
    submitted = "PYSPARK_GATEWAY_PORT" in os.environ
    if not submitted:
        check_prerequisites()
        # Workers must run the interpreter that has numpy, not the first python3 on PATH.
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(variable, "1")  # local workers are children of this process

    builder = SparkSession.builder.appName(config.spark.app_name)
    settings = dict(_REQUIRED)
    given = None
    if submitted:
        SparkContext._ensure_initialized()  # else SparkConf() knows of no JVM, and is empty
        given = SparkConf()  # what the submitter said
    master = config.spark.master if given is None else given.get("spark.master", "local")
    if is_local(master):
        # The defaults, 200, 50 and 10,000, are for clusters: here every small query would start as many tasks.
        small = dict.fromkeys(_SMALL, str(_local_cores(master))) | _LOCAL_FILES | _pools()
        settings |= {key: value for key, value in small.items() if given is None or not given.contains(key)}
    if not submitted:
        builder = builder.master(master)
        settings |= _LOCAL | {"spark.driver.memory": driver_memory}
        settings["spark.driver.defaultJavaOptions"] = " ".join(_java_options())
    settings |= {key: value for key, value in config.spark.conf.items() if not refers(value)}
    secrets: dict[str, Any] = fill(
        "spark.conf", {key: value for key, value in config.spark.conf.items() if refers(value)}
    )
    submitters = given.get(_REDACTION) if given is not None else None
    asked = [config.spark.conf.get(_REDACTION), submitters]
    settings[_REDACTION] = "|".join([_REQUIRED[_REDACTION], *_also_hidden(asked, secrets)])
    for key, value in settings.items():
        builder = builder.config(key, value)
    if submitted:
        return _with_quick_files(builder.config(map=secrets).getOrCreate())
    # Delta's helper writes this setting anew: what the configuration asks for goes through it.
    packages = [name.strip() for name in config.spark.conf.get("spark.jars.packages", "").split(",") if name.strip()]
    if config.ingest.source == "kafka" and CONNECTOR not in packages:
        packages.append(CONNECTOR)
    with _stderr_to(log_file):
        builder = configure_spark_with_delta_pip(builder, extra_packages=packages)
        if secrets:
            # pyspark starts the JVM with all settings on its command line, where `ps` shows them to everybody. So it
            # is started without the secrets, and the session, which is made in it, is told them through the gateway.
            SparkContext._ensure_initialized(conf=SparkConf().setAll(list(builder._options.items())))
        return _with_quick_files(builder.config(map=secrets).getOrCreate())


def _with_quick_files(spark: SparkSession) -> SparkSession:
    if is_local(spark.sparkContext.master or ""):
        set_permissions_by_java(spark)
    return spark


def _also_hidden(asked: Iterable[str | None], secrets: Iterable[str]) -> Iterator[str]:
    """What Spark must hide beside what sounds like a secret: what somebody asks for, and what is a reference."""
    for pattern in asked:
        if pattern is not None:
            yield f"(?:{pattern})"
    for key in secrets:
        # Hadoop's settings have a page without the prefix.
        yield rf"^(?:spark\.hadoop\.)?{re.escape(key.removeprefix('spark.hadoop.'))}$"


def _pools() -> dict[str, str]:
    """Tasks that can wait run after the others; not from a zipped package, whose files Spark cannot read."""
    pools = conf_dir() / "fairscheduler.xml"
    if not isinstance(pools, Path):
        return {}
    # Hadoop takes a path as it is, so its spaces are not written as a URI writes them.
    return {"spark.scheduler.mode": "FAIR", "spark.scheduler.allocation.file": f"file://{pools}"}


def _java_options() -> Iterator[str]:
    """Of a JVM that is a job's own, before those of `spark.driver.extraJavaOptions`."""
    yield f'"-Dlog4j2.configurationFile={conf_dir() / "log4j2.properties"}"'
    # Who stops a process group (timeout, systemd's default) sends SIGTERM to the JVM, too. It would exit in an orderly
    # way, and hang in that for good where a task is in RocksDB, whose destructors wait for its threads, while the job
    # keeps its lease. With -Xrs it ends at once. That takes SIGQUIT from it, by which jstack and jcmd knock.
    yield "-Xrs"
    yield "-XX:+StartAttachListener"


def is_local(master: str) -> bool:
    """Whether all of it runs on this machine: "local", "local[2]", "local-cluster[...]"."""
    return master.startswith("local")


def _local_cores(master: str) -> int:
    if master == "local":
        return 1
    inside = master.partition("[")[2].partition("]")[0].partition(",")[0]
    return int(inside) if inside.isdigit() else os.cpu_count() or 2


@contextmanager
def _stderr_to(log_file: str | Path | None) -> Iterator[None]:
    """Let the JVM that is started here inherit `log_file` as its stderr.

    Ivy prints a hundred lines and Spark's launcher a few before any logging configuration is read.
    """
    if log_file is None:
        yield
        return
    Path(log_file).parent.mkdir(parents=True, exist_ok=True)
    sys.stderr.flush()
    kept = os.dup(2)
    with Path(log_file).open("ab") as log:
        os.dup2(log.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
