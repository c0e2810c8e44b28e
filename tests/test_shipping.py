"""Shipping a model: the same answers by broadcast and through a host's memory-mapped file."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from foldin.folding import fold
from foldin.kernels import prepare
from foldin.publishing import Publisher
from foldin.registry import Registry
from foldin.schemas import EVENTS, Position
from foldin.shipping import ShippedModel, host_cache_dir
from foldin.training import train


@pytest.fixture
def shipped_both_ways(world, config):
    """Two models of the same seed and events: one shipped by broadcast, the other through the file."""
    registry, context = Registry(world), world.spark.sparkContext
    small = registry.load(registry.active_version())
    big = registry.load(train(world, config).model_version)
    yield ShippedModel.ship(context, small), ShippedModel.ship(context, big, threshold=0)
    forget(big.version)


def forget(version: str) -> None:
    for file in host_cache_dir().glob(f"{version}*.items"):
        file.unlink()


def test_the_mapped_file_gives_the_same_factors_and_lists(world, shipped_both_ways):
    by_broadcast, by_file = shipped_both_ways
    assert (by_broadcast.memory_mapped, by_file.memory_mapped) == (False, True)
    model = Registry(world).load(by_broadcast.version)
    users = Publisher(world, 3).histories_at(model, world.version(EVENTS))
    both = [
        fold(users, shipped, 3, Position(1)).drop("model_version", "folded_at") for shipped in (by_broadcast, by_file)
    ]
    found = [sorted(rows.collect()) for rows in both]
    assert found[0] == found[1]
    assert len(found[0]) == 24
    assert (host_cache_dir() / f"{by_file.version}-{by_file.digest}.items").is_file()


def test_workers_map_the_file_instead_of_holding_a_copy(world, shipped_both_ways):
    _, by_file = shipped_both_ways

    def mapped(batches):
        import pyarrow as pa

        for _ in batches:
            by_file.value()
            with Path("/proc/self/maps").open() as maps:
                names = {line.split()[-1] for line in maps if line.rstrip().endswith(".items")}
            yield pa.RecordBatch.from_arrays([pa.array([os.getpid()]), pa.array([len(names)])], names=["pid", "files"])

    rows = world.spark.range(0, 4, 1, 2).mapInArrow(mapped, "pid long, files long").collect()
    assert {row["files"] for row in rows} == {1}


@pytest.mark.parametrize("threshold", [0, 1 << 40], ids=["mapped", "broadcast"])
def test_a_model_made_again_under_a_name_is_not_taken_for_the_one_before(world, threshold):
    """A training that was killed has shipped its model; made again, it has seen more events."""
    registry, context = Registry(world), world.spark.sparkContext
    first = registry.load(registry.active_version())
    items = prepare(first.items.factors * 2, first.items.objective, model_version=first.version)
    try:
        for model in (first, replace(first, items=items)):
            shipped = ShippedModel.ship(context, model, threshold=threshold)
            seen = context.parallelize([0], 1).map(lambda _, s=shipped: float(s.value().items.factors.sum())).collect()
            assert seen == [float(model.items.factors.sum())]
    finally:
        forget(first.version)


def test_the_cache_folder_is_this_users_alone():
    assert host_cache_dir().stat().st_mode & 0o077 == 0
