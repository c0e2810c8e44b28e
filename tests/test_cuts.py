"""A training for a moment of the past sees what had been ingested by then, and never says that it has seen more."""

from __future__ import annotations

import datetime as dt
import time

import pytest
from pyspark.sql import functions as F

from foldin import cuts, gate
from foldin.adoption import bring_into_force
from foldin.compaction import compact
from foldin.cuts import cut_at
from foldin.errors import ConfigError, LeaseError, RejectedModelError
from foldin.fitting import EmptyTrainingCutError
from foldin.gate import admit, check
from foldin.leases import Lease
from foldin.registry import Registry
from foldin.schemas import EVENTS, ITEM_FACTORS, MODELS, RECOMMENDATIONS, USER_FACTORS, Position
from foldin.training import train
from foldin.trimming import trim
from world import assert_same_vectors, bought, fold_once, initial_rows, latest_vectors, vectors

pytestmark = pytest.mark.lifecycle

DAY = dt.timedelta(days=1)


def now() -> dt.datetime:
    time.sleep(0.01)  # a commit's time is in milliseconds
    return dt.datetime.now(dt.UTC)


def ids(frame) -> set[str]:
    return {row["event_id"] for row in frame.select("event_id").collect()}


@pytest.fixture
def between(tables, events_frame) -> dt.datetime:
    """A moment after version 1 of `events` and before versions 2 and 3."""
    tables.append(events_frame(*initial_rows()), EVENTS)
    moment = now()
    tables.append(events_frame(bought("late 1", "u1", "i0"), bought("late 2", "new", "i1")), EVENTS)
    tables.append(events_frame(bought("late 3", "u2", "i3")), EVENTS)
    return moment


def by_definition(tables, version: str):
    """Every user's history as of now, solved under the version."""
    from foldin.publishing import Publisher

    publisher, newest = Publisher(tables, 3), tables.version(EVENTS)
    users = publisher.histories_at(publisher.model(version), newest)
    return vectors(publisher.folded(users, version, Position.after(newest)))


def test_without_a_moment_or_with_one_after_all_events_it_is_the_whole_table(tables, between):
    for until in (None, now(), now() + DAY):
        cut = cut_at(tables, until)
        assert cut.version == 3
        assert cut.events.count() == 100


def test_the_log_says_which_version_there_was_at_a_moment(tables, between):
    cut = cut_at(tables, between)
    assert cut.version == 1
    assert not {"late 1", "late 2", "late 3"} & ids(cut.events)
    assert cut.events.count() == 97
    compact(tables, EVENTS)  # rewrites all of them into one file
    again = cut_at(tables, between)
    assert (again.version, ids(again.events)) == (1, ids(cut.events))


def test_a_row_that_was_committed_late_takes_the_version_back(tables, between, events_frame):
    """Clocks that differ: a commit of before the moment, by its own clock, has a row of after it."""
    ahead = events_frame(bought("ahead", "u3", "i0")).withColumn("ingested_at", F.expr("now() + interval 1 hour"))
    tables.append(ahead, EVENTS)
    moment = now() + dt.timedelta(minutes=30)
    cut = cut_at(tables, moment)
    assert "ahead" not in ids(cut.events)
    assert cut.events.count() == 100
    assert cut.version < 4


def test_where_the_log_has_forgotten_the_moment_a_model_of_before_it_says_what_was_there(
    tables, between, config, monkeypatch
):
    monkeypatch.setattr(cuts, "_version_in_log", lambda *_: None)
    assert cut_at(tables, between).version == -1
    monkeypatch.setattr(cuts, "_SKEW", 0.0)
    train(tables, config)  # on version 3
    later = now()
    tables.append(tables.read(EVENTS).limit(1).withColumn("ingested_at", F.expr("now() + interval 1 day")), EVENTS)
    assert cut_at(tables, later).version == 3
    assert cut_at(tables, between).version == -1


def test_before_all_events_there_is_nothing_to_train_on(tables, between):
    with pytest.raises(EmptyTrainingCutError, match=r"no event was ingested before 2001-02-03"):
        cut_at(tables, dt.datetime(2001, 2, 3, tzinfo=dt.UTC))


