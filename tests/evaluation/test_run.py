"""The evaluation with real models, on a log that is small enough to train on in seconds."""

from __future__ import annotations

import csv
import datetime as dt
import runpy
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from pyspark.sql import DataFrame, SparkSession

from evaluation.log_world import Told, log_of
from foldin.config import Config, load_config
from foldin.demo.synthetic import Size, SyntheticLog
from foldin.errors import FoldinError, LeakError
from foldin.evaluation import Plan, evaluate
from foldin.evaluation.contenders import Folded
from foldin.evaluation.log import Past, load_log
from foldin.evaluation.replay import Steps, replay
from foldin.evaluation.run import Evaluation, Models, _Run
from foldin.evaluation.truth import Truth
from foldin.evaluation.worked import worked_example
from foldin.fold_in import FoldIn
from foldin.histories import HistoryDefinition, histories, slim
from foldin.ingest import Ingest
from foldin.mapping import contract
from foldin.reading import latest_recommendations
from foldin.schemas import EVENTS
from foldin.tables import Tables
from foldin.training import train

pytestmark = pytest.mark.evaluation

SIZE = Size(users=120, items=120, days=6, views_per_day=250)
SETTINGS = ("judge.holdout=0", "train.rank=6", "train.iterations=4", "train.blocks=2", "recommend.top_n=5")


@dataclass(frozen=True)
class World:
    made: SyntheticLog
    tables: Tables
    config: Config

    @property
    def events(self) -> DataFrame:
        return self.tables.read(EVENTS)

    @property
    def definition(self) -> HistoryDefinition:
        return HistoryDefinition.of(self.config)


