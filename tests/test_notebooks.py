"""The notebooks as they are committed: they can be read without running. `make notebooks` runs them."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

pytestmark = pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])


def cells_of(path: Path, kind: str) -> list[dict]:
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind]


def source_of(cell: dict) -> str:
    lines = "".join(cell["source"]).splitlines()
    return "\n".join(line for line in lines if not line.startswith("%"))  # a magic is not Python


def outputs_of(path: Path) -> list[dict]:
    return [output for cell in cells_of(path, "code") for output in cell["outputs"]]


def pictures_of(path: Path) -> list[str]:
    return [output["data"]["image/png"] for output in outputs_of(path) if "image/png" in output.get("data", {})]


def test_it_opens_by_saying_what_will_be_seen(path):
    first = json.loads(path.read_text(encoding="utf-8"))["cells"][0]
    assert first["cell_type"] == "markdown"
    text = "".join(first["source"])
    assert text.startswith("# ")
    assert "see" in text


def test_it_was_run_from_top_to_bottom_in_a_clean_kernel(path):
    counts = [cell["execution_count"] for cell in cells_of(path, "code")]
    assert counts == list(range(1, len(counts) + 1))


def test_nothing_went_to_stderr_and_nothing_failed(path):
    kinds = [(output["output_type"], output.get("name")) for output in outputs_of(path)]
    assert {kind for kind, _ in kinds} <= {"stream", "display_data", "execute_result"}
    assert {name for _, name in kinds} <= {"stdout", None}


def test_it_imports_the_library_and_defines_nothing(path):
    code = [ast.parse(source_of(cell)) for cell in cells_of(path, "code")]
    nodes = [node for tree in code for node in ast.walk(tree)]
    defined = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
    assert not [ast.unparse(node) for node in nodes if isinstance(node, defined)]
    imported = [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    assert any(name.split(".")[0] == "foldin" for name in imported)


def test_it_shows_pictures_and_is_small(path):
    assert len(pictures_of(path)) >= 2
    assert path.stat().st_size < 1_000_000


def test_it_does_not_tell_where_it_was_run(path):
    text = path.read_text(encoding="utf-8")
    for picture in pictures_of(path):
        text = text.replace(json.dumps(picture)[1:-1], "")
    assert not re.findall(r"/(?:home|root|tmp|var|Users|work|usr|opt)/[^\s\"'\\]+", text)


def test_it_asks_for_any_python_kernel(path):
    metadata = json.loads(path.read_text(encoding="utf-8"))["metadata"]
    assert metadata["kernelspec"]["name"] == "python3"
