"""Tables that have lived: models that served, serve, may serve or are retired, and lists that were replaced."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pyspark.sql import SparkSession

from foldin.config import Config, load_config
from foldin.maintenance import maintain
from foldin.registry import Registry
from foldin.schemas import EVENTS, RECOMMENDATIONS, USER_FACTORS
from foldin.tables import Tables
from foldin.training import train
from world import SMALL, bought, copy_of, events_of, fold_once


@dataclass(frozen=True)
class Lived:
    """Where they lie, and the models in them."""

    root: Path
    retired: str
    before: str
    active: str
    candidate: str


def live(spark: SparkSession, folded_root: Path, root: Path) -> Lived:
    """Made by the product alone: training, fold-in, maintenance."""
    copy_of(folded_root, root)
    config = config_of(root)
    tables = Tables.of(spark, config.tables)
    retired = Registry(tables).active_version()
    numbers = iter(range(100))

    def fold(*purchases: tuple[str, str]) -> None:
        tables.append(events_of(spark, *(bought(f"l{next(numbers)}", user, item) for user, item in purchases)), EVENTS)
        fold_once(tables, config)

    before = train(tables, config).model_version
    fold(("u1", "i0"), ("new", "i7"))
    active = train(tables, config).model_version
    fold(("u1", "i1"), ("u2", "i6"))
    for spec in (RECOMMENDATIONS, USER_FACTORS):  # again what is older by now: the order of commits says nothing
        rows = tables.read(spec).where(f"model_version = '{active}' and user_id in ('u1', 'u2')")
        tables.append(rows.orderBy("events_version").limit(1), spec)
    assert maintain(tables, config).retired == (retired,)
    fold(("u1", "i2"), ('"new" ünd ☃', "i3"))
    candidate = train(tables, config, activate=False).model_version
    assert Registry(tables).active_version() == active
    return Lived(root, retired, before, active, candidate)


def config_of(root: Path, *sets: str) -> Config:
    return load_config(sets=[f"tables.root={root}", *SMALL, "maintain.keep_models=2", *sets])
