"""Several ingest jobs at once: no id is in `events` twice, and the accounts add up to what the tables hold."""

from __future__ import annotations

import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import DataFrame

from foldin.config import Config
from foldin.errors import FoldinError, StateMismatchError
from foldin.ingest import Ingest
from foldin.ledger import Account
from foldin.mapping import contract
from foldin.schemas import EVENTS, INGEST_LOG, QUARANTINE, TableSpec
from foldin.tables import Tables, Transaction
from landing import event, land


@pytest.fixture
def two(make_config: Callable[..., Config], tmp_path: Path) -> tuple[Config, Config]:
    """Two jobs with a landing folder each."""
    made = []
    for name in ("ours", "theirs"):
        (tmp_path / name).mkdir()
        made.append(
            make_config(f"ingest.name={name}", f"ingest.landing={tmp_path / name}", "ingest.max_files_per_trigger=1")
        )
    return made[0], made[1]


class _Tables(Tables):
    """Tables with something that happens at a write: before it, or after its commit."""

    def append(
        self, rows: DataFrame, spec: TableSpec, transaction: Transaction | None = None, *, metadata: str | None = None
    ) -> None:
        super().append(rows, spec, transaction, metadata=metadata)
        if action := _ACTIONS.pop(("after", spec.name), None):
            action()

    @contextmanager
    def locked(self, spec: TableSpec) -> Iterator[None]:
        if action := _ACTIONS.pop(("before", spec.name), None):
            action()
        with super().locked(spec):
            yield


_ACTIONS: dict[tuple[str, str], Callable[[], Any]] = {}


@pytest.fixture(autouse=True)
def _no_actions_left() -> Any:
    _ACTIONS.clear()
    yield
    assert not _ACTIONS, "something was to happen at a write that never came"


def ingest(tables: Tables, config: Config) -> tuple[int, int, int, int]:
    return numbers(Ingest(tables, config, contract(config)).run(once=True))


def numbers(account: Account) -> tuple[int, int, int, int]:
    return account.rows_in, account.events, account.quarantined.total(), account.duplicates


def die() -> None:
    raise OSError("killed")


def assert_exact(tables: Tables, rows_in: int, ids: str, broken: int = 0) -> None:
    """The tables hold each of `ids` once, and the log's sums are what they hold."""
    found = Counter(row["event_id"] for row in tables.read(EVENTS).select("event_id").collect())
    assert found == Counter(ids)
    assert tables.read(QUARANTINE).count() == broken
    sums = tables.read(INGEST_LOG).groupBy().sum("rows_in", "events", "quarantined", "duplicates").first()
    assert tuple(sums) == (rows_in, len(ids), broken, rows_in - len(ids) - broken)


def test_jobs_that_take_in_the_same_ids_in_turns_write_none_twice(tables: Tables, two: tuple[Config, Config]) -> None:
    ours, theirs = two
    land(ours, "1.json", event("a"), event("b"), "broken")
    assert ingest(tables, ours) == (3, 2, 1, 0)
    land(theirs, "1.json", event("b"), event("c"), "broken", "more broken")
    assert ingest(tables, theirs) == (4, 1, 1, 2)
    # In one batch: an id that arrives with the known ids, one that its own state knows, and a new one.
    land(ours, "2.json", event("c"), event("a"), event("d"), "more broken")
    land(ours, "3.json", event("c"), event("e"))
    assert ingest(tables, ours) == (6, 2, 0, 4)
    land(theirs, "2.json", event("d"), event("e"), event("c"))
    assert ingest(tables, theirs) == (3, 0, 0, 3)
    assert_exact(tables, 16, "abcde", 2)


def test_a_job_whose_whole_run_falls_between_anothers_check_and_append_has_the_ids(
    tables: Tables, two: tuple[Config, Config]
) -> None:
    ours, theirs = two
    land(ours, "1.json", event("x"), event("y"))
    land(theirs, "1.json", event("y"), event("z"))
    theirs_account: list[tuple[int, int, int, int]] = []
    _ACTIONS["before", "events"] = lambda: theirs_account.append(ingest(tables, theirs))
    assert ingest(_Tables(tables.spark, tables.root), ours) == (2, 1, 0, 1)
    assert theirs_account == [(2, 2, 0, 0)]
    assert_exact(tables, 4, "xyz")


def test_a_batch_killed_after_its_commit_is_accounted_for_as_it_was_whatever_others_write_before_its_replay(
    tables: Tables, two: tuple[Config, Config]
) -> None:
    ours, theirs = two
    land(ours, "1.json", event("a"), "broken")
    assert ingest(tables, ours) == (2, 1, 1, 0)
    land(ours, "2.json", event("b"), event("c"), event("a"), "broken too")
    _ACTIONS["after", "events"] = die
    with pytest.raises(FoldinError, match="killed"):
        ingest(_Tables(tables.spark, tables.root), ours)
    land(theirs, "1.json", event("c"), event("d"), "broken too")
    assert ingest(tables, theirs)[1] == 1
    assert ingest(tables, ours)[:2] == (4, 2)
    assert_exact(tables, 9, "abcd", 2)


def test_an_account_that_a_crash_kept_from_the_log_is_logged_by_the_next_start(
    tables: Tables, two: tuple[Config, Config]
) -> None:
    ours, _ = two
    land(ours, "1.json", event("a"), event("a"))
    for when in ("before", "after"):
        _ACTIONS[when, "ingest_log"] = die
        with pytest.raises(FoldinError, match=r"^cannot write ingest_log: killed$"):
            ingest(_Tables(tables.spark, tables.root), ours)
        land(ours, f"{when}.json", event(when[0]))
    ingest(tables, ours)
    assert_exact(tables, 4, "ab")


def test_jobs_that_run_at_the_same_time_over_the_same_rows_write_each_once(
    tables: Tables, two: tuple[Config, Config]
) -> None:
    for config in two:
        for n in range(4):
            land(config, f"{n}.json", event("abcd"[n]), event("abcd"[n - 1]), f"broken {n}")
    accounts: dict[str, tuple[int, int, int, int]] = {}

    def work(config: Config) -> None:
        accounts[config.ingest.name] = ingest(tables, config)

    threads = [threading.Thread(target=work, args=(config,)) for config in two]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(240)
    assert len(accounts) == 2
    assert sum(account[1] for account in accounts.values()) == 4
    assert_exact(tables, 24, "abcd", 4)


@pytest.mark.parametrize("folder", ["admission", "lease"])
def test_a_damaged_note_of_a_checkpoint_is_refused_with_the_way_on(
    tables: Tables, make_config: Callable[..., Config], folder: str
) -> None:
    config = make_config()
    land(config, "1.json", event("a"))
    ingest(tables, config)
    checkpoint = Path(tables.root, "_checkpoints", "ingest")
    newest = max((path for path in (checkpoint / folder).iterdir() if path.name.isdigit()), key=lambda p: int(p.name))
    newest.write_bytes(newest.read_bytes()[:-2])
    with pytest.raises(StateMismatchError, match=rf"{folder}/{newest.name} is damaged .*: delete {checkpoint} and "):
        ingest(tables, config)
    shutil.rmtree(checkpoint)
    assert ingest(tables, config) == (1, 0, 0, 1)
