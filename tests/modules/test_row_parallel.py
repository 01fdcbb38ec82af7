"""A field that two processes share: values, gradients and fits are those of one process, to rounding."""

import os

import numpy as np
import pytest
import torch
from processes import in_two_processes
from small_hypersolvers import ROUGH_FITS
from torch import nn

from sklearn_hyper import HypersolverRegressor, MLPCorrection, NeuralODERegressor
from sklearn_hyper.modules import MLPVectorField, RowParallel

pytestmark = [*ROUGH_FITS, pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")]

X = np.random.default_rng(0).normal(size=(41, 2))


def field(*, parallel):
    torch.manual_seed(0)
    made = MLPVectorField(2, hidden=8).double()
    return RowParallel(made) if parallel else made


def by_row(t, z, x, *, rate):
    return t[:, None] * z + rate[:, None] * x


def values_and_gradients(*, parallel, n_rows):
    """f of a f: its value, its gradients by state and weights, and a second derivative."""
    f, z = field(parallel=parallel), torch.from_numpy(X[:n_rows]).requires_grad_(True)
    value = f(torch.tensor(0.5, dtype=z.dtype), z)
    value = f(torch.tensor(0.7, dtype=z.dtype), z + value)
    (slope,) = torch.autograd.grad(value.square().sum(), z, create_graph=True)
    (value.sum() + slope.square().sum()).backward()
    return [value.detach(), slope.detach(), z.grad, *(p.grad for p in f.parameters())]


@pytest.mark.parametrize("n_rows", [1, 2, 41])
def test_values_and_gradients_are_those_of_one_process(n_rows, tmp_path):
    expected = values_and_gradients(parallel=False, n_rows=n_rows)
    for found in in_two_processes(lambda: values_and_gradients(parallel=True, n_rows=n_rows), tmp_path):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


class Parts(nn.Module):
    """Rows of one sign need one weight, those of the other another, and all the time."""

    def __init__(self):
        super().__init__()
        self.above, self.below = (nn.Parameter(torch.tensor(value, dtype=torch.float64)) for value in (2.0, 3.0))

    def forward(self, t, z):
        parts = [weight * z[rows] for weight, rows in ((self.above, z > 0), (self.below, z <= 0)) if rows.any()]
        return torch.sin(t) * torch.cat(parts)[:, None]


def test_gradients_of_the_time_and_of_weights_that_one_process_lacks_are_whole(tmp_path):
    def gradients(wrap):
        f, t = wrap(Parts()), torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
        f(t, torch.tensor([[1.0], [2.0], [-1.0], [-3.0]], dtype=torch.float64)).square().sum().backward()
        return [t.grad, *(p.grad for p in f.parameters())]

    expected = gradients(lambda f: f)
    for found in in_two_processes(lambda: gradients(RowParallel), tmp_path):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


def test_each_process_evaluates_its_rows_and_takes_what_belongs_to_them(tmp_path):
    t, z, x, rate = (torch.from_numpy(X[:, i % 2]) + i for i in range(4))
    z, x, seen = z[:, None], x[:, None], []

    def counted(t, z, x, *, rate):
        seen.append(len(z))
        return by_row(t, z, x, rate=rate)

    def compute():
        return RowParallel(counted)(t, z, x, rate=rate), seen

    (one, rows), (other, other_rows) = in_two_processes(compute, tmp_path)
    assert (rows, other_rows) == ([21], [20])
    assert torch.equal(one, by_row(t, z, x, rate=rate)) and torch.equal(other, one)


def fit(correction, *, parallel):
    fast = HypersolverRegressor(
        field(parallel=parallel), base_solver="heun", n_steps=2, correction=correction, max_epochs=3, random_state=0
    ).fit(X)
    return fast.predict(X), [row["train_loss"] for row in fast.history_]


@pytest.mark.parametrize("correction", ["auto", MLPCorrection(hidden=8)], ids=["auto", "net"])
def test_a_fit_is_that_of_one_process(correction, tmp_path):
    """References, training, validation and prediction: all evaluations of f are shared."""
    predicted, losses = fit(correction, parallel=False)
    one, other = in_two_processes(lambda: fit(correction, parallel=True), tmp_path)
    for found in (one, other):
        np.testing.assert_allclose(found[0], predicted, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(found[1], losses, rtol=1e-6)
    np.testing.assert_array_equal(one[0], other[0])  # neither has drifted from the other


def train(*, parallel, adjoint):
    model = NeuralODERegressor(
        field(parallel=parallel), input_map=nn.Identity(), max_epochs=2, adjoint=adjoint, random_state=0
    )
    return model.fit(X, X[:, 0] * X[:, 1]).predict(X)


@pytest.mark.parametrize("adjoint", [False, True])
def test_a_training_is_that_of_one_process(adjoint, tmp_path):
    expected = train(parallel=False, adjoint=adjoint)
    for found in in_two_processes(lambda: train(parallel=True, adjoint=adjoint), tmp_path):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)


def test_alone_it_is_the_field():
    t, z = torch.tensor(0.5), torch.from_numpy(X)
    assert torch.equal(field(parallel=True)(t, z), field(parallel=False)(t, z))
    with pytest.raises(TypeError, match=r"vector_field must be callable as f\(t, z\), got 3"):
        RowParallel(3)
