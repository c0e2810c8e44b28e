"""The sizing command: held to what the benchmarks measured, and to reason where nothing was measured."""

from __future__ import annotations

import json
import tomllib
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foldin.__main__ import main
from foldin.config import load_config
from foldin.kernels import MEMORY_MAP_BYTES
from foldin.measurements import MEASURED, Measured, measured
from foldin.sizing import (
    Load,
    Size,
    build_seconds,
    checkpoint_bytes,
    distinct_users,
    factor_bytes,
    fit_seconds,
    full_rate,
    kernel_seconds,
    micro_batch_seconds,
    size,
)
from foldin.sizing_report import foldin_toml

BENCHMARK = ["--events-per-second", "1000", "--users", "1000000", "--items", "50000", "--rank", "64"]


def _of(what: str) -> list[Measured]:
    found = [figure for figure in MEASURED if figure.what == what]
    assert found
    return found


def _name(figure: Measured) -> str:
    return f"{figure.users:,} users, {'lists' if figure.lists else 'factors'}, {figure.events:,} events"


def _load(figure: Measured, rate: float = 1000) -> Load:
    return Load(rate, figure.users, 50_000, 64, lists=figure.lists)


@pytest.mark.parametrize("figure", _of("micro-batch"), ids=_name)
def test_the_seconds_of_a_micro_batch_are_those_measured_within_15_percent(figure: Measured) -> None:
    assert micro_batch_seconds(_load(figure), figure.events, 2) == pytest.approx(figure.value, rel=0.15)


@pytest.mark.parametrize("figure", _of("full rate"), ids=_name)
def test_the_full_rate_is_that_measured_within_15_percent(figure: Measured) -> None:
    assert full_rate(_load(figure), 2, figure.events) == pytest.approx(figure.value, rel=0.15)


@pytest.mark.parametrize("figure", _of("state built"), ids=_name)
def test_the_state_is_built_at_the_rate_measured_within_5_percent(figure: Measured) -> None:
    assert figure.users * 30 / build_seconds(_load(figure), 2) == pytest.approx(figure.value, rel=0.05)


@pytest.mark.parametrize("figure", _of("local files of the state"), ids=_name)
def test_the_files_of_the_state_are_as_large_as_measured_within_15_percent(figure: Measured) -> None:
    assert size(_load(figure)).local_disk.likely == pytest.approx(figure.value, rel=0.15)


@pytest.mark.parametrize("figure", _of("checkpoint"), ids=_name)
def test_the_checkpoint_is_as_large_as_measured_within_15_percent(figure: Measured) -> None:
    # What the benchmark had run: change logs hold each user that one of its micro-batches touched.
    touched = 39 * distinct_users(10_000, figure.users) + 5 * distinct_users(1_000_000, figure.users)
    assert checkpoint_bytes(_load(figure), touched / 100) == pytest.approx(figure.value, rel=0.15)


@pytest.mark.parametrize("figure", _of("RocksDB memory"), ids=_name)
def test_the_memory_of_rocksdb_lies_in_the_range_that_is_said(figure: Measured) -> None:
    found = size(_load(figure)).rocksdb
    assert found.low <= figure.value <= found.high


def test_the_freshness_measured_lies_in_the_range_that_is_said() -> None:
    figure = measured("freshness p50 at 1,000 events/s")
    found = size(_load(figure)).freshness
    assert found.low <= figure.value <= found.high


@pytest.mark.parametrize("rank", [32, 64, 128, 256])
def test_the_kernel_takes_what_was_measured(rank: int) -> None:
    assert 1 / kernel_seconds(rank) == pytest.approx(measured(f"kernel, rank {rank}").value)


def test_folding_and_ranking_everybody_takes_what_was_measured_within_15_percent() -> None:
    figure = measured("fold-in and top-10 of all")
    # A batch job touches every user once: a micro-batch of so many users, each with an event.
    everyone = Load(1, 1_000_000_000, 50_000, 64)
    assert micro_batch_seconds(everyone, figure.users, 2) == pytest.approx(figure.value, rel=0.15)


def test_one_training_on_online_retail_lies_within_the_factor_of_three_that_is_said() -> None:
    load = Load(1, 4_300, 3_700, 40, events_per_user=399_689 / 4_300)
    assert 1 / 3 < fit_seconds(load, 2) / measured("one fit, Online Retail, rank 40").value < 3


def test_the_bytes_of_the_factors_are_those_of_the_file_that_was_measured() -> None:
    assert factor_bytes(1_000_000, 128) == pytest.approx(measured("file of 1,000,000 items x 128").value, rel=0.001)


@pytest.mark.parametrize("items", [1, 1000, 136_000, 137_000])
def test_factors_are_mapped_from_a_file_exactly_when_the_product_maps_them(items: int) -> None:
    assert size(Load(10, 1000, items, 64)).memory_mapped == (factor_bytes(items, 64) > MEMORY_MAP_BYTES)


