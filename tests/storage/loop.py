"""A small log that lands in two parts, and the whole loop over it by the library, on tables wherever they lie."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

from foldin.config import Config
from foldin.fold_in import FoldIn
from foldin.ingest import Ingest
from foldin.maintenance import maintain
from foldin.mapping import contract
from foldin.recommending import recommend_all
from foldin.tables import Tables
from foldin.training import train
from world import bought, initial_rows

FIRST = initial_rows()
SECOND = [bought("n1", "new", "i0"), bought("n2", "new", "i1"), bought("n3", "u3", "i9"), FIRST[0]]
"""Two people, one of them new, and a row that had landed before."""

BROKEN = "{broken"


def lines(rows: list[tuple[Any, ...]], *more: str) -> str:
    """A file of JSON lines."""
    names = ("event_id", "user_id", "item_id", "event_type", "value", "event_time")
    return "".join(f"{line}\n" for line in (*(json.dumps(dict(zip(names, row, strict=True))) for row in rows), *more))


def events_of_both() -> Counter[tuple[str, str, str]]:
    """What must stand in `events`: (event_id, user_id, item_id)."""
    return Counter({row[:3]: 1 for row in [*FIRST, *SECOND]})


def rows_landed() -> int:
    """The rows of both parts, the broken one counted in."""
    return len(FIRST) + 1 + len(SECOND)


def run_loop(tables: Tables, config: Config, land: Callable[[str, str], object]) -> int:
    """Both parts landed, ingested, trained on (the first), folded, listed and looked after; the number of lists."""
    land("1.json", lines(FIRST, BROKEN))
    account = Ingest(tables, config, contract(config)).run(once=True)
    assert (account.events, account.quarantined.total(), account.duplicates) == (len(FIRST), 1, 0)
    train(tables, config)
    assert FoldIn(tables, config).run(once=True) == 0  # all that there is was trained on
    land("2.json", lines(SECOND))
    account = Ingest(tables, config, contract(config)).run(once=True)
    assert (account.events, account.duplicates) == (3, 1)
    assert FoldIn(tables, config).run(once=True) == 2
    users = recommend_all(tables, config)
    maintain(tables, config)
    return users
