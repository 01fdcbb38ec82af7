"""A solve: what it calls, how it corrects, what it keeps and what it refuses (paper, eqs. 2 and 5)."""

import copy
import math
from functools import partial
from itertools import pairwise

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from problems import (
    BASE_SOLVERS,
    DATA_CONTROLLED,
    FORCED,
    LOGISTIC,
    METHODS,
    MULTISTEP,
    Recorder,
    largest,
    mesh,
    named,
)
from torch import nn

from sklearn_hyper.numerics import count_nfe, hypersolve, hypersolve_trajectory
from sklearn_hyper.numerics.tableaus import TABLEAUS

each_solver = pytest.mark.parametrize("solver", **named(BASE_SOLVERS))
each_method = pytest.mark.parametrize("solver", **named((*BASE_SOLVERS, *MULTISTEP)))
each_direction = pytest.mark.parametrize("kind", ["uniform", "reverse", "graded"])


# --- what is called, how often, with what -------------------------------------------------------------------------


@each_direction
@each_solver
def test_f_is_called_stages_times_steps_with_and_without_correction(solver, kind):
    grid = mesh(FORCED.t_span, 4, kind)
    for g in (None, lambda eps, s, z, stages, x: stages[0]):
        calls = count_nfe(lambda f, g=g: hypersolve(f, FORCED.z0, None, None, solver, g, grid=grid), FORCED.f)
        assert calls == 4 * len(solver.b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_f_sees_time_as_a_scalar_tensor_like_the_state(dtype):
    f = Recorder(LOGISTIC.f)
    hypersolve(f, LOGISTIC.z0.to(dtype), (0, 1), 2, "rk4")
    assert {(t.shape, t.dtype, t.device) for t in f.times} == {(torch.Size(), dtype, LOGISTIC.z0.device)}


@each_direction
@each_solver
def test_g_sees_signed_eps_time_state_stages_and_input(solver, kind):
    problem, calls = DATA_CONTROLLED, []

    def g(eps, s, z, stages, x):
        calls.append((eps, s, z, stages, x))
        return torch.zeros_like(z)

    grid = mesh(problem.t_span, 3, kind)
    states = hypersolve_trajectory(problem.f, problem.z0, None, None, solver, g, x=problem.x, grid=grid)
    assert [eps for eps, *_ in calls] == [after - before for before, after in pairwise(grid)]
    assert [s.item() for _, s, *_ in calls] == list(grid[:-1])
    for (eps, s, z, stages, x), state in zip(calls, states[:-1], strict=True):
        assert type(eps) is float and (eps < 0) == (kind == "reverse")
        assert s.ndim == 0 and s.dtype == z.dtype
        assert torch.equal(z, state)
        assert isinstance(stages, list) and [stage.shape for stage in stages] == [z.shape] * len(solver.b)
        assert torch.equal(stages[0], problem.f(s, z, problem.x))
        assert x is problem.x


def test_g_sees_no_input_where_there_is_none():
    seen = []
    hypersolve(LOGISTIC.f, LOGISTIC.z0, (0, 1), 1, "euler", lambda eps, s, z, stages, x: seen.append(x) or z)
    assert seen == [None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@each_direction
@each_method
def test_zero_correction_is_the_base_solver_bit_for_bit(solver, kind, dtype):
    grid, z0 = mesh(FORCED.t_span, 4, kind), FORCED.z0.to(dtype)
    bare = hypersolve_trajectory(FORCED.f, z0, None, None, solver, grid=grid)
    corrected = hypersolve_trajectory(
        FORCED.f, z0, None, None, solver, lambda eps, s, z, stages, x: torch.zeros_like(z), grid=grid
    )
    assert torch.equal(corrected, bare)


# --- what is kept: shape, dtype, device, rows, gradients, the user's modules ------------------------------------------

shapes = st.tuples(st.integers(0, 4), st.lists(st.integers(1, 3), max_size=3)).map(lambda pair: (pair[0], *pair[1]))


@given(
    shape=shapes,
    dtype=st.sampled_from([torch.float32, torch.float64]),
    solver=st.sampled_from((*BASE_SOLVERS, *MULTISTEP)),
    n_steps=st.integers(1, 5),
    t_span=st.sampled_from([(0.0, 1.0), (1, -1), (0.3, 0.7)]),
    corrected=st.booleans(),
)
def test_any_shape_and_dtype_is_kept(shape, dtype, solver, n_steps, t_span, corrected):
    z0 = torch.linspace(-1, 1, math.prod(shape), dtype=dtype).reshape(shape)
    arguments = (lambda t, z: torch.cos(t) - z, z0, t_span, n_steps, solver)
    g = (lambda eps, s, z, stages, x: stages[-1] * s) if corrected else None
    states = hypersolve_trajectory(*arguments, g)
    assert states.shape == (n_steps + 1, *shape) and states.dtype == dtype
    assert torch.equal(states[0], z0)
    assert torch.equal(states[-1], hypersolve(*arguments, g))


@given(
    solver=st.sampled_from((*BASE_SOLVERS, *MULTISTEP)),
    n_rows=st.integers(1, 5),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_rows_are_independent(solver, n_rows, dtype):
    z0 = torch.linspace(-1, 1, 2 * n_rows, dtype=dtype).reshape(n_rows, 2)

    def solve(z):
        return hypersolve(lambda t, z: torch.sin(z) * t, z, (0, 2), 5, solver, lambda eps, s, z, r, x: r[0] * z)

    apart = torch.cat([solve(row[None]) for row in z0])
    # Kernels may round tails of a batch differently: a few units in the last place.
    torch.testing.assert_close(solve(z0), apart, rtol=50 * torch.finfo(dtype).eps, atol=50 * torch.finfo(dtype).eps)


@each_method
def test_float32_is_float64_to_its_rounding(solver):
    z = hypersolve(FORCED.f, FORCED.z0, FORCED.t_span, 5, solver)
    single = hypersolve(FORCED.f, FORCED.z0.float(), FORCED.t_span, 5, solver)
    assert single.dtype == torch.float32
    assert largest(single - z) < 100 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("solver", ["rk4", "ab4"])
def test_nothing_leaves_the_device(solver):
    """The meta device holds no values: a host sync in the loop, or a tensor made elsewhere, would raise or show."""
    f, z0 = Recorder(lambda t, z: z * t), torch.empty(5, 2, device="meta")
    states = hypersolve_trajectory(f, z0, (0, 1), 5, solver, lambda eps, s, z, stages, x: eps * s * stages[0])
    assert states.device.type == "meta" and states.shape == (6, 5, 2)
    assert {t.device.type for t in f.times} == {"meta"}


@pytest.mark.parametrize("solver", ["euler", "heun", "rk4"])
def test_gradients_with_respect_to_state_parameters_and_input(solver, generator):
    def solve(z0, x, weights_f, weights_g):
        return hypersolve(
            lambda t, z, x: torch.tanh(z @ weights_f + t * x),
            z0,
            (0.0, 0.8),
            2,
            solver,
            lambda eps, s, z, stages, x: torch.tanh(stages[-1] @ weights_g) * x,
            x=x,
        )

    shapes = [(3, 2), (3, 2), (2, 2), (2, 2)]
    inputs = [torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True) for shape in shapes]
    assert torch.autograd.gradcheck(solve, inputs)


class _Field(nn.Sequential):
    def forward(self, t, z):
        return super().forward(torch.cat([z, t.expand(z.shape[0], 1)], dim=1))


class _Correction(nn.Linear):
    def forward(self, eps, s, z, stages, x=None):
        return eps * super().forward(torch.cat([z, *stages], dim=1))


class _Solved(nn.Module):
    def __init__(self, solver, t_span):
        super().__init__()
        self.f = _Field(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))
        self.g = _Correction(2 + 2 * TABLEAUS[solver].n_stages, 2)
        self.solver, self.t_span = solver, t_span

    def forward(self, z):
        return hypersolve(self.f, z, self.t_span, 3, self.solver, self.g)


@pytest.mark.parametrize(("solver", "t_span"), [("euler", (0.0, 1.0)), ("rk4", (1.0, 0.0))])
def test_exported_program_is_the_solve(solver, t_span):
    module, z = _Solved(solver, t_span).eval(), torch.randn(5, 2)
    shapes = ({0: torch.export.Dim("batch", min=2, max=64)},)
    program = torch.export.export(module, (z,), dynamic_shapes=shapes).module()
    for batch in (z, torch.randn(9, 2)):
        assert torch.equal(program(batch), module(batch))


def test_modules_are_only_read():
    module = _Solved("heun", (0.0, 1.0)).eval()
    attributes, state = [set(vars(part)) for part in module.modules()], copy.deepcopy(module.state_dict())
    module(torch.randn(5, 2)).sum().backward()
    assert [set(vars(part)) for part in module.modules()] == attributes
    assert not any(part.training for part in module.modules())
    assert module.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items())


