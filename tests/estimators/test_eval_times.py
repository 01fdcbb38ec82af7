"""t_eval is one grid or one a row, ordered as the span is, within it, and padded with nan."""

import numpy as np
import pytest

from sklearn_hyper.estimators._eval_times import check_one_grid, check_t_eval

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
        (["a"], r"t_eval must be an array of numbers.*, got \['a'\]: could not convert"),
        (
            [[0.1, 0.2], [0.3]],
            r"t_eval must be an array of numbers.* padded with nan.*, got \[\[0\.1, 0\.2\], \[0\.3\]\]",
        ),
        ("abc" * 99, r"got '(abc){26}a\.\.\.: could not convert"),
        (None, "t_eval"),
    ],
)
def test_other_times_are_refused_by_name(times, message):
    with pytest.raises((ValueError, TypeError), match=message):
        check_t_eval(times, 2, (0.0, 1.0))


@pytest.mark.parametrize(
    ("times", "shown"),
    [
        (np.linspace(0.0, 1.1, 5001), r"a time is outside: \[\.\.\., 0\.99\d+(, [\d.]+){5}, \.\.\.\]\."),
        (np.append(np.linspace(0.0, 1.0, 5001), 0.5), r"it does not: \[\.\.\., 0\.99\d+(, [\d.]+){4}, 0\.5\]\."),
        (np.linspace(-0.1, 1.0, 5001), r"a time is outside: \[-0\.1(, -[\d.]+){5}, \.\.\.\]\."),
    ],
)
def test_an_error_shows_the_times_about_the_first_wrong_one_of_many(times, shown):
    with pytest.raises(ValueError, match=shown):
        check_t_eval(times, 2, (0.0, 1.0))


@pytest.mark.parametrize("unit", [1.0, 1e-9, 1e9])
@pytest.mark.parametrize("by_row", [False, True])
def test_a_time_one_rounding_beyond_an_end_is_that_end(unit, by_row):
    beyond = np.nextafter(0.3 * unit, np.inf)
    times = [[0.1 * unit, beyond], [beyond, NAN]] if by_row else [0.1 * unit, beyond]
    found = check_t_eval(times, 2, (0.0, 0.3 * unit))
    assert np.nanmax(found) == 0.3 * unit
    start = check_t_eval(times[::-1] if not by_row else [[beyond], [beyond]], 2, (0.3 * unit, 0.0))
    assert start.max() == 0.3 * unit
    with pytest.raises(ValueError, match="must increase"):  # one time, twice
        check_t_eval([0.3 * unit, beyond], 2, (0.0, 0.3 * unit))
    with pytest.raises(ValueError, match="a time is outside"):
        check_t_eval([0.3 * unit * (1 + 1e-12)], 2, (0.0, 0.3 * unit))


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (1.0, r"t_eval must have shape \(n_times,\), the same times for all rows, got \(\)\."),
        ([], r"for all rows, got \(0,\)\."),
        ([[[1.0]]], r"for all rows, got \(1, 1, 1\)\."),
        (["a"], "t_eval must be an array of numbers"),
        ([[0.5]], "here all rows share one grid.*: draw fewer"),
        ([0.5, 2.0], "a time is outside"),
    ],
)
def test_one_grid_is_asked_for_as_such(times, message):
    with pytest.raises(ValueError, match=message):
        check_one_grid(times, (0.0, 1.0), "draw fewer")
