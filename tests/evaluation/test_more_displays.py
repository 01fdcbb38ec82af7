"""Displays of errors by row, of coverage and of trajectories draw what was measured."""

import builtins

import numpy as np
import pytest
import torch
from matplotlib import pyplot
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from small_hypersolvers import Swirl, make_learner, make_regressor

from sklearn_hyper import HypersolverRegressor, NeuralODE
from sklearn_hyper.calibration import NotCalibratedError
from sklearn_hyper.evaluation import CoverageDisplay, RowErrorDisplay, TrajectoryDisplay
from sklearn_hyper.metrics import relative_l2

DISPLAYS = [RowErrorDisplay, CoverageDisplay, TrajectoryDisplay]


@pytest.fixture(scope="module")
def calibrated():
    rows = np.random.default_rng(1).uniform(-1, 1, (700, 2))
    return make_learner().fit(rows[:100]).conformalize(rows[100:400]), rows[400:]


# ---------------------------------------------------------------------- errors by row
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


# ---------------------------------------------------------------------- coverage
def test_coverage_is_counted_against_dopri5(calibrated):
    hypersolver, rows = calibrated
    display = CoverageDisplay.from_estimator(hypersolver, rows, coverages=[0.9, 0.5])
    states, bound = hypersolver.transform(rows, return_bound=True, coverage=0.5)
    errors = np.linalg.norm(states - hypersolver.reference(rows), axis=1)
    assert display.shares[1] == np.mean(errors <= bound)
    assert abs(display.shares - display.coverages).max() < 0.15
    assert display.line_.get_xdata().tolist() == [0.5, 0.9]  # in order


def test_coverages_by_default_rise_and_the_band_narrows_with_rows(calibrated):
    hypersolver, rows = calibrated
    display = CoverageDisplay.from_estimator(hypersolver, rows)
    assert len(display.shares) == 10 and (np.diff(display.shares) >= 0).all()
    narrow, wide = (CoverageDisplay([0.5], [0.5], n).plot(ax=pyplot.subplots()[1]) for n in (10_000, 100))
    assert _height(narrow.band_) == pytest.approx(0.01, rel=0.1) and _height(wide.band_) == pytest.approx(0.1, rel=0.1)


def _height(band):
    """Of a band at the middle of its axis."""
    vertices = band.get_paths()[0].vertices
    return np.ptp(vertices[np.abs(vertices[:, 0] - 0.5) < 1e-3, 1])


def test_coverage_needs_a_calibration(regressor, X):
    with pytest.raises(NotCalibratedError):
        CoverageDisplay.from_estimator(regressor, X)


@pytest.mark.parametrize(("coverages", "shares"), [([0.5], [0.5, 0.6]), ([], []), ([[0.5]], [[0.5]])])
def test_coverages_and_shares_belong_together(coverages, shares):
    with pytest.raises(ValueError, match="coverages and shares must be one-dimensional, of one length and not empty"):
        CoverageDisplay(coverages, shares, 10)


# ---------------------------------------------------------------------- trajectories
def test_points_are_the_trajectory_and_lines_are_dopri5(X):
    heun = make_regressor(base_solver="heun", n_steps=3).fit(X)
    display = TrajectoryDisplay.from_estimator(heun, X[:4], features=[1], n_times=11)
    assert np.allclose(display.states, heun.trajectory(X[:4])[..., [1]])
    assert np.allclose(display.reference[:, -1, 0], heun.reference(X[:4])[:, 1], atol=1e-5)
    assert np.allclose(display.times, [0, 1 / 3, 2 / 3, 1]) and len(display.reference_times) == 11
    (points,), (lines,) = display.points_, display.lines_
    assert len(points) == len(lines) == 4
    assert points[2].get_color() == lines[2].get_color() != points[1].get_color()
    assert display.axes_[0].get_ylabel() == "z[1]"


def test_time_may_run_backwards(X):
    back = make_regressor(NeuralODE(Swirl(), t_span=(1.0, 0.0)), n_steps=2).fit(X)
    display = TrajectoryDisplay.from_estimator(back, X[:2])
    assert display.times.tolist() == [1, 0.5, 0] and display.reference_times[[0, -1]].tolist() == [1, 0]
    assert np.allclose(display.reference[:, 0], X[:2])


def test_of_learned_coefficients_only_the_ends_are_drawn(X):
    ends = HypersolverRegressor(Swirl(), n_steps=3, max_epochs=2, random_state=0).fit(X)
    assert ends.base_solver_.name == "nonstationary"
    display = TrajectoryDisplay.from_estimator(ends, X[:2])
    assert np.allclose(display.states[:, -1], ends.predict(X[:2])) and display.times.tolist() == [0, 1]


def test_states_of_any_shape_are_drawn_by_their_flat_coordinates():
    images = np.random.default_rng(0).normal(size=(30, 1, 2, 2))
    field = NeuralODE(lambda t, z: torch.tanh(z))
    fast = HypersolverRegressor(field, base_solver="heun", n_steps=2, max_epochs=1, random_state=0).fit(images)
    axes = pyplot.subplots(1, 3)[1]
    display = TrajectoryDisplay.from_estimator(fast, images[:2], features=(0, 1, 3), axes=axes)
    assert list(display.axes_) == list(axes) and display.states.shape == (2, 3, 3)
    assert np.allclose(display.reference[:, 0, 2], images[:2, 0, 1, 1])


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"features": [2]}, r"features must be integers between 0 and 1, got \[2\]"),
        ({"features": []}, "features must be integers"),
        ({"features": [0.5]}, "features must be integers"),
        ({"n_times": 1}, "n_times must be an integer of at least 2, got 1"),
        ({"axes": [None]}, "axes must hold one for each of the 2 features, got 1"),
    ],
)
def test_what_cannot_be_drawn_is_refused(regressor, X, how, message):
    with pytest.raises(ValueError, match=message):
        TrajectoryDisplay.from_estimator(regressor, X, **how)


def test_states_that_do_not_fit_their_times_are_refused():
    with pytest.raises(ValueError, match=r"reference must have shape \(n_samples, 3, 1\)"):
        TrajectoryDisplay([0, 1], np.zeros((1, 2, 1)), [0, 0.5, 1], np.zeros((1, 2, 1)), features=[0])


# ---------------------------------------------------------------------- all of them
@pytest.mark.parametrize("display", DISPLAYS)
def test_what_is_no_hypersolver_is_refused(display, X):
    with pytest.raises(TypeError, match="is needed, got FunctionTransformer"):
        display.from_estimator(FunctionTransformer(), X)


@pytest.mark.parametrize("display", DISPLAYS)
def test_missing_matplotlib_names_the_extra_before_any_work(monkeypatch, display):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=rf'{display.__name__} draws with.*pip install "sklearn_hyper\[plots\]"'):
        display.from_estimator(None, None)
