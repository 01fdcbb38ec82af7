"""References are as accurate as their tolerance at every time asked for, row by row, or there is an error."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from problems import FORCED, LOGISTIC, PROBLEMS, Recorder, largest, mesh, named
from scipy.integrate import solve_ivp
from torch import nn

from sklearn_hyper.numerics import CountedField, FieldInputs, ReferenceSolveError, reference_solution
from sklearn_hyper.numerics.reference import solve_dopri5

TIMES = {"forward": (0.0, 0.3, 1.7, 2.0), "reverse": (2.0, 1.7, 0.3, 0.0)}
each_direction = pytest.mark.parametrize("times", TIMES.values(), ids=TIMES)


def _driven_pendulum(t, z):
    angle, speed = z.unbind(1)
    return torch.stack([speed, torch.cos(2 * t) - torch.sin(angle)], dim=1)


def _pendulum_by_scipy(z0, times):
    """DOP853 from time to time, so that no value is an interpolant; its own error is about 1e-11."""
    states = [z0.numpy().ravel()]
    for span in pairwise(times):
        solution = solve_ivp(
            lambda t, y: _driven_pendulum(torch.tensor(t), torch.tensor(y).reshape(-1, 2)).numpy().ravel(),
            span,
            states[-1],
            method="DOP853",
            rtol=1e-12,
            atol=1e-12,
        )
        states.append(solution.y[:, -1])
    return torch.tensor(np.stack(states)).reshape(len(times), *z0.shape)


def _spin(t, z):
    """Each row rotates at the frequency it carries as its third coordinate."""
    u, v, frequency = z.unbind(1)
    return torch.stack([-frequency * v, frequency * u, 0 * u], dim=1)


def _one_hard_row_among_easy_ones():
    z = torch.ones(200, 3, dtype=torch.float64)
    z[:, 2] = torch.linspace(0.1, 0.3, 200)
    z[77, 2] = 20.0
    return z


@each_direction
@pytest.mark.parametrize("tolerance", [1e-4, 1e-6, 1e-9])
def test_agrees_with_scipy_to_the_tolerance(tolerance, times):
    z0 = torch.tensor([[0.5, 0.0], [2.0, -1.0], [-1.0, 0.3]], dtype=torch.float64)
    states = reference_solution(_driven_pendulum, z0, times, rtol=tolerance, atol=tolerance)
    # The tolerance bounds a step's error; ten times that allows for its growth over the span.
    assert largest(states - _pendulum_by_scipy(z0, times)) < 10 * tolerance


@pytest.mark.parametrize("kind", ["uniform", "reverse", "graded"])
@pytest.mark.parametrize("problem", **named(PROBLEMS))
def test_agrees_with_closed_forms_at_every_time(problem, kind):
    grid, tolerance = mesh(problem.t_span, 5, kind), 1e-8
    states = reference_solution(problem.f, problem.z0, grid, rtol=tolerance, atol=tolerance, x=problem.x)
    assert largest(states - problem.states(grid)) < 10 * tolerance
    assert torch.equal(states[0], problem.z0)


@each_direction
def test_the_field_is_evaluated_within_the_span_only(times):
    """The last time is stepped onto like the others: past it a field may not exist, and interpolants are worse."""
    f = Recorder(FORCED.f)
    reference_solution(f, FORCED.z0, times, rtol=1e-3, atol=1e-3)
    seen = [t.item() for t in f.times]
    assert min(times) <= min(seen) and max(seen) <= max(times)
    assert seen[0] == times[0]


@each_direction
def test_more_mesh_times_do_not_move_the_states(times):
    few, many = times, sorted({*times, *np.linspace(0, 2, 9)}, reverse=times[0] > times[-1])
    coarse = reference_solution(_driven_pendulum, torch.ones(1, 2).double(), few, rtol=1e-8, atol=1e-8)
    fine = reference_solution(_driven_pendulum, torch.ones(1, 2).double(), many, rtol=1e-8, atol=1e-8)
    assert largest(fine[[many.index(t) for t in few]] - coarse) < 1e-7


@pytest.mark.parametrize("tolerance", [1e-4, 1e-6])
def test_rows_do_not_depend_on_their_batch(tolerance):
    """Alone, permuted or among others: the hard row stays within its tolerance, which a norm over the batch loses."""
    z = _one_hard_row_among_easy_ones()

    def solve(rows):
        return reference_solution(_spin, z[rows], (0, 0.5, 1), rtol=tolerance, atol=tolerance)

    together, order = solve(slice(None)), torch.randperm(len(z))
    assert largest(solve(order) - together[:, order]) < 2 * tolerance
    for rows in (slice(77, 78), slice(0, 1), slice(70, 80)):
        assert largest(solve(rows) - together[:, rows]) < 2 * tolerance


def test_float32_rows_do_not_depend_on_their_batch_at_the_default_tolerance():
    z = _one_hard_row_among_easy_ones().float()
    together, alone = (reference_solution(_spin, rows, (0, 1)) for rows in (z, z[77:78]))
    assert together.dtype == torch.float32
    assert largest(together[:, 77:78] - alone) < 2e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(4,), (3, 2), (2, 3, 4, 5)])
def test_any_shape_and_dtype_is_kept_and_no_graph(shape, dtype):
    weight = torch.ones((), dtype=dtype, requires_grad=True)
    f = Recorder(lambda t, z: -weight * z)
    states = reference_solution(f, torch.ones(shape, dtype=dtype), (0, 1, 2))
    assert states.shape == (3, *shape) and states.dtype == dtype and not states.requires_grad
    assert largest(states[-1] - math.exp(-2)) < 1e-5
    assert {(t.shape, t.dtype) for t in f.times} == {(torch.Size(), dtype)}


def test_float32_states_are_solved_on_the_mesh_itself():
    """Times are not rounded to z's dtype: an interval below float32's spacing of times is still solved."""
    start, width = 1.0, 1e-9
    states = reference_solution(lambda t, z: torch.full_like(z, 1e9), torch.zeros(1, 1), (start, start + width))
    assert states[-1].item() == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize(
    ("f", "z0", "t_end"),
    [
        (lambda t, z: -1e6 * (z - torch.cos(t)), 0.0, 1.0),
        (lambda t, z: z**2, 1.0, 2.0),
        (lambda t, z: 1000 * z, 1.0, 2.0),
        (lambda t, z: z * math.nan, 1.0, 1.0),
        (lambda t, z: z.log(), math.nan, 1.0),
    ],
    ids=["stiff", "blow-up", "overflow", "nan-field", "nan-state"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_hopeless_solve_stops_early_and_names_the_remedy(f, z0, t_end, dtype):
    counted = CountedField(f)
    with pytest.raises(ReferenceSolveError, match="Loosen rtol and atol, scale the inputs, shorten t_span, or retrain"):
        reference_solution(counted, torch.full((2, 1), z0, dtype=dtype), (0, t_end), max_evaluations=1000)
    assert counted.n_evaluations <= 1000


def test_the_evaluation_limit_is_exact():
    counted = CountedField(LOGISTIC.f)
    reference_solution(counted, LOGISTIC.z0, (0, 1))
    enough = counted.n_evaluations
    reference_solution(LOGISTIC.f, LOGISTIC.z0, (0, 1), max_evaluations=enough)
    with pytest.raises(ReferenceSolveError, match=f"needed more than {enough - 1} evaluations"):
        reference_solution(LOGISTIC.f, LOGISTIC.z0, (0, 1), max_evaluations=enough - 1)


@pytest.mark.parametrize("name", ["rtol", "atol"])
@pytest.mark.parametrize("value", [0, -1e-6, math.nan, math.inf, "1e-6", True])
def test_tolerances_must_be_positive_and_finite(name, value):
    with pytest.raises(ValueError, match=f"{name} must be a positive finite number, got"):
        reference_solution(LOGISTIC.f, LOGISTIC.z0, (0, 1), **{name: value})


@pytest.mark.parametrize("times", [(0, 0.5, 0.4), (0, 1, 1), (1, 0, 1), (0, math.nan)])
def test_times_must_be_monotone(times):
    """A bad mesh is the caller's slip: no ReferenceSolveError, whose advice is about the field."""
    with pytest.raises(ValueError, match="monotone"):
        reference_solution(LOGISTIC.f, LOGISTIC.z0, times)