# --- the mesh ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("t_span", [(0.1, 0.7), (0.7, 0.1), [0, 1], (torch.tensor(0.0), np.float32(1))])
@pytest.mark.parametrize("n_steps", [1, 3, np.int64(7)])
def test_uniform_steps_hit_both_ends(t_span, n_steps):
    f = Recorder(lambda t, z: torch.ones_like(z))
    z0 = torch.zeros(1, 1, dtype=torch.float64)
    end = hypersolve(f, z0, t_span, n_steps, "heun").item()
    start, stop = (float(value) for value in t_span)
    assert end == pytest.approx(stop - start, abs=1e-15)
    assert (f.times[0].item(), f.times[-1].item()) == (start, pytest.approx(stop, abs=1e-15))
    starts = np.array([t.item() for t in f.times[::2]])
    assert np.allclose(starts, np.linspace(start, stop, int(n_steps) + 1)[:-1], rtol=0, atol=1e-15)


def test_a_grid_may_be_given_with_what_agrees_with_it():
    def solve(t_span, n_steps, grid=(0.0, 0.25, 1.0)):
        return hypersolve(FORCED.f, FORCED.z0, t_span, n_steps, "heun", grid=grid)

    assert torch.equal(solve(None, None), solve((0, 1), 2))
    assert torch.equal(solve(None, None), solve([0.0, 1.0], None))
    assert not torch.equal(solve(None, None), solve((0, 1), 2, grid=None))


