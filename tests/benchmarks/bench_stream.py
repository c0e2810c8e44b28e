"""The stream, measured: seconds a micro-batch by the number of users, rates, state, freshness, and a soak.

`make bench-stream`. It makes its own data from a seed. What is compared takes turns, batch by batch, in one session:
the product's fold-in query, a bare Delta-to-Delta copy stream, and the usual design with MERGE. Each size and each
section runs in a process of its own, so that all start with a cold JVM of the same age. Seconds are Spark's own
batchDuration; CPU seconds are those of all processes from a batch's landing to the end of its micro-batch, which a busy
machine inflates less. Tables go to stdout as they are made and to build/bench/stream.md, progress to stderr.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

from stream_freshness import FreshnessPlan, measure_freshness
from stream_report import Report, aims_table, machine, progress
from stream_sizes import SizePlan, measure_size
from stream_soak import SoakPlan, measure_soak
from stream_world import Settings, session

OUTPUT = Path(__file__).parents[2] / "build" / "bench"
SECTIONS = ("batch", "merge", "sustained", "freshness", "soak")
OF_A_SIZE = frozenset(SECTIONS[:3])
KINDS = ("factors", "lists")
JOBS = (("stream",), ("ingest", "fold_in"))


def main() -> int:
    """Run what is asked for; 0 if every section ran, whatever it measured."""
    options = _options()
    OUTPUT.mkdir(parents=True, exist_ok=True)
    whole = Report()
    whole.say("# make bench-stream")
    whole.say()
    whole.say(f"`{' '.join(['bench_stream.py', *sys.argv[1:]])}` on {machine()}.")
    whole.say()
    failed = []
    with tempfile.TemporaryDirectory(prefix="foldin-bench-", dir=options.work) as folder:
        settings = Settings(
            options.items,
            options.rank,
            options.seed,
            Path(folder),
            options.master,
            options.driver_memory,
            options.bootstrap_bytes,
        )
        for name, section in _sections(options):
            progress(f"{name} begins")
            part, ended = _in_process(section, replace(settings, work=settings.work / name), options)
            failed += [] if ended else [name]
            whole.lines += part.lines
            whole.values |= part.values
            _write(whole)
    _aims(whole, options.sizes, options.items)
    _write(whole)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--sizes", type=_numbers, default=(250_000, 1_000_000, 4_000_000), help="users, with commas")
    parser.add_argument("--only", type=_names, default=SECTIONS, help=f"sections, of {','.join(SECTIONS)}")
    parser.add_argument("--kinds", type=_kinds, default=KINDS, help="what a size is measured for: factors,lists")
    # Of 4,000,000 users a state with seen items takes an hour more: to be built, loaded, and at rest.
    parser.add_argument("--most-with-lists", type=int, default=1_000_000, help="users; larger sizes: factors alone")
    parser.add_argument("--work", type=Path, help="folder for the data; what is made there is removed at the end")
    parser.add_argument("--items", type=int, default=50_000)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--master", default="local[2]", help="Spark's, of the bench's own sessions")
    parser.add_argument("--driver-memory", default="6g", help="heap of the bench's own sessions")
    parser.add_argument("--bootstrap-bytes", default="1g", help="size of a micro-batch while a state is built")
    parser.add_argument("--warm-up", type=int, default=6, help="micro-batches left out")
    parser.add_argument("--turns", type=int, default=25, help="micro-batches measured")
    parser.add_argument("--merge-batches", type=int, default=6)
    parser.add_argument("--rate-batches", type=int, default=3)
    # At full rate a stream has fallen behind, and its micro-batches are as large as its limits let them be.
    parser.add_argument("--rate-events", type=int, default=1_000_000, help="events of a batch at full rate, factors")
    parser.add_argument("--rate-events-lists", type=int, default=100_000, help="the same with lists")
    parser.add_argument("--freshness-users", type=int, default=250_000)
    parser.add_argument("--freshness-seconds", type=float, default=120.0)
    parser.add_argument("--freshness-rate", type=int, default=1_000, help="events a second")
    # The JVM's compilers have 50 s of the second minute (of 120 s, on two cores), 10 to 15 s of the ninth.
    parser.add_argument("--freshness-warm-up", type=float, default=480.0, help="seconds before the window begins")
    parser.add_argument("--freshness-warm-up-commits", type=int, default=20, help="and commits of recommendations")
    parser.add_argument("--freshness-jobs", type=_groups, default=JOBS[:1], help="which jobs: stream,ingest+fold_in")
    parser.add_argument("--job-master", default="local[2]", help="Spark's, of each of the jobs")
    parser.add_argument("--batches", type=int, default=2_000, help="micro-batches of the soak")
    parser.add_argument("--soak-users", type=int, default=50_000)
    options = parser.parse_args()
    if options.work is not None:
        options.work.mkdir(parents=True, exist_ok=True)
    return options


def _sections(options: argparse.Namespace) -> list[tuple[str, Callable[..., None]]]:
    """Freshness first, in a quarter of an hour; then what takes hours."""
    sections: list[tuple[str, Callable[..., None]]] = []
    if "freshness" in options.only:
        sections.append(("freshness", _freshness))
    if OF_A_SIZE & set(options.only):
        sections += [(f"size-{users}", _SizeSection(users)) for users in sorted(options.sizes)]
    if "soak" in options.only:
        sections.append(("soak", _soak))
    return sections


class _SizeSection:
    """One size; a class, because another process unpickles it."""

    def __init__(self, users: int) -> None:
        self.users = users

    def __call__(self, settings: Settings, options: argparse.Namespace, report: Report) -> None:
        plan = SizePlan(
            users=self.users,
            warm_up=options.warm_up,
            batches=options.turns,
            merge_batches=options.merge_batches,
            rate_batches=options.rate_batches,
            rate_events=options.rate_events,
            rate_events_lists=options.rate_events_lists,
            sections=frozenset(options.only) & OF_A_SIZE,
            kinds=tuple(kind for kind in options.kinds if kind != "lists" or self.users <= options.most_with_lists),
        )
        measure_size(session(settings), settings, plan, report)


def _freshness(settings: Settings, options: argparse.Namespace, report: Report) -> None:
    plan = FreshnessPlan(
        users=options.freshness_users,
        seconds=options.freshness_seconds,
        rate=options.freshness_rate,
        job_master=options.job_master,
        warm_up_seconds=options.freshness_warm_up,
        warm_up_commits=options.freshness_warm_up_commits,
        groups=options.freshness_jobs,
    )
    measure_freshness(settings, plan, report)


def _soak(settings: Settings, options: argparse.Namespace, report: Report) -> None:
    measure_soak(session(settings), settings, SoakPlan(options.soak_users, options.batches), report)


def _in_process(section: Callable[..., None], settings: Settings, options: argparse.Namespace) -> tuple[Report, bool]:
    """The section's report and whether it ran to its end; its folder is removed."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    with tempfile.TemporaryDirectory(prefix=f"{settings.work.name}-", dir=settings.work.parent) as folder:
        child = context.Process(target=_child, args=(section, replace(settings, work=Path(folder)), options, theirs))
        child.start()
        theirs.close()
        try:
            report: Report = ours.recv()
        except EOFError:  # it was killed
            report = Report()
        child.join()
    return report, child.exitcode == 0


