"""Ready-made fields and maps: the functions that their docstrings state."""

import pytest
import torch
from problems import largest
from torch import nn

from sklearn_hyper import NeuralODE
from sklearn_hyper.modules import AugmentedInput, ConvVectorField, MLPVectorField, Rescale, Standardize
from sklearn_hyper.numerics import count_macs

FIELDS = {
    "mlp": (lambda: MLPVectorField(3, hidden=5, depth=2), (3,)),
    "mlp-1": (lambda: MLPVectorField(3, hidden=5, depth=1), (3,)),
    "conv": (lambda: ConvVectorField(2, hidden=5, depth=2), (2, 4, 3)),
    "conv-1": (lambda: ConvVectorField(2, hidden=5, depth=1), (2, 4, 3)),
    "conv-softplus": (lambda: ConvVectorField(2, hidden=5, activation="softplus"), (2, 4, 3)),
    "conv-tanh": (lambda: ConvVectorField(2, hidden=5, activation="tanh"), (2, 4, 3)),
}


@pytest.fixture(params=FIELDS.values(), ids=FIELDS)
def field_and_state(request, generator):
    make, shape = request.param
    field = make().double()
    for parameter in field.parameters():
        nn.init.normal_(parameter, std=0.5)
    return field, torch.randn(6, *shape, dtype=torch.float64, generator=generator)


def test_fields_keep_the_shape_and_treat_rows_alone(field_and_state):
    field, z = field_and_state
    t = torch.tensor(0.3, dtype=torch.float64)
    dz = field(t, z)
    assert (dz.shape, dz.dtype) == (z.shape, z.dtype)
    assert largest(torch.cat([field(t, row[None]) for row in z]) - dz) < 1e-12


def test_fields_depend_on_time_smoothly(field_and_state):
    field, z = field_and_state
    times = torch.tensor([0.0, 0.5], dtype=torch.float64)
    assert largest(field(times[0], z) - field(times[1], z)) > 1e-3
    assert torch.autograd.gradcheck(field, (times[1].requires_grad_(), z[:1].requires_grad_()))


def test_a_new_field_does_not_depend_on_time():
    for make, shape in FIELDS.values():
        field, z = make(), torch.ones(2, *shape)
        assert torch.equal(field(torch.tensor(0.0), z), field(torch.tensor(1.0), z))


def test_the_activation_stands_between_the_convolutions():
    field = ConvVectorField(2, hidden=3, depth=2, activation="softplus")
    first, (middle,), last = field.first, field.middle, field.last
    z = torch.randn(2, 2, 4, 4)
    by_hand = last(nn.functional.softplus(middle(nn.functional.softplus(first(z)))))
    assert largest(field(torch.tensor(0.0), z) - by_hand) < 1e-6


def test_an_unknown_activation_is_refused():
    with pytest.raises(ValueError, match=r"activation must be one of \['silu', 'softplus', 'tanh'\], got 'relu'"):
        ConvVectorField(2, activation="relu")


PAPER = {  # the architectures of section 4.1, with the multiply-accumulates of one evaluation of f
    "mnist": (
        lambda: NeuralODE(
            ConvVectorField(32, hidden=46, depth=2, activation="softplus"),
            input_map=AugmentedInput(nn.Conv2d(1, 31, 3, padding=1), nn.BatchNorm2d(1)),
            output_map=nn.Sequential(nn.AvgPool2d(28), nn.Flatten(), nn.Linear(32, 10)),
        ),
        (1, 28, 28),
        35.7e6,
    ),
    "cifar": (
        lambda: NeuralODE(
            ConvVectorField(20, hidden=50, depth=2, activation="softplus"),
            input_map=nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 20, 3, padding=1)),
            output_map=nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(80, 10)),
        ),
        (3, 32, 32),
        41.5e6,
    ),
}


@pytest.mark.parametrize(("make", "shape", "macs"), PAPER.values(), ids=PAPER)
def test_the_papers_architectures_cost_what_it_says(make, shape, macs):
    ode = make().eval()
    x = torch.rand(1, *shape)
    with torch.no_grad():
        z = ode.input_map(x)
        assert ode(x, rtol=1e-2, atol=1e-2).shape == (1, 10)
    assert count_macs(ode.vector_field, torch.tensor(0.0), z) == pytest.approx(macs, rel=2e-3)


@pytest.mark.parametrize("shape", [(50, 3), (50, 3, 4, 5)])
def test_standardize_centres_and_scales_features_or_channels(shape, generator):
    x = 3 + 2 * torch.randn(shape, dtype=torch.float64, generator=generator)
    y = Standardize.from_data(x)(x)
    axes = [0, *range(2, x.ndim)]
    assert largest(y.mean(dim=axes)) < 1e-12
    assert largest(y.std(dim=axes, unbiased=False) - 1) < 1e-12


def test_standardize_shifts_what_is_constant_and_measures_it_by_its_size():
    y = Standardize.from_data(torch.full((4, 2), 8.0))(torch.tensor([[8.0, 10.0]]))
    assert y.tolist() == [[0, 0.25]]
    assert Standardize.from_data(torch.zeros(4, 1))(torch.tensor([[3.0]])).tolist() == [[3]]


def test_rescale_is_affine_after_the_inner_map():
    rescale = Rescale(nn.Identity(), torch.tensor([2.0, 3.0]), torch.tensor([1.0, -1.0]))
    assert rescale(torch.tensor([[1.0, 1.0]])).tolist() == [[3, 2]]
    assert not list(rescale.parameters()) and set(rescale.state_dict()) == {"scale", "shift"}


def test_augmented_input_keeps_the_scaled_input_in_front():
    x = torch.randn(3, 1, 4, 4)
    scaler, lift = Standardize.from_data(x), nn.Conv2d(1, 2, 1)
    z = AugmentedInput(lift, scaler)(x)
    assert z.shape == (3, 3, 4, 4)
    assert torch.equal(z[:, :1], scaler(x)) and torch.equal(z[:, 1:], lift(scaler(x)))
    assert torch.equal(AugmentedInput(lift)(x)[:, :1], x)
