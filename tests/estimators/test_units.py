"""What a hypersolver gives does not depend on units of time and of states; out of reach of numbers, they are refused."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from torch import nn

from sklearn_hyper import (
    HypersolverRegressor,
    NeuralODE,
)

X = np.random.default_rng(0).uniform(-1.5, 1.5, (80, 2))


def oscillator(span=1.0, size=1.0, start=0.0):
    """Van der Pol's oscillator, in units in which its time takes ``span`` and its state is ``size`` times as large."""

    def f(t, z):
        q, p = (z / size).unbind(dim=1)
        return 2 * size / span * torch.stack([p, (1 - q**2) * p - q], dim=1)

    return NeuralODE(f, t_span=(start, start + span))


def fitted_error(base_solver, span, size=1.0, start=0.0):
    rows = (size * X).astype(np.float32)
    hyper = HypersolverRegressor(
        oscillator(span, size, start),
        base_solver=base_solver,
        n_steps=3,
        max_epochs=6,
        random_state=0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # targets of small noise in float32 are solved for again
        hyper.fit(rows)
    assert hyper.correction_ is not None
    return np.linalg.norm(hyper.predict(rows) - hyper.reference(rows), axis=1).mean() / size


@pytest.mark.parametrize("base_solver", ["auto", "heun", "rk4", "nonstationary"])
def test_units_of_time_and_of_the_state_make_no_difference(base_solver):
    expected = fitted_error(base_solver, span=1.0)
    seconds_of_a_day = fitted_error(base_solver, span=86_400.0)
    microseconds = fitted_error(base_solver, span=1e-6)
    small_states = fitted_error(base_solver, span=1.0, size=1e-8)
    assert [seconds_of_a_day, microseconds, small_states] == pytest.approx([expected] * 3, rel=0.1)


@pytest.mark.parametrize("span", [1e-6, 1e4])
def test_rounding_of_a_constant_velocity_is_no_feature_in_any_units_of_time(span):
    """Two of the state's numbers run straight on, so that difference quotients of theirs are rounding alone."""

    def f(t, z):
        velocity, w = z[:, :2], z[:, 2:]
        return torch.cat([velocity / velocity.norm(dim=1, keepdim=True), 2 * torch.sin(3 * w)], dim=1) / span

    rows = np.random.default_rng(0).uniform(-1, 1, (150, 3)).astype(np.float32)
    hyper = HypersolverRegressor(
        NeuralODE(f, t_span=(0, span)), base_solver="midpoint", n_steps=4, max_epochs=15, random_state=1
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hyper.fit(rows)
    row = hyper.errors_[4]
    assert hyper.correction_ is not None and row["mean"] < 0.3 * row["base_mean"]


@pytest.mark.parametrize("span", [1e-12, 1e9])
def test_units_out_of_the_range_of_numbers_are_refused_before_any_work(span):
    with pytest.raises(ValueError, match=r"t_span=.*divides by eps\^5.*range of torch.float32.*Measure time in units"):
        HypersolverRegressor(oscillator(span), base_solver="rk4").fit(X.astype(np.float32))


def steep():
    return NeuralODE(lambda t, z: -(z**3))


POSITIVE = np.random.default_rng(0).uniform(0.5, 1, (80, 6)).astype(np.float32)


@pytest.mark.parametrize(
    ("power", "base_solver", "name", "rows"),
    [
        (3, "euler", "euler", (10 * X).astype(np.float32)),
        (3, "euler", "euler", 1e3 * POSITIVE[:, :2]),
        (3, "euler", "euler", 5 * POSITIVE[:, :2]),
        (3, "auto", "nonstationary", 20 * POSITIVE),
        (9, "rk4", "rk4", np.full((80, 2), 10, dtype=np.float32)),
    ],
    ids=["some states", "all states", "squares of states", "coefficients", "stages"],
)
def test_a_base_solver_that_overflows_is_named_not_the_learning_rate(power, base_solver, name, rows):
    ode = NeuralODE(lambda t, z: -(z**power))
    message = rf"base_solver='{name}' with n_steps=4 overflows from \d+ of \d+ rows.*Raise n_steps"
    with pytest.raises(ValueError, match=message):
        HypersolverRegressor(ode, base_solver=base_solver, n_steps=4, random_state=0).fit(rows)


def test_errors_larger_than_the_states_are_said():
    hyper = HypersolverRegressor(steep(), base_solver="euler", n_steps=4, max_epochs=2, random_state=0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "no epoch was better")
        with pytest.warns(
            ConvergenceWarning, match=r"errors of .* times the size of the states at the end.*n_steps=4 are too long"
        ):
            hyper.fit(7 * X)


# ---------------------------------------------------------------------- errors beside the end
class Denoiser(nn.Module):
    """Of two points, +-1, in the log of the noise's scale: from 148 times X to about one."""

    def forward(self, s, y):
        return y - torch.tanh(y * torch.exp(-2 * s))


def to_a_point(t, z):
    return -8 * (z - 1e-3)


@pytest.mark.parametrize(
    ("ode", "what"),
    [
        (NeuralODE(Denoiser(), input_map=lambda x: 148 * x, t_span=(5.0, -4.0)), "the states at the end of t_span"),
        (NeuralODE(to_a_point), "the states at the end of t_span"),
        (NeuralODE(lambda t, z: -3 * z, output_map=lambda z: z[:, :1] - 0.0498 * 7), "the outputs"),
    ],
    ids=["small end", "point", "cancelling outputs"],
)
def test_errors_are_judged_against_the_end_and_the_outputs(ode, what):
    rows = (
        X.astype(np.float32)
        if what.startswith("the states")
        else np.full((80, 2), 7, np.float32) + X.astype(np.float32) / 1e3
    )
    hyper = HypersolverRegressor(ode, base_solver="euler", n_steps=4, max_epochs=1, lr=1e-9, random_state=0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "no epoch was better")
        with pytest.warns(ConvergenceWarning, match=rf"errors of .* times the size of {what}"):
            hyper.fit(rows)


def test_errors_beside_an_end_of_zero_are_not_judged_by_the_tolerance_of_the_reference():
    hyper = HypersolverRegressor(
        NeuralODE(lambda t, z: -20 * z), base_solver="rk4", n_steps=60, max_epochs=1, random_state=0
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        warnings.filterwarnings("ignore", "no epoch was better|The reference's noise")
        hyper.fit(X.astype(np.float32))
