"""Cut a log in time: what is known when the model is trained, then slices that arrive while the stream runs."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from foldin.config import Config, shipped_mappings
from foldin.errors import ConfigError
from foldin.events import judge, parse
from foldin.mapping import Mapping, load_mapping

__all__ = ["Staged", "fitting_mapping", "stage"]

_SLICES = 5
_TRAIN_SHARE = 0.8


@dataclass(frozen=True)
class Staged:
    """A log, cut for the demo: folders of text files with raw rows, without headers.

    Attributes:
        slices: slice 0 is what the model is trained on; the others arrive later, in order.
        regular: a user with a history, and the file with three more of their rows.
        newcomer: a user without one, and the file with their first rows.
        mapping: how to read the rows as they were staged.
    """

    slices: tuple[Path, ...]
    regular: tuple[str, Path]
    newcomer: tuple[str, Path]
    mapping: Mapping


def fitting_mapping(folder: Path) -> str:
    """The shipped mapping whose columns are the header of a file in `folder`.

    Raises:
        ConfigError: none fits; lists what was looked at.
    """
    if not folder.is_dir():
        raise ConfigError(f"--data {folder}: there is no such folder")
    known = {name: load_mapping(name) for name in shipped_mappings()}
    for name, mapping in known.items():
        for file in sorted(folder.rglob(mapping.files)):
            # Whatever the file is, a look at its header is no reason to fall.
            opener = gzip.open if file.suffix == ".gz" else open
            with opener(file, "rt", encoding="utf-8", errors="replace") as lines:
                header = str(lines.readline()).lstrip("\ufeff").strip()
            if [column.strip('" ') for column in header.split(",")] == list(mapping.columns):
                return name
            break
    raise ConfigError(
        f"--data {folder}: no shipped mapping ({', '.join(known)}) fits the files there; name one by --mapping FILE"
    )


def stage(
    spark: SparkSession,
    config: Config,
    mapping: Mapping,
    source: Path,
    staging: Path,
    *,
    users: tuple[str, str] | None = None,
) -> Staged:
    """Write the rows of `source` under `staging`, cut in time.

    Args:
        users: the regular and the newcomer whose story is told; else they are looked for.

    Raises:
        ConfigError: the log has no user with a history whose story can be told.
    """
    reader = spark.read.option("pathGlobFilter", mapping.files).option("recursiveFileLookup", True)
    source_file = F.lit(str(source)).alias("source_file")
    if mapping.format == "parquet":
        rows = reader.parquet(str(source)).select("*", source_file)
    else:
        rows = reader.text(str(source)).select(F.col("value").alias("raw"), source_file)
    judged = judge(parse(rows, mapping), mapping, config.events)
    log = judged.select("raw", "user_id", "item_id", "event_time", F.col("reason").isNull().alias("event")).persist()
    events = log.where("event")
    shares = [_TRAIN_SHARE + (1 - _TRAIN_SHARE) * k / _SLICES for k in range(_SLICES)]
    bounds = events.select(F.percentile_approx(F.unix_micros("event_time"), shares, 10_000)).first()
    if bounds is None or bounds[0] is None:
        raise ConfigError(f"no row of {source} is an event under the mapping {mapping.name!r}")
    time = F.unix_micros("event_time")
    number = sum((F.when(time > bound, 1).otherwise(0) for bound in bounds[0]), F.lit(0))
    cut = time > bounds[0][0]

    regular, newcomer = users or (_regular(events, cut), _newcomer(events, cut))
    held = events.where(F.col("user_id").isin(regular, newcomer) & cut)
    last = held.orderBy(F.desc("event_time"), "raw").where(F.col("user_id") == regular).limit(3)
    first = held.where(F.col("user_id") == newcomer)
    files = {}
    for name, rows in (("regular", last), ("newcomer", first)):
        files[name] = staging / f"{name}.txt"
        files[name].parent.mkdir(parents=True, exist_ok=True)
        files[name].write_text("".join(row["raw"] + "\n" for row in rows.select("raw").collect()), encoding="utf-8")
    rest = log.join(last.unionByName(first).select("raw").distinct(), "raw", "left_anti")
    sliced = rest.select("raw", F.coalesce(number, F.lit(0)).alias("slice"))
    sliced.repartition("slice").write.partitionBy("slice").text(str(staging / "slices"))
    log.unpersist()
    slices = tuple(sorted((staging / "slices").glob("slice=*")))
    staged = {"files": "*", "format": "json" if mapping.format == "parquet" else mapping.format}
    return Staged(slices, (regular, files["regular"]), (newcomer, files["newcomer"]), mapping.model_copy(update=staged))


def _regular(events: DataFrame, cut: Column) -> str:
    """A user with about thirty events before the cut and at least three on other items after it."""
    before, after = F.collect_set(F.when(~cut, F.col("item_id"))), F.collect_set(F.when(cut, F.col("item_id")))
    users = events.groupBy("user_id").agg(
        F.count_if(~cut).alias("n_before"), F.size(F.array_except(after, before)).alias("n_new")
    )
    found = users.where("n_before >= 10 and n_new >= 3").orderBy(F.abs(F.col("n_before") - 30), "user_id").first()
    if found is None:
        raise ConfigError("no user has ten events before the cut and three new items after it: the log is too small")
    return str(found["user_id"])


def _newcomer(events: DataFrame, cut: Column) -> str:
    """A user with a few events, all of them after the cut."""
    users = events.groupBy("user_id").agg(F.count_if(~cut).alias("n_before"), F.count("*").alias("n"))
    found = users.where("n_before = 0").orderBy(F.abs(F.col("n") - 2), "user_id").first()
    if found is None:
        raise ConfigError("no user comes for the first time after the cut: the log is too small")
    return str(found["user_id"])
