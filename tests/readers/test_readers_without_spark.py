"""deltalake, DuckDB and Polars answer as foldin's own readers do: by the very code that README shows."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable
from readers_world import Lived, config_of

import foldin.serving
from foldin import reading, serving
from foldin.errors import MissingModelError
from foldin.registry import Registry
from foldin.schemas import ITEM_FACTORS, MODELS, RECOMMENDATIONS, USER_FACTORS
from foldin.tables import Tables
from world import copy_of

pytestmark = pytest.mark.readers

ROOT = Path(__file__).parents[2]
READERS = {"deltalake": "from foldin.serving import", "duckdb": "import duckdb", "polars": "import polars"}


def block_of(reader: str) -> str:
    """The code that README shows."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    found = [block for block in blocks if READERS[reader] in block]
    assert len(found) == 1, f"README shows how to read with {reader}, once"
    return found[0]


def run_block(reader: str, root: Path) -> dict[str, Any]:
    """Its variables at the end: `version`, `lists`, `factors`; for deltalake also `mine`."""
    block = block_of(reader)
    assert '"data/foldin' in block or "'data/foldin" in block
    if reader == "duckdb":  # which fetches its extension by itself where it can
        import duckdb
        import duckdb_extension_delta

        extension = next(Path(duckdb_extension_delta.__file__).parent.rglob("delta.duckdb_extension"))
        duckdb.execute(f"load '{extension}'")
    found: dict[str, Any] = {}
    exec(block.replace("data/foldin", str(root)), found)
    return found


def rows_of(answer: Any) -> list[dict[str, Any]]:
    if hasattr(answer, "to_pylist"):
        return list(answer.to_pylist())
    if hasattr(answer, "to_dicts"):
        return list(answer.to_dicts())
    return list(answer.to_arrow_table().to_pylist())


def lists_of(answer: Any) -> dict[str, list[tuple[str, float]]]:
    rows = rows_of(answer)
    found = {row["user_id"]: [(item["item_id"], item["score"]) for item in row["items"]] for row in rows}
    assert len(found) == len(rows)
    return found


def factors_of(answer: Any) -> dict[str, list[float]]:
    rows = rows_of(answer)
    found = {row["user_id"]: list(row["factors"]) for row in rows}
    assert len(found) == len(rows)
    return found


@pytest.fixture(scope="module")
def tables(spark, lived: Lived) -> Tables:
    return Tables.of(spark, config_of(lived.root).tables, create=False)


@pytest.fixture(scope="module")
def wanted(tables: Tables) -> tuple[dict[str, list[tuple[str, float]]], dict[str, list[float]]]:
    """By Spark."""
    lists = {
        row["user_id"]: [(item["item_id"], item["score"]) for item in row["items"]]
        for row in reading.latest_recommendations(tables).collect()
    }
    factors = {row["user_id"]: list(row["factors"]) for row in reading.latest_user_factors(tables).collect()}
    assert len(lists) == len(factors) == 26
    return lists, factors


def test_the_tables_have_all_that_could_mislead_a_reader(tables: Tables, lived: Lived) -> None:
    for spec in (RECOMMENDATIONS, USER_FACTORS):
        rows = tables.read(spec)
        versions = {row["model_version"] for row in rows.select("model_version").distinct().collect()}
        assert versions == {lived.before, lived.active, lived.candidate}
        mine = rows.where(f"model_version = '{lived.active}' and user_id = 'u1'")
        assert mine.select("events_version").distinct().count() == 3
        history = DeltaTable(tables.path(spec.name)).history()
        assert {"WRITE", "OPTIMIZE", "DELETE"} <= {commit["operation"] for commit in history}
        log = Path(tables.path(spec.name), "_delta_log")
        assert any(log.glob("*.checkpoint*.parquet"))


@pytest.mark.parametrize("reader", READERS)
def test_what_readme_shows_gives_what_foldin_reads(reader: str, lived: Lived, wanted) -> None:
    found = run_block(reader, lived.root)
    assert found["version"] == lived.active
    assert (lists_of(found["lists"]), factors_of(found["factors"])) == wanted


