"""Adams-Bashforth methods: their weights on any mesh, their start-up, what they evaluate and what they hand to g."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from problems import DATA_CONTROLLED, FORCED, MULTISTEP, PROBLEMS, Recorder, largest, log_slope, mesh, named
from torch import nn

from sklearn_hyper.numerics import (
    AdamsBashforth,
    compute_residuals,
    count_nfe,
    hypersolve,
    hypersolve_trajectory,
    resolve_base_solver,
)
from sklearn_hyper.numerics.methods import adams_bashforth_weights

DOUBLE = torch.float64
STARTERS = {2: "euler", 3: "midpoint", 4: "rk3"}

each_solver = pytest.mark.parametrize("solver", **named(MULTISTEP))
each_problem = pytest.mark.parametrize("problem", **named(PROBLEMS))
each_direction = pytest.mark.parametrize("kind", ["uniform", "reverse", "graded"])


# --- weights --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("order", "numerators", "denominator"),
    [(1, [1], 1), (2, [3, -1], 2), (3, [23, -16, 5], 12), (4, [55, -59, 37, -9], 24)],
)
def test_weights_on_a_uniform_mesh_are_those_of_the_textbooks(order, numerators, denominator):
    weights = adams_bashforth_weights([-k for k in range(order)])
    assert weights == pytest.approx([float(Fraction(n, denominator)) for n in numerators], rel=1e-14)


@pytest.mark.parametrize("offsets", [(0.0, -0.4), (0.0, -2.0, -2.1), (0.0, -0.3, -1.7, -5.0)])
def test_weights_on_any_mesh_integrate_polynomials_exactly(offsets):
    weights = adams_bashforth_weights(offsets)
    for degree in range(len(offsets)):
        integral = sum(weight * offset**degree for weight, offset in zip(weights, offsets, strict=True))
        assert integral == pytest.approx(1 / (degree + 1), rel=1e-12)


# --- order ----------------------------------------------------------------------------------------------------------


@each_direction
@each_problem
@each_solver
def test_measured_order_is_the_stated_order(solver, problem, kind):
    """RMS over the trajectory: at its end alone, errors of different signs may cancel for some mesh."""
    n_steps, errors = (64, 90, 128, 181), []
    for n in n_steps:
        grid = mesh(problem.t_span, n, kind)
        states = hypersolve_trajectory(problem.f, problem.z0, None, None, solver, x=problem.x, grid=grid)
        errors.append((states - problem.states(grid)).pow(2).mean().sqrt().item())
    assert abs(log_slope(n_steps, errors) + solver.order) < 0.2


@each_direction
@each_solver
def test_polynomials_in_time_are_integrated_exactly(solver, kind):
    """By the full steps to degree p - 1, so by a solve to the degree that its start-up is exact for too: p - 2."""
    degree, grid = solver.order - 2, mesh((-0.5, 1.5), 7, kind)
    z0 = torch.full((1, 1), 0.3, dtype=DOUBLE)
    states = hypersolve_trajectory(lambda t, z: t**degree + 0 * z, z0, None, None, solver, grid=grid)
    exact = [0.3 + (s ** (degree + 1) - grid[0] ** (degree + 1)) / (degree + 1) for s in grid]
    assert states.ravel().tolist() == pytest.approx(exact, abs=1e-13)


@each_direction
@each_solver
def test_full_steps_are_exact_for_polynomials_of_degree_p_minus_1(solver, kind):
    p, grid = solver.order, mesh((-0.5, 1.5), 7, kind)
    states = torch.tensor(grid, dtype=DOUBLE).pow(p).div(p)[:, None, None]
    residuals = compute_residuals(lambda t, z: t ** (p - 1) + 0 * z, states, grid, solver)
    assert all(largest(r.target * r.eps ** (p + 1)) < 1e-14 for r in residuals[p - 1 :])


@each_direction
@each_solver
def test_the_first_steps_are_the_starters_and_the_next_is_the_formula(solver, kind):
    p, grid = solver.order, mesh(FORCED.t_span, 5, kind)
    states = hypersolve_trajectory(FORCED.f, FORCED.z0, None, None, solver, grid=grid)
    start = hypersolve_trajectory(FORCED.f, FORCED.z0, None, None, STARTERS[p], grid=grid[:p])
    assert torch.equal(states[:p], start)
    offsets = [(s - grid[p - 1]) / (grid[p] - grid[p - 1]) for s in grid[:p]]
    slopes = [FORCED.f(torch.tensor(s, dtype=DOUBLE), z) for s, z in zip(grid, start, strict=False)]
    psi = sum(w * slope for w, slope in zip(adams_bashforth_weights(offsets), slopes, strict=True))
    assert largest(states[p] - (start[-1] + (grid[p] - grid[p - 1]) * psi)) < 1e-14


# --- evaluations ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "counts"), [("ab2", [1, 2, 3, 4, 5, 6]), ("ab3", [2, 4, 5, 6, 7, 8]), ("ab4", [3, 6, 9, 10, 11, 12])]
)
def test_evaluations_are_counted_truly_from_the_first_step_on(name, counts):
    solver = resolve_base_solver(name)
    for g in (None, lambda eps, s, z, stages, x: stages[-1]):
        calls = [
            count_nfe(lambda f, k=k, g=g: hypersolve(f, FORCED.z0, FORCED.t_span, k, solver, g), FORCED.f)
            for k in range(1, 7)
        ]
        assert calls == [solver.count_evaluations(k) for k in range(1, 7)] == counts


@pytest.mark.parametrize(
    ("name", "t_span", "times"),
    [
        ("ab2", (0, 1), [0, 0.25, 0.5, 0.75]),
        ("ab3", (0, 1), [0, 0.125, 0.25, 0.375, 0.5, 0.75]),
        ("ab3", (1, 0), [1, 0.875, 0.75, 0.625, 0.5, 0.25]),
        ("ab4", (0, 1), [0, 0.125, 0.25, 0.25, 0.375, 0.5, 0.5, 0.625, 0.75, 0.75]),
    ],
)
def test_f_is_evaluated_at_the_nodes_of_each_step(name, t_span, times):
    f = Recorder(FORCED.f)
    hypersolve(f, FORCED.z0, t_span, 4, name)
    assert [t.item() for t in f.times] == times  # dyadic fractions: exact


@each_solver
def test_f_is_never_evaluated_twice_at_one_place(solver):
    seen = []
    hypersolve(
        lambda t, z: seen.append((t.item(), *z.ravel().tolist())) or FORCED.f(t, z), FORCED.z0, (0, 1), 6, solver
    )
    assert len(set(seen)) == len(seen) == solver.count_evaluations(6)


# --- stages and corrections -----------------------------------------------------------------------------------------


@each_direction
@each_solver
def test_g_reads_the_remembered_stages_newest_first_and_fewer_at_start_up(solver, kind):
    problem, p, calls = DATA_CONTROLLED, solver.order, []

    def g(eps, s, z, stages, x):
        calls.append((s, stages))
        return torch.zeros_like(z)

    grid = mesh(problem.t_span, 6, kind)
    states = hypersolve_trajectory(problem.f, problem.z0, None, None, solver, g, x=problem.x, grid=grid)
    slopes = [problem.f(torch.tensor(s, dtype=DOUBLE), z, problem.x) for s, z in zip(grid, states, strict=True)]
    for k, (s, stages) in enumerate(calls):
        assert s.item() == grid[k] and torch.equal(stages[0], slopes[k])
        if k < p - 1:
            assert len(stages) == resolve_base_solver(STARTERS[p]).n_stages < solver.n_stages
        else:
            assert len(stages) == solver.n_stages == p
            assert all(torch.equal(stages[j], slopes[k - j]) for j in range(p))


@each_solver
def test_offsets_say_where_the_stages_lie(solver):
    """f = t makes a stage its own time."""
    p, stages_of = solver.order, []
    hypersolve(
        lambda t, z: t + 0 * z,
        torch.zeros(1, 1, dtype=DOUBLE),
        (1.0, 0.0),
        5,
        solver,
        lambda eps, s, z, stages, x: stages_of.append([(r.item() - s.item()) / eps for r in stages]) or z,
    )
    for k, offsets in enumerate(stages_of):
        assert offsets == pytest.approx(solver.kind(k).offsets, abs=1e-12)
        assert len(offsets) == (p if k >= p - 1 else len(solver.starter.tableau.c))
    assert solver.main_kind.offsets == solver.kind(p - 1).offsets == tuple(-k for k in range(p))


@each_solver
def test_start_up_steps_are_of_the_starters_kind_and_later_ones_of_their_own(solver):
    """They evaluate f once, read p stages, and have no tableau."""
    p, starter = solver.order, resolve_base_solver(STARTERS[solver.order])
    assert solver.starter == starter and solver.memory == p - 1
    assert [solver.kind(k) for k in range(p - 1)] == [starter.main_kind] * (p - 1)
    assert solver.kinds == (starter.main_kind, solver.main_kind)
    assert (solver.main_kind.order, solver.main_kind.nodes) == (p, (0.0,))


@each_direction
@each_problem
@each_solver
def test_exact_residual_reproduces_the_reference_trajectory_through_start_up(solver, problem, kind):
    grid = mesh(problem.t_span, 6, kind)
    exact = problem.states(grid)
    residuals = compute_residuals(problem.f, exact, grid, solver, x=problem.x)
    assert [r.order for r in residuals] == [solver.order - 1] * (solver.order - 1) + [solver.order] * (7 - solver.order)
    targets = iter(residuals)
    arguments = (problem.f, problem.z0, None, None, solver)
    states = hypersolve_trajectory(*arguments, lambda *_: next(targets).target, x=problem.x, grid=grid)
    bare = hypersolve_trajectory(*arguments, x=problem.x, grid=grid)
    assert largest(states - exact) < 1e-12
    assert largest(bare - exact) > 1e-6


@each_direction
@each_solver
def test_history_alone_gives_the_residual_of_a_full_step(solver, kind):
    """The steps of the past cost one evaluation each, and leave what a solve through them leaves."""
    p, grid, f = solver.order, mesh(FORCED.t_span, 6, kind), Recorder(FORCED.f)
    exact = FORCED.states(grid)
    along = compute_residuals(FORCED.f, exact, grid, solver)[p - 1 :]
    alone = compute_residuals(f, exact, grid, solver, n_past=p - 1)
    assert [t.item() for t in f.times] == list(grid[:-1])
    for one, other in zip(along, alone, strict=True):
        assert (one.s, one.eps, one.order) == (other.s, other.eps, other.order) == (one.s, one.eps, p)
        assert torch.equal(one.target, other.target)
        assert all(torch.equal(left, right) for left, right in zip(one.stages, other.stages, strict=True))


@pytest.mark.parametrize("n_past", [1, 2])
def test_a_shorter_history_leaves_some_start_up_to_do(n_past):
    grid = mesh(FORCED.t_span, 6)
    residuals = compute_residuals(FORCED.f, FORCED.states(grid), grid, "ab4", n_past=n_past)
    assert [r.order for r in residuals] == [3] * (3 - n_past) + [4] * 3
    assert [r.s for r in residuals] == list(grid[n_past:-1])


@pytest.mark.parametrize(
    ("solver", "n_past", "message"),
    [
        ("ab3", 3, r"n_past must be an integer from 0 to 2 \(for base_solver='ab3' and a grid of 4 steps\), got 3"),
        ("ab3", -1, "got -1"),
        ("ab3", 0.5, "got 0.5"),
        ("heun", 1, "from 0 to 0 .*'heun'"),
    ],
)
def test_a_history_that_the_method_does_not_remember_is_refused(solver, n_past, message):
    grid = mesh(FORCED.t_span, 4)
    with pytest.raises(ValueError, match=message):
        compute_residuals(FORCED.f, FORCED.states(grid), grid, solver, n_past=n_past)


@each_direction
@each_solver
def test_residuals_stay_of_order_one_as_eps_shrinks(solver, kind):
    rms = []
    for n_steps in (64, 128):
        grid = mesh(FORCED.t_span, n_steps, kind)
        residuals = compute_residuals(FORCED.f, FORCED.states(grid), grid, solver)
        start, full = residuals[: solver.order - 1], residuals[solver.order - 1 :]
        rms.append([torch.stack([r.target for r in part]).pow(2).mean().sqrt().item() for part in (start, full)])
    # 0.15: the mesh points that the few start-up steps take move with eps.
    assert np.divide(*rms) == pytest.approx([1, 1], abs=0.15)


# --- gradients, export, names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [(0.0, 0.2, 0.5, 0.6, 0.9, 1.0), (1.0, 0.8, 0.6, 0.4, 0.2, 0.0)])
@each_solver
def test_gradients_with_respect_to_state_parameters_and_input(solver, grid, generator):
    def solve(z0, x, weights_f, weights_g):
        return hypersolve(
            lambda t, z, x: torch.tanh(z @ weights_f + t * x),
            z0,
            None,
            None,
            solver,
            lambda eps, s, z, stages, x: torch.tanh(stages[-1] @ weights_g) * x,
            x=x,
            grid=grid,
        )

    shapes = [(3, 2), (3, 2), (2, 2), (2, 2)]
    inputs = [torch.randn(shape, generator=generator, dtype=DOUBLE, requires_grad=True) for shape in shapes]
    assert torch.autograd.gradcheck(solve, inputs)


class _Solved(nn.Module):
    def __init__(self, solver, grid):
        super().__init__()
        self.f, self.g = nn.Linear(2, 2), nn.Linear(2, 2)
        self.solver, self.grid = solver, grid

    def forward(self, z):
        def g(eps, s, z, stages, x):
            return self.g(stages[-1]) * len(stages)

        return hypersolve(lambda t, z: torch.tanh(self.f(z)) * t, z, None, None, self.solver, g, grid=self.grid)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("grid", [(0.0, 0.2, 0.5, 0.6, 0.9, 1.0), (1.0, 0.0)])
@each_solver
def test_exported_program_is_the_solve(solver, grid, strict):
    module, z = _Solved(solver, grid).eval(), torch.randn(5, 2)
    shapes = ({0: torch.export.Dim("batch", min=2, max=64)},)
    program = torch.export.export(module, (z,), dynamic_shapes=shapes, strict=strict).module()
    for batch in (z, torch.randn(9, 2)):
        assert torch.equal(program(batch), module(batch))


@pytest.mark.parametrize("order", [1, 5, True, 2.5, "2"])
def test_other_orders_are_refused(order):
    with pytest.raises(ValueError, match=f"order must be 2, 3 or 4, got {order!r}"):
        AdamsBashforth(order)
