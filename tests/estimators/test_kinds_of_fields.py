"""Kinds of fields that users bring: energies differentiated inside, graphs, attention, guidance, meshes of their own."""

import pickle
from typing import ClassVar

import numpy as np
import pytest
import torch
from small_hypersolvers import ROUGH_FITS
from torch import nn
from torch.func import grad, jacrev, vmap

from sklearn_hyper import HypersolverRegressor, NeuralODE
from sklearn_hyper.adapters import from_velocity
from sklearn_hyper.modules.corrections.weights import FieldWeights
from sklearn_hyper.numerics import RungeKutta, hypersolve, resolve_base_solver

pytestmark = ROUGH_FITS
FIT = {"n_steps": 2, "max_epochs": 2, "batch_size": 16, "random_state": 0}
DOUBLE = torch.float64


# ---------------------------------------------------------------------- energies
class Energy(nn.Module):
    """z' = J dH/dz, or the slope of H itself, of an energy H that is a net."""

    def __init__(self, slope):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(2, 6, dtype=DOUBLE), nn.Tanh(), nn.Linear(6, 1, dtype=DOUBLE))
        self.slope = slope

    def forward(self, t, z):
        dq, dp = self.slope(self.net, z).unbind(1)
        return torch.stack([dp, -dq], dim=1)


def by_autograd(net, z):
    with torch.enable_grad():
        z = z if z.requires_grad else z.detach().requires_grad_(True)
        return torch.autograd.grad(net(z).sum(), z, create_graph=True)[0]


def by_grad_of_the_sum(net, z):
    return grad(lambda z: net(z).sum())(z)


def by_grad_row_by_row(net, z):
    return vmap(grad(lambda q: net(q)[0]))(z)


def by_jacrev(net, z):
    return vmap(jacrev(net))(z)[:, 0]


class Lagrangian(nn.Module):
    """v' = M^-1 (dL/dq - C v), where M and C are derivatives of the momentum dL/dv."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(2, 4, dtype=DOUBLE), nn.Tanh(), nn.Linear(4, 1, dtype=DOUBLE))

    def lagrangian(self, q, v):
        return v.square().sum() + self.net(torch.cat([q, v]))[0]

    def acceleration(self, q, v):
        momentum = grad(self.lagrangian, 1)
        force = grad(self.lagrangian, 0)(q, v) - jacrev(momentum, 0)(q, v) @ v
        return torch.linalg.solve(jacrev(momentum, 1)(q, v), force)

    def forward(self, t, z):
        q, v = z.chunk(2, dim=1)
        return torch.cat([v, vmap(self.acceleration)(q, v)], dim=1)


class Rising(Energy):
    """A potential flow, z' = dH/dz."""

    def forward(self, t, z):
        return self.slope(self.net, z)


FIELDS = {
    "autograd": lambda: Energy(by_autograd),
    "grad of the sum": lambda: Energy(by_grad_of_the_sum),
    "grad row by row": lambda: Energy(by_grad_row_by_row),
    "jacrev": lambda: Energy(by_jacrev),
    "Lagrangian": Lagrangian,
    "potential": lambda: Rising(by_autograd),
}


@pytest.fixture(scope="module")
def X():
    return np.random.default_rng(0).normal(size=(40, 2))


@pytest.fixture(scope="module")
def by_formula(X):
    return HypersolverRegressor(Energy(by_autograd), **FIT).fit(X).predict(X)


@pytest.mark.parametrize("make", FIELDS.values(), ids=FIELDS)
def test_fields_of_energies_change_their_weights(make, X, by_formula):
    fast = HypersolverRegressor(make(), **FIT).fit(X)
    assert isinstance(fast.correction_, FieldWeights)
    assert fast.errors_[2]["mean"] < fast.errors_[2]["base_mean"]
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(fast)).predict(X), fast.predict(X))
    if type(fast.neural_ode_.vector_field) is Energy:  # however its slope is written, the fit is the same
        np.testing.assert_allclose(fast.predict(X), by_formula, rtol=1e-6, atol=1e-8)


# ---------------------------------------------------------------------- graphs and tokens
N_NODES = 5


