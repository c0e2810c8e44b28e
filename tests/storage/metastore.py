"""A Hive metastore over thrift, as a process of its own: pyspark brings its classes."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyspark

from chaos.processes import ROOT, wait_until
from quick import SHORT_JVM

SPARK_HOME = Path(pyspark.__file__).parent
NEW = {
    "datanucleus.schema.autoCreateAll": "true",
    "hive.metastore.schema.verification": "false",
    "hive.async.log.enabled": "false",  # needs a JAR that pyspark does not bring
}


@contextmanager
def running(folder: Path) -> Iterator[str]:
    """A new one, its database in `folder`; yields its address."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    settings = NEW | {"javax.jdo.option.ConnectionURL": f"jdbc:derby:;databaseName={folder}/metastore;create=true"}
    words = [word for key, value in settings.items() for word in ("--hiveconf", f"{key}={value}")]
    log = folder / "metastore.log"
    with log.open("wb") as said:
        server = subprocess.Popen(
            [SPARK_HOME / "bin" / "spark-class", "org.apache.hadoop.hive.metastore.HiveMetaStore", "-p", str(port),
             *words],
            env=os.environ | {"JDK_JAVA_OPTIONS": f"{SHORT_JVM} -Dhive.log4j.file={ROOT / 'conf/log4j2.properties'}"},
            cwd=folder, stdin=subprocess.DEVNULL, stdout=said, stderr=said,
        )  # fmt: skip

    def answers() -> bool:
        assert server.poll() is None, log.read_text()[-3000:]
        with socket.socket() as one:
            return one.connect_ex(("127.0.0.1", port)) == 0

    try:
        wait_until(answers, "the metastore answers")
        yield f"thrift://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()
