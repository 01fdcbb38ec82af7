"""References and base solvers on the DETEST problems, the Pleiades and three bodies, against closed forms or DOP853."""

import numpy as np
import pytest
from detest import NONSTIFF, Nonstiff
from problems import ANY_MESH, log_slope, named

from sklearn_hyper.numerics import hypersolve, reference_solution

# How much an error of one step may grow until the end: orbits drift, and three bodies pass close to each other.
GROWTH = {"three bodies": 1e5, "Pleiades": 1e3} | {f"D{i}": 3e3 for i in range(1, 6)}
SMOOTH = ("B2", "B4", "B5", "C1", "C3", "C4", "E1", "E3")


@pytest.mark.parametrize("name", [name for name, problem in NONSTIFF.items() if problem.exact is not None])
def test_closed_forms_and_dop853_agree(name):
    problem, times = NONSTIFF[name], (0.0, 6.0, 20.0)
    by_scipy = Nonstiff(problem.f, problem.z0).solve_tightly(times)
    np.testing.assert_allclose(by_scipy, problem.solve_tightly(times), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("rtol", [1e-6, 1e-9])
@pytest.mark.parametrize("name", NONSTIFF)
def test_references_are_as_accurate_as_their_tolerance(name, rtol):
    problem = NONSTIFF[name]
    times = [share * problem.end for share in (0.0, 0.3, 0.7, 1.0)]
    exact = problem.solve_tightly(times)
    states = reference_solution(problem.f, problem.state, times, rtol=rtol, atol=rtol)[:, 0].numpy()
    assert np.abs(states - exact).max() < GROWTH.get(name, 100) * rtol * np.abs(exact).max()


@pytest.mark.parametrize("method", **named(ANY_MESH))
@pytest.mark.parametrize("name", SMOOTH)
def test_base_solvers_have_their_order_on_systems(name, method):
    problem, sizes = NONSTIFF[name], (16, 32, 64) if method.order > 3 else (32, 64, 128)
    end = 0.05 * problem.end
    exact = problem.solve_tightly((0.0, end))[-1]
    solved = [hypersolve(problem.f, problem.state, (0.0, end), n, method)[0].numpy() for n in sizes]
    slope = -log_slope(sizes, [np.abs(state - exact).max() for state in solved])
    assert abs(slope - method.order) < 0.3
