"""The Neural ODE: eq. 1 solved by dopri5, its maps, gradients, and what it refuses."""

import copy
import math
from functools import partial

import pytest
import torch
from problems import DATA_CONTROLLED, DEPTH_VARYING, FORCED, LOGISTIC, PROBLEMS, largest, named
from torch import nn

from sklearn_hyper.modules import NeuralODE, VectorFieldError
from sklearn_hyper.modules.neural_ode import check_neural_ode
from sklearn_hyper.numerics import CountedField, ReferenceSolveError, reference_solution
from sklearn_hyper.numerics.protection import NO_INPUTS

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
    assert neural_ode.inputs(x).x is x and NeuralODE(f).inputs(x) == NO_INPUTS


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


# --- the same field on other spans, with other solvers and fields ------------------------------------------------------


def test_another_span_shares_the_parts_and_keeps_all_else():
    field, lift = nn.Linear(2, 2), nn.Linear(2, 2)
    ode = NeuralODE(field, input_map=lift, output_map=torch.tanh, t_span=(0, 1), state_size=(1.0, 2.0)).eval()
    ode.n_unitless = 1
    other = ode.with_span((3.0, 1.0))
    assert other is not ode and (other.t_span, ode.t_span) == ((3.0, 1.0), (0.0, 1.0))
    assert all(other.parts[name] is part for name, part in ode.parts.items())
    assert (other.state_size, other.n_unitless, other.data_controlled) == ((1.0, 2.0), 1, False)
    assert not other.training and ode.train().with_span((0, 2)).training
    assert NeuralODE(field, data_controlled=True).with_span((0, 2)).data_controlled


@pytest.mark.parametrize("problem", **named([LOGISTIC, FORCED]))
def test_two_halves_of_a_span_are_the_whole(problem):
    start, end = problem.t_span
    middle = (start + end) / 2
    ode = NeuralODE(problem.f, t_span=problem.t_span)
    half = ode.with_span((start, middle))(problem.z0, **TIGHT)
    assert largest(ode.with_span((middle, end))(half, **TIGHT) - ode(problem.z0, **TIGHT)) < 1e-8


def test_a_solve_is_the_terminal_state_and_takes_another_field():
    ode = NeuralODE(LOGISTIC.f, input_map=lambda x: x / 2, output_map=lambda z: z + 1, t_span=LOGISTIC.t_span)
    x = 2 * LOGISTIC.z0
    state = ode.solve(x, **TIGHT)
    assert torch.equal(ode(x, **TIGHT), state + 1)
    assert largest(state - LOGISTIC.exact(*LOGISTIC.t_span, LOGISTIC.z0)) < 1e-7
    counted = CountedField(LOGISTIC.f)
    assert torch.equal(ode.solve(x, field=counted, **TIGHT), state) and counted.n_evaluations > 10
    with pytest.raises(ReferenceSolveError, match="needed more than 5 evaluations"):
        ode.solve(x, max_evaluations=5, **TIGHT)


def test_references_are_those_of_the_field_from_given_states():
    """Row by row as accurate as the tolerance, at every time, and without the maps."""
    ode = NeuralODE(DATA_CONTROLLED.f, input_map=lambda x: 0 * x, output_map=torch.log, data_controlled=True)
    times, z0, x = (0.0, 0.4, 1.0), DATA_CONTROLLED.z0, DATA_CONTROLLED.x
    states = ode.reference(z0, ode.inputs(x), times, **TIGHT)
    assert torch.equal(states, reference_solution(DATA_CONTROLLED.f, z0, times, x=x, **TIGHT))
    assert largest(states - DATA_CONTROLLED.states(times)) < 1e-7
    with pytest.raises(ReferenceSolveError):
        ode.reference(z0, ode.inputs(x), times, max_evaluations=5, **TIGHT)


# --- conditions -------------------------------------------------------------------------------------------------------

RATE = torch.tensor([[0.5], [1.0], [-1.0]], dtype=torch.float64)


def conditioned(t, z, x=0.0, *, rate, shift):
    return rate * z * (1 - z) + shift * t + x


@pytest.mark.parametrize("data_controlled", [False, True])
def test_a_condition_is_bound_to_the_field(data_controlled):
    """In every way in which a Neural ODE is solved."""
    condition, x = {"rate": RATE, "shift": 0.3}, LOGISTIC.z0
    ode = NeuralODE(conditioned, data_controlled=data_controlled)
    bound = NeuralODE(partial(conditioned, **condition), data_controlled=data_controlled)
    assert torch.equal(ode(x, condition=condition), bound(x))
    assert torch.equal(ode.solve(x, rtol=1e-6, condition=condition), bound.solve(x, rtol=1e-6))
    inputs = ode.inputs(x, condition)
    assert (inputs.x is x) == data_controlled and inputs.condition == condition
    references = (
        one.reference(x, given, (0.0, 0.4, 1.0), **TIGHT) for one, given in ((ode, inputs), (bound, bound.inputs(x)))
    )
    assert torch.equal(*references)


