"""Do the locks hold a version that pyproject.toml (or an .in file) allows, for each package that it names?

Needs no network, and so sees less than `make lock`: what the named packages need in their turn is
not followed.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "conf" / "dev"


def locked_versions(path: Path) -> dict[str, list[str]]:
    """Versions by package name; a package may have several, told apart by markers."""
    found: dict[str, list[str]] = {}
    for name, version in re.findall(r"^([\w.-]+)==(\S+)", path.read_text(), re.MULTILINE):
        found.setdefault(canonicalize_name(name), []).append(version)
    return found


def complaints(lock: Path, requirements: list[str], source: str = "pyproject.toml") -> list[str]:
    """One line for each requirement that the lock does not meet."""
    locked = locked_versions(lock)
    lines = []
    for requirement in map(Requirement, requirements):
        versions = locked.get(canonicalize_name(requirement.name), [])
        if not versions or not all(requirement.specifier.contains(v, True) for v in versions):
            has = f"has {', '.join(versions)}" if versions else "lacks it"
            lines.append(f"{lock.relative_to(ROOT)} {has}: {source} wants {requirement}")
    return lines


def main() -> int:
    """Print what does not fit; 1 if anything does not."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    base = project["project"]["dependencies"]
    found = complaints(FOLDER / "requirements.lock", [*project["build-system"]["requires"], *base, *extras["dev"]])
    for name in ("bench", "outside"):
        found += complaints(FOLDER / f"{name}.lock", extras[name])
    for name in ("audit", "airflow"):
        named = [line for line in (FOLDER / f"{name}.in").read_text().splitlines() if line and not line.startswith("#")]
        found += complaints(FOLDER / f"{name}.lock", named, f"conf/dev/{name}.in")
    for line in found:
        print(f"{line}; make lock remakes it", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
