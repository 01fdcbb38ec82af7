"""Corrections in the weights of a field: every evaluation has its own, and merged copies are the live field."""

import copy
import math
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from small_weights import DOUBLE, FIELDS, SPAN, Growth, Plain, Tied, Wave, each_field, made, own, smooth, solve, states
from torch import nn
from torch.func import functional_call

from sklearn_hyper import NeuralODE
from sklearn_hyper.modules import HypersolvedODE
from sklearn_hyper.modules.corrections.field_module import FieldModule, answers_to_weights
from sklearn_hyper.modules.corrections.weights import MergedFields
from sklearn_hyper.numerics import FixedMesh, resolve_base_solver
from sklearn_hyper.numerics.protection import FieldInputs

# ---------------------------------------------------------------------- what it computes


@each_field
@pytest.mark.parametrize("method", ["euler", "heun", "ab2"])
def test_it_starts_as_the_base_solver(make, method):
    f, z = made(make).vector_field, states()
    for correction in (own(f, method), smooth(f)):
        torch.testing.assert_close(solve(f, z, correction, method), solve(f, z, None, method), rtol=1e-12, atol=1e-14)


def test_every_evaluation_has_weights_of_its_own():
    """Euler's steps of f = rate z multiply by 1 + eps (rate + eps Delta rate): the unit of a change is its weight."""
    f, z = Growth(0.5), torch.ones(1, 1, dtype=DOUBLE)
    correction = own(f)
    (change,) = correction.parameters()
    with torch.no_grad():
        change.copy_(torch.tensor([[0.3], [-0.2], [0.7]]))
    factors = [1 + (0.5 + 0.5 * change) / 3 for change in (0.3, -0.2, 0.7)]
    assert solve(f, z, correction).item() == pytest.approx(math.prod(factors))


def test_the_stages_of_a_step_have_weights_of_their_own():
    """Heun on f = rate z: z + eps (r0 + r1) / 2, and r1 is taken at z + eps r0."""
    f, z = Growth(1.0), torch.ones(1, 1, dtype=DOUBLE)
    correction = own(f, "heun", 1)
    (change,) = correction.parameters()
    with torch.no_grad():
        change.copy_(torch.tensor([[0.2], [-0.4]]))
    assert solve(f, z, correction, "heun", 1).item() == pytest.approx(1 + (1.2 + 0.6 * 2.2) / 2)


def test_a_weight_that_is_used_twice_changes_in_both_places():
    f, z = made(Tied).vector_field, states()
    bent = copy.deepcopy(f)
    correction = own(f, n_steps=1, std=0.5)
    merged = correction.merged(
        dict(FieldModule(f).named_parameters()), FixedMesh.of(resolve_base_solver("euler"), SPAN, 1).plans[0], 0
    )
    for name, value in merged.items():
        bent.get_parameter(name.removeprefix("field.")).data.copy_(value)
    torch.testing.assert_close(solve(f, z, correction, n_steps=1), solve(bent, z, None, n_steps=1))


# ---------------------------------------------------------------------- merged


@each_field
@pytest.mark.parametrize("method", ["euler", "midpoint", "ab2"])
def test_merged_copies_compute_what_the_live_field_does(make, method):
    ode, z = made(make), states()
    correction = own(ode.vector_field, method, std=0.3)
    live = HypersolvedODE(ode, resolve_base_solver(method), correction, np.linspace(*SPAN, 4).tolist())
    folded = live.fold()
    with torch.no_grad():
        expected = live(z)
        for _ in range(3):  # the first solve watches the field, later ones know it
            torch.testing.assert_close(folded(z), expected, rtol=1e-12, atol=1e-13)
        assert (expected - solve(ode.vector_field, z, None, method)).abs().max() > 1e-4
    with torch.inference_mode():
        torch.testing.assert_close(folded(z), expected, rtol=1e-12, atol=1e-13)


def test_the_given_field_keeps_its_weights():
    ode, z = made(Wave), states()
    before = copy.deepcopy(ode.state_dict())
    correction = own(ode.vector_field, std=0.3)
    live = HypersolvedODE(ode, resolve_base_solver("euler"), correction, np.linspace(*SPAN, 4).tolist())
    live.fold()(z)
    assert all(torch.equal(value, before[name]) for name, value in ode.state_dict().items())


def test_a_merged_field_that_writes_into_the_state_only_later_is_noticed():
    class Later(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.writes = nn.Parameter(torch.ones(2, dtype=DOUBLE)), False

        def forward(self, t, z):
            return z.mul_(self.weight) if self.writes else z * self.weight

    ode = NeuralODE(Later()).eval().requires_grad_(False)
    folded = HypersolvedODE(ode, resolve_base_solver("euler"), own(ode.vector_field), [0.0, 1 / 3, 2 / 3, 1.0]).fold()
    folded(states())
    for one in folded.folded.fields:
        one.field.writes = True
    with pytest.raises(ValueError, match="writes into its argument z in some calls"):
        folded(states())


def test_a_copy_holds_no_field():
    f, z = made(Wave).vector_field, states()
    correction = own(f, std=0.3)
    expected = solve(f, z, correction)
    for other in (copy.deepcopy(correction), pickle.loads(pickle.dumps(correction))):
        torch.testing.assert_close(solve(f, z, other), expected)
    assert len(pickle.dumps(correction)) == len(pickle.dumps(own(f, std=0.3)))


def test_gradients_reach_the_state_and_the_changes():
    f = made(Wave).vector_field
    correction = own(f, n_steps=2, std=0.3)
    z = states(2).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda z: solve(f, z, correction, n_steps=2), z)
    solve(f, z, correction, n_steps=2).sum().backward()
    assert all(parameter.grad.any() for parameter in correction.parameters())


