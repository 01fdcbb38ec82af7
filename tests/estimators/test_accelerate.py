"""A skorch net with accelerate: two processes train the Neural ODE that one would, and it is taken as any net is.

accelerate is no part of the extras: ``pip install accelerate`` runs this test.
"""

import os

import numpy as np
import pytest
import torch
from processes import in_two_processes
from skorch import NeuralNetRegressor
from skorch.hf import AccelerateMixin
from small_hypersolvers import ROUGH_FITS

from sklearn_hyper import HypersolverRegressor, NeuralODE
from sklearn_hyper.modules import MLPVectorField

accelerate = pytest.importorskip("accelerate")

pytestmark = [*ROUGH_FITS, pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")]

X = np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32)


class Net(AccelerateMixin, NeuralNetRegressor):
    pass


class SquaredError:
    """No module: on CPUs accelerate 1.15 wraps a loss without weights as it wraps a model, which torch refuses."""

    def __call__(self, predicted, target):
        return (predicted - target).square().mean()


def train(batch_size):
    torch.manual_seed(0)
    net = Net(
        NeuralODE(MLPVectorField(2, hidden=8)), criterion=SquaredError, accelerator=accelerate.Accelerator(cpu=True),
        batch_size=batch_size, lr=0.1, max_epochs=3, train_split=None, verbose=0,
    )  # fmt: skip
    net.fit(X, X[:, ::-1] * X)
    fast = HypersolverRegressor(net, base_solver="heun", n_steps=2, max_epochs=2, random_state=0).fit(X)
    return net.predict(X), fast.predict(X)


def test_two_processes_train_what_one_does(tmp_path, monkeypatch):
    for name, value in {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}.items():
        monkeypatch.setenv(name, value)
    both = in_two_processes(lambda: train(batch_size=16), tmp_path)
    for name in ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name)
    predicted, _ = train(batch_size=32)  # what two batches of 16 are together
    for found in both:
        np.testing.assert_allclose(found[0], predicted, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found[1], found[0], atol=0.05)