@pytest.fixture(scope="module")
def world(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("evaluation")
    made = SyntheticLog(SIZE)
    made.write(folder / "landing")
    sets = [f"tables.root={folder / 'tables'}", f"ingest.landing={folder / 'landing'}", *SETTINGS]
    config = load_config(sets=sets)
    tables = Tables.of(spark, config.tables)
    Ingest(tables, config, contract(config)).run(once=True)
    return World(made, tables, config)


@pytest.fixture(scope="module")
def found(world: World) -> Evaluation:
    start = dt.datetime.combine(world.made.start, dt.time()) + dt.timedelta(days=4)
    plan = Plan(start=start, k=5, batch_events=40, oracle=2, tune_days=2)
    return evaluate(world.tables, world.events, world.config, plan, "tiny", made=world.made)


def test_everybody_takes_part_on_the_same_events(found: Evaluation):
    everybody = ("popularity", "recent", "stale", "nightly", "additive", "foldin", "foldin nightly", "oracle")
    replayed = found.replayed
    assert replayed.contenders == everybody
    assert list(replayed.lags.values()) == [60.0, 600.0, 3600.0, 21_600.0, 86_400.0]
    for name in (*everybody[:-1], *replayed.lags):
        assert (replayed.ranks(name) >= 0).all(), name
    assert set(replayed.numbers("kind")) == {"known", "returning", "new"}


def test_the_oracle_was_asked_at_its_micro_batches_alone_and_at_the_first_equals_foldin(found: Evaluation):
    replayed = found.replayed
    steps, asked = replayed.numbers("step"), replayed.ranks("oracle") >= 0
    assert len(set(steps[asked])) == 2
    first = steps == steps[0]
    assert asked[first].all()
    # Nothing has come since the start's model, so a training from scratch gives the same one.
    assert (replayed.ranks("oracle")[first] == replayed.ranks("foldin")[first]).all()


def test_before_the_first_night_nightly_is_the_stale_model_and_after_it_another(found: Evaluation):
    replayed = found.replayed
    first_day = replayed.numbers("model_age_days") < 1
    assert (replayed.ranks("nightly")[first_day] == replayed.ranks("stale")[first_day]).all()
    assert (replayed.ranks("nightly")[~first_day] != replayed.ranks("stale")[~first_day]).any()


def test_a_log_of_years_is_not_trained_on_every_night():
    minutes = [(n * 1440, f"u{n % 3}", f"i{n % 5}") for n in range(400)]
    log = log_of(*minutes)

    def nights(plan: Plan) -> tuple[float, int]:
        run = _Run(None, None, load_config(), plan, "years", log, None)  # nothing is trained before it is asked
        return run.retrain_days, len(run.fresh)

    start = dt.datetime(1970, 2, 1)
    assert nights(Plan(start=start, days=30)) == (1.0, 30)
    assert nights(Plan(start=start, days=300)) == (10, 30)
    assert nights(Plan(start=start, days=300, retrain_days=1.0)) == (1.0, 300)
    assert nights(Plan(start=start, days=300, retrain_days=0)) == (0.0, 0)


def test_each_cut_was_trained_once_on_what_came_before_it(found: Evaluation):
    models = found.replayed.models
    assert len(models) == len({as_of for _, as_of, _ in models}) == 3  # the start's, one night's, the oracle's second
    assert models[0][1] < found.replayed.setting.start_us
    assert found.replayed.cost.train_seconds == tuple(seconds for _, _, seconds in models)
    assert len(found.replayed.cost.spark_seconds) == 5


def test_the_truth_ranks_the_contenders_as_it_must(found: Evaluation):
    truth = found.replayed.truth
    assert truth.keys() == set(found.replayed.contenders)
    assert all(0 < share < 1 for share in truth.values())
    assert truth["foldin"] > truth["popularity"]


def test_the_worked_example_is_a_user_whom_foldin_foretold(found: Evaluation):
    example = worked_example(found)
    assert example is not None
    assert example.taken in example.foldin
    assert example.taken not in example.stale
    assert all(when <= example.event_time for when, _ in example.recent)


def test_a_list_of_what_the_user_likes_best_has_all_of_the_truth(world: World):
    log = load_log(world.events, world.definition)
    truth, made = Truth(world.made, log), world.made
    row = {item: number for number, item in enumerate(made.item_ids.tolist())}

    def best(past: Past, user: str) -> list[str]:
        if not user.startswith("user-"):
            return []
        number = int(user.removeprefix("user-"))
        day = (dt.datetime.fromtimestamp(past.log.time[past.end] / 1e6, dt.UTC).date() - made.start).days
        chance = made.popularity * np.exp(2 * made.item_tastes @ made.days[day][number])
        mine = np.flatnonzero(past.log.user == past.log.user_ids.to_pylist().index(user))
        seen = {past.log.item_ids[int(past.log.item[n])].as_py() for n in mine if n < past.end}
        names = past.log.item_ids.to_pylist()
        return sorted((name for name in names if name not in seen), key=lambda name: -chance[row[name]])

    begin = log.position(int(log.time[-1]) - 86_400_000_000)
    start = Models(world.tables, world.events, log, world.config).at(begin)
    steps = Steps(np.array([begin, begin + 50]))
    worst = Told("worst", lambda past, user: best(past, user)[::-1])
    replay(log, steps, [Told("best", best), worst], 5, start, watch=truth.watch)
    assert truth.shares()["best"] == pytest.approx(1)
    assert truth.shares()["worst"] < 0.2


def test_a_past_is_what_the_production_makes_of_the_same_events(world: World):
    log = load_log(world.events, world.definition)
    end = len(log) * 2 // 3
    before = world.events.where(f"unix_micros(event_time) < {log.time[end]}")
    end = log.position(int(log.time[end]))
    bound = world.definition.max_events
    wanted = {row["user_id"]: row for row in histories(slim(before, log.definition.types), bound).collect()}
    users = np.unique(log.user[:end])
    mine = Past(log, end).histories(users).to_pylist()
    assert {row["user_id"] for row in mine} == wanted.keys()
    for row in mine:
        production = wanted[row["user_id"]]
        filled = [event.asDict() for event in production["history"]]
        for event in filled:
            event["value"] = 1.0 if event["value"] is None else event["value"]
        in_order = sorted(filled, key=lambda event: (event["time"], event["event"]))
        assert row["history"] == in_order
        assert set(row["seen"]) == set(production["seen"])


def test_foldin_recommends_what_the_stream_publishes(world: World, tmp_path: Path):
    """The same events, once through the tables and the stream, once through the replay."""
    log = load_log(world.events, world.definition)
    split = int(log.time[len(log) * 3 // 4])
    config = world.config.model_copy(
        update={"tables": world.config.tables.model_copy(update={"root": str(tmp_path / "tables")})}
    )
    tables = Tables.of(world.tables.spark, config.tables)
    tables.append(world.events.where(f"unix_micros(event_time) < {split}"), EVENTS)
    train(tables, config)
    tables.append(world.events.where(f"unix_micros(event_time) >= {split}"), EVENTS)
    FoldIn(tables, config).run(once=True)
    start = Models(world.tables, world.events, log, config).at(log.position(split))
    users = np.unique(log.user[log.position(split) :])
    lists = Folded("foldin", lambda _: start).recommend(Past(log, len(log)), users, 5)
    assert lists is not None
    names = log.item_ids.to_pylist()
    published = {row["user_id"]: row["items"] for row in latest_recommendations(tables).collect()}
    for row, user in enumerate(log.user_ids.take(users).to_pylist()):
        mine = [names[item] for item in lists.items[row] if item >= 0]
        theirs = {item["item_id"]: item["score"] for item in published[user]}
        if mine != list(theirs):  # up to swaps of equal scores
            assert set(mine) == set(theirs), user
            scores = [theirs[item] for item in mine]
            assert scores == pytest.approx(sorted(scores, reverse=True), abs=1e-5), user


def test_a_model_that_has_seen_later_events_is_found_out(world: World):
    log = load_log(world.events, world.definition)
    cut = len(log) // 2
    kept = np.delete(np.arange(len(log)), np.arange(cut - 50, cut))
    columns = ("time", "event", "user", "item", "type", "value")
    # The table has fifty events that the log does not: they come after all that the model should have seen.
    less = replace(log, **{name: getattr(log, name)[kept] for name in columns})
    with pytest.raises(LeakError, match=r"has seen one of 2025-.*, which came later"):
        Models(world.tables, world.events, less, world.config).at(cut - 50)


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        (
            Plan(start=dt.datetime(2031, 1, 1)),
            "--start 2031-01-01 00:00 lies outside of the log, which goes from 2025-",
        ),
        (Plan(start=dt.datetime(2025, 3, 7), model_age_days=9), "nothing to train on"),
        (
            Plan(start=dt.datetime(2025, 3, 6, 23, 59), days=0.0001),
            "no event between 2025-03-06 23:59 and",
        ),
    ],
)
def test_a_period_without_events_is_named(world: World, plan: Plan, said: str):
    with pytest.raises(FoldinError) as refused:
        evaluate(world.tables, world.events, world.config, plan, "tiny")
    assert said in str(refused.value)


MAPPING = """
name = "Library loans"
format = "csv"
files = "*.csv"
columns = ["reader", "book", "when", "kind"]
[event]
user_id = "reader"
item_id = "book"
event_type = "kind"
event_time = "when"
[settings.events]
weights = { loan = 1.0, return = -0.1 }
"""


def loans(folder: Path) -> int:
    """A log that foldin has never seen: readers of two tastes; the number of rows."""
    rng = np.random.default_rng(5)
    rows = []
    for number in range(900):
        reader = int(rng.integers(60))
        book = int(rng.integers(15)) + 15 * (reader % 2)
        day, minute = divmod(number * 20, 1440)
        when = f"2024-02-{1 + day:02d} {minute // 60:02d}:{minute % 60:02d}:00"
        rows.append((f"r{reader}", f"b{book}", when, "loan" if number % 7 else "return"))
    rows += [("", "b1", "2024-02-03", "loan"), ("r1", "b1", "never", "loan"), ("r1", "b1", "2024-02-03", "theft")]
    folder.mkdir()
    with (folder / "loans.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return len(rows)


def job(argv: list[str]) -> int:
    """`jobs/evaluate.py`, whose options are its own, within this test's session."""
    with mock.patch.object(sys, "argv", ["evaluate.py", *argv]), pytest.raises(SystemExit) as ended:
        runpy.run_path(str(Path(__file__).parents[2] / "jobs" / "evaluate.py"), run_name="__main__")
    return int(ended.value.code or 0)


def settings(tmp_path: Path) -> list[str]:
    return [f"--set={text}" for text in (f"tables.root={tmp_path / 'tables'}", *SETTINGS, "train.blocks=2")]


def test_a_log_never_seen_needs_nothing_but_a_mapping_file(
    spark: SparkSession, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    rows = loans(tmp_path / "log")
    (tmp_path / "loans.toml").write_text(MAPPING)
    report = tmp_path / "report"
    options = ["--data", str(tmp_path / "log"), "--mapping", str(tmp_path / "loans.toml"), "--report", str(report)]
    assert job([*options, "--batch-seconds", "3600", "-k", "5", *settings(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert f"{rows} rows in = 900 events + 3 quarantined + 0 duplicates" in said
    page = (report / "README.md").read_text()
    assert "Library loans" in page
    assert "oracle" not in page.split("\n\n")[1]  # nobody asked for one
    assert {"headline.png", "freshness.png"} <= {file.name for file in report.iterdir()}
    raw = spark.read.format("delta").load(str(report / "results"))
    assert raw.count() > 50
    assert {"kind", "reachable", "rank_foldin", "rank_stale"} <= set(raw.columns)
    assert not (tmp_path / "tables").exists()  # an evaluation leaves the installation alone


def test_without_a_log_it_replays_the_installations_own_events(world: World, tmp_path: Path, capsys):
    root = world.config.tables.root
    options = ["--report", str(tmp_path / "report"), f"--set=tables.root={root}", "--retrain-days", "0", "-k", "5"]
    assert job([*options, *[f"--set={text}" for text in SETTINGS]]) == 0
    said = capsys.readouterr().out
    assert "the events of this installation: " in said
    assert "foldin beats retraining every night – nightly was not replayed" in said


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["-k", "0"], 2, "foldin: -k 0: must lie between 1 and 1000"),
        (["--data", "/nowhere"], 2, "foldin: --data /nowhere: there is no such folder"),
        (["--generated", "small", "--mapping", "movielens"], 2, "foldin: --generated needs no --mapping"),
        ([], 2, "foldin: no events under"),
    ],
)
def test_a_wrong_option_is_one_line_and_an_exit_code(spark, tmp_path, capsys, options, code, said):
    assert job([*options, "--report", str(tmp_path / "report"), *settings(tmp_path)]) == code
    assert capsys.readouterr().err.splitlines()[-1].startswith(said)


def test_a_readme_that_is_no_report_is_not_overwritten(spark, tmp_path, capsys):
    (tmp_path / "README.md").write_text("mine")
    assert job(["--generated", "small", "--report", str(tmp_path)]) == 1
    assert "is not overwritten" in capsys.readouterr().err
    assert (tmp_path / "README.md").read_text() == "mine"
