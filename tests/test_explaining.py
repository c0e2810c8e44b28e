"""Explanations: they sum to the score, name the user's own items, and say so in a sentence."""

from __future__ import annotations

import pytest

from foldin.explaining import UnknownItemError, explain, explain_list
from foldin.reading import recommendations_for
from foldin.schemas import EVENTS
from world import bought, fold_once


def test_contributions_sum_to_the_scores_of_the_list_after_a_fold_in(folded, config, events_frame):
    folded.append(events_frame(bought("a", "u1", "i11"), bought("b", "u1", "unheard-of")), EVENTS)
    fold_once(folded, config)
    scores = dict(recommendations_for(folded, "u1").items)
    reasons = explain_list(folded, "u1")
    assert [r.item_id for r in reasons] == list(scores)
    for reason in reasons:
        parts = reason.contributions()
        assert parts.keys() == {"i7", "i8", "i9", "i10", "i11"}  # u1's four and the new one
        assert sum(parts.values()) == pytest.approx(scores[reason.item_id], abs=1e-5)
        assert reason.explanation.score == pytest.approx(scores[reason.item_id], abs=1e-5)


def test_one_item_is_explained_in_a_sentence(world):
    text = str(explain(world, "u1", "i6"))
    assert text.startswith("i6: because you chose i")
    assert "%)" in text


def test_an_item_that_the_model_does_not_know_is_named(world):
    with pytest.raises(UnknownItemError, match="no factors of item 'unheard-of'"):
        explain(world, "u1", "unheard-of")


def test_a_list_by_popularity_has_no_reasons(world):
    assert explain_list(world, "nobody") == []
