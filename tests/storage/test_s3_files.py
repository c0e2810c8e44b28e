"""Checkpoints and leases in a bucket: whole or not at all, and one winner."""

from __future__ import annotations

import threading

import pytest
from buckets import Bucket
from pyspark.sql import SparkSession

from foldin.checkpoints import Checkpoint
from foldin.errors import LeaseError
from foldin.leases import Lease, holder_of

pytestmark = pytest.mark.storage


@pytest.fixture
def checkpoint(spark: SparkSession, bucket: Bucket) -> Checkpoint:
    return Checkpoint(spark, f"{bucket.uri}/foldin/_checkpoints/some")


def test_a_file_is_written_replaced_listed_and_deleted(checkpoint, bucket):
    assert checkpoint.read("pins/1") is None
    assert checkpoint.list("pins") == []
    checkpoint.write("pins/1", "first")
    checkpoint.write("pins/1", "zweiter, länger")
    assert checkpoint.read("pins/1") == "zweiter, länger"
    assert checkpoint.list("pins") == ["1"]
    assert checkpoint.modified("pins/1") == checkpoint.modified_if_there("pins/1") > 0
    assert checkpoint.newest_within("") == checkpoint.modified("pins/1")  # of a folder, S3A says "now"
    checkpoint.delete("pins/1")
    assert checkpoint.read("pins/1") is None
    assert checkpoint.modified_if_there("pins/1") is None
    assert checkpoint.newest_within("pins") is not None  # S3A keeps an empty folder by a marker, and says "now" of it
    checkpoint.delete("pins")
    assert checkpoint.newest_within("pins") is None
    assert [key for key in bucket.objects() if key.endswith(".tmp")] == []


def test_of_many_that_create_the_same_file_at_once_one_succeeds(checkpoint):
    assert checkpoint.creates_one
    for attempt in range(5):
        ready, won = threading.Barrier(6), []

        def create(number: int, attempt: int = attempt, ready=ready, won=won) -> None:
            ready.wait()
            if checkpoint.create(f"lease/{attempt}", f"by {number}"):
                won.append(number)

        threads = [threading.Thread(target=create, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [checkpoint.read(f"lease/{attempt}")] == [f"by {number}" for number in won]


def test_a_lease_is_taken_refused_renewed_and_given_back(checkpoint):
    with Lease(checkpoint, 30.0) as lease:
        lease.check()
        with pytest.raises(LeaseError, match="in use by process"), Lease(checkpoint, 30.0):
            pass
    assert holder_of(checkpoint).released
    with Lease(checkpoint, 30.0):
        assert holder_of(checkpoint).generation == 2
