"""Groups: every user once, never short of rows, bounded, and hardly padded."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from foldin.kernels.grouping import BLOCK_ELEMENTS, PADDING, groups_by_length


@given(st.lists(st.integers(0, 5000), max_size=200), st.sampled_from([1, 8, 64, 256]))
def test_every_user_with_rows_is_in_one_group_that_is_long_enough(lengths: list[int], rank: int) -> None:
    given_lengths = np.array(lengths, dtype=np.int64)
    found: list[int] = []
    for users, n in groups_by_length(given_lengths, rank):
        assert given_lengths[users].max() == n
        found += users.tolist()
        assert len(users) == 1 or len(users) * n * rank <= BLOCK_ELEMENTS
        assert (len(users) * n - given_lengths[users].sum()) * rank <= PADDING
    assert sorted(found) == np.flatnonzero(given_lengths).tolist()


def test_a_few_users_of_different_lengths_share_a_group_and_many_do_not() -> None:
    assert len(list(groups_by_length(np.arange(1, 9), rank=8))) == 1
    many = np.repeat(np.arange(1, 9), 5000)
    groups = list(groups_by_length(many, rank=64))
    padded = sum(len(users) * n for users, n in groups) / many.sum()
    assert padded < 1.02
