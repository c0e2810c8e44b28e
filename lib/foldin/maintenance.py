"""What keeps the tables as quick as on their first day: files merged, dead ones deleted, logs trimmed, models retired.

All of it is safe beside running streams and trainings. OPTIMIZE moves rows without changing them; a model is retired
by dropping partitions that nobody appends to any more; and VACUUM spares every file that a commit of the log added: a
stream reads those, even when a merge has replaced them since.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from delta.tables import DeltaTable
from py4j.protocol import Py4JJavaError
from pyspark.sql import functions as F

from foldin.checkpoints import Checkpoint
from foldin.commits import CommitLog
from foldin.compaction import compact
from foldin.config import Config
from foldin.errors import FoldinError, LeaseError, reason_of
from foldin.leases import Lease
from foldin.registry import PromotionConflictError, Registry
from foldin.schemas import ITEM_FACTORS, METRICS, MODELS, RECOMMENDATIONS, TABLES, USER_FACTORS, TableSpec
from foldin.tables import Tables
from foldin.trimming import trim

__all__ = ["Maintained", "drop_models", "look_after", "maintain", "retention_hours"]

log = logging.getLogger("foldin.maintain")

_MODEL_TABLES = (ITEM_FACTORS, USER_FACTORS, RECOMMENDATIONS)
# By default Delta 4.4 ignores RETAIN, and then deletes by a table property that knows nothing of the log.
_RETAIN_AS_TOLD = (
    "spark.databricks.delta.vacuum.retentionWindowIgnore.enabled",
    "spark.databricks.delta.retentionDurationCheck.enabled",
)
_AT_ONCE = 3  # tables
_ABANDONED_DAYS = 7  # nobody trains for so long between a model's first rows and its row in `models`
_LOOKED_AT_DAYS = 7  # within which somebody looks at a model that stays a candidate: made for an old date, or worse
_LEAST_HOURS = 24  # readers that hold a snapshot: a training of hours, a query of minutes


@dataclass(frozen=True)
class Maintained:
    """What one run did.

    Attributes:
        upgraded: columns and properties that older tables were given, as table.name.
        retired: versions of models whose factors and lists are gone.
        files: by table, (small files merged, files that came of it).
        retention: by table, hours for which VACUUM spared what had been replaced.
    """

    upgraded: tuple[str, ...] = ()
    retired: tuple[str, ...] = ()
    files: dict[str, tuple[int, int]] = field(default_factory=dict)
    retention: dict[str, int] = field(default_factory=dict)


def maintain(tables: Tables, config: Config) -> Maintained:
    """Bring the tables' schemas up to date, retire old models, merge small files, delete dead ones.

    Raises:
        LeaseError: another process does so.
        StateMismatchError: a column of a table has a type that this foldin does not know there.
    """
    with Lease.of_job(tables, "maintain", config.fold_in.lease_seconds):
        upgraded = [name for spec in TABLES for name in tables.upgrade(spec)]
        retired = _retire(tables, config.maintain.keep_models)
        _drop_abandoned(tables, config.fold_in.lease_seconds)
        _forget_metrics(tables, config.maintain.metrics_days)
        with ThreadPoolExecutor(_AT_ONCE) as pool:  # most of it is waiting for logs
            done = dict(
                zip((spec.name for spec in TABLES), pool.map(partial(look_after, tables, config), TABLES), strict=True)
            )
    files = {name: merged for name, (merged, _) in done.items()}
    retention = {name: hours for name, (_, hours) in done.items()}
    _clear_fits(tables)
    return Maintained(tuple(upgraded), retired, files, retention)


def _forget_metrics(tables: Tables, days: int) -> None:
    """Whole partitions: no file is read or written anew."""
    table = DeltaTable.forPath(tables.spark, tables.location(METRICS))
    with tables.locked(METRICS):
        table.delete(F.col("metrics_date") < F.date_sub(F.current_date(), days))


def _clear_fits(tables: Tables) -> None:
    """Delete the checkpoints of fits of long ago: MLlib keeps each fit's last one."""
    fits = Checkpoint(tables.spark, tables.path("_checkpoints", "als"))
    for name in fits.list(""):
        modified = fits.newest_within(name)
        if modified is not None and time.time() - modified > _ABANDONED_DAYS * 86_400:
            fits.delete(name)


def look_after(tables: Tables, config: Config, spec: TableSpec) -> tuple[tuple[int, int], int]:
    """Merge, trim and delete in one table: (small files merged, files that came of it), hours spared by VACUUM."""
    started = time.monotonic()
    merged = compact(tables, spec)
    trimmed = _trim(tables, spec, config.tables.log_minutes) if spec.trimmed else 0
    hours = retention_hours(tables, spec)
    _vacuum(tables, spec, hours)
    log.info(
        "%s: %d small files merged into %d; what was replaced more than %d hours ago is deleted; "
        "%d commits trimmed, %.1f s",
        spec.name, *merged, hours, trimmed, time.monotonic() - started,
    )  # fmt: skip
    return merged, hours


