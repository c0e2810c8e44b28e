"""The health of an installation: its figures, its exit codes, and that looking at it changes nothing."""

from __future__ import annotations

import datetime as dt
import json
import os
import shutil
from pathlib import Path
from urllib.parse import urlparse

import pytest

from foldin import status
from foldin.__main__ import main
from foldin.config import Config, conf_dir
from foldin.ingest import Ingest
from foldin.mapping import contract
from foldin.schemas import EVENTS, INGEST_LOG, METRICS, MODELS
from foldin.screen import render
from foldin.status import freshness_of, health
from landing import event, land
from world import bought, fold_once


def test_freshness_over_batches_is_exact_for_one_and_follows_the_rows_of_many():
    assert freshness_of([]) is None
    assert freshness_of([(10, 1.0, 2.0, 3.0)]) == (1.0, 2.0, 3.0)
    assert freshness_of([(10, 1.0, 2.0, 3.0), (10, 1.0, 2.0, 3.0)]) == (1.0, 2.0, 3.0)
    assert freshness_of([(990, 1.0, 1.0, 1.0), (10, 60.0, 60.0, 60.0)]) == (1.0, 1.0, 1.0)
    assert freshness_of([(940, 1.0, 1.0, 1.0), (60, 60.0, 60.0, 60.0)]) == (1.0, 60.0, 60.0)
    assert freshness_of([(10, 1.0, 1.0, 1.0), (990, 60.0, 70.0, 80.0)]) == (60.0, 70.0, 80.0)


def test_an_empty_root_is_said_to_be_one_exits_3_and_stays_empty(spark, tmp_path, capsys):
    root = tmp_path / "nothing here"
    assert main(["status", "--root", str(root)]) == 3
    printed = capsys.readouterr().out
    assert "No tables here" in printed
    assert "Traceback" not in printed
    assert not root.exists()


def test_a_bad_setting_exits_2(capsys):
    assert main(["status", "--set", "alarm.lag_second=3"]) == 2
    assert "did you mean alarm.lag_seconds?" in capsys.readouterr().err


def test_commands_take_a_mapping_and_its_settings_as_jobs_do(spark, tmp_path, capsys):
    assert main(["status", "--root", str(tmp_path / "nothing here"), "--mapping", "movielens"]) == 3
    shipped = (conf_dir() / "datasets" / "movielens.toml").read_text()
    (tmp_path / "mine.toml").write_text(f"{shipped}\n[settings.alarm]\nlag_second = 3\n")
    capsys.readouterr()
    assert main(["status", "--mapping", str(tmp_path / "mine.toml")]) == 2
    assert "did you mean alarm.lag_seconds?" in capsys.readouterr().err


