"""README shows the tables as they are."""

from __future__ import annotations

import pytest

from conftest import ROOT
from foldin.schemas import TABLES


@pytest.mark.parametrize("spec", TABLES, ids=lambda spec: spec.name)
def test_readme_shows_every_column_with_its_type_and_meaning(spec):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for column in spec.schema:
        kind, about = column.dataType.simpleString(), column.metadata["comment"]
        assert f"| `{column.name}` | {kind} | {about} |" in readme
