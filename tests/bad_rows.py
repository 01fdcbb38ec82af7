"""Fields that cannot be solved from some rows, and rows from which they cannot."""

import numpy as np
import torch
from torch import nn

X = np.random.default_rng(0).uniform(-1, 1, (60, 2))
FIT = {"base_solver": "heun", "n_steps": 4, "max_epochs": 1, "random_state": 0}


def spoiled(rows, value=3.0):
    bad = X.copy()
    bad[rows] = value
    return bad


def cubic(t, z):
    """z' = z^3 / 10, that is z(t) = z_0 / sqrt(1 - t z_0^2 / 5): from 3 without end before t = 1."""
    return 0.1 * z**3


def exact(x):
    return x / (1 - 0.2 * x**2) ** 0.5


def undefined(t, z):
    """Not finite from zero on."""
    return z * (z / z)


def stiff(t, z):
    """A row's first number to the fourth power is the rate of the second."""
    return torch.stack([0 * z[:, 0], -(z[:, 0].abs() ** 4) * (z[:, 1] - t.cos())], dim=1)


class Cubic(nn.Module):
    """:func:`cubic` with a parameter, of which a training at no learning rate to speak of makes the same."""

    def __init__(self, rate=0.1):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(rate, dtype=torch.float64))

    def forward(self, t, z):
        return self.rate * z**3


class SquareRoots(nn.Module):
    """A logit that is nan for a first feature below -1."""

    def __init__(self, n_outputs):
        super().__init__()
        self.layer, self.n_outputs = nn.Linear(2, n_outputs), n_outputs

    def forward(self, x):
        return self.layer(x) + (1 + x[:, :1]).sqrt()
