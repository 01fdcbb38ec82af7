"""Corrections in the weights of a field: closed forms, orders, and that merged copies are the live field."""

import copy
import math
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from problems import log_slope
from torch import nn

from sklearn_hyper import NeuralODE, WeightCorrection
from sklearn_hyper.modules import HypersolvedODE
from sklearn_hyper.modules.corrections.weights import (
    FieldModule,
    FieldWeights,
    FullChanges,
    LowRankChanges,
    MergedFields,
    OwnWeights,
    SmoothWeights,
    answers_to_weights,
    graph_bytes,
)
from sklearn_hyper.numerics import FixedMesh, reference_solution, resolve_base_solver
from sklearn_hyper.numerics.protection import NO_INPUTS, FieldInputs

DOUBLE = torch.float64
SPAN = (0.0, 1.0)


class Growth(nn.Module):
    """f = rate z, whose Euler solve is a product."""

    def __init__(self, rate=0.5):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor([rate], dtype=DOUBLE))

    def forward(self, t, z):
        return self.rate * z


class Wave(nn.Module):
    """A small smooth net that depends on time."""

    def __init__(self, hidden=6):
        super().__init__()
        self.first, self.last = nn.Linear(3, hidden, dtype=DOUBLE), nn.Linear(hidden, 2, dtype=DOUBLE)

    def forward(self, t, z):
        return self.last(torch.tanh(self.first(torch.cat([z, t.expand(len(z), 1)], dim=1))))


class Tied(nn.Module):
    """Two layers of one weight."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(2, 2, dtype=DOUBLE), nn.Linear(2, 2, dtype=DOUBLE)
        self.last.weight = self.first.weight

    def forward(self, t, z):
        return self.last(torch.tanh(self.first(z)))


class Behind:
    """A field that is no module, and reaches one."""

    def __init__(self, net):
        self.net = net

    def __call__(self, t, z):
        return self.net(t, z)


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.cell = kind(2, 2, batch_first=True, dtype=DOUBLE)

    def forward(self, t, z):
        return self.cell(z[:, None])[0][:, 0]


class Plain(nn.Module):
    """tanh of some layers."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers).double()

    def forward(self, t, z):
        return torch.tanh(self.layers(z))


class Attends(nn.Module):
    """Attention between the two numbers of a state, each a token of two with its place."""

    def __init__(self):
        super().__init__()
        self.places = nn.Embedding(2, 2, dtype=DOUBLE)
        self.attention = nn.MultiheadAttention(2, 1, batch_first=True, dtype=DOUBLE)
        self.norm = nn.LayerNorm(2, dtype=DOUBLE)

    def forward(self, t, z):
        tokens = self.norm(z[..., None] + self.places.weight)
        return self.attention(tokens, tokens, tokens, need_weights=False)[0].mean(-1) - z


FIELDS = {
    "time": Wave,
    "tied": Tied,
    "attention": Attends,
    "rnn": lambda: Recurrent(nn.RNN),
    "gru": lambda: Recurrent(nn.GRU),
    "lstm": lambda: Recurrent(nn.LSTM),
    "weight norm": lambda: Plain(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))),
    "orthogonal": lambda: Plain(nn.utils.parametrizations.orthogonal(nn.Linear(2, 2))),
    "batch norm": lambda: Plain(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.ReLU(inplace=True), nn.Linear(4, 2)),
    "conv 1d": lambda: Plain(nn.Unflatten(1, (1, 2)), nn.Conv1d(1, 2, 3, padding=1), nn.Conv1d(2, 1, 1), nn.Flatten()),
    "conv 3d": lambda: Plain(nn.Unflatten(1, (1, 1, 1, 2)), nn.Conv3d(1, 1, 3, padding=1), nn.Flatten()),
    "behind": lambda: Behind(Wave()),
}
each_field = pytest.mark.parametrize("make", FIELDS.values(), ids=FIELDS)


def made(make):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ode = NeuralODE(make(), t_span=SPAN).eval()
    return ode.requires_grad_(False)


def states(n=7):
    return torch.randn(n, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))


def chosen(f, **params):
    return WeightCorrection(**params).chosen_weights(f)


def own(f, method="euler", n_steps=3, *, rank=None, std=0.0, t_span=SPAN):
    """Weights for each evaluation of a mesh, zero or random."""
    schedule = OwnWeights.of_steps(FixedMesh.of(resolve_base_solver(method), t_span, n_steps).plans)
    return FieldWeights([changes(f, schedule.n_parts, rank)], schedule).apply(lambda m: randomized(m, std))


