"""Lists in a real Redis: an older one never overwrites a newer one, and a swap of models is whole or not at all."""

from __future__ import annotations

import itertools
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import redis
from redis_server import RedisServer

from foldin.errors import ConfigError, FoldinError, MissingModelError
from foldin.redis_lists import LostListsError, RedisLists, Target, redis_failures

pytestmark = pytest.mark.readers

SECRET = "pa%3Ass-w0rd%2F9f3c"


def a_list(version: int, index: int = -1, folded_at: int = 0, *, items: str = "i1", source: str = "als") -> str:
    found = [{"item_id": item, "score": 0.5} for item in items.split()]
    position = {"events_version": version, "events_index": index, "folded_at_us": folded_at}
    return json.dumps(position | {"source": source, "items": found}, separators=(",", ":"))


@pytest.fixture
def lists(server: RedisServer) -> RedisLists:
    return RedisLists(server.client())


def held(lists: RedisLists, version: str, user: str) -> str | None:
    return lists.client.hget(f"foldin:lists:{version}", user)


def test_in_whatever_order_lists_come_the_one_that_includes_most_events_stays(lists: RedisLists) -> None:
    # In their order; numbers that texts would order otherwise, and those whose difference a float32 would not keep.
    at = 1_800_000_000_000_000
    rows = [a_list(9), a_list(9, 0, at), a_list(9, 11, at), a_list(10, -1, at), a_list(10, -1, at + 1)]
    for n, order in enumerate(itertools.permutations(rows)):
        written = [lists.put("m", [(f"u{n}", row)]) for row in order]
        assert held(lists, "m", f"u{n}") == rows[-1]
        newest = [max(rows.index(row) for row in order[: k + 1]) for k in range(len(order))]
        assert written == [int(k == 0 or newest[k] > newest[k - 1]) for k in range(len(order))]
    assert lists.put("m", [(f"u{n}", row) for row in rows]) == 0


def test_one_call_takes_many_users_and_the_same_one_twice(lists: RedisLists) -> None:
    users = [f"user {k} 'ünd' \"☃\"\n" for k in range(500)]
    assert lists.put("m", [(user, a_list(k)) for k, user in enumerate(users)]) == 500
    assert lists.put("m", [("x", a_list(2)), ("x", a_list(1)), ("x", a_list(3))]) == 2
    assert lists.client.hlen("foldin:lists:m") == 501
    assert held(lists, "m", users[7]) == a_list(7)


def test_readers_see_one_model_whole_and_then_the_other(lists: RedisLists) -> None:
    with pytest.raises(MissingModelError, match="no lists"):
        lists.recommendations_for("u")
    lists.check("q", -1)
    lists.put("one", [("u", a_list(1, items="i1 i2"))])
    with pytest.raises(MissingModelError):
        lists.recommendations_for("u")
    lists.swap("q", 1, "one", [("p", 8)])
    lists.put("two", [("u", a_list(2, items="i3"))])
    found = lists.recommendations_for("u")
    assert (found.model_version, found.source, found.items) == ("one", "als", (("i1", 0.5), ("i2", 0.5)))
    lists.swap("q", 4, "two", [("p", 9)])
    assert lists.recommendations_for("u").items == (("i3", 0.5),)
    lists.swap("q", 5, "one", [("p", 8)])  # and back
    assert lists.recommendations_for("u").model_version == "one"
    lists.swap("q", 4, "two", [("p", 9)])  # again, late
    assert lists.recommendations_for("u").model_version == "one"


def test_a_user_without_a_list_gets_the_most_popular_items(lists: RedisLists) -> None:
    lists.check("q", -1)
    lists.swap("q", 1, "one", [("p", 8), ("q", 7)])
    found = lists.recommendations_for("nobody")
    assert (found.source, found.items) == ("popularity", (("p", 8.0), ("q", 7.0)))


def test_what_is_dropped_is_gone_but_never_what_readers_see(lists: RedisLists) -> None:
    lists.check("q", -1)
    for version in ("one", "two"):
        lists.put(version, [("u", a_list(1))])
        lists.swap("q", 1, version, [])
    assert lists.recommendations_for("u").model_version == "one"
    lists.drop(["one", "two", "never there"])
    assert sorted(lists.client.keys()) == ["foldin:active", "foldin:lists:one", "foldin:popular:one"]


class Between(redis.Redis):
    """Does something just before its first look at a list."""

    def hget(self, name: str, key: str) -> Any:
        if ":lists:" in name and (action := self.__dict__.pop("action", None)) is not None:
            action()
        return super().hget(name, key)


def test_a_reader_that_is_overtaken_by_a_swap_and_a_retirement_reads_the_next_model(server: RedisServer) -> None:
    lists = RedisLists(server.client())
    lists.check("q", -1)
    for sequence, version in enumerate(("one", "two")):
        lists.put(version, [("u", a_list(sequence))])
    lists.swap("q", 1, "one", [("p", 1)])

    def overtake() -> None:
        lists.swap("q", 2, "two", [("p", 2)])
        lists.drop(["one"])

    client = Between.from_url(server.url, decode_responses=True)
    client.action = overtake
    found = RedisLists(client).recommendations_for("u")
    assert (found.model_version, found.source) == ("two", "als")
    client.action = lambda: None
    assert RedisLists(client).recommendations_for("nobody").items == (("p", 2.0),)