def test_conditions_are_selected_with_their_rows():
    ode, rows = NeuralODE(conditioned), torch.tensor([2, 0])
    condition = {"rate": RATE, "shift": 0.3}
    whole = ode.reference(LOGISTIC.z0, ode.inputs(LOGISTIC.z0, condition), (0.0, 1.0), **TIGHT)
    part = ode.inputs(LOGISTIC.z0, condition).rows(rows)
    assert torch.equal(part.condition["rate"], RATE[rows])
    assert largest(ode.reference(LOGISTIC.z0[rows], part, (0.0, 1.0), **TIGHT) - whole[:, rows]) < 1e-8


def test_adjoint_gradients_with_a_condition_are_those_through_the_solver():
    class Weighed(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))

        def forward(self, t, z, rate):
            return self.weight * rate * z * (1 - z)

    gradients = []
    for adjoint in (False, True):
        ode = NeuralODE(Weighed())
        ode(LOGISTIC.z0, **TIGHT, adjoint=adjoint, condition={"rate": RATE}).square().sum().backward()
        gradients.append(ode.vector_field.weight.grad.item())
    assert gradients[0] == pytest.approx(gradients[1], rel=1e-6) and abs(gradients[0]) > 1e-3


def test_a_condition_that_the_field_writes_into_stays_as_it_was():
    rate = RATE.clone()
    z = NeuralODE(lambda t, z, rate: z * rate.mul_(2))(LOGISTIC.z0, condition={"rate": rate}, **TIGHT)
    assert torch.equal(rate, RATE) and largest(z - LOGISTIC.z0 * (2 * RATE).exp()) < 1e-7


def test_macs_of_a_field_with_a_condition():
    weight = torch.randn(3, 3)
    ode = NeuralODE(lambda t, z, *, function: function * (z @ weight))
    assert ode.count_field_macs(torch.ones(1, 3), {"function": torch.ones(1, 1)}) == 9


# --- the check at the door of fit -----------------------------------------------------------------------------------


def test_check_returns_the_initial_state():
    x = torch.ones(2, 3)
    assert torch.equal(check_neural_ode(NeuralODE(lambda t, z: -z, input_map=lambda x: 2 * x), x), 2 * x)


@pytest.mark.parametrize(
    ("neural_ode", "message"),
    [
        (NeuralODE(lambda t, z: (z, z)), r"must return a tensor like z .*, got tuple; states that are .*PytreeField"),
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


def test_check_passes_the_condition_and_says_what_is_wrong_with_it():
    """Whatever the names: they are the user's."""
    x, condition = torch.ones(2, 3), {"name": torch.ones(2, 1), "neural_ode": 0.5}
    ode = NeuralODE(lambda t, z, *, name, neural_ode: -z * name * neural_ode)
    assert torch.equal(check_neural_ode(ode, x, condition), x)
    with pytest.raises(VectorFieldError, match=r"missing .* required keyword-only argument"):
        check_neural_ode(ode, x)
    with pytest.raises(
        VectorFieldError, match=r"It was called with t \(.*\), z \(.*\), label \(shape \(2,\), torch.int64"
    ):
        check_neural_ode(NeuralODE(lambda t, z: -z), x, {"label": torch.tensor([0, 1])})


def test_states_at_times_of_each_rows_own():
    ode = NeuralODE(lambda t, z, x: -x * z, data_controlled=True, t_span=(0.0, 2.0))
    x = torch.tensor([[1.0], [3.0]]).double()
    times = torch.tensor([[0.5, 2.0], [1.0, math.nan]]).double()
    exact = (x[:, None] * (-x[:, None] * times[..., None]).exp()).nan_to_num()
    torch.testing.assert_close(ode.solve(x, rtol=1e-8, times=times), exact, rtol=1e-5, atol=1e-7)
    states = ode.reference_at(x, ode.inputs(x), times, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(states, exact, rtol=1e-5, atol=1e-7)


def test_outputs_of_states_that_are_not_given_are_nan_and_the_map_never_sees_them():
    seen = []
    ode = NeuralODE(lambda t, z: z, output_map=lambda z: seen.append(len(z)) or 2 * z)
    states, given = torch.ones(3, 2, 1), torch.tensor([[True, True], [True, False], [False, False]])
    outputs = ode.outputs(states, given)
    assert seen == [3] and (outputs[given] == 2).all() and outputs[~given].isnan().all()
    assert torch.equal(ode.outputs(states[:, 0]), 2 * states[:, 0])
