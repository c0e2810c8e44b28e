"""The worked example: the lists of one user at one moment, and why the item that was taken stood on one of them."""

from __future__ import annotations

import datetime as dt

import numpy as np
import pyarrow.compute as pc

from foldin.evaluation.contenders import Folded, Lists
from foldin.evaluation.example import PRINTED, Example, choose
from foldin.evaluation.log import EventLog, Past
from foldin.evaluation.run import Evaluation
from foldin.histories import items_of
from foldin.kernels import explain

__all__ = ["worked_example"]


def worked_example(found: Evaluation) -> Example | None:
    """A user whom foldin foretold and the stale model did not; None where there is none."""
    row = choose(found.replayed)
    if row is None:
        return None
    rows, log, start = found.replayed.rows, found.log, found.start
    user_id, item_id = (rows.column(name)[row].as_py() for name in ("user_id", "item_id"))
    user = np.array([pc.index(log.user_ids, user_id).as_py()])
    past = Past(log, int(found.steps.bounds[rows.column("step")[row].as_py()]), found.replayed.setting.repeats)
    stale = Folded("stale", lambda _: start, horizon=lambda _, serving: serving.cut)
    foldin = Folded("foldin", lambda _: start)
    at, _ = log.positions(user, past.end)
    return Example(
        user_id=user_id,
        event_time=rows.column("event_time")[row].as_py(),
        taken=item_id,
        stale=_named(log, stale.recommend(past, user, found.replayed.setting.k)),
        foldin=_named(log, foldin.recommend(past, user, found.replayed.setting.k)),
        why=_reasons(found, past, user, item_id),
        recent=tuple((_when(int(log.time[n])), log.item_ids[int(log.item[n])].as_py()) for n in at[-PRINTED:]),
        trained=_when(int(log.time[start.cut - 1])),
    )


def _reasons(found: Evaluation, past: Past, user: np.ndarray[tuple[int], np.dtype[np.int64]], item_id: str) -> str:
    """Foldin's score of the item as a sum over the history; Hu, Koren and Volinsky 2008, section 5."""
    model = found.start.model
    strengths = items_of(past.histories(user).column("history"), model.definition, model.as_of_us)
    indices = model.index_of(strengths.item)
    item = pc.index(model.item_ids, item_id).as_py()
    if item < 0 or not ((indices >= 0) & (strengths.strength > 0)).any():
        return ""  # a list by popularity has no reasons
    explanation = explain(model.items, indices, strengths.strength, item)
    said = explanation.readable(lambda index: str(model.item_ids[index].as_py()), verb="took")
    return f"Foldin listed {item_id} {said.replace('because you ', 'because the user ')}."


def _named(log: EventLog, lists: Lists | None) -> tuple[str, ...]:
    return () if lists is None else tuple(log.item_ids[int(n)].as_py() for n in lists.items[0] if n >= 0)


def _when(time_us: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(time_us / 1e6, dt.UTC)
