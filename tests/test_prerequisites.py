"""Real subprocesses, with scripts on PATH that answer as the Javas of this world do."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from foldin import prerequisites
from foldin.errors import PrerequisiteError

SCRIPT = Path(prerequisites.__file__)

REPORTS = {
    8: """openjdk version "1.8.0_392"
OpenJDK Runtime Environment (build 1.8.0_392-8u392-ga-1~20.04-b08)
OpenJDK 64-Bit Server VM (build 25.392-b08, mixed mode)""",
    11: """openjdk version "11.0.21" 2023-10-17
OpenJDK Runtime Environment (build 11.0.21+9-post-Ubuntu-0ubuntu120.04)
OpenJDK 64-Bit Server VM (build 11.0.21+9, mixed mode, sharing)""",
    17: """openjdk version "17.0.15" 2025-04-15
OpenJDK Runtime Environment (build 17.0.15+6-Debian-1deb12u1)
OpenJDK 64-Bit Server VM (build 17.0.15+6-Debian-1deb12u1, mixed mode, sharing)""",
    21: """java version "21.0.2" 2024-01-16 LTS
Java(TM) SE Runtime Environment (build 21.0.2+13-LTS-58)
Java HotSpot(TM) 64-Bit Server VM (build 21.0.2+13-LTS-58, mixed mode, sharing)""",
    25: """openjdk version "25" 2025-09-16
OpenJDK Runtime Environment (build 25+36-3489)
OpenJDK 64-Bit Server VM (build 25+36-3489, mixed mode, sharing)""",
}


def make_java(home: Path, report: str, exit_code: int = 0) -> Path:
    """Write home/bin/java, which prints the report to standard error as Java does."""
    java = home / "bin" / "java"
    java.parent.mkdir(parents=True)
    java.write_text(f"#!/bin/sh\n/bin/cat >&2 <<'END'\n{report}\nEND\nexit {exit_code}\n")
    java.chmod(0o755)
    return java


def run_script(path: Path | str, java_home: Path | str | None = None, *arguments: str):
    """Run prerequisites.py as make does: a plain file, isolated, with this PATH and JAVA_HOME."""
    environ = {"PATH": str(path)}
    if java_home is not None:
        environ["JAVA_HOME"] = str(java_home)
    return subprocess.run(
        [sys.executable, "-I", str(SCRIPT), *arguments],
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


def complaint(answer: subprocess.CompletedProcess[str]) -> str:
    """The one line that a refusal consists of."""
    assert answer.returncode == 1
    assert answer.stdout == ""
    assert answer.stderr.endswith("\n")
    assert answer.stderr.count("\n") == 1, answer.stderr
    return answer.stderr.rstrip("\n")


@pytest.mark.parametrize("major", [17, 21])
def test_a_java_that_spark_can_use_passes_without_a_word(tmp_path, major):
    make_java(tmp_path, REPORTS[major])
    answer = run_script(tmp_path / "bin")
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "", "")


@pytest.mark.parametrize("major", [8, 11, 25])
def test_a_java_that_spark_cannot_use_is_named_with_the_way_to_another(tmp_path, major):
    java = make_java(tmp_path, REPORTS[major])
    line = complaint(run_script(tmp_path / "bin"))
    assert f"Java {major} ({java}, from PATH)" in line
    assert "Java 17 or 21" in line
    assert "openjdk-17" in line


def test_no_java_at_all_is_one_line(tmp_path):
    line = complaint(run_script(tmp_path))
    assert line.startswith("No Java on PATH, and JAVA_HOME is not set")
    assert "Java 17 or 21" in line


def test_a_java_home_that_points_nowhere_is_named_even_beside_a_good_java_on_path(tmp_path):
    make_java(tmp_path / "good", REPORTS[17])
    line = complaint(run_script(tmp_path / "good" / "bin", tmp_path / "gone"))
    assert f"JAVA_HOME is {tmp_path / 'gone'}" in line


def test_java_home_comes_before_path_as_for_spark(tmp_path):
    make_java(tmp_path / "old", REPORTS[8])
    make_java(tmp_path / "new", REPORTS[17])
    assert run_script(tmp_path / "old" / "bin", tmp_path / "new").returncode == 0
    line = complaint(run_script(tmp_path / "new" / "bin", tmp_path / "old"))
    assert "Java 8" in line
    assert "from JAVA_HOME" in line


def test_an_empty_java_home_counts_as_unset(tmp_path):
    make_java(tmp_path, REPORTS[17])
    assert run_script(tmp_path / "bin", "").returncode == 0


def test_a_java_that_fails_is_one_line_whatever_it_prints(tmp_path):
    stub = "The operation couldn't be completed.\nUnable to locate a Java Runtime.\n"
    make_java(tmp_path, stub, exit_code=1)
    assert "fails with exit code 1" in complaint(run_script(tmp_path / "bin"))


def test_a_java_that_cannot_be_started_is_one_line(tmp_path):
    java = make_java(tmp_path, "")
    java.write_text("#!/no/such/interpreter\n")
    assert "cannot be run" in complaint(run_script(tmp_path / "bin"))


def test_a_program_that_is_not_java_is_one_line(tmp_path):
    make_java(tmp_path, "hello")
    assert "does not name its version" in complaint(run_script(tmp_path / "bin"))


def test_only_python_is_judged_before_java_is_needed(tmp_path):
    assert run_script(tmp_path, None, "--python").returncode == 0


@pytest.mark.parametrize(
    ("report", "major"),
    [
        *((report, major) for major, report in REPORTS.items()),
        ('openjdk version "21-ea" 2023-09-19', 21),
        ('openjdk version "17" 2021-09-14', 17),
        (f"Picked up JAVA_TOOL_OPTIONS: -Xmx1g\n{REPORTS[17]}", 17),
        ("", None),
        ("java: command not found", None),
    ],
)
def test_the_major_version_is_read_from_every_format(report, major):
    assert prerequisites.java_major_version(report) == major


@pytest.mark.parametrize("version", [(2, 7, 18), (3, 6, 15), (3, 9, 2), (3, 10, 13)])
def test_an_old_python_is_refused_in_one_line(version):
    with pytest.raises(PrerequisiteError) as refusal:
        prerequisites.check_python(version, "/usr/bin/python3")
    message = str(refusal.value)
    assert "\n" not in message
    assert f"needs Python 3.11 or newer, found {'.'.join(map(str, version))}" in message
    assert "/usr/bin/python3" in message


@pytest.mark.parametrize("version", [(3, 11, 0), (3, 12, 1), (3, 14, 0), (4, 0, 0)])
def test_a_new_enough_python_passes(version):
    prerequisites.check_python(version)


def test_from_python_the_error_is_foldins_own_and_carries_the_exit_code(tmp_path):
    with pytest.raises(PrerequisiteError, match="No Java on PATH") as refusal:
        prerequisites.check_prerequisites({"PATH": str(tmp_path)})
    assert refusal.value.exit_code == 1


def test_check_java_returns_the_version_that_spark_will_start(tmp_path):
    make_java(tmp_path, REPORTS[21])
    assert prerequisites.check_java({"JAVA_HOME": str(tmp_path), "PATH": os.defpath}) == 21


def test_the_file_keeps_to_the_syntax_of_python_3_6():
    ast.parse(SCRIPT.read_text(), feature_version=(3, 6))
