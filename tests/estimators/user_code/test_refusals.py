"""What no solver can use of a user's field or map, and what no training can, is refused before a fit."""

import numpy as np
import pytest
import torch
from small_hypersolvers import ROUGH_FITS
from torch import nn
from user_fields import FIT, NoDropout

from sklearn_hyper import (
    ContinuousNormalizingFlow,
    HypersolverRegressor,
    NeuralODE,
    NeuralODEClassifier,
    NeuralODERegressor,
)
from sklearn_hyper.modules.field_probes import GradientWarning
from sklearn_hyper.modules.neural_ode import VectorFieldError

pytestmark = ROUGH_FITS


@pytest.fixture
def no_solves(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a solve was started")

    monkeypatch.setattr("sklearn_hyper.numerics.reference.odeint", refuse)


@pytest.mark.parametrize(
    "ode, error, message",
    [
        (NeuralODE(torch.sub, output_map=lambda z: (z, z)), VectorFieldError, r"output_map must return .* got tuple"),
        (
            NeuralODE(torch.sub, output_map=lambda z: z.sum()),
            VectorFieldError,
            r"output_map must return .* got shape \(\)",
        ),
        (
            NeuralODE(torch.sub, output_map=lambda z: z[:1]),
            VectorFieldError,
            r"output_map must return .* got shape \(1, 2\)",
        ),
        (
            NeuralODE(torch.sub, output_map=lambda z: z.long()),
            VectorFieldError,
            r"output_map must return a floating-point",
        ),
        (NeuralODE(torch.sub, output_map=lambda z: {}[0]), VectorFieldError, r"output_map fails .*KeyError: 0"),
        (NeuralODE(lambda t, z: z - z.mean(0)), VectorFieldError, "mixes the rows"),
        (NeuralODE(lambda x, t: -x * (1 + t)), VectorFieldError, "a time second"),
        (NeuralODE(nn.Linear(2, 2).half().forward), ValueError, "weights of dtype torch.float16"),
    ],
)
def test_what_no_solver_can_use_is_refused_before_the_first_solve(ode, error, message, X, no_solves):
    with pytest.raises(error, match=message):
        HypersolverRegressor(ode, **FIT).fit(X)


@pytest.mark.parametrize("name", ["NeuralODERegressor", "NeuralODEClassifier", "ContinuousNormalizingFlow"])
def test_half_precision_is_refused_before_training(name, X):
    estimator = {"NeuralODERegressor": NeuralODERegressor, "NeuralODEClassifier": NeuralODEClassifier}.get(
        name, ContinuousNormalizingFlow
    )
    with pytest.raises(ValueError, match=r"weights of dtype torch.bfloat16"):
        estimator(NoDropout().bfloat16()).fit(X, X[:, 0] > 0)


def test_half_precision_data_are_computed_in_single(X):
    fast = HypersolverRegressor(NoDropout(), **FIT).fit(torch.from_numpy(X).bfloat16())
    assert fast.predict(torch.from_numpy(X).half()).dtype == np.float32


def test_cut_gradients_matter_only_where_training_needs_them(X):
    def cut(t, z):
        return torch.tanh(z.detach())

    with pytest.warns(GradientWarning, match="wrong gradient"):
        HypersolverRegressor(cut, **FIT).fit(X)
    HypersolverRegressor(cut, loss="residual", finetune=None, **FIT).fit(X)
