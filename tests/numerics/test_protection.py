"""Fields that write into what they are given, or return one buffer again and again, give the numbers of a field that does not."""

import math

import numpy as np
import pytest
import torch
from problems import BASE_SOLVERS, MULTISTEP
from torch import nn

from sklearn_hyper.numerics import (
    FieldInputs,
    compute_residuals,
    count_nfe,
    hypersolve,
    hypersolve_trajectory,
    reference_solution,
)
from sklearn_hyper.numerics.protection import NO_INPUTS, ProtectedField


def clean(t, z):
    return torch.relu(z) * (1 + t) - z


def in_place_on_z(t, z):
    negative = -z
    return z.relu_().mul_(1 + t).add_(negative)


class InplaceFirstLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.ReLU(inplace=True)

    def forward(self, t, z):
        negative = -z
        return self.first(z) * (1 + t) + negative


class OneBuffer:
    """Allocates its output once."""

    def __init__(self):
        self.buffer = None

    def __call__(self, t, z):
        if self.buffer is None or self.buffer.shape != z.shape:
            self.buffer = torch.empty_like(z)
        return self.buffer.copy_(clean(t, z))


class ViewOfABuffer:
    """Hands out another view of its buffer every time."""

    def __init__(self):
        self.buffer = torch.empty(64, 2, dtype=torch.float64)

    def __call__(self, t, z):
        return torch.mul(clean(t, z), 1.0, out=self.buffer[: len(z)])


class NumpyBuffer:
    """One array of NumPy's, which tensors share, past torch's count of writes."""

    def __init__(self):
        self.buffer = np.empty((64, 2))

    def __call__(self, t, z):
        out = self.buffer[: len(z)]
        np.copyto(out, clean(t, z).detach().numpy())
        return torch.from_numpy(out)


def writes_by_numpy(t, z):
    out = clean(t, z)
    z.detach().numpy()[...] = 7.0
    return out


def writes_past_autograd(t, z):
    out = clean(t, z)
    z.data.zero_()
    return out


MAKERS = {
    "NumPy's buffer": NumpyBuffer,
    "NumPy's write": lambda: writes_by_numpy,
    ".data": lambda: writes_past_autograd,
    "in place on z": lambda: in_place_on_z,
    "inplace=True": InplaceFirstLayer,
    "one buffer": OneBuffer,
    "views of a buffer": ViewOfABuffer,
}
each_field = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


@pytest.fixture
def z0(generator):
    return torch.randn(5, 2, generator=generator, dtype=torch.float64)


@each_field
@pytest.mark.parametrize("solver", (*BASE_SOLVERS, *MULTISTEP), ids=lambda solver: solver.name)
def test_fixed_steps(make, solver, z0):
    before = z0.clone()
    own = hypersolve_trajectory(make(), z0, (0.0, 1.0), 6, solver)
    assert torch.equal(own, hypersolve_trajectory(clean, z0, (0.0, 1.0), 6, solver))
    assert torch.equal(z0, before)


@each_field
def test_dopri5(make, z0):
    before, times = z0.clone(), [0.0, 0.3, 1.0]
    assert torch.equal(reference_solution(make(), z0, times), reference_solution(clean, z0, times))
    assert torch.equal(z0, before)


@each_field
def test_residuals(make, z0):
    states = reference_solution(clean, z0, [0.0, 0.5, 1.0])
    kept = states.clone()
    for own, expected in zip(*(compute_residuals(f, states, [0, 0.5, 1], "ab2") for f in (make(), clean)), strict=True):
        assert torch.equal(own.target, expected.target)
        assert all(map(torch.equal, own.stages, expected.stages))
    assert torch.equal(states, kept)


@each_field
def test_under_inference_mode(make, z0):
    expected = hypersolve(clean, z0, (0.0, 1.0), 4, "rk4")
    with torch.inference_mode():
        assert torch.equal(hypersolve(make(), z0.clone(), (0.0, 1.0), 4, "rk4"), expected)


def test_the_input_of_a_data_controlled_field_is_kept(z0):
    def writes_x(t, z, x):
        return z * x.mul_(2.0)

    x = torch.full_like(z0, 0.25)
    solved = hypersolve(writes_x, z0, (0.0, 1.0), 3, "heun", x=x)
    assert torch.equal(solved, hypersolve(lambda t, z, x: z * (2 * x), z0, (0.0, 1.0), 3, "heun", x=x))
    assert torch.equal(x, torch.full_like(x, 0.25))


def test_gradients_are_those_of_the_field(z0):
    leaf = z0.clone().requires_grad_(True)
    for f in (InplaceFirstLayer(), clean):
        hypersolve(f, leaf, (0.0, 1.0), 3, "rk4").sum().backward()
    (expected,) = torch.autograd.grad(2 * hypersolve(clean, leaf, (0.0, 1.0), 3, "rk4").sum(), leaf)
    torch.testing.assert_close(leaf.grad, expected)


def test_protection_costs_no_evaluation(z0):
    assert count_nfe(lambda f: hypersolve(f, z0, (0.0, 1.0), 5, "rk4"), clean) == 20


