"""README shows the tables as they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from foldin.schemas import TABLES

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("spec", TABLES, ids=lambda spec: spec.name)
def test_readme_shows_every_column_with_its_type_and_meaning(spec):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for column in spec.schema:
        kind, about = column.dataType.simpleString(), column.metadata["comment"]
        assert f"| `{column.name}` | {kind} | {about} |" in readme
