"""A real Kafka broker in a process of its own, and a client to it; both from Maven's artifacts, by Ivy.

Python and Java are all that is needed: the resolver is the one that Spark has for `--packages`.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyspark
from py4j.java_gateway import GatewayParameters, JavaGateway, launch_gateway
from py4j.protocol import Py4JJavaError

KAFKA = "org.apache.kafka:kafka_2.13:4.1.1,org.slf4j:slf4j-simple:1.7.36"  # the second writes the log
SECONDS = 60  # a broker is up in 5 s; a machine may be busy
_SPARK_JARS = Path(pyspark.__file__).parent / "jars"

USER = "foldin"
PASSWORD = 'pa"ss\\w0rd-9f3c'
"""With what would end a quoted string, if nobody minded."""
STORE_PASSWORD = "st0re-of-ke\\ys"
"""Of the broker's key store and its clients' trust store."""
JAAS = 'org.apache.kafka.common.security.plain.PlainLoginModule required username="{}" password="${{env:KAFKA_WORD}}";'


@contextmanager
def java(classpath: str) -> Iterator[JavaGateway]:
    """A JVM that does what Python asks of it."""
    py4j = str(next(_SPARK_JARS.glob("py4j-*.jar")))
    options = ["-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
    port, token, process = launch_gateway(
        jarpath=py4j, classpath=classpath, javaopts=options, die_on_exit=True, enable_auth=True, return_proc=True
    )
    gateway = JavaGateway(gateway_parameters=GatewayParameters(port=port, auth_token=token))
    try:
        yield gateway
    finally:
        gateway.close()
        process.kill()
        process.wait()


def resolve(coordinates: str = KAFKA) -> str:
    """The class path of an artifact and all that it needs; once from the network, later from Ivy's cache."""
    with java(f"{_SPARK_JARS}/*") as gateway:
        jvm = gateway.jvm
        utils, none = jvm.org.apache.spark.util.MavenUtils, jvm.scala.Option.empty()
        quiet = jvm.java.io.PrintStream(jvm.java.io.OutputStream.nullOutputStream())
        settings = utils.buildIvySettings(none, none, True, quiet)
        excluded = getattr(utils, "resolveMavenCoordinates$default$5")()
        found = utils.resolveMavenCoordinates(coordinates, settings, none, True, excluded, False, quiet)
        # Spark's resolver leaves Scala's own library out, which Spark has.
        jars = [str(found.apply(n)) for n in range(found.size())] + [str(next(_SPARK_JARS.glob("scala-library-*.jar")))]
        return ":".join(jars)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


