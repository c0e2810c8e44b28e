"""A file that cannot be read is one row of quarantine; it neither stops the stream nor loses another file's rows."""

from __future__ import annotations

import gzip
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import DataFrame

from foldin.config import Config
from foldin.errors import FoldinError
from foldin.ingest import Ingest
from foldin.ledger import Account
from foldin.mapping import contract
from foldin.schemas import EVENTS, INGEST_LOG, QUARANTINE, TableSpec
from foldin.tables import Tables, Transaction
from foldin.unreadable import BatchFiles
from landing import event, land
from test_ingest import _FailsOnce, numbers
from world import wait_until


def ingest(tables: Tables, config: Config) -> Account:
    return Ingest(tables, config, contract(config)).run(once=True)


def unreadable(tables: Tables) -> dict[str, str]:
    """{file name: detail}"""
    rows = tables.read(QUARANTINE).where("reason = 'unreadable file'").collect()
    found = {Path(row["source_file"]).name: row["detail"] for row in rows}
    assert len(found) == len(rows)
    return found


def ids(tables: Tables) -> list[str]:
    return sorted(row["event_id"] for row in tables.read(EVENTS).select("event_id").collect())


def assert_exact(tables: Tables) -> None:
    sums = tables.read(INGEST_LOG).groupBy().sum("events", "quarantined").first()
    assert tuple(sums) == (tables.read(EVENTS).count(), tables.read(QUARANTINE).count())


class _FailsAfterQuarantine(Tables):
    """A batch breaks off after its quarantined rows, and before its events."""

    def append(
        self, rows: DataFrame, spec: TableSpec, transaction: Transaction | None = None, *, metadata: str | None = None
    ) -> None:
        if spec is EVENTS:  # the two are appended at once
            wait_until(lambda: not Tables.read(self, QUARANTINE).isEmpty())
            raise OSError("disk full")
        super().append(rows, spec, transaction, metadata=metadata)


