"""Sizes of steps from a small net, which knows the errors that corrected steps had in a fit."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..numerics.tensors import flatten_samples
from .serialization import DeviceFreeModule

N_FEATURES, HIDDEN = 4, 16
_LEAST_SLOPE = 0.05
"""Errors grow by at least this share of their spread, from the shortest fitted step to the longest."""
_TINY = 1e-12


class LearnedSteps(DeviceFreeModule):
    r"""Propose steps whose error, *with* the correction, is the tolerance.

    The error of a step, as a share of the state, is modelled as

    .. math:: \log E = a + b u + c u^2, \qquad u = \frac{\log(\epsilon / \epsilon_{\min})}
        {\log(\epsilon_{\max} / \epsilon_{\min})}

    where a net computes a, b > 0 and c > 0 from what is known before the step: the time s, the sizes of the state and
    of f there, and the angle between them. These have no units, and serve states of any shape. As E grows with the
    step, the step for a tolerance has a closed form. Below the fitted range it goes with the theoretical root of the
    tolerance; above it there is none.

    Parameters
    ----------
    t_span : pair of float
        Span of the fit, in which s is measured.
    eps_range : pair of float
        Shortest and longest fitted step.
    power : int
        Power of the step size that the error goes with below the fitted range: p + 1.
    sizes : Tensor
        Sizes of the states by feature, shaped to broadcast with them.
    """

    sizes: Tensor
    shift: Tensor
    scale: Tensor
    unit: Tensor
    limit: Tensor
    """Largest correction of a step that is taken, in units of the tolerance."""

    def __init__(self, t_span: tuple[float, float], eps_range: tuple[float, float], power: int, sizes: Tensor):
        super().__init__()
        self.t_span, self.eps_range, self.power = t_span, eps_range, power
        self.net = nn.Sequential(
            nn.Linear(N_FEATURES, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, 3)
        )
        self.register_buffer("sizes", sizes.clone())
        # Those of features, the mean and spread of log errors, and what follows from these: a fit sets them.
        self.register_buffer("shift", torch.zeros(N_FEATURES))
        self.register_buffer("scale", torch.ones(N_FEATURES))
        self.register_buffer("unit", torch.tensor([0.0, 1.0]))
        self.register_buffer("limit", torch.tensor(math.inf))

    @property
    def log_range(self) -> float:
        """Logarithm of the longest fitted step over the shortest."""
        return math.log(self.eps_range[1] / self.eps_range[0])

    def features(self, s: Tensor, z: Tensor, slopes: Tensor) -> Tensor:
        """Return what the net reads, of shape (n, 4), from times of shape (n,), states, and f there."""
        start, end = self.t_span
        time = ((s - start) / (end - start)).expand(len(z))
        shares = flatten_samples(z / self.sizes)
        rates = flatten_samples(slopes * self.eps_range[1] / (self.sizes + z.abs()))
        size, rate = (part.square().mean(dim=1).sqrt().clamp(min=_TINY) for part in (shares, rates))
        angle = (shares * rates).mean(dim=1) / (size * rate)
        columns = (time, size.log(), rate.log(), angle)
        return torch.stack([column.to(self.shift.dtype) for column in columns], dim=1)

    def coefficients(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return a, b and c of steps."""
        raw = self.net((features - self.shift) / self.scale)
        level, spread = self.unit
        steepness = nn.functional.softplus(raw[:, 1]) + _LEAST_SLOPE
        # At first, log errors are nearly straight lines.
        bend = nn.functional.softplus(raw[:, 2] - 2)
        return level + spread * raw[:, 0], spread * steepness, spread * bend

    def log_errors(self, features: Tensor, eps: Tensor) -> Tensor:
        """Return log E of steps, from their features and positive sizes."""
        a, b, c = self.coefficients(features)
        u = ((eps / self.eps_range[0]).log() / self.log_range).to(a.dtype)
        return a + b * u + c * u.square()

    @torch.no_grad()
    def propose(self, s: Tensor, z: Tensor, slopes: Tensor, rtol: float) -> Tensor:
        """Return the steps of rows at which E is ``rtol``, in float64."""
        a, b, c = self.coefficients(self.features(s, z, slopes))
        above = math.log(rtol) - a
        inside = above.clamp(min=0)
        u = (2 * inside / (b + (b.square() + 4 * c * inside).sqrt())).clamp(max=1).double()
        return self.eps_range[0] * torch.exp(self.log_range * u + above.clamp(max=0).double() / self.power)