class Broker:
    """One node in KRaft mode, broker and controller, on loopback; its log outlives a SIGKILL.

    It listens twice: at `address` to everybody, at `guarded` by TLS to who knows the password.

    Attributes:
        trust: the trust store with the certificate of `guarded`, which no authority has signed.
    """

    def __init__(self, classpath: str, folder: Path, password: str) -> None:
        self.classpath, self.folder, self.password = classpath, folder, password
        self.address, self.guarded, controller = (f"127.0.0.1:{free_port()}" for _ in range(3))
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True)
        keys, self.trust = self._certify()
        properties = {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@{controller}",
            "listeners": f"OPEN://{self.address},GUARDED://{self.guarded},CONTROLLER://{controller}",
            "advertised.listeners": f"OPEN://{self.address},GUARDED://{self.guarded}",
            "listener.security.protocol.map": "OPEN:PLAINTEXT,GUARDED:SASL_SSL,CONTROLLER:PLAINTEXT",
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "OPEN",
            "sasl.enabled.mechanisms": "PLAIN",
            "listener.name.guarded.plain.sasl.jaas.config": "org.apache.kafka.common.security.plain.PlainLoginModule "
            # A file of properties takes away one level of backslashes, JAAS the next.
            f'required user_{USER}="{_quoted(_quoted(password))}";',
            "listener.name.guarded.ssl.keystore.location": str(keys),
            "listener.name.guarded.ssl.keystore.type": "PKCS12",
            "listener.name.guarded.ssl.keystore.password": _quoted(STORE_PASSWORD),
            "log.dirs": str(folder / "log"),
            "auto.create.topics.enable": "false",
            # One node: there is nobody to keep copies.
            "offsets.topic.replication.factor": "1",
            "offsets.topic.num.partitions": "1",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "transaction.state.log.num.partitions": "1",
        }
        self._properties = folder / "server.properties"
        self._properties.write_text("".join(f"{key}={value}\n" for key, value in properties.items()))
        _run(self._command("kafka.tools.StorageTool", "format", "-t", "A" * 21 + "Q", "-c", str(self._properties)))

    def _certify(self) -> tuple[Path, Path]:
        """A key with a certificate for loopback, by Java's own tool, and a trust store with that certificate alone."""
        keys, certificate, trust = (self.folder / name for name in ("keys.p12", "broker.pem", "trust.p12"))
        named = ["-alias", "broker", "-storetype", "PKCS12", "-storepass", STORE_PASSWORD]
        made_for = ["-keyalg", "EC", "-dname", "CN=broker", "-ext", "san=ip:127.0.0.1", "-validity", "2"]
        for words in (
            ["-genkeypair", *named, *made_for, "-keystore", str(keys)],
            ["-exportcert", *named, "-rfc", "-keystore", str(keys), "-file", str(certificate)],
            ["-importcert", *named, "-noprompt", "-keystore", str(trust), "-file", str(certificate)],
        ):
            _run(["keytool", *words])
        return keys, trust

    def _command(self, *words: str) -> list[str]:
        options = ["-Xmx384m", "-XX:+UseSerialGC", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"]
        return ["java", *options, "-cp", self.classpath, *words]

    def start(self) -> None:
        with (self.folder / "broker.log").open("ab") as log:
            command = self._command("kafka.Kafka", str(self._properties))
            self._process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        host, port = self.address.split(":")
        deadline = time.monotonic() + SECONDS
        while True:
            assert self._process.poll() is None, (self.folder / "broker.log").read_text()[-3000:]
            assert time.monotonic() < deadline, "the broker does not listen"
            try:
                socket.create_connection((host, int(port)), timeout=1).close()
                return
            except OSError:
                time.sleep(0.1)

    def kill(self) -> None:
        """SIGKILL: nothing is flushed, nobody is told."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()


def guarded(broker: Broker, user: str = USER) -> list[str]:
    """Settings of foldin for the listener by TLS that asks for a password.

    The variable KAFKA_WORD holds that, KAFKA_STORE_WORD the one of the trust store.
    """
    options = {
        "kafka.security.protocol": "SASL_SSL",
        "kafka.ssl.truststore.location": str(broker.trust),
        "kafka.ssl.truststore.type": "PKCS12",
        "kafka.ssl.truststore.password": "${env:KAFKA_STORE_WORD}",
        "kafka.sasl.mechanism": "PLAIN",
        "kafka.sasl.jaas.config": JAAS.format(user),
    }
    lines = ", ".join(f"'{key}' = '''{value}'''" for key, value in options.items())
    return [f"kafka.bootstrap_servers='{broker.guarded}'", f"kafka.options={{ {lines} }}"]


class Client:
    """Kafka's own Java client, spoken to from Python."""

    def __init__(self, gateway: JavaGateway, broker: Broker) -> None:
        self._gateway, self._jvm = gateway, gateway.jvm
        self._properties = self._jvm.java.util.Properties()
        settings = {
            "bootstrap.servers": broker.address,
            "key.serializer": "org.apache.kafka.common.serialization.StringSerializer",
            "value.serializer": "org.apache.kafka.common.serialization.ByteArraySerializer",
            "acks": "all",
            "enable.idempotence": "true",
            "delivery.timeout.ms": "120000",
        }
        for key, value in settings.items():
            self._properties.put(key, value)
        self._admin = self._jvm.org.apache.kafka.clients.admin.Admin.create(self._properties)
        self._producer: Any = None

    def create_topic(self, name: str, partitions: int) -> None:
        new = self._jvm.org.apache.kafka.clients.admin.NewTopic(name, partitions, 1)
        self._admin.createTopics(self._list([new])).all().get()
        # Every broker knows it once it can be described; the first answers may come before that.
        deadline = time.monotonic() + SECONDS
        while True:
            try:
                self._admin.describeTopics(self._list([name])).allTopicNames().get()
                return
            except Py4JJavaError:
                assert time.monotonic() < deadline, f"no topic {name}"
                time.sleep(0.1)

    def delete_topic(self, name: str) -> None:
        self._admin.deleteTopics(self._list([name])).all().get()

    def send(self, topic: str, *values: bytes | None, partition: int | None = None) -> None:
        """Each value as one message; back when the broker has them all."""
        if self._producer is None:
            self._producer = self._jvm.org.apache.kafka.clients.producer.KafkaProducer(self._properties)
        self._send(self._producer, topic, values, partition)
        self._producer.flush()

    def send_aborted(self, topic: str, *values: bytes) -> None:
        """Messages of a transaction that the producer takes back."""
        properties = self._jvm.java.util.Properties()
        properties.putAll(self._properties)
        properties.put("transactional.id", "test")
        producer = self._jvm.org.apache.kafka.clients.producer.KafkaProducer(properties)
        producer.initTransactions()
        producer.beginTransaction()
        self._send(producer, topic, values, 0)
        producer.flush()
        producer.abortTransaction()
        producer.close()

    def _send(self, producer: Any, topic: str, values: Iterable[bytes | None], partition: int | None) -> None:
        record = self._jvm.org.apache.kafka.clients.producer.ProducerRecord
        futures = [
            producer.send(record(topic, partition, f"k{n}", None if value is None else bytearray(value)))
            for n, value in enumerate(values)
        ]
        for future in futures:
            future.get()

    def delete_records(self, topic: str, before: Mapping[int, int]) -> None:
        """What retention does: messages of a partition before an offset are gone."""
        asked = self._jvm.java.util.HashMap()
        named = self._jvm.java.lang.Class.forName("org.apache.kafka.clients.admin.RecordsToDelete")
        # There are two methods of that name, and py4j finds the other.
        before_offset = named.getMethod(
            "beforeOffset", self._array(self._jvm.java.lang.Class, self._jvm.java.lang.Long.TYPE)
        )
        for partition, offset in before.items():
            records = before_offset.invoke(None, self._array(self._jvm.java.lang.Object, offset))
            asked.put(self._jvm.org.apache.kafka.common.TopicPartition(topic, partition), records)
        self._admin.deleteRecords(asked).all().get()

    def _array(self, kind: Any, *values: Any) -> Any:
        made = self._gateway.new_array(kind, len(values))
        for n, value in enumerate(values):
            made[n] = value
        return made

    def _list(self, values: Iterable[Any]) -> Any:
        made = self._jvm.java.util.ArrayList()
        for value in values:
            made.add(value)
        return made
