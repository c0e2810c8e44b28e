"""The health of an installation as one screen of text, 100 columns wide at most."""

from __future__ import annotations

import datetime as dt
import textwrap
from collections.abc import Iterator

from foldin.status import AccountHealth, Health, ModelHealth, StreamHealth

__all__ = ["render"]

_WIDTH = 100


def render(health: Health) -> str:
    """What `python -m foldin status` prints."""
    return "\n".join(line[:_WIDTH].rstrip() for line in _lines(health))


def _lines(health: Health) -> Iterator[str]:
    yield f"foldin at {health.root}, {health.at:%Y-%m-%d %H:%M:%S} UTC"
    yield ""
    if not health.tables:
        yield "No tables here: nothing was ever ingested under this root (tables.root, --root)."
        return
    for _, problem in health.problems:
        yield from textwrap.wrap(f"! {problem}", _WIDTH, subsequent_indent="  ")
    if not health.problems:
        yield "healthy"
    yield ""
    yield f"{'table':<16} {'rows':>15} {'files':>9} {'size':>10}   last commit"
    for table in health.tables:
        ago = _ago(health.at, table.last_commit)
        yield f"{table.name:<16} {table.rows:>15,} {table.files:>9,} {_size(table.bytes):>10}   {ago}"
    if health.missing:
        yield f"missing: {', '.join(health.missing)}"
    yield ""
    if health.account is not None:
        yield from _account(health.account)
        yield ""
    yield from _models(health)
    yield ""
    yield f"{'stream':<12} {'last batch':<20} {'rows/s':>8} {'lag':>9} {'freshness p50/p95/p99':>23}   {'state':<20}"
    for stream in health.streams:
        yield from _stream(health, stream)


def _account(account: AccountHealth) -> Iterator[str]:
    yield (
        f"ingested: {account.rows_in:,} rows in = {account.events:,} events + {account.quarantined:,} quarantined "
        f"+ {account.duplicates:,} duplicates"
    )
    if not account.adds_up:
        yield "! these do not add up: a row was lost or counted twice"
    for name, apart in account.apart:
        if apart > 0:  # fewer are a problem, and among those
            yield f"  {name} has {apart:,} rows more than were logged: those of a batch under way, or of another writer"
    for reason, count in account.reasons:
        yield f"  quarantined, {reason}: {count:,}"


def _models(health: Health) -> Iterator[str]:
    model = health.model
    if model is None:
        yield "model: none is active"
    else:
        since = f", activated {_ago(health.at, model.active_since)}" if model.active_since else ""
        yield f"model {model.model_version}{since}; caught up to {model.caught_up}"
        yield f"  {_trained(health.at, model)}"
    for candidate in health.candidates[:3]:
        yield f"{candidate.status} {candidate.model_version}: {_trained(health.at, candidate)}"
    if len(health.candidates) > 3:
        yield f"and {len(health.candidates) - 3} older ones"


def _trained(now: dt.datetime, model: ModelHealth) -> str:
    if model.trained is None or model.rank is None or model.parity is None:
        return "its training is not in the table"
    return (
        f"trained {_ago(now, model.trained)}: rank {model.rank}, {model.users:,} users, {model.items:,} items, "
        f"parity {model.parity:.1e}"
    )


def _stream(health: Health, stream: StreamHealth) -> Iterator[str]:
    last = f"{stream.batch_id}, {_ago(health.at, stream.at)}" if stream.at is not None else "none"
    rate = f"{stream.rows_per_second:,.0f}" if stream.rows_per_second is not None else "-"
    fresh = " / ".join(_number(seconds) for seconds in stream.freshness) + " s" if stream.freshness else "-"
    state = "-"
    if stream.state_rows is not None and stream.state_bytes is not None:
        state = f"{stream.state_rows:,} keys, {_size(stream.state_bytes)}"
    yield f"{stream.query:<12} {last:<20} {rate:>8} {_seconds(stream.lag_seconds):>9} {fresh:>23}   {state}"
    told = []
    if stream.holder is not None:
        told.append(f"run by process {stream.holder['pid']} on {stream.holder['host']} since {stream.holder['since']}")
    else:
        told.append("not running")
    if stream.waiting_files:
        told.append(f"files that wait: {stream.waiting_files:,}")
    yield f"{'':<12} {'; '.join(told)}"


def _ago(now: dt.datetime, then: dt.datetime | None) -> str:
    if then is None:
        return "never"
    seconds = max(0.0, (now - then).total_seconds())
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def _seconds(seconds: float | None) -> str:
    return f"{_number(seconds)} s" if seconds is not None else "-"


def _number(seconds: float) -> str:
    return f"{seconds:.1f}" if seconds < 1000 else f"{seconds:,.0f}"


def _size(count: int) -> str:
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"
