"""Cutting a log for the demo: in time, whole, with two users held back; and finding the mapping that fits."""

from __future__ import annotations

import itertools
import json

import pytest

from foldin.demo.staging import fitting_mapping, stage
from foldin.demo.story import run_demo
from foldin.errors import ConfigError
from foldin.mapping import contract


def line(event_id, user, item, day):
    event = {"event_id": event_id, "user_id": user, "item_id": item, "event_type": "view"}
    return json.dumps(event | {"event_time": f"2025-01-{day:02d}"})


def test_the_slices_are_in_order_of_time_and_hold_every_row(spark, config, tmp_path):
    source, rows = tmp_path / "log", []
    for k in range(200):
        rows.append(line(f"e{k}", f"u{k % 9}", f"i{k}", 1 + k // 10))
    rows += [line("n1", "late", "i0", 20), line("n2", "late", "i1", 20), "{broken"]
    source.mkdir()
    (source / "log.json").write_text("\n".join(rows[::-1]) + "\n")
    staged = stage(spark, config, contract(config), source, tmp_path / "staging")
    found = [
        [text for file in sorted(part.glob("part-*")) for text in file.read_text().splitlines()]
        for part in staged.slices
    ]
    held = [file.read_text().splitlines() for _, file in (staged.regular, staged.newcomer)]
    assert sorted(itertools.chain(*found, *held)) == sorted(rows)
    assert staged.newcomer[0] == "late"
    assert [len(lines) for lines in held] == [3, 2]
    assert {json.loads(text)["user_id"] for text in held[0]} == {staged.regular[0]}
    times = [sorted(json.loads(t)["event_time"] for t in part if t != "{broken") for part in found]
    for earlier, later in itertools.pairwise(times):
        assert earlier[-1] <= later[0]


def test_the_shipped_mapping_that_fits_is_found_by_the_header(data_dir, tmp_path):
    assert fitting_mapping(data_dir / "online-retail") == "online_retail"
    assert fitting_mapping(data_dir / "movielens-latest-small") == "movielens"
    (tmp_path / "x.csv").write_text("a,b,c\n1,2,3\n")
    with pytest.raises(ConfigError, match="no shipped mapping"):
        fitting_mapping(tmp_path)
    with pytest.raises(ConfigError, match="there is no such folder"):
        fitting_mapping(tmp_path / "nowhere")


def test_a_folder_that_the_demo_did_not_make_is_left_alone(tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(ConfigError, match="was not made by the demo"):
        run_demo(root=str(tmp_path))
    assert (tmp_path / "precious.txt").read_text() == "mine"
