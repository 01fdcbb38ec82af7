"""Corrections of a user's own: those that could not be trained right are refused, others are taken."""

import pytest
import torch
from small_hypersolvers import ROUGH_FITS
from torch import nn
from user_fields import FIT, Holder

from sklearn_hyper import (
    HypersolverDensity,
    HypersolverRegressor,
)

pytestmark = ROUGH_FITS


class OwnCorrection(nn.Module):
    """Learns from z alone; kinds differ in what a fit has to refuse."""

    def __init__(self, kind="right"):
        super().__init__()
        self.kind = kind
        if kind == "list":
            self.layers = [nn.Linear(2, 2)]
        elif kind == "object":
            self.holder = Holder(nn.Linear(2, 2))
        elif kind == "function":
            layer = nn.Linear(2, 2)
            self.function = lambda z: layer(z)
        elif kind != "nothing":
            self.layer = nn.Linear(2, 2)
            if kind == "zero mixing":
                nn.init.zeros_(self.layer.weight)
                nn.init.zeros_(self.layer.bias)

    def forward(self, eps, s, z, stages, x=None):
        kind = self.kind
        if kind == "list":
            return self.layers[0](z)
        if kind == "object":
            return self.holder.nets[0](z)
        if kind == "function":
            return self.function(z)
        if kind == "nothing":
            return torch.sin(z)
        if kind == "writes z":
            return self.layer(z.mul_(2))
        if kind == "writes stages":
            return self.layer(stages[0].clamp_(-1, 1))
        if kind == "numpy":
            z.detach().numpy()[:] = 0
        if kind.endswith("mixing"):
            z = z - z.mean(dim=0)
        if kind == "norm":
            z = z / torch.linalg.vector_norm(z)
        if kind == "random":
            z = nn.functional.dropout(z)
        return self.layer(z)


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("list", ValueError, r"holds modules \(Linear\) in plain lists.*Use nn\.ModuleList"),
        ("object", ValueError, r"holds modules \(Linear\) in plain lists, dicts or objects"),
        ("function", TypeError, r"correction holds a function that calls the module"),
        ("nothing", ValueError, r"OwnCorrection, has no parameters: there is nothing to fit"),
        ("writes z", ValueError, r"writes in place into z, .* Clone it first"),
        ("numpy", ValueError, r"writes in place into z, .* Clone it first"),
        ("writes stages", ValueError, r"writes in place into stages\[0\]"),
        ("mixing", ValueError, r"mixes the rows of a batch: in eval mode"),
        ("zero mixing", ValueError, r"mixes the rows of a batch: in eval mode"),
        ("norm", ValueError, r"mixes the rows of a batch: in eval mode"),
        ("random", ValueError, r"is random or keeps a state"),
    ],
)
def test_corrections_that_could_not_be_trained_right_are_refused(kind, error, message, X, monkeypatch):
    monkeypatch.setattr("sklearn_hyper.training.targets.solve_references", None)  # before anything is solved
    for estimator in (HypersolverRegressor, HypersolverDensity):
        if estimator is HypersolverRegressor or kind == "nothing":
            fast = estimator(lambda t, z: -z, base_solver="euler", correction=OwnCorrection(kind), **FIT)
            with pytest.raises(error, match=rf"(?s){message}"):
                fast.fit(X)


@pytest.mark.parametrize("base_solver", ["euler", "heun"])
def test_a_correction_that_is_right_is_taken(base_solver, X):
    params = {**FIT, "n_steps": 3, "base_solver": base_solver, "max_epochs": 40, "batch_size": 8}
    fast = HypersolverRegressor(lambda t, z: -z, correction=OwnCorrection(), **params).fit(X)
    assert fast.correction_ is not None and fast.score(X) > fast.without_correction().score(X)
