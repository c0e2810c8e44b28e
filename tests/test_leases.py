"""One process a checkpoint, whoever starts, dies or comes back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from foldin.checkpoints import Checkpoint
from foldin.errors import LeaseError
from foldin.leases import Lease, holder_of
from world import wait_until

TERM = 30.0


@pytest.fixture
def checkpoint(spark: SparkSession, tmp_path: Path) -> Checkpoint:
    return Checkpoint(spark, str(tmp_path / "checkpoint"))


def held_by(checkpoint: Checkpoint, *, age: float, kernel: str = "another kernel", processes: tuple = ()) -> None:
    """A lease that somebody took and renewed `age` seconds ago, and never gave back."""
    holder = {"generation": 1, "host": "elsewhere", "pid": 7, "kernel": kernel, "processes": processes}
    more = {"since": "2026-01-01T00:00:00+00:00", "term": TERM, "renewed": time.time() - age, "released": False}
    checkpoint.create("lease/1", json.dumps(holder | more))


def test_a_second_holder_is_refused_and_told_who_holds_it(checkpoint):
    with Lease(checkpoint, TERM), pytest.raises(LeaseError) as refused, Lease(checkpoint, TERM):
        pass
    assert f"in use by process {os.getpid()} on" in str(refused.value)
    assert refused.value.exit_code == 8


def test_a_lease_that_was_given_back_is_free_at_once(checkpoint):
    with Lease(checkpoint, TERM):
        pass
    with Lease(checkpoint, TERM) as again:
        again.check()
        assert holder_of(checkpoint).generation == 2


def test_a_holder_elsewhere_keeps_its_lease_for_its_term_and_no_longer(checkpoint):
    held_by(checkpoint, age=TERM - 10)
    with pytest.raises(LeaseError, match=r"in use by process 7 on elsewhere .* over in (9|10) s"), Lease(checkpoint, 3):
        pass
    checkpoint.create(f"lease/1-renewed-{round(1000 * (time.time() - 1))}", "")  # it lives
    assert 28 < holder_of(checkpoint).remaining() < 30
    checkpoint.delete("lease")
    held_by(checkpoint, age=TERM + 1)
    with Lease(checkpoint, 3):
        pass


def test_a_holder_whose_processes_are_gone_loses_its_lease_at_once(checkpoint):
    with Lease(checkpoint, TERM):
        kernel = holder_of(checkpoint).kernel
    checkpoint.delete("lease")
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    mine = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    held_by(checkpoint, age=0, kernel=kernel, processes=((done.pid, 1), (os.getpid(), mine)))
    assert holder_of(checkpoint).remaining() > 0  # one of its two processes lives
    checkpoint.delete("lease")
    held_by(checkpoint, age=0, kernel=kernel, processes=((done.pid, 1), (os.getpid(), mine + 1)))  # a pid used again
    with Lease(checkpoint, TERM):
        pass


def test_of_many_that_try_at_once_one_wins(checkpoint):
    entered, refused, ready = [], [], threading.Barrier(6)

    def attempt() -> None:
        lease = Lease(checkpoint, TERM)
        ready.wait()
        try:
            lease.__enter__()
            entered.append(lease)
        except LeaseError:
            refused.append(lease)

    threads = [threading.Thread(target=attempt) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(entered), len(refused)) == (1, 5)
    entered[0].__exit__(None, None, None)


def test_a_holder_renews_and_notices_that_it_was_robbed(checkpoint):
    lease = Lease(checkpoint, 0.3)
    with lease:
        first = holder_of(checkpoint).renewed
        wait_until(lambda: holder_of(checkpoint).renewed > first, 30)
        lease.check()
        checkpoint.create("lease/2", "")
        wait_until(lambda: lease._lost is not None, 30)
        with pytest.raises(LeaseError, match="was taken over by another process"):
            lease.check()
    assert "2-released" not in checkpoint.list("lease")  # what is another's is not given back


def test_a_holder_that_could_not_renew_for_a_term_stops(checkpoint, monkeypatch):
    with Lease(checkpoint, 0.3) as lease:
        monkeypatch.setattr(Checkpoint, "list", lambda *_: 1 / 0)
        wait_until(lambda: time.monotonic() - lease._renewed > 0.3, 30)
        with pytest.raises(LeaseError, match="was not renewed for"):
            lease.check()
