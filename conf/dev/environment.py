"""Make .venv what the locks say, and do nothing when it already is: `make setup`.

`--apart NAME` makes .venv-NAME from conf/dev/NAME.lock alone, without foldin: for what must not share its packages.

The locked packages are fetched once, by pip and so by the user's own configuration of pip, into a
folder of wheels that all checkouts of this user share (`$FOLDIN_CACHE/wheels`, by default
`~/.cache/foldin/wheels`). Every set-up installs from there without the network, and pip compares
each file with the lock's hash. pyspark exists only as a source archive: it is built into a wheel
once, and the hash of that wheel is noted in `built.json` beside the folder.

What may happen to a set-up, and what is done about it:

- it is interrupted: the stamp in .venv is taken away before the first change and written after the
  last one; a .venv without a stamp is made anew. Wheels appear under their names by a rename, after
  they were written and checked.
- it runs twice at once: a lock on the checkout and one on the cache, held also by the pip that was
  started, so that a killed set-up's orphan does not write into its successor's .venv.
- the checkout was moved or its Python removed: the stamp no longer fits, .venv is made anew.

Standard library only; the Makefile runs it as `python3 -I conf/dev/environment.py`.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "conf" / "dev"

# Needed while pip looks into a source archive; fetched and installed before the others.
BUILD_TOOLS = {"setuptools"}


class SetupError(Exception):
    """The set-up cannot go on; the message is for the person who typed `make`."""


@dataclass(frozen=True)
class Venv:
    """A virtual environment of this checkout: its folder, its first lock, and whether foldin itself is in it."""

    folder: Path
    lock: Path
    has_foldin: bool

    @classmethod
    def of(cls, apart: str | None) -> Venv:
        if apart is None:
            return cls(ROOT / ".venv", FOLDER / "requirements.lock", True)
        return cls(ROOT / f".venv-{apart}", FOLDER / f"{apart}.lock", False)

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def stamp(self) -> Path:
        return self.folder / "foldin-stamp.json"


# --- locks of packages ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Pin:
    """One package of a lock: `numpy==2.4.6 ; marker` and the hashes of its files."""

    name: str
    requirement: str
    hashes: tuple[str, ...]

    @property
    def key(self) -> str:
        """Names the pin in built.json: another hash in the lock means another archive."""
        return f"{self.requirement} {digest(' '.join(sorted(self.hashes)).encode())[:16]}"

    def line(self, built: dict[str, list[str]]) -> str:
        """The requirement with the lock's hashes and those of wheels built here."""
        hashes = (*self.hashes, *built.get(self.key, ()))
        return " ".join([self.requirement, *(f"--hash=sha256:{value}" for value in hashes)])


def read_lock(path: Path) -> list[Pin]:
    text = path.read_text().replace("\\\n", " ")
    pins = []
    for line in text.splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        requirement, *hashes = re.split(r"\s+--hash=sha256:", line.strip())
        if not hashes:
            raise SetupError(f"{path}: {requirement} has no hash: remake it by make lock")
        pins.append(Pin(re.split(r"[=\s;\[]", requirement)[0], requirement, tuple(hashes)))
    return pins


def lock_digest(path: Path) -> str:
    """Digest of what a lock asks for, whatever its comments say."""
    return digest("\n".join(pin.line({}) for pin in read_lock(path)).encode())


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- the cache of wheels -------------------------------------------------------------------------


