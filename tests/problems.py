"""Problems with closed-form solutions, the one list of base solvers, and the means to measure with both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sklearn_hyper.numerics import (
    AdamsBashforth,
    ButcherTableau,
    Method,
    Nonstationary,
    RungeKutta,
    Step,
    StepKind,
    alpha_family,
    resolve_base_solver,
)
from sklearn_hyper.numerics.tableaus import TABLEAUS


@dataclass(frozen=True)
class Problem:
    """z' = f(t, z) (or f(t, z, x)) whose solution from z0 at t0 to t1 is exact(t0, t1, z0)."""

    name: str
    f: Callable[..., Tensor]
    exact: Callable[[float, float, Tensor], Tensor]
    z0: Tensor
    t_span: tuple[float, float]
    x: Any = None

    def states(self, grid):
        """Exact states on a grid, as a reference solution returns them."""
        return torch.stack([self.exact(grid[0], s, self.z0) for s in grid])


class PolynomialDepth(nn.Module):
    """f = theta(s) * z with weights theta(s) = theta_0 + theta_1 s, a depth-varying field (paper, eq. 1)."""

    def __init__(self, coefficients):
        super().__init__()
        self.coefficients = nn.Parameter(torch.tensor(coefficients, dtype=torch.float64))

    def theta(self, s):
        return self.coefficients[0] + self.coefficients[1] * s

    def forward(self, t, z):
        return self.theta(t) * z

    def exact(self, t0, t1, z0):
        # The antiderivative of an affine function is (t1 - t0) times its value halfway.
        return z0 * torch.exp((t1 - t0) * self.theta((t0 + t1) / 2)).detach()


def _column(*values):
    return torch.tensor(values, dtype=torch.float64)[:, None]


def _logistic(z0, growth):
    """Solution of z' = rate z (1 - z), where growth is the integral of the rate."""
    return 1 / (1 + (1 / z0 - 1) * torch.exp(-growth * torch.ones_like(z0)))


def _swirl(t, z):
    return torch.cos(t) * torch.stack([-z[:, 1], z[:, 0]], dim=1)


def _swirl_exact(t0, t1, z0):
    angle = np.sin(t1) - np.sin(t0)
    return np.cos(angle) * z0 + np.sin(angle) * torch.stack([-z0[:, 1], z0[:, 0]], dim=1)


# Spans and initial states are such that no method's leading error term cancels by accident.
_rates = _column(1.0, -1.5, 0.5)
_depth = PolynomialDepth([[-1.0, 0.5, 1.0], [1.5, -2.0, 1.0]]).requires_grad_(False)

LOGISTIC = Problem(
    "logistic",
    f=lambda t, z: z * (1 - z),
    exact=lambda t0, t1, z0: _logistic(z0, t1 - t0),
    z0=_column(0.2, 0.5, 0.8),
    t_span=(0.0, 1.5),
)
FORCED = Problem(  # non-autonomous: only such a field sees a wrong c
    "forced",
    f=lambda t, z: t * z * (1 - z),
    exact=lambda t0, t1, z0: _logistic(z0, (t1**2 - t0**2) / 2),
    z0=_column(0.1, 0.3, 0.6),
    t_span=(0.5, 2.5),
)
MATRIX = Problem(
    "matrix", _swirl, _swirl_exact, z0=torch.arange(1.0, 13.0).double().reshape(2, 2, 3) / 6, t_span=(-0.5, 1.0)
)
DEPTH_VARYING = Problem("depth-varying", _depth, _depth.exact, z0=torch.ones(1, 3).double(), t_span=(0.2, 1.0))
DATA_CONTROLLED = Problem(
    "data-controlled",
    f=lambda t, z, x: x * z * (1 - z),
    exact=lambda t0, t1, z0: _logistic(z0, _rates * (t1 - t0)),
    z0=_column(0.1, 0.7, 0.4),
    t_span=(0.0, 1.0),
    x=_rates,
)
PROBLEMS = (LOGISTIC, FORCED, MATRIX, DEPTH_VARYING, DATA_CONTROLLED)

DORMAND_PRINCE = ButcherTableau(  # a user's tableau: six stages, order 5
    "dormand-prince",
    order=5,
    a=[
        [0, 0, 0, 0, 0, 0],
        [1 / 5, 0, 0, 0, 0, 0],
        [3 / 40, 9 / 40, 0, 0, 0, 0],
        [44 / 45, -56 / 15, 32 / 9, 0, 0, 0],
        [19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729, 0, 0],
        [9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656, 0],
    ],
    b=[35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84],
    c=[0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1],
)
BASE_SOLVERS = (*TABLEAUS.values(), *map(alpha_family, (-1.0, 0.3, 0.8, 2.0)), DORMAND_PRINCE)
MULTISTEP = (AdamsBashforth(2), AdamsBashforth(3), AdamsBashforth(4))
LEARNED = Nonstationary([(1.0,), (-0.3, 1.3), (0.2, -0.4, 1.2)], (0.0, 0.3, 0.6, 1.0))


@dataclass(frozen=True)
class OwnTwoStep(Method):
    """A multistep method of a user's own, for equal steps: one evaluation, one remembered; the first step is Euler's."""

    name = "own two-step"
    order = 2
    memory = 1

    def kind(self, index):
        return StepKind(2, (0.0,), (0.0, -1.0)) if index else StepKind(1, (0.0,), (0.0,))

    def step(self, f, times, z, eps, state):
        now = f(times[0], z)
        if not state:
            return Step(now, [now], (now,))
        return Step(1.5 * now - 0.5 * state[0], [now, state[0]], (now,))

    def remember(self, state, eps, stage):
        return (stage,)


ANY_MESH = (*map(RungeKutta, BASE_SOLVERS), *MULTISTEP, *map(resolve_base_solver, ("abm2", "abm2_pec")))
METHODS = (*ANY_MESH, OwnTwoStep(), LEARNED)
"""Every method there is: those that take any mesh, one for equal steps, and one for a mesh of its own."""


def kind_of(order, n_stages=1):
    """A kind of step whose later stages lie anywhere."""
    return StepKind(order, (0.0,), (0.0, *(1.0 / i for i in range(1, n_stages))))


def named(values):
    """Arguments of pytest.mark.parametrize: the values, with their names as ids."""
    return {"argvalues": values, "ids": [value.name for value in values]}


def mesh(t_span, n_steps, kind="uniform"):
    """K steps over the span, backwards for kind "reverse"; "graded" ones grow by a factor of three."""
    u = np.linspace(0, 1, n_steps + 1)
    u = {"uniform": u, "reverse": u[::-1], "graded": u * (1 + u) / 2}[kind]
    return tuple((t_span[0] + (t_span[1] - t_span[0]) * u).tolist())


def log_slope(sizes, errors):
    """Slope of log error over log size by linear regression: the measured order."""
    return np.polyfit(np.log(sizes), np.log(errors), 1)[0]


def largest(difference):
    return difference.abs().max().item()


class Recorder:
    """A field that keeps the times it was evaluated at, as the tensors it was given."""

    def __init__(self, f):
        self.f, self.times = f, []

    def __call__(self, t, *args, **condition):
        self.times.append(t)
        return self.f(t, *args, **condition)
