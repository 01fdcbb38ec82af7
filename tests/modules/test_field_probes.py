"""What would go wrong silently is found before a fit, and nothing is found where nothing is wrong."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from sklearn_hyper import NeuralODE
from sklearn_hyper.modules.field_probes import CopyingPart, GradientWarning, check_start, settle_parts
from sklearn_hyper.modules.neural_ode import VectorFieldError, check_neural_ode, check_precision


@pytest.fixture
def x(generator):
    return torch.randn(8, 3, generator=generator)


def _mlp():
    return nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 3))


class Field(nn.Module):
    """A field made of a net and what to do with it."""

    def __init__(self, call, net=None):
        super().__init__()
        self.net, self.call = net or _mlp(), call

    def forward(self, t, z):
        return self.call(self.net, t, z)


# ---------------------------------------------------------------------- writing and reuse
BUFFER = torch.empty(64, 3)
NOISE = np.random.default_rng(0)


def _copied(z):
    return BUFFER[: len(z)].copy_(2 * z)


@pytest.mark.parametrize(
    "name, part, clean",
    [
        ("input_map", lambda x: x.relu_(), torch.relu),
        ("input_map", nn.ReLU(inplace=True), torch.relu),
        ("output_map", lambda z: z.mul_(2.0), lambda z: 2 * z),
        ("output_map", _copied, lambda z: 2 * z),
        ("vector_field", lambda t, z: z.neg_(), lambda t, z: -z),
        ("vector_field", lambda t, z: _copied(z), lambda t, z: 2 * z),
    ],
)
def test_parts_that_write_or_reuse_work_on_copies(name, part, clean, x):
    ode = NeuralODE(**{"vector_field": lambda t, z: -z} | {name: part})
    before = x.clone()
    settle_parts(ode, x)
    settled = getattr(ode, name)
    assert isinstance(settled, CopyingPart)
    arguments = (torch.zeros(()), x) if name == "vector_field" else (x,)
    first, second = settled(*arguments), settled(*arguments)
    assert torch.equal(first, clean(*arguments)) and first.data_ptr() != second.data_ptr()
    assert torch.equal(x, before)


def _subtract_one(x):
    array = x.numpy()
    array += 1
    return torch.from_numpy(array) - 1


@pytest.mark.parametrize("part", [_subtract_one, lambda x: (x.clone(), x.data.mul_(2))[0]], ids=["NumPy", ".data"])
def test_writes_that_torch_does_not_count_are_found(part, x):
    ode, before = NeuralODE(lambda t, z: -z, input_map=part), x.clone()
    settle_parts(ode, x)
    torch.testing.assert_close(ode.input_map(x), x)
    assert torch.equal(x, before) and isinstance(ode.input_map, CopyingPart)


def test_a_data_controlled_field_that_writes_into_x_works_on_a_copy(x):
    ode = NeuralODE(lambda t, z, x: z * x.mul_(2.0), data_controlled=True)
    before = x.clone()
    settle_parts(ode, x)
    assert torch.equal(ode.vector_field(torch.zeros(()), x, x), x * (2 * x))
    assert torch.equal(x, before)


def test_clean_parts_stay_as_they_are(x):
    field, lift, read = Field(lambda net, t, z: net(z)), nn.Linear(3, 3), nn.Linear(3, 1)
    ode = NeuralODE(field, input_map=lift, output_map=read)
    settle_parts(ode, x)
    assert (ode.vector_field, ode.input_map, ode.output_map) == (field, lift, read)


# ---------------------------------------------------------------------- rows
@pytest.mark.parametrize(
    "call",
    [
        lambda net, t, z: net(z.mean(0, keepdim=True)) - z,
        lambda net, t, z: torch.softmax(z, dim=0),
        lambda net, t, z: z if z.sum() > 1e3 else net(z) * z.norm(),
        lambda net, t, z: (z @ z.T).softmax(dim=1) @ z,
        lambda net, t, z: z.roll(1, dims=0),
        lambda net, t, z: torch.cat([z[:1], z[1:-1].mean(0, keepdim=True).expand(max(len(z) - 2, 0), -1), z[1:][-1:]]),
    ],
    ids=["mean field", "softmax over rows", "norm of the batch", "attention over rows", "neighbours", "inner rows"],
)
def test_rows_that_depend_on_each_other_are_refused(call, x):
    with pytest.raises(VectorFieldError, match=r"vector_field mixes the rows of a batch.*one sample of shape"):
        settle_parts(NeuralODE(Field(call)), x)


@pytest.mark.parametrize("name", ["input_map", "output_map"])
def test_maps_that_mix_rows_are_refused(name, x):
    with pytest.raises(VectorFieldError, match=f"{name} mixes the rows"):
        settle_parts(NeuralODE(lambda t, z: -z, **{name: lambda z: z - z.mean(0)}), x)


def test_maps_that_lose_rows_are_refused(x):
    with pytest.raises(VectorFieldError, match="output_map returns 7 rows for 8"):
        settle_parts(NeuralODE(lambda t, z: -z, output_map=lambda z: z[:7]), x)


class Disguised(nn.Module):
    """Holds its net where nothing looks: behind a name that is made when it is read."""

    def forward(self, t, z):
        return globals()["HID" + "DEN"](z)


HIDDEN = nn.Linear(3, 3)


@pytest.mark.parametrize("name", ["vector_field", "input_map", "output_map"])
def test_trained_tensors_that_are_reached_in_hidden_ways_are_refused(name, x):
    field = Disguised()
    part = field if name == "vector_field" else lambda z: field(None, z)
    with pytest.raises(TypeError, match=rf"{name} calls a module, or uses a tensor that requires gradients, of shape"):
        settle_parts(NeuralODE(**{"vector_field": lambda t, z: -z} | {name: part}), x)


def test_leaves_that_a_field_makes_at_every_call_are_its_own(x):
    settle_parts(NeuralODE(Field(WHOLE["differentiating"])), x)
    with pytest.warns(GradientWarning):
        settle_parts(NeuralODE(Field(CUT["no create_graph"])), x)


def test_an_output_map_may_have_a_domain_that_starts_lie_outside_of(x):
    ode = NeuralODE(lambda t, z: 5 * (5 - z), output_map=torch.log)
    settle_parts(ode, x)
    check_start(ode, x)


def test_batch_normalisation_mixes_no_rows_once_it_is_settled(x):
    field = Field(lambda net, t, z: net(z), nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)))
    ode = NeuralODE(field)
    settle_parts(ode.train(), x)
    assert field.net[1].training and field.net[1].num_batches_tracked == 0


# ---------------------------------------------------------------------- randomness
@pytest.mark.parametrize(
    "call",
    [
        lambda net, t, z: functional.dropout(net(z), 0.5),
        lambda net, t, z: net(z) + 0.1 * torch.randn_like(z),
        lambda net, t, z: net(z) * NOISE.uniform(1, 2),
    ],
    ids=["functional dropout", "noise", "NumPy's noise"],
)
def test_random_fields_are_refused(call, x):
    with pytest.raises(VectorFieldError, match="vector_field is random or keeps a state"):
        settle_parts(NeuralODE(Field(call)), x)


def test_fields_that_keep_a_state_are_refused(x):
    calls = iter(range(100))
    with pytest.raises(VectorFieldError, match="keeps a state"):
        settle_parts(NeuralODE(lambda t, z: z * next(calls)), x)


# ---------------------------------------------------------------------- precision
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_refused(dtype, x):
    with pytest.raises(
        ValueError, match=rf"weights of dtype {dtype} \(vector_field.net.0.weight\).*neural_ode.float\(\)"
    ):
        check_precision(NeuralODE(Field(lambda net, t, z: net(z), _mlp().to(dtype))))
    with pytest.raises(VectorFieldError, match=f"computes in {dtype}"):
        settle_parts(NeuralODE(Field(lambda net, t, z: net(z).to(dtype).to(z.dtype))), x)


@pytest.mark.parametrize("f", [lambda t, z: torch.ones_like(z), lambda t, z: z.sign(), lambda t, z: (4 * z).round()])
def test_round_numbers_are_no_half_precision(f, x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GradientWarning)
        settle_parts(NeuralODE(f), x)
        settle_parts(NeuralODE(lambda t, z: -z), torch.arange(24.0).reshape(8, 3))


# ---------------------------------------------------------------------- gradients
def _potential(z):
    return (z.pow(4).sum() + z.prod(dim=1).sum()) / 4


def _by_autograd(net, t, z, create_graph):
    with torch.enable_grad():
        q = z if z.requires_grad and create_graph else z.detach().requires_grad_(True)
        return -torch.autograd.grad(_potential(q), q, create_graph=create_graph)[0]


CUT = {
    "detached": lambda net, t, z: net(z.detach()),
    "half detached": lambda net, t, z: 3 * net(z.detach()) + z,
    "no_grad": lambda net, t, z: torch.no_grad()(net)(z),
    "NumPy": lambda net, t, z: torch.from_numpy(np.tanh(z.detach().numpy())),
    "no create_graph": lambda net, t, z: _by_autograd(net, t, z, create_graph=False),
}
WHOLE = {
    "net": lambda net, t, z: net(z),
    "differentiating": lambda net, t, z: _by_autograd(net, t, z, create_graph=True),
    "func.grad": lambda net, t, z: -torch.func.vmap(torch.func.grad(lambda q: q.pow(4).sum()))(z),
    "constant": lambda net, t, z: torch.ones_like(z),
    "detached time": lambda net, t, z: net(z) * t.detach(),
    "small beside an offset": lambda net, t, z: 1e3 + 1e-4 * torch.tanh(z),
    "in place": lambda net, t, z: nn.functional.relu(z, inplace=True) * 2,
}


@pytest.mark.parametrize("call", CUT.values(), ids=CUT)
def test_gradients_that_are_cut_are_told(call, x):
    with pytest.warns(GradientWarning, match="a difference quotient away from it.*detached"):
        settle_parts(NeuralODE(Field(call)), x)
    settle_parts(NeuralODE(Field(call)), x, differentiates=False)


@pytest.mark.parametrize("call", WHOLE.values(), ids=WHOLE)
@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e6])
def test_whole_gradients_are_not(call, x, scale):
    settle_parts(NeuralODE(Field(call)), x)
    settle_parts(NeuralODE(lambda t, z: scale * torch.sin(z / scale)), scale * x)


def test_a_row_far_outside_and_columns_of_other_units_cut_no_gradient(x):
    far, mixed = x.clone(), x * torch.tensor([1e-3, 1.0, 1e4])
    far[3, 0] = -9999.0
    settle_parts(NeuralODE(Field(WHOLE["net"])), far)
    settle_parts(NeuralODE(lambda t, z: torch.sin(z / torch.tensor([1e-3, 1.0, 1e4]))), mixed)
    settle_parts(NeuralODE(lambda t, z: torch.sin(z)), torch.zeros_like(x))
    settle_parts(NeuralODE(lambda t, z: torch.sin(z)), x + 1000)
    offset, scale = torch.tensor([300.0, 0.0, 0.0]), torch.tensor([5.0, 0.1, 1.0])
    settle_parts(NeuralODE(lambda t, z: scale * torch.tanh((z - offset) / scale)), offset + scale * x)
    stamps = torch.cat([1.7e9 + 1e3 * x[:, :1].double(), x[:, 1:].double()], dim=1)
    settle_parts(NeuralODE(lambda t, z: torch.sin((z - stamps.mean(0)) / stamps.std(0))), stamps)


# ---------------------------------------------------------------------- signatures
def _swapped(x, t):
    return -x * (1 + t)


def _needs_rows(x, t):
    return torch.cat([x, t.expand(len(x), 1)], dim=1)[:, :3]


class Swapped(nn.Module):
    def forward(self, state, time):
        return torch.sin(state) * time


def _refuses(t, z):
    if t.ndim != 1:
        raise AssertionError
    return z


def _slope_without_enable_grad(t, z):
    z = z if z.requires_grad else z.detach().requires_grad_(True)
    return torch.autograd.grad(_potential(z), z, create_graph=True)[0]


@pytest.mark.parametrize(
    "field, message",
    [
        (_slope_without_enable_grad, r"with gradients switched on it works: .* torch.enable_grad\(\), on z as it is"),
        (_swapped, r"vector_field takes \(x, t\), a time second.*Wrap it"),
        (Swapped(), r"vector_field takes \(state, time\), a time second"),
        (_needs_rows, r"with \(z, t\), it works: a field takes the time first"),
        (lambda z: -z, r"with z alone it works"),
        (lambda t, z, x: -z, r"takes the input too needs NeuralODE\(data_controlled=True\)"),
        (nn.Linear(3, 1), r"with z alone it returns a tensor of another shape: if it is a whole model"),
        (_refuses, r"AssertionError: \(no message\)\. It was called with t \(shape \(\), .*z \(shape \(8, 3\)"),
        (lambda t, z: {}["key"], r"KeyError: 'key'"),
    ],
)
def test_wrong_signatures_are_explained(field, message, x):
    with pytest.raises(VectorFieldError, match=message):
        check_neural_ode(NeuralODE(field), x)


@pytest.mark.parametrize("field", [_refuses, lambda t, z: {}["key"]])
def test_what_data_control_does_not_mend_is_not_said_to_need_it(field, x):
    with pytest.raises(VectorFieldError) as caught:
        check_neural_ode(NeuralODE(field), x)
    assert "data_controlled" not in str(caught.value)


@pytest.mark.parametrize("field", [lambda s, y: -y, lambda t, x: -x, lambda *a: -a[1], torch.add, lambda a, b: a * b])
def test_right_signatures_of_any_names_pass(field, x):
    assert torch.equal(check_neural_ode(NeuralODE(field), x), x)


# ---------------------------------------------------------------------- conditions
def test_a_field_that_writes_into_its_condition_works_on_a_copy(x):
    ode, rate = NeuralODE(lambda t, z, rate: z * rate.mul_(2.0)), torch.full((8, 1), 0.25)
    settle_parts(ode, x, {"rate": rate})
    assert isinstance(ode.vector_field, CopyingPart)
    assert torch.equal(ode.vector_field(torch.zeros(()), x, rate=rate), x * 0.5)
    assert torch.equal(rate, torch.full((8, 1), 0.25))


def test_a_clean_field_with_a_condition_stays_as_it_is(x):
    """Only the first rows of many are probed, with their own conditions; names are the user's."""
    many = x.repeat(4, 1)
    condition = {"name": torch.arange(1.0, 33.0)[:, None], "neural_ode": 0.5, "part": 2}
    field = lambda t, z, *, name, neural_ode, part: torch.sin(z) * neural_ode / name * part  # noqa: E731
    ode = NeuralODE(field)
    settle_parts(ode, many, condition)
    assert ode.vector_field is field
    check_start(ode, many, condition=condition)


