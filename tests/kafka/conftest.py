"""One broker for all tests here, a client to it, and a Spark session that has the connector."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest
from broker import PASSWORD, Broker, Client, java, resolve
from pyspark.sql import SparkSession

from foldin.config import Config, load_config
from foldin.session import build_session

_names = itertools.count()


@pytest.fixture(scope="session")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkSession]:
    """As everywhere, and with the connector, which a session that is there already cannot get any more."""
    assert SparkSession.getActiveSession() is None, "tests/kafka needs a process of its own: make kafka"
    folder = tmp_path_factory.mktemp("spark")
    sets = [
        "spark.master='local[2]'",
        "spark.conf.spark.driver.memory=1g",
        f"spark.conf.spark.sql.warehouse.dir={folder / 'warehouse'}",
        "ingest.source=kafka",
        "kafka.bootstrap_servers='127.0.0.1:9'",
        "kafka.topics=none",
    ]
    session = build_session(load_config(sets=sets), log_file=folder / "spark.log")
    yield session
    session.stop()


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A running broker."""
    made = Broker(resolve(), tmp_path_factory.mktemp("kafka") / "broker", PASSWORD)
    try:
        made.start()
        yield made
    finally:
        made.kill()


@pytest.fixture(scope="session")
def client(broker: Broker) -> Iterator[Client]:
    """A producer and an administrator."""
    with java(broker.classpath) as gateway:
        yield Client(gateway, broker)


@pytest.fixture
def topic(client: Client) -> str:
    """A new topic of two partitions."""
    name = f"events.{next(_names)}"
    client.create_topic(name, partitions=2)
    return name


@pytest.fixture
def kafka_config(make_config: Callable[..., Config], broker: Broker, topic: str) -> Callable[..., Config]:
    """The small configuration over the test's topic."""

    def make(*sets: str) -> Config:
        return make_config(
            "ingest.source=kafka", f"kafka.bootstrap_servers='{broker.address}'", f"kafka.topics='{topic}'", *sets
        )

    return make
