"""Tables that have lived, made once, and a Redis server for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pyspark.sql import SparkSession
from readers_world import Lived, live
from redis_server import RedisServer


@pytest.fixture(scope="session")
def lived(spark: SparkSession, folded_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Lived:
    """For reading only: who writes works on a copy."""
    return live(spark, folded_root, tmp_path_factory.mktemp("lived") / "tables")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """An empty Redis."""
    started = RedisServer(tmp_path)
    started.start()
    yield started
    started.kill()
