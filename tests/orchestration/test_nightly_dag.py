"""The DAG in a real Airflow: what a night does, what a second one of the same date does, and what stops one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from nights import BAD, PATIENCE, ROOT, Airflow, Installation, Night, environment

pytestmark = pytest.mark.airflow

TASKS = ("ingest_health", "train", "gate", "await_adoption", "recommend_all", "maintain")
ALL_DONE = dict.fromkeys(TASKS, "success")
KEPT = ALL_DONE | {"gate": "skipped", "await_adoption": "skipped", "recommend_all": "skipped"}

Copy = Callable[[Installation], Installation]


def name_of(moment: object) -> str:
    return f"{moment:%Y%m%dT%H%M%SZ}"


@pytest.fixture(scope="module")
def airflow(tmp_path_factory: pytest.TempPathFactory) -> Airflow:
    made = Airflow(tmp_path_factory.mktemp("airflow"))
    assert made.command.exists(), "no .venv-airflow: make airflow makes it"
    made.prepare()
    return made


@pytest.fixture(scope="module")
def first(
    airflow: Airflow, ingested: Installation, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Installation, Night]:
    """The night after the second slice."""
    installation = ingested.copy(tmp_path_factory.mktemp("first") / "installation")
    return installation, airflow.night(installation, ingested.moments[1])


def test_a_first_night_trains_on_what_was_there_and_brings_the_model_into_force(
    first: tuple[Installation, Night],
) -> None:
    installation, night = first
    assert night.code == 0, night.output
    assert night.states() == ALL_DONE
    assert night.told == ()
    found = installation.look()
    assert found["active"] == name_of(installation.moments[1])
    (candidate, active) = found["models"]
    assert (candidate[1], candidate[2]) == ("candidate", 160)  # of 200 events: those of the first two slices
    assert active[1] == "active"
    assert active[4].startswith("foldin_nightly")
    assert len(found["lists"]) == 40


def test_a_night_that_is_made_again_changes_nothing(
    airflow: Airflow, first: tuple[Installation, Night], copy_of: Copy
) -> None:
    installation = copy_of(first[0])
    before = installation.look()
    night = airflow.night(installation, installation.moments[1])
    assert night.code == 0, night.output
    assert night.states() == ALL_DONE
    assert f"model {before['active']} is there already" in night.output
    assert "all lists are there already" in night.output
    after = installation.look()
    # Upkeep may merge files of `events`: a version of its own, the same rows.
    assert after | {"events_version": 0} == before | {"events_version": 0}


def test_a_model_that_is_judged_worse_stays_a_candidate_and_somebody_is_told(
    airflow: Airflow, first: tuple[Installation, Night], copy_of: Copy
) -> None:
    installation = copy_of(first[0])
    before = installation.look()
    moment = installation.moments[2]
    night = airflow.night(installation, moment, *BAD)
    assert night.code == 0, night.output  # nothing has failed: the old model serves
    assert night.states() == KEPT
    after = installation.look()
    assert after["active"] == before["active"]
    assert [model[:2] for model in after["models"]][-1] == [name_of(moment), "candidate"]
    (line,) = night.told
    assert line.startswith(f"foldin_nightly.gate of {moment:%Y-%m-%d %H:%M:%S}")
    assert ": exit code 10, the model is judged worse, or is older, than the one that serves: foldin: model" in line
    assert "worse than that of" in line


def test_an_older_date_that_is_made_up_for_trains_on_what_was_there_then_and_does_not_come_into_force(
    airflow: Airflow, first: tuple[Installation, Night], copy_of: Copy
) -> None:
    installation = copy_of(first[0])
    before = installation.look()
    moment = installation.moments[0]
    # The commands are processes of their own here, as they are everywhere but in tests.
    night = airflow.night(installation, moment, commands=f"{sys.executable} -m foldin")
    assert night.code == 0, night.output
    assert night.states() == KEPT
    after = installation.look()
    assert (after["active"], after["lists"]) == (before["active"], before["lists"])
    (trained,) = [model for model in after["models"] if model[0] == name_of(moment) and model[1] == "candidate"]
    assert trained[2] == 120  # the first slice
    assert "retired" not in {model[1] for model in after["models"]}  # upkeep leaves it to a person
    assert "it is older than" in night.told[0]


def test_an_account_that_does_not_add_up_ends_the_night_at_once(
    airflow: Airflow, ingested: Installation, copy_of: Copy
) -> None:
    installation = copy_of(ingested)
    installation.look("--miscount")
    night = airflow.night(installation, installation.moments[2])
    assert night.code != 0
    assert night.tasks["ingest_health"] == ("failed", 1)  # a second try would say the same
    assert {night.tasks[name][0] for name in TASKS[1:]} == {"upstream_failed"}
    (line,) = night.told
    assert "foldin_nightly.ingest_health" in line
    assert "exit code 5, the account of rows does not add up" in line
    assert installation.look()["models"] == []


def test_what_may_pass_is_tried_again_and_what_a_person_must_mend_is_not(
    airflow: Airflow, ingested: Installation, tmp_path: Path
) -> None:
    """Here the jobs are a script that ends with the codes it is told: only the operator is looked at."""
    script = tmp_path / "jobs.py"
    script.write_text(
        "import pathlib, sys\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "name = next(word for word in sys.argv[1:] if not word.startswith('-')).removesuffix('.py')\n"
        "codes = {'train': [8, 0], 'activate': [1, 0], 'status': [3], 'recommend': [2]}.get(name, [0])\n"
        "calls = folder / f'{name}.calls'\n"
        "made = len(calls.read_text()) if calls.exists() else 0\n"
        "calls.write_text('x' * (made + 1))\n"
        "sys.exit(codes[min(made, len(codes) - 1)])\n"
    )
    installation = Installation(tmp_path, ingested.socket)
    night = airflow.night(
        installation, ingested.moments[0], jobs=f"{sys.executable} {script} ", commands=f"{sys.executable} {script}"
    )
    assert night.code != 0
    assert night.tasks["ingest_health"] == ("success", 1)  # no model yet
    assert night.tasks["train"] == ("success", 2)
    assert night.tasks["await_adoption"] == ("success", 2)
    assert night.tasks["recommend_all"] == ("failed", 1)
    assert night.tasks["maintain"][0] == "upstream_failed"
    (line,) = night.told
    assert "recommend_all" in line
    assert line.endswith("exit code 2, wrong configuration")


RENDER = """
import sys
from types import SimpleNamespace
import pendulum
sys.path.insert(0, sys.argv[1])
from foldin_nightly import dag

