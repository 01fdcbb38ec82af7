"""States at times of their own for each row, by dopri5 and by its adjoint."""

import math

import pytest
import torch
from problems import PROBLEMS, named

from sklearn_hyper.numerics import CountedField, FieldInputs
from sklearn_hyper.numerics.protection import NO_INPUTS
from sklearn_hyper.numerics.reference import solve_dopri5, solve_dopri5_at

NAN = math.nan


def own_times(t_span, n_rows, n_times, seed=0):
    """Times in the order of the span, the last of which is nan in every other row; the first row's are its ends."""
    start, end = t_span
    shares = torch.rand(n_rows, n_times, generator=torch.Generator().manual_seed(seed)).double().sort(dim=1).values
    shares[0, 0], shares[0, -1] = 0.0, 1.0
    times = start + (end - start) * shares
    times[0, 0], times[0, -1] = start, end
    times[1::2, -1] = NAN
    return times


def closed_form(problem, times):
    """The exact states at each row's times."""
    expected = torch.zeros(*times.shape, *problem.z0.shape[1:], dtype=problem.z0.dtype)
    for i, k in (~times.isnan()).nonzero().tolist():
        expected[i, k] = problem.exact(problem.t_span[0], times[i, k].item(), problem.z0)[i]
    return expected


def inputs_of(problem):
    return NO_INPUTS if problem.x is None else FieldInputs(problem.x)


@pytest.mark.parametrize("by_row", [False, True])
@pytest.mark.parametrize("problem", **named(PROBLEMS))
def test_dopri5_has_states_at_all_times_of_all_rows(problem, by_row):
    times = own_times(problem.t_span, len(problem.z0), 6)
    states = solve_dopri5_at(
        problem.f, problem.z0, problem.t_span, times, rtol=1e-8, atol=1e-8, inputs=inputs_of(problem), by_row=by_row
    )
    torch.testing.assert_close(states, closed_form(problem, times), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("problem", **named(PROBLEMS))
def test_time_turned_round_gives_the_same_states(problem):
    start, end = problem.t_span
    times = own_times(problem.t_span, len(problem.z0), 5)

    def turned(t, z, *x):
        return -problem.f(start - (t - start), z, *x)

    how = {"rtol": 1e-8, "atol": 1e-8, "inputs": inputs_of(problem)}
    ahead = solve_dopri5_at(problem.f, problem.z0, (start, end), times, **how)
    back = solve_dopri5_at(turned, problem.z0, (start, 2 * start - end), 2 * start - times, **how)
    torch.testing.assert_close(back, ahead, rtol=1e-6, atol=1e-7)


def test_dopri5_ends_at_the_last_time_and_solves_nothing_for_the_start():
    f, z0 = CountedField(lambda t, z: torch.sin(9 * t) * z), torch.ones(2, 1).double()

    def count(last):
        f.n_evaluations = 0
        times = torch.tensor([[0.0, last], [last, NAN]]).double() if last else torch.zeros(2, 1).double()
        solve_dopri5_at(f, z0, (0.0, 10.0), times, rtol=1e-6)
        return f.n_evaluations

    assert count(0.0) == 0
    assert count(1.0) < count(3.0) < count(10.0)


@pytest.mark.parametrize("t_span", [(0.0, 2.0), (2.0, 0.0), (1.7e9, 1.7e9 + 2)], ids=["ahead", "back", "far"])
@pytest.mark.parametrize("way", ["dopri5", "adjoint"])
def test_gradients_are_those_of_the_closed_form(way, t_span):
    """z' = a (t - start) z has the solution exp(a (t - start)^2 / 2) z0; steps that dopri5 chooses depend on a too."""
    a = torch.tensor([0.7, -0.9], dtype=torch.float64, requires_grad=True)
    z0 = torch.tensor([[1.0, 2.0], [-1.0, 0.5]], dtype=torch.float64, requires_grad=True)
    times = own_times(t_span, 2, 4)
    given = ~times.isnan()

    def f(t, z):
        return a * (t - t_span[0]) * z

    params = (a,) if way == "adjoint" else None
    states = solve_dopri5_at(f, z0, t_span, times, rtol=1e-9, atol=1e-9, adjoint_params=params)
    passed = (times - t_span[0]).nan_to_num()[:, :, None]
    exact = torch.where(given[:, :, None], (a * passed.square() / 2).exp() * z0[:, None], 0)
    torch.testing.assert_close(states, exact, rtol=1e-5, atol=1e-6)
    weights = torch.rand(states.shape, generator=torch.Generator().manual_seed(1)).double()
    ours, theirs = (torch.autograd.grad((one * weights).sum(), (a, z0)) for one in (states, exact))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_padding_gets_zeros_and_no_gradient():
    z0 = torch.ones(2, 1, dtype=torch.float64, requires_grad=True)
    times = torch.tensor([[0.2, 0.9], [0.4, NAN]]).double()
    wide = torch.cat([times, torch.full((2, 3), NAN)], dim=1).double()
    narrow, states = (solve_dopri5_at(lambda t, z: -z, z0, (0.0, 1.0), one, rtol=1e-8) for one in (times, wide))
    torch.testing.assert_close(states[:, :2], narrow, rtol=0, atol=0)
    assert not states[:, 2:].any() and not states[1, 1:].any()
    assert torch.isfinite(torch.autograd.grad(states.sum(), z0)[0]).all()


def test_the_end_alone_is_the_terminal_state():
    f, z0 = lambda t, z: torch.sin(3 * z) - t, torch.tensor([[0.3], [2.0]]).double()
    ends = solve_dopri5_at(f, z0, (0.0, 2.0), torch.full((2, 1), 2.0).double(), rtol=1e-5)[:, 0]
    torch.testing.assert_close(ends, solve_dopri5(f, z0, (0.0, 2.0), rtol=1e-5), rtol=1e-12, atol=0)


def test_the_adjoint_costs_nothing_where_there_are_no_gradients():
    f, times = CountedField(lambda t, z: torch.cos(t) * z), torch.tensor([[0.3, 1.0]]).double()
    counts = []
    for params in (None, ()):
        f.n_evaluations = 0
        with torch.no_grad():
            solve_dopri5_at(f, torch.ones(1, 1).double(), (0.0, 1.0), times, rtol=1e-6, adjoint_params=params)
        counts.append(f.n_evaluations)
    assert counts[0] == counts[1] > 0
