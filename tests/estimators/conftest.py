"""Small fitted models that the tests of this folder share, and a count of dopri5's reference solves."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from small_hypersolvers import make_regressor
from torch import nn

from sklearn_hyper import HypersolverClassifier, MLPCorrection, NeuralODEClassifier, NeuralODERegressor
from sklearn_hyper.modules import AugmentedInput, ConvVectorField, MLPVectorField
from sklearn_hyper.training import references


@pytest.fixture(scope="session")
def digits():
    """150 digits as images (1, 8, 8), and their labels."""
    images, labels = load_digits(return_X_y=True)
    return (images[:150].reshape(-1, 1, 8, 8) / 16).astype(np.float32), labels[:150]


@pytest.fixture(scope="session")
def digits_ode(digits):
    """A classifier with a field of four channels."""
    torch.manual_seed(0)
    ode = NeuralODEClassifier(
        ConvVectorField(4, hidden=4),
        input_map=AugmentedInput(nn.Conv2d(1, 3, 3, padding=1)),
        max_epochs=3,
        random_state=0,
    )
    return ode.fit(*digits)


@pytest.fixture(scope="session")
def digits_hyper(digits_ode, digits):
    return HypersolverClassifier(digits_ode, base_solver="euler", n_steps=2, max_epochs=5, random_state=0).fit(
        digits[0]
    )


@pytest.fixture(scope="session")
def vectors():
    """90 vectors of width 3 and a smooth target."""
    X = np.random.default_rng(0).normal(size=(90, 3))
    return X, np.sin(X[:, 0]) + X[:, 1] * X[:, 2]


@pytest.fixture(scope="session")
def vectors_ode(vectors):
    torch.manual_seed(0)
    ode = NeuralODERegressor(MLPVectorField(5, hidden=8), input_map=nn.Linear(3, 5), max_epochs=3, random_state=0)
    return ode.fit(*vectors)


@pytest.fixture(scope="session")
def X():
    """Initial states of the swirl, a 2-d field."""
    return np.random.default_rng(0).uniform(-1, 1, (80, 2))


@pytest.fixture(scope="session")
def swirl(X):
    """A hypersolver fitted to the swirl: to be read only."""
    return make_regressor(n_steps=3, max_epochs=10, batch_size=8, correction=MLPCorrection(hidden=8)).fit(X)


@pytest.fixture
def solves(monkeypatch):
    """Number of rows of every dopri5 reference solve from here on."""
    rows = []
    solve = references.reference_solution

    def counted(f, z0, *args, **kwargs):
        rows.append(len(z0))
        return solve(f, z0, *args, **kwargs)

    monkeypatch.setattr(references, "reference_solution", counted)
    return rows