loads = st.builds(
    Load,
    events_per_second=st.floats(0.01, 1e3),
    users=st.integers(1, 10**8),
    items=st.integers(1, 10**6),
    rank=st.integers(1, 256),
    events_per_user=st.floats(0.5, 500),
    lists=st.booleans(),
)


def _amounts(found: Size) -> list[float]:
    ranges = (found.build, found.rocksdb, found.local_disk, found.checkpoint, found.night, found.training_cache)
    return [found.partitions, found.executor_heap, found.driver_heap, *(r.likely for r in ranges)]


@given(loads)
def test_a_prediction_keeps_up_with_its_rate_and_lies_in_its_own_range(load: Load) -> None:
    found = size(load)
    assert found.busy <= 0.5 + 1e-9
    assert found.micro_batch.likely <= found.trigger_seconds + 0.01
    assert found.partitions % found.cores == 0
    assert found.executors * found.cores_an_executor == found.cores  # a cluster starts whole executors only
    assert found.cores_an_executor <= 2  # what the smallest jobs are given: no larger one is started for them
    for span in (found.micro_batch, found.full_rate, found.freshness, found.build, found.checkpoint, found.night):
        assert span.low <= span.likely <= span.high


@given(loads, st.floats(1.0, 50.0))
def test_a_higher_rate_never_needs_fewer_cores(load: Load, times: float) -> None:
    more = replace(load, events_per_second=load.events_per_second * times)
    assert size(more).cores >= size(load).cores


@given(loads, st.integers(1, 50), st.sampled_from(["users", "items", "rank"]))
def test_at_the_same_cores_more_users_items_or_rank_never_take_less(load: Load, times: int, what: str) -> None:
    most = 1024 if what == "rank" else 2**31 - 1
    more = replace(load, **{what: min(getattr(load, what) * times, most)})
    cores = max(size(load).cores, size(more).cores)
    before, after = _amounts(size(load, cores=cores)), _amounts(size(more, cores=cores))
    assert all(a >= b * (1 - 1e-9) for b, a in zip(before, after, strict=True))


@given(loads)
def test_factors_alone_cost_less_than_lists_too(load: Load) -> None:
    with_lists, alone = replace(load, lists=True), replace(load, lists=False)
    assert size(alone).cores <= size(with_lists).cores
    assert size(alone).local_disk.likely < size(with_lists).local_disk.likely


@settings(max_examples=20, deadline=None)
@given(loads)
def test_the_settings_that_it_prints_are_ones_that_foldin_takes(load: Load) -> None:
    sections = tomllib.loads(foldin_toml(size(load)))
    sets = [f"{section}.{key}={json.dumps(value)}" for section, keys in sections.items() for key, value in keys.items()]
    assert load_config(sets=sets).fold_in.state_partitions == sections["fold_in"]["state_partitions"]


def test_the_command_says_what_was_measured_and_what_is_beyond_that(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["size", *BENCHMARK]) == 0
    text = capsys.readouterr().out
    assert "state partitions       2" in text
    assert "extrapolated" not in text
    assert main(["size", *BENCHMARK[:3], "9000000", *BENCHMARK[4:]]) == 0
    assert "measured up to 1,000,000 users with lists; beyond that it is extrapolated" in capsys.readouterr().out
    assert main(["size", *BENCHMARK[:3], "4000000", *BENCHMARK[4:], "--no-lists"]) == 0
    assert "extrapolated" not in capsys.readouterr().out


def test_as_json_it_is_the_same_in_bytes_and_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["size", *BENCHMARK, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["factors"] == 50_000 * 64 * 12 + 64 * 64 * 16
    assert found["load"]["users"] == 1_000_000


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (["--users", "0"], "--users 0: must be greater than 0"),
        (["--users", "-5"], "--users -5: must be greater than 0"),
        (["--events-per-second", "nan"], "--events-per-second nan: must be greater than 0"),
        (["--events-per-second", "inf"], "--events-per-second inf: must be greater than 0"),
        (["--events-per-user", "0"], "--events-per-user 0: must be greater than 0"),
        (["--rank", "2000"], "--rank 2000: must be at most 1024"),
        (["--items", "3000000000"], "--items 3000000000: must be at most 2147483647"),
        (["--events-per-second", "1e10"], "state partitions are needed, one stream has at most 10000"),
        (["--cores", "0"], "--cores 0: must be greater than 0"),
        (["--events-per-second", "60000", "--cores", "4"], "--cores 4: too few, this rate keeps 18 busy"),
    ],
)
def test_a_number_that_cannot_be_is_one_line_and_exit_code_2(
    changed: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["size", *BENCHMARK, *changed]) == 2
    complaint = capsys.readouterr().err
    assert said in complaint
    assert len(complaint.splitlines()) == 1
