"""Costs are counted, not derived, and say nan where there is nothing to count."""

import math

import pytest
import torch
from problems import BASE_SOLVERS, LOGISTIC, named
from torch import nn

from sklearn_hyper.numerics import (
    CountedField,
    count_macs,
    count_nfe,
    hypersolve,
    reference_solution,
    relative_overhead,
    time_interleaved,
)


@pytest.mark.parametrize("n_steps", [1, 4])
@pytest.mark.parametrize("solver", **named(BASE_SOLVERS))
def test_nfe_is_stages_times_steps(solver, n_steps):
    calls = count_nfe(lambda f: hypersolve(f, LOGISTIC.z0, LOGISTIC.t_span, n_steps, solver), LOGISTIC.f)
    assert calls == solver.n_stages * n_steps


def test_nfe_of_the_adaptive_solver_grows_as_the_tolerance_shrinks():
    def nfe(tolerance):
        return count_nfe(
            lambda f: reference_solution(f, LOGISTIC.z0, LOGISTIC.t_span, rtol=tolerance, atol=tolerance), LOGISTIC.f
        )

    assert 1 < nfe(1e-3) < nfe(1e-6) < nfe(1e-9)


def test_counting_leaves_the_field_alone():
    module = nn.Linear(2, 2)
    attributes = set(vars(module))
    counted = CountedField(lambda t, z, x: module(z) + x)
    z = torch.ones(1, 2)
    assert torch.equal(counted(torch.tensor(0.0), z, 1), module(z) + 1)
    assert counted.n_evaluations == 1
    assert count_nfe(lambda f: [f(z) for _ in range(3)], module) == 3
    assert set(vars(module)) == attributes


def test_fields_with_a_condition_are_counted_too():
    rate = torch.tensor([[0.5], [1.0], [-1.0]], dtype=torch.float64)
    counted = count_nfe(
        lambda f: hypersolve(f, LOGISTIC.z0, (0, 1), 3, "heun", condition={"rate": rate}),
        lambda t, z, rate: rate * z,
    )
    assert counted == 6


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize(
    ("module", "shape", "macs"),
    [
        (nn.Linear(3, 7), (3,), 3 * 7),
        (nn.Linear(3, 7, bias=False), (3,), 3 * 7),
        (nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)), (3,), 3 * 8 + 8 * 2),
        (nn.Conv2d(2, 5, 3, padding=1), (2, 6, 4), 6 * 4 * 5 * 2 * 3 * 3),
        (nn.Conv2d(2, 5, 3), (2, 6, 4), 4 * 2 * 5 * 2 * 3 * 3),
        (nn.Conv2d(4, 4, 3, stride=2, padding=1), (4, 8, 8), 4 * 4 * 4 * 4 * 3 * 3),
    ],
)
def test_macs_have_their_closed_form(module, shape, macs, batch):
    assert count_macs(module, torch.ones(batch, *shape)) == batch * macs


def test_macs_of_a_solve_are_those_of_its_evaluations():
    f, z = nn.Linear(3, 3), torch.ones(1, 3)
    assert count_macs(hypersolve, lambda t, z: f(z), z, (0, 1), 5, base_solver="rk4") == 5 * 4 * 9


def test_elementwise_operations_have_no_macs():
    assert math.isnan(count_macs(torch.tanh, torch.ones(2, 3)))
    assert math.isnan(count_macs(lambda: hypersolve(LOGISTIC.f, LOGISTIC.z0, (0, 1), 2, "heun")))


def test_counting_macs_builds_no_graph():
    outputs = []
    count_macs(lambda z: outputs.append(nn.Linear(2, 2)(z)), torch.ones(1, 2))
    assert not outputs[0].requires_grad


@pytest.mark.parametrize(
    ("macs_f", "macs_g", "n_stages", "overhead"),
    [(40e6, 20e6, 1, 1.5), (40e6, 20e6, 2, 1.25), (10, 0, 4, 1.0), (8.0, 16.0, 4, 1.5)],
)
def test_relative_overhead(macs_f, macs_g, n_stages, overhead):
    assert relative_overhead(macs_f, macs_g, n_stages) == overhead


@pytest.mark.parametrize(("macs_f", "macs_g"), [(0, 1), (math.nan, 1), (1, math.nan)])
def test_relative_overhead_of_nothing_is_nan(macs_f, macs_g):
    assert math.isnan(relative_overhead(macs_f, macs_g, 1))


def test_timing_runs_every_call_in_turn_and_reports_every_name():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    times = time_interleaved(calls, repeats=2, warmup=1, min_seconds=0.0)
    assert list(times) == ["a", "b", "c"]
    assert all(math.isfinite(milliseconds) and milliseconds >= 0 for milliseconds in times.values())
    assert order[-6:] == ["a", "b", "c", "a", "b", "c"]
