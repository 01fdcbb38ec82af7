"""A controlled differential equation by a stand-in spline: dz = A z dX has a closed form."""

import pytest
import torch
from torch import nn

from sklearn_hyper import HypersolverRegressor
from sklearn_hyper.adapters import from_torchcde


class Parabola:
    """X(t) = c0 + c1 t + c2 t^2 in one channel, of coefficients (n, 1, 3)."""

    def __init__(self, coeffs, t=None):
        self.coeffs, self.start = coeffs[:, 0], 0.0 if t is None else t[0]

    def evaluate(self, t):
        s = t - self.start
        return (self.coeffs * torch.stack([torch.ones_like(s), s, s * s])).sum(dim=1, keepdim=True)

    def derivative(self, t):
        s = t - self.start
        return (self.coeffs * torch.stack([torch.zeros_like(s), torch.ones_like(s), 2 * s])).sum(dim=1, keepdim=True)


class Func(nn.Module):
    def __init__(self):
        super().__init__()
        self.rate = nn.Parameter(torch.ones(()))

    def forward(self, t, z):
        return self.rate * z[:, :, None]


def paths(n, dtype=torch.float32):
    return torch.rand(n, 1, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("times", [None, torch.tensor([2.0, 3.0], dtype=torch.float64)])
def test_the_control_drives_the_state(times):
    x = paths(30, torch.float64)
    given = {"t_span": (0.0, 1.0)} if times is None else {"times": times}
    ode = from_torchcde(Func().double(), Parabola, initial=lambda start: start.expand(-1, 2), **given)
    start, change = x[:, 0, :1], x[:, 0, 1:].sum(dim=1, keepdim=True)
    torch.testing.assert_close(ode(x, rtol=1e-9), (start * change.exp()).expand(-1, 2), rtol=1e-6, atol=1e-6)


def test_it_fits():
    ode = from_torchcde(Func(), Parabola, initial=nn.Identity(), readout=nn.Linear(1, 1), t_span=(0.0, 1.0))
    fast = HypersolverRegressor(ode, n_steps=3, max_epochs=20, random_state=0).fit(paths(200))
    assert fast.predict(paths(5)).shape == (5, 1)
    assert fast.errors_[3]["mean"] < fast.errors_[3]["base_mean"]


def test_a_span_is_needed():
    with pytest.raises(ValueError, match="t_span is None and so is times"):
        from_torchcde(Func(), Parabola, initial=nn.Identity())
