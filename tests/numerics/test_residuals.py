"""Residuals are eq. 6, a correction near them obeys theorem 1, and their noise is what is estimated."""

import math

import numpy as np
import pytest
import torch
from problems import BASE_SOLVERS, FORCED, LOGISTIC, PROBLEMS, Recorder, kind_of, largest, log_slope, mesh, named

from sklearn_hyper.numerics import Residual, RungeKutta, compute_residuals, hypersolve, hypersolve_trajectory
from sklearn_hyper.numerics.residuals import target_noise

each_solver = pytest.mark.parametrize("solver", **named(BASE_SOLVERS))
each_problem = pytest.mark.parametrize("problem", **named(PROBLEMS))
each_direction = pytest.mark.parametrize("kind", ["uniform", "reverse", "graded"])


def _exact_residual_plus(delta, problem, solver):
    """The correction that is off by delta everywhere: eq. 6 on the closed form, plus delta."""

    def g(eps, s, z, stages, x):
        psi = sum(weight * stage for weight, stage in zip(solver.b, stages, strict=True))
        step = problem.exact(s.item(), s.item() + eps, z) - z - eps * psi
        return step / eps ** (solver.order + 1) + delta

    return g


def _error(problem, solver, grid, g):
    z = hypersolve(problem.f, problem.z0, None, None, solver, g, x=problem.x, grid=grid)
    return largest(z - problem.exact(grid[0], grid[-1], problem.z0))


@pytest.mark.parametrize("a", [1.0, -2.5])
@each_direction
def test_euler_on_a_linear_field_has_the_closed_form(kind, a):
    """For z' = a z, R = z (e^{a eps} - 1 - a eps) / eps^2, with the sign of eps."""
    grid = mesh((0.0, 1.0), 4, kind)
    states = torch.tensor([[[2 * math.exp(a * (s - grid[0]))]] for s in grid], dtype=torch.float64)
    residuals = compute_residuals(lambda t, z: a * z, states, grid, "euler")
    for residual, s, after, z in zip(residuals, grid, grid[1:], states, strict=False):
        eps = after - s
        expected = z * (math.exp(a * eps) - 1 - a * eps) / eps**2
        # 1e-13: rounding of z (1e-16) over the smallest eps^2 here.
        torch.testing.assert_close(residual.target, expected, rtol=0, atol=1e-13)


@each_direction
@each_problem
@each_solver
def test_a_residual_holds_what_its_step_needs(solver, problem, kind):
    """z + eps psi + eps^(p+1) R is the next reference state, with psi from the stages that come along."""
    grid = mesh(problem.t_span, 4, kind)
    states = problem.states(grid)
    residuals = compute_residuals(problem.f, states, grid, solver, x=problem.x)
    assert [residual.s for residual in residuals] == list(grid[:-1])
    for residual, eps, z, z_next in zip(residuals, np.diff(grid), states, states[1:], strict=False):
        assert residual.eps == eps and residual.order == residual.kind.order == solver.order
        assert residual.kind == RungeKutta(solver).main_kind and residual.t_span == (grid[0], grid[-1])
        assert torch.equal(residual.z, z) and residual.target.dtype == z.dtype
        psi = sum(weight * stage for weight, stage in zip(solver.b, residual.stages, strict=True))
        assert largest(z + eps * psi + eps ** (solver.order + 1) * residual.target - z_next) < 1e-14


@each_solver
def test_residuals_stay_of_order_one_as_eps_shrinks(solver):
    """eps^(p+1) is the right power: R tends to a limit, where a power one off would halve or double."""
    rms = []
    for n_steps in (32, 64):
        grid = mesh(FORCED.t_span, n_steps)
        residuals = compute_residuals(FORCED.f, FORCED.states(grid), grid, solver)
        rms.append(torch.stack([residual.target for residual in residuals]).pow(2).mean().sqrt().item())
    assert rms[0] / rms[1] == pytest.approx(1, abs=0.1)


def test_residuals_carry_no_graph_and_cost_one_pass_of_f():
    grid, weight = mesh(FORCED.t_span, 3), torch.ones((), dtype=torch.float64, requires_grad=True)
    f = Recorder(lambda t, z: weight * FORCED.f(t, z))
    residuals = compute_residuals(f, FORCED.states(grid), grid, "rk4")
    assert len(f.times) == 3 * 4
    assert {(t.shape, t.dtype) for t in f.times} == {(torch.Size(), torch.float64)}
    assert not any(tensor.requires_grad for r in residuals for tensor in (r.target, *r.stages))


