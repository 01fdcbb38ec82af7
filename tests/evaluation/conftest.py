"""Fitted hypersolvers that the tests of this folder share, and figures that need no screen."""

import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot
from small_hypersolvers import make_classifier, make_regressor

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    pyplot.close("all")


@pytest.fixture(scope="session")
def X():
    return np.random.default_rng(0).uniform(-1, 1, (80, 2))


@pytest.fixture(scope="session")
def regressor(X):
    return make_regressor().fit(X)


@pytest.fixture(scope="session")
def classifier(X):
    return make_classifier().fit(X)
