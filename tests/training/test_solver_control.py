"""What a training solves by, what it counts, and when dopri5 is asked."""

import math

import pytest
import torch
from problems import PROBLEMS, named
from torch import nn

from sklearn_hyper import NeuralODE
from sklearn_hyper.numerics import CountedField, hypersolve, resolve_base_solver
from sklearn_hyper.training.given_rows import GivenRows
from sklearn_hyper.training.solver_control import (
    CERTIFIED_GAP,
    DOPRI5_RUNG,
    RUNGS,
    Rung,
    SolverControl,
    TrainingSolver,
    _upper_bound,
    count_polish,
    polished_schedule,
)


class Settings:
    rtol, atol, adjoint, n_steps = 1e-6, None, False, 3

    def __init__(self, solver):
        self.solver = solver


@pytest.mark.parametrize("problem", **named(PROBLEMS))
def test_every_rung_is_the_librarys_solve_and_costs_what_it_says(problem):
    given = problem.x is not None
    z0 = problem.x if given else problem.z0
    ode = NeuralODE(problem.f, t_span=problem.t_span, data_controlled=given)
    solver = TrainingSolver(ode, Settings("auto"))
    for rung in RUNGS:
        before = solver.n_evaluations
        solver.use(rung)
        expected = hypersolve(problem.f, z0, problem.t_span, rung.n_steps, rung.solver, x=problem.x)
        torch.testing.assert_close(solver(z0), expected, rtol=0, atol=0)
        assert solver.n_evaluations - before == solver.last_evaluations == rung.n_evaluations


@pytest.mark.parametrize("rung", [*RUNGS, DOPRI5_RUNG], ids=str)
def test_rows_with_times_get_states_at_them(rung):
    ode = NeuralODE(lambda t, z: torch.cos(t) * z, t_span=(0.0, 2.0))
    x = torch.tensor([[1.0], [-2.0]]).double()
    times = torch.tensor([[0.0, 0.4, 2.0], [1.0, math.nan, math.nan]]).double()
    solver = TrainingSolver(ode, Settings("auto"))
    solver.use(rung)
    states = solver(GivenRows(x, times=times))
    exact = (x[:, None] * torch.sin(times).exp()[..., None]).nan_to_num()
    allowed = 1e-4 if rung is DOPRI5_RUNG else 5 * rung.n_steps ** -resolve_base_solver(rung.solver).order
    assert (states - exact).abs().max() < allowed
    torch.testing.assert_close(states[0, 2], solver(x)[0], rtol=1e-6, atol=0)
    if rung is not DOPRI5_RUNG:
        before = solver.n_evaluations
        solver(GivenRows(x, times=times))
        # One more where f at the end is needed, to interpolate in the last steps.
        assert solver.n_evaluations - before == solver.last_evaluations
        assert solver.last_evaluations - rung.n_evaluations == (rung.n_steps < 3)


def test_rungs_cost_more_and_more():
    costs = [rung.n_evaluations for rung in RUNGS]
    assert costs == sorted(set(costs)) == [1, 2, 4, 6, 8, 12, 16, 24, 32]


def test_evaluation_mode_is_dopri5_where_the_solver_is_chosen_and_the_given_one_elsewhere():
    ode, z0 = NeuralODE(lambda t, z: -z), torch.ones(3, 1).double()
    chosen, fixed = TrainingSolver(ode, Settings("auto")), TrainingSolver(ode, Settings("euler"))
    chosen.use(Rung("euler", 3))
    for solver in (chosen, fixed):
        assert solver(z0)[0].item() == pytest.approx((2 / 3) ** 3)
    assert chosen(z0, training=False)[0].item() == pytest.approx(math.exp(-1), abs=1e-6)
    assert fixed(z0, training=False)[0].item() == pytest.approx((2 / 3) ** 3)


def test_calls_of_dopri5_are_counted():
    counted = CountedField(lambda t, z: torch.sin(3 * z))
    solver = TrainingSolver(NeuralODE(counted), Settings("dopri5"))
    solver(torch.ones(3, 2))
    assert solver.n_evaluations == solver.last_evaluations == counted.n_evaluations > 7
    assert solver.rung is DOPRI5_RUNG


@pytest.mark.parametrize("n", [1, 9, 100])
def test_the_bound_is_clopper_and_pearsons(n):
    assert _upper_bound(0, n) == pytest.approx(1 - 0.05 ** (1 / n))
    assert _upper_bound(n, n) == 1.0


def test_the_bound_holds_in_95_of_100_draws():
    generator = torch.Generator().manual_seed(0)
    share, n = 0.03, 120
    seen = (torch.rand(2000, n, generator=generator) < share).sum(dim=1).tolist()
    assert sum(_upper_bound(k, n) >= share for k in seen) / len(seen) >= 0.95


@pytest.mark.parametrize("n_steps, expected", [(1, 1), (2, 1), (10, 1), (50, 3), (1000, 60)])
def test_a_share_of_the_steps_is_dopri5s_and_never_none(n_steps, expected):
    assert count_polish(n_steps) == expected


def test_the_polish_has_a_learning_rate_of_its_own():
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, polished_schedule(1000).kwargs["lr_lambda"])
    rates = []
    for _ in range(1000):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert max(rates[:940]) > 0.98 and rates[939] < 1e-3  # down to nothing, then up again
    assert 0.15 < max(rates[940:]) <= 0.2 and rates[-1] < 1e-3


def test_a_gap_is_judged_by_what_the_loss_fell_by_since_half_as_many_steps():
    control = SolverControl(1000)
    control.on_train_begin(None)
    even = torch.full((50,), 2.0)  # rows that do not differ
    assert control._allowed(even) < 2e-5
    spread = torch.linspace(0, 4, 50)
    assert control._allowed(spread) == pytest.approx(CERTIFIED_GAP, rel=0.01)
    control.losses_, control.step_ = [(0, 9.0), (20, 5.0), (45, 3.0)], 50
    assert control._allowed(spread) == pytest.approx(0.1 * (5.0 - 2.0), rel=0.01)
    control.losses_ = [(0, 1.0)]  # a loss that rises allows no more than a loss that stands
    assert control._allowed(spread) == pytest.approx(CERTIFIED_GAP, rel=0.01)
