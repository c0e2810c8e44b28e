"""Is there a Python and a Java that Spark can use? One line says what is missing and how to get it.

This file is read by interpreters that are too old for the rest of foldin: `make` runs it as a
plain file (`python3 -I lib/foldin/prerequisites.py`) before anything is installed. So it needs
nothing but the standard library, and its syntax is that of Python 3.6.
"""

import os
import re
import shutil
import subprocess
import sys
from typing import List, Mapping, Optional, Sequence, Tuple

try:
    from foldin.errors import PrerequisiteError
except (ImportError, SyntaxError):  # run as a plain file, perhaps by an old Python

    class PrerequisiteError(Exception):  # type: ignore[no-redef]
        """Stands in for foldin.errors.PrerequisiteError."""

        exit_code = 1


__all__ = [
    "JAVA_VERSIONS",
    "MINIMUM_PYTHON",
    "check_java",
    "check_prerequisites",
    "check_python",
    "check_venv",
    "java_major_version",
]

MINIMUM_PYTHON = (3, 11)
JAVA_VERSIONS = (17, 21)

JAVA_SECONDS = 60  # a JVM that does not name its version by then is broken

GET_PYTHON = (
    "install one (Debian, Ubuntu: apt-get install python3.11 python3.11-venv; macOS: brew install "
    "python@3.11) or name one by make PYTHON=/path/to/python3"
)
GET_JAVA = "install one (Debian, Ubuntu: apt-get install openjdk-17-jre-headless; macOS: brew install openjdk@17)"


def check_prerequisites(environ: Optional[Mapping[str, str]] = None) -> None:
    """Raise PrerequisiteError, with a message of one line, unless Python and Java suit Spark.

    `environ` stands for `os.environ`: JAVA_HOME and PATH are read from it.
    """
    check_python(sys.version_info[:3])
    check_java(environ)


def check_python(version: Sequence[int], executable: Optional[str] = None) -> None:
    """Refuse a Python that is older than MINIMUM_PYTHON."""
    if tuple(version[:2]) < MINIMUM_PYTHON:
        raise PrerequisiteError(
            "foldin needs Python {} or newer, found {} ({}): {}".format(
                dotted(MINIMUM_PYTHON), dotted(version), executable or sys.executable, GET_PYTHON
            )
        )


def check_venv() -> None:
    """Refuse a Python that cannot make virtual environments (Debian packages venv apart)."""
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError as missing:
        raise PrerequisiteError(
            "Python {} ({}) has no module {}, which makes virtual environments: install it "
            "(Debian, Ubuntu: apt-get install python{}-venv)".format(
                dotted(sys.version_info[:3]),
                sys.executable,
                missing.name,
                dotted(sys.version_info[:2]),
            )
        ) from None


def check_java(environ: Optional[Mapping[str, str]] = None) -> int:
    """Return the major version of the Java that Spark will start; refuse what Spark cannot use."""
    environ = os.environ if environ is None else environ
    java, origin = find_java(environ)
    report = ask_java(java, origin, environ)
    major = java_major_version(report)
    if major is None:
        raise PrerequisiteError("{} ({}) does not name its version as a Java does: {}".format(java, origin, wanted()))
    if major not in JAVA_VERSIONS:
        raise PrerequisiteError("Spark cannot use Java {} ({}, {}): {}".format(major, java, origin, wanted()))
    return major


def find_java(environ: Mapping[str, str]) -> Tuple[str, str]:
    """Find Java as Spark's own scripts do: JAVA_HOME if it is set, else `java` on PATH."""
    home = environ.get("JAVA_HOME")
    if home:
        java = os.path.join(home, "bin", "java")
        if not (os.path.isfile(java) and os.access(java, os.X_OK)):
            raise PrerequisiteError(
                "JAVA_HOME is {}, where there is no bin/java: correct or unset it; {}".format(home, wanted())
            )
        return java, "from JAVA_HOME"
    found = shutil.which("java", path=environ.get("PATH", os.defpath))
    if found is None:
        raise PrerequisiteError("No Java on PATH, and JAVA_HOME is not set: {}".format(wanted()))
    return found, "from PATH"


def ask_java(java: str, origin: str, environ: Mapping[str, str]) -> str:
    """Return what `java -version` prints."""
    try:
        answer = subprocess.run(
            [java, "-version"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=dict(environ),
            timeout=JAVA_SECONDS,
        )
    except (OSError, subprocess.SubprocessError) as failure:
        # A message of several lines would bury the one thing to know.
        reason = " ".join(str(failure).split())
        raise PrerequisiteError("{} ({}) cannot be run ({}): {}".format(java, origin, reason, wanted())) from failure
    if answer.returncode != 0:  # macOS has a /usr/bin/java that only says that there is none
        raise PrerequisiteError("{} ({}) fails with exit code {}: {}".format(java, origin, answer.returncode, wanted()))
    return answer.stdout.decode("utf-8", "replace")


def java_major_version(report: str) -> Optional[int]:
    """Read the major version from what `java -version` prints; None if it is not there.

    Java 8 and older call themselves 1.8.0_392; later ones 17.0.15, 25 or 21-ea. Lines may stand
    before that one ("Picked up JAVA_TOOL_OPTIONS: ...").
    """
    found = re.search(r'^\S+ version "(\d+)(?:\.(\d+))?', report, re.MULTILINE)
    if found is None:
        return None
    first, second = found.groups()
    return int(second) if first == "1" and second else int(first)


def wanted() -> str:
    """Say which Java to get and how."""
    versions = " or ".join(str(version) for version in JAVA_VERSIONS)
    return "foldin needs Java {}; {}, and let JAVA_HOME or PATH point to it".format(versions, GET_JAVA)


def dotted(version: Sequence[int]) -> str:
    """Write (3, 11, 7) as 3.11.7."""
    return ".".join(str(part) for part in version)


def main(arguments: List[str]) -> int:
    """Check everything, or only what can be said of this Python (`--python`, for make)."""
    try:
        check_python(sys.version_info[:3])
        if "--python" in arguments:
            check_venv()
        else:
            check_java()
    except PrerequisiteError as missing:
        print(missing, file=sys.stderr)
        return PrerequisiteError.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