nan, inf = math.nan, math.inf


@pytest.mark.parametrize("solve", [hypersolve, hypersolve_trajectory])
@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        *(
            ({"n_steps": value}, ValueError, "n_steps must be an integer >= 1, got ")
            for value in (0, -1, 2.0, True, "3", None)
        ),
        *(({"t_span": value}, ValueError, "t_span must be finite") for value in [(0, nan), (inf, 0), (0, -inf)]),
        *(
            ({"t_span": value}, ValueError, r"t_span must be a pair of numbers \(start, end\)")
            for value in [(0,), (0, 1, 2), 1.0, None, ("a", "b"), (0, None)]
        ),
        ({"t_span": (1, 1.0)}, ValueError, "t_span must have two different ends"),
        *(
            ({"grid": value, "t_span": None, "n_steps": None}, ValueError, "strictly monotone times")
            for value in [(), (0,), (0, 0), (0, 0.6, 0.5, 1), (1, 0.5, 0.7), (0, 0.5, 0.5, 1), (0, nan, 1), (0, inf)]
        ),
        ({"grid": (0, 0.5, 2), "n_steps": 2}, ValueError, "from 0.0 to 2.0, which contradicts t_span=.0, 1."),
        ({"grid": (1, 0.5, 0), "n_steps": 2}, ValueError, "contradicts t_span"),
        ({"grid": (0, 0.5, 1), "n_steps": 3}, ValueError, "grid has 2 steps, which contradicts n_steps=3"),
        *(
            ({"z0": value}, TypeError, r"z0 must be a floating-point tensor of shape \(batch, ...\)")
            for value in [torch.ones(2, 1, dtype=torch.int64), torch.tensor(1.0), [[1.0]], np.ones((2, 1)), 1.0, None]
        ),
        ({"base_solver": "rk45"}, ValueError, "'rk45' is unknown; valid names are .*heun.*rk4"),
        *(
            ({"g": value}, ValueError, r"g holds 2 corrections for 3 steps; pass one a step")
            for value in [[torch.nn.Identity()] * 2, torch.nn.ModuleList([torch.nn.Identity()] * 2)]
        ),
        ({"base_solver": 4}, TypeError, "base_solver must be a name .* a ButcherTableau or a numerics.Method, got int"),
    ],
)
def test_bad_arguments_are_named_before_any_evaluation(solve, changes, error, message):
    def f(t, z):
        raise AssertionError("f was evaluated")

    valid = {"z0": torch.ones(2, 1), "t_span": (0, 1), "n_steps": 3, "base_solver": "heun"}
    with pytest.raises(error, match=message):
        solve(f, **(valid | changes))


