"""What schedulers are told of foldin agrees with foldin: jobs, options, exit codes."""

from __future__ import annotations

import ast
import configparser
import fcntl
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import foldin.commits
import foldin.errors
import foldin.fitting
import foldin.registry  # noqa: F401  (their errors)
from foldin.errors import FoldinError

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "conf" / "orchestration"
UNITS = sorted((FOLDER / "systemd").glob("foldin-*"))
SCRIPT = (FOLDER / "cron" / "nightly").read_text()


def exit_codes(error: type[FoldinError] = FoldinError) -> set[int]:
    return {error.exit_code}.union(*(exit_codes(kind) for kind in error.__subclasses__()))


def constant(name: str) -> object:
    """Of the DAG's file, which only Airflow's environment can import."""
    for node in ast.parse((FOLDER / "airflow" / "foldin_nightly.py").read_text()).body:
        if isinstance(node, ast.Assign) and [getattr(target, "id", "") for target in node.targets] == [name]:
            value = node.value.args[0] if isinstance(node.value, ast.Call) else node.value
            return ast.literal_eval(value)
    raise AssertionError(name)


def unit(path: Path) -> configparser.ConfigParser:
    found = configparser.ConfigParser(strict=False, interpolation=None)
    found.optionxform = str  # type: ignore[assignment,method-assign]
    found.read(path)
    return found


def test_the_dag_knows_every_exit_code_and_no_other():
    meanings = constant("MEANINGS")
    assert set(meanings) == exit_codes()
    assert constant("FINAL") <= set(meanings)
    assert not constant("FINAL") & {1, 8, 9}  # a failure, a lease, an alarm may pass


def test_the_script_says_and_does_what_the_dag_says_and_does():
    said = {int(code): text for code, text in re.findall(r'^ +(\d+)\) echo "(.*)" ;;$', SCRIPT, re.MULTILINE)}
    assert said == constant("MEANINGS")
    (final,) = re.findall(r'^ +((?:\d+ \| )+\d+)\) return "\$code" ;;', SCRIPT, re.MULTILINE)
    assert {int(code) for code in final.split("|")} == constant("FINAL")


@pytest.mark.parametrize("name", ["ingest", "fold-in", "stream"])
def test_a_stream_is_restarted_after_what_may_pass_and_stays_down_after_what_a_person_must_mend(name):
    service = unit(FOLDER / "systemd" / f"foldin-{name}.service")["Service"]
    python, job, options = service["ExecStart"].split()
    assert (python, options) == ("/opt/foldin/.venv/bin/python", "$FOLDIN_OPTIONS")
    assert (ROOT / job).is_file()
    assert service["Restart"] == "on-failure"
    stays_down = {int(code) for code in service["RestartPreventExitStatus"].split()}
    assert stays_down == {2, 4, 5}
    assert stays_down <= constant("FINAL")
    assert (service["KillSignal"], service["KillMode"]) == ("SIGTERM", "mixed")


def test_both_streams_in_one_unit_take_the_place_of_the_two_and_are_run_as_they_are():
    units = {name: unit(FOLDER / "systemd" / f"foldin-{name}.service") for name in ("ingest", "fold-in", "stream")}
    two = ["foldin-ingest.service", "foldin-fold-in.service"]
    assert units["stream"]["Unit"].pop("Conflicts").split() == two
    assert set(two) < set(units["stream"]["Unit"]["After"].split())  # which stops them first, and waits for that
    for found in units.values():
        del found["Unit"]["Description"], found["Unit"]["After"], found["Service"]["ExecStart"]
    assert units["stream"] == units["fold-in"] == units["ingest"]


def test_the_nightly_unit_runs_the_script_and_takes_a_kept_model_for_no_failure():
    service = unit(FOLDER / "systemd" / "foldin-nightly.service")["Service"]
    script = ROOT / Path(service["ExecStart"]).relative_to("/opt/foldin")
    assert script.stat().st_mode & 0o111
    assert service["SuccessExitStatus"] == "10"


