"""Base solvers have the order they state, evaluate f where they say, and are found by name, tableau or order."""

from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from problems import BASE_SOLVERS, FORCED, LOGISTIC, MATRIX, PROBLEMS, Recorder, largest, log_slope, mesh, named
from torchdiffeq import odeint

from sklearn_hyper.numerics import (
    BaseStep,
    ButcherTableau,
    RungeKutta,
    alpha_family,
    compute_residuals,
    count_nfe,
    hypersolve,
    hypersolve_trajectory,
    resolve_base_solver,
)
from sklearn_hyper.numerics.methods import CANONICAL
from sklearn_hyper.numerics.tableaus import TABLEAUS


@dataclass(frozen=True)
class AdamsBashforth2:
    """A multistep method of a user's own: one evaluation a step, one remembered; the first step is Euler's."""

    name = "adams-bashforth 2"
    order = 2
    n_stages = 1

    def nodes(self, s, eps):
        return [s]

    def step(self, f, times, z, eps, history):
        now = f(times[0], z)
        if not history:
            return BaseStep(now, [now], 1, (now,))
        return BaseStep(1.5 * now - 0.5 * history[0], [now, history[0]], 2, (now,))

    def count_evaluations(self, n_steps):
        return n_steps


def _measured_order(problem, solver, kind):
    n_steps = (16, 23, 32, 45)
    errors = []
    for n in n_steps:
        grid = mesh(problem.t_span, n, kind)
        z = hypersolve(problem.f, problem.z0, None, None, solver, x=problem.x, grid=grid)
        errors.append(largest(z - problem.exact(grid[0], grid[-1], problem.z0)))
    return -log_slope(n_steps, errors)


@pytest.mark.parametrize("kind", ["uniform", "reverse", "graded"])
@pytest.mark.parametrize("problem", **named(PROBLEMS))
@pytest.mark.parametrize("solver", **named(BASE_SOLVERS))
def test_measured_order_is_the_stated_order(solver, problem, kind):
    # 0.2: the slope of a method one order off would differ by 1, the next term of the error by about 1/K.
    assert abs(_measured_order(problem, solver, kind) - solver.order) < 0.2


@pytest.mark.parametrize(
    ("solver", "t_span", "times"),
    [
        ("euler", (0, 1), [0, 0.5]),
        ("heun", (0, 1), [0, 0.5, 0.5, 1]),
        ("heun", (1, 0), [1, 0.5, 0.5, 0]),
        ("midpoint", (1, -1), [1, 0.5, 0, -0.5]),
        ("rk4", (0, 1), [0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75, 1]),
        (alpha_family(-1.0), (0, 1), [0, -0.5, 0.5, 0]),
    ],
)
def test_f_is_evaluated_at_the_nodes(solver, t_span, times):
    f = Recorder(FORCED.f)
    hypersolve(f, FORCED.z0, t_span, 2, solver)
    assert [t.item() for t in f.times] == times  # dyadic fractions: exact


@pytest.mark.parametrize("kind", ["uniform", "reverse", "graded"])
@pytest.mark.parametrize("solver", **named(BASE_SOLVERS))
def test_stage_times_are_s_plus_c_eps(solver, kind):
    f, grid = Recorder(FORCED.f), mesh(FORCED.t_span, 3, kind)
    hypersolve(f, FORCED.z0, None, None, solver, grid=grid)
    expected = [s + c * (after - s) for s, after in pairwise(grid) for c in solver.c]
    assert [t.item() for t in f.times] == pytest.approx(expected, rel=1e-15, abs=1e-15)


@pytest.mark.parametrize("problem", **named([LOGISTIC, FORCED]))
@pytest.mark.parametrize("kind", ["uniform", "reverse"])
@pytest.mark.parametrize(("ours", "theirs"), [("euler", "euler"), ("midpoint", "midpoint"), ("rk4_38", "rk4")])
def test_agrees_with_torchdiffeq(ours, theirs, kind, problem):
    """Its "rk4" is the 3/8 rule. Same formulas in another order of operations: rounding apart, 1e-13."""
    grid = mesh(problem.t_span, 7, kind)
    states = hypersolve_trajectory(problem.f, problem.z0, None, None, ours, grid=grid)
    expected = odeint(problem.f, problem.z0, torch.tensor(grid, dtype=torch.float64), method=theirs)
    assert largest(states - expected) < 1e-13


