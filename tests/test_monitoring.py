"""A running query seen from outside: rows, lines and alarms, and nothing of it reaches the stream."""

from __future__ import annotations

import json
import logging
import os
import threading
import time

import pytest

from foldin.alarm import Alarm
from foldin.backlog import DeltaBacklog
from foldin.checkpoints import Checkpoint, Offset
from foldin.config import AlarmConfig
from foldin.errors import AlarmError, FoldinError
from foldin.fold_in import FoldIn
from foldin.ingest import Ingest
from foldin.mapping import contract
from foldin.monitoring import Monitor
from foldin.registry import Registry
from foldin.schemas import EVENTS, METRICS, USER_FACTORS, Position
from foldin.streaming import GracefulStop
from world import bought, fold_once, wait_until


def metrics_of(tables, query="fold_in"):
    return tables.read(METRICS).where(f"query = '{query}'").orderBy("at").collect()


def facts(line: str) -> dict[str, str]:
    """A line of key=value without blanks in its values."""
    return dict(part.split("=", 1) for part in line.split(" "))


def lines_of(caplog, event: str) -> list[dict[str, str]]:
    lines = [r.getMessage() for r in caplog.records if r.name == "foldin.metrics"]
    return [facts(line) for line in lines if line.startswith(f"event={event} ")]


def test_every_micro_batch_has_a_row_and_a_line_with_its_figures(world, make_config, events_frame, caplog):
    caplog.set_level(logging.INFO, "foldin")
    fold_once(world, make_config())
    arrived = time.time()
    for rows in (
        (bought("a", "u1", "i0"), bought("b", "new", "i1"), bought("c", "new", "i2")),
        (bought("d", "u2", "i0"),),
    ):
        world.append(events_frame(*rows).coalesce(1), EVENTS)
    fold_once(world, make_config("fold_in.max_files_per_trigger=1"))

    first, *batches = metrics_of(world)
    assert (first["rows"], first["state_rows"], first["users"]) == (97, 24, 0)
    # Events of a rebuilt state may have been published long ago: they are not fresh, and not late either.
    assert (first["freshness_p50"], first["lag_seconds"]) == (None, 0.0)
    assert [(row["rows"], row["users"], row["state_rows"]) for row in batches] == [(3, 2, 25), (1, 1, 25)]
    assert [row["batch_id"] for row in batches] == [1, 2]
    for row in batches:
        assert row["model_version"] == Registry(world).active_version()
        assert 0 < row["freshness_p50"] <= row["freshness_p95"] <= row["freshness_p99"] < time.time() - arrived
        assert {"fold", "write", "add_batch", "wal_commit", "commit_offsets"} <= row["phases"].keys()
        assert 0 < row["phases"]["fold"] + row["phases"]["write"] <= row["phases"]["add_batch"] <= row["seconds"]
        assert row["state_bytes"] > 0
        assert row["metrics_date"] == row["at"].date()
        assert row["query_id"] == FoldIn(world, make_config()).checkpoint.query_id()
    assert batches[0]["run_id"] == batches[1]["run_id"] != first["run_id"]
    one, two = batches
    assert (one["lag_files"], two["lag_files"], two["lag_bytes"], two["lag_seconds"]) == (1, 0, 0, 0.0)
    assert one["lag_bytes"] > 0
    assert one["lag_seconds"] == pytest.approx(one["freshness_p50"], abs=0.01)  # its events came at one time

    written = lines_of(caplog, "batch")
    assert [(line["batch_id"], line["rows"], line["users"]) for line in written] == [
        ("0", "97", "0"), ("1", "3", "2"), ("2", "1", "1")
    ]  # fmt: skip
    assert float(written[1]["phases.fold"]) == pytest.approx(one["phases"]["fold"], abs=0.001)
    assert [line["as"] for line in lines_of(caplog, "start")] == ["new", "resumed"]
    assert [(line["batches"], line["rows"]) for line in lines_of(caplog, "end")] == [("1", "97"), ("2", "4")]


