"""The sink: Redis holds what the tables say, whatever the micro-batches, restarts and swaps of models."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from readers_world import Lived, config_of
from redis_server import RedisServer

import quick
from foldin.adoption import bring_into_force
from foldin.compaction import compact
from foldin.errors import ConfigError, FoldinError, StateMismatchError
from foldin.fold_in import FoldIn
from foldin.maintenance import drop_models
from foldin.pushing import Push
from foldin.reading import latest_recommendations, popular_items
from foldin.redis_lists import RedisLists, Target
from foldin.registry import Registry
from foldin.schemas import EVENTS, METRICS, RECOMMENDATIONS
from foldin.streaming import GracefulStop
from foldin.tables import Tables
from foldin.training import train
from foldin.trimming import needed
from world import bought, copy_of, events_of, fold_once, wait_until

pytestmark = pytest.mark.readers

ROOT = Path(__file__).parents[2]
SECONDS = 240  # a session starts in 12 s; on a busy machine in a minute
PASSWORD = "w0rd-9f3c-nowhere"

Lists = dict[str, list[tuple[str, float]]]


@pytest.fixture
def tables(spark: SparkSession, lived: Lived, tmp_path: Path) -> Tables:
    """A copy of the tables that have lived, without a push query."""
    root = copy_of(lived.root, tmp_path / "tables")
    return Tables.of(spark, config_of(root).tables, create=False)


def pusher(tables: Tables, server: RedisServer, *sets: str) -> Push:
    config = config_of(Path(tables.root), "fold_in.trigger_seconds=0.1", "metrics.flush_seconds=600", *sets)
    return Push(tables, config, Target(server.url))


def in_tables(tables: Tables, version: str) -> Lists:
    rows = latest_recommendations(tables, version).collect()
    return {row["user_id"]: [(item["item_id"], item["score"]) for item in row["items"]] for row in rows}


def in_redis(server: RedisServer, version: str) -> Lists:
    """What lies there, bare; a score is written in as many digits as a float32 has."""
    held = server.client().hgetall(f"foldin:lists:{version}")
    return {
        user: [(item["item_id"], float(np.float32(item["score"]))) for item in json.loads(text)["items"]]
        for user, text in held.items()
    }


def versions_in(server: RedisServer) -> set[str]:
    return {key.rpartition(":")[2] for key in server.client().keys("foldin:lists:*")}


def seen_by(server: RedisServer) -> str | None:
    return server.client().hget("foldin:active", "model_version")


def test_redis_holds_the_newest_lists_of_every_model_that_is_kept(
    tables: Tables, lived: Lived, server: RedisServer
) -> None:
    push = pusher(tables, server)
    assert push.run(once=True) >= 3 * 26
    assert versions_in(server) == {lived.before, lived.active, lived.candidate}
    for version in versions_in(server):
        assert in_redis(server, version) == in_tables(tables, version)
    assert seen_by(server) == lived.active
    lists = RedisLists(server.client())
    assert [item for item, _ in lists.recommendations_for("u1").items] == [
        item for item, _ in in_tables(tables, lived.active)["u1"]
    ]
    popular = [(row["item_id"], float(row["users"])) for row in popular_items(tables, 3).collect()]
    assert lists.recommendations_for("nobody").items == tuple(popular)
    # Nothing new: nothing is written, by this query or by one that begins anew.
    assert pusher(tables, server).run(once=True) == 0
    before = {version: in_redis(server, version) for version in versions_in(server)}
    push.checkpoint.delete("")
    assert pusher(tables, server, "fold_in.max_files_per_trigger=1").run(once=True) == 0
    assert {version: in_redis(server, version) for version in versions_in(server)} == before
    assert seen_by(server) == lived.active


def test_new_lists_arrive_and_a_replayed_batch_changes_nothing(
    spark: SparkSession, tables: Tables, lived: Lived, server: RedisServer
) -> None:
    push = pusher(tables, server)
    push.run(once=True)
    compact(tables, RECOMMENDATIONS)  # which a stream skips
    for n, item in enumerate(("i3", "i4")):
        tables.append(events_of(spark, bought(f"a{n}", "u1", item)), EVENTS)
        fold_once(tables, config_of(Path(tables.root)))
    assert pusher(tables, server).run(once=True) >= 1
    wanted = in_tables(tables, lived.active)
    assert in_redis(server, lived.active) == wanted
    assert not {"i3", "i4"} & {item for item, _ in wanted["u1"]}
    last = max(int(name) for name in push.checkpoint.list("commits"))
    push.checkpoint.delete(f"commits/{last}")  # killed just before it was done
    assert pusher(tables, server).run(once=True) == 0
    assert in_redis(server, lived.active) == wanted


def test_the_log_waits_for_the_sink_and_no_other_log_does(
    spark: SparkSession, tables: Tables, server: RedisServer
) -> None:
    before = needed(tables, EVENTS)
    push = pusher(tables, server)
    push.run(once=True)
    others = [needed(tables, spec) for spec in (EVENTS, METRICS)]
    assert others == [before, None]
    newest = tables.version(RECOMMENDATIONS)
    folded = FoldIn(tables, config_of(Path(tables.root))).checkpoint
    folded.delete("pins")  # what the fold-in query itself still needs is not asked here
    held = needed(tables, RECOMMENDATIONS)
    assert held is not None
    assert newest - 2 <= held <= newest
    for n in range(4):
        tables.append(tables.read(RECOMMENDATIONS).limit(1), RECOMMENDATIONS)
        assert needed(tables, RECOMMENDATIONS) == held, n
    pusher(tables, server).run(once=True)
    tables.append(tables.read(RECOMMENDATIONS).limit(1), RECOMMENDATIONS)
    pusher(tables, server).run(once=True)
    moved = needed(tables, RECOMMENDATIONS)
    assert moved is not None
    assert moved > held
    push.checkpoint.delete("")
    assert needed(tables, RECOMMENDATIONS) is None


class AfterOne(GracefulStop):
    """Asks for the stop in the first batch."""

    def wrap(self, process: Callable[[DataFrame, int], None]) -> Callable[[DataFrame, int], None]:
        def first(batch: DataFrame, batch_id: int) -> None:
            process(batch, batch_id)
            self.ask()

        return super().wrap(first)


def test_readers_see_a_model_only_when_all_its_lists_are_there(
    spark: SparkSession, tables: Tables, lived: Lived, server: RedisServer
) -> None:
    pusher(tables, server).run(once=True)
    config = config_of(Path(tables.root))
    bring_into_force(tables, config, lived.candidate, reason="test")  # nothing to refold but what came after its cut
    tables.append(events_of(spark, bought("late", "u5", "i1")), EVENTS)
    fold_once(tables, config)
    third = train(tables, config).model_version
    one_file = "fold_in.max_files_per_trigger=1"
    pusher(tables, server, one_file).run(once=True, stop=AfterOne())
    assert seen_by(server) == lived.active
    pusher(tables, server, one_file).run(once=True)
    assert seen_by(server) == third
    assert in_redis(server, third) == in_tables(tables, third)


@contextmanager
def running(push: Push) -> Iterator[None]:
    """The query in a thread of its own; what it raises, this raises."""
    stop, failure = GracefulStop(), []

    def work() -> None:
        try:
            push.run(once=False, stop=stop)
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.ask()
        thread.join(SECONDS)
    assert not thread.is_alive()
    if failure:
        raise failure[0]


def test_a_reader_that_never_rests_finds_a_list_of_one_model_for_everybody_through_swaps_and_back(
    spark: SparkSession, tables: Tables, lived: Lived, server: RedisServer
) -> None:
    config = config_of(Path(tables.root))
    users = sorted(in_tables(tables, lived.active))
    seen: list[tuple[str, str, str, tuple[str, ...]]] = []
    ended = threading.Event()

    def poll() -> None:
        lists, last = RedisLists(server.client()), {}
        for user in itertools.cycle(users):
            found = lists.recommendations_for(user)
            answer = (found.model_version, user, found.source, tuple(item for item, _ in found.items))
            if last.get(user) != answer:
                last[user] = answer
                seen.append(answer)
            if ended.is_set():
                return

    with running(pusher(tables, server)):
        wait_until(lambda: seen_by(server) == lived.active, SECONDS)
        reader = threading.Thread(target=poll)
        reader.start()
        try:
            tables.append(events_of(spark, bought("s1", "u3", "i1")), EVENTS)
            fold_once(tables, config)
            third = train(tables, config).model_version
            wait_until(lambda: seen_by(server) == third, SECONDS)
            bring_into_force(tables, config, lived.active, reason="back")
            wait_until(lambda: seen_by(server) == lived.active, SECONDS)
            # And forth, to a model whose lists are all there: no new row, and yet it comes into force.
            rows = tables.version(RECOMMENDATIONS)
            bring_into_force(tables, config, third, reason="forth")
            wait_until(lambda: seen_by(server) == third, SECONDS)
            assert tables.version(RECOMMENDATIONS) == rows
            for version in (lived.active, lived.before):
                Registry(tables).retire(version, reason="test")
            wait_until(lambda: versions_in(server) == {third, lived.candidate}, SECONDS)
        finally:
            ended.set()
            reader.join()
    written = {
        (row["model_version"], row["user_id"], row["source"], tuple(item["item_id"] for item in row["items"]))
        for row in tables.read(RECOMMENDATIONS).collect()
    }
    assert set(seen) <= written
    order = [version for version, _ in itertools.groupby(seen, key=lambda answer: answer[0])]
    assert order == [lived.active, third, lived.active, third]
    assert in_redis(server, third) == in_tables(tables, third)


def test_lists_of_a_training_that_was_killed_go_once_its_rows_have_gone(
    tables: Tables, lived: Lived, server: RedisServer
) -> None:
    rows = tables.read(RECOMMENDATIONS).where(F.col("model_version") == lived.active)
    tables.append(rows.withColumn("model_version", F.lit("killed")), RECOMMENDATIONS)
    kept = {lived.before, lived.active, lived.candidate}
    pusher(tables, server).run(once=True)
    assert versions_in(server) == kept | {"killed"}  # for all that Redis knows, it is being trained
    drop_models(tables, ["killed"])
    pusher(tables, server).run(once=True)
    assert versions_in(server) == kept


def test_a_redis_that_was_emptied_is_refused_and_filled_anew(tables: Tables, lived: Lived, server: RedisServer) -> None:
    push = pusher(tables, server)
    push.run(once=True)
    server.kill()
    server.start()
    with pytest.raises(StateMismatchError) as refused:
        pusher(tables, server).run(once=True)
    assert refused.value.exit_code == 4
    assert str(refused.value) == (
        f"Redis at {server.address} holds nothing of what this query has pushed (it was emptied). To go on, "
        f"delete {push.checkpoint.path} and start again: all lists are pushed anew."
    )
    push.checkpoint.delete("")
    pusher(tables, server).run(once=True)
    assert in_redis(server, lived.active) == in_tables(tables, lived.active)
    assert seen_by(server) == lived.active


def test_a_redis_that_goes_away_ends_the_query_with_one_line_and_nothing_is_lost(
    tables: Tables, lived: Lived, server: RedisServer
) -> None:
    server.kill()
    with pytest.raises(FoldinError) as away:
        pusher(tables, server).run(once=True)
    assert str(away.value).startswith(f"Redis at {server.address}: ")
    assert "\n" not in str(away.value)
    server.start()
    pusher(tables, server).run(once=True)
    assert in_redis(server, lived.active) == in_tables(tables, lived.active)


def test_a_query_is_named_as_a_folder_may_be(tables: Tables) -> None:
    with pytest.raises(ConfigError, match=r"--name '../fold_in'"):
        Push(tables, config_of(Path(tables.root)), Target("redis://h"), "../fold_in")


def options(tables: Tables, *more: str) -> list[str]:
    settings = ["spark.master='local[2]'", "spark.conf.spark.driver.memory=1g", f"tables.root={tables.root}", *more]
    settings += [f"spark.conf.{key}={value}" for key, value in quick.SETTINGS.items()]
    settings += ["fold_in.max_files_per_trigger=1", "metrics.flush_seconds=0.5"]
    return [word for setting in settings for word in ("--set", setting)]


def test_a_job_that_is_killed_midway_leaves_the_same_lists_and_no_word_of_the_password(
    tables: Tables, lived: Lived, tmp_path: Path
) -> None:
    (tmp_path / "redis").mkdir()
    server = RedisServer(tmp_path / "redis", PASSWORD)
    server.start()
    command = [sys.executable, "jobs/push_to_redis.py", *options(tables)]
    environment = quick.environment(FOLDIN_REDIS_URL=server.url, JDK_JAVA_OPTIONS=quick.SHORT_JVM)
    said = tmp_path / "said.log"
    try:
        with said.open("ab") as log:
            job = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)
            try:
                client = server.client()
                lists = f"foldin:lists:{lived.active}"
                wait_until(lambda: job.poll() is not None or client.hlen(lists), SECONDS)
                assert job.poll() is None, said.read_text()
            finally:
                os.killpg(job.pid, signal.SIGKILL)
                job.wait()
        done = subprocess.run(
            [*command, "--once"],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.endswith(" lists written\n")
        for version in (lived.before, lived.active, lived.candidate):
            assert in_redis(server, version) == in_tables(tables, version)
        assert seen_by(server) == lived.active
    finally:
        server.kill()
    everything = done.stdout + done.stderr + said.read_text()
    for file in (Path(tables.root) / "_checkpoints" / "push").rglob("*"):
        everything += file.read_text(errors="replace") if file.is_file() else ""
    rows = tables.read(METRICS).where("query = 'push/redis'").collect()
    assert rows
    everything += str(rows)
    assert "event=start query=push/redis" in everything
    assert PASSWORD not in everything
    assert "Traceback" not in everything
