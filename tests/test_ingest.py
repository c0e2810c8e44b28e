"""Rows in = events + quarantined + duplicates, whatever lands, however often, and wherever a run broke off."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyspark.sql import DataFrame, SparkSession

from foldin import admission
from foldin.config import Config, load_config
from foldin.errors import AccountingError, ConfigError, FoldinError, StateMismatchError
from foldin.ingest import Account, Ingest
from foldin.mapping import Mapping, contract, load_settings
from foldin.recomputing import Recomputations
from foldin.schemas import EVENTS, INGEST_LOG, QUARANTINE, TableSpec
from foldin.tables import Tables, Transaction
from landing import event, land


@pytest.fixture(scope="module")
def empty_root(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tables without a row; tests work on copies."""
    root = tmp_path_factory.mktemp("empty") / "tables"
    Tables.of(spark, load_config(sets=[f"tables.root={root}"]).tables)
    return root


@pytest.fixture
def fresh(spark: SparkSession, empty_root: Path, tmp_path: Path, config: Config) -> Tables:
    """Empty tables in the test's own folder, where `config` has them."""
    shutil.copytree(empty_root, tmp_path / "tables")
    return Tables(spark, config.tables.root)


def ingest(tables: Tables, config: Config, mapping: Mapping | None = None) -> Account:
    return Ingest(tables, config, mapping or contract(config)).run(once=True)


def numbers(account: Account) -> tuple[int, int, int, int]:
    return account.rows_in, account.events, account.quarantined.total(), account.duplicates


def contents(tables: Tables) -> tuple[list[str], list[str]]:
    """The ids of the events and the raw quarantined rows, each as often as they are there."""
    events = sorted(row["event_id"] for row in tables.read(EVENTS).select("event_id").collect())
    return events, sorted(row["raw"] for row in tables.read(QUARANTINE).select("raw").collect())


def versions(tables: Tables) -> list[int]:
    return [tables.version(spec) for spec in (EVENTS, QUARANTINE, INGEST_LOG)]


def checkpoint(config: Config) -> Path:
    return Path(config.tables.root, "_checkpoints", "ingest")


def assert_log_adds_up(tables: Tables, *totals: int) -> None:
    rows = tables.read(INGEST_LOG).collect()
    for row in rows:
        assert row["rows_in"] == row["events"] + row["quarantined"] + row["duplicates"], row
    names = ("rows_in", "events", "quarantined", "duplicates")
    assert tuple(sum(row[name] for row in rows) for name in names) == totals
    assert len({(row["query_id"], row["batch_id"]) for row in rows}) == len(rows)


CSV_HEADER = "event_id,user_id,item_id,event_type,value,event_time"


def land_json(config: Config, spark: SparkSession) -> int:
    lines = [event("a"), event("b", value=2), "", event("a"), "{broken", "{broken", event("c", "")]
    land(config, "1.json", *lines)
    land(config, "deep/er/2.json", event("d"), event("b"))
    return sum(1 for f in Path(config.ingest.landing).rglob("*.json") for line in f.open() if line.strip())


def land_csv(config: Config, spark: SparkSession) -> int:
    good = "u,i,view,,2024-05-01"
    land(config, "1.csv", "\ufeff" + CSV_HEADER, f"a,{good}", f"b,{good}", "", f"a,{good}", "x,y", "x,y")
    land(config, "2.csv", CSV_HEADER, 'd,"u",i,view,,2024-05-01', "c,,i,view,,2024-05-01", f"b,{good}")
    lines = [line for f in Path(config.ingest.landing).rglob("*.csv") for line in f.open()]
    return sum(1 for line in lines if line.strip() and "event_id" not in line)