def test_an_assertion_of_the_field_is_not_mistaken_for_a_failed_solve():
    def f(t, z):
        raise AssertionError("state has the wrong width")

    with pytest.raises(AssertionError, match="wrong width"):
        reference_solution(f, LOGISTIC.z0, (0, 1))


@pytest.mark.parametrize("z0", [torch.ones(2, 1, dtype=torch.int64), torch.tensor(1.0), [[1.0]]])
def test_the_state_must_be_a_floating_point_tensor_with_a_batch_axis(z0):
    with pytest.raises(TypeError, match="z0 must be a floating-point tensor"):
        reference_solution(LOGISTIC.f, z0, (0, 1))


@pytest.mark.parametrize("adjoint", [False, True])
def test_dopri5_is_differentiable(adjoint):
    """For z' = a z: dz(S)/da = S z(S), and dz(S)/dz0 = z(S)/z0, by backpropagation and by the adjoint method."""
    field = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(field.weight, -0.7)
    z0 = torch.tensor([[1.0], [3.0]], dtype=torch.float64, requires_grad=True)
    z = solve_dopri5(
        lambda t, z: field(z),
        z0,
        (0.0, 1.5),
        rtol=1e-9,
        atol=1e-9,
        adjoint_params=tuple(field.parameters()) if adjoint else None,
    )
    growth = math.exp(-0.7 * 1.5)
    gradients = torch.autograd.grad(z.sum(), [field.weight, z0])
    assert largest(z - growth * z0) < 1e-8
    assert gradients[0].item() == pytest.approx(1.5 * growth * 4, abs=1e-7)
    assert largest(gradients[1] - growth) < 1e-7