def _child(section: Callable[..., None], settings: Settings, options: argparse.Namespace, pipe: Connection) -> None:
    report, code = Report(), 0
    try:
        section(settings, options, report)
    except Exception:
        traceback.print_exc()
        code = 1
    pipe.send(report)  # also what a section that failed had measured by then
    pipe.close()
    sys.exit(code)


def _aims(whole: Report, sizes: tuple[int, ...], items: int) -> None:
    """Put the values beside the aims; other sizes than those of the aims stand in for them."""
    values, found = whole.values, {}

    def put(key: str, source: str) -> None:
        if source in values:
            found[key] = values[source]

    small, large = min(sizes), max(sizes)
    middle = 1_000_000 if 1_000_000 in sizes else large
    with_lists = [users for users in sizes if f"seconds top-10 too {users}" in values]
    most = max(with_lists, default=small)
    for key, name, largest in (("flat", "factors alone", large), ("flat_lists", "top-10 too", most)):
        if small < largest and {f"seconds {name} {users}" for users in (small, largest)} <= values.keys():
            found[key] = values[f"seconds {name} {largest}"] / values[f"seconds {name} {small}"]
    put("copy_factors", f"copy factors alone {middle}")
    put("copy_lists", f"copy top-10 too {middle}")
    put("merge", f"merge {large}")
    put("rate_factors", f"rate factors {middle}")
    put("rate_lists", f"rate lists {middle}")
    for key in ("fresh_p50", "fresh_p95", "slope", "slope_high"):
        put(key, key)
    numbers = {"small": small, "middle": middle, "large": large, "most": most, "items": items}
    aims_table(whole, found, **{name: f"{number:,}" for name, number in numbers.items()})


def _write(report: Report) -> None:
    (OUTPUT / "stream.md").write_text("\n".join(report.lines) + "\n", encoding="utf-8")
    (OUTPUT / "stream.json").write_text(json.dumps(report.values, indent=1) + "\n", encoding="utf-8")


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _names(text: str, known: tuple[str, ...] = SECTIONS) -> tuple[str, ...]:
    names = tuple(text.split(","))
    for name in names:
        if name not in known:
            raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(known)}")
    return names


def _kinds(text: str) -> tuple[str, ...]:
    return _names(text, KINDS)


def _groups(text: str) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(name.split("+")) for name in _names(text, tuple("+".join(group) for group in JOBS)))


if __name__ == "__main__":
    sys.exit(main())
