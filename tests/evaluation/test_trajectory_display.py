"""Trajectories that are drawn are the hypersolver's and dopri5's."""

import numpy as np
import pytest
import torch
from matplotlib import pyplot
from small_hypersolvers import Swirl, make_regressor

from sklearn_hyper import HypersolverRegressor, NeuralODE
from sklearn_hyper.evaluation import TrajectoryDisplay


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
