"""Any number of rows fits, also with layers that cannot learn from a single one."""

import math

import numpy as np
import pytest
import torch
from reference_solves import REFERENCE_SOLUTION
from small_flows import make_flow
from small_hypersolvers import Swirl, make_regressor
from torch import nn

from sklearn_hyper import HypersolverRegressor, NeuralODE, NeuralODEClassifier, NeuralODERegressor


def data(n, seed=0):
    return np.random.default_rng(seed).normal(size=(n, 2)).astype(np.float32)


class Seen(nn.Module):
    """Remembers how many rows it was given in training."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def forward(self, x):
        if self.training:
            self.sizes.append(len(x))
        return x


class CentresRows(nn.Module):
    """A normalisation of the user's own, which refuses a single row."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(2))

    def forward(self, z):
        if self.training and len(z) < 2:
            raise RuntimeError("needs two rows")
        return self.gain * (z - z.mean(0)) if self.training else self.gain * z


class Field(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, t, z):
        return -torch.tanh(self.norm(z))


PARTS = {
    "input_map": lambda: {"input_map": nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4))},
    "vector_field": lambda: {"vector_field": Field(nn.BatchNorm1d(2)), "input_map": nn.Identity()},
    "output_map": lambda: {
        "input_map": nn.Linear(2, 4),
        "output_map": nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2)),
    },
    "own": lambda: {"vector_field": Field(CentresRows()), "input_map": nn.Identity()},
}
PARAMS = {"solver": "rk4", "n_steps": 2, "max_epochs": 2, "random_state": 0}
parts = pytest.mark.parametrize("part", PARTS)


# ---------------------------------------------------------------------- Neural ODEs
@parts
@pytest.mark.parametrize("n_rows", [65, 17, 2])
def test_a_neural_ode_trains_on_any_number_of_rows(part, n_rows):
    X = data(n_rows)
    y = np.arange(n_rows) % 2
    net = NeuralODEClassifier(**PARTS[part](), **PARAMS, batch_size=16, validation_fraction=None).fit(X, y)
    assert np.isfinite(net.predict_proba(X)).all()
    two_outputs = NeuralODERegressor(**PARTS[part](), **PARAMS, batch_size=16, validation_fraction=None).fit(X, X)
    assert np.isfinite(two_outputs.predict(X)).all()


def test_what_a_neural_ode_is_trained_on():
    X, y = data(41), np.arange(41) % 2
    net = NeuralODEClassifier(
        input_map=nn.Sequential(Seen(), nn.Linear(2, 4)), **PARAMS, batch_size=8, validation_fraction=None
    ).fit(X, y)
    sizes = net.neural_ode_.input_map[0].sizes[-12:]
    assert sizes == [7, 7, 7, 7, 7, 6] * 2


@parts
def test_where_a_row_cannot_but_be_alone(part):
    X, y = data(20), np.arange(20) % 2
    make = lambda **params: NeuralODEClassifier(**PARTS[part](), **PARAMS | params)  # noqa: E731
    remedy = r"a layer of vector_field, input_map or output_map cannot be trained on a batch of a single row \("
    with pytest.raises(ValueError, match=rf"batch_size=1: {remedy}.*set batch_size to 2 or more, or use .*LayerNorm"):
        make(batch_size=1).fit(X, y)
    with pytest.raises(ValueError, match=rf"one row to train on: {remedy}.*give more rows, or use .*LayerNorm"):
        make(validation_fraction=0.5).fit(X[:2], y[:2])
    with pytest.raises(ValueError, match=rf"one row to train on: {remedy}"):
        make().partial_fit(X[:1], y[:1], classes=[0, 1])
    net = make().partial_fit(X, y)
    expected = net.predict_proba(X)
    with pytest.raises(ValueError, match=rf"one row to train on: {remedy}"):
        net.partial_fit(X[:1], y[:1])
    np.testing.assert_array_equal(net.predict_proba(X), expected)
    assert len(net.partial_fit(X[:9], y[:9]).history_) == 2