# --- inputs of the field ---------------------------------------------------------------------------------------------


def conditioned(t, z, *, rate, shift=0.0):
    return rate * z * (1 - z) + shift * t


def doubly_conditioned(t, z, x, *, rate, shift=0.0):
    return conditioned(t, z, rate=rate, shift=shift) + 0.1 * x


RATE = torch.tensor([[0.5], [1.0], [-1.0]], dtype=torch.float64)


@pytest.mark.parametrize("method", **named(METHODS))
@pytest.mark.parametrize("x", [None, DATA_CONTROLLED.x], ids=["f(t, z)", "f(t, z, x)"])
def test_a_condition_is_bound_to_the_field(method, x):
    """Keywords travel beside the state: the solve is that of the field that holds them."""
    f = conditioned if x is None else doubly_conditioned
    bound = partial(f, rate=RATE, shift=0.3)
    how = {"x": x, "condition": {"rate": RATE, "shift": 0.3}}
    arguments = (LOGISTIC.z0, (0.0, 1.0), method.n_steps or 4, method)
    g = lambda eps, s, z, stages, x: stages[-1] * z  # noqa: E731
    for correction in (None, g):
        states = hypersolve_trajectory(f, *arguments, correction, **how)
        assert torch.equal(states, hypersolve_trajectory(bound, *arguments, correction, x=x))
        assert torch.equal(hypersolve(f, *arguments, correction, **how), states[-1])


def test_conditions_are_by_row():
    together = hypersolve(conditioned, LOGISTIC.z0, (0.0, 1.0), 3, "rk4", condition={"rate": RATE})
    apart = [
        hypersolve(conditioned, LOGISTIC.z0[i : i + 1], (0.0, 1.0), 3, "rk4", condition={"rate": RATE[i : i + 1]})
        for i in range(3)
    ]
    assert torch.equal(torch.cat(apart), together)


def test_a_solve_differentiates_with_respect_to_a_condition():
    def solve(rate, shift):
        return hypersolve(conditioned, LOGISTIC.z0, (0.0, 1.0), 3, "ab2", condition={"rate": rate, "shift": shift})

    assert torch.autograd.gradcheck(solve, (RATE.clone().requires_grad_(), RATE.clone().requires_grad_()))


def test_a_condition_that_the_field_does_not_take_is_its_error():
    with pytest.raises(TypeError, match="unexpected keyword argument 'label'"):
        hypersolve(LOGISTIC.f, LOGISTIC.z0, (0.0, 1.0), 3, "heun", condition={"label": RATE})
