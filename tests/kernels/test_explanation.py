"""Contributions of the own history: they are the score, and they are readable."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import model, random_histories

from foldin.errors import InvalidInputError, SingularSystemError
from foldin.kernels import Histories, Objective, explain, fold_in, prepare


@settings(max_examples=60, deadline=None)
@given(
    st.builds(
        Objective,
        reg_param=st.sampled_from([0.01, 0.5]),
        alpha=st.sampled_from([1.0, 40.0]),
        implicit_prefs=st.booleans(),
        nonnegative=st.booleans(),
    ),
    st.integers(0, 60),
    st.integers(0, 199),
    st.integers(0, 2**32 - 1),
)
def test_contributions_sum_to_the_score(objective: Objective, n: int, item: int, seed: int) -> None:
    items = model(objective, seed=seed)
    history = random_histories([n], seed=seed)
    x = fold_in(items, history)[0]
    why = explain(items, history.indices, history.strengths, item)
    scale = np.linalg.norm(items.factors[item]) * np.linalg.norm(x)
    assert abs(why.score - float(items.factors[item] @ x)) <= 1e-5 * max(scale, 1e-30)
    assert why.score == pytest.approx(why.contributions.sum())
    np.testing.assert_allclose(why.contributions, why.weights * why.similarities)
    assert len(why.contributions) == n


def test_on_paper_one_event_explains_its_own_item() -> None:
    items = prepare(np.array([[1.0, 0.0], [0.0, 2.0]]), Objective(0.5, 3.0), model_version="m")
    why = explain(items, [1], [1.0], 1)
    # A₂₂ = 4 + 3 · 4 + 0.5, so ŝ = 2 · 2 / 16.5; the event weighs 1 + 3.
    assert why.similarities[0] == pytest.approx(4 / 16.5)
    assert why.weights[0] == 4.0
    assert why.score == pytest.approx(16 / 16.5)
    assert explain(items, [1], [1.0], 0).score == 0.0


def test_rows_that_say_nothing_contribute_nothing_and_keep_their_place() -> None:
    items = model(Objective(0.1))
    why = explain(items, [3, -1, 5, 7], [1.0, 4.0, -2.0, 0.0], 9)
    assert why.indices.tolist() == [3, -1, 5, 7]
    assert why.contributions[0] != 0.0
    assert not why.contributions[1:].any()
    assert explain(items, [], [], 9).score == 0.0
    assert explain(items, [-1], [2.0], 9).score == 0.0


def test_it_reads_as_a_sentence_with_shares() -> None:
    y = np.array([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    ids = ["tea", "cup", "coffee", "lamp"]
    items = prepare(y, Objective(0.1, 1.0), model_version="m", item_ids=ids)
    # Tea with strength 3 weighs 4, tea again 2, coffee 2, the other way round: 6 : -2 of 8.
    why = explain(items, [0, 2, 0], [3.0, 1.0, 1.0], 1)
    assert why.readable() == "because you bought tea (75%); despite coffee (-25%)"
    assert why.readable(lambda i: f"<{i}>", verb="saw") == "because you saw <0> (75%); despite <2> (-25%)"
    assert why.shares().tolist() == pytest.approx([0.5, -0.25, 0.25])


def test_more_reasons_than_asked_for_are_summed_up() -> None:
    items = prepare(np.ones((6, 1)), Objective(0.1, 1.0), model_version="m")
    why = explain(items, [1, 2, 3, 4], [3.0, 2.0, 1.0, 1.0], 0)  # weights 4, 3, 2, 2 of 11
    assert why.readable(limit=1) == "because you bought item 1 (36%) and 3 more (64%)"


def test_no_reason_is_said_too() -> None:
    why = explain(model(Objective(0.1)), [], [], 0)
    assert why.readable() == "nothing in the history speaks for or against it"
    assert not why.shares().any()


def test_wrong_items_and_singular_systems_are_refused() -> None:
    items = model(Objective(0.1))
    for item in (-1, 200):
        with pytest.raises(InvalidInputError, match=f"item {item} is not one of"):
            explain(items, [1], [1.0], item)
    with pytest.raises(InvalidInputError, match=r"strengths\[0\] is nan"):
        explain(items, [1], [np.nan], 0)
    with pytest.raises(SingularSystemError, match="regParam 0"):
        explain(model(Objective(0.0, implicit_prefs=False)), [1], [1.0], 0)


def test_the_sum_holds_for_histories_of_mixed_signs_after_a_batched_fold_in() -> None:
    items = model(Objective(0.05, 10.0), rank=16)
    histories: Histories = random_histories([3, 40, 200])
    factors = fold_in(items, histories)
    for user in range(3):
        rows = slice(histories.indptr[user], histories.indptr[user + 1])
        why = explain(items, histories.indices[rows], histories.strengths[rows], 11)
        assert abs(why.score - items.factors[11] @ factors[user]) < 1e-5
