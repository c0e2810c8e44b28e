"""One file a host: the same answers, written once, whole or not at all."""

from __future__ import annotations

import multiprocessing
import pickle
import time
from pathlib import Path

import numpy as np
import pytest
from models import model, random_histories

from foldin.errors import InvalidInputError
from foldin.kernels import ItemFactors, Objective, cached, fold_in, load, prepare, save, top_n


def items_of(version: str = "m1", *, explicit: bool = False, ids: bool = True) -> ItemFactors:
    y = np.random.default_rng(0).normal(size=(300, 6))
    names = [f"größe {i}" for i in range(300)] if ids else None
    objective = Objective(0.1, 3.0, implicit_prefs=not explicit)
    return prepare(y, objective, model_version=version, item_ids=names)


@pytest.mark.parametrize("explicit", [False, True])
@pytest.mark.parametrize("ids", [False, True])
def test_what_is_loaded_equals_what_was_saved(tmp_path: Path, explicit: bool, ids: bool) -> None:
    items = items_of(explicit=explicit, ids=ids)
    loaded = load(save(items, tmp_path))
    for name in ("factors", "gramian", "eigenvalues", "eigenvectors", "rotated"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(items, name))
    assert loaded.objective == items.objective
    assert loaded.model_version == "m1"
    assert (loaded.item_ids is None) == (not ids)
    if ids:
        assert loaded.item_ids.tolist() == items.item_ids.tolist()
    histories = random_histories([0, 3, 30, 90])
    factors = fold_in(loaded, histories)
    np.testing.assert_array_equal(factors, fold_in(items, histories))
    np.testing.assert_array_equal(top_n(loaded, factors, 5).indices, top_n(items, factors, 5).indices)


def test_it_is_mapped_read_only_and_shipped_as_a_path(tmp_path: Path) -> None:
    path = save(items_of(), tmp_path)
    loaded = load(path)
    with pytest.raises(ValueError, match="read-only"):
        loaded.factors[0, 0] = 1.0
    shipped = pickle.dumps(loaded)
    assert len(shipped) < 500 + len(str(path))
    np.testing.assert_array_equal(pickle.loads(shipped).rotated, loaded.rotated)


def test_a_file_that_is_there_is_not_built_again(tmp_path: Path) -> None:
    save(items_of(), tmp_path)

    def build() -> ItemFactors:
        raise AssertionError("built again")

    assert cached(tmp_path, "m1", build).n_items == 300


def _build_slowly(folder: Path) -> int:
    def build() -> ItemFactors:
        with (folder / "built").open("a") as note:
            note.write("x")
        time.sleep(0.3)
        return items_of()

    return cached(folder, "m1", build).n_items


def test_of_many_processes_one_builds_and_all_read_it(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        assert pool.map(_build_slowly, [tmp_path] * 6, chunksize=1) == [300] * 6
    assert (tmp_path / "built").read_text() == "x"


def test_what_a_crash_left_unfinished_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "m1.unfinished").write_bytes(b"half of it")
    assert cached(tmp_path, "m1", items_of).n_items == 300


def test_a_build_that_fails_leaves_nothing_behind_that_could_be_read(tmp_path: Path) -> None:
    def fail() -> ItemFactors:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        cached(tmp_path, "m1", fail)
    assert not list(tmp_path.glob("*.items"))
    assert cached(tmp_path, "m1", items_of).n_items == 300


def test_versions_do_not_meet(tmp_path: Path) -> None:
    assert save(items_of("m1"), tmp_path) != save(items_of("m2"), tmp_path)
    with pytest.raises(InvalidInputError, match="built model 'm1' for the cache of 'm3'"):
        cached(tmp_path, "m3", lambda: items_of("m1"))
    for version in ("../m1", "", ".hidden", "a/b"):
        with pytest.raises(InvalidInputError, match="cannot name a file"):
            cached(tmp_path, version, items_of)


def test_a_file_that_is_cut_short_or_something_else_is_refused(tmp_path: Path) -> None:
    path = save(items_of(), tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(InvalidInputError, match="bytes, not"):
        load(path)
    path.write_bytes(b"something else entirely")
    with pytest.raises(InvalidInputError, match="does not hold"):
        load(path)


def test_the_size_of_a_worker_s_copy_is_known_before_it_is_made() -> None:
    items = model(Objective(0.1), n_items=1000, rank=16)
    held = items.factors.nbytes + items.rotated.nbytes + items.gramian.nbytes
    assert held <= items.nbytes <= held + 16 * 17 * 8
