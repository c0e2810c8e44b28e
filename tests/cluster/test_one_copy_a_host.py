"""Two executors of one host: one copy of the item factors between them, and nothing but what was shipped."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from chaos.processes import ROOT
from chaos.worlds import World
from cluster.standalone import SPARK_HOME, Cluster
from cluster.submitting import Submitted


@pytest.mark.timeout(600)
def test_two_executors_of_a_host_map_one_file_of_item_factors_and_have_only_what_was_shipped(
    begun: World, submit: Callable[..., Submitted], cluster: Cluster
) -> None:
    while len(cluster.workers) > 1:  # so that both executors are on one machine
        cluster.workers.pop().lose()
    try:
        job = submit(Path(__file__).with_name("one_copy.py"), begun, executors=2).start()
        assert job.wait() == 0, job.said()[-5000:]
    finally:
        (worker,) = cluster.workers
        cluster.add_worker()
    one, other = (json.loads(line) for line in job.said().splitlines() if line.startswith('{"executor"'))

    assert one["executor"] != other["executor"]
    assert one["pid"] != other["pid"]
    assert one["items"] > 1
    assert len(one["mapped"]) == 1
    assert one["mapped"] == other["mapped"]  # device and inode
    for found in (one, other):
        shipped = Path(found["executor"]) / "environment"
        assert shipped.is_relative_to(worker.folder)
        assert found["prefix"] == str(shipped)
        assert all(Path(file).is_relative_to(shipped) for file in found["modules"].values()), found["modules"]
        assert found["for developers"] == []
        of_checkout = [path for path in found["path"] if Path(path).is_relative_to(ROOT)]
        assert all(Path(path).is_relative_to(SPARK_HOME) for path in of_checkout), of_checkout