@each_direction
@each_problem
@each_solver
def test_exact_residual_reproduces_the_reference_trajectory(solver, problem, kind):
    """Whatever the step: here three, on which the bare solver is far off. Tolerance: rounding of a few steps."""
    grid = mesh(problem.t_span, 3, kind)
    exact = problem.states(grid)
    residuals = iter(compute_residuals(problem.f, exact, grid, solver, x=problem.x))
    arguments = (problem.f, problem.z0, None, None, solver)
    states = hypersolve_trajectory(*arguments, lambda *_: next(residuals).target, x=problem.x, grid=grid)
    bare = hypersolve_trajectory(*arguments, x=problem.x, grid=grid)
    assert largest(states - exact) < 1e-12
    assert largest(bare - exact) > 1e-8


@pytest.mark.parametrize("sign", [1, -1])
@each_problem
@each_solver
def test_theorem_1_local_error_is_delta_times_eps_to_the_p_plus_one(solver, problem, sign):
    start, delta = problem.t_span[0], 0.3
    sizes = (0.1, 0.2, 0.4)
    errors = []
    for size in sizes:
        grid = (start, start + sign * size)
        errors.append(_error(problem, solver, grid, _exact_residual_plus(delta, problem, solver)))
        # One step's error is delta eps^(p+1), no more and no less; 1e-14 is the rounding of z.
        assert errors[-1] == pytest.approx(delta * abs(grid[1] - grid[0]) ** (solver.order + 1), abs=1e-14)
    assert log_slope(sizes, errors) == pytest.approx(solver.order + 1, abs=1e-6)


@each_direction
@pytest.mark.parametrize("problem", **named([LOGISTIC, FORCED]))
@each_solver
def test_theorem_1_error_is_linear_in_delta(solver, problem, kind):
    """Over several steps too, up to terms in delta squared: a slope of 1 to 0.02 for small delta."""
    grid, deltas = mesh(problem.t_span, 4, kind), (1e-4, 1e-3, 1e-2)
    errors = [_error(problem, solver, grid, _exact_residual_plus(delta, problem, solver)) for delta in deltas]
    assert abs(log_slope(deltas, errors) - 1) < 0.02


@pytest.mark.parametrize("problem", **named([LOGISTIC, FORCED]))
@each_solver
def test_an_imperfect_correction_keeps_the_order(solver, problem):
    n_steps = (16, 23, 32, 45)
    g = _exact_residual_plus(0.1, problem, solver)
    errors = [_error(problem, solver, mesh(problem.t_span, n), g) for n in n_steps]
    assert abs(log_slope(n_steps, errors) + solver.order) < 0.2


@pytest.mark.parametrize(
    ("n_states", "grid", "message"),
    [
        (2, (0, 0.5, 1), "states must hold one entry a grid time, got 2 for 3 times"),
        (3, (0, 1), "got 3 for 2 times"),
        (3, (0, 0.7, 0.5), "strictly monotone"),
        (3, (0, 0.5, 0.5), "strictly monotone"),
        (1, (0,), "strictly monotone"),
    ],
)
def test_states_and_grid_must_match(n_states, grid, message):
    with pytest.raises(ValueError, match=message):
        compute_residuals(FORCED.f, torch.ones(n_states, 3, 1), grid, "euler")


# --- what a residual knows -------------------------------------------------------------------------------------------


def test_rows_of_a_residual_are_the_residual_of_the_rows():
    grid, rows = mesh(FORCED.t_span, 3), torch.tensor([2, 0])
    states = FORCED.states(grid)
    together = compute_residuals(FORCED.f, states, grid, "ab2")
    apart = compute_residuals(FORCED.f, states[:, rows], grid, "ab2")
    for whole, part in zip(together, apart, strict=True):
        own = whole.rows(rows)
        assert (own.s, own.eps, own.kind, own.t_span) == (part.s, part.eps, part.kind, part.t_span)
        for one, other in zip([own.z, own.target, *own.stages], [part.z, part.target, *part.stages], strict=True):
            assert torch.equal(one, other)


