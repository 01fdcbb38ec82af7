"""Small fitted models that the tests of this folder share."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from small_flows import make_fast, make_flow, two_blobs
from small_hypersolvers import make_regressor
from torch import nn

from sklearn_hyper import HypersolverClassifier, MLPCorrection, NeuralODEClassifier, NeuralODERegressor
from sklearn_hyper.modules import AugmentedInput, ConvVectorField, MLPVectorField


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
    ode = NeuralODERegressor(MLPVectorField(5, hidden=8), input_map=nn.Linear(3, 5), max_epochs=4, random_state=0)
    return ode.fit(*vectors)


@pytest.fixture(scope="session")
def X():
    """Initial states of the swirl, a 2-d field."""
    return np.random.default_rng(0).uniform(-1, 1, (80, 2))


@pytest.fixture(scope="session")
def swirl(X):
    """A hypersolver fitted to the swirl: to be read only."""
    return make_regressor(n_steps=3, max_epochs=10, batch_size=8, correction=MLPCorrection(hidden=8)).fit(X)


@pytest.fixture(scope="session")
def blobs():
    """300 points in the plane, of two clusters."""
    return two_blobs()


@pytest.fixture(scope="session")
def curved(blobs):
    """A flow for conventions, not for accuracy: all but untrained."""
    return make_flow(hidden=4, gain=2.0, max_epochs=1).fit(blobs)


@pytest.fixture(scope="session")
def quick(curved, blobs):
    """A HypersolverDensity fitted in no time; to be read only."""
    return make_fast(curved).fit(blobs)
