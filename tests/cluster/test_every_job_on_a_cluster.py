"""Every job by spark-submit on a standalone cluster, as the pages in conf/cluster say."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from chaos.equal import assert_account_adds_up, assert_latest_is_a_refold, assert_same_multiset, without_stamps
from chaos.worlds import World
from cluster.standalone import Cluster
from cluster.submitting import Submitted
from foldin.registry import Registry
from foldin.schemas import EVENTS, MODELS


@pytest.mark.timeout(900)
def test_every_job_runs_on_a_cluster_and_needs_nothing_of_a_hosts_own_disk(
    make_world: Callable[..., World], submit: Callable[..., Submitted], cluster: Cluster, tmp_path: Path
) -> None:
    world = make_world("jobs")  # ingest and train were jobs of the cluster, too: `begun`
    world.land(150)
    report = tmp_path / "report"
    runs = (
        ("stream", ("--once",), r"^\d+ user updates published"),
        ("fold_in", ("--once",), r"^\d+ user updates published"),
        ("recommend", (), r"^\d+ lists of 5 written"),
        ("evaluate", ("--days", "40", "--batch-events", "50", "--retrain-days", "0", "--report", report), r"^report: "),
        ("maintain", (), r"^events: \d+ small files merged into 1$"),
    )
    for name, options, said in runs:
        job = submit(name, world).start(*map(str, options))
        assert job.wait() == 0, f"{name}:\n{job.said()[-5000:]}"
        assert re.search(said, job.said(), re.MULTILINE), job.said()[-5000:]
        assert "Traceback" not in job.said()
        for host in (job.host, *cluster.workers):
            assert not tables_in(host.folder), f"{name} left tables or checkpoints on a host's own disk"
        if name in {"stream", "fold_in"}:  # recommend writes all lists anew
            assert_latest_is_a_refold(world.tables)
        if name == "stream":
            world.land(150)
            world.ingest().run(once=True)
        job.lose()  # with the host's disk: the next job runs elsewhere

    tables = world.tables
    assert_same_multiset(without_stamps(tables, EVENTS), world.log.multiset(), "events")
    assert_account_adds_up(tables, world.log.rows)
    assert_latest_is_a_refold(tables)
    active = Registry(tables).active_version()
    (trained,) = tables.read(MODELS).where(f"model_version = '{active}' and parity is not null").collect()
    assert trained["parity"] <= 1e-6
    (raw,) = re.findall(r"the Delta table \[`(\S+)/`\]", (report / "README.md").read_text())
    assert raw.startswith(tables.path("_reports"))
    assert world.spark.read.format("delta").load(raw).count() > 50
    assert not (Path(tables.root) / "_evaluate").exists()


def test_ingests_state_has_the_partitions_that_foldins_settings_say_whatever_the_submitters_do(begun: World) -> None:
    born = Path(begun.tables.root, "_checkpoints", "ingest", "offsets", "0").read_text()
    assert json.loads(born.splitlines()[1])["conf"]["spark.sql.shuffle.partitions"] == "1"
    state = Path(begun.tables.root, "_checkpoints", "ingest", "state", "0")
    assert {path.name for path in state.iterdir() if path.name.isdigit()} == {"0"}


def test_tables_where_only_one_host_would_find_them_are_refused(begun: World, submit: Callable[..., Submitted]) -> None:
    job = submit("maintain", begun)
    job.settings = (*job.settings, "tables.root=data/foldin")
    assert job.start().wait() == 2, job.said()[-5000:]
    assert "foldin: tables.root = 'data/foldin': under spark://" in job.said()
    assert not (job.host.folder / "data").exists()


def tables_in(folder: Path) -> list[Path]:
    """What a host writes for others to read: data files, logs of tables, checkpoints of queries."""
    names = ("**/_delta_log", "**/*.parquet", "**/_checkpoints", "**/offsets")
    return [path for name in names for path in folder.glob(name) if "environment" not in path.parts]
