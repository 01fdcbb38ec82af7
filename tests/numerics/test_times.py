"""Time is no state: spans, step counts and meshes are checked, and f gets its time exactly, however far from zero."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from sklearn_hyper import NeuralODE
from sklearn_hyper.numerics import compute_residuals, hypersolve, hypersolve_trajectory, reference_solution
from sklearn_hyper.numerics.reference import solve_dopri5
from sklearn_hyper.numerics.times import (
    check_grid,
    check_n_steps,
    check_resolution,
    check_t_span,
    time_dtype,
    time_tensor,
    uniform_grid,
)

FAR = 1.7e9
"""Seconds since 1970: float32 has one number every 128 of them."""
PERIOD, LENGTH = 60.0, 15.0
GROWTH = math.exp(6 / (2 * math.pi))
SPAN = (FAR, FAR + LENGTH)


def season(t, z):
    return torch.cos(2 * math.pi * (t - FAR) / PERIOD) * z / 10


def season_at_zero(t, z):
    return torch.cos(2 * math.pi * t / PERIOD) * z / 10


both = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


# ---------------------------------------------------------------------- spans, counts and meshes
@pytest.mark.parametrize("t_span", [(0, 1), [1, 0], (torch.tensor(0.0), np.float32(1)), np.array([0.25, -3])])
def test_spans_become_two_floats(t_span):
    span = check_t_span(t_span)
    assert span == (float(t_span[0]), float(t_span[1])) and {type(end) for end in span} == {float}


@pytest.mark.parametrize(
    ("t_span", "message"),
    [
        *((value, "t_span must be finite") for value in [(0, math.nan), (math.inf, 0), (0, -math.inf)]),
        *(
            (value, r"t_span must be a pair of numbers \(start, end\), got ")
            for value in [(0,), (0, 1, 2), 1.0, None, ("a", "b"), (0, None)]
        ),
        ((1, 1.0), "t_span must have two different ends"),
    ],
)
def test_what_is_no_span_is_refused(t_span, message):
    with pytest.raises(ValueError, match=message):
        check_t_span(t_span)


@pytest.mark.parametrize("n_steps", [1, 7, np.int64(3), torch.tensor(2)])
def test_counts_become_ints(n_steps):
    assert check_n_steps(n_steps) == int(n_steps) and type(check_n_steps(n_steps)) is int


@pytest.mark.parametrize("n_steps", [0, -1, 2.0, True, "3", None, np.array([2]), np.float64(2)])
def test_what_is_no_count_is_refused_by_its_name(n_steps):
    with pytest.raises(ValueError, match="n_steps must be an integer >= 1, got"):
        check_n_steps(n_steps)
    with pytest.raises(ValueError, match="K must be an integer >= 1, got"):
        check_n_steps(n_steps, "K")


@pytest.mark.parametrize("t_span", [(0.1, 0.7), (0.7, 0.1), (-1e9, 3.0)])
@pytest.mark.parametrize("n_steps", [1, 2, 3, 10])
def test_a_uniform_grid_hits_both_ends_and_has_equal_steps(t_span, n_steps):
    grid = uniform_grid(t_span, n_steps)
    assert (len(grid), grid[0], grid[-1]) == (n_steps + 1, *t_span)
    assert np.diff(grid) == pytest.approx([(t_span[1] - t_span[0]) / n_steps] * n_steps, rel=1e-9)


@pytest.mark.parametrize("make", [tuple, list, np.array, lambda grid: torch.tensor(grid, dtype=torch.float64)])
def test_a_mesh_may_come_as_any_sequence(make):
    for grid in [(0.0, 0.25, 1.0), (1.0, 0.25, 0.0)]:
        mesh = check_grid(make(grid), grid[::2], 2)
        assert mesh == grid and {type(s) for s in mesh} == {float}


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        *((value, "grid must hold at least two finite, strictly monotone times") for value in
          [(), (0,), (0, 0), (0, 0.6, 0.5, 1), (1, 0.5, 0.7), (0, 0.5, 0.5, 1), (0, math.nan, 1), (0, math.inf)]),
        ((0, 0.5, 2), r"grid runs from 0.0 to 2.0, which contradicts t_span=\(0, 1\)"),
        ((1, 0.5, 0), "contradicts t_span"),
        ((0, 1), "grid has 1 steps, which contradicts n_steps=2"),
    ],
)  # fmt: skip
def test_meshes_that_are_none_or_contradict_the_rest_are_refused(grid, message):
    with pytest.raises(ValueError, match=message):
        check_grid(grid, (0, 1), 2)


@pytest.mark.parametrize("far", [1.0, -1e6, 1e12])
def test_float64_has_to_resolve_a_span_to_a_millionth(far):
    """Times far from zero are apart by their rounding: 2.2e-16 of them."""
    width = abs(far) * 2.3e-16 / 1e-6
    check_resolution("times", (far, far + width))
    with pytest.raises(ValueError, match=r"times from .* lies so far from zero .* measure time from the start"):
        check_resolution("times", (far, far + width / 2))


# ---------------------------------------------------------------------- the rule
@pytest.mark.parametrize(
    ("span", "exact"),
    [
        ((0.0, 1.0), False),
        ((5.0, -4.0), False),
        ((0.0, 1e-9), False),
        ((50.0, 51.0), False),
        ((1000.0, 1001.0), True),
        ((-1000.0, -1001.0), True),
        ((1e6, 1e6 + 1), True),
        ((1e-3, 1e-3 + 1e-6), True),
        ((FAR, 2 * FAR), False),
    ],
    ids=str,
)
def test_the_dtype_of_times_is_the_states_where_that_resolves_the_span(span, exact):
    assert time_dtype(torch.float32, span) == (torch.float64 if exact else torch.float32)
    assert time_dtype(torch.float64, span) == torch.float64
    assert time_tensor(span[0], torch.zeros(1), span).item() == pytest.approx(span[0], rel=0 if exact else 1e-7)
    assert time_tensor(span[0], torch.zeros(1), span).ndim == 0


@pytest.mark.parametrize("span", [(1e12, 1e12 + 1e-3), (1.0, 1 + 1e-12), (-1e300, -1e300 * (1 + 1e-12))], ids=str)
def test_spans_that_not_even_float64_resolves_are_refused(span):
    with pytest.raises(
        ValueError, match=r"t_span from .* so far from zero that float64 does not resolve it.*from the start"
    ):
        NeuralODE(season, t_span=span)
    grid = (span[0], (span[0] + span[1]) / 2, span[1])
    with pytest.raises(ValueError, match=r"grid from .* does not resolve"):
        hypersolve(season, torch.ones(1, 1), None, None, "euler", grid=grid)
    with pytest.raises(ValueError, match=r"times from .* does not resolve"):
        reference_solution(season, torch.ones(1, 1), grid)


def test_a_span_that_overflows_is_refused():
    with pytest.raises(ValueError, match="t_span"):
        check_t_span((-1e308, 1e308))


# ---------------------------------------------------------------------- solves
@both
@pytest.mark.parametrize("backwards", [False, True])
def test_references_are_those_of_the_span_at_zero(dtype, backwards):
    times = [FAR + share * LENGTH for share in (0, 0.2, 0.7, 1)][:: -1 if backwards else 1]
    states = reference_solution(season, torch.ones(3, 2, dtype=dtype), times)
    exponents = [
        6 / (2 * math.pi) * (math.sin(2 * math.pi * (t - FAR) / PERIOD) - (1.0 if backwards else 0.0)) for t in times
    ]
    expected = torch.tensor([math.exp(e) for e in exponents], dtype=dtype)
    assert torch.allclose(states[:, 0, 0], expected, rtol=3e-5)
    end = solve_dopri5(season, torch.ones(3, 2, dtype=dtype), (times[0], times[-1]), rtol=1e-6)
    assert end[0, 0].item() == pytest.approx(expected[-1].item(), rel=1e-4)


@both
@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("midpoint", 2), ("rk4", 4), ("ab2", 2), ("ab3", 3)])
def test_fixed_step_solves_keep_their_order(dtype, solver, order):
    errors = []
    for k in (6, 12):
        z = hypersolve(season, torch.ones(1, 1, dtype=dtype), SPAN, k, solver)
        errors.append(abs(z.item() / GROWTH - 1))
    assert errors[1] < errors[0] / 2 ** (order - 0.4) or errors[1] < 1e-6
    states = hypersolve_trajectory(season, torch.ones(1, 1, dtype=dtype), SPAN, 4, solver)
    assert states.dtype == dtype


def test_residuals_are_those_of_the_span_at_zero():
    z0 = torch.ones(2, 1)
    near = uniform_grid((0, LENGTH), 4)
    states = reference_solution(season_at_zero, z0.double(), near, rtol=1e-10).float()
    for solver in ("euler", "heun", "ab2"):
        expected = compute_residuals(season_at_zero, states, near, solver)
        found = compute_residuals(season, states, uniform_grid(SPAN, 4), solver)
        for one, other in zip(found, expected, strict=True):
            assert torch.allclose(one.target, other.target, rtol=1e-3, atol=1e-6)
            assert one.time().dtype == torch.float64 and other.time().dtype == torch.float32


def test_adjoint_gradients_are_those_of_backpropagation():
    class Season(nn.Module):
        def __init__(self):
            super().__init__()
            self.rate = nn.Parameter(torch.tensor(0.1))

        def forward(self, t, z):
            return torch.cos(2 * math.pi * (t - FAR) / PERIOD) * self.rate * z

    for adjoint in (False, True):
        field = Season()
        NeuralODE(field, t_span=SPAN)(torch.ones(2, 1), adjoint=adjoint).mean().backward()
        # z = exp(rate * 60 / (2 pi)), whose derivative by the rate is 60 / (2 pi) z
        assert field.rate.grad.item() == pytest.approx(PERIOD / (2 * math.pi) * GROWTH, rel=1e-4)
