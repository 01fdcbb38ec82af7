"""What every adapter keeps: the user's model is only read, conditions are named, and the contract is a few lines."""

import functools
import pickle

import pytest
import torch
from torch import nn

from sklearn_hyper import NeuralODE
from sklearn_hyper import adapters as package
from sklearn_hyper.adapters import Adapter, from_denoiser, from_velocity
from sklearn_hyper.adapters.contract import tensor_of

ALPHAS = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)


class Velocity(nn.Module):
    """Takes the state, a time a row, and a label."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 2))

    def forward(self, x, t, y=None):
        shift = 0 if y is None else y.reshape(-1, 1)
        return self.net(torch.cat([x, t[:, None]], dim=1)) + shift


class Labelled(Adapter):
    def velocity(self, t, z, *, label):
        return label[:, None] * self.model(z)


@pytest.mark.parametrize("name", package.__all__)
def test_public_names_resolve(name):
    assert getattr(package, name).__name__ == name


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'from_jax'"):
        _ = package.from_jax


@pytest.mark.parametrize(
    "make", [lambda model: from_velocity(model, order="xt"), lambda model: from_denoiser(model, schedule=ALPHAS)]
)
def test_the_users_model_is_only_read(make):
    model = Velocity().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ode = make(model)
    out = ode(torch.randn(5, 2), rtol=1e-3)
    assert not out.requires_grad
    assert model.training and all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        model.net[0].weight.add_(1)  # trained on, the model does not change what was adapted
    torch.testing.assert_close(ode(torch.zeros(5, 2)), make_again(ode)(torch.zeros(5, 2)))


def make_again(ode):
    return pickle.loads(pickle.dumps(ode))


def test_bound_methods_and_partials_are_copied_with_what_they_hold():
    model = Velocity().eval()
    for given in (model.forward, functools.partial(model, y=torch.ones(1))):
        ode = from_velocity(given, order="xt")
        before = ode(torch.ones(3, 2))
        with torch.no_grad():
            model.net[0].bias.add_(1)
        torch.testing.assert_close(ode(torch.ones(3, 2)), before)
    assert list(ode.parameters()), "the parameters inside are found, so that they move and can be bent"


def test_conditions_are_missing_or_unknown_with_an_error():
    ode = NeuralODE(Labelled(nn.Linear(2, 2), conditions=["label"]))
    z = torch.randn(4, 2)
    assert ode(z, condition={"label": torch.ones(4)}).shape == (4, 2)
    with pytest.raises(ValueError, match=r"condition must have the entries \['label'\], got \[\]"):
        ode(z)
    with pytest.raises(ValueError, match=r"got \['class', 'label'\]"):
        ode(z, condition={"label": torch.ones(4), "class": torch.ones(4)})


def test_a_model_has_to_be_callable():
    with pytest.raises(TypeError, match="model must be a module or a callable, got 3"):
        Labelled(3)
    with pytest.raises(TypeError, match="model must be a module or a callable"):
        Labelled(nn.Linear)


def test_outputs_of_models():
    class Sampled:
        sample = torch.ones(2)

    assert all(torch.equal(tensor_of(out), torch.ones(2)) for out in (torch.ones(2), (torch.ones(2), 1), Sampled()))
    with pytest.raises(TypeError, match="the model returns a dict"):
        tensor_of({"sample": torch.ones(2)})
