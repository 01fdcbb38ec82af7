"""Hypersolvers small enough to fit in a moment, for tests of what is built on them."""

import numpy as np
import pytest
import torch
from torch import nn

from sklearn_hyper import HypersolverClassifier, HypersolverRegressor, MLPCorrection, NeuralODE
from sklearn_hyper.metrics import mape_floor, mean_absolute_percentage_error
from sklearn_hyper.modules import HypersolvedODE


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


A = np.array([[-0.5, 2.0], [-2.0, -0.5]])


def spiral(t, z):
    """A linear field with a closed form."""
    return z @ z.new_tensor(A).T


def make_learner(neural_ode=None, **params):
    """A hypersolver that learns the swirl in a second: 20 updates of g an epoch or fewer."""
    return make_regressor(
        neural_ode, **{"correction": MLPCorrection(hidden=8), "batch_size": 8, "max_epochs": 10} | params
    )


def base_score(hyper, X):
    """What ``score`` would be without the correction."""
    module = hyper.module_
    base = HypersolvedODE(module.neural_ode, module.base_solver, None, module.grid)
    with torch.no_grad():
        output = base(torch.from_numpy(X).to(hyper.dtype_)).numpy()
    reference = hyper.reference(X).reshape(output.shape)
    floor = mape_floor(hyper.mape_floor, reference)
    return -mean_absolute_percentage_error(reference, output, floor=floor)


ROUGH_FITS = [
    pytest.mark.filterwarnings("ignore::sklearn_hyper.numerics.residuals.ConditioningWarning"),
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
]
"""Marks of tests whose fits are tiny: neither the accuracy of targets nor that of the result is what they are about."""
