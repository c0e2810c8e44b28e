"""The report of a replay: Markdown and pictures in a folder, a summary for the terminal, a table for a README.

Every sentence is made from the figures of the run: where they say other than was hoped for, so does the report.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from foldin.errors import FoldinError
from foldin.evaluation.example import Example, safe
from foldin.evaluation.intervals import LEAST_USERS, RESAMPLES, Interval
from foldin.evaluation.measures import METRICS, Measures, Slice, measures_of
from foldin.evaluation.pictures import KIND_NAMES, PICTURES, human
from foldin.evaluation.results import Replayed
from foldin.evaluation.verdicts import FAILS, HOLDS, UNKNOWN, verdicts

__all__ = ["RAW", "check_folder", "headline_table", "summary", "write_report"]

MARK = "<!-- foldin evaluation report: made by jobs/evaluate.py, which overwrites it -->"
RAW = "results"
"""Folder of the raw results, a Delta table, beside the report."""


def check_folder(folder: Path) -> None:
    """Check that a report may be written there.

    Raises:
        FoldinError: it is a file, or has a README.md that is no report of ours.
    """
    if folder.exists() and not folder.is_dir():
        raise FoldinError(f"{folder} is not a folder: name another for the report")
    page = folder / "README.md"
    if not page.exists() and not page.is_symlink():
        there = [name for name in (RAW, *(f"{picture}.png" for picture in PICTURES)) if (folder / name).exists()]
        if there:
            raise FoldinError(f"{folder / there[0]} would be overwritten: name another folder for the report")
        return
    try:
        ours = page.read_bytes().startswith(MARK.encode())
    except OSError:
        ours = False
    if not ours:
        raise FoldinError(
            f"{page} is not a report of foldin, it is not overwritten: name another folder for the report"
        )


def write_report(folder: Path, replayed: Replayed, example: Example | None = None, *, raw: str = RAW) -> Path:
    """Write README.md and its pictures; an earlier report in the folder is replaced. Returns the path of README.md.

    Args:
        raw: where the raw results lie, from the folder or as a URI.

    Raises:
        FoldinError: there is nothing to report, or the folder has a README.md that is no report of ours.
    """
    check_folder(folder)
    measures = measures_of(replayed)
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for name, draw in PICTURES.items():
        figure, path = draw(measures), folder / f"{name}.png"
        if figure is None:
            path.unlink(missing_ok=True)  # of an earlier report, which had it
            continue
        figure.savefig(path, metadata={"Software": None})
        drawn.append(name)
    page = folder / "README.md"
    page.write_text(MARK + "\n" + _page(measures, drawn, example, raw), encoding="utf-8")
    return page


def headline_table(replayed: Replayed) -> str:
    """The contenders over all events, as a Markdown table under a line that states the setting."""
    measures = measures_of(replayed)
    return f"{_setting(measures)}\n\n{_headline(measures)}"


def summary(replayed: Replayed) -> str:
    """A few lines for the terminal."""
    measures = measures_of(replayed)
    every = measures.every
    what = f"{every.events:,} events of {every.users:,} users, lists of {measures.setting.k}"
    lines = [f"{measures.setting.title}: {what}, repeated items {_repeats(measures)}"]
    width = max(len(name) for name in every.scores)
    lines += [f"  {name:<{width}}  hit rate {every.hit(name).percent}" for name in every.scores]
    lines += [
        f"  {verdict.outcome + ':':<15} {verdict.aim}" + f" – {verdict.figures or verdict.why}"
        for verdict in verdicts(measures)
    ]
    return "\n".join(lines)


def _page(measures: Measures, drawn: Sequence[str], example: Example | None, raw: str) -> str:
    pictures = {name: f"![{title}]({name}.png)\n\n*{text}*" for name, (title, text) in _captions(measures).items()}

    def picture(name: str) -> list[str]:
        return [pictures[name]] if name in drawn else []

    sections: list[tuple[str, list[str]]] = [
        (f"What fold-in is worth: {safe(measures.setting.title)}", [_finding(measures), _setting(measures)]),
        ("", [_headline(measures), *picture("headline")]),
        ("Does it do what it is meant to?", [_verdicts(measures)]),
        ("How late may the events be?", picture("freshness")),
        ("What does an older model cost?", picture("age")),
        ("Who gains?", [*picture("gain"), _groups(measures)]),
        ("Within an order, and between orders", [_orders(measures)]),
        ("Against retraining at every step", [_oracle(measures)]),
        ("What does it cost?", [*picture("cost"), _costs(measures)]),
        ("One user", [example.markdown()] if example else ["In no event foldin lists what the stale model does not."]),
        ("What the lists look like", [_shown(measures)]),
        ("How it was measured", [_method(measures, raw)]),
    ]
    parts = []
    for number, (title, texts) in enumerate(sections):
        if texts:
            parts += [f"{'##' if number else '#'} {title}"] if title else []
            parts += texts
    return "\n\n".join(parts) + "\n"


def _finding(measures: Measures) -> str:
    """The plain words at the top."""
    every, setting = measures.every, measures.setting
    gain = every.gain("stale")
    if not gain.known:
        sure = f"With {every.users} users there is no saying whether that is chance"
    elif not gain.excludes_zero:
        sure = f"That may be chance: the difference is {gain.points}"
    else:
        sure = f"The difference is {gain.points}; in brackets stands its 95% interval"
    says = (
        f"Just before a user took something, every contender made a list of {setting.k} items. **What was taken next "
        f"was on foldin's list in {every.hit('foldin').value:.1%} of {every.events:,} events, on that of the model "
        f"that nobody updates in {every.hit('stale').value:.1%}.** {sure}."
    )
    if measures.together.events:
        rest = f"without them the difference is {measures.apart.gain('stale').points}"
        says += (
            f" {measures.together.events / every.events:.0%} of the events are of an order that is already begun (the "
            f"same user, the same time, an earlier micro-batch); {rest if measures.apart.events else 'no others'}."
        )
    ahead = [name for name, gains in every.gains.items() if gains["hit"].excludes_zero and gains["hit"].value < 0]
    if ahead:
        better = (f"{setting.called(name)} ({every.hit(name).value:.1%})" for name in ahead)
        says += f" Better than foldin: {', '.join(better)}."
    outcomes = [verdict.outcome for verdict in verdicts(measures)]
    counts = [(outcomes.count(HOLDS), "met"), (outcomes.count(FAILS), "not met"), (outcomes.count(UNKNOWN), UNKNOWN)]
    return f"{says} Of {len(outcomes)} aims: {', '.join(f'{count} {what}' for count, what in counts if count)}."


def _repeats(measures: Measures) -> str:
    return "allowed" if measures.setting.repeats else "excluded"


def _setting(measures: Measures) -> str:
    setting, every = measures.setting, measures.every
    start, end = (f"{datetime.fromtimestamp(us / 1e6, UTC):%Y-%m-%d}" for us in (setting.start_us, setting.end_us))
    batch = f"{setting.batch_events:,} events" if setting.batch_events else human(setting.batch_seconds)
    away = 1 - measures.reachable.events / every.events
    return (
        f"*{safe(setting.title)}, {start} to {end}; lists of {setting.k}; {setting.steps:,} micro-batches of {batch}; "
        f"repeated items {_repeats(measures)}; {every.events:,} events of {every.users:,} users; {away:.1%} of "
        f"the events are of items that the start's model does not know: misses for it, they stay in the count.*"
    )


def _headline(measures: Measures) -> str:
    """Hit rate, NDCG, MRR, and what foldin has more."""
    every, k = measures.every, measures.setting.k
    head = ["contender", f"hit rate at {k}", f"NDCG at {k}", f"MRR at {k}", "foldin ahead of it, points"]
    head += ["hit rate, reachable events"]
    rows = []
    for name, scores in every.scores.items():
        ahead = _bare(every.gain(name)) if name != "foldin" else "–"
        rows.append(
            [
                measures.setting.called(name),
                *(scores[m].percent for m in METRICS),
                ahead,
                measures.reachable.hit(name).percent,
            ]
        )
    left = [name for name in measures.replayed.contenders if name not in measures.complete and name != "oracle"]
    note = f"\n\nNot asked at every event, not shown: {', '.join(left)}." if left else ""
    return _table(measures, head, rows, "Reachable: the start's model has factors of the item") + note


def _verdicts(measures: Measures) -> str:
    rows = [[v.aim, f"**{v.outcome}**", v.figures or "–", v.why] for v in verdicts(measures)]
    return _table(measures, ["aim", "outcome", "figures", "where from, or why not"], rows, "Differences of hit rates")


def _groups(measures: Measures) -> str:
    others = [name for name in ("stale", "nightly", "additive", "recent") if name in measures.complete]
    head = [
        "users",
        "events",
        "foldin's hit rate",
        *(f"ahead of {measures.setting.called(name)}, points" for name in others),
    ]
    parts: list[tuple[str, Slice]] = [(f"{part.label} events before", part) for part in measures.histories]
    parts += [(KIND_NAMES[part.label].replace("\n", " "), part) for part in measures.kinds]
    rows = [
        [label, f"{part.events:,}", part.hit("foldin").percent, *(_bare(part.gain(name)) for name in others)]
        for label, part in parts
    ]
    return _table(measures, head, rows, "By history length before the micro-batch, and by kind of user")


def _orders(measures: Measures) -> str:
    share = measures.together.events / measures.every.events
    others = [name for name in measures.every.gains if name in measures.apart.gains]
    parts = [part for part in (measures.apart, measures.together) if part.events]
    rows = [
        [measures.setting.called(name), _bare(measures.every.gain(name)), *(_bare(part.gain(name)) for part in parts)]
        for name in others
    ]
    text = (
        "Logs of a shop often give all lines of an order one time. A small micro-batch cuts such an order in two: its "
        f"first lines are learned before its last are judged. That is so for {share:.1%} of the events here. Who "
        "cannot learn before an order is complete gets the gain of the others only."
    )
    head = ["foldin ahead of, points", "all events", *(f"{part.label} ({part.events:,})" for part in parts)]
    return f"{text}\n\n{_table(measures, head, rows, 'Hit rate of foldin minus that of another')}"


def _oracle(measures: Measures) -> str:
    oracle = measures.oracle
    if oracle is None:
        return "The oracle, which retrains from scratch before every micro-batch, was not replayed."
    text = (
        f"The oracle was retrained from scratch before {measures.setting.oracle_steps:,} of {measures.setting.steps:,} "
        f"micro-batches; this compares all contenders on the {oracle.events:,} events of those. "
    )
    if measures.closed is None:
        text += f"Oracle minus stale is {measures.gap.points}: there is no gap of which foldin could close a share."
    else:
        text += f"Of the gap between stale and oracle, {measures.gap.points}, foldin closes {measures.closed.percent}."
    rows = [
        [measures.setting.called(name), *(scores[metric].percent for metric in METRICS)]
        for name, scores in oracle.scores.items()
    ]
    k = measures.setting.k
    head = ["contender", *(f"{name} at {k}" for name in ("hit rate", "NDCG", "MRR"))]
    return f"{text}\n\n{_table(measures, head, rows, 'Only events at which the oracle was asked')}"


def _costs(measures: Measures) -> str:
    costs = measures.costs
    rows = [
        ["numerical work of a micro-batch", _seconds(costs.kernel), _share(costs.kernel_share)],
        ["folding it as a Spark job (without state and tables)", _seconds(costs.spark), _share(costs.spark_share)],
        [
            "a training from scratch",
            _seconds(costs.train),
            _share(costs.train / costs.train if costs.train else math.nan),
        ],
    ]
    trainings = len(measures.replayed.cost.train_seconds)
    batch = f"{_number(costs.batch_events)} events a micro-batch"
    note = f"On the machine of the run; median of {trainings} trainings; {batch}"
    return _table(measures, ["what", "time", "share of a training"], rows, note)


def _shown(measures: Measures) -> str:
    truth = measures.replayed.truth
    head = [
        "contender",
        "coverage",
        "novelty, bits",
        "lists by popularity",
        *(["true affinity, of the best"] * bool(truth)),
    ]
    rows = []
    for name, shown in measures.replayed.shown.items():
        late = measures.replayed.lags.get(name)
        if name not in measures.complete and late is None:
            continue  # of some micro-batches only: it covers less for that alone
        who = measures.setting.called(name) if late is None else f"foldin, {human(late)} late"
        row = [who, _share(shown.coverage), _number(shown.novelty, ".2f"), _share(shown.popularity_lists)]
        rows.append(row + ([_share(truth.get(name, math.nan))] if truth else []))
    note = (
        "Coverage: share of the items known at the start that are on any list. Novelty: -log2 of the share of users "
        "who had a listed item before the start, mean. Lists by popularity: the user has no factors"
    )
    return _table(measures, head, rows, note)


def _method(measures: Measures, raw: str) -> str:
    setting = measures.setting
    how = "tuned before the start" if setting.tuned else "not tuned: there was nothing before to tune it on"
    recent = f" Recent popularity counts the last {setting.window_days:g} days, {how}."
    lines = [
        "Events in order of time; a micro-batch is judged first, by lists that were made before it, and learned after.",
        f"Repeated items are {_repeats(measures)}"
        + (": an item that the user had may be listed, and counts." if setting.repeats else
           ": what a user had before is on no list and is not judged.")
        + (recent if "recent" in measures.replayed.contenders else ""),
        f"The start's model was {setting.model_age_days:.2g} days old at the start.",
        "Hit: the item is on the list. NDCG: 1/log2(1 + place). MRR: 1/place. Off the list each is 0. Means of events.",
        f"Intervals: 95%, percentiles of {RESAMPLES:,} resamples of users, each with all of their events.",
        f"Differences are paired, event by event. With fewer than {LEAST_USERS} users there is no interval.",
        f"Raw results, one row an event with every contender's place: the Delta table [`{raw}/`]({raw}).",
    ]  # fmt: skip
    return "\n".join(f"- {line}" for line in lines)


def _captions(measures: Measures) -> dict[str, tuple[str, str]]:
    """By picture: what it shows, and how to read it."""
    repeats = f"Repeated items {_repeats(measures)}."
    least = min((part.events for part in measures.ages), default=0)
    return {
        "headline": (
            "Hit rate of every contender",
            "A bar is the share of events whose item was on the contender's list: longer is better. Whiskers are 95% "
            "intervals of each alone; for differences read the table, which is paired. " + repeats,
        ),
        "freshness": (
            "Hit rate against how late the stream is",
            "Left: every event is learned before the next micro-batch. To the right foldin learns of events later and "
            "later; at never it is the stale model. Where the band (95%, paired with the stale model) is off the "
            "dashed line, the difference is not chance. The vertical axis need not start at 0. " + repeats,
        ),
        "age": (
            "Hit rate against the age of the model",
            "Foldin and the stale model use the same item factors, which get older to the right. Where the band (95%, "
            "paired) is off the stale model's line, the difference is not chance. A point is a span of days with at "
            f"least {least:,} events. " + repeats,
        ),
        "gain": (
            "Gain over the stale model by history length and kind of user",
            "A bar is foldin's hit rate minus the stale model's on the same events, in percentage points; a whisker "
            "(95%) that crosses 0 is a gain that may be chance. " + repeats,
        ),
        "cost": (
            "Machine time an event of ways to keep lists fresh",
            f"Each step of the axis is ten times the one before. Retraining {measures.setting.retrained} is spread "
            "over the events of that time, for which its lists get older. " + repeats,
        ),
    }


def _table(measures: Measures, head: Iterable[str], rows: Iterable[Iterable[str]], note: str) -> str:
    """Under every table: what it is of, and whether repeated items are allowed."""
    head = list(head)
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head), *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines) + f"\n\n<sub>{note}. Repeated items {_repeats(measures)}.</sub>"


def _bare(difference: Interval) -> str:
    """Of a table whose head says that these are points."""
    return difference.points.replace(" points", "")


def _seconds(value: float) -> str:
    return human(value) if math.isfinite(value) else "–"


def _share(value: float) -> str:
    """One digit after the point, two where that would be little of a number."""
    return _number(value, ".1%" if value == 0 or value >= 0.1 else ".2%")


def _number(value: float, style: str = ",.0f") -> str:
    """What is not known is a dash, not a number."""
    return format(value, style) if math.isfinite(value) else "–"
