"""Hypersolvers small enough to fit in a moment, for tests of what is built on them."""

import torch
from torch import nn

from sklearn_hyper import HypersolverClassifier, HypersolverRegressor, NeuralODE


class Swirl(nn.Module):
    """A field with MACs, whose rotation a few Euler steps miss."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[0.0, -2.0], [2.0, 0.0]], dtype=torch.float64))

    def forward(self, t, z):
        return torch.tanh(z @ self.weight.T)


class ToLogits(nn.Module):
    """Three classes by direction."""

    def __init__(self):
        super().__init__()
        angles = torch.tensor([0.0, 2.1, 4.2], dtype=torch.float64)
        self.register_buffer("directions", torch.stack([angles.cos(), angles.sin()]))

    def forward(self, z):
        return z @ self.directions


def make_regressor(neural_ode=None, **params):
    return HypersolverRegressor(
        neural_ode or Swirl(), **{"base_solver": "euler", "n_steps": 2, "max_epochs": 3, "random_state": 0} | params
    )


def make_classifier(**params):
    neural_ode = NeuralODE(Swirl(), output_map=ToLogits())
    defaults = {"classes": ["a", "b", "c"], "base_solver": "euler", "n_steps": 2, "max_epochs": 3, "random_state": 0}
    return HypersolverClassifier(neural_ode, **defaults | params)
