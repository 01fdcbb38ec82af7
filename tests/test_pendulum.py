"""One correction for every step size of a data-controlled field; the full-size run is examples/benchmarks/pendulum.py."""

import numpy as np
import pytest
import torch

from sklearn_hyper import HypersolverRegressor, MLPCorrection
from sklearn_hyper.datasets import make_pendulum
from sklearn_hyper.numerics import hypersolve, reference_solution

STEP_SIZES = (0.01, 0.03, 0.1, 0.3, 1.0)


@pytest.fixture(scope="module")
def generalist():
    X, neural_ode = make_pendulum(1000, random_state=0)
    return HypersolverRegressor(
        neural_ode,
        base_solver="euler",
        n_steps=1,
        fit_n_steps=(1, 100),
        correction=MLPCorrection(hidden=32),
        finetune=None,
        max_epochs=150,
        random_state=0,
    ).fit(X)


def one_step_error(state, neural_ode, X, dt):
    x = torch.from_numpy(X)
    exact = reference_solution(
        neural_ode.vector_field, neural_ode.input_map(x), (0.0, dt), rtol=1e-10, atol=1e-10, x=x
    )[-1]
    return torch.linalg.vector_norm(state - exact, dim=1).mean().item()


@pytest.mark.parametrize("dt", STEP_SIZES)
def test_one_net_is_better_than_euler_at_every_step_size(generalist, dt):
    X, neural_ode = make_pendulum(2000, random_state=1)
    x = torch.from_numpy(X)
    euler = hypersolve(neural_ode.vector_field, neural_ode.input_map(x), (0.0, dt), 1, "euler", x=x)
    ours = torch.from_numpy(generalist.with_solver(t_span=(0.0, dt)).predict(X))
    factor = one_step_error(euler, neural_ode, X, dt) / one_step_error(ours, neural_ode, X, dt)
    assert factor > (2 if dt == 1 else 3)


def test_the_control_reaches_the_field_and_the_correction(generalist):
    X, _ = make_pendulum(50, random_state=2)
    pushed = X + np.array([0.0, 0.0, 5.0])
    step = generalist.with_solver(t_span=(0.0, 0.1))
    moved = step.predict(pushed) - step.predict(X)
    # du = 5 over dt = .1 adds 5 dt to the momentum and 5 dt^2 / 2, which Euler lacks, to the angle.
    assert np.median(moved[:, 1]) == pytest.approx(0.5, abs=0.02)
    assert np.median(moved[:, 0]) == pytest.approx(0.025, abs=0.005)
