"""The two queries in one process, and a reader beside them."""

from __future__ import annotations

import pytest

from foldin.demo.streams import Reader, Streams
from foldin.errors import FoldinError, MissingModelError
from foldin.mapping import contract
from foldin.reading import recommendations_for
from foldin.registry import Registry
from foldin.schemas import EVENTS
from landing import event
from world import bought


def test_what_lands_is_ingested_and_folded_in_while_they_run(world, config, tmp_path):
    streams = Streams(world, config, contract(config))
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    first.write_text(event("a", "u1", "i0", event_type="purchase") + "\n")
    second.write_text(event("b", "new", "i7", event_type="purchase") + "\n")
    assert streams.land(first) == 1
    assert streams.ingest_once().events == 1
    unknown = recommendations_for(world, "new")
    with streams.running():
        streams.settle()
        streams.land(second)
        found, seconds = streams.fresh_list("new", unknown)
        streams.settle()
    assert found.source == "als"
    assert "i7" not in [item for item, _ in found.items]
    assert 0 < seconds < 300
    assert streams.landed == 2
    assert not list(tmp_path.glob("*.jsonl"))


def test_what_ends_a_stream_is_told_to_who_waits_for_it(world, config, monkeypatch):
    streams = Streams(world, config, contract(config))

    def broken(**_):
        raise FoldinError("broken on purpose")

    monkeypatch.setattr(streams.fold_in, "run", broken)
    monkeypatch.setattr(streams.ingest, "run", broken)
    with pytest.raises(FoldinError, match="on purpose"), streams.running():
        streams.settle()


def test_a_reader_notes_every_list_and_each_version_once(world):
    version = Registry(world).active_version()
    with Reader(world, "u1", pause=0) as reader:
        while len(reader.looks) < 3:
            pass
    assert reader.versions() == [version]
    assert {look.found for look in reader.looks} == {recommendations_for(world, "u1")}
    assert [look.at for look in reader.looks] == sorted(look.at for look in reader.looks)


def test_a_read_that_fails_is_not_passed_over(tables, events_frame):
    tables.append(events_frame(bought("a", "u1", "i0")), EVENTS)
    with pytest.raises(MissingModelError), Reader(tables, "u1") as reader:
        reader._thread.join(60)