def test_a_failed_batch_is_a_line_with_its_reason_and_its_replay_has_a_row(
    folded, config, events_frame, monkeypatch, caplog
):
    folded.append(events_frame(bought("a", "u1", "i0")), EVENTS)

    def fails(*_, **__):
        raise FoldinError("no disk")

    caplog.set_level(logging.INFO, "foldin")
    with monkeypatch.context() as broken:
        broken.setattr("foldin.publishing.Publisher.publish", fails)
        with pytest.raises(FoldinError, match="no disk"):
            fold_once(folded, config)
    (line,) = (r.getMessage() for r in caplog.records if "event=failure" in r.getMessage())
    assert line.endswith('reason="no disk"')
    assert [row["batch_id"] for row in metrics_of(folded)] == [0]
    fold_once(folded, config)
    assert [row["batch_id"] for row in metrics_of(folded)] == [0, 1]
    assert [(line["as"], line["batch"]) for line in lines_of(caplog, "start")[-2:]] == [
        ("resumed", "1"), ("replaying", "1")
    ]  # fmt: skip


def test_a_run_without_events_has_no_row(folded, config):
    before = folded.version(METRICS)
    fold_once(folded, config)
    assert folded.version(METRICS) == before


def test_an_ingest_run_counts_its_source_s_rows_and_not_those_it_is_primed_with(tables, config, tmp_path, events_frame):
    tables.append(events_frame(bought("known", "u", "i")), EVENTS)
    row = {"user_id": "u", "item_id": "i", "event_type": "view", "event_time": "2024-05-01"}
    lines = [json.dumps(row | {"event_id": event_id}) for event_id in ("a", "b", "known")]
    landed = time.time()
    (tmp_path / "landing" / "1.json").write_text("\n".join(lines))
    Ingest(tables, config, contract(config)).run(once=True)
    (found,) = metrics_of(tables, "ingest")
    assert (found["rows"], found["users"]) == (3, None)
    assert found["state_rows"] >= 3
    assert 0 <= found["freshness_p50"] <= found["freshness_p99"] < time.time() - landed + 1
    assert (found["lag_seconds"], found["lag_files"], found["lag_bytes"]) == (0.0, 0, 0)


def test_files_that_wait_in_the_folder_are_lag_from_when_they_were_first_seen_to_wait(tables, make_config, tmp_path):
    config = make_config("ingest.max_files_per_trigger=1", "metrics.flush_seconds=0.001", "ingest.files=*.json")
    row = {"user_id": "u", "item_id": "i", "event_type": "view", "event_time": "2024-05-01"}
    for n in range(12):  # past the log's first compact entry
        file = tmp_path / "landing" / f"a file, {n:02}.json"
        file.write_text(json.dumps(row | {"event_id": f"{n:02}"}))
        os.utime(file, (n, n))  # of 1970
    (tmp_path / "landing" / "of another kind").write_text("")
    began = time.time()
    Ingest(tables, config, contract(config)).run(once=True)
    found = [(row["lag_files"], row["lag_bytes"], row["lag_seconds"]) for row in metrics_of(tables, "ingest")]
    assert [files for files, _, _ in found] == list(range(11, -1, -1))
    size = file.stat().st_size
    assert [waiting for _, waiting, _ in found] == [files * size for files, _, _ in found]
    assert all(0 < lag < time.time() - began for _, _, lag in found[1:-1])  # the first look may be at its very moment
    assert found[-1] == (0, 0, 0.0)
    # A new run goes by the log that it finds.
    (tmp_path / "landing" / "later.json").write_text(json.dumps(row | {"event_id": "later"}))
    Ingest(tables, config, contract(config)).run(once=True)
    assert metrics_of(tables, "ingest")[-1]["lag_files"] == 0


