"""How large a cluster must be: from events a second, users, items and rank to cores, memory, disks and settings.

A small model with few constants, each taken from what the benchmarks measured (`foldin.measurements`); the tests hold
its predictions to that table. All of it was measured on one machine of 2 cores: that work divides by cores is assumed,
and whatever lies beyond what was measured is said to be extrapolated.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from foldin.errors import ConfigError
from foldin.kernels import MEMORY_MAP_BYTES
from foldin.measurements import GB, MB, measured

__all__ = ["MOST_PARTITIONS", "Load", "Range", "Size", "size"]


# The model's constants, for 2 cores put as seconds of one core. What each is fitted to stands in MEASURED.
_FIXED = {False: 0.4, True: 0.5}  # s a micro-batch whatever it holds: planning, Delta, offsets
_EVENT = 4.4e-6  # core seconds an event, on its way into the state
_STATE = 130e-6  # core seconds a touched user, at 30 events: state, Arrow, rows of Delta; half of it by the history
_IN_STREAM = 1.68  # a user's solve within the stream (16 µs at rank 64), times that of bench-kernel
_TOP_N = 150e-6  # core seconds a user more for a list, at 50,000 items of rank 64
_KERNEL = {rank: measured(f"kernel, rank {rank}").value for rank in (32, 64, 128, 256)}  # users a second
# Building writes anew whom each of its micro-batches touches: an event costs more the more users there are. By what
# was built in one micro-batch (250,000 and 1,000,000 users) and in three.
_BUILD_START = {False: 18.2, True: 21.9}  # s, of a JVM that is cold
_BUILD = {False: (3.38e-6, 2.63e-12), True: (4.33e-6, 3.40e-12)}  # core seconds an event, and that a user
_ROCKSDB_START, _ROCKSDB = 30 * MB, 42  # bytes a partition, and a user
# Bytes, bytes a user, and bytes a user of a small state, which RocksDB has not merged yet (it does so in passing).
_LOCAL_START, _LOCAL, _LOCAL_UNMERGED = 0.4 * GB, 1_550, 3_000
_CHECKPOINT = 3_300  # bytes a user
_CHANGE, _BATCHES_KEPT = 1_250, 100  # bytes of a touched user's row, spark.sql.streaming.minBatchesToRetain
_SEEN = 1.25  # times the state with lists: 8 bytes an item beside 41 an event (measured: 0.9 to 1.3)
_MEASURED_EVENTS, _MEASURED_ITEMS, _MEASURED_RANK, _BOUND = 30, 50_000, 64, 256
_MEASURED_USERS = {False: 4_000_000, True: 1_000_000}
_USERS_A_PARTITION = 2_000_000
# At most: a standalone cluster starts no executor, and says nothing, for a job that asks for fewer cores than one has,
# and the smallest jobs are given two.
_CORES_AN_EXECUTOR = 2
MOST_PARTITIONS = 10_000  # what the state_partitions of a stream take
_BUSY = 0.5  # share of the cores' time that the rate may take: the rest is for peaks, upkeep and adoption
_INGEST = 2 * measured("ingest, 541,909 rows of Online Retail").value / 541_909  # core seconds a row, start included
_COMMIT = measured("commit of events p50 at 1,000 events/s").value
_BESIDE = 1.5  # times the stream's seconds, with ingest on the same cores (assumed)
_LONGEST = 300.0  # s that a micro-batch that catches up may last
_FIT_START, _FIT_EVENT, _FLOPS = 10.0, 10e-6, 1e9  # s; core seconds; a core in MLlib's normal equations
_TRAININGS = 3  # at most: the candidate and what stands for the active model, to be judged, and the refit
_ITERATIONS = 10
_WORKER = 250 * MB  # of a Python worker's own: numpy, pandas, pyarrow and an Arrow batch (assumed)
_WORKER_MAPPED = _WORKER + measured("worker's own beside that file").value
_DAY = 86_400


@dataclass(frozen=True)
class Load:
    """What a cluster is sized for; the rate is that of the busiest hour.

    Raises:
        ConfigError: names the value and the rule.
    """

    events_per_second: float
    users: int
    items: int
    rank: int
    events_per_user: float = 30.0
    lists: bool = True

    def __post_init__(self) -> None:
        for name in ("events_per_second", "users", "items", "rank", "events_per_user"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"--{name.replace('_', '-')} {value:g}: must be greater than 0")
        for name, most in (("users", 2**31 - 1), ("items", 2**31 - 1), ("rank", 1024)):
            if getattr(self, name) > most:
                raise ConfigError(f"--{name} {getattr(self, name)}: must be at most {most}")

    @property
    def stored_events(self) -> float:
        """Events of a user in the state: `history.max_events_per_user` bounds them."""
        return min(self.events_per_user, _BOUND)


@dataclass(frozen=True)
class Range:
    """A prediction: the likeliest value, and the two between which it is to be expected."""

    likely: float
    low: float
    high: float

    @classmethod
    def within(cls, likely: float, factor: float) -> Range:
        """From `likely` / `factor` to `likely` * `factor`."""
        return cls(likely, likely / factor, likely * factor)


@dataclass(frozen=True)
class Size:
    """What a load needs. Seconds and bytes, unless a name says otherwise."""

    load: Load
    cores: int
    busy: float
    partitions: int
    executors: int
    cores_an_executor: int
    trigger_seconds: int
    bytes_a_trigger: int
    micro_batch: Range
    full_rate: Range
    freshness: Range
    build: Range
    rocksdb: Range
    local_disk: Range
    checkpoint: Range
    factors: int
    memory_mapped: bool
    executor_heap: int
    executor_overhead: int
    driver_heap: int
    driver_overhead: int
    largest_result: int
    ingest_cores: int
    fit: Range
    night: Range
    training_cache: Range
    events_a_day: Range
    ingest_state_a_day: Range
    factors_a_day: Range
    lists_a_day: Range
    remarks: tuple[str, ...]


def size(load: Load, *, cores: int | None = None) -> Size:
    """What `load` needs.

    Args:
        cores: of the fold-in stream, where they are given rather than sought.

    Raises:
        ConfigError: `cores` is no positive number, or too small for the rate; or no stream is large enough for it.
    """
    if cores is not None and cores < 1:
        raise ConfigError(f"--cores {cores}: must be greater than 0")
    a_second = _work(load, load.events_per_second)
    if cores is None:
        cores = max(2, math.ceil(a_second / _BUSY))
        if cores > _CORES_AN_EXECUTOR:  # a cluster starts whole executors only
            cores = _CORES_AN_EXECUTOR * math.ceil(cores / _CORES_AN_EXECUTOR)
    if a_second >= cores:
        raise ConfigError(f"--cores {cores}: too few, this rate keeps {math.ceil(a_second)} busy; take twice as many")
    partitions = cores * max(1, math.ceil(load.users / (_USERS_A_PARTITION * cores)))
    if partitions > MOST_PARTITIONS:
        raise ConfigError(f"{partitions} state partitions are needed, one stream has at most {MOST_PARTITIONS}")
    an_executor = next(n for n in range(_CORES_AN_EXECUTOR, 0, -1) if cores % n == 0)
    executors = cores // an_executor
    trigger = max(1, math.ceil(_steady(load, cores)))
    events = load.events_per_second * trigger
    state = load.users * _of_measured(load)
    rocksdb = Range.within(_ROCKSDB_START * partitions + _ROCKSDB * state, 2.0)
    nbytes = factor_bytes(load.items, load.rank)
    mapped = nbytes > MEMORY_MAP_BYTES
    plain = load.items * (4 * load.rank + 40)  # float32 and, of each item, id, hash and popularity
    batch = micro_batch_seconds(load, events, cores)
    fit = fit_seconds(load, cores)
    heap = _gigabytes(1.0 * GB + 0.5 * GB * an_executor + 2 * plain)
    # A host's workers share a mapped file; each unpickles a broadcast for itself.
    python = an_executor * (_WORKER_MAPPED if mapped else _WORKER + nbytes + plain) + (nbytes if mapped else 0)
    overhead = _gigabytes(max(0.1 * heap, 384 * MB) + rocksdb.high / executors + python)
    touched = distinct_users(events, load.users)
    rows = touched / trigger * _DAY
    return Size(
        load=load,
        cores=cores,
        busy=a_second / cores,
        partitions=partitions,
        executors=executors,
        cores_an_executor=an_executor,
        trigger_seconds=trigger,
        bytes_a_trigger=_bytes_a_trigger(load, cores),
        micro_batch=Range(batch, batch / 1.25, batch * 1.5),
        full_rate=Range.within(full_rate(load, cores), 1.25),
        freshness=Range.within(_COMMIT + _BESIDE * (trigger / 2 + batch), 1.7),
        build=Range.within(build_seconds(load, cores), 1.5),
        rocksdb=rocksdb,
        local_disk=Range.within(min(_LOCAL_START + _LOCAL * state, _LOCAL_UNMERGED * state), 1.3),
        checkpoint=Range.within(checkpoint_bytes(load, touched), 1.5),
        factors=nbytes,
        memory_mapped=mapped,
        executor_heap=heap,
        executor_overhead=overhead,
        driver_heap=_gigabytes(2 * GB + 2 * plain),
        driver_overhead=_gigabytes(0.5 * GB + 6 * plain),  # up to three models at once, while they are judged
        largest_result=_gigabytes(max(1 * GB, 1.5 * plain)),
        ingest_cores=max(1, math.ceil(load.events_per_second * _INGEST / _BUSY)),
        fit=Range.within(fit, 3.0),
        night=Range.within(_TRAININGS * fit + load.users * core_seconds_a_user(load, lists=True) / cores, 3.0),
        training_cache=Range.within(training_bytes(load), 3.0),
        events_a_day=Range(*(load.events_per_second * _DAY * row for row in (50, 20, 80))),
        ingest_state_a_day=Range.within(41 * load.events_per_second * _DAY, 1.5),
        factors_a_day=Range.within(rows * (4.1 * load.rank), 1.3),
        lists_a_day=Range(*(rows * row if load.lists else 0.0 for row in (120, 75, 260))),
        remarks=tuple(_remarks(load, cores, mapped)),
    )


def distinct_users(events: float, users: int) -> float:
    """Users that so many events touch, all users being as likely."""
    return users * -math.expm1(-events / users)


def core_seconds_a_user(load: Load, *, lists: bool | None = None) -> float:
    """Seconds of one core that a touched user costs the stream."""
    state = _STATE * (0.5 + 0.5 * load.stored_events / _MEASURED_EVENTS)
    solve = _IN_STREAM * kernel_seconds(load.rank) * load.stored_events / _MEASURED_EVENTS
    # Choosing the best of the scores does not get quicker with the rank: hence a floor.
    top_n = _TOP_N * load.items / _MEASURED_ITEMS * max(load.rank, 32) / _MEASURED_RANK
    return state + solve + (top_n if (load.lists if lists is None else lists) else 0.0)


def kernel_seconds(rank: int) -> float:
    """Seconds of one core that bench-kernel takes a user, between and beyond the ranks that it measured."""
    ranks = sorted(_KERNEL)
    upper = next((k for k in ranks[1:] if k >= rank), ranks[-1])
    lower = ranks[ranks.index(upper) - 1]
    slope = math.log(_KERNEL[lower] / _KERNEL[upper]) / math.log(upper / lower)
    return math.pow(rank / lower, slope) / _KERNEL[lower]


def micro_batch_seconds(load: Load, events: float, cores: int) -> float:
    """Seconds of a micro-batch of so many events."""
    return _FIXED[load.lists] + _work(load, events) / cores


def _work(load: Load, events: float) -> float:
    """Core seconds of a micro-batch of so many events, beside what is fixed."""
    return distinct_users(events, load.users) * core_seconds_a_user(load) + events * _EVENT


def full_rate(load: Load, cores: int, events: float = 100_000) -> float:
    """Events a second that the stream takes when micro-batches hold so many."""
    return events / micro_batch_seconds(load, events, cores)


def build_seconds(load: Load, cores: int) -> float:
    """Seconds to build the state from `events`."""
    event, of_users = _BUILD[load.lists]
    total = load.users * load.events_per_user
    return _BUILD_START[load.lists] + total * (event + of_users * load.users) / cores


def checkpoint_bytes(load: Load, touched: float) -> float:
    """Bytes of the checkpoint, on the file system that all hosts see.

    Args:
        touched: users of a micro-batch.
    """
    return _of_measured(load) * (_CHECKPOINT * load.users + _CHANGE * _BATCHES_KEPT * touched)


def _of_measured(load: Load) -> float:
    """A user's state, as a multiple of the one that was measured: 30 events, no seen items."""
    return load.stored_events / _MEASURED_EVENTS * (_SEEN if load.lists else 1.0)