def land_parquet(config: Config, spark: SparkSession) -> int:
    def write(folder: str, *rows: tuple[Any, ...], schema: str) -> None:
        frame = spark.createDataFrame(list(rows), schema).coalesce(1)
        frame.write.parquet(f"{config.ingest.landing}/{folder}")

    when = "2024-05-01"
    first = "event_id string, user_id string, item_id string, event_type string, event_time string"
    write(
        "1",
        ("a", "u", "i", "view", when),
        ("b", "u", "i", "view", when),
        ("a", "u", "i", "view", when),
        ("x", "u", "i", "look", when),
        ("x", "u", "i", "look", when),
        schema=first,
    )
    # Another order of columns, and one that the first file does not have.
    second = "source_file string, event_time string, event_id string, event_type string, item_id string, user_id string"
    write(
        "2",
        ("s", when, "d", "view", "i", "u"),
        ("s", when, "c", "view", "i", None),
        ("s", when, "b", "view", "i", "u"),
        schema=second,
    )
    return 8


@pytest.mark.parametrize("land_files", [land_json, land_csv, land_parquet])
def test_every_row_of_every_format_is_an_event_or_quarantined_or_a_duplicate(
    spark: SparkSession,
    fresh: Tables,
    make_config: Callable[..., Config],
    land_files: Callable[[Config, SparkSession], int],
) -> None:
    config = make_config(f"ingest.format={land_files.__name__.removeprefix('land_')}", "ingest.files=*.*")
    rows = land_files(config, spark)
    account = ingest(fresh, config)
    # a, b and d are events; one row without a user and one of two equal broken rows are quarantined.
    assert numbers(account) == (rows, 3, 2, rows - 5)
    assert rows == 8
    events, quarantined = contents(fresh)
    assert events == ["a", "b", "d"]
    assert len(quarantined) == 2
    assert "missing user_id" in account.quarantined
    assert_log_adds_up(fresh, rows, 3, 2, rows - 5)
    assert str(account) == "8 rows in = 3 events + 2 quarantined + 3 duplicates"


def test_known_rows_are_dropped_within_a_batch_across_batches_and_across_restarts(
    fresh: Tables, make_config: Callable[..., Config]
) -> None:
    config = make_config("ingest.max_files_per_trigger=1")
    nameless = event(None, "nobody")
    land(config, "1.json", event("a"), event("a"), nameless, "broken")
    land(config, "2.json", event("a"), event("b"), "broken")
    assert numbers(ingest(fresh, config)) == (7, 3, 1, 3)
    assert fresh.read(INGEST_LOG).count() == 2  # one file a batch

    # The same id with other content, the same nameless record at another place.
    land(config, "elsewhere/3.json", event("a", "usurper"), nameless, event("c"), "broken", "broken too")
    assert numbers(ingest(fresh, config)) == (5, 1, 1, 3)
    events, quarantined = contents(fresh)
    assert quarantined == ["broken", "broken too"]
    assert len(events) == 4
    assert {"a", "b", "c"} < set(events)
    users = {row["event_id"]: row["user_id"] for row in fresh.read(EVENTS).collect()}
    assert users["a"] == "u"  # the first committed wins

    before = versions(fresh)
    assert numbers(ingest(fresh, config)) == (0, 0, 0, 0)
    assert versions(fresh) == before
    assert_log_adds_up(fresh, 12, 4, 2, 6)


def test_a_lost_checkpoint_doubles_neither_events_nor_quarantined_rows(fresh: Tables, config: Config) -> None:
    land(config, "1.json", event("a"), event(None), "broken")
    assert numbers(ingest(fresh, config)) == (3, 2, 1, 0)
    before = contents(fresh)
    shutil.rmtree(checkpoint(config))
    land(config, "2.json", event("b"), event("a"))
    assert numbers(ingest(fresh, config)) == (5, 1, 0, 4)
    events, quarantined = contents(fresh)
    assert sorted([*before[0], "b"]) == events
    assert quarantined == before[1] == ["broken"]
    assert_log_adds_up(fresh, 8, 3, 1, 4)


def test_a_file_that_is_years_older_than_the_newest_is_read(fresh: Tables, config: Config) -> None:
    land(config, "new.json", event("new"))
    assert numbers(ingest(fresh, config)) == (1, 1, 0, 0)
    for name, years in (("old.json", 2), ("older.json", 30)):
        then = time.time() - years * 365 * 86_400
        os.utime(land(config, name, event(name)), (then, then))
    assert numbers(ingest(fresh, config)) == (2, 2, 0, 0)
    assert contents(fresh)[0] == ["new", "old.json", "older.json"]