def _trim(tables: Tables, spec: TableSpec, minutes: int) -> int:
    try:
        return trim(tables, spec, minutes)
    except (FoldinError, Py4JJavaError) as error:  # a stream that trims its log at the same moment; the next run will
        log.warning("%s: the log is not trimmed this time: %s", spec.name, reason_of(error))
        return 0


def _vacuum(tables: Tables, spec: TableSpec, hours: int) -> None:
    spark = tables.spark.newSession()  # settings of its own
    for setting in _RETAIN_AS_TOLD:
        spark.conf.set(setting, "false")
    with tables.locked(spec):
        spark.sql(f"vacuum {tables.name(spec)} retain {hours} hours").collect()


def retention_hours(tables: Tables, spec: TableSpec) -> int:
    """For how long VACUUM must spare files that have been replaced: nothing that a commit in the log added is deleted.

    Whoever goes on at a commit that the log still has (a stream, a promotion that catches up) finds its files; who
    is so far behind that the commit is gone is refused, or reads the table itself. So no reader need be asked.
    """
    oldest = CommitLog(tables, spec).oldest()
    return max(_LEAST_HOURS, math.ceil((time.time() - oldest.at) / 3600) + 1)


def _retire(tables: Tables, keep: int) -> tuple[str, ...]:
    """Retire what is older than the `keep` versions that served last, and drop their partitions."""
    registry = Registry(tables)
    standing = registry.standing()
    served = sorted((row for row in standing if row.sequence), key=lambda row: row.sequence or 0)
    spared = {row.model_version for row in served[-keep:]} | _pinned(tables)
    unseen = _just_trained(tables)
    newest_cut = max((row.cut_version for row in served), default=-1)
    candidates = [row for row in reversed(standing) if not row.sequence and row.status != "retired"]
    newest = max(candidates, key=lambda row: row.cut_version, default=None)
    old = [
        row.model_version
        for row in standing
        if row.model_version not in spared
        and row.status != "retired"
        # A candidate that nobody has looked at, or the newest of what is newer than what serves, may still be adopted.
        and (row.sequence or (row.model_version not in unseen and (row is not newest or row.cut_version < newest_cut)))
    ]
    for model_version in list(old):
        try:
            registry.retire(model_version, reason=f"not one of the {keep} that served last")
        except PromotionConflictError as error:  # the next run will
            log.info("model %s is not retired now: %s", model_version, error)
            old.remove(model_version)
    # Also those of a run that was killed between the two steps.
    drop_models(tables, [*old, *(row.model_version for row in standing if row.status == "retired")])
    return tuple(old)


def _just_trained(tables: Tables) -> set[str]:
    """Models that a person may not have looked at yet."""
    trained = tables.read(MODELS).where("status = 'candidate'")
    recent = F.current_timestamp() - F.make_dt_interval(F.lit(_LOOKED_AT_DAYS))
    return {row["model_version"] for row in trained.where(F.col("at") > recent).select("model_version").collect()}


def _drop_abandoned(tables: Tables, lease_seconds: float) -> None:
    """Drop what killed trainings have left, unless one is under way that may have taken up the name of one of them."""
    if not _abandoned(tables):
        return
    try:
        with Lease.of_job(tables, "train", lease_seconds):
            gone = _abandoned(tables)
            for version in gone:
                log.info("model %s: its training was killed %d days ago; its rows go", version, _ABANDONED_DAYS)
            drop_models(tables, gone)
    except LeaseError as error:  # the next run will
        log.info("what killed trainings have left is not dropped now: %s", error)


def _abandoned(tables: Tables) -> list[str]:
    """Versions that `models` does not know, and to which nothing was added for days: their trainings were killed."""
    known = {row.model_version for row in Registry(tables).standing()}
    newest = F.max("_metadata.file_modification_time")
    old = newest < F.current_timestamp() - F.make_dt_interval(F.lit(_ABANDONED_DAYS))
    resting, young = set[str](), set[str]()
    for spec in _MODEL_TABLES:
        rows = tables.read(spec).where(~F.col("model_version").isin(*known)).groupBy("model_version").agg(old)
        for version, is_old in rows.collect():
            (resting if is_old else young).add(version)
    return sorted(resting - young)


def drop_models(tables: Tables, gone: Sequence[str]) -> None:
    """Drop what the tables hold of some versions, to which nobody appends (any more)."""
    for spec in _MODEL_TABLES:
        left = tables.read(spec).where(F.col("model_version").isin(*gone)).select("model_version").distinct().collect()
        for row in left:
            with tables.locked(spec):
                tables.spark.sql(f"delete from {tables.name(spec)} where model_version = '{_quoted(row[0])}'")


def _pinned(tables: Tables) -> set[str]:
    """The version of the stream's last batch: its replay, after a crash, folds under that one."""
    checkpoint = Checkpoint(tables.spark, tables.path("_checkpoints", "fold_in"))
    pin = checkpoint.read_object(f"pins/{checkpoint.newest('pins')}")
    return {pin["model_version"]} if pin is not None and pin["model_version"] else set()


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace("'", "\\'")