def test_a_field_that_writes_only_now_and_then_is_named(z0):
    def fickle(t, z):
        return z.neg_() if t > 0.5 else -z

    with pytest.raises(ValueError, match=r"writes into its argument z in some calls.*z = z.clone\(\)"):
        hypersolve(fickle, z0, (0.0, 1.0), 4, "euler")


def test_copies_are_made_where_they_are_needed_and_nowhere_else(z0):
    field = ProtectedField(clean)
    given = []
    field.f = lambda t, z: given.append(z) or -z
    zero = torch.zeros(())
    for _ in range(3):
        field(zero, z0)
    assert [z is z0 for z in given] == [False, True, True]
    assert not (field.writes_z or field.reuses_output)


def test_exports_keep_the_numbers(z0):
    class Solve(nn.Module):
        def forward(self, z):
            return hypersolve(in_place_on_z, z, (0.0, 1.0), 2, "heun")

    program = torch.export.export(Solve(), (z0,))
    expected = hypersolve(clean, z0, (0.0, 1.0), 2, "heun")
    torch.testing.assert_close(program.module()(z0), expected, rtol=1e-12, atol=1e-12)
    assert math.isfinite(expected.sum())


# ---------------------------------------------------------------------- what a field takes beside time and state
def test_inputs_are_selected_with_the_rows():
    """Tensors by row; what is none is the same for all."""
    label, x = torch.arange(4), torch.randn(4, 2)
    inputs = FieldInputs(x, {"label": label, "weight": 0.5})
    for rows in (torch.tensor([2, 0]), slice(1, 3), [3]):
        some = inputs.rows(rows)
        assert torch.equal(some.x, x[rows]) and torch.equal(some.condition["label"], label[rows])
        assert some.condition["weight"] == 0.5
    assert inputs.arguments == (x,) and torch.equal(inputs.condition["label"], label)  # itself as it was


def test_a_field_that_takes_nothing_more_has_no_inputs():
    assert FieldInputs() == NO_INPUTS and NO_INPUTS.arguments == () and not NO_INPUTS.condition
    assert NO_INPUTS.rows(slice(0, 1)) is NO_INPUTS
    assert FieldInputs(condition={"label": torch.arange(3)}).arguments == ()


def test_every_tensor_of_the_inputs_can_be_changed():
    inputs = FieldInputs(torch.ones(3), {"rate": torch.ones(3), "name": "swirl"}).each(torch.Tensor.double)
    assert inputs.x.dtype == inputs.condition["rate"].dtype == torch.float64 and inputs.condition["name"] == "swirl"
    assert FieldInputs("not a tensor").each(torch.Tensor.double).x == "not a tensor"


def writes_rate(t, z, rate):
    return z * rate.mul_(2.0)


def writes_rate_by_numpy(t, z, rate):
    out = z * (2.0 * rate)
    rate.numpy()[...] = 7.0
    return out


def writes_rate_past_autograd(t, z, rate):
    out = z * (2.0 * rate)
    rate.data.zero_()
    return out


@pytest.mark.parametrize("f", [writes_rate, writes_rate_by_numpy, writes_rate_past_autograd], ids=lambda f: f.__name__)
@pytest.mark.parametrize("solver", ["heun", "ab3"])
def test_a_condition_is_kept_whatever_the_field_does_to_it(f, solver, z0):
    rate = torch.full_like(z0, 0.25)
    solved = hypersolve_trajectory(f, z0, (0.0, 1.0), 4, solver, condition={"rate": rate})
    assert torch.equal(solved, hypersolve_trajectory(lambda t, z: z * 0.5, z0, (0.0, 1.0), 4, solver))
    assert torch.equal(rate, torch.full_like(z0, 0.25))
    states = reference_solution(f, z0, [0.0, 1.0], condition={"rate": rate})
    assert torch.equal(states, reference_solution(lambda t, z: z * 0.5, z0, [0.0, 1.0]))
    assert torch.equal(rate, torch.full_like(z0, 0.25))


def test_a_condition_is_copied_where_it_is_written_to_and_nowhere_else(z0):
    rate, given = torch.full_like(z0, 0.5), []

    def reads(t, z, rate):
        given.append(rate)
        return z * rate

    field = ProtectedField(reads, FieldInputs(condition={"rate": rate}))
    for _ in range(3):
        field(torch.zeros(()), z0)
    assert [value is rate for value in given] == [False, True, True] and not field.writes_inputs
    writes = ProtectedField(writes_rate, FieldInputs(condition={"rate": rate}))
    for _ in range(3):
        assert torch.equal(writes(torch.zeros(()), z0), z0)
    assert writes.writes_inputs and torch.equal(rate, torch.full_like(z0, 0.5))


def test_a_protected_field_is_the_field_with_its_inputs_bound(z0):
    x, rate = torch.randn_like(z0), torch.randn_like(z0)

    def f(t, z, x, *, rate):
        return torch.sin(z) * x + t * rate

    field, t = ProtectedField(f, FieldInputs(x, {"rate": rate})), torch.tensor(0.3, dtype=torch.float64)
    for _ in range(3):
        assert torch.equal(field(t, z0), f(t, z0, x, rate=rate))
