"""Errors by row are those of the states, in order."""

import numpy as np
import pytest
from matplotlib import pyplot
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from sklearn_hyper.evaluation import RowErrorDisplay
from sklearn_hyper.metrics import relative_l2


def test_errors_by_row_are_those_of_the_states(regressor, X):
    display = RowErrorDisplay.from_estimator(regressor, X)
    expected = relative_l2(regressor.reference(X), regressor.transform(X))
    assert np.allclose(display.errors["hyper-euler K=2"], expected)
    assert np.allclose(
        display.errors["euler K=2"], relative_l2(regressor.reference(X), regressor.without_correction().transform(X))
    )


def test_errors_are_drawn_in_order_over_the_share_of_rows(regressor, X):
    display = RowErrorDisplay.from_estimator(regressor, X)
    for name, line in display.lines_.items():
        shares, errors = line.get_data()
        assert np.allclose(shares, np.arange(1, 81) / 80)
        assert np.allclose(errors, np.sort(display.errors[name]))
    assert [text.get_text() for text in display.ax_.get_legend().get_texts()] == list(display.errors)


def test_worst_rows_come_first(regressor, X):
    display = RowErrorDisplay.from_estimator(make_pipeline(FunctionTransformer(), regressor), X)
    errors = display.errors["euler K=2"]
    assert (np.diff(errors[display.worst_rows("euler K=2")]) <= 0).all()
    with pytest.raises(ValueError, match="solver must be one of 'euler K=2', 'hyper-euler K=2', got 'rk4'"):
        display.worst_rows("rk4")


def test_errors_that_have_no_logarithm_leave_a_gap():
    display = RowErrorDisplay({"some": np.array([np.inf, 0.0, 0.1, np.nan])}).plot(ax=pyplot.subplots()[1])
    assert np.array_equal(np.isnan(display.lines_["some"].get_ydata()), [True, False, True, True])
    assert set(display.worst_rows("some")[:2]) == {0, 3}


def test_a_base_solver_alone_is_drawn_alone(regressor, X):
    assert list(RowErrorDisplay.from_estimator(regressor.without_correction(), X).errors) == ["euler K=2"]
