"""One warm process and one installation for all tests here, which work on copies."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from nights import PATIENCE, Installation, slices, start_warm
from warm import ask


@pytest.fixture(scope="session")
def socket() -> Iterator[Path]:
    """Where a warm process listens."""
    folder = Path(tempfile.mkdtemp(prefix="foldin-"))  # short: the path of a socket has 107 bytes at most
    address, process = start_warm(folder)
    try:
        yield address
        ask(str(address), [])
        process.wait(PATIENCE)
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def ingested(socket: Path, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """Three slices of events, ingested one after the other; no model."""
    made = Installation(tmp_path_factory.mktemp("ingested"), socket)
    moments = [made.land_and_ingest(f"{n}.json", lines) for n, lines in enumerate(slices())]
    return Installation(made.folder, socket, tuple(moments))


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[[Installation], Installation]:
    """The test's own copy of an installation."""
    return lambda installation: installation.copy(tmp_path / "installation")
