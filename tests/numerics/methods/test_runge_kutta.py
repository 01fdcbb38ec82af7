"""Runge-Kutta methods have the order they state, evaluate f where their tableaus say, and err as these say."""

from itertools import pairwise

import pytest
import torch
from problems import BASE_SOLVERS, DORMAND_PRINCE, FORCED, LOGISTIC, PROBLEMS, Recorder, largest, log_slope, mesh, named
from torchdiffeq import odeint

from sklearn_hyper.numerics import (
    ButcherTableau,
    RungeKutta,
    alpha_family,
    compute_residuals,
    count_nfe,
    hypersolve,
    hypersolve_trajectory,
    resolve_base_solver,
)
from sklearn_hyper.numerics.methods import leading_error
from sklearn_hyper.numerics.tableaus import HEUN, RK4, RK4_38

ALPHAS = (-1.0, 0.05, 0.3, 0.5, 1.0, 2.0)


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


def test_a_user_tableau_is_as_good_as_a_name():
    kutta = ButcherTableau("mine", 3, [[0, 0, 0], [0.5, 0, 0], [-1, 2, 0]], [1 / 6, 2 / 3, 1 / 6], [0, 0.5, 1])
    mine, named_one = (hypersolve(FORCED.f, FORCED.z0, FORCED.t_span, 3, solver) for solver in (kutta, "rk3"))
    assert torch.equal(mine, named_one)


# --- leading errors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tableau", **named(BASE_SOLVERS))
def test_all_steps_are_of_one_kind_which_knows_the_leading_error(tableau):
    method = RungeKutta(tableau)
    (kind,) = method.kinds
    assert (kind.order, kind.nodes, kind.offsets) == (tableau.order, tableau.c, tableau.c)
    assert kind.leading_error == leading_error(tableau)
    assert method.kind(7) is method.kind(0)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_leading_error_of_the_alpha_family_is_half_of_alpha(alpha):
    assert leading_error(alpha_family(alpha)) == pytest.approx((alpha / 2, 0.0))


def test_leading_error_vanishes_against_the_conditions_of_a_higher_order():
    """rk4 seen as a method of order 3: its sums are those that the conditions of order 4 ask for."""
    for tableau in (RK4, RK4_38):
        third = ButcherTableau("third", 3, tableau.a, tableau.b, tableau.c)
        assert leading_error(third) == pytest.approx((1 / 4, 1 / 12))
    assert leading_error(DORMAND_PRINCE)[0] != pytest.approx(1 / 6)


def test_the_residual_is_linear_in_the_leading_error_for_small_steps():
    def residual(alpha, eps):
        states = LOGISTIC.states((0.0, eps))
        return compute_residuals(LOGISTIC.f, states, (0.0, eps), alpha_family(alpha))[0].target

    for eps in (0.1, 0.01):
        low, middle, high = (residual(alpha, eps) for alpha in (0.25, 0.5, 1.0))
        on_the_line = low + (0.5 - 0.25) / (1.0 - 0.25) * (high - low)
        assert largest(middle - on_the_line) < 0.2 * eps * largest(high - low)


def test_methods_without_a_tableau_have_no_leading_error():
    assert all(kind.leading_error is None for name in ("ab2", "abm2") for kind in resolve_base_solver(name).kinds[1:])
    assert RungeKutta(HEUN).main_kind.leading_error == (0.5, 0.0)