@pytest.mark.parametrize("input_map", [None, nn.Sequential(nn.Linear(2, 4), nn.LayerNorm(4)), nn.Linear(2, 3)])
def test_layers_that_learn_from_a_single_row(input_map):
    X, y = data(6), np.arange(6) % 2
    one = NeuralODEClassifier(input_map=input_map, **PARAMS, batch_size=1).fit(X, y)
    assert np.isfinite(one.predict_proba(X)).all()
    alone = NeuralODEClassifier(input_map=input_map, **PARAMS).partial_fit(X[:1], y[:1], classes=[0, 1])
    assert np.isfinite(alone.partial_fit(X[1:2], y[1:2]).predict_proba(X)).all()


def test_images_of_one_row_keep_batch_norm():
    """Over pixels there is enough to take statistics of."""
    X = np.random.default_rng(0).normal(size=(5, 1, 4, 4)).astype(np.float32)
    conv = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8))
    net = NeuralODEClassifier(input_map=conv, **PARAMS, batch_size=1).fit(X, np.arange(5) % 2)
    assert np.isfinite(net.predict_proba(X)).all()


# ---------------------------------------------------------------------- corrections and flows
class NormedCorrection(nn.Module):
    """A user's own, with BatchNorm; starts at zero."""

    def __init__(self, n_stages=1):
        super().__init__()
        self.seen, self.norm, self.out = Seen(), nn.BatchNorm1d(2 + 2 * n_stages), nn.Linear(2 + 2 * n_stages, 2)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, eps, s, z, stages, x=None):
        return self.out(self.norm(self.seen(torch.cat([z, *stages], dim=1))))


@pytest.mark.parametrize("loss, finetune", [("residual", "terminal"), ("trajectory", None)])
@pytest.mark.parametrize("n_rows", [19, 36])  # 17 and 32 + 1 are left to fit
def test_a_correction_with_batch_norm(n_rows, loss, finetune):
    fast = make_regressor(
        correction=NormedCorrection().double(), loss=loss, finetune=finetune, batch_size=16, max_epochs=4, lr=1e-3
    )
    X = data(n_rows).astype(np.float64)
    fast.fit(X)
    assert min(fast.net_.module_.corrections[0].net.module.seen.sizes) > 1 and np.isfinite(fast.predict(X)).all()


def test_a_correction_is_validated_as_it_predicts():
    """In eval mode: not by the statistics of the held-out rows, which it is not to take in either."""
    norm = NormedCorrection().double()
    fast = make_regressor(correction=norm, finetune=None, max_epochs=3, batch_size=64, lr=1e-3)
    X = data(60).astype(np.float64)
    sizes = fast.fit(X).net_.module_.corrections[0].net.module.seen.sizes
    assert 6 not in sizes  # the rows that are held out


def test_a_correction_that_cannot_be_trained_on_one_row(monkeypatch):
    monkeypatch.setattr(REFERENCE_SOLUTION, None)  # refused before any solve
    X, correction = data(20).astype(np.float64), NormedCorrection().double()
    remedy = r"a layer of correction cannot be trained on a batch of a single row"
    with pytest.raises(ValueError, match=rf"batch_size=1: {remedy}.*set batch_size to 2 or more"):
        make_regressor(correction=correction, batch_size=1).fit(X)
    with pytest.raises(ValueError, match=rf"one row to train on: {remedy}.*give more rows"):
        make_regressor(correction=correction).fit(X[:2])
    controlled = NeuralODE(lambda t, z, x: -z * x, data_controlled=True)
    with pytest.raises(ValueError, match=rf"batch_size=1: {remedy}"):
        HypersolverRegressor(controlled, base_solver="euler", correction=correction, batch_size=1).fit(X)


@pytest.mark.filterwarnings("ignore:no epoch was better")
@pytest.mark.parametrize("ours", [True, False])
def test_corrections_that_learn_from_a_single_row(ours):
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = nn.Parameter(torch.zeros(2, dtype=torch.float64))

        def forward(self, eps, s, z, stages, x=None):
            return self.gain * stages[0]

    correction = "auto" if ours else Plain()
    fast = make_regressor(Swirl(), correction=correction, batch_size=1, max_epochs=2, lr=1e-3)
    assert np.isfinite(fast.fit(data(6).astype(np.float64)).predict(data(6))).all()


def test_a_flow_trains_on_any_number_of_rows():
    for n_rows in (2, 17, 33):
        X = data(n_rows).astype(np.float64)
        flow = make_flow(max_epochs=1, batch_size=16, validation_fraction=None).fit(X)
        assert flow.net_.history[-1, "train_batch_count"] == math.ceil(n_rows / 16)