def test_an_installation_without_a_stream_shows_its_tables_and_its_model(world, config, capsys, tmp_path):
    before = sorted(str(path) for path in (tmp_path / "tables").rglob("*"))
    assert main(["status", "--root", str(tmp_path / "tables"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert sorted(str(path) for path in (tmp_path / "tables").rglob("*")) == before
    tables = {table["name"]: table for table in found["tables"]}
    assert {name: table["rows"] for name, table in tables.items()} == {
        "events": 97, "quarantine": 0, "ingest_log": 0, "item_factors": 12,
        "user_factors": 24, "recommendations": 24, "models": 2, "metrics": 0, "trials": 0,
    }  # fmt: skip
    files = [Path(urlparse(uri).path) for uri in world.read(EVENTS).inputFiles()]
    assert tables["events"]["files"] == len(files)
    assert tables["events"]["bytes"] == sum(file.stat().st_size for file in files)
    model = found["model"]
    assert (model["rank"], model["users"], model["items"], model["status"]) == (2, 24, 12, "active")
    assert model["parity"] < 1e-6
    at = world.read(MODELS).where("rank is not null").first()["at"].timestamp()
    assert dt.datetime.fromisoformat(model["trained"]).timestamp() == pytest.approx(at, abs=0.001)
    assert found["account"]["events_apart"] == 97  # the world's events came without an ingest job
    assert [(stream["query"], stream["at"], stream["holder"]) for stream in found["streams"]] == [
        ("ingest", None, None), ("fold_in", None, None)
    ]  # fmt: skip


def test_a_stream_shows_its_last_batch_and_what_waits_even_when_it_is_dead(
    world, make_config, events_frame, capsys, monkeypatch
):
    config = make_config("alarm.lag_seconds=3600")
    world.append(world.spark.createDataFrame([("q", 0, 98, 97, 0, 1, None)], INGEST_LOG.schema), INGEST_LOG)
    fold_once(world, config)
    world.append(events_frame(bought("a", "u1", "i0"), bought("b", "new", "i1")), EVENTS)
    fold_once(world, config)
    found = health(world, config)
    (stream,) = (stream for stream in found.streams if stream.query == "fold_in")
    last = world.read(METRICS).where("batch_id = 1").first()
    assert (stream.batch_id, stream.batches, stream.state_rows) == (1, 2, 25)
    assert stream.freshness == (last["freshness_p50"], last["freshness_p95"], last["freshness_p99"])
    assert (stream.lag_seconds, stream.waiting_files, stream.holder) == (0.0, 0, None)
    assert stream.rows_per_second == pytest.approx(99 / sum(row["seconds"] for row in world.read(METRICS).collect()))
    assert (found.exit_code, found.problems) == (0, ())
    assert found.account.adds_up
    assert (found.account.events_apart, found.account.quarantine_apart) == (2, 0)

    fresh = health(world, make_config("alarm.freshness_seconds=0.001"))
    assert fresh.exit_code == 9
    assert fresh.problems[0][1].endswith("alarm.freshness_seconds allows 0.001")
    with monkeypatch.context() as later:  # a night after the last, late batch: nobody is called for that
        later.setattr(status, "_RECENT", dt.timedelta())
        assert health(world, make_config("alarm.freshness_seconds=0.001")).exit_code == 0

    world.append(events_frame(bought("c", "u1", "i2")).coalesce(1), EVENTS)
    late = health(world, make_config("alarm.lag_seconds=0.001"))
    (stream,) = (stream for stream in late.streams if stream.query == "fold_in")
    assert stream.waiting_files == 1
    assert stream.lag_seconds > 0
    assert late.exit_code == 9
    world.append(world.spark.createDataFrame([("q", 1, 5, 1, 1, 1, None)], INGEST_LOG.schema), INGEST_LOG)
    lost = health(world, make_config("alarm.lag_seconds=0.001"))
    assert lost.exit_code == 5  # weighs more than an alarm
    assert (5, "ingest_log: 103 rows in are not 98 events + 1 quarantined + 2 duplicates") in lost.problems
    missing = "quarantine has 1 rows fewer than ingest_log says: they are lost, or somebody deleted them"
    assert (5, missing) in lost.problems
    lines = render(late).splitlines()
    assert max(len(line) for line in lines) <= 100
    assert any(line.startswith("! fold_in: lag_seconds = ") for line in lines)
    assert "files that wait: 1" in render(late)


def test_rows_that_are_gone_are_a_problem_until_the_log_says_that_they_were_erased(world, make_config):
    world.append(world.spark.createDataFrame([("q", 0, 98, 97, 0, 1, None)], INGEST_LOG.schema), INGEST_LOG)
    config = make_config()
    assert health(world, config).exit_code == 0
    gone = world.read(EVENTS).where("user_id = 'u1'").count()
    assert gone
    world.spark.sql(f"delete from {world.name(EVENTS)} where user_id = 'u1'")
    found = health(world, config)
    text = f"events has {gone} rows fewer than ingest_log says: they are lost, or somebody deleted them"
    assert (found.exit_code, found.problems) == (5, ((5, text),))
    assert f"! {text}" in render(found)
    # As README says.
    world.spark.sql(
        f"insert into {world.name(INGEST_LOG)} values ('erased', 0, -{gone}, -{gone}, 0, 0, current_timestamp())"
    )
    assert health(world, config).exit_code == 0


def test_files_that_no_job_takes_in_are_shown_and_break_the_limit_of_lag(world, make_config, tmp_path):
    config = make_config("ingest.files=*.json", "alarm.lag_seconds=3600")
    job = Ingest(world, config, contract(config))
    land(config, "1.json", event("1"))
    job.run(once=True)

    def stream(config: Config = config) -> tuple[int | None, float | None, int]:
        found = health(world, config)
        (ours,) = (stream for stream in found.streams if stream.query == "ingest")
        return ours.waiting_files, ours.lag_seconds, found.exit_code

    assert stream() == (0, 0.0, 0)
    old = land(config, "2.json", event("2"))
    land(config, "none of ours.txt", "")
    os.utime(old, (0, 0))
    files, lag, code = stream()
    assert (files, code) == (1, 0)
    assert 0 < lag < 3600  # since the last batch at the earliest, whatever the file says of itself
    assert stream(make_config("ingest.files=*.json", "alarm.lag_seconds=0.001"))[2] == 9
    shutil.rmtree(tmp_path / "landing")
    assert stream()[0] is None