def test_a_query_that_finds_its_lists_lost_is_told(lists: RedisLists) -> None:
    lists.check("q", -1)
    lists.check("q", -1)  # killed in its first batch
    lists.done("q", 0)
    lists.done("q", 1)
    lists.done("q", 0)  # again, late
    lists.check("q", 1)
    lists.check("q", 0)  # the last batch is replayed
    with pytest.raises(LostListsError, match="has lost the last lists"):
        lists.check("q", 2)
    lists.client.flushall()
    with pytest.raises(LostListsError, match="it was emptied"):
        lists.check("q", 1)


def test_it_says_of_which_models_it_holds_lists_under_its_own_prefix(server: RedisServer) -> None:
    mine, other = (RedisLists(server.client(), prefix) for prefix in ("{shop}.1", "{shop}-1"))
    assert mine.versions() == set()
    mine.put("m1", [("u", a_list(1))])
    mine.put("m:2", [("u", a_list(1))])
    other.put("m3", [("u", a_list(1))])
    assert mine.versions() == {"m1", "m:2"}


def test_a_new_query_takes_over_and_the_one_before_is_told(lists: RedisLists) -> None:
    lists.check("old", -1)
    lists.put("one", [("u", a_list(1))])
    lists.done("old", 0)
    lists.swap("old", 7, "one", [])
    lists.check("new", -1)
    assert lists.recommendations_for("u").model_version == "one"  # readers go on
    for late in (
        lambda: lists.check("old", 0),
        lambda: lists.done("old", 1),
        lambda: lists.swap("old", 8, "one", []),
    ):
        with pytest.raises(LostListsError, match="another query"):
            late()
    lists.put("two", [("u", a_list(1))])
    lists.swap("new", 1, "two", [])  # its own numbers begin anew: other tables, perhaps
    assert lists.recommendations_for("u").model_version == "two"


def test_prefixes_keep_installations_apart(server: RedisServer) -> None:
    here, there = (RedisLists(server.client(), prefix) for prefix in ("a", "{b}"))
    for lists, query in ((here, "q"), (there, "p")):
        lists.check(query, -1)
        lists.put("m", [("u", a_list(1, items=query))])
        lists.swap(query, 1, "m", [])
    assert here.recommendations_for("u").items == (("q", 0.5),)
    assert there.recommendations_for("u").items == (("p", 0.5),)


def test_the_url_comes_from_the_option_or_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FOLDIN_REDIS_URL", raising=False)
    with pytest.raises(ConfigError, match="which Redis"):
        Target.of(None)
    assert str(Target.of("redis://there:7000/2")) == "Redis at there:7000"
    assert str(Target.of("unix:///run/redis.sock")) == "Redis at /run/redis.sock"
    monkeypatch.setenv("FOLDIN_REDIS_URL", f"rediss://me:{SECRET}@here")
    assert str(Target.of(None)) == "Redis at here:6379"
    assert Target.of(None).connect().connection_pool.connection_kwargs["password"] == "pa:ss-w0rd/9f3c"
    with pytest.raises(ConfigError, match="--prefix 'a b'"):
        Target.of(None, "a b")


@pytest.mark.parametrize(
    "url", [f"redis://:{SECRET}@h", f"redis://me:{SECRET}@h/0", f"redis://h?password={SECRET}", f"h:{SECRET}"]
)
def test_a_password_on_the_command_line_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ConfigError) as refused:
        Target.of(url)
    assert "w0rd" not in str(refused.value)


@pytest.mark.parametrize("url", ["redis://:half:w0rd/9f3c@h", "http://:w0rd@h", "w0rd", "redis://:w0rd@h:w0rd"])
def test_a_wrong_url_is_told_without_its_password(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOLDIN_REDIS_URL", url)
    with pytest.raises(ConfigError, match="FOLDIN_REDIS_URL: not a URL of Redis") as refused:
        Target.of(None)
    assert "w0rd" not in str(refused.value)
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__


def test_a_target_travels_whole_and_shows_no_password() -> None:
    target = Target(f"redis://:{SECRET}@h")
    assert pickle.loads(pickle.dumps(target)) == target
    assert "w0rd" not in f"{target!r} {target}"


def test_a_refused_login_and_a_server_that_does_not_answer_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("foldin.redis_lists._RETRIES", 0)
    server = RedisServer(tmp_path, password="r1ght")
    target = Target(f"redis://:w0rd@{server.address}")
    server.start()
    try:
        with pytest.raises(ConfigError) as refused, redis_failures(target), target.connect() as client:
            client.ping()
    finally:
        server.kill()
    with pytest.raises(FoldinError) as away, redis_failures(target), target.connect() as client:
        client.ping()
    for error in (refused, away):
        assert str(error.value).startswith(f"Redis at {server.address}: ")
        assert "\n" not in str(error.value)
        assert "w0rd" not in str(error.value)