def test_inputs_beside_the_state_are_handed_on():
    class Controlled(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 2, dtype=DOUBLE)

        def forward(self, t, z, x, shift):
            return self.layer(torch.cat([z, x], dim=1)) + shift

    f, z = Controlled().requires_grad_(False), states()
    inputs = FieldInputs(states(), {"shift": torch.ones(7, 1, dtype=DOUBLE)})
    assert answers_to_weights(f, SPAN, z, inputs)
    mesh = FixedMesh.of(resolve_base_solver("euler"), SPAN, 3)
    *_, plain = mesh.iterate(f, z, None, inputs)
    *_, bent = mesh.iterate(f, z, own(f), inputs)
    torch.testing.assert_close(bent, plain)
    merged = own(f, std=0.3).fold(mesh.plans, f)
    assert isinstance(merged, MergedFields)
    *_, first = mesh.iterate(f, z, merged, inputs)
    *_, again = mesh.iterate(f, z, merged, inputs)
    assert torch.equal(first, again) and not torch.allclose(first, plain)


def test_threads_may_call_one_live_field():
    """torch replaces the weights of a module while it calls it: every thread has one of its own."""
    f, z = made(Wave).vector_field, states()
    correction = own(f, std=0.3)
    expected, plain = solve(f, z, correction), solve(f, z, None)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: solve(f, z, correction if i % 2 else None), range(200)))
    assert all(torch.equal(end, expected if i % 2 else plain) for i, end in enumerate(found))
    assert all(isinstance(parameter, nn.Parameter) for parameter in f.parameters())


def test_live_weights_follow_the_field_and_its_mode():
    f, z = made(lambda: Plain(nn.Linear(2, 2), nn.Dropout(0.5))).vector_field, states()
    correction = own(f)
    torch.testing.assert_close(solve(f, z, correction), solve(f, z, None))
    with torch.no_grad():
        f.layers[0].weight.mul_(2)
    torch.testing.assert_close(solve(f, z, correction), solve(f, z, None))
    f.train()
    assert not torch.equal(solve(f, z, correction), solve(f, z, correction))  # dropout draws


def test_weights_of_another_field_are_refused_by_name():
    f, z = made(Wave).vector_field, states()
    with pytest.raises(ValueError, match=r"change of 'field.first.weight' of shape \(6, 3\).*one of shape \(4, 3\)"):
        own(f).check_field(made(lambda: Wave(4)).vector_field)
    with pytest.raises(ValueError, match="changes the weights of another field"):
        solve(made(Tied).vector_field, z, own(f))
    with pytest.raises(ValueError, match="step 3 with 1 evaluations: the correction has weights of f for 3 steps"):
        solve(f, z, own(f), n_steps=4)


# ---------------------------------------------------------------------- memory


def kept_bytes(call):
    """What autograd keeps of a call."""
    sizes = {}

    def count(tensor):
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        result = call()
    return sum(sizes.values()), result


def test_evaluating_again_gives_the_same_gradients_and_keeps_less():
    f, z = made(lambda: Wave(64)).vector_field, states(500)
    gradients, kept = {}, {}
    for recomputes in (False, True):
        correction = own(f, std=0.3)
        correction.recomputes = recomputes
        kept[recomputes], end = kept_bytes(lambda correction=correction: solve(f, z, correction))
        gradients[recomputes] = torch.autograd.grad(end.pow(2).sum(), list(correction.parameters()))
    torch.testing.assert_close(gradients[True], gradients[False])
    assert kept[True] < 0.2 * kept[False]


# ---------------------------------------------------------------------- tensors of the field that others put in place
def replaced_weight(field, call):
    """Assign a parameter, and put the first one back."""
    old, field.layers[0].weight = field.layers[0].weight, nn.Parameter(2 * field.layers[0].weight, requires_grad=False)
    found = call()
    field.layers[0].weight = old
    return found


def called_with(name):
    def replaced(field, call):
        tensors = {**dict(field.named_parameters()), **dict(field.named_buffers())}
        caller = nn.Module()
        caller.field, caller.forward = field, call
        return functional_call(caller, {f"field.{name}": 2 * tensors[name]}, ())

    return replaced


@pytest.mark.parametrize(
    "replace", [replaced_weight, called_with("layers.0.weight"), called_with("layers.1.running_var")],
    ids=["assigned", "called with a weight", "called with a buffer"],
)  # fmt: skip
@pytest.mark.parametrize("has_run", [False, True], ids=["fresh", "used"])
def test_a_solve_takes_the_tensors_that_a_field_has_at_the_time(replace, has_run):
    field, z = made(FIELDS["batch norm"]).vector_field, states()
    correction = own(field, std=0.1)
    fresh, before = copy.deepcopy(correction), solve(field, z, copy.deepcopy(correction))
    if has_run:
        solve(field, z, correction)
    expected = replace(field, lambda: solve(field, z, fresh))
    assert not torch.allclose(expected, before)
    assert torch.equal(replace(field, lambda: solve(field, z, correction)), expected)
    assert torch.equal(solve(field, z, correction), before)