def test_an_alert_tells_how_the_unit_failed_by_its_input_and_as_an_argument(tmp_path):
    (tmp_path / "systemctl").write_text('#!/bin/sh\n[ "$4" = foldin-ingest.service ] && printf "exit-code\\n4\\n"\n')
    (tmp_path / "systemctl").chmod(0o755)
    service = unit(FOLDER / "systemd" / "foldin-alert@.service")["Service"]
    script, name = service["ExecStart"].split()
    assert name == "%i"
    done = subprocess.run(
        [ROOT / Path(script).relative_to("/opt/foldin"), "foldin-ingest.service"],
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "FOLDIN_ALERT": 'cat; echo "<$1>"'},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    line = "foldin-ingest.service failed: exit-code 4"
    assert (done.returncode, done.stderr) == (0, f"foldin: {line}\n")
    assert done.stdout.splitlines() == [line, f"<{line}>"]


def test_cron_starts_both_streams_and_the_night():
    lines = (FOLDER / "cron" / "crontab").read_text().splitlines()
    started = [line.split()[5:7] for line in lines if re.match(r"[\d*]+ [\d*]+ ", line)]
    assert [words[0] for words in started] == [
        f"$FOLDIN_HOME/conf/orchestration/cron/{n}" for n in ("nightly", *2 * ["stream"])
    ]
    assert [words[1] for words in started[1:]] == ["ingest", "fold_in"]
    assert any(line.startswith("FOLDIN_OPTIONS=") for line in lines)


def stream(folder, code, job="ingest"):
    """One minute's start by cron of a job that ends with `code`: exit code, what was said, what somebody was told."""
    python = folder / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True, exist_ok=True)
    (folder / "data").mkdir(exist_ok=True)
    python.write_text(f'#!/bin/sh\necho "started with $*"\nexit {code}\n')
    python.chmod(0o755)
    given = {"FOLDIN_HOME": str(folder), "FOLDIN_OPTIONS": "--config a.toml", "FOLDIN_ALERT": "cat >>told"}
    done = subprocess.run(
        [FOLDER / "cron" / "stream", job],
        env=os.environ | given, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    told = folder / "told"
    return done.returncode, done.stdout, told.read_text().splitlines() if told.exists() else []


@pytest.mark.parametrize("code", sorted(exit_codes() | {0, 137}))
def test_under_cron_a_stream_stays_down_after_what_a_person_must_mend_and_one_line_is_told(tmp_path, code):
    started = "started with jobs/ingest.py --config a.toml\n"
    stays_down = code in {2, 4, 5}
    line = f"ingest stays down: exit code {code}; see data/ingest.log, then remove data/ingest.stopped"
    told = [line] if stays_down else []
    assert stream(tmp_path, code) == (code, started, told)
    assert stream(tmp_path, code) == ((0, "", told) if stays_down else (code, started, told))
    (tmp_path / "data" / "ingest.stopped").unlink(missing_ok=True)
    assert stream(tmp_path, 0) == (0, started, told)


@pytest.mark.parametrize(("stopped", "job"), [("stream", "ingest"), ("ingest", "stream"), ("fold_in", "stream")])
def test_under_cron_what_a_person_must_mend_stays_down_under_the_other_name_too(tmp_path, stopped, job):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / f"{stopped}.stopped").touch()
    assert stream(tmp_path, 0, job) == (0, "", [])


def test_under_cron_a_stream_that_runs_is_not_started_a_second_time(tmp_path):
    (tmp_path / "data").mkdir()
    with (tmp_path / "data" / "ingest.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert stream(tmp_path, 1) == (0, "", [])


@pytest.mark.parametrize("job", sorted(set(re.findall(r"\$\{jobs\}(\w+\.py)", SCRIPT))))
def test_the_scripts_jobs_have_the_options_that_it_gives_them(job):
    source = (ROOT / "jobs" / job).read_text()
    for line in (line for line in SCRIPT.splitlines() if f"}}{job}" in line):
        for option in re.findall(r" (--[a-z-]+)", line):
            assert f'"{option.replace("--no-", "--")}"' in source, option


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_systemd_finds_no_fault_with_the_units(tmp_path):
    for path in UNITS:
        text = path.read_text().replace("/opt/foldin/.venv/bin/python", sys.executable)
        (tmp_path / path.name).write_text(text.replace("/opt/foldin", str(ROOT)))
    names = [str(tmp_path / path.name) for path in UNITS if "@" not in path.name]
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *names], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