def test_rows_that_depend_on_the_conditions_of_others_are_refused(x):
    ode = NeuralODE(lambda t, z, rate: z * rate.mean())
    with pytest.raises(VectorFieldError, match="vector_field mixes the rows of a batch"):
        settle_parts(ode, x, {"rate": torch.arange(8.0)[:, None]})


def test_gradients_that_are_cut_are_told_with_a_condition(x):
    condition = {"rate": torch.arange(1.0, 9.0)[:, None]}
    with pytest.warns(GradientWarning, match="a difference quotient away from it"):
        settle_parts(NeuralODE(lambda t, z, rate: rate * torch.sin(z.detach())), x, condition)
    settle_parts(NeuralODE(lambda t, z, rate: rate * torch.sin(z)), x, condition)


def test_rows_whose_condition_lets_the_field_start_nowhere_are_named(x):
    rate = torch.ones(8, 1)
    rate[[2, 5]] = 0
    ode = NeuralODE(lambda t, z, rate: z / rate)
    with pytest.raises(VectorFieldError, match=r"vector_field is not finite .* for 2 of 8 rows of X \(rows 2, 5\)"):
        check_start(ode, x, condition={"rate": rate})
    with pytest.raises(VectorFieldError, match=r"rows 12, 15"):
        check_start(ode, x, range(10, 18), {"rate": rate})
