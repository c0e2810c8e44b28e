"""Checkpoints as files, offsets as positions, and a stop that finishes the batch and begins no other."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path

import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from foldin.checkpoints import Checkpoint
from foldin.errors import FoldinError, StateMismatchError, reason_of
from foldin.schemas import Position
from foldin.streaming import GracefulStop, observed, run
from world import wait_until


@pytest.fixture
def checkpoint(spark: SparkSession, tmp_path: Path) -> Checkpoint:
    return Checkpoint(spark, str(tmp_path / "check point"))


@pytest.mark.parametrize("text", ["", "one line", "two\nlines\n", "Zoë 日本🎌 \u0000", "x" * 100_000])
def test_a_file_of_a_checkpoint_is_read_as_it_was_written(checkpoint: Checkpoint, text: str) -> None:
    assert checkpoint.read("pins/1") is None
    checkpoint.write("pins/1", "something else")
    checkpoint.write("pins/1", text)
    assert checkpoint.read("pins/1") == text
    files = [path.name for path in Path(checkpoint.path, "pins").iterdir() if path.suffix != ".crc"]
    assert files == ["1"]
    checkpoint.delete("pins/1")
    assert checkpoint.read("pins/1") is None
    checkpoint.delete("pins/1")


def test_a_fingerprint_lets_the_same_settings_pass_and_names_what_differs(checkpoint: Checkpoint) -> None:
    born = {"max_events_per_user": 256, "event_types": ["view", "like"]}
    checkpoint.check_fingerprint(born, rebuild="delete it")
    checkpoint.check_fingerprint(dict(reversed(born.items())), rebuild="delete it")
    with pytest.raises(StateMismatchError) as caught:
        checkpoint.check_fingerprint(born | {"max_events_per_user": 100}, rebuild="delete it")
    assert str(caught.value) == (
        f"max_events_per_user is 100, but the state in {checkpoint.path} was built with 256. Set it back, or: delete it"
    )
    assert caught.value.exit_code == 4
    for other in ({"max_events_per_user": 256}, born | {"layout": 2}, born | {"event_types": ["like", "view"]}):
        with pytest.raises(StateMismatchError):
            checkpoint.check_fingerprint(other, rebuild="delete it")
    checkpoint.check_fingerprint(born, rebuild="delete it")


def test_a_checkpoint_that_has_run_without_a_fingerprint_is_refused(checkpoint: Checkpoint) -> None:
    checkpoint.write("metadata", '{"id": "1"}')
    with pytest.raises(StateMismatchError, match=r"has no foldin\.json: not a checkpoint of foldin\. delete it$"):
        checkpoint.check_fingerprint({"a": 1}, rebuild="delete it")


def test_delta_offsets_are_positions_that_grow_with_the_table(
    spark: SparkSession, tmp_path: Path, checkpoint: Checkpoint
) -> None:
    table = str(tmp_path / "table")

    def append() -> None:
        spark.range(1).coalesce(1).write.format("delta").mode("append").save(table)

    offsets = []

    def process(batch: DataFrame, batch_id: int) -> None:
        batch.write.format("noop").mode("overwrite").save()
        offset = checkpoint.delta_offset(batch_id)
        assert offset is not None
        offsets.append(offset)

    assert checkpoint.is_new()
    assert checkpoint.delta_offset(0) is None
    for _ in range(2):
        append()
        stream = spark.readStream.format("delta").load(table)
        run(stream.writeStream, process, checkpoint=checkpoint, name="offsets", once=True, trigger_seconds=1)
    assert not checkpoint.is_new()
    assert checkpoint.delta_offset(-1) is None
    positions = [offset.position for offset in offsets]
    assert positions == sorted(positions)
    assert positions[-1] == Position.after(1)
    assert not offsets[-1].in_snapshot
    assert checkpoint.query_id() in Path(checkpoint.path, "metadata").read_text()


@pytest.fixture
def files(spark: SparkSession, tmp_path: Path) -> DataFrame:
    """A stream of four files, one a batch."""
    folder = tmp_path / "files"
    folder.mkdir()
    for n in range(4):
        (folder / str(n)).write_text(f"{n}\n")
        os.utime(folder / str(n), (n, n))
    return spark.readStream.format("text").option("maxFilesPerTrigger", 1).load(str(folder))


def _commits(checkpoint: Checkpoint) -> list[int]:
    return sorted(int(path.name) for path in Path(checkpoint.path, "commits").iterdir() if path.name.isdigit())


@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "ask"])
def test_a_stop_finishes_the_batch_begins_no_other_and_the_next_run_goes_on(
    files: DataFrame, checkpoint: Checkpoint, how: str
) -> None:
    stop, done = GracefulStop(), []

    def process(batch: DataFrame, batch_id: int) -> None:
        rows = [row["value"] for row in batch.collect()]
        if len(done) == 1:
            if how == "ask":
                stop.ask()
            else:
                os.kill(os.getpid(), signal.Signals[how])
            # The handler runs on the main thread; the batch goes on meanwhile.
            wait_until(stop._asked.is_set, 60)
            if how == "SIGTERM":
                time.sleep(2.2)  # longer than two looks of the main thread: were it to stop at once, we would fail
            rows = [row["value"] for row in batch.collect()]
        done.extend(rows)

    handlers = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    arguments = {"checkpoint": checkpoint, "name": "stopped", "once": False, "trigger_seconds": 1e-5}
    run(files.writeStream, process, **arguments, stop=stop)
    assert done == ["0", "1"]
    assert _commits(checkpoint) == [0, 1]
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert not files.sparkSession.streams.active

    run(files.writeStream, process, **arguments | {"once": True})
    assert done == ["0", "1", "2", "3"]


def test_a_stop_that_is_asked_for_before_the_start_begins_no_batch(files: DataFrame, checkpoint: Checkpoint) -> None:
    stop, done = GracefulStop(), []
    stop.ask()
    run(files.writeStream, lambda *given: done.append(given), checkpoint=checkpoint, name="early", once=False,
        trigger_seconds=1e-5, stop=stop)  # fmt: skip
    assert done == []
    assert checkpoint.is_new()


def test_a_stop_ends_a_query_that_waits_for_data(files: DataFrame, checkpoint: Checkpoint) -> None:
    stop, done = GracefulStop(), []

    def process(batch: DataFrame, batch_id: int) -> None:
        done.append(batch_id)

    def run_it() -> None:
        run(
            files.writeStream,
            process,
            checkpoint=checkpoint,
            name="idle",
            once=False,
            trigger_seconds=0.05,
            stop=stop,
        )

    thread = threading.Thread(target=run_it, daemon=True)
    thread.start()
    wait_until(lambda: len(done) == 4, 60)
    stop.ask()
    thread.join(60)
    assert not thread.is_alive()
    assert _commits(checkpoint) == [0, 1, 2, 3]


def test_of_two_queries_that_are_stopped_together_each_finishes_its_own_batch(
    spark: SparkSession, files: DataFrame, tmp_path: Path
) -> None:
    stop, in_the_middle, done = GracefulStop(), threading.Event(), list[int]()
    checkpoints = {name: Checkpoint(spark, str(tmp_path / name)) for name in ("short", "long")}

    def short(batch: DataFrame, batch_id: int) -> None:
        assert in_the_middle.wait(60)
        stop.ask()  # its next batch is not begun: with its offsets written, it waits to be ended

    def long(batch: DataFrame, batch_id: int) -> None:
        in_the_middle.set()
        offsets = Path(checkpoints["short"].path, "offsets", "1")
        wait_until(lambda: offsets.exists() or running[0].done(), 60)  # in the moment between two batches it just ends
        time.sleep(2.2)  # longer than two looks of who waits for the end
        done.append(batch.count())

    def run_it(name: str, process: Callable[[DataFrame, int], None]) -> None:
        run(
            files.writeStream,
            process,
            checkpoint=checkpoints[name],
            name=name,
            once=False,
            trigger_seconds=1e-5,
            stop=stop.of_another(),
        )

    running = list[Future[None]]()
    with ThreadPoolExecutor(2) as pool:
        running += [pool.submit(run_it, name, process) for name, process in (("short", short), ("long", long))]
    for future in running:
        future.result()
    assert done == [1]
    assert {name: _commits(checkpoint) for name, checkpoint in checkpoints.items()} == {"short": [0], "long": [0]}


def test_queries_of_one_session_have_each_its_own_number_of_state_partitions(
    spark: SparkSession, files: DataFrame, tmp_path: Path
) -> None:
    before = spark.conf.get("spark.sql.shuffle.partitions")
    stops = {name: GracefulStop() for name in ("first", "second")}
    begun = {name: threading.Event() for name in stops}

    def process(name: str, batch: DataFrame, batch_id: int) -> None:
        batch.collect()
        begun[name].set()

    def run_it(name: str, number: int) -> None:
        run(
            files.dropDuplicates(["value"]).writeStream,
            partial(process, name),
            checkpoint=Checkpoint(spark, str(tmp_path / name)),
            name=name,
            once=False,
            trigger_seconds=0.05,
            state_partitions=number,
            stop=stops[name],
        )

    with ThreadPoolExecutor(2) as pool:
        running = []
        try:
            for number, name in enumerate(stops, 3):
                running.append(pool.submit(run_it, name, number))
                wait_until(lambda name=name: begun[name].is_set() or running[-1].done(), 60)
            assert spark.conf.get("spark.sql.shuffle.partitions") == before
        finally:  # in the order in which they have begun
            for stop, future in zip(stops.values(), running, strict=False):
                stop.ask()
                wait([future], 60)
    for future in running:
        future.result()
    assert spark.conf.get("spark.sql.shuffle.partitions") == before
    for number, name in enumerate(stops, 3):
        metadata = Path(tmp_path, name, "offsets", "0").read_text().splitlines()[1]
        assert json.loads(metadata)["conf"]["spark.sql.shuffle.partitions"] == str(number)


class _OurError(FoldinError):
    exit_code = 9


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (_OurError("own words\nand more"), _OurError, "own words\nand more"),
        (ValueError("first line\nsecond line"), FoldinError, "broken failed: first line"),
        (KeyError(), FoldinError, "broken failed: KeyError"),
    ],
)
def test_what_a_batch_raises_comes_out_of_run(
    files: DataFrame, checkpoint: Checkpoint, error: Exception, kind: type[FoldinError], message: str
) -> None:
    def process(batch: DataFrame, batch_id: int) -> None:
        raise error

    with pytest.raises(FoldinError) as caught:
        run(files.writeStream, process, checkpoint=checkpoint, name="broken", once=True, trigger_seconds=1)
    assert type(caught.value) is kind
    assert str(caught.value) == message
    assert _commits_or_none(checkpoint) == []


def test_a_task_that_fails_is_named_by_its_own_error_not_by_spark_s_pages(
    files: DataFrame, checkpoint: Checkpoint
) -> None:
    def process(batch: DataFrame, batch_id: int) -> None:
        batch.selectExpr("timestamp_seconds(9223372036854775807 - length(value))").collect()

    with pytest.raises(FoldinError, match=r"^broken failed: java\.lang\.ArithmeticException: long overflow$"):
        run(files.writeStream, process, checkpoint=checkpoint, name="broken", once=True, trigger_seconds=1)


def test_a_query_that_cannot_start_says_so_in_one_line(files: DataFrame, checkpoint: Checkpoint) -> None:
    with pytest.raises(FoldinError, match=r"^broken failed: .*Invalid streaming output mode: complete") as caught:
        run(
            files.writeStream.outputMode("complete"),
            lambda batch, batch_id: None,
            checkpoint=checkpoint,
            name="broken",
            once=True,
            trigger_seconds=1,
        )
    assert "\n" not in str(caught.value)


def test_the_rows_that_a_batch_reads_are_known_within_it(
    spark: SparkSession, files: DataFrame, checkpoint: Checkpoint
) -> None:
    seen = []

    def process(batch: DataFrame, batch_id: int) -> None:
        batch.count()
        (query,) = (q for q in spark.streams.active if q.name == "observed")
        seen.append(observed(query, "rows_in")[0])

    counted = files.observe("rows_in", F.count(F.lit(1)).alias("rows")).where("value < '2'")
    run(counted.writeStream, process, checkpoint=checkpoint, name="observed", once=True, trigger_seconds=1)
    assert seen == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("plain", "plain"),
        ("\n\n  first \n second", "first"),
        (
            "[STREAM_FAILED] Query x terminated: [CAST_INVALID_INPUT] bad cast. SQLSTATE: 22018\n== SQL ==",
            "[CAST_INVALID_INPUT] bad cast",
        ),
        (
            "An error occurred while calling o1.x.\n: java.io.IOException: no disk\n\tat a.b",
            "java.io.IOException: no disk",
        ),
    ],
)
def test_the_reason_of_an_error_is_its_innermost_line(text: str, reason: str) -> None:
    assert reason_of(Exception(text)) == reason
    assert reason_of(ValueError()) == "ValueError"


def _commits_or_none(checkpoint: Checkpoint) -> list[int]:
    return _commits(checkpoint) if Path(checkpoint.path, "commits").is_dir() else []


def test_the_reason_of_an_error_says_that_a_disk_is_full_where_only_its_cause_does() -> None:
    error = Exception("[TASK_WRITE_FAILED] Task failed while writing rows to file:/x. SQLSTATE: 58030")
    error.__cause__ = OSError("java.io.IOException: No space left on device")
    full = "[TASK_WRITE_FAILED] Task failed while writing rows to file:/x: No space left on device"
    assert reason_of(error) == full
    error.__cause__.__cause__ = error
    assert reason_of(error) == full
