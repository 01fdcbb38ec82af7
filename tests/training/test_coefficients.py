"""Learning the coefficients of a nonstationary method: where it starts, what it trains, and what comes of it."""

import numpy as np
import pytest
import torch
from interruptions import interrupted
from small_tasks import fit_settings, turn_task

from sklearn_hyper import NeuralODE, WeightCorrection
from sklearn_hyper.hypersolvers import Task
from sklearn_hyper.numerics import Nonstationary, hypersolve
from sklearn_hyper.numerics.methods import compose_predictor_corrector
from sklearn_hyper.training import coefficients
from sklearn_hyper.training.coefficients import LearnedCoefficients, TrainableCoefficients, classical_starts
from sklearn_hyper.training.errors import BaseSolverOverflowError
from sklearn_hyper.training.references import solve_ends


def terminal_error(task, method):
    with torch.no_grad():
        z = hypersolve(task.neural_ode.vector_field, task.x, (0.0, 1.0), method.n_steps, method)
        return float((z - solve_ends(task, fit_settings())[-1]).norm(dim=1).log().mean().exp())


# ---------------------------------------------------------------------- where it starts
@pytest.mark.parametrize("n_steps", range(1, 13))
def test_every_start_makes_as_many_evaluations_as_there_are_steps(n_steps):
    starts = classical_starts(n_steps)
    assert [start.n_steps for start in starts] == [n_steps] * len(starts)
    assert len(starts) == 2 + (n_steps % 2 == 0) + (n_steps > 2)


@pytest.mark.parametrize("n_steps", [2, 3, 4, 5, 8])
def test_starts_are_the_classical_methods(n_steps):
    """From the same row they give what the methods give that they are named for."""
    z0, f = turn_task().x, turn_task().neural_ode.vector_field
    euler, ab2, *others = classical_starts(n_steps)
    for start, name in ((euler, "euler"), (ab2, "ab2")):
        own, expected = (hypersolve(f, z0, (0.0, 1.0), n_steps, method) for method in (start, name))
        torch.testing.assert_close(own, expected, rtol=1e-12, atol=1e-12)
    if n_steps % 2 == 0:
        own, expected = (
            hypersolve(f, z0, (0.0, 1.0), n_steps, others[0]),
            hypersolve(f, z0, (0.0, 1.0), n_steps // 2, "midpoint"),
        )
        torch.testing.assert_close(own, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("n_steps", "correction", "offered"), [
    (6, WeightCorrection(), True), (8, WeightCorrection(), True), (5, WeightCorrection(), False), (8, "auto", False),
])  # fmt: skip
def test_predictor_corrector_steps_are_a_start_under_changed_weights(n_steps, correction, offered, monkeypatch):
    asked = []
    monkeypatch.setattr(
        coefficients, "compose_predictor_corrector", lambda n: asked.append(n) or compose_predictor_corrector(n)
    )
    LearnedCoefficients(fit_settings(n_steps=n_steps, correction=correction, max_epochs=1)).fit(turn_task())
    assert asked == [n_steps] * offered


# ---------------------------------------------------------------------- what it trains
@pytest.mark.parametrize("index", range(4))
def test_trainable_coefficients_begin_as_their_start_and_freeze_to_plain_numbers(index):
    start = classical_starts(4)[index]
    method = TrainableCoefficients(start).double()
    frozen = method.freeze()
    assert isinstance(frozen, Nonstationary) and frozen.n_steps == 4
    np.testing.assert_allclose(frozen.shares, start.shares, atol=1e-7)
    for own, expected in zip(frozen.weights, start.weights, strict=True):
        np.testing.assert_allclose(own, expected, atol=1e-6)
    assert [method.kind(k) for k in range(4)] == [frozen.kind(k) for k in range(4)]


def test_coefficients_of_a_step_always_sum_to_one():
    method = TrainableCoefficients(classical_starts(3)[1])
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(torch.randn_like(parameter))
    for k in range(3):
        assert float(sum(method.row(k)).detach()) == pytest.approx(1, rel=1e-5)
    shares = method.shares().detach()
    assert (shares.diff() > 0).all() and float(shares[0]) == 0 and float(shares[-1]) == pytest.approx(1)


# ---------------------------------------------------------------------- what comes of it
@pytest.mark.parametrize("n_steps", [2, 3])
def test_learned_coefficients_are_better_than_every_start(n_steps):
    task = turn_task(200, speed=2.0)
    settings = fit_settings(base_solver="nonstationary", n_steps=n_steps, max_epochs=60)
    method = LearnedCoefficients(settings).fit(task)
    fresh = turn_task(200, speed=2.0, seed=5)
    assert terminal_error(fresh, method) < 0.8 * min(
        terminal_error(fresh, start) for start in classical_starts(n_steps)
    )


def test_one_step_has_nothing_to_learn():
    settings = fit_settings(base_solver="nonstationary", n_steps=1)
    assert (
        LearnedCoefficients(settings).fit(turn_task()) == classical_starts(1)[0] == LearnedCoefficients(settings).start
    )


def test_a_few_hundred_rows_are_used_and_known_ends_not_solved_for_again(solves):
    task, settings = turn_task(1000), fit_settings(base_solver="nonstationary", max_epochs=3)
    alone = LearnedCoefficients(settings).fit(task)
    assert [solve.n_rows for solve in solves] == [640]
    ends = solve_ends(task, settings)
    solves.clear()
    known = LearnedCoefficients(settings).fit(task, ends)
    assert not solves
    np.testing.assert_allclose(known.shares, alone.shares, rtol=1e-4)  # the ends of other rows, too, were solved beside


def test_same_seed_same_coefficients():
    def learned(seed):
        return LearnedCoefficients(fit_settings(base_solver="nonstationary", random_state=seed)).fit(turn_task())

    assert learned(0) == learned(0) != learned(1)


def test_where_not_even_eulers_method_stays_in_range_its_rows_are_named():
    x = torch.full((30, 1), 0.5, dtype=torch.float64)
    x[11] = 1e30
    task = Task(NeuralODE(lambda t, z: -(z**9)).eval(), x)
    ends = torch.stack([x, x / (1 + 8 * x**8) ** 0.125])
    with pytest.raises(
        BaseSolverOverflowError, match=r"'nonstationary' with n_steps=3 overflows from 1 of 30"
    ) as raised:
        LearnedCoefficients(fit_settings(base_solver="nonstationary", n_steps=3)).fit(task, ends)
    assert raised.value.rows == (11,)


def test_an_interruption_leaves_nothing(monkeypatch):
    monkeypatch.setattr(coefficients.LossNet, "train_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        LearnedCoefficients(fit_settings(base_solver="nonstationary", n_steps=3)).fit(turn_task())


def test_an_interruption_after_an_epoch_leaves_nothing_either(monkeypatch):
    """Without a correction there is no fit to keep."""
    step, calls = coefficients.LossNet.train_step, []

    def interrupt_later(self, *args, **kwargs):
        calls.append(1)
        if len(calls) > 5:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(coefficients.LossNet, "train_step", interrupt_later)
    with pytest.raises(KeyboardInterrupt):
        LearnedCoefficients(fit_settings(base_solver="nonstationary", n_steps=3)).fit(turn_task())
    assert len(calls) == 6
