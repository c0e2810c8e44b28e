"""A bucket, and a Spark session that reads it as the jobs do."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from buckets import CONFIG, KEYS, Bucket, of_endpoint
from pyspark.sql import SparkSession

import quick
from foldin.config import load_config
from foldin.session import build_session

_numbers = itertools.count()


@pytest.fixture(scope="session")
def endpoint() -> Iterator[str]:
    """The address of a running server; its keys stand in this process's environment, for all that it starts."""
    script = Path(__file__).with_name("s3_server.py")
    before = {key: os.environ.get(key) for key in KEYS}
    os.environ.update(KEYS)
    server = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        port = server.stdout.readline().strip()
        assert port.isdigit(), "the S3 server did not start"
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()
        for key, value in before.items():
            os.environ.pop(key) if value is None else os.environ.update({key: value})


@pytest.fixture
def bucket(endpoint: str) -> Bucket:
    """A new bucket."""
    import boto3  # here, for whoever only collects the tests

    client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")
    name = f"bucket-{next(_numbers)}"
    client.create_bucket(Bucket=name)
    return Bucket(name, endpoint, client)


@pytest.fixture(scope="session")
def spark(endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkSession]:
    """As everywhere, and with S3, which a session that is there already cannot get any more."""
    assert SparkSession.getActiveSession() is None, "tests/storage needs a process of its own: make storage"
    folder = tmp_path_factory.mktemp("spark")
    conf = quick.SETTINGS | {
        "spark.sql.warehouse.dir": str(folder / "warehouse"),
        "spark.driver.extraJavaOptions": f"{quick.SHORT_JVM} -Dderby.system.home={folder}",
        "spark.driver.memory": "2g",
    }
    sets = ["spark.master='local[2]'", *of_endpoint(endpoint), *(f"spark.conf.{k}='{v}'" for k, v in conf.items())]
    session = build_session(load_config(CONFIG, sets), log_file=folder / "spark.log")
    yield session
    session.stop()
