"""The generated log: the same from the same seed, with a known truth and a known share of dirt."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from foldin.demo.synthetic import CONVERT, GENRES, NEWCOMER, Size, SyntheticLog

TINY = Size(users=200, items=240, days=6, views_per_day=400)


@pytest.fixture(scope="module")
def days():
    log = SyntheticLog(TINY, seed=1)
    return [log.day(day) for day in range(TINY.days)]


def parsed(lines):
    for line in lines:
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue


def test_the_same_seed_gives_the_same_log_and_another_seed_another(days):
    again = SyntheticLog(TINY, seed=1)
    assert [again.day(day) for day in range(TINY.days)] == days
    assert SyntheticLog(TINY, seed=2).day(0) != days[0]


def test_it_has_four_event_types_in_a_funnel_and_popular_items(days):
    events = [e for lines in days for e in parsed(lines) if e.get("event_type") in ("view", "like", "cart", "purchase")]
    types = Counter(e["event_type"] for e in events)
    assert types["view"] > types["like"] > types["cart"] > types["purchase"] > 0
    top = Counter(e["item_id"] for e in events).most_common(24)
    assert sum(n for _, n in top) > 0.25 * len(events)  # a tenth of the items


def test_users_choose_by_taste():
    """Views of the genre that a user likes most are far above one in eight."""
    log = SyntheticLog(TINY, seed=3)
    favourite = log.user_tastes.argmax(axis=1)
    own = total = 0
    for event in parsed(log.day(0)):
        user = event.get("user_id") or ""
        if user.startswith("user-") and str(event.get("item_id")).strip():
            own += event["item_id"].startswith(GENRES[favourite[int(user[5:])]])
            total += 1
    assert own > 2.5 * total / len(GENRES)


def test_tastes_drift_and_users_join(days):
    log = SyntheticLog(TINY, seed=1)
    before = log.user_tastes.copy()
    log.day(0)
    assert 0.05 < np.abs(log.user_tastes - before).mean() < 0.2
    first = [{e.get("user_id") for e in parsed(lines)} for lines in days]
    assert first[-1] - set().union(*first[:-1])


def test_some_rows_break_the_contract_in_each_way(days):
    spoilt = Counter()
    for lines in days:
        assert len(lines) > len(set(lines))  # exact repeats
        for line in lines:
            try:
                event = json.loads(line)
            except json.JSONDecodeError:
                spoilt["json"] += 1
                continue
            spoilt["user"] += event["user_id"] is None
            spoilt["item"] += not event["item_id"].strip()
            spoilt["type"] += event["event_type"] == "telepathy"
            spoilt["time"] += event["event_time"].startswith("the day")
            spoilt["future"] += event["event_time"].startswith("2199")
    assert set(spoilt) == {"json", "user", "item", "type", "time", "future"}
    assert all(n >= TINY.days for n in spoilt.values())


def test_the_convert_and_the_newcomer_have_their_story(days):
    mine = [(k, e) for k, lines in enumerate(days) for e in parsed(lines)]
    convert = {(k, e["event_id"]): e["item_id"].split("-")[0] for k, e in mine if e["user_id"] == CONVERT}
    assert {genre for (k, _), genre in convert.items() if k < TINY.days - 1} == {"jazz"}
    assert [genre for (k, _), genre in convert.items() if k == TINY.days - 1] == ["metal"] * 3
    assert {k for k, e in mine if e["user_id"] == NEWCOMER} == {TINY.days - 1}


def test_a_file_a_day(tmp_path):
    files = SyntheticLog(TINY, seed=1).write(tmp_path / "log")
    assert [file.name for file in files[:2]] == ["2025-03-03.jsonl", "2025-03-04.jsonl"]
    assert len(files) == TINY.days