def test_micro_batches_whose_reports_spark_has_thrown_away_are_counted(
    world, make_config, events_frame, monkeypatch, caplog
):
    """It keeps the last hundred; the monitor may have been busy with a write for that long."""
    caplog.set_level(logging.INFO, "foldin")
    for name in "abcde":
        world.append(events_frame(bought(name, "u1", "i0")).coalesce(1), EVENTS)
    monkeypatch.setattr("foldin.monitoring._TICK", 3600.0)
    kept = "spark.sql.streaming.numRecentProgressUpdates"
    before = world.spark.conf.get(kept)
    world.spark.conf.set(kept, 2)
    try:
        fold_once(world, make_config("fold_in.max_files_per_trigger=1"))
    finally:
        world.spark.conf.set(kept, before)
    found = [row["batch_id"] for row in metrics_of(world)]
    assert len(found) < found[-1] + 1
    (end,) = lines_of(caplog, "end")
    assert (end["metrics_errors"], end["batches"]) == ("1", str(len(found)))
    assert f"{found[0]} micro-batches before {found[0]} were over" in caplog.text


@pytest.mark.parametrize("how", ["fails", "hangs"])
def test_metrics_that_cannot_be_written_do_not_stop_the_stream(world, config, monkeypatch, caplog, how):
    monkeypatch.setattr("foldin.monitoring._JOIN", 1.0)
    fold = FoldIn(world, config)
    if how == "fails":
        other = world.spark.range(1).write.format("delta").mode("overwrite").option("overwriteSchema", True)
        other.partitionBy().save(world.path(METRICS.name))  # a table of other columns: every append is refused
        fold.run(once=True)
    else:
        with world.locked(METRICS):  # as by another process that never ends its commit
            fold.run(once=True)
    warnings = [r.getMessage() for r in caplog.records if "metrics are incomplete" in r.getMessage()]
    assert len(warnings) == 1
    assert fold.monitor.errors > 0
    assert fold.reached == Position.after(world.version(EVENTS))


def test_an_idle_stream_says_so_once_and_an_alarm_that_exits_ends_it_after_the_batch(
    world, make_config, events_frame, monkeypatch, caplog
):
    monkeypatch.setattr("foldin.monitoring._IDLE", 0.2)
    monkeypatch.setattr("foldin.monitoring._TICK", 0.05)
    caplog.set_level(logging.INFO, "foldin")
    # No row would be written before the end, so those that are there came with it.
    config = make_config("alarm.freshness_seconds=0.001", "alarm.action=exit", "metrics.flush_seconds=3600")

    def make_it_late() -> None:
        try:
            wait_until(lambda: lines_of(caplog, "idle"))
            time.sleep(1)  # twenty more looks at a stream that is idle all the while
            world.append(events_frame(bought("a", "u1", "i0")), EVENTS)
            wait_until(stop._asked.is_set)
        finally:
            stop.ask()  # else a run without an alarm would never end

    stop = GracefulStop()
    thread = threading.Thread(target=make_it_late)
    thread.start()
    rule = r"^fold_in: freshness_seconds = .*, alarm\.freshness_seconds allows 0\.001$"
    with pytest.raises(AlarmError, match=rule) as error:
        FoldIn(world, config).run(once=False, stop=stop)
    thread.join()
    assert error.value.exit_code == 9
    before = [r.getMessage() for r in caplog.records if r.name in ("foldin.metrics", "foldin.alarm")]
    kinds = [line.split()[0] if line.startswith("event=") else line[:14] for line in before]
    # Once the batch is done the stream may be idle again before it is stopped.
    assert kinds[:5] == ["event=start", "event=batch", "event=idle", "event=batch", "fold_in: ALARM"]
    assert kinds[5:] in (["event=end"], ["event=idle", "event=end"])
    assert [r.levelname for r in caplog.records if "ALARM" in r.getMessage()] == ["ERROR"]
    assert [row["batch_id"] for row in metrics_of(world)] == [0, 1]  # a rebuild raised no alarm
    assert world.read(USER_FACTORS).where("user_id = 'u1' and events = 5").count() == 1