def smooth(f, n_steps=1, std=0.0):
    schedule = SmoothWeights(SPAN, (SPAN[1] - SPAN[0]) / n_steps)
    return FieldWeights([changes(f, 3, None)], schedule).apply(lambda m: randomized(m, std))


def changes(f, n_parts, rank):
    tensors = chosen(f)
    if rank is not None:
        tensors = {name: tensor for name, tensor in tensors.items() if tensor.ndim > 1}
        return LowRankChanges(tensors, n_parts, rank)
    return FullChanges(tensors, n_parts)


def randomized(module, std):
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in module.parameters(recurse=False):
            if std and not parameter.any():
                parameter.copy_(std * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))


def solve(f, z, correction, method="euler", n_steps=3, t_span=SPAN):
    """The end of a solve."""
    mesh = FixedMesh.of(resolve_base_solver(method), t_span, n_steps)
    return list(mesh.iterate(f, z, correction))[-1]


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
    merged = correction.merged(module, plan, 0)
    assert sorted(merged) == ["field.first.weight", "field.last.weight"]
    for name, weight in merged.items():
        assert torch.linalg.matrix_rank(weight - module.get_parameter(name), atol=1e-10) == 1


def test_a_weight_that_is_used_twice_changes_in_both_places():
    f, z = made(Tied).vector_field, states()
    bent = copy.deepcopy(f)
    correction = own(f, n_steps=1, std=0.5)
    merged = correction.merged(FieldModule(f), FixedMesh.of(resolve_base_solver("euler"), SPAN, 1).plans[0], 0)
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


# ---------------------------------------------------------------------- where it may run
def test_own_weights_serve_their_own_steps_alone():
    ode = made(Wave)
    correction = own(ode.vector_field)
    with pytest.raises(ValueError, match=r"4 steps with 4 evaluations: .*weights of f for 3 steps with 3 evaluations"):
        HypersolvedODE(ode, resolve_base_solver("euler"), correction, np.linspace(*SPAN, 5).tolist())
    with pytest.raises(ValueError, match=r"^steps that depend on the state: "):
        correction.check_steps(None)
    smooth(ode.vector_field).check_steps(None)
    assert correction.covers(resolve_base_solver("euler")) and not correction.covers(resolve_base_solver("heun"))


class CopiesWeights(nn.Module):
    """Computes with a tensor that it took from its layer once."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2, dtype=DOUBLE)
        self.copied = [self.layer.weight.detach()]

    def forward(self, t, z):
        return z @ self.copied[0].T


class NoGrad(Wave):
    def forward(self, t, z):
        with torch.no_grad():
            return super().forward(t, z)


class Growing(nn.Module):
    """A field whose weights count for nothing at the start."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2, dtype=DOUBLE)

    def forward(self, t, z):
        return -z + t * self.layer(z)


def test_weights_that_time_multiplies_count():
    assert answers_to_weights(made(Growing).vector_field, SPAN, states(2), NO_INPUTS)


def formula(t, z):
    return -z


@each_field
def test_these_fields_answer_to_changes(make):
    assert answers_to_weights(made(make).vector_field, SPAN, states(2), NO_INPUTS)


@pytest.mark.parametrize("make", [CopiesWeights, NoGrad, lambda: formula], ids=["copies", "no grad", "formula"])
def test_these_do_not(make):
    assert not answers_to_weights(made(make).vector_field, SPAN, states(2), NO_INPUTS)


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


def test_parameters_without_numbers_are_left_out():
    class Empty(Wave):
        def __init__(self):
            super().__init__()
            self.empty, self.count = nn.Parameter(torch.zeros(0, 3)), nn.Parameter(torch.ones(2).int(), False)

    assert not {"field.empty", "field.count"} & set(chosen(made(Empty).vector_field))


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


def test_the_graph_of_an_evaluation_is_counted_by_row():
    """tanh keeps its output of six numbers, the first layer its input of three; the state is counted once."""
    f = made(Wave).vector_field
    one, ten = (graph_bytes(f, SPAN, states(n), NO_INPUTS) for n in (1, 10))
    assert one == 8 * (6 + 3) and ten == 10 * one


class Potential(nn.Module):
    """A field that is the gradient of a net, taken by torch.func, which bears no hooks on saved tensors."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 3, dtype=DOUBLE)

    def forward(self, t, z):
        return torch.func.grad(lambda state: torch.tanh(self.layer(state)).sum())(z)


def test_a_graph_that_cannot_be_hooked_is_kept():
    f = made(Potential).vector_field
    assert graph_bytes(f, SPAN, states(2), NO_INPUTS) == 0
    assert answers_to_weights(f, SPAN, states(2), NO_INPUTS)