@pytest.mark.parametrize("forgotten", [False, True], ids=["by the log", "without the log"])
def test_a_model_of_the_past_that_is_brought_into_force_misses_nobody(tables, config, between, monkeypatch, forgotten):
    if forgotten:
        monkeypatch.setattr(cuts, "_version_in_log", lambda *_: None)
    newest = train(tables, config).model_version
    with pytest.raises(RejectedModelError, match=f"it is older than {newest}"):
        train(tables, config, name="past", until=between)
    assert Registry(tables).active_version() == newest
    row = Registry(tables).row("past")
    assert (row["events"], row["cut_version"]) == (97, -1 if forgotten else 1)
    with pytest.raises(RejectedModelError, match=f"it is older than {newest}"):
        check(tables, config, "past")
    assert bring_into_force(tables, config, "past", reason="forced")
    assert_same_vectors(latest_vectors(tables, "past"), by_definition(tables, "past"))
    assert "new" in latest_vectors(tables, "past")


def test_a_stream_that_adopts_a_model_of_the_past_misses_nobody(tables, config, between, events_frame):
    train(tables, config)
    fold_once(tables, config)
    train(tables, config, activate=False, name="past", until=between)
    Registry(tables).ask_for("past", reason="forced")
    tables.append(events_frame(bought("later", "u5", "i0")), EVENTS)
    fold_once(tables, config)
    assert Registry(tables).active_version() == "past"
    assert_same_vectors(latest_vectors(tables, "past"), by_definition(tables, "past"))


def test_a_name_is_trained_once_and_the_second_time_goes_on_where_the_first_one_ended(tables, config, between):
    first = train(tables, config, activate=False, name="night")
    assert (first.again, first.active) == (False, False)
    models = tables.read(MODELS).count()
    again = train(tables, config, activate=False, name="night")
    assert (again.again, again.events) == (True, first.events)
    assert tables.read(MODELS).count() == models
    assert train(tables, config, name="night").active
    models = tables.read(MODELS).count()
    assert train(tables, config, name="night").active
    assert check(tables, config, "night")
    assert bring_into_force(tables, config, "night", reason="twice")
    assert tables.read(MODELS).count() == models


def test_a_model_in_force_is_admitted_whatever_it_would_be_judged_now(tables, config, between, monkeypatch):
    train(tables, config, name="night")
    train(tables, config, activate=False, name="next")
    monkeypatch.setattr(gate, "verdict", lambda *_: "judgement is worse")
    assert admit(tables, config, "night")
    with pytest.raises(RejectedModelError, match="stays a candidate"):
        admit(tables, config, "next")


def test_what_a_killed_training_left_under_the_name_goes_before_it_is_trained_again(
    tables, config, between, monkeypatch
):
    def dies(*_args, **_named):
        raise KeyboardInterrupt

    monkeypatch.setattr(Registry, "candidate", dies)
    with pytest.raises(KeyboardInterrupt):
        train(tables, config, name="night")
    monkeypatch.undo()
    specs = (ITEM_FACTORS, USER_FACTORS, RECOMMENDATIONS)
    left = [tables.read(spec).count() for spec in specs]
    assert all(left)
    assert train(tables, config, name="night").active
    assert [tables.read(spec).count() for spec in specs] == left


def test_two_trainings_with_names_do_not_overlap(tables, config):
    with Lease.of_job(tables, "train", 30), pytest.raises(LeaseError, match="is in use by process"):
        train(tables, config, name="night")


@pytest.mark.parametrize("name", ["", "../x", "a b", "trial-1", "-x", "x" * 101])
def test_what_can_name_no_model_is_refused(tables, config, name):
    with pytest.raises(ConfigError, match="can name no model"):
        train(tables, config, name=name)


def test_a_lease_of_a_job_keeps_no_log(tables, between, events_frame):
    with Lease.of_job(tables, "train", 30):
        assert trim(tables, EVENTS, 3) == 0
