"""The whole loop on a real log: Online Retail, trained before 2011-09-01, the week after it streamed by day.

What is expected is counted from the CSV files by plain Python here, not by foldin.
"""

from __future__ import annotations

import csv
import gzip
import shutil
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from pyspark.sql import functions as F

from foldin.ingest import Ingest
from foldin.mapping import load_settings
from foldin.publishing import Publisher
from foldin.reading import latest_recommendations
from foldin.registry import Registry
from foldin.schemas import EVENTS, INGEST_LOG, ITEM_FACTORS, QUARANTINE, RECOMMENDATIONS, USER_FACTORS, Position
from foldin.tables import Tables
from foldin.training import Trained, train
from world import assert_same_vectors, copy_of, fold_once, latest_lists, latest_vectors, vectors

pytestmark = [pytest.mark.realdata, pytest.mark.timeout(540), pytest.mark.usefixtures("compiled")]

CUT, WEEK_END = "2011-09-01", "2011-09-08"


@dataclass
class Truth:
    """What plain Python makes of the files."""

    rows: int = 0
    duplicates: int = 0
    events: int = 0
    quarantined: Counter = field(default_factory=Counter)
    had: dict = field(default_factory=lambda: defaultdict(set))  # items of each user up to the week's end
    week_users: set = field(default_factory=set)
    earlier_users: set = field(default_factory=set)

    def read(self, files: list[Path]) -> None:
        known = set()
        for file in files:
            day = file.name[:10]
            with gzip.open(file, "rt", encoding="utf-8", newline="") as text:
                lines = text.read().splitlines()[1:]
            for line in lines:
                self.rows += 1
                if line in known:
                    self.duplicates += 1
                    continue
                known.add(line)
                invoice, code, _, quantity, _, _, customer, _ = next(csv.reader([line]))
                if not invoice.startswith("C") and int(quantity) <= 0:
                    self.quarantined["stock adjustment"] += 1
                elif invoice.startswith("A"):
                    self.quarantined["bad debt"] += 1
                elif not customer:
                    self.quarantined["no customer"] += 1
                elif not code[:5].isdigit():
                    self.quarantined["not goods"] += 1
                else:
                    self.events += 1
                    user = customer.removesuffix(".0")
                    if day < WEEK_END:
                        self.had[user].add(code.upper())
                        (self.earlier_users if day < CUT else self.week_users).add(user)


@dataclass
class Run:
    """The tables after the week by day, and those after the week in one micro-batch."""

    truth: Truth
    trained: Trained
    cut: int
    daily: Tables
    at_once: Tables
    daily_updates: list[int]
    second_run: tuple[int, int]
    versions: dict[str, tuple[int, int]]