def test_a_batch_that_is_replayed_after_its_writes_doubles_nothing(
    fresh: Tables, make_config: Callable[..., Config]
) -> None:
    config = make_config("ingest.max_files_per_trigger=1")
    land(config, "1.json", event("a"), "broken")
    land(config, "2.json", event("b"), event("a"), "broken too")
    assert numbers(ingest(fresh, config)) == (5, 2, 2, 1)
    before, versions_before = contents(fresh), versions(fresh)
    # Killed after the sinks' commits, before Spark's own.
    for last in ("1", ".1.crc"):
        (checkpoint(config) / "commits" / last).unlink(missing_ok=True)
    land(config, "3.json", event("c"), event("b"))
    ingest(fresh, config)
    events, quarantined = contents(fresh)
    assert events == sorted([*before[0], "c"])
    assert quarantined == before[1]
    assert versions(fresh) == [versions_before[0] + 1, versions_before[1], versions_before[2] + 1]
    assert_log_adds_up(fresh, 7, 3, 2, 2)


def test_the_first_batch_may_be_replayed_too(fresh: Tables, config: Config) -> None:
    land(config, "1.json", event("a"), "broken")
    ingest(fresh, config)
    shutil.rmtree(checkpoint(config))
    ingest(fresh, config)
    shutil.rmtree(checkpoint(config) / "commits")
    land(config, "2.json", event("b"), event("a"), "broken")
    ingest(fresh, config)
    assert contents(fresh) == (["a", "b"], ["broken"])


class _FailsOnce(Tables):
    """Tables that break off a batch between its writes."""

    def append(
        self, rows: DataFrame, spec: TableSpec, transaction: Transaction | None = None, *, metadata: str | None = None
    ) -> None:
        if spec is EVENTS:
            raise OSError("disk full")
        super().append(rows, spec, transaction, metadata=metadata)


def test_a_batch_that_broke_off_between_its_writes_is_finished_by_the_next_run(fresh: Tables, config: Config) -> None:
    land(config, "1.json", event("a"), "broken", event("a"))
    with pytest.raises(FoldinError, match=r"^ingest failed: disk full$"):
        ingest(_FailsOnce(fresh.spark, fresh.root), config)
    assert contents(fresh) == ([], ["broken"])
    assert numbers(ingest(fresh, config)) == (3, 1, 1, 1)
    assert contents(fresh) == (["a"], ["broken"])
    assert_log_adds_up(fresh, 3, 1, 1, 1)


@pytest.mark.parametrize("leap", [False, True], ids=["by the log", "by all ids"])
def test_a_checkpoint_that_is_older_than_the_tables_is_refused(
    fresh: Tables, config: Config, monkeypatch: pytest.MonkeyPatch, leap: bool
) -> None:
    """Its next batch would pass for the one of that number that was done, and lose its rows."""
    land(config, "0.json", event("0"))
    ingest(fresh, config)
    shutil.copytree(checkpoint(config), checkpoint(config).with_name("backup"))
    land(config, "1.json", event("1"))
    ingest(fresh, config)
    shutil.rmtree(checkpoint(config))
    checkpoint(config).with_name("backup").rename(checkpoint(config))
    land(config, "2.json", event("2"))
    if leap:
        monkeypatch.setattr(admission, "_COMMITS_TO_READ", 0)
    with pytest.raises(StateMismatchError) as refused:
        ingest(fresh, config)
    assert "ends with batch 0, but events has rows of its batch 1" in str(refused.value)
    assert f"Delete {checkpoint(config)} and start again" in str(refused.value)
    assert contents(fresh)[0] == ["0", "1"]
    shutil.rmtree(checkpoint(config))
    assert numbers(ingest(fresh, config)) == (3, 1, 0, 2)
    assert contents(fresh)[0] == ["0", "1", "2"]