def test_a_batch_after_an_idle_time_has_its_row(folded, config, events_frame, monkeypatch):
    interval = "spark.sql.streaming.noDataProgressEventInterval"  # 10 s: then Spark reports the batch to come
    monkeypatch.setattr("foldin.monitoring._TICK", 0.05)
    folded.spark.conf.set(interval, "100")
    stop, query = GracefulStop(), FoldIn(folded, config)
    thread = threading.Thread(target=query.run, kwargs={"once": False, "stop": stop})
    thread.start()
    try:
        for k, user in enumerate(("u1", "u2")):
            wait_until(lambda: [q for q in folded.spark.streams.active if len(q.recentProgress) > 2])
            time.sleep(1)
            folded.append(events_frame(bought(f"after-{k}", user, "i0")), EVENTS)
            wait_until(lambda k=k: query.users == k + 1)
    finally:
        stop.ask()
        thread.join()
        folded.spark.conf.unset(interval)
    assert [row["rows"] for row in metrics_of(folded)][-2:] == [1, 1]
    assert all(row["freshness_p50"] > 0 for row in metrics_of(folded)[-2:])


@pytest.fixture
def alarm(caplog) -> Alarm:
    caplog.set_level(logging.INFO, "foldin")
    config = AlarmConfig(lag_seconds=10.0, freshness_seconds=5.0, action="log")
    return Alarm(config, "q", GracefulStop())


def test_an_alarm_is_one_line_when_a_limit_breaks_and_one_when_it_holds_again(alarm, caplog):
    for lag, freshness in ((10.0, None), (11.0, 6.0), (99.0, None), (None, 5.0), (10.0, 4.0)):
        alarm.lag(lag)
        alarm.freshness(freshness)
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [
        ("ERROR", "q: ALARM: lag_seconds = 11.0, alarm.lag_seconds allows 10"),
        ("ERROR", "q: ALARM: freshness_seconds = 6.0, alarm.freshness_seconds allows 5"),
        ("WARNING", "q: alarm over: freshness_seconds = 5.0, the limit is 5"),
        ("WARNING", "q: alarm over: lag_seconds = 10.0, the limit is 10"),
    ]
    alarm.check()
    assert not alarm.stop._asked.is_set()


def test_a_batch_that_hangs_raises_the_alarm_and_its_end_takes_it_back(tables, make_config, monkeypatch, caplog):
    monkeypatch.setattr("foldin.monitoring._TICK", 0.02)
    caplog.set_level(logging.INFO, "foldin")
    hanging = threading.Event()
    config = make_config("alarm.lag_seconds=0.2", "alarm.action=exit")
    checkpoint = Checkpoint(tables.spark, tables.path("_checkpoints", "q"))
    monitor = Monitor(tables, config, "q", checkpoint, GracefulStop())
    process = monitor.around(lambda batch, batch_id: hanging.wait(60))

    def run() -> None:
        with monitor:
            thread = threading.Thread(target=process, args=(None, 7))
            thread.start()
            wait_until(monitor.stop._asked.is_set)
            hanging.set()
            thread.join()

    with pytest.raises(AlarmError, match=r"^q: lag_seconds = .*batch 7 is not done yet\)$"):
        run()


def test_the_backlog_of_a_table_is_what_was_appended_beyond_a_position(tables, events_frame, tmp_path):
    backlog = DeltaBacklog(Checkpoint(tables.spark, str(tmp_path / "tables" / "events" / "_delta_log")))

    def beyond(version: int, index: int = -1, in_snapshot: bool = False):
        return backlog.beyond(Offset(Position(version, index), in_snapshot))

    assert beyond(1).nothing
    for n in range(3):
        tables.append(events_frame(bought(f"e{n}", "u1", "i0")).coalesce(1), EVENTS)
    files = sorted((tmp_path / "tables" / "events").rglob("*.parquet"))
    assert (beyond(1).files, beyond(1).bytes) == (3, sum(file.stat().st_size for file in files))
    assert (beyond(3).files, beyond(3, 0).files, beyond(4).files) == (1, 0, 0)
    assert beyond(1).since == pytest.approx(time.time(), abs=60)
    tables.spark.sql(f"optimize {tables.name(EVENTS)}")
    assert tables.version(EVENTS) == 4
    assert beyond(4).nothing  # compaction appends no row, and the stream skips an erasure
    tables.spark.sql(f"delete from {tables.name(EVENTS)} where event_id = 'e0'")
    assert tables.version(EVENTS) == 5
    assert beyond(4).nothing
    assert not beyond(5, 0, in_snapshot=True).nothing
