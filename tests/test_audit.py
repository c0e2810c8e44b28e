"""`make audit`: what a service answers, what is no answer, and what the locks must say for themselves."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from delta import configure_spark_with_delta_pip
from pyspark.sql import SparkSession

from foldin.kafka import CONNECTOR

FOLDER = Path(__file__).parents[1] / "conf" / "dev"
HASH = "0" * 64


@pytest.fixture
def audit(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """conf/dev/audit.py, which is a program."""
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location("audit", FOLDER / "audit.py")
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "audit", module)  # dataclasses look their module up
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    return module


def report(*packages: dict[str, object]) -> str:
    return json.dumps({"dependencies": packages, "fixes": []})


GOOD = {"name": "numpy", "version": "2.4.6", "vulns": []}
BAD = {"name": "jinja2", "version": "2.10", "vulns": [{"id": "PYSEC-2019-217", "fix_versions": ["2.10.1"]}]}
WORSE = {"name": "old", "version": "1.0", "vulns": [{"id": "GHSA-1", "fix_versions": []}]}
SKIPPED = {"name": "private", "skip_reason": "Dependency not found"}


def test_what_is_known_is_named_with_what_mends_it(audit: ModuleType) -> None:
    answer = audit.judge(report(GOOD, BAD, SKIPPED, WORSE))
    assert answer.known == ("jinja2 2.10: PYSEC-2019-217, mended in 2.10.1", "old 1.0: GHSA-1, not mended yet")
    assert (answer.asked, answer.unknown) == (3, ("private",))


@pytest.mark.parametrize("text", ["", "ERROR: connection refused", "[]", '{"dependencies": [{"vulns": [{}]}]}'])
def test_no_report_is_no_answer(audit: ModuleType, text: str) -> None:
    with pytest.raises(audit.UnavailableError, match="no answer"):
        audit.judge(text)


def test_a_service_that_knows_nothing_has_audited_nothing(audit: ModuleType) -> None:
    with pytest.raises(audit.UnavailableError, match="knows none of the packages"):
        audit.judge(report(SKIPPED, SKIPPED))


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (f"numpy>=2 --hash=sha256:{HASH}", "numpy>=2 is not one version"),
        (f"numpy==2.* --hash=sha256:{HASH}", "numpy==2.* is not one version"),
        (f"numpy @ file:///tmp/x.whl --hash=sha256:{HASH}", "is not one version"),
        ("numpy==2.4.6", "numpy==2.4.6 has no hash"),
        ("--index-url https://example.com/simple", "has no hash"),
        ("-e .", "has no hash"),
        ("numpy==2.4.6 --hash=sha256:abc", "numpy==2.4.6 has a hash that is none"),
        ("", "locks nothing"),
    ],
)
def test_a_lock_that_leaves_something_open_is_named(audit: ModuleType, tmp_path: Path, line: str, fault: str) -> None:
    lock = tmp_path / "a.lock"
    lock.write_text(f"# a comment\n{line}\n")
    (said,) = audit.lock_faults(lock)
    assert said.startswith(str(lock))
    assert fault in said


def test_the_locks_of_this_project_are_whole(audit: ModuleType) -> None:
    locks = sorted(FOLDER.glob("*.lock"))
    assert {lock.name for lock in locks} >= {"requirements.lock", "bench.lock", "audit.lock"}
    assert [fault for lock in locks for fault in audit.lock_faults(lock)] == []


def test_the_jars_that_are_named_are_those_that_a_session_asks_for(audit: ModuleType) -> None:
    asked = configure_spark_with_delta_pip(SparkSession.Builder(), [CONNECTOR])._options["spark.jars.packages"]
    assert audit.jars() == asked.split(",")


def test_without_a_service_the_last_line_says_what_was_checked_instead(
    audit: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def nobody(*_: object) -> None:
        raise audit.UnavailableError("pypi: no answer")

    monkeypatch.setattr(audit, "ask_any", nobody)
    assert audit.main([]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("foldin: not audited (pypi: no answer); checked instead: each of the ")


@pytest.mark.parametrize(("first", "service"), [(BAD, "pypi"), (GOOD, "osv")])
def test_what_a_service_has_said_counts_when_it_falls_silent(
    audit: ModuleType, monkeypatch: pytest.MonkeyPatch, first: dict[str, object], service: str
) -> None:
    def ask(_: Path, lock: Path, service: str, *__: object) -> object:
        if (lock.name, service) == ("b.lock", "pypi"):
            raise audit.UnavailableError("no answer")
        return audit.judge(report(first))

    monkeypatch.setattr(audit, "install", lambda folder: folder)
    monkeypatch.setattr(audit, "ask", ask)
    found, answers = audit.ask_any([Path("a.lock"), Path("b.lock")], [])
    assert (found, len(answers)) == (service, 1 if first is BAD else 2)


def test_a_lock_that_is_not_whole_fails_whatever_a_service_says(
    audit: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.lock").write_text("numpy>=2\n")
    monkeypatch.setattr(audit, "FOLDER", tmp_path)
    monkeypatch.setattr(audit, "ask_any", lambda *_: ("pypi", [audit.Answer((), 1, ())]))
    assert audit.main([]) == 1
    assert "numpy>=2 has no hash" in capsys.readouterr().err


@pytest.mark.parametrize(("packages", "code", "end"), [((GOOD,), 0, "nothing known"), ((GOOD, BAD), 1, "1 known")])
def test_what_a_service_knows_decides_the_exit_code(
    audit: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    packages: tuple[dict[str, object], ...],
    code: int,
    end: str,
) -> None:
    monkeypatch.setattr(audit, "ask_any", lambda *_: ("pypi", [audit.judge(report(*packages, SKIPPED))]))
    assert audit.main([]) == code
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"foldin: audited {len(packages)} packages of ")
    assert last.endswith(f"which does not know private: {end}")
