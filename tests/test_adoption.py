"""A model comes into force while events arrive, or none do: readers see one whole version, no event is missing."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from pyspark.sql import functions as F

from chaos.equal import assert_nothing_published_twice
from foldin.adoption import Adopter, bring_into_force, last_adopted
from foldin.config import load_config
from foldin.errors import FoldinError, RejectedModelError, StateMismatchError
from foldin.fold_in import FoldIn
from foldin.publishing import Publisher
from foldin.registry import PromotionConflictError, Registry
from foldin.schemas import EVENTS, ITEM_FACTORS, MODELS, USER_FACTORS, Position
from foldin.streaming import GracefulStop
from foldin.tables import Tables
from foldin.training import train
from world import (
    SMALL,
    assert_same_vectors,
    bought,
    copy_of,
    events_of,
    fold_once,
    latest_lists,
    latest_vectors,
    vectors,
    wait_until,
)

pytestmark = pytest.mark.lifecycle


def by_definition(tables, version: str) -> dict[str, np.ndarray]:
    """Every user's history as of now, solved under the version."""
    publisher, now = Publisher(tables, 3), tables.version(EVENTS)
    users = publisher.histories_at(publisher.model(version), now)
    return vectors(publisher.folded(users, version, Position.after(now)))


def assert_whole(tables, version: str) -> None:
    """The version is in force, and nothing is missing from what readers see."""
    assert Registry(tables).active_version() == version
    wanted = by_definition(tables, version)
    assert_same_vectors(latest_vectors(tables, version), wanted)
    assert latest_lists(tables, version).keys() == wanted.keys()


def statuses(tables, version: str) -> list[str]:
    rows = tables.read(MODELS).where(F.col("model_version") == version).orderBy("at").collect()
    return [row["status"] for row in rows]


@pytest.fixture(scope="module")
def prepared(spark, folded_root, tmp_path_factory) -> tuple[Path, str]:
    """Tables with a model that was trained before the last event came and was folded, and its name; to be copied."""
    root = copy_of(folded_root, tmp_path_factory.mktemp("candidate") / "tables")
    config = load_config(sets=[f"tables.root={root}", *SMALL])
    tables = Tables.of(spark, config.tables)
    version = train(tables, config, activate=False).model_version
    rows = bought("after the cut", "u1", "i0"), bought("new", "new", "i1")
    tables.append(events_of(spark, *rows), EVENTS)
    fold_once(tables, config)
    return root, version


@pytest.fixture
def candidate(prepared, folded) -> str:
    """A model that was trained before the last event came and was folded: `folded` has both."""
    root, version = prepared
    shutil.rmtree(folded.root)
    copy_of(root, Path(folded.root))
    return version


def test_a_model_that_is_asked_for_is_adopted_by_the_stream_without_an_event(folded, config, candidate):
    Registry(folded).ask_for(candidate, reason="test")
    assert fold_once(folded, config) == 0
    assert_whole(folded, candidate)
    assert statuses(folded, candidate) == ["candidate", "requested", "active"]
    adopted = last_adopted(FoldIn(folded, config).checkpoint)
    assert adopted.model_version == candidate
    assert Registry(folded).promotion().caught_up == adopted.position


def test_after_an_adoption_a_batch_folds_its_own_users_and_no_others(folded, config, candidate, events_frame):
    registry = Registry(folded)
    expected, caught_up = registry.read(), Position.after(folded.version(EVENTS))
    Publisher(folded, 3).catch_up(candidate, registry.load(candidate).cut, caught_up)
    folded.append(events_frame(bought("a", "u5", "i0")), EVENTS)
    fold_once(folded, config)
    registry.promote(candidate, caught_up, reason="test", expected=expected)  # u5 is not caught up with
    fold_once(folded, config)
    folded.append(events_frame(bought("b", "u3", "i1")), EVENTS)
    assert fold_once(folded, config) == 1
    assert_whole(folded, candidate)


def test_what_a_batch_job_promotes_under_a_stream_that_was_further_is_made_whole_without_an_event(
    folded, config, candidate, events_frame
):
    registry = Registry(folded)
    expected, caught_up = registry.read(), Position.after(folded.version(EVENTS))
    Publisher(folded, 3).catch_up(candidate, registry.load(candidate).cut, caught_up)
    folded.append(events_frame(bought("c+1", "u5", "i0")), EVENTS)
    fold_once(folded, config)  # under the model before
    registry.promote(candidate, caught_up, reason="test", expected=expected)
    fold_once(folded, config)  # no event: only the promotion
    assert_whole(folded, candidate)
    fold_once(folded, config)
    assert last_adopted(FoldIn(folded, config).checkpoint).model_version == candidate