class Messages(nn.Module):
    """What a node gets is the sum of what its neighbours send. Every sample has a graph of its own."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.send, self.keep = nn.Linear(2, 2, dtype=DOUBLE), nn.Linear(2, 2, dtype=DOUBLE)

    def forward(self, t, z, *, adjacency):
        return torch.tanh(adjacency @ self.send(z) + self.keep(z))


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.attention = nn.MultiheadAttention(2, 1, batch_first=True, dtype=DOUBLE)

    def forward(self, t, z):
        return self.attention(z, z, z, need_weights=False)[0] - z


@pytest.mark.parametrize("make", [Messages, Tokens])
def test_a_permutation_of_nodes_permutes_what_a_hypersolver_gives(make):
    """Changed weights change no structure. A net over all numbers of a state would."""
    rng = np.random.default_rng(0)
    X, edges = rng.normal(size=(40, N_NODES, 2)), rng.integers(2, size=(40, N_NODES, N_NODES)).astype(float)
    order = np.array([3, 0, 4, 1, 2])
    conditions = {} if make is Tokens else {"condition": {"adjacency": edges}}
    permuted = {} if make is Tokens else {"condition": {"adjacency": edges[:, order][:, :, order]}}
    fast = HypersolverRegressor(make(), **FIT).fit(X, **conditions)
    assert isinstance(fast.correction_, FieldWeights)
    expected = fast.predict(X, **conditions)[:, order]
    np.testing.assert_allclose(fast.predict(X[:, order], **permuted), expected, rtol=0, atol=1e-12)
    assert np.abs(expected - X[:, order]).max() > 0.1


# ---------------------------------------------------------------------- guidance
class Velocity(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net, self.embedding = nn.Linear(3, 2, dtype=DOUBLE), nn.Embedding(3, 2, dtype=DOUBLE)
        self.n_calls = 0

    def forward(self, x, t, label):
        self.n_calls += 1
        label = torch.full((len(x),), 2) if label is None else label
        return torch.tanh(self.net(torch.cat([x, t[:, None]], dim=1)) + self.embedding(label))


class Guided(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x, t, *, label, weight):
        free = self.model(x, t, None)
        return free + weight[:, None] * (self.model(x, t, label) - free)


def test_guidance_takes_a_label_and_a_weight_a_row(X):
    model = Velocity()
    ode = from_velocity(Guided(model), order="xt", condition=["label", "weight"])
    rng = np.random.default_rng(0)
    condition = {"label": rng.integers(2, size=40), "weight": rng.uniform(1, 3, 40)}
    fast = HypersolverRegressor(ode, **FIT).fit(X, condition=condition)
    assert isinstance(fast.correction_, FieldWeights)
    expected = fast.predict(X, condition=condition)
    for row in (0, 7):  # rows do not know of each other's weight
        alone = {name: values[row] for name, values in condition.items()}
        np.testing.assert_allclose(fast.predict(X[row : row + 1], condition=alone), expected[row : row + 1])
    z, t = torch.from_numpy(X), torch.tensor(0.3, dtype=DOUBLE)
    field, label = ode.vector_field, torch.from_numpy(condition["label"])
    times = t.expand(40)
    torch.testing.assert_close(field(t, z, label=label, weight=torch.zeros(40)), model(z, times, None))
    torch.testing.assert_close(field(t, z, label=label, weight=torch.ones(40)), model(z, times, label))


# ---------------------------------------------------------------------- a mesh of one's own
class Crowded(RungeKutta):
    """Three steps, the shorter the later."""

    n_steps: ClassVar = 3

    def mesh(self, t_span, n_steps=3):
        start, end = t_span
        return (start, start + 0.6 * (end - start), start + 0.9 * (end - start), end)


def steep(t, z):
    return -(z**3) / (1.1 - t)


def test_a_method_may_have_a_mesh_of_its_own(X):
    heun = resolve_base_solver("heun").tableau
    fast = HypersolverRegressor(NeuralODE(steep), base_solver=Crowded(heun), **FIT | {"n_steps": 3, "max_epochs": 10})
    fast.fit(X)
    assert fast.module_.grid == (0.0, 0.6, 0.9, 1.0)
    base = hypersolve(steep, torch.from_numpy(X), None, None, heun, grid=(0.0, 0.6, 0.9, 1.0))
    np.testing.assert_allclose(fast.without_correction().predict(X), base.numpy(), rtol=1e-12)
    assert fast.errors_[3]["mean"] < 0.5 * fast.errors_[3]["base_mean"]
    assert fast.trajectory(X).shape == (40, 4, 2)