def factor_bytes(items: int, rank: int) -> int:
    """`ItemFactors.nbytes`: what a worker holds, factors in float32, rotated in float64, two squares of the rank."""
    return items * rank * 4 * 3 + rank * rank * 8 * 2


def fit_seconds(load: Load, cores: int) -> float:
    """Seconds of one training, an order of magnitude: the start, histories, and MLlib's normal equations."""
    strengths = load.users * load.stored_events
    products = _ITERATIONS * (2 * strengths * load.rank**2 + (load.users + load.items) * load.rank**3 / 3)
    return _FIT_START + (load.users * load.events_per_user * _FIT_EVENT + products / _FLOPS) / cores


def training_bytes(load: Load) -> float:
    """Bytes that a training keeps in memory or, where that is short, on local disks: an order of magnitude."""
    strengths = (
        load.users * load.stored_events
    )  # a history's event has 41 bytes, a strength about 40 in each of 3 forms
    return strengths * (41 + 3 * 40) + (load.users + load.items) * load.rank * 4 * 3


def _steady(load: Load, cores: int) -> float:
    """Seconds of a micro-batch where each begins when the last one ends."""
    seconds, longer = 0.0, _FIXED[load.lists]
    while longer - seconds > 1e-3:
        seconds, longer = longer, micro_batch_seconds(load, load.events_per_second * longer, cores)
    return longer


