"""t_eval is one grid or one a row, ordered as the span is, within it, and padded with nan."""

import numpy as np
import pytest

from sklearn_hyper.estimators._eval_times import check_t_eval

NAN = np.nan


@pytest.mark.parametrize("times", [[0.0, 0.5, 1.0], [[0.1, 0.2], [0.3, NAN]], [1], np.array([0.25], "float32")])
def test_times_come_back_as_float64(times):
    n_rows = len(times) if np.ndim(times) == 2 else 7
    result = check_t_eval(times, n_rows, (0.0, 1.0))
    assert result.dtype == np.float64
    np.testing.assert_array_equal(result, np.asarray(times, dtype=np.float64))


def test_times_go_back_where_the_span_does():
    assert check_t_eval([2.0, 1.0, 0.0], 3, (2.0, 0.0)).tolist() == [2.0, 1.0, 0.0]
    with pytest.raises(ValueError, match=r"must decrease, as t_span=\(2.0, 0.0\) does"):
        check_t_eval([0.0, 1.0], 3, (2.0, 0.0))


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([], "must have shape"),
        ([[[0.1]]], "must have shape"),
        ([[0.1], [0.2], [0.3]], r"\(2, n_times\)"),
        ([0.1, NAN], "leave it out"),
        ([[0.1], [NAN]], "a time for every row.* in row 1"),
        ([[0.1, 0.2, 0.3], [0.1, NAN, 0.3]], "nan stands between times in row 1"),
        ([0.5, 0.5], "must increase"),
        ([[0.5, 0.4], [0.2, 0.1]], "must increase.* in row 0 and 1 more"),
        ([0.5, 1.5], "within t_span"),
        ([[0.1, 0.2], [-0.1, NAN]], "a time is outside in row 1"),
        ([0.1, np.inf], "infinity"),
        (["a"], "could not convert"),
        (None, "t_eval"),
    ],
)
def test_other_times_are_refused_by_name(times, message):
    with pytest.raises((ValueError, TypeError), match=message):
        check_t_eval(times, 2, (0.0, 1.0))