def test_a_compressed_file_that_was_cut_short_is_quarantined_beside_the_rows_of_its_readable_part(
    tables: Tables, config: Config
) -> None:
    dice = random.Random(1)
    lines = [event(f"cut-{n}", note=dice.randbytes(200).hex()) for n in range(2000)]
    whole = gzip.compress("\n".join(lines).encode())
    folder = Path(config.ingest.landing)
    (folder / "cut short.json.gz").write_bytes(whole[: len(whole) // 2])
    (folder / "no gzip.json.gz").write_bytes(b"none")
    (folder / "empty.json.gz").touch()
    (folder / "good.json.gz").write_bytes(gzip.compress(event("good").encode()))
    land(config, "plain.json", event("plain"), "broken")
    account = ingest(tables, config)
    assert account.quarantined == {"unreadable file": 2, "broken json": 1}
    assert account.duplicates == 0
    found = ids(tables)
    assert {"good", "plain"} < set(found)
    assert set(found) - {"good", "plain"} < {f"cut-{n}" for n in range(2000)}
    assert 500 < len(found) < 1200  # about half
    details = unreadable(tables)
    assert details.keys() == {"cut%20short.json.gz", "no%20gzip.json.gz"}
    assert "Unexpected end of input stream; what could be read of it was taken in" in details["cut%20short.json.gz"]
    assert_exact(tables)

    # It is over with them, and files that come later are read in earnest.
    land(config, "later.json", event("later"))
    assert numbers(ingest(tables, config)) == (1, 1, 0, 0)
    # Mended, it lands under another name.
    (folder / "mended.json.gz").write_bytes(whole)
    assert ingest(tables, config).rows_in == 2000
    assert ids(tables) == sorted([*(f"cut-{n}" for n in range(2000)), "good", "plain", "later"])
    assert_exact(tables)


def test_a_file_that_is_gone_when_its_batch_is_read_is_told_of_once_even_if_it_comes_back(
    tables: Tables, config: Config
) -> None:
    land(config, "stays.json", event("a"))
    gone = land(config, "gone.json", event("b"), event("c"))
    # The batch is planned with both files, and breaks off.
    with pytest.raises(FoldinError, match="disk full"):
        ingest(_FailsOnce(tables.spark, tables.root), config)
    text = gone.read_text()
    gone.unlink()
    with pytest.raises(FoldinError, match="disk full"):
        ingest(_FailsAfterQuarantine(tables.spark, tables.root), config)
    assert "gone before it could be read" in unreadable(tables)["gone.json"]
    gone.write_text(text)
    account = ingest(tables, config)
    assert numbers(account) == (4, 3, 1, 0)
    assert ids(tables) == ["a", "b", "c"]
    assert_exact(tables)


def test_parquet_files_that_are_cut_short_or_of_other_types_are_quarantined_and_the_rest_is_read(
    tables: Tables, make_config: Callable[..., Config]
) -> None:
    config = make_config("ingest.format=parquet", "ingest.files=*.parquet")
    folder = Path(config.ingest.landing)

    def write(name: str, event_id: str, value: pa.Array) -> Path:
        columns = {"event_id": [event_id], "user_id": ["u"], "item_id": ["i"], "event_type": ["view"]}
        pq.write_table(pa.table(columns | {"event_time": ["2024-05-01"], "value": value}), folder / name)
        return folder / name

    good = write("1.parquet", "a", pa.array([1.5])).read_bytes()
    write("2.parquet", "b", pa.array([2.0]))
    write("3 types.parquet", "c", pa.array(["2.0"]))
    (folder / "4 cut.parquet").write_bytes(good[: len(good) // 2])
    (folder / "5 empty.parquet").touch()
    account = ingest(tables, config)
    details = unreadable(tables)
    assert ids(tables) == ["a", "b"]
    assert details.keys() == {"3%20types.parquet", "4%20cut.parquet"}  # in an empty file there is nothing to lose
    assert "not a Parquet file" in details["4%20cut.parquet"]
    assert numbers(account) == (4, 2, 2, 0)
    assert_exact(tables)


def land_half(config: Config) -> tuple[Path, bytes]:
    """A compressed file of 500 events that is cut short, and what the whole of it would be."""
    whole = gzip.compress("\n".join(event(f"e{n}") for n in range(500)).encode())
    file = Path(config.ingest.landing) / "hiccup.json.gz"
    file.write_bytes(whole[: len(whole) // 2])
    return file, whole


class _Hiccups:
    """A file that is a half whenever Spark is told to skip, and whole whenever it is looked at.

    Spark has skipped what it could not read, and by now nothing shows what: those rows would be lost.
    """

    def __init__(self, config: Config, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
        file, whole = land_half(config)
        self.file, self.whole, self.looks = file, whole, 0
        look, rows_beside = BatchFiles.look, BatchFiles.rows_beside

        def whole_for(a_moment: Callable[..., Any]) -> Callable[..., Any]:
            def of(*given: Any) -> Any:
                file.write_bytes(whole)
                try:
                    return a_moment(*given)
                finally:
                    if self.looks < times:
                        file.write_bytes(whole[: len(whole) // 2])

            return of

        def looked(*given: Any) -> dict[str, str]:
            found: dict[str, str] = whole_for(look)(*given)
            self.looks += 1
            return found

        monkeypatch.setattr(BatchFiles, "look", looked)
        monkeypatch.setattr(BatchFiles, "rows_beside", whole_for(rows_beside))


@pytest.mark.parametrize("beside_a_broken_one", [False, True])
def test_a_file_that_is_whole_again_when_it_is_looked_at_is_read_in_earnest_again(
    tables: Tables, config: Config, monkeypatch: pytest.MonkeyPatch, beside_a_broken_one: bool
) -> None:
    hiccups = _Hiccups(config, monkeypatch, times=1)
    if beside_a_broken_one:
        (Path(config.ingest.landing) / "broken [1], ü%20#?.json.gz").write_bytes(b"none")
        land(config, "plain [2].json", event("plain"))
    account = ingest(tables, config)
    assert hiccups.looks == 1 + beside_a_broken_one
    more = ["plain"] if beside_a_broken_one else []
    assert ids(tables) == sorted([*(f"e{n}" for n in range(500)), *more])
    assert numbers(account) == (500 + 2 * len(more), 500 + len(more), len(more), 0)
    assert len(unreadable(tables)) == len(more)
    assert_exact(tables)


def test_a_file_that_is_never_whole_when_it_is_read_and_always_when_it_is_looked_at_ends_the_job(
    tables: Tables, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as unlucky:
        hiccups = _Hiccups(config, unlucky, times=100)
        with pytest.raises(FoldinError, match="hiccup"):
            ingest(tables, config)
    assert ids(tables) == []
    hiccups.file.write_bytes(hiccups.whole)
    assert numbers(ingest(tables, config)) == (500, 500, 0, 0)
    assert_exact(tables)
