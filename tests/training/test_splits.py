"""Holding rows out."""

import numpy as np
import pytest

from sklearn_hyper.training.splits import count_held_out, split_rows


@pytest.mark.parametrize(("fraction", "n", "at_least", "expected"), [
    (0.1, 100, 0, 10), (0.1, 4, 0, 0), (0.1, 4, 1, 1), (None, 50, 0, 0), (0.5, 5, 0, 2), (0.9, 10, 1, 9),
])  # fmt: skip
def test_a_share_of_the_rows_or_as_many_as_there_have_to_be(fraction, n, at_least, expected):
    assert count_held_out(fraction, n, at_least=at_least) == expected


def test_a_row_has_to_be_left_to_train_on():
    with pytest.raises(
        ValueError,
        match=r"=0\.999 of n_samples=80 leaves no row to train on, with 80 held out; lower it, set it to None",
    ):
        count_held_out(0.999, 80)
    with pytest.raises(
        ValueError, match=r"with 1 held out; lower it, or give more rows. At least 2 samples are needed"
    ):
        count_held_out(0.1, 1, at_least=1)


def test_every_row_is_on_one_side():
    train, valid = split_rows(0.3, 20, seed=4)
    assert len(valid) == 6 and sorted([*train, *valid]) == [*range(20)]
    np.testing.assert_array_equal(valid, split_rows(0.3, 20, seed=4)[1])
    assert set(valid) != set(split_rows(0.3, 20, seed=5)[1])


def test_where_nothing_is_held_out_rows_stay_in_order():
    for fraction in (None, 0.01):
        train, valid = split_rows(fraction, 12, seed=0)
        assert valid is None and train.tolist() == [*range(12)]