@pytest.mark.parametrize(
    ("owner", "method", "call"),
    [
        (Publisher, "catch_up", 1),
        (Registry, "promote", 1),
        (Adopter, "_done", 1),
    ],
)
def test_killed_at_any_step_the_adoption_is_finished_by_the_next_start(
    folded, config, candidate, events_frame, monkeypatch, owner, method, call
):
    original, calls = getattr(owner, method), []

    def dies(*args, **kwargs):
        calls.append(method)
        if len(calls) == call:
            raise FoldinError("killed")
        return original(*args, **kwargs)

    Registry(folded).ask_for(candidate, reason="test")
    monkeypatch.setattr(owner, method, dies)
    monkeypatch.setattr(Adopter, "_keep_looking", lambda self: None)  # only the look at the end of a run
    with pytest.raises(FoldinError, match="killed"):
        fold_once(folded, config)
    monkeypatch.undo()
    folded.append(events_frame(bought("b", "u3", "i1")), EVENTS)
    fold_once(folded, config)
    assert_whole(folded, candidate)


@pytest.mark.parametrize(("owner", "method"), [(Registry, "promote"), (Adopter, "_done")])
def test_what_was_refolded_before_a_kill_is_not_published_again(
    folded, config, candidate, events_frame, monkeypatch, owner, method
):
    registry = Registry(folded)
    if method == "_done":  # somebody else promotes, behind the stream's back
        expected, caught_up = registry.read(), Position.after(folded.version(EVENTS))
        Publisher(folded, 3).catch_up(candidate, registry.load(candidate).cut, caught_up)
        folded.append(events_frame(bought("c+1", "u5", "i0")), EVENTS)
        fold_once(folded, config)
        registry.promote(candidate, caught_up, reason="test", expected=expected)
    else:
        registry.ask_for(candidate, reason="test")

    def dies(*_args, **_named):
        raise FoldinError("killed")

    rows = folded.read(USER_FACTORS).count()
    monkeypatch.setattr(owner, method, dies)
    monkeypatch.setattr(Adopter, "_keep_looking", lambda self: None)
    with pytest.raises(FoldinError, match="killed"):
        fold_once(folded, config)
    monkeypatch.undo()
    assert folded.read(USER_FACTORS).count() > rows  # the refold was made before the kill
    fold_once(folded, config)
    assert_nothing_published_twice(folded)
    assert_whole(folded, candidate)


def test_a_candidate_whose_item_factors_are_incomplete_is_refused_with_the_reason(folded, config, candidate):
    before = Registry(folded).active_version()
    name = folded.name(ITEM_FACTORS)
    folded.spark.sql(f"delete from {name} where model_version = '{candidate}' and item_id = 'i0'")
    Registry(folded).ask_for(candidate, reason="test")
    fold_once(folded, config)
    assert Registry(folded).active_version() == before
    assert statuses(folded, candidate) == ["candidate", "requested", "refused"]
    assert "rows of item factors" in Registry(folded).why_not(candidate)


def test_of_two_trainings_at_once_the_one_that_has_seen_less_stays_a_candidate(folded, config, candidate):
    newer = train(folded, config).model_version
    with pytest.raises(RejectedModelError, match=f"{candidate} stays a candidate: it is older than {newer}"):
        bring_into_force(folded, config, candidate, reason="trained", newer=True)
    assert_whole(folded, newer)
    assert statuses(folded, candidate) == ["candidate", "refused"]
    assert f"it is older than {newer}" in Registry(folded).why_not(candidate)
    bring_into_force(folded, config, candidate, reason="rollback")  # asked for by hand, it is what is wanted
    assert_whole(folded, candidate)


