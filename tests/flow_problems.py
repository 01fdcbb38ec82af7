"""Flows with closed forms: their maps, log-determinants and densities are known for every span of time.

A field f(t, z) is an nn.Module at module level, so it pickles; its constants are float64 buffers, and it computes in
the dtype of z. A problem's functions take and return float64 tensors; times are floats, and may run backwards. The base
is the standard normal at ``t_span[0]``, the data lie at ``t_span[1]``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from problems import named
from torch import Tensor, nn


class LinearFlow(nn.Module):
    """f = A z. The divergence is tr A anywhere; Hutchinson's estimate with noise v is v'Av."""

    def __init__(self, matrix):
        super().__init__()
        self.register_buffer("matrix", torch.tensor(matrix, dtype=torch.float64))

    def forward(self, t, z):
        return z @ self.matrix.to(z.dtype).T

    def divergence(self, t, z):
        return self.matrix.trace().expand(len(z))

    def exact(self, t0, t1, z0):
        return z0 @ torch.linalg.matrix_exp((t1 - t0) * self.matrix.double()).T

    def log_det(self, t0, t1, z0):
        return (t1 - t0) * self.divergence(t0, z0)

    def covariance(self, t0, t1):
        """Of the standard normal pushed from t0 to t1, which is normal, too."""
        expm = torch.linalg.matrix_exp((t1 - t0) * self.matrix.double())
        return expm @ expm.T


class ScalingFlow(nn.Module):
    """f_i = rate_i cos(2 t) z_i: depends on time, each feature on its own."""

    def __init__(self, rates):
        super().__init__()
        self.register_buffer("rates", torch.tensor(rates, dtype=torch.float64))

    def forward(self, t, z):
        return self.rates.to(z.dtype) * torch.cos(2 * t) * z

    def divergence(self, t, z):
        return (self.rates.sum() * math.cos(2 * t)).expand(len(z))

    def exact(self, t0, t1, z0):
        return z0 * torch.exp(self.rates.double() * (math.sin(2 * t1) - math.sin(2 * t0)) / 2)

    def log_det(self, t0, t1, z0):
        return (self.rates.double().sum() * (math.sin(2 * t1) - math.sin(2 * t0)) / 2).expand(len(z0))


class TanhFlow(nn.Module):
    """f = (1 + t) Q tanh(Q'z) with Q a rotation: depends on time, couples the features, its divergence varies.

    In the features u = Q'z and the time s with ds = (1 + t) dt it is u' = tanh u, so sinh u grows as e^s.
    """

    def __init__(self, n_features=2, seed=0):
        super().__init__()
        normal = torch.randn(n_features, n_features, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("rotation", torch.linalg.qr(normal).Q)

    def forward(self, t, z):
        rotation = self.rotation.to(z.dtype)
        return (1 + t) * torch.tanh(z @ rotation) @ rotation.T

    def divergence(self, t, z):
        return (1 + t) * (1 - torch.tanh(z @ self.rotation) ** 2).sum(dim=1)

    def exact(self, t0, t1, z0):
        rotation = self.rotation.double()
        return torch.asinh(torch.sinh(z0 @ rotation) * math.exp(self._passed(t0, t1))) @ rotation.T

    def log_det(self, t0, t1, z0):
        # du1 / du0 = e^s cosh u0 / cosh u1
        u0, u1 = z0 @ self.rotation, self.exact(t0, t1, z0) @ self.rotation
        return (self._passed(t0, t1) + u0.cosh().log() - u1.cosh().log()).sum(dim=1)

    @staticmethod
    def _passed(t0, t1):
        return (t1 - t0) * (1 + (t0 + t1) / 2)


class NoDivergence(nn.Module):
    """f = sqrt(max(z, 0)): finite, but autograd makes its divergence nan wherever a feature is negative."""

    def forward(self, t, z):
        return torch.where(z > 0, torch.sqrt(z), 0.0)


@dataclass(frozen=True)
class FlowProblem:
    """A field, the span of its flow from base to data, and the density that the flow makes of the standard normal."""

    name: str
    field: nn.Module
    t_span: tuple[float, float]
    n_features: int = 2

    def push(self, z0: Tensor) -> Tensor:
        """Base to data: what ``inverse_transform`` and ``sample`` do."""
        return self.field.exact(*self.t_span, z0)

    def pull(self, x: Tensor) -> Tensor:
        """Data to base: what ``transform`` does."""
        return self.field.exact(*self.t_span[::-1], x)

    def log_det(self, z0: Tensor) -> Tensor:
        """log |det dx/dz0| at base points z0: the divergence along the way to the data, integrated."""
        return self.field.log_det(*self.t_span, z0)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density at data points: what ``score_samples`` returns."""
        z0 = self.pull(x)
        return log_standard_normal(z0) - self.log_det(z0)

    def sample(self, n_samples: int, seed: int = 0) -> Tensor:
        return self.push(standard_normal(n_samples, self.n_features, seed))


def standard_normal(n_samples, n_features, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n_samples, n_features, dtype=torch.float64, generator=generator)


def log_standard_normal(z):
    return -(z**2).sum(dim=1) / 2 - z.shape[1] * math.log(2 * math.pi) / 2


def grid_2d(half_width=8.0, n_cells=200):
    """Centres of the cells of a square around the origin, and their area: densities sum to one over area."""
    side = half_width * (2 * (torch.arange(n_cells, dtype=torch.float64) + 0.5) / n_cells - 1)
    points = torch.cartesian_prod(side, side)
    return points, (2 * half_width / n_cells) ** 2


LINEAR = FlowProblem("linear", LinearFlow([[0.4, -0.9], [0.5, -0.1]]), t_span=(0.0, 1.0))
SCALING = FlowProblem("scaling", ScalingFlow([0.8, -0.6]), t_span=(0.2, 1.0))
TANH = FlowProblem("tanh", TanhFlow(2), t_span=(0.0, 0.8))
TANH_5D = FlowProblem("tanh in five dimensions", TanhFlow(5, seed=1), t_span=(0.0, 0.8), n_features=5)
BACKWARD = FlowProblem("tanh, backwards in time", TanhFlow(2), t_span=(0.8, 0.0))
PLANE_FLOWS = (LINEAR, SCALING, TANH, BACKWARD)
FLOWS = (*PLANE_FLOWS, TANH_5D)
each_flow = pytest.mark.parametrize("problem", **named(FLOWS))