class Wheelhouse:
    """The wheels that all checkouts of this user share."""

    def __init__(self, folder: Path, venv: Venv) -> None:
        self.folder, self.venv = folder, venv
        self.wheels = folder / "wheels"
        self.wheels.mkdir(parents=True, exist_ok=True)

    def built(self) -> dict[str, list[str]]:
        """Hashes of the wheels that were built here from source archives, by pin."""
        try:
            return json.loads((self.folder / "built.json").read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return {}

    def requirements(self, pins: Sequence[Pin]) -> str:
        built = self.built()
        return "".join(pin.line(built) + "\n" for pin in pins)

    def fetch(self, pins: Sequence[Pin], locks: Sequence[int]) -> None:
        """Download what is missing or damaged, and build wheels of source archives."""
        for left_over in self.folder.glob("fetch-*"):  # by a set-up that was killed
            shutil.rmtree(left_over, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=self.folder, prefix="fetch-") as name:
            work = Path(name)
            for part in ("have", "new", "tmp"):
                (work / part).mkdir()
            missing = self.lacking(pins, work / "have")
            if not missing:
                return
            names = {pin.name for pin in missing}
            size = " (pyspark alone has 430 MB)" if "pyspark" in names else ""
            count = "1 package" if len(names) == 1 else f"{len(names)} packages"
            say(f"fetching {count} into {self.wheels}{size}")
            (work / "lock.txt").write_text(self.requirements(missing))
            # Wheels are built with the locked tools of .venv; a lock without tools (that of the
            # benchmarks, or of Airflow) lets pip fetch what an archive asks for.
            has_tools = any(pin.name in BUILD_TOOLS for pin in pins)
            pip(
                self.venv,
                "wheel",
                "--quiet",
                "--no-deps",
                "--require-hashes",
                "--progress-bar=off",
                *(["--no-build-isolation"] if has_tools else []),
                f"--find-links={work / 'have'}",
                f"--requirement={work / 'lock.txt'}",
                f"--wheel-dir={work / 'new'}",
                temporary=work / "tmp",
                locks=locks,
            )
            for wheel in sorted((work / "new").glob("*.whl")):
                if not (work / "have" / wheel.name).exists():
                    self.add(wheel, pins)

    def lacking(self, pins: Sequence[Pin], have: Path) -> list[Pin]:
        """Link the undamaged wheels into `have`; return the pins that pip must still look for.

        A wheel for any platform settles its pin. This is also what keeps pip from downloading and
        building pyspark again: beside an archive that the index lists with its hash, pip does not
        consider a wheel on disk. Whether another wheel suits this Python is for pip to say.
        """
        built = self.built()
        owners = {value: pin for pin in pins for value in (*pin.hashes, *built.get(pin.key, ()))}
        settled = set()
        for wheel in self.wheels.glob("*.whl"):
            pin = owners.get(file_digest(wheel))
            if pin is not None:
                (have / wheel.name).symlink_to(wheel)
                if wheel.stem.endswith("-none-any"):
                    settled.add(pin)
        return [pin for pin in pins if pin not in settled]

    def add(self, wheel: Path, pins: Sequence[Pin]) -> None:
        value = file_digest(wheel)
        name, version = wheel.name.split("-")[:2]
        for pin in pins:
            if pin.requirement.split()[0] == f"{normal(name)}=={version}":
                if value not in pin.hashes:  # pip has checked the archive that it is built from
                    built = self.built()
                    built[pin.key] = [*built.get(pin.key, ()), value]
                    replace(self.folder / "built.json", json.dumps(built, indent=1))
                break
        wheel.replace(self.wheels / wheel.name)


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def replace(path: Path, content: str) -> None:
    """Write a file so that a reader finds the old content or the new, never a part."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(content)
    beside.replace(path)


# --- the virtual environment ---------------------------------------------------------------------


def pip(
    venv: Venv,
    *arguments: str,
    temporary: Path | None = None,
    locks: Sequence[int] = (),
    isolated: bool = False,
) -> None:
    """Run the environment's pip without a word; its own words are the message if it fails."""
    environment = dict(os.environ, PIP_DISABLE_PIP_VERSION_CHECK="1", PIP_NO_INPUT="1")
    if temporary is not None:  # pyspark takes 1.5 GB, which a small /tmp does not have
        environment["TMPDIR"] = str(temporary)
    command = [str(venv.python), "-I", "-m", "pip", *(["--isolated"] if isolated else []), *arguments]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        pass_fds=tuple(locks),
    )
    if done.returncode != 0:
        lines = [line for line in done.stdout.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")] or lines
        raise SetupError("\n".join(errors[-12:]))


def install(pins: Sequence[Pin], house: Wheelhouse, locks: Sequence[int]) -> None:
    """Install from the wheels on disk and nothing else; pip checks each against the lock."""
    with tempfile.TemporaryDirectory(prefix="foldin-") as name:
        requirements = Path(name) / "lock.txt"
        requirements.write_text(house.requirements(pins))
        pip(
            house.venv,
            "install",
            "--quiet",
            "--no-deps",
            "--no-index",
            "--no-cache-dir",
            "--only-binary=:all:",
            "--require-hashes",
            f"--find-links={house.wheels}",
            f"--requirement={requirements}",
            locks=locks,
            isolated=True,
        )


def install_or_fetch(pins: Sequence[Pin], house: Wheelhouse, lock: int) -> None:
    say(f"installing {len(pins)} locked packages into {house.venv.folder.name}")
    with contextlib.suppress(SetupError):
        return install(pins, house, [lock])
    with exclusive(house.folder / "lock") as (cache_lock, waited):
        if waited:  # another checkout may just have fetched them
            with contextlib.suppress(SetupError):
                return install(pins, house, [lock, cache_lock])
        tools = [pin for pin in pins if pin.name in BUILD_TOOLS]
        try:
            if tools:
                house.fetch(tools, [lock, cache_lock])
                install(tools, house, [lock, cache_lock])
            house.fetch(pins, [lock, cache_lock])
        except SetupError as failure:
            raise SetupError(
                f"{house.wheels} lacks packages, and pip cannot fetch them (is there a network? "
                f"pip's own configuration is used):\n{failure}"
            ) from failure
    return install(pins, house, [lock])


def make_venv(venv: Venv, lock: int) -> None:
    say(f"making {venv.folder.name} with Python {version()} ({sys.executable})")
    done = subprocess.run(
        [sys.executable, "-I", "-m", "venv", "--clear", str(venv.folder)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        pass_fds=(lock,),
    )
    if done.returncode != 0:
        raise SetupError(f"{sys.executable} -m venv failed: {' '.join(done.stdout.split())}")


def set_up(venv: Venv, extra: Sequence[Path], python_is_asked_for: bool) -> None:
    """Bring an environment to the state that the locks and pyproject.toml describe."""
    paths = [venv.lock, *extra]
    for path in paths:
        if not path.is_file():
            raise SetupError(f"{path.relative_to(ROOT)} is missing: make lock makes it")
    wanted: dict[str, Any] = {
        "root": str(ROOT),
        "python": version(),
        "project": project_digest() if venv.has_foldin else None,
        "locks": {path.name: lock_digest(path) for path in paths},
    }
    if fits(venv, read_stamp(venv), wanted, python_is_asked_for):
        return
    with exclusive(ROOT) as (lock, _):
        stamp = read_stamp(venv)
        if fits(venv, stamp, wanted, python_is_asked_for):
            return
        house = Wheelhouse(cache_folder(), venv)
        venv.stamp.unlink(missing_ok=True)
        if not usable(venv, stamp, wanted, python_is_asked_for):
            make_venv(venv, lock)
            stamp = {**wanted, "project": None, "locks": {}}
        for path in paths:
            if stamp["locks"].get(path.name) != wanted["locks"][path.name]:
                install_or_fetch(read_lock(path), house, lock)
                stamp["locks"][path.name] = wanted["locks"][path.name]
        if stamp["project"] != wanted["project"]:
            say("installing foldin itself, editable")
            pip(
                venv,
                "install",
                "--quiet",
                "--no-index",
                "--no-deps",
                "--no-build-isolation",
                f"--editable={ROOT}",
                locks=[lock],
                isolated=True,
            )
        replace(venv.stamp, json.dumps({**stamp, "project": wanted["project"]}, indent=1))
        say("ready")


def read_stamp(venv: Venv) -> dict[str, Any] | None:
    try:
        stamp = json.loads(venv.stamp.read_text())
    except (OSError, json.JSONDecodeError):
        return None
    return stamp if isinstance(stamp, dict) else None


def usable(venv: Venv, stamp: dict[str, Any] | None, wanted: dict[str, Any], same_python: bool) -> bool:
    """Whether the environment is whole and only lacks something, so that it need not be made anew."""
    return (
        stamp is not None
        and stamp.get("root") == wanted["root"]
        and (stamp.get("python") == wanted["python"] or not same_python)
        and stamp.get("locks", {}).get(venv.lock.name) == wanted["locks"][venv.lock.name]
        and venv.python.exists()  # a link to nowhere when that Python was removed
    )


def fits(venv: Venv, stamp: dict[str, Any] | None, wanted: dict[str, Any], same_python: bool) -> bool:
    return (
        stamp is not None
        and usable(venv, stamp, wanted, same_python)
        and stamp.get("project") == wanted["project"]
        and wanted["locks"].items() <= stamp["locks"].items()
    )


def project_digest() -> str:
    """Digest of what an editable install depends on; a new rule for ruff is not among it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    parts = [project["build-system"], project["project"], project["tool"]["hatch"]]
    return digest(json.dumps(parts, sort_keys=True).encode())


def cache_folder() -> Path:
    """Where the wheels are: FOLDIN_CACHE, else foldin/ in the user's cache."""
    named = os.environ.get("FOLDIN_CACHE")
    if named:
        return Path(named).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "foldin"


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[tuple[int, bool]]:
    """Hold the lock on a folder or file; also tells whether somebody else had it first."""
    flags = os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT
    descriptor = os.open(path, flags, 0o666)
    waited = False
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another set-up to end")
            waited = True
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor, waited
    finally:
        os.close(descriptor)


def version() -> str:
    return ".".join(str(part) for part in sys.version_info[:3])


def say(text: str) -> None:
    print(f"foldin: {text}", flush=True)


def prerequisites() -> ModuleType:
    """Load lib/foldin/prerequisites.py as a plain file: the package is not installed yet."""
    path = ROOT / "lib" / "foldin" / "prerequisites.py"
    spec = importlib.util.spec_from_file_location("prerequisites", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> int:
    parser = argparse.ArgumentParser(description="Make .venv what the locks say.")
    parser.add_argument("--with", dest="extra", action="append", default=[], metavar="LOCK")
    parser.add_argument("--apart", metavar="NAME", help="make .venv-NAME from conf/dev/NAME.lock instead")
    options = parser.parse_args()
    check = prerequisites()
    try:
        check.check_prerequisites()
        check.check_venv()
        extra = [Path(name).resolve() for name in options.extra]
        set_up(Venv.of(options.apart), extra, bool(os.environ.get("PYTHON")))
    except check.PrerequisiteError as missing:
        print(missing, file=sys.stderr)
        return 1
    except SetupError as failure:
        print(f"foldin: set-up failed: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("foldin: set-up interrupted; the next one starts where it can", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
