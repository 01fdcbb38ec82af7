"""References and base solvers on the standard test problems."""

import math

import pytest
import torch
from detest import PROBLEMS, solve_with_scipy, truth

from sklearn_hyper.numerics import hypersolve, reference_solution, resolve_base_solver

each = pytest.mark.parametrize("name", PROBLEMS)
METHODS = ("euler", "midpoint", "heun", "ralston", "rk3", "rk4", "rk4_38", "ab2", "ab3", "ab4", "abm2", "abm2_pec")
_SMOOTH = ("A2", "A3", "A5", "B1", "B3", "B4", "B5", "C1", "D2", "E2", "E3", "E4")
_SHORT = 2.0


def relative(z, exact):
    return ((z - exact).abs() / (1 + exact.abs())).max()


def closed_forms():
    t = 20.0
    return {
        "A1": [math.exp(-t)],
        "A2": [1 / math.sqrt(1 + t)],
        "A3": [math.exp(math.sin(t))],
        "A4": [20 / (1 + 19 * math.exp(-t / 4))],
    }


@pytest.mark.parametrize("name", closed_forms())
def test_the_truth_is_the_closed_form(name):
    torch.testing.assert_close(
        truth(name)[0], torch.tensor(closed_forms()[name], dtype=torch.float64), rtol=1e-11, atol=1e-13
    )


def test_arenstorfs_orbit_is_closed():
    start = PROBLEMS["Arenstorf"].z0()
    assert (truth("Arenstorf") - start).abs().max() < 1e-5


@each
@pytest.mark.parametrize(("rtol", "times_scipy"), [(1e-5, 25), (1e-8, 5)])
def test_references_are_as_accurate_as_scipys_solver_of_the_same_pair(name, rtol, times_scipy):
    """At one tolerance both leave errors of one size; by chance one of them may be lucky in its last step."""
    problem, exact = PROBLEMS[name], truth(name)
    ours = reference_solution(problem.field, problem.z0(), (0.0, problem.end), rtol=rtol, atol=rtol)[-1]
    scipys = solve_with_scipy(name, "RK45", rtol)
    assert relative(ours, exact) <= times_scipy * relative(scipys, exact)


@pytest.mark.parametrize("name", _SMOOTH)
@pytest.mark.parametrize("method", METHODS)
def test_base_solvers_have_their_order_on_standard_problems(method, name):
    """Halving the step divides the error by 2^p, or by more where a term happens to vanish."""
    problem, exact, order = PROBLEMS[name], truth(name, _SHORT), resolve_base_solver(method).order
    errors = [(hypersolve(problem.field, problem.z0(), (0.0, _SHORT), n, method) - exact).norm() for n in (80, 160)]
    assert errors[0] / errors[1] > 0.8 * 2**order or errors[1] < 1e-11


def test_a_long_solve_gives_the_same_bits_every_time():
    problem = PROBLEMS["E2"]
    first, again = (hypersolve(problem.field, problem.z0(), (0.0, 100.0), 5000, "rk4") for _ in range(2))
    assert torch.equal(first, again)


@pytest.mark.parametrize("name", ["D1", "D3"])
def test_a_closed_orbit_comes_back_after_its_period(name):
    problem = PROBLEMS[name]
    z = hypersolve(problem.field, problem.z0(), (0.0, 2 * math.pi), 4000, "rk4")
    torch.testing.assert_close(z, problem.z0(), rtol=1e-7, atol=1e-7)