moment = pendulum.datetime(2026, 1, 2, 3)
for kind, force in (("scheduled", False), ("backfill", False), ("backfill", True)):
    run = SimpleNamespace(dag_id=dag.dag_id, logical_date=moment, run_after=moment, run_type=kind)
    var = SimpleNamespace(value=SimpleNamespace(get=lambda name, default: default))
    for task in dag.topological_sort():
        context = {"dag_run": run, "params": {"force": force}, "var": var}
        print(kind, force, task.task_id, " ".join(task.render_template(task.command, context).split()), sep=": ")
"""


def test_the_command_lines_are_those_of_the_nights_kind() -> None:
    python = Airflow(Path()).command.with_name("python")
    done = subprocess.run(
        [python, "-c", RENDER, ROOT / "conf" / "orchestration" / "airflow"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split(": ", 3) for line in done.stdout.splitlines() if line.startswith(("scheduled", "backfill"))]
    found = {(kind, force == "True", task): command for kind, force, task, command in lines}
    night = "20260102T030000Z"
    command = ".venv/bin/python -m foldin"
    assert [found["scheduled", False, task] for task in TASKS] == [
        f"{command} status --json",
        f".venv/bin/python jobs/train.py --no-activate --as {night} --until 2026-01-02T03:00:00+00:00",
        f"{command} gate {night}",
        f"{command} activate {night} --reason foldin_nightly --wait 60 --gated",
        ".venv/bin/python jobs/recommend.py",
        ".venv/bin/python jobs/maintain.py",
    ]
    assert found["backfill", False, "gate"] == f"{command} gate {night}"
    assert found["backfill", False, "maintain"] == "echo later"
    assert found["backfill", True, "gate"] == "echo forced"
    assert not found["backfill", True, "await_adoption"].endswith("--gated")