def test_every_tensor_of_a_residual_can_be_changed():
    grid = mesh(FORCED.t_span, 2)
    residual = compute_residuals(FORCED.f, FORCED.states(grid), grid, "heun")[1]
    single = residual.each(torch.Tensor.float)
    assert {t.dtype for t in (single.z, single.target, *single.stages)} == {torch.float32}
    assert (single.s, single.eps, single.kind) == (residual.s, residual.eps, residual.kind)
    assert single.time().dtype == torch.float32 and residual.time().item() == residual.s


# --- inputs of the field ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_past", [0, 1])
@pytest.mark.parametrize("solver", ["heun", "ab2", "abm2", "abm2_pec"])
def test_a_condition_is_bound_to_the_field(solver, n_past):
    """The same as by hand, also in a history; what the field writes into stays as it was."""
    if solver == "heun":
        n_past = 0
    grid, rate = mesh(FORCED.t_span, 4), torch.tensor([[0.5], [1.0], [-1.0]], dtype=torch.float64)
    x, kept = torch.ones(3, 1, dtype=torch.float64) / 3, rate.clone()

    def f(t, z, x, *, rate, power):
        return rate.mul_(2) * FORCED.f(t, z) * power + x

    how = {"n_past": n_past, "x": x, "condition": {"rate": rate, "power": 1.5}}
    states = FORCED.states(grid)
    found = compute_residuals(f, states, grid, solver, **how)
    expected = compute_residuals(lambda t, z: 2 * kept * FORCED.f(t, z) * 1.5 + x, states, grid, solver, n_past=n_past)
    assert len(found) == 4 - n_past and torch.equal(rate, kept)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.target, other.target) and all(map(torch.equal, one.stages, other.stages))


# --- noise -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, 2, 4])
def test_noise_scales_with_the_inverse_power_of_eps(order):
    sizes, z = (0.01, 0.1, 1.0), torch.ones(3, 2).double()
    noise = [target_noise(Residual(0.0, -eps, z, [z], kind_of(order), z), rtol=1e-6, atol=1e-6) for eps in sizes]
    assert log_slope(sizes, noise) == pytest.approx(-(order + 1), abs=1e-9)


def test_noise_is_a_share_of_the_targets_rms():
    z, target = torch.ones(3, 2).double(), torch.full((3, 2), 4.0).double()
    residual = Residual(0.0, 0.5, z, [z], kind_of(1), target)
    assert target_noise(residual, rtol=1e-6, atol=2e-6) == pytest.approx(3e-6 / 0.5**2 / 4, rel=1e-6)
    assert target_noise(residual._replace(target=torch.zeros_like(z)), rtol=1e-6, atol=1e-6) == 0


def test_float32_states_are_never_better_than_their_rounding():
    z = torch.ones(3, 2)
    noise = target_noise(Residual(0.0, 0.1, z, [z], kind_of(1), z), rtol=1e-15, atol=1e-15)
    # Sixteen roundings: torchdiffeq reads the end of a step off its interpolant, whose coefficients reach 16 z.
    assert noise == pytest.approx(16 * torch.finfo(torch.float32).eps / 0.1**2, rel=1e-6)


@pytest.mark.parametrize("solver", ["euler", "heun", "rk4"])
def test_noise_in_the_states_moves_targets_by_what_was_estimated(solver, generator):
    """Two noisy states an eq. 6, and psi's share eps L: the change is within a factor of three, either way."""
    grid, tol = mesh(FORCED.t_span, 10), 1e-7
    exact = FORCED.states(grid)
    noise = tol * (1 + exact.abs()) * torch.randn(exact.shape, generator=generator, dtype=torch.float64)
    clean, noisy = (compute_residuals(FORCED.f, states, grid, solver) for states in (exact, exact + noise))
    change = torch.stack([after.target - before.target for before, after in zip(clean, noisy, strict=True)])
    scale = torch.stack([residual.target for residual in clean])
    measured = (change.pow(2).mean(dim=(1, 2)) / scale.pow(2).mean(dim=(1, 2))).sqrt().numpy()
    estimated = [target_noise(residual, rtol=tol, atol=tol) for residual in clean]
    ratio = np.exp(np.mean(np.log(measured / estimated)))
    assert 1 / 3 < ratio < 3