def test_rk4_is_the_classic_formula():
    (s, end), z = FORCED.t_span, FORCED.z0
    eps, f = end - s, lambda t, z: FORCED.f(torch.tensor(t, dtype=torch.float64), z)
    k1 = f(s, z)
    k2 = f(s + eps / 2, z + eps / 2 * k1)
    k3 = f(s + eps / 2, z + eps / 2 * k2)
    k4 = f(s + eps, z + eps * k3)
    expected = z + eps / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    assert largest(hypersolve(FORCED.f, z, FORCED.t_span, 1, "rk4") - expected) < 1e-15


@pytest.mark.parametrize("solver", **named(BASE_SOLVERS))
def test_counts_agree_with_the_protocol(solver):
    base = resolve_base_solver(solver)
    calls = count_nfe(lambda f: hypersolve(f, LOGISTIC.z0, (0, 1), 5, solver), LOGISTIC.f)
    assert calls == base.count_evaluations(5) == 5 * base.n_stages == 5 * len(solver.b)


@pytest.mark.parametrize("problem", **named([LOGISTIC, MATRIX]))
def test_a_multistep_method_runs_in_the_same_loop(problem):
    solver = AdamsBashforth2()
    assert abs(_measured_order(problem, solver, "uniform") - 2) < 0.2
    assert count_nfe(lambda f: hypersolve(f, problem.z0, problem.t_span, 6, solver), problem.f) == 6


def test_a_step_of_lower_order_scales_its_own_correction():
    """Exact residuals repair the Euler start-up step (eps^2) and the later ones (eps^3) alike."""
    grid = mesh(FORCED.t_span, 5)
    exact = FORCED.states(grid)
    residuals = compute_residuals(FORCED.f, exact, grid, AdamsBashforth2())
    assert [residual.order for residual in residuals] == [1, 2, 2, 2, 2]
    targets = iter(residual.target for residual in residuals)
    states = hypersolve_trajectory(
        FORCED.f, FORCED.z0, None, None, AdamsBashforth2(), lambda *_: next(targets), grid=grid
    )
    assert largest(states - exact) < 1e-13


@pytest.mark.parametrize("name", TABLEAUS)
def test_names_and_tableaus_select_the_same_method(name):
    solver = resolve_base_solver(name)
    assert solver == resolve_base_solver(TABLEAUS[name]) == RungeKutta(TABLEAUS[name])
    assert solver.name == name
    assert resolve_base_solver(solver, order=solver.order) is solver


def test_auto_without_an_order_takes_one_evaluation_a_step():
    solver = resolve_base_solver("auto")
    assert (solver.name, solver.order, solver.count_evaluations(7)) == ("ab2", 2, 7)


@pytest.mark.parametrize(("order", "name"), [(1, "euler"), (2, "midpoint"), (3, "rk3"), (4, "rk4")])
def test_auto_is_the_canonical_method_of_the_order(order, name):
    solver = resolve_base_solver("auto", order)
    assert (solver.name, solver.order) == (name, order)
    assert CANONICAL[solver.order] == name


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            ("rk45",),
            ValueError,
            "'rk45' is unknown; valid names are "
            + ", ".join(sorted(TABLEAUS))
            + ", ab2, ab3, ab4, 'auto' and, for estimators, 'nonstationary';",
        ),
        (("RK4",), ValueError, "'RK4' is unknown"),
        (("rk4", 2), ValueError, "order=2 contradicts base_solver='rk4', which has order 4"),
        ((alpha_family(0.7), 3), ValueError, "order=3 contradicts base_solver='alpha"),
        (("auto", 5), ValueError, "knows orders .1, 2, 3, 4., got order=5; pass a ButcherTableau"),
        *((("auto", order), ValueError, "order must be None or an integer from 1 to 5") for order in (0, 6, True, "2")),
        ((None,), TypeError, "must be a name .*euler.* or a ButcherTableau, got NoneType"),
        ((2,), TypeError, "got int"),
    ],
)
def test_what_cannot_be_resolved_says_why(arguments, error, message):
    with pytest.raises(error, match=message):
        resolve_base_solver(*arguments)


def test_a_user_tableau_is_as_good_as_a_name():
    kutta = ButcherTableau("mine", 3, [[0, 0, 0], [0.5, 0, 0], [-1, 2, 0]], [1 / 6, 2 / 3, 1 / 6], [0, 0.5, 1])
    mine, named_one = (hypersolve(FORCED.f, FORCED.z0, FORCED.t_span, 3, solver) for solver in (kutta, "rk3"))
    assert torch.equal(mine, named_one)