def test_of_two_promoters_at_once_one_is_told(folded, config, candidate, monkeypatch):
    other = train(folded, config, activate=False).model_version
    together, waited, errors, original = threading.Barrier(2), set(), [], Publisher.catch_up

    def both(*args, **kwargs):
        if threading.get_ident() not in waited:
            waited.add(threading.get_ident())
            together.wait(60)
        return original(*args, **kwargs)

    def promote(version: str) -> None:
        try:
            bring_into_force(folded, config, version, reason="test")
        except PromotionConflictError as error:
            errors.append(str(error))

    monkeypatch.setattr(Publisher, "catch_up", both)
    threads = [threading.Thread(target=promote, args=(version,)) for version in (candidate, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert folded.read(MODELS).where("status = 'active'").count() == 1 + 1
    assert len(errors) == 1
    assert "was taken by somebody else" in errors[0]
    winner = Registry(folded).active_version()
    loser = ({candidate, other} - {winner}).pop()
    assert statuses(folded, loser) == ["candidate", "refused"]
    assert Registry(folded).why_not(loser) == errors[0]
    assert_whole(folded, winner)


def test_what_a_stream_folded_and_left_while_a_batch_job_caught_up_is_refolded(
    folded, config, candidate, events_frame, monkeypatch
):
    original = Registry.promote

    def late(*args, **kwargs):
        monkeypatch.undo()
        folded.append(events_frame(bought("c+1", "u5", "i0")), EVENTS)
        fold_once(folded, config)  # under the model before; then it ends
        return original(*args, **kwargs)

    monkeypatch.setattr(Registry, "promote", late)
    bring_into_force(folded, config, candidate, reason="test")
    assert_whole(folded, candidate)


def test_a_model_that_the_state_cannot_serve_is_refused_and_the_stream_goes_on(
    folded, config, make_config, candidate, events_frame
):
    before = Registry(folded).active_version()
    wide = train(folded, make_config("history.max_events_per_user=1000"), activate=False).model_version
    Registry(folded).ask_for(wide, reason="test")
    fold_once(folded, config)
    assert statuses(folded, wide) == ["candidate", "requested", "refused"]
    assert "1000" in Registry(folded).why_not(wide)
    # Promoted by somebody who has no stream, it stops the stream; nothing of it is written down, so one can go back.
    Publisher(folded, 3).activate(wide, reason="test")
    folded.append(events_frame(bought("b", "u3", "i1")), EVENTS)
    with pytest.raises(StateMismatchError, match="histories of 1000 events"):
        fold_once(folded, config)
    bring_into_force(folded, config, before, reason="rollback")
    fold_once(folded, config)
    assert_whole(folded, before)


def test_an_older_training_does_not_push_aside_a_newer_one_that_is_asked_for(folded, config, candidate):
    newer = train(folded, config, activate=False).model_version
    registry = Registry(folded)
    registry.ask_for(newer, reason="trained")
    with pytest.raises(RejectedModelError, match=f"older than {newer}, which is asked for"):
        bring_into_force(folded, config, candidate, reason="trained", newer=True)
    assert registry.read().asked == newer
    fold_once(folded, config)
    assert_whole(folded, newer)


def test_when_the_stream_has_gone_who_asked_it_does_the_work(folded, config, candidate, monkeypatch):
    runs = iter([True, True, False])
    monkeypatch.setattr("foldin.adoption.stream_runs", lambda tables: next(runs))
    monkeypatch.setattr("foldin.adoption.holder_of", lambda checkpoint: "a process that ends")
    assert bring_into_force(folded, config, candidate, reason="test", wait=60)
    assert statuses(folded, candidate) == ["candidate", "requested", "active"]
    assert_whole(folded, candidate)


def test_a_request_that_is_overtaken_is_no_request_any_more(folded, config, candidate):
    registry = Registry(folded)
    seen = registry.read()
    registry.ask_for(candidate, reason="test")
    assert registry.read().asked == candidate
    with pytest.raises(PromotionConflictError):
        registry.promote(candidate, Position(1), reason="saw nothing of it", expected=seen)
    other = train(folded, config).model_version  # no stream runs: it is promoted at once
    assert registry.read().asked is None
    assert f"active {other} came in between" in registry.why_not(candidate)


def test_train_asks_a_running_stream_and_comes_back_when_the_model_is_in_force(folded, config, events_frame):
    stop, errors = GracefulStop(), []

    def run() -> None:
        try:
            FoldIn(folded, config).run(once=False, stop=stop)
        except BaseException as error:
            errors.append(error)

    stream = threading.Thread(target=run, daemon=True)
    stream.start()
    feeding = threading.Event()

    def feed() -> None:
        for k in range(100):
            if feeding.is_set():
                return
            folded.append(events_frame(bought(f"f{k}", f"u{k % 24}", f"i{k % 12}")), EVENTS)
            time.sleep(0.2)

    try:
        folded.append(events_frame(bought("first", "u1", "i0")), EVENTS)
        wait_until(lambda: errors or folded.read(USER_FACTORS).where("user_id = 'u1' and events = 5").count())
        assert not errors
        feeder = threading.Thread(target=feed, daemon=True)
        feeder.start()
        version = train(folded, config).model_version
        assert Registry(folded).active_version() == version
        assert statuses(folded, version) == ["candidate", "requested", "active"]
        feeding.set()
        feeder.join()
    finally:
        feeding.set()
        stop.ask()
        stream.join(120)
    assert not errors
    fold_once(folded, config)
    assert_whole(folded, version)


def test_without_a_stream_a_version_is_brought_into_force_at_once(folded, config, candidate):
    assert bring_into_force(folded, config, candidate, reason="test")
    assert_whole(folded, candidate)
