"""Whatever bytes land: no crash, and every line is an event or quarantined or known, as plain Python counts them."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyspark.sql import SparkSession

from foldin.config import load_config
from foldin.ingest import Ingest
from foldin.mapping import contract
from foldin.schemas import EVENTS, QUARANTINE
from foldin.tables import Tables
from landing import event

WHITE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
"""Unicode's White_Space: a line of nothing else is no row."""

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats()
    | st.text(max_size=40)
    | st.sampled_from(["u1", "i1", "view", "2024-05-01", "9999-12-31", "12:30", "NaN", "\u0000", "[1]", "{", '"', "\\"])
)
JUNK = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
)
FIELDS = ("event_id", "user_id", "item_id", "event_type", "value", "event_time", "colour")
OBJECTS = st.dictionaries(st.sampled_from(FIELDS), JUNK, max_size=7).map(json.dumps)
NUMBER = st.integers(0, 40)
GOOD = st.one_of(
    NUMBER.map(lambda n: event(f"good-{n}", value=n)),
    NUMBER.map(lambda n: event(None, value=n)),
    NUMBER.map(lambda n: f"good-{n},u,i,view,{n},2024-05-01 10:00:00"),
    NUMBER.map(lambda n: f",u,i,view,{n},2024-05-01 10:00:00"),
)
BEYOND_DOUBT = {
    "json": re.compile(rb'\{(?:"event_id": "(good-\d+)", )?"user_id": "u", "item_id": "i", [^\\]*"value": \d+\}'),
    "csv": re.compile(rb"(good-\d+)?,u,i,view,\d+,2024-05-01 10:00:00"),
}
"""Lines that are events; the id of one without is its hash."""
HUGE = st.sampled_from(["x" * 300_000, event("huge", user="u" * 200_000), '{"user_id": ' + "[" * 20_000, "," * 30_000])
TEXT = st.one_of(GOOD, GOOD, OBJECTS, JUNK.map(json.dumps), st.text(max_size=60), HUGE)
LINE = st.one_of(
    TEXT.map(lambda line: line.encode("utf-8", "surrogatepass")),
    TEXT.map(lambda line: line.encode("utf-16", "surrogatepass")),
    TEXT.map(lambda line: line.encode("latin-1", "replace")),
    st.binary(max_size=40),
    st.sampled_from([b"", b"  ", b"\xc2\xa0", b"\xef\xbb\xbf", b"\x00", b"\xff\xfe"]),
)
FILE = st.tuples(
    st.lists(LINE, max_size=25), st.sampled_from([b"\n", b"\r\n", b"\r"]), st.sampled_from([b"", b"\xef\xbb\xbf"])
).map(lambda parts: parts[2] + parts[1].join(parts[0]))


def rows_of(content: bytes) -> list[bytes]:
    """The lines that are rows, as bytes."""
    lines = re.split(rb"\r\n|\n|\r", content.removeprefix(b"\xef\xbb\xbf"))
    return [line for line in lines if line.decode("utf-8", "replace").strip(WHITE)]


def check(spark: SparkSession, root: Path, kind: str, files: list[bytes], packed: list[bool]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(root, f"{folder}/tables")
        landing = Path(folder, "landing")
        landing.mkdir()
        for n, (content, pack) in enumerate(zip(files, packed, strict=True)):
            if pack:
                (landing / f"{n}.txt.gz").write_bytes(gzip.compress(content))
            else:
                (landing / f"{n}.txt").write_bytes(content)
        config = load_config(
            sets=[f"tables.root={folder}/tables", f"ingest.landing={landing}", f"ingest.format={kind}"]
        )
        tables = Tables(spark, config.tables.root)
        account = Ingest(tables, config, contract(config)).run(once=True)
        rows = [row for content in files for row in rows_of(content)]
        assert account.rows_in == len(rows)
        events = {row["event_id"]: row for row in tables.read(EVENTS).collect()}
        quarantined = {row["record_id"]: row for row in tables.read(QUARANTINE).collect()}
        assert (account.events, account.quarantined.total()) == (len(events), len(quarantined))
        for row in quarantined.values():
            assert row["reason"]
            assert row["detail"]
            assert row["source_file"]
            json.dumps([row["detail"], row["raw"]]).encode()
        hashes = {hashlib.sha256(row).hexdigest()[:32] for row in rows}
        # Nothing is in a table that did not land, and what is not there under its hash is an event with an id.
        assert quarantined.keys() <= hashes
        named = hashes - quarantined.keys() - events.keys()
        assert len(events.keys() - hashes) <= len(named)
        sure = {row: found for row in rows if (found := BEYOND_DOUBT[kind].fullmatch(row)) is not None}
        wanted = {
            found[1].decode() if found[1] else hashlib.sha256(row).hexdigest()[:32] for row, found in sure.items()
        }
        assert wanted <= events.keys()


def fuzz(examples: int, *, explore: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`explore`: other examples each time; Hypothesis prints what failed and how to try it again."""
    bounds = settings(
        max_examples=examples,
        deadline=None,
        derandomize=not explore,
        print_blob=explore,
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    files = st.lists(st.tuples(FILE, st.booleans()), min_size=6, max_size=12)
    return lambda test: bounds(given(files=files)(test))


@pytest.mark.parametrize("kind", BEYOND_DOUBT)
@fuzz(2)
def test_any_lines_are_accounted_for(
    spark: SparkSession, empty_root: Path, kind: str, files: list[tuple[bytes, bool]]
) -> None:
    check(spark, empty_root, kind, [content for content, _ in files], [pack for _, pack in files])


@pytest.mark.chaos
@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", BEYOND_DOUBT)
@fuzz(40, explore=True)
def test_many_more_lines_are_accounted_for(
    spark: SparkSession, empty_root: Path, kind: str, files: list[tuple[bytes, bool]]
) -> None:
    check(spark, empty_root, kind, [content for content, _ in files], [pack for _, pack in files])
