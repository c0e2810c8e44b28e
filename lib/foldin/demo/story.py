"""The demo: train on the first days, stream the rest, and show what a person would want to see."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from pyspark.sql import functions as F

from foldin.demo.lifecycle import show_lifecycle
from foldin.demo.staging import fitting_mapping, stage
from foldin.demo.streams import Streams
from foldin.demo.synthetic import CONVERT, NEWCOMER, SIZES, SyntheticLog
from foldin.errors import AccountingError, ConfigError
from foldin.mapping import load_settings
from foldin.reading import UserRecommendations, recommendations_for
from foldin.schemas import EVENTS, INGEST_LOG, QUARANTINE
from foldin.session import build_session
from foldin.tables import Tables
from foldin.training import train

__all__ = ["run_demo"]

_MARK = ".foldin-demo"


def run_demo(
    *, root: str, size: str = "small", data: str | None = None, mapping: str | None = None, sets: Sequence[str] = ()
) -> None:
    """Generate (or read) a log, train on its first part, stream the rest, and print what happened.

    Raises:
        ConfigError: the folder of data or the mapping cannot be used, or `root` is not the demo's to empty.
        AccountingError: the rows landed are not the rows accounted for.
    """
    begun = time.monotonic()

    def say(text: str = "") -> None:
        print(f"[{time.monotonic() - begun:5.1f} s] {text}" if text else "", flush=True)

    folder = _empty(Path(root))
    if data is not None and mapping is None:
        mapping = fitting_mapping(Path(data))
    places = (f"tables.root={folder / 'tables'}", f"ingest.landing={folder / 'landing'}")
    pace = ("ingest.trigger_seconds=0.5", "fold_in.trigger_seconds=0.5")
    config, chosen = load_settings(None, [*pace, *sets, *places], mapping)
    logging.getLogger("foldin").setLevel(logging.WARNING)  # the demo has lines of its own
    say("starting Spark (the very first start fetches Delta's JARs)")
    spark = build_session(config, log_file=folder / "spark.log")
    tables = Tables.of(spark, config.tables)

    source = Path(data) if data else folder / "log"
    if data is None:
        files = SyntheticLog(SIZES[size]).write(source)
        say(f"generated {len(files)} days of a log with known tastes in {source}")
    heroes = (CONVERT, NEWCOMER) if data is None else None
    staged = stage(spark, config, chosen, source, folder / "staging", users=heroes)
    demo = Streams(tables, config, staged.mapping)

    rows = demo.land(*staged.slices[0].glob("part-*"))
    say(f"landed the first {rows:,} rows; ingesting them")
    account = demo.ingest_once()
    say(f"ingest: {account}")
    trained = train(tables, config)
    say(
        f"trained {trained.model_version} on {trained.events:,} events: {trained.users:,} users, "
        f"{trained.items:,} items, rank {config.train.rank}, {trained.seconds:.0f} s; "
        f"fold-in equals MLlib within {trained.parity:.0e}"
    )

    (regular, more), (newcomer, first) = staged.regular, staged.newcomer
    with demo.running():
        say("streaming: ingest and fold-in are running")
        for part in staged.slices[1:]:
            started, users = time.monotonic(), demo.fold_in.users
            rows = demo.land(*part.glob("part-*"))
            demo.settle()
            say(
                f"streamed {rows:,} rows: {demo.fold_in.users - users:,} users have fresh factors and lists "
                f"{time.monotonic() - started:.1f} s after they landed"
            )
        demo.settle()
        before = recommendations_for(tables, regular)
        demo.land(more)
        after, seconds = demo.fresh_list(regular, before)
        say(f"three more events of {regular}: {_events_of(tables, regular, 3)}")
        _show_lists(before, after)
        say(f"event to recommendation, as a polling reader sees it: {seconds:.1f} s")
        before = recommendations_for(tables, newcomer)
        demo.land(first)
        after, seconds = demo.fresh_list(newcomer, before)
        say(f"{newcomer} was never seen before: {_events_of(tables, newcomer, 5)}; first list after {seconds:.1f} s")
        _show_lists(before, after)
        demo.settle()
        show_lifecycle(tables, config, say)
    _account(tables, demo.landed, say)
    say(f"the tables lie in {tables.root}, Spark's own log is {folder / 'spark.log'}. Read them in one line:")
    read = f'from foldin.reading import *; latest_recommendations(open_tables("{tables.root}")).show()'
    print(f"\n  .venv/bin/python -c '{read}'\n")
    spark.stop()


def _empty(root: Path) -> Path:
    """The demo's folder, empty; a folder that no demo has made is left alone."""
    root = root.absolute()
    if root.is_dir() and any(root.iterdir()) and not (root / _MARK).is_file():
        raise ConfigError(f"--root {root}: the folder is not empty and was not made by the demo")
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    (root / _MARK).touch()
    return root


def _events_of(tables: Tables, user_id: str, n: int) -> str:
    rows = tables.read(EVENTS).where(F.col("user_id") == user_id).orderBy(F.desc("event_time")).limit(n)
    return ", ".join(f"{row['event_type']} {row['item_id']}" for row in reversed(rows.collect()))


def _show_lists(before: UserRecommendations, after: UserRecommendations) -> None:
    print(f"\n          {'before: ' + before.source:<28}{'after: ' + after.source}")
    for place in range(max(len(before.items), len(after.items))):
        left, right = (
            f"{found.items[place][0]:<18} {found.items[place][1]:7.3f}" if place < len(found.items) else ""
            for found in (before, after)
        )
        print(f"    {place + 1:>4}  {left:<28}{right}")
    print(flush=True)


def _account(tables: Tables, landed: int, say: Callable[[str], None]) -> None:
    """The account of all rows, held against an independent count of the lines that landed."""
    total = tables.read(INGEST_LOG).selectExpr(
        "sum(rows_in) as rows_in", "sum(events) as events", "sum(quarantined) as quarantined", "sum(duplicates) as dups"
    )
    row = total.first()
    assert row is not None
    events, quarantined = tables.read(EVENTS).count(), tables.read(QUARANTINE).count()
    say(
        f"accounted for: {landed:,} lines landed = {events:,} events + {quarantined:,} quarantined "
        f"+ {row['dups']:,} duplicates"
    )
    for found in tables.read(QUARANTINE).groupBy("reason").count().orderBy("count", ascending=False).collect():
        print(f"            {found['count']:>8,}  {found['reason']}")
    if not landed == row["rows_in"] == events + quarantined + row["dups"]:
        raise AccountingError(f"{landed} lines landed, but the account is {row.asDict()}")