@pytest.fixture(scope="module")
def run(spark, data_dir, tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("retail")
    files = sorted((data_dir / "online-retail" / "by-day").glob("*.csv.gz"))
    truth = Truth()
    truth.read(files)

    def installation(name: str):
        landing = folder / f"{name}-landing"
        landing.mkdir(exist_ok=True)
        sets = [f"tables.root={folder / name}", f"ingest.landing={landing}", "train.rank=16", "train.iterations=4"]
        config, mapping = load_settings(None, sets, "online_retail")
        return landing, Tables.of(spark, config.tables), config, mapping

    def land(landing: Path, day_files: list[Path]) -> None:
        for file in day_files:
            shutil.copy2(file, landing)

    landing, daily, config, mapping = installation("daily")
    land(landing, [f for f in files if f.name < CUT])
    Ingest(daily, config, mapping).run(once=True)
    trained = train(daily, config)
    cut = daily.version(EVENTS)
    fold_once(daily, config)
    copy_of(folder / "daily", folder / "once")
    copy_of(landing, folder / "once-landing")

    week = [f for f in files if CUT <= f.name < WEEK_END]
    updates = []
    for file in week:
        land(landing, [file])
        Ingest(daily, config, mapping).run(once=True)
        updates.append(fold_once(daily, config))
    before = {spec.name: daily.version(spec) for spec in (EVENTS, QUARANTINE, USER_FACTORS, RECOMMENDATIONS)}
    second = (Ingest(daily, config, mapping).run(once=True).rows_in, fold_once(daily, config))
    versions = {name: (version, daily.version(spec)) for spec in (EVENTS, QUARANTINE, USER_FACTORS, RECOMMENDATIONS)
                for name, version in before.items() if name == spec.name}  # fmt: skip

    once_landing, at_once, once_config, once_mapping = installation("once")
    shutil.rmtree(at_once.path("_checkpoints", "ingest"))  # its log names files of the other landing folder
    land(once_landing, week)
    Ingest(at_once, once_config, once_mapping).run(once=True)
    fold_once(at_once, once_config)
    land(once_landing, [f for f in files if f.name >= WEEK_END])
    Ingest(at_once, once_config, once_mapping).run(once=True)
    return Run(truth, trained, cut, daily, at_once, updates, second, versions)


def test_all_541909_rows_are_accounted_for_by_reason(run):
    truth, tables = run.truth, run.at_once
    assert truth.rows == 541_909
    assert truth.duplicates == 5_268
    assert tables.read(EVENTS).count() == truth.events
    counts = {row["reason"]: row["count"] for row in tables.read(QUARANTINE).groupBy("reason").count().collect()}
    assert counts == dict(truth.quarantined)
    assert truth.rows == truth.events + truth.quarantined.total() + truth.duplicates
    assert tables.read(EVENTS).select("event_id").distinct().count() == truth.events


def test_the_ingest_log_adds_up_batch_by_batch(run):
    log = run.daily.read(INGEST_LOG)
    assert log.where("rows_in != events + quarantined + duplicates").count() == 0
    assert log.agg(F.sum("events")).first()[0] == run.daily.read(EVENTS).count()
    assert log.agg(F.sum("quarantined")).first()[0] == run.daily.read(QUARANTINE).count()


def test_fold_in_of_every_untouched_user_is_mllibs_own_factor(run):
    """Invariant 1: the rows that training wrote are MLlib's; folding the same histories returns them."""
    assert run.trained.parity <= 1e-6
    tables, version = run.daily, run.trained.model_version
    mllib = vectors(tables.read(USER_FACTORS).where(f"events_version = {run.cut + 1}"))
    publisher = Publisher(tables, 10)
    now = tables.version(EVENTS)
    users = publisher.histories_at(publisher.model(version), now)
    folded = vectors(publisher.folded(users, version, Position.after(now)))
    untouched = run.truth.earlier_users - run.truth.week_users
    assert len(untouched) > 2_500
    assert_same_vectors({u: folded[u] for u in untouched}, {u: mllib[u] for u in untouched})
    touched = run.truth.week_users & mllib.keys()
    moved = [u for u in touched if np.linalg.norm(folded[u] - mllib[u]) > 1e-3 * np.linalg.norm(mllib[u])]
    assert len(moved) > 0.9 * len(touched)  # or equality above would say nothing


def test_the_week_by_day_ends_where_the_week_at_once_does(run):
    assert len(run.daily_updates) == 6  # trading days from Thursday to Wednesday
    assert all(run.daily_updates)
    assert_same_vectors(latest_vectors(run.daily), latest_vectors(run.at_once))


def test_a_second_run_of_the_same_stream_changes_nothing(run):
    assert run.second_run == (0, 0)
    for name, (before, after) in run.versions.items():
        assert before == after, name


def test_every_user_of_the_week_has_a_fresh_list_without_an_item_they_had(run):
    rows = {row["user_id"]: row for row in latest_recommendations(run.daily).collect()}
    assert len(run.truth.week_users) > 300
    newcomers = run.truth.week_users - run.truth.earlier_users
    for user in run.truth.week_users:
        row = rows[user]
        assert row["events_version"] > run.cut + 1, user
        assert len(row["items"]) == 10, user
        assert not run.truth.had[user] & {item["item_id"] for item in row["items"]}, user
    assert len(newcomers) > 20


def test_no_row_mixes_model_versions(run):
    """Every score is the dot product of factors of one version."""
    tables, version = run.daily, Registry(run.daily).active_version()
    for spec in (USER_FACTORS, RECOMMENDATIONS, ITEM_FACTORS):
        assert {r[0] for r in tables.read(spec).select("model_version").distinct().collect()} == {version}
    items = {r["item_id"]: np.array(r["factors"]) for r in tables.read(ITEM_FACTORS).collect()}
    users = latest_vectors(tables)
    for row in latest_recommendations(tables).where("source = 'als'").collect():
        for item in row["items"]:
            assert item["score"] == pytest.approx(users[row["user_id"]] @ items[item["item_id"]], abs=1e-5)


def test_lists_by_day_and_at_once_are_the_same_up_to_ties(run):
    daily, at_once = latest_lists(run.daily), latest_lists(run.at_once)
    differing = [user for user in daily if daily[user] != at_once[user]]
    scores = {
        name: {
            row["user_id"]: {item["item_id"]: item["score"] for item in row["items"]}
            for row in latest_recommendations(tables).collect()
            if row["user_id"] in differing
        }
        for name, tables in (("daily", run.daily), ("at_once", run.at_once))
    }
    for user in differing:
        left, right = scores["daily"][user], scores["at_once"][user]
        swapped = sorted(left.values()), sorted(right.values())
        assert np.allclose(*swapped, atol=1e-5), user