def test_a_stop_while_it_learns_what_others_wrote_begins_no_batch_and_ends_in_order(
    fresh: Tables, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    land(config, "0.json", event("0"))
    opened = Ingest._open

    def interrupted(query: Ingest) -> None:
        opened(query)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Ingest, "_open", interrupted)
        assert numbers(ingest(fresh, config)) == (0, 0, 0, 0)
    assert contents(fresh) == ([], [])
    assert numbers(ingest(fresh, config)) == (1, 1, 0, 0)


def test_an_empty_landing_folder_is_no_error_and_what_lands_later_is_ingested(fresh: Tables, config: Config) -> None:
    assert numbers(ingest(fresh, config)) == (0, 0, 0, 0)
    land(config, "1.json", event("a"))
    land(config, ".hidden.json", event("not yet"))
    assert numbers(ingest(fresh, config)) == (1, 1, 0, 0)


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_missing_landing_folder_is_a_config_error_and_leaves_no_checkpoint(
    fresh: Tables, make_config: Callable[..., Config], tmp_path: Path, scheme: str
) -> None:
    missing = f"{scheme}{tmp_path}/nowhere"
    config = make_config(f"ingest.landing={missing}")
    with pytest.raises(ConfigError, match=rf"^ingest\.landing = '{missing}': there is no such folder$"):
        ingest(fresh, config)
    assert {file.name for file in checkpoint(config).glob("*")} <= {"lease"}


def test_a_landing_folder_of_an_unknown_kind_is_a_config_error(
    fresh: Tables, make_config: Callable[..., Config]
) -> None:
    with pytest.raises(ConfigError, match=r"^ingest\.landing = 'nosuch://bucket/x': .*nosuch") as caught:
        ingest(fresh, make_config("ingest.landing=nosuch://bucket/x"))
    assert "\n" not in str(caught.value)


def test_parquet_without_a_file_to_take_the_schema_from_is_a_config_error(
    fresh: Tables, make_config: Callable[..., Config]
) -> None:
    with pytest.raises(ConfigError, match=r"no Parquet files to take one schema from: .*schema") as caught:
        ingest(fresh, make_config("ingest.format=parquet"))
    assert "\n" not in str(caught.value)


def _mapping(config: Config, **event: str) -> Mapping:
    base = contract(config)
    return base.model_copy(update={"event": base.event.model_copy(update=event)})


def test_a_wrong_expression_is_found_before_the_query_starts(fresh: Tables, config: Config) -> None:
    land(config, "1.json", event("a"))
    with pytest.raises(ConfigError, match=r"^mapping event contract: event\.user_id = 'uper\(user_id\)': .*`uper`"):
        ingest(fresh, config, _mapping(config, user_id="uper(user_id)"))
    assert {file.name for file in checkpoint(config).glob("*")} <= {"lease"}


def test_a_query_that_fails_says_why_in_one_line(fresh: Tables, config: Config) -> None:
    land(config, "1.json", event("a", value="many"))
    with pytest.raises(FoldinError, match=r"^ingest failed: .*'many'.*cannot be cast") as caught:
        ingest(fresh, config, _mapping(config, value="cast(value as int)"))
    assert "\n" not in str(caught.value)
    assert contents(fresh) == ([], [])
    # Mended, the same checkpoint goes on where it stood.
    assert numbers(ingest(fresh, config)) == (1, 0, 1, 0)


def test_an_account_that_does_not_add_up_is_an_error(fresh: Tables, config: Config) -> None:
    job = Ingest(fresh, config, contract(config))
    land(config, "1.json", event("a"))
    job.run(once=True)
    land(config, "2.json", event("b"), event("b"))
    job.run(once=True)
    assert numbers(job.account) == (2, 1, 0, 1)  # of the last run alone
    assert job._last is not None
    batch_id, account, known = job._last
    assert known == 1
    job._last = (batch_id, account, 2)
    with pytest.raises(AccountingError, match=r"2 of its rows were missing .* it says that it dropped 1$"):
        job._verify()


