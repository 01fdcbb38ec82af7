"""Changes of weights, own ones and smooth ones: closed forms, orders, ranks, and the steps that they serve."""

import math

import numpy as np
import pytest
import torch
from problems import log_slope
from small_weights import DOUBLE, SPAN, Growth, Plain, Wave, made, own, smooth, solve, states
from torch import nn

from sklearn_hyper import WeightCorrection
from sklearn_hyper.modules import HypersolvedODE
from sklearn_hyper.modules.corrections import NetInputs
from sklearn_hyper.modules.corrections.changes import FullChanges, LowRankChanges, learning_unit
from sklearn_hyper.modules.corrections.field_module import FieldModule, typical_size
from sklearn_hyper.numerics import FixedMesh, reference_solution, resolve_base_solver


def test_on_another_span_the_change_has_another_factor():
    """eps^p: half the step takes half the change of a method of order one."""
    f, z = Growth(0.5), torch.ones(1, 1, dtype=DOUBLE)
    correction = own(f, n_steps=1, std=0.5)
    change = next(correction.parameters()).item()
    half = solve(f, z, correction, n_steps=1, t_span=(0.0, 0.5))
    assert half.item() == pytest.approx(1 + 0.5 * (0.5 + 0.5 * 0.5 * change))


@pytest.mark.parametrize("method", ["euler", "midpoint", "heun", "rk3", "rk4", "ab2"])
def test_random_smooth_changes_keep_the_order(method):
    """Changes of size eps^p change a step by eps^(p+1): the error still falls with the order of the base solver."""
    f, z = made(Wave).vector_field, states()
    correction, order = smooth(f, std=0.3), resolve_base_solver(method).order
    sizes = np.array([8, 16, 32])
    exact = reference_solution(f, z, list(SPAN), rtol=1e-12, atol=1e-12)[-1]
    errors = [(solve(f, z, correction, method, int(n)) - exact).norm().item() for n in sizes]
    assert log_slope(1 / sizes, np.array(errors)) == pytest.approx(order, abs=0.35)
    base = (solve(f, z, None, method, 8) - exact).norm().item()
    assert abs(errors[0] - base) > 1e-3 * base  # the changes do matter


def test_smooth_changes_are_linear_in_time_and_step():
    f, z = Growth(1.0), torch.ones(1, 1, dtype=DOUBLE)
    correction = smooth(f, n_steps=2)  # the largest step is a half
    (change,) = correction.parameters()
    with torch.no_grad():
        change.copy_(torch.tensor([[0.1], [0.2], [0.4]]))
    # Steps of a quarter: half of the largest. tau is -1, -1/2, 0, 1/2 at their starts.
    factors = [1 + 0.25 * (1 + 0.5 * (0.1 + 0.2 * tau + 0.4 * 0.5)) for tau in (-1, -0.5, 0, 0.5)]
    assert solve(f, z, correction, n_steps=4).item() == pytest.approx(math.prod(factors))


def test_a_low_rank_change_has_this_rank():
    f = made(Wave).vector_field
    correction, module = own(f, rank=1, std=1.0), FieldModule(f)
    plan = FixedMesh.of(resolve_base_solver("euler"), SPAN, 3).plans[1]
    merged = correction.merged(dict(module.named_parameters()), plan, 0)
    assert sorted(merged) == ["field.first.weight", "field.last.weight"]
    for name, weight in merged.items():
        assert torch.linalg.matrix_rank(weight - module.get_parameter(name), atol=1e-10) == 1


@pytest.mark.parametrize(
    ("side", "kind", "share"), [(250, FullChanges, 1), (260, FullChanges, 0.2), (520, LowRankChanges, 1)]
)
def test_the_more_weights_change_freely_the_more_carefully(side, kind, share):
    """Above 65,536 weights a fifth of the unit; above 262,144 a low rank, with all of it."""
    ode = made(lambda: Plain(nn.Linear(side, side, bias=False)))
    method = resolve_base_solver("euler")
    plans = tuple(FixedMesh.of(method, SPAN, 1).plans)
    inputs = NetInputs(torch.zeros(1, side), None, method.kinds, math.nan, plans, base_error=0.1)
    (correction,) = WeightCorrection().corrections([ode], inputs, [])
    (change,) = correction.changes
    (weight,) = ode.parameters()
    assert type(change) is kind
    assert change.units.item() == pytest.approx(share * learning_unit(0.1) * typical_size(weight).item())


def test_own_weights_serve_their_own_steps_alone():
    ode = made(Wave)
    correction = own(ode.vector_field)
    with pytest.raises(ValueError, match=r"4 steps with 4 evaluations: .*weights of f for 3 steps with 3 evaluations"):
        HypersolvedODE(ode, resolve_base_solver("euler"), correction, np.linspace(*SPAN, 5).tolist())
    with pytest.raises(ValueError, match=r"^steps that depend on the state: "):
        correction.check_steps(None)
    smooth(ode.vector_field).check_steps(None)
    assert correction.covers(resolve_base_solver("euler")) and not correction.covers(resolve_base_solver("heun"))
