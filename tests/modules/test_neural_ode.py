"""The Neural ODE: eq. 1 solved by dopri5, its maps, gradients, and what it refuses."""

import copy
import math

import pytest
import torch
from problems import DEPTH_VARYING, PROBLEMS, largest, named
from torch import nn

from sklearn_hyper.modules import NeuralODE, VectorFieldError
from sklearn_hyper.modules.neural_ode import check_neural_ode

TIGHT = {"rtol": 1e-9, "atol": 1e-9}


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("problem", **named(PROBLEMS))
def test_solution_is_the_exact_one_in_both_directions(problem, direction):
    t_span = problem.t_span if direction == "forward" else problem.t_span[::-1]
    if problem.x is None:
        end = NeuralODE(problem.f, t_span=t_span)(problem.z0, **TIGHT)
    else:
        neural_ode = NeuralODE(problem.f, input_map=lambda x: problem.z0, t_span=t_span, data_controlled=True)
        end = neural_ode(problem.x, **TIGHT)
    assert (end.shape, end.dtype) == (problem.z0.shape, torch.float64)
    assert largest(end - problem.exact(*t_span, problem.z0)) < 1e-6


def test_maps_surround_the_solve():
    neural_ode = NeuralODE(lambda t, z: -z, input_map=lambda x: 2 * x, output_map=lambda z: z.sum(dim=1) + 1)
    y = neural_ode(torch.ones(3, 2).double(), **TIGHT)
    assert y.shape == (3,) and largest(y - (4 * math.exp(-1) + 1)) < 1e-8


def test_data_controlled_fields_get_the_raw_input():
    seen = []

    def f(t, z, x):
        seen.append(x)
        return x[:, :1] * z

    neural_ode = NeuralODE(f, input_map=lambda x: x[:, 1:], data_controlled=True)
    x = torch.tensor([[0.5, 2.0], [-1.0, 1.0]]).double()
    assert largest(neural_ode(x, **TIGHT) - x[:, 1:] * x[:, :1].exp()) < 1e-7
    assert seen and all(torch.equal(value, x) for value in seen)
    assert neural_ode.control(x) is x and NeuralODE(f).control(x) is None


def test_adjoint_gradients_are_those_through_the_solver():
    gradients = {}
    for adjoint in (False, True):
        field = copy.deepcopy(DEPTH_VARYING.f).requires_grad_()
        z = DEPTH_VARYING.z0.clone().requires_grad_()
        NeuralODE(field, t_span=DEPTH_VARYING.t_span)(z, **TIGHT, adjoint=adjoint).square().sum().backward()
        gradients[adjoint] = torch.cat([z.grad, field.coefficients.grad])
    assert gradients[False].abs().min() > 1e-3
    assert largest(gradients[True] - gradients[False]) < 1e-6


def test_parts_that_are_modules_are_registered_and_left_as_they_are():
    field, lift = nn.Sequential(nn.Linear(2, 2), nn.Tanh()), nn.BatchNorm1d(2)
    attributes = {part: set(vars(part)) for part in (field, lift)}
    neural_ode = NeuralODE(lambda t, z: field(z), input_map=lift).eval()
    neural_ode(torch.ones(3, 2), rtol=1e-2, atol=1e-2)
    assert dict(neural_ode.named_parameters()).keys() == {"input_map.weight", "input_map.bias"}
    assert all(set(vars(part)) == names for part, names in attributes.items())
    assert field.training and not lift.training  # a lambda's closure is out of reach, a registered part is not


@pytest.mark.parametrize(
    ("module", "dtype"),
    [(nn.Linear(1, 1).double(), torch.float64), (nn.BatchNorm1d(1, affine=False), torch.float32), (nn.ReLU(), None)],
)
def test_dtype_is_the_modules_own(module, dtype):
    assert NeuralODE(module).dtype == dtype


def test_repr_names_what_is_not_in_the_module_tree():
    text = repr(NeuralODE(torch.sin, t_span=(0, 2), data_controlled=True))
    assert "t_span=(0.0, 2.0)" in text and "data_controlled=True" in text and "sin" in text


@pytest.mark.parametrize("part", ["vector_field", "input_map", "output_map"])
@pytest.mark.parametrize("value", [3, nn.Linear])
def test_parts_must_be_callable_and_no_classes(part, value):
    with pytest.raises(TypeError, match=f"{part} must be an nn.Module or a callable"):
        NeuralODE(**{"vector_field": torch.sin, part: value})


def test_a_field_is_needed():
    with pytest.raises(TypeError, match=r"vector_field must be .* got None"):
        NeuralODE(None)


@pytest.mark.parametrize("t_span", [(1, 1), (0, math.inf), (0,), "01x", 3])
def test_a_span_has_two_different_finite_ends(t_span):
    with pytest.raises(ValueError, match=r"t_span must"):
        NeuralODE(torch.sin, t_span=t_span)


# --- the check at the door of fit -----------------------------------------------------------------------------------


def test_check_returns_the_initial_state():
    x = torch.ones(2, 3)
    assert torch.equal(check_neural_ode(NeuralODE(lambda t, z: -z, input_map=lambda x: 2 * x), x), 2 * x)


@pytest.mark.parametrize(
    ("neural_ode", "message"),
    [
        (NeuralODE(lambda z: z), r"vector_field\(t, z\) fails on a state of shape \(2, 3\).*with z alone it works"),
        (NeuralODE(lambda t, z, x: z), r"vector_field\(t, z\) fails .*data_controlled=True"),
        (NeuralODE(lambda t, z: z, data_controlled=True), r"vector_field\(t, z, x\) fails"),
        (NeuralODE(lambda t, z: z[:, :1]), r"must return a tensor like z .*got shape \(2, 1\)"),
        (NeuralODE(lambda t, z: z.double()), r"must return a tensor like z .*torch.float64"),
        (NeuralODE(lambda t, z: z.numpy()), r"must return a tensor like z .*got ndarray"),
        (NeuralODE(torch.sin, input_map=nn.Linear(4, 2)), r"input_map fails on an input of shape \(2, 3\)"),
        (NeuralODE(torch.sin, input_map=lambda x: x[0]), r"input_map must return .* got shape \(3,\)"),
        (NeuralODE(torch.sin, input_map=lambda x: x.int()), r"input_map must return a floating-point .*int32"),
    ],
)
def test_check_says_what_is_wrong_with_the_parts(neural_ode, message):
    with pytest.raises(VectorFieldError, match=message):
        check_neural_ode(neural_ode, torch.ones(2, 3))