def _bytes_a_trigger(load: Load, cores: int) -> int:
    """The power of two MB of events, by the smallest rows measured, that a micro-batch folds within `_LONGEST`."""
    users = (_LONGEST - _FIXED[load.lists]) * cores / core_seconds_a_user(load)
    if users >= load.users:
        return 256 << 20
    events = -load.users * math.log1p(-users / load.users)
    return 1 << min(28, max(24, int(math.log2(20 * events))))


def _gigabytes(count: float) -> int:
    """Whole gigabytes (2^30), as Spark's "g" means them."""
    return math.ceil(count / 2**30) << 30


def _remarks(load: Load, cores: int, mapped: bool) -> Iterator[str]:
    """What the prediction cannot know, one sentence each."""
    most = _MEASURED_USERS[load.lists]
    if load.users > most:
        kind = "with lists" if load.lists else "of factors alone"
        yield f"measured up to {most:,} users {kind}; beyond that it is extrapolated"
    if cores > 2:
        yield f"measured on 2 cores; that {cores} do {cores / 2:g} times as much is assumed"
    if load.rank != _MEASURED_RANK:
        yield "the stream was measured at rank 64; other ranks go by bench-kernel (32 to 256), lists in proportion"
    if load.lists and load.items != _MEASURED_ITEMS:
        yield "lists were measured over 50,000 items; other numbers go in proportion"
    if load.events_per_user != _MEASURED_EVENTS:
        yield "states were measured at 30 events a user; other numbers go in proportion"
    if load.lists:
        yield "seen items take a quarter of a state more (measured: 0.9 to 1.3 times the files without lists)"
    if load.lists and (ratio := core_seconds_a_user(load, lists=False) / core_seconds_a_user(load)) < 0.5:
        yield f"lists take {1 - ratio:.0%} of the stream's work: see fold_in.lists = false (--no-lists)"
    if mapped:
        yield "the factors are mapped from one file a host and container: see the page of your cluster on its place"
    yield "memory of executors and driver, and all of training, are rules of thumb that no benchmark measured"
