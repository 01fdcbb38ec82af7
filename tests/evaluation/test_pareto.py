"""The front is the set of points that no other point dominates."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from sklearn_hyper.evaluation import pareto_front

# Few distinct values, so that ties are the rule.
points = st.lists(st.tuples(*[st.sampled_from([0.0, 1.0, 2.0, np.inf, np.nan])] * 2), max_size=12)


def _dominates(a, b):
    return a[0] <= b[0] and a[1] <= b[1] and a != b


@given(points)
def test_front_is_what_the_definition_says(points):
    costs, errors = np.array(points, dtype=float).reshape(-1, 2).T
    known = [not np.isnan(point).any() for point in points]
    expected = [
        there and not any(_dominates(other, point) for other, real in zip(points, known, strict=True) if real)
        for point, there in zip(points, known, strict=True)
    ]
    front = pareto_front(costs, errors)
    assert front.dtype == bool and front.tolist() == expected


def test_equal_points_are_on_the_front_together():
    assert pareto_front([1, 1, 2, 2], [3, 3, 3, 1]).tolist() == [True, True, False, True]


def test_a_nan_is_never_on_the_front_and_dominates_nothing():
    assert pareto_front([0, np.nan, 1], [np.nan, 0, 5]).tolist() == [False, False, True]


def test_front_does_not_depend_on_the_units():
    costs, errors = np.random.default_rng(0).uniform(1, 9, (2, 40))
    front = pareto_front(costs, errors)
    assert 0 < front.sum() < 40
    assert (pareto_front(1e6 * costs, np.log(errors)) == front).all()


@pytest.mark.parametrize(("costs", "errors"), [([1, 2], [1]), ([[1]], [[1]]), (1, 2)])
def test_shapes_that_do_not_match_are_named(costs, errors):
    with pytest.raises(ValueError, match=r"one-dimensional and of one length, got shapes \("):
        pareto_front(costs, errors)
