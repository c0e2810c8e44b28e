"""Values in SQL, paths and file names: none becomes a part of the language that it is written into."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyspark.sql import SparkSession

from foldin.config import load_config
from foldin.errors import ConfigError, InvalidInputError
from foldin.kernels.cache import cache_path
from foldin.schemas import EVENTS
from foldin.tables import Tables

LIB = Path(__file__).parents[1] / "lib" / "foldin"

TAKES_SQL = {"sql", "expr", "where", "filter", "selectExpr"}

HARMLESS = {
    "tables.name(spec)": "a quoted path or a catalog name that fits a pattern",
    "self.name(spec)": "the same",
    "_quoted(row[0])": "quoted",
    "hours": "int",
    "columns": "names, types and comments of the schemas",
    "pairs": "properties of the schemas",
    "', '.join(rows)": "ints, and the id that Spark gave a query",
    "names": "names of a schema",
    "difference": "over columns, without a value",
    "scale": "the same",
}
"""What stands in the text of SQL, and why it may."""


def interpolated(source: str) -> Iterator[str]:
    """The values that a program writes into SQL."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        called = node.func
        name = called.attr if isinstance(called, ast.Attribute) else called.id if isinstance(called, ast.Name) else ""
        if name not in TAKES_SQL:
            continue
        for argument in node.args:
            for part in _walk(argument):
                if isinstance(part, ast.FormattedValue):
                    yield ast.unparse(part.value)
                elif isinstance(part, ast.BinOp) and isinstance(part.op, ast.Add | ast.Mod):
                    yield from (
                        ast.unparse(side)
                        for side, other in ((part.left, part.right), (part.right, part.left))
                        if _is_text(other) and not _is_text(side)
                    )


def _walk(node: ast.AST) -> Iterator[ast.AST]:
    """The node and what is in it, but for what `lit` takes: that stays a value."""
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "F.lit":
        return
    yield node
    for inner in ast.iter_child_nodes(node):
        yield from _walk(inner)


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


@pytest.mark.parametrize("program", sorted(LIB.rglob("*.py")), ids=lambda path: str(path.relative_to(LIB)))
def test_no_value_is_written_into_sql_but_those_that_are_known_to_be_harmless(program: Path) -> None:
    assert set(interpolated(program.read_text(encoding="utf-8"))) <= set(HARMLESS)


@pytest.mark.parametrize(
    ("planted", "value"),
    [
        ("rows.where(f\"user_id = '{user_id}'\")", "user_id"),
        ("spark.sql('select * from ' + table)", "table"),
        ("F.expr('x = %s' % value)", "value"),
        ("rows.selectExpr('a', f'{name} as b')", "name"),
    ],
)
def test_a_value_that_is_planted_in_sql_is_found(planted: str, value: str) -> None:
    assert list(interpolated(planted)) == [value]


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=30)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(TEXT | st.sampled_from(["a`b", "``", "a`; drop table x --", "a' or '1'='1", "a\\`b"]))
def test_whatever_a_root_is_called_its_table_is_one_name_to_spark(spark: SparkSession, root: str) -> None:
    tables = Tables(spark, f"/{root}")
    parser = spark._jsparkSession.sessionState().sqlParser()
    parts = parser.parseMultipartIdentifier(tables.name(EVENTS))
    assert [parts.apply(i) for i in range(parts.size())] == ["delta", f"/{root}/events"]


@given(TEXT | st.sampled_from(["..", "../../etc/passwd", "a/b", "a\\b", ".hidden", "a\n"]))
def test_a_model_version_names_a_file_in_the_hosts_cache_or_is_refused(version: str) -> None:
    folder = Path("/cache/of/models")
    if version.startswith(".") or any(not (c.isalnum() or c in "_.-") for c in version):
        with pytest.raises(InvalidInputError) as refusal:
            cache_path(folder, version)
        assert repr(version) in str(refusal.value)
    else:
        assert cache_path(folder, version) == folder / f"{version}.items"
        assert cache_path(folder, version).parent == folder


@pytest.mark.parametrize(
    "text",
    [
        "tables.catalog='a; drop table b'",
        "tables.catalog='a`b'",
        "tables.catalog='a.b.c'",
        'tables.catalog="a\\n"',
        "ingest.name='../other'",
        "ingest.name='a b'",
        'ingest.name="a\\n"',
        "kafka.topics='a;b'",
        "ingest.max_bytes_per_trigger='1m; x'",
    ],
)
def test_a_name_that_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config(sets=[text])
    assert "string should match pattern" in str(raised.value)
    assert "\n" not in str(raised.value)