@pytest.mark.parametrize("reader", READERS)
def test_files_of_other_models_are_not_opened(reader: str, lived: Lived, tmp_path: Path, wanted) -> None:
    root = copy_of(lived.root, tmp_path / "tables")
    gone = 0
    for spec in (RECOMMENDATIONS, USER_FACTORS, ITEM_FACTORS):
        for file in (root / spec.name).glob("model_version=*/*.parquet"):
            if file.parent.name != f"model_version={lived.active}":
                file.unlink()
                gone += 1
    assert gone >= 6
    found = run_block(reader, root)
    assert (lists_of(found["lists"]), factors_of(found["factors"])) == wanted


def test_the_tables_ask_nothing_of_a_reader_beyond_the_first_protocol(lived: Lived) -> None:
    for spec in (RECOMMENDATIONS, USER_FACTORS, ITEM_FACTORS, MODELS):
        table = DeltaTable(str(lived.root / spec.name))
        protocol = table.protocol()
        assert (protocol.min_reader_version, protocol.reader_features) == (1, None), spec.name
        asked = table.metadata().configuration
        assert not any("columnMapping" in key or "DeletionVectors" in key for key in asked), spec.name


def test_one_users_list_is_that_of_spark(tables: Tables, lived: Lived) -> None:
    for user in ("u1", "new", '"new" ünd ☃'):
        assert serving.recommendations_for(str(lived.root), user) == reading.recommendations_for(tables, user)
    shortened = serving.recommendations_for(str(lived.root), "u1", n=2)
    assert shortened is not None
    assert len(shortened.items) == 2


def test_a_user_without_a_list_has_none_and_the_popular_items_are_those_of_spark(tables: Tables, lived: Lived) -> None:
    assert serving.recommendations_for(str(lived.root), "nobody") is None
    popular = [(row["item_id"], row["users"]) for row in reading.popular_items(tables, 5).collect()]
    assert serving.popular_items(str(lived.root), 5) == popular


def test_a_model_that_is_retired_between_the_two_reads_is_not_taken_for_an_empty_one(
    lived: Lived, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = str(lived.root)
    wanted = serving.recommendations_for(root, "u1")
    seen = [serving.ActiveModel(lived.retired, 1)]  # as it was a moment ago

    def looked(*where: Any) -> serving.ActiveModel:
        return seen.pop() if seen else now(*where)

    now = serving.active_model
    monkeypatch.setattr(foldin.serving, "active_model", looked)
    assert serving.recommendations_for(root, "u1") == wanted
    assert not seen
    seen.append(serving.ActiveModel(lived.retired, 1))
    assert set(serving.latest_user_factors(root)["model_version"].to_pylist()) == {lived.active}


def test_an_active_model_without_rows_is_an_empty_answer(lived: Lived, tmp_path: Path, spark) -> None:
    root = copy_of(lived.root, tmp_path / "tables")
    tables = Tables.of(spark, config_of(root).tables, create=False)
    spark.sql(f"delete from {tables.name(RECOMMENDATIONS)} where model_version = '{lived.active}'")
    assert serving.latest_recommendations(str(root)).num_rows == 0
    assert serving.latest_user_factors(str(root)).num_rows == 26


def test_readers_are_told_that_no_model_is_active_or_no_table_there(empty_root: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingModelError, match="no model is active"):
        serving.latest_recommendations(str(empty_root))
    with pytest.raises(MissingModelError, match=rf"no table models under {re.escape(str(tmp_path))}"):
        serving.active_model(str(tmp_path))


def test_a_service_needs_no_spark(lived: Lived) -> None:
    code = (
        "import json, sys, foldin.redis_lists, foldin.serving as s; "
        f"found = s.recommendations_for({str(lived.root)!r}, 'u1'); "
        "spark = [name for name in sys.modules if name.partition('.')[0] in ('pyspark', 'py4j')]; "
        "print(json.dumps([found.model_version, spark]))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "lib", capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [lived.active, []]


def test_which_model_is_active_is_what_the_registry_says(tables: Tables, lived: Lived) -> None:
    found, promotion = serving.active_model(str(lived.root)), Registry(tables).promotion()
    assert promotion is not None
    assert (found.model_version, found.sequence) == (promotion.model_version, promotion.sequence)
