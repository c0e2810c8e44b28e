"""The whole evaluation on a small log whose truth is known: users' tastes turn half way through."""

from __future__ import annotations

import numpy as np
import pytest

from foldin.errors import FoldinError
from foldin.evaluation.log import EventLog, Past
from foldin.evaluation.measures import gains_by_history, summary
from foldin.evaluation.report import write_report
from foldin.evaluation.run import Plan, evaluate
from foldin.histories import HistoryDefinition, histories, slim
from foldin.schemas import EVENTS
from world import bought

HOUR = 3_600_000_000
START = 1_740_787_200_000_000  # 2025-03-01


@pytest.fixture
def drifting(tables, events_frame):
    """Forty users, forty items of two tastes; until March each user buys of one taste, then of the other."""
    rng, rows = np.random.default_rng(3), []
    for n in range(1200):
        user = int(rng.integers(0, 40))
        late = n >= 800
        taste = (user + late) % 2
        item = taste * 20 + int(rng.integers(0, 20))
        day, hour = (n // 40 % 20 + 1, n % 24) if not late else (1 + (n - 800) // 200, (n - 800) // 9 % 24)
        when = f"2025-{'03' if late else '02'}-{day:02d} {hour:02d}:{n % 60:02d}:00"
        rows.append(bought(f"e{n}", f"u{user}", f"i{item}", when))
    rows.append(bought("new", "newcomer", "i1", "2025-03-01 01:00:00"))
    rows.append(bought("unknown", "u1", "never seen", "2025-03-01 02:00:00"))
    tables.append(events_frame(*rows), EVENTS)
    return tables


def plan(**changes) -> Plan:
    given = {
        "start_us": START, "end_us": START + 48 * HOUR, "k": 5, "batch_events": 20, "batch_us": 0, "nightly": True,
        "oracle_steps": 0, "repeats": False, "tune_us": 72 * HOUR,
    }  # fmt: skip
    return Plan(**(given | changes))


def test_what_the_replay_holds_of_users_is_what_the_stream_holds(drifting, config):
    definition = HistoryDefinition.of(config)
    events = drifting.read(EVENTS)
    log = EventLog.of(events, definition.types)
    past = Past(log)
    past.meet(len(log))
    mine = past.histories(np.arange(len(log.user_ids)))
    theirs = histories(slim(events, definition.types), definition.max_events).collect()
    found = {
        user: (sorted(tuple(e.values()) for e in history), set(seen))
        for user, history, seen in zip(*(mine.column(n).to_pylist() for n in range(3)), strict=True)
    }
    assert found == {r["user_id"]: (sorted(tuple(e) for e in r["history"]), set(r["seen"])) for r in theirs}


def test_fold_in_follows_users_whose_tastes_turn_and_the_stale_model_does_not(drifting, config, tmp_path):
    found = evaluate(drifting, config, plan())
    rows = {row.contender: row for row in summary(found)}
    assert rows["foldin"].hit.low > rows["stale"].hit.high
    assert set(found.kind.tolist()) == {"known", "new"}
    assert found.reachable.sum() == len(found.reachable) - 1  # the item that nobody had before
    assert len(found.observations.row) <= found.events
    assert len(found.trainings) == 2  # of the start and of one midnight
    longer = {label: gain.mean for label, count, gain in gains_by_history(found, "foldin", "stale") if count}
    assert max(longer.values()) > 0
    path = write_report(found, tmp_path / "report", title="Test", command="test")
    text = path.read_text()
    assert "better than *stale*" in text
    assert "only items new to the user count" in text
    for picture in ("contenders", "age", "history"):
        assert (path.parent / f"{picture}.png").stat().st_size > 5000
    for row in rows.values():
        assert str(row.hit) in text
        assert 0 <= row.coverage <= 1


def test_the_oracle_is_retrained_before_every_step(drifting, config, tmp_path):
    found = evaluate(drifting, config, plan(nightly=False, oracle_steps=3))
    assert len(found.oracle.row) <= 60
    assert found.oracle.seconds["oracle, retrained every step"] > found.oracle.seconds["foldin"]
    assert "Against the oracle" in write_report(found, tmp_path, title="Test", command="test").read_text()


def test_a_test_without_events_or_without_a_past_is_an_error(drifting, config):
    with pytest.raises(FoldinError, match="there must be some of both"):
        evaluate(drifting, config, plan(start_us=0, end_us=HOUR))
    with pytest.raises(FoldinError, match="there must be some of both"):
        evaluate(drifting, config, plan(start_us=START + 9000 * HOUR, end_us=START + 9001 * HOUR))
