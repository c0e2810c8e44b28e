"""A micro-batch's appends, each made once however often it is tried, and known by what the log says of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from foldin.commits import Attempt, CommitLog
from foldin.compaction import compact
from foldin.errors import LeaseError
from foldin.schemas import EVENTS
from foldin.tables import Tables
from world import bought


@pytest.fixture
def rows(events_frame):
    return events_frame(bought("a", "u", "i"))


def attempt(tables: Tables, batch_id: int = 3, *, first: bool, query: str = "q") -> Attempt:
    return Attempt.at_batch(
        query, batch_id, {EVENTS.name: CommitLog(tables, EVENTS).newest()}, first=first, check=lambda: None
    )


def again(of: Attempt) -> Attempt:
    return replace(of, first=False)


def test_what_an_attempt_has_appended_the_next_one_does_not_whatever_came_after_it(tables, rows):
    first = attempt(tables, first=True)
    first.append(tables, rows, EVENTS)
    tables.append(rows, EVENTS)
    compact(tables, EVENTS)
    again(first).append(tables, rows, EVENTS)
    assert tables.read(EVENTS).count() == 2
    assert again(first).committed(tables, EVENTS).rows == 1


def test_who_has_lost_its_lease_since_the_batch_began_appends_nothing(tables, rows):
    def lost() -> None:
        raise LeaseError("taken over")

    with pytest.raises(LeaseError):
        replace(attempt(tables, first=True), check=lost).append(tables, rows, EVENTS)
    assert tables.read(EVENTS).count() == 0


def test_an_attempt_that_appended_nothing_is_made_good_by_the_next(tables, rows):
    first = attempt(tables, first=True)
    tables.append(rows, EVENTS)
    again(first).append(tables, rows, EVENTS)
    again(first).append(tables, rows, EVENTS)
    assert tables.read(EVENTS).count() == 2


def test_ids_with_line_separators_stand_in_the_log_as_they_are_and_do_not_break_it(tables, events_frame):
    rows = events_frame(bought("\u2028a", "\u2029u", "\u0085i"), bought("b\u2028", "v\x1c", "j\x0c"))
    first = attempt(tables, first=True)
    first.append(tables, rows, EVENTS)
    again(first).append(tables, rows, EVENTS)
    assert again(first).committed(tables, EVENTS).rows == 2
    assert tables.read(EVENTS).count() == 2


@pytest.mark.parametrize(("batch_id", "query"), [(4, "q"), (3, "r"), (33, "q")])
def test_another_batch_or_query_is_not_mistaken_for_it(tables, rows, batch_id, query):
    before = attempt(tables, batch_id, query=query, first=False)
    attempt(tables, first=True).append(tables, rows, EVENTS)
    before.append(tables, rows, EVENTS)
    assert tables.read(EVENTS).count() == 2


def test_a_log_that_begins_after_the_first_attempt_is_asked_for_what_it_has(tables, rows):
    tables.spark.sql(f"alter table {tables.name(EVENTS)} set tblproperties ('delta.checkpointInterval' = '1')")
    first = attempt(tables, first=True)
    tables.append(rows, EVENTS)
    first.append(tables, rows, EVENTS)
    for version in range(first.since[EVENTS.name] + 1):
        Path(tables.path(EVENTS.name), "_delta_log", f"{version:020d}.json").unlink()
    assert again(first).committed(tables, EVENTS).version == first.since[EVENTS.name] + 2
    assert attempt(tables, 4, first=False).committed(tables, EVENTS) is None


def test_the_newest_version_is_seen_as_others_append(tables, rows):
    log = CommitLog(tables, EVENTS)
    seen = [log.newest()]
    for _ in range(2):
        tables.append(rows, EVENTS)
        seen.append(log.newest())
    assert seen == [0, 1, 2]