def test_a_part_of_a_batch_that_was_computed_twice_is_no_loss(
    fresh: Tables, config: Config, caplog: pytest.LogCaptureFixture
) -> None:
    job = Ingest(fresh, config, contract(config))
    land(config, "1.json", event("a"), event("a"))
    job.run(once=True)
    assert job._last is not None
    batch_id, account, known = job._last
    assert known == 1
    # A lost executor's rows are deduplicated again, and Spark counts those it drops once more.
    job._last = (batch_id, account, 0)
    job._verify()
    assert "dropped 1 rows while 0 are missing: a part of the batch was computed twice" in caplog.text


def test_a_batch_of_which_a_part_was_read_twice_runs_again_before_anything_is_written(
    fresh: Tables, config: Config, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lost = iter([True, True])
    monkeypatch.setattr(Recomputations, "found", lambda _: next(lost, False))
    land(config, "1.json", event("a"), event("a"))
    job = Ingest(fresh, config, contract(config))
    job.run(once=True)
    assert numbers(job.account) == (2, 1, 0, 1)
    assert caplog.text.count("batch 0: a part of it was lost with its host, and read twice; running it again") == 2

    monkeypatch.setattr(Recomputations, "found", lambda _: True)
    land(config, "2.json", event("b"))
    with pytest.raises(FoldinError, match=r"a part of it was lost .*, at each of 3 attempts$"):
        Ingest(fresh, config, contract(config)).run(once=True)
    assert fresh.read(EVENTS).count() == 1
    monkeypatch.undo()
    job.run(once=True)
    assert numbers(job.account) == (1, 1, 0, 0)


def test_accounts_sum() -> None:
    total = Account()
    total.add(Account(5, 2, Counter({"a": 1})))
    total.add(Account(3, 0, Counter({"a": 1, "b": 1})))
    assert numbers(total) == (8, 2, 3, 3)
    assert total.quarantined == {"a": 2, "b": 1}


def test_online_retail_lines_go_where_the_mapping_says(fresh: Tables, tmp_path: Path) -> None:
    landing = tmp_path / "landing"
    config, mapping = load_settings(
        sets=[f"tables.root={fresh.root}", f"ingest.landing={landing}"], mapping="online_retail"
    )
    sale = '536365,85123A,"LAMP, RED",6,2010-12-01 08:26:00,2.55,17850.0,United Kingdom'
    land(
        config,
        "2010-12-01.csv",
        "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country",
        sale,
        sale,
        "C536379,22423,LAMP,-1,2010-12-01 09:41:00,27.5,14527.0,United Kingdom",
        "536589,21777,,-10,2010-12-01 16:50:00,0.0,,United Kingdom",
        "536544,21773,LAMP,1,2010-12-01 14:32:00,2.51,,United Kingdom",
        "536370,POST,POSTAGE,3,2010-12-01 08:45:00,18.0,12583.0,France",
        "A563185,B,Adjust bad debt,1,2011-08-12 14:50:00,11062.06,,United Kingdom",
    )
    account = ingest(fresh, config, mapping)
    assert numbers(account) == (7, 2, 4, 1)
    assert account.quarantined == {"stock adjustment": 1, "no customer": 1, "not goods": 1, "bad debt": 1}


LINES = st.lists(
    st.sampled_from(["a", "b", "c", "d"]).map(event) | st.sampled_from(["broken", "{}", event(None)]),
    min_size=1,
    max_size=12,
)


@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(files=st.lists(LINES, min_size=1, max_size=3), files_a_batch=st.integers(1, 3))
def test_how_rows_are_cut_into_files_and_batches_does_not_matter(
    spark: SparkSession, empty_root: Path, files: list[list[str]], files_a_batch: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(empty_root, f"{folder}/tables")
        config = load_config(
            sets=[
                f"tables.root={folder}/tables",
                f"ingest.landing={folder}/landing",
                f"ingest.max_files_per_trigger={files_a_batch}",
            ]
        )
        for n, lines in enumerate(files):
            land(config, f"{n}.json", *lines)
        account = ingest(Tables(spark, config.tables.root), config)
        distinct = {line for lines in files for line in lines}
        bad = distinct & {"broken", "{}"}
        assert numbers(account)[:3] == (sum(map(len, files)), len(distinct - bad), len(bad))