# --- inputs of the field ---------------------------------------------------------------------------------------------

RATE = torch.tensor([[0.5], [1.0], [-1.0]], dtype=torch.float64)


def conditioned(t, z, x=0.0, *, rate, shift):
    return rate * z * (1 - z) + shift * t + x


@pytest.mark.parametrize("x", [None, 0.1 * RATE], ids=["f(t, z)", "f(t, z, x)"])
def test_a_condition_is_bound_to_the_field(x):
    """Keywords travel beside the state: the solution is that of the field that holds them."""

    def bound(t, z):
        return conditioned(t, z, 0.0 if x is None else x, rate=RATE, shift=0.3)

    condition = {"rate": RATE, "shift": 0.3}
    states = reference_solution(conditioned, LOGISTIC.z0, (0.0, 0.4, 1.0), x=x, condition=condition)
    assert torch.equal(states, reference_solution(bound, LOGISTIC.z0, (0.0, 0.4, 1.0)))
    end = solve_dopri5(conditioned, LOGISTIC.z0, (0.0, 1.0), rtol=1e-6, inputs=FieldInputs(x, condition))
    assert torch.equal(end, solve_dopri5(bound, LOGISTIC.z0, (0.0, 1.0), rtol=1e-6))


def test_a_condition_that_the_field_writes_into_stays_as_it_was():
    kept = RATE.clone()
    states = reference_solution(
        lambda t, z, rate: z * rate.mul_(2), LOGISTIC.z0, (0.0, 1.0), rtol=1e-8, condition={"rate": kept}
    )
    assert torch.equal(kept, RATE) and largest(states[-1] - LOGISTIC.z0 * (2 * RATE).exp()) < 1e-6


@pytest.mark.parametrize("adjoint", [False, True])
def test_dopri5_is_differentiable_with_a_condition(adjoint):
    """For z' = a c z: dz(S)/da = S c z(S)."""
    weight = nn.Parameter(torch.tensor(-0.7, dtype=torch.float64))
    z = solve_dopri5(
        lambda t, z, c: weight * c * z,
        LOGISTIC.z0,
        (0.0, 1.5),
        rtol=1e-9,
        atol=1e-9,
        inputs=FieldInputs(condition={"c": RATE}),
        adjoint_params=(weight,) if adjoint else None,
    )
    expected = (1.5 * RATE * LOGISTIC.z0 * torch.exp(-0.7 * 1.5 * RATE)).sum().item()
    assert torch.autograd.grad(z.sum(), weight)[0].item() == pytest.approx(expected, abs=1e-7)
