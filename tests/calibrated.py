"""Fields with closed forms, and calibrated hypersolvers of them."""

import numpy as np
import torch
from torch import nn

from sklearn_hyper import HypersolverRegressor


class Riccati(nn.Module):
    """z' = -z^2, whose solution is z / (1 + t z). It has a weight, and counts rows times calls."""

    def __init__(self):
        super().__init__()
        self.rate = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.row_evaluations = 0

    def forward(self, t, z):
        return -self.rate * z * z


class Cubic(nn.Module):
    """z' = -8 z^3, whose solution is z / sqrt(1 + 16 t z^2). Large steps of Runge-Kutta overflow where z is large."""

    def __init__(self):
        super().__init__()
        self.rate = nn.Parameter(torch.full((), 8.0, dtype=torch.float64))

    def forward(self, t, z):
        return -self.rate * z**3


def riccati_end(X):
    return X / (1 + X)


def draw(n, seed, low=0.2, high=1.5):
    return np.random.default_rng(seed).uniform(low, high, (n, 2))


def errors_of(z, X):
    return np.linalg.norm(z - riccati_end(X), axis=1)


def make_generalist(**params):
    defaults = {"base_solver": "euler", "n_steps": 2, "fit_n_steps": (1, 8), "max_epochs": 25, "random_state": 0}
    return HypersolverRegressor(Riccati(), **defaults | params)
