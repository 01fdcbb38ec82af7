"""Learned solvers without a net: time grids and BNS, which are linear in the evaluations of f.

Written from their published descriptions. They get what the recipes get.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from sklearn_hyper import ButcherTableau

from .loading import LoadedProblem
from .measuring import validation_error
from .stepping import Field, SteppingModule
from .training import Trace, train

_TINY = 1e-20
_LAST_STAGE = 0.9
"""Where a last stage at the end of its step is moved to: the next step's first one is there, and nodes have to rise."""
_MIDPOINT = ButcherTableau("midpoint", 2, ((0, 0), (1 / 2, 0)), (0, 1), (0, 1 / 2))
_RALSTON3 = ButcherTableau(
    "ralston3", 3, ((0, 0, 0), (1 / 2, 0, 0), (0, 3 / 4, 0)), (2 / 9, 1 / 3, 4 / 9), (0, 1 / 2, 3 / 4)
)
_RK4_38 = ButcherTableau(
    "rk4_38",
    4,
    ((0, 0, 0, 0), (1 / 3, 0, 0, 0), (-1 / 3, 1, 0, 0), (1, -1, 1, 0)),
    (1 / 8, 3 / 8, 3 / 8, 1 / 8),
    (0, 1 / 3, 2 / 3, 1),
)


class LinearSolver(SteppingModule):
    """y_i = a_i z_0 + sum_{j < i} b_ij f(t_j, y_j): what every explicit method of n evaluations is."""

    def solve(self, f: Field, z: Tensor) -> Tensor:
        times, a, b = self.tables()
        start, end = self.neural_ode.t_span
        times = start + (end - start) * times
        y, slopes = z, []
        for i, time_i in enumerate(times):
            slopes.append(f(time_i, y))
            y = a[i] * z + (end - start) * sum(b[i, j] * slope for j, slope in enumerate(slopes))
        return y

    def tables(self) -> tuple[Tensor, Tensor, Tensor]:
        """Nodes, a and b."""
        raise NotImplementedError


def linear_bases(n: int) -> list[str]:
    """Classical methods of n evaluations whose step sizes may be learned."""
    return ["euler", "ab2", *(["midpoint"] if n % 2 == 0 else [])]


def classical_increments(base: str, steps: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes and increments of a classical method on steps that sum to one: y_{i+1} - y_i = sum_j d_ij f_j."""
    before = torch.cat([steps.new_zeros(1), steps.cumsum(0)[:-1]])
    if base == "euler":
        return before, torch.diag(steps)
    if base == "ab2":
        ratio = steps[1:] / (2 * steps[:-1])
        extra = torch.cat([steps.new_zeros(1), steps[1:] * ratio])
        return before, torch.diag(steps + extra) - torch.diag(extra[1:], -1)
    half = steps / 2
    nodes = torch.stack([before, before + half], dim=1).flatten()
    diagonal = torch.stack([half, steps], dim=1).flatten()
    below = -torch.stack([half, torch.zeros_like(steps)], dim=1).flatten()[:-1]
    return nodes, torch.diag(diagonal) + torch.diag(below, -1)


def runge_kutta_increments(n: int) -> tuple[Tensor, Tensor]:
    """Nodes and increments of Runge-Kutta steps of as high an order as n evaluations let all of them be."""
    nodes, increments = [], torch.zeros(n, n)
    for tableau in _highest_orders(n):
        a, b, c = (torch.tensor(values, dtype=torch.float32) for values in (tableau.a, tableau.b, tableau.c))
        if c[-1] == 1:
            a[-1], c[-1] = _LAST_STAGE * a[-1], _LAST_STAGE
        first, n_stages = len(nodes), len(c)
        own = slice(first, first + n_stages)
        # From the state of a stage to that of the next one, and at last to the end of the step.
        increments[own, own] = torch.cat([a, b[None]]).diff(dim=0) * n_stages / n
        nodes += ((first + n_stages * c) / n).tolist()
    return torch.tensor(nodes), increments


def _highest_orders(n: int) -> list[ButcherTableau]:
    """Methods of four, three and, where it has to be, two stages that make n evaluations."""
    n_fours = next((fours for fours in range(n // 4, -1, -1) if (n - 4 * fours) % 3 == 0), 0)
    n_threes, rest = divmod(n - 4 * n_fours, 3)
    return [_RK4_38] * n_fours + [_RALSTON3] * n_threes + [_MIDPOINT] * (rest // 2)


class LearnedGrid(LinearSolver):
    """A classical method whose step sizes are learned."""

    def __init__(self, loaded: LoadedProblem, n: int, base: str):
        super().__init__(loaded, n)
        self.base = base
        self.logits = nn.Parameter(torch.zeros(n // 2 if base == "midpoint" else n))

    def tables(self) -> tuple[Tensor, Tensor, Tensor]:
        nodes, increments = classical_increments(self.base, self.logits.softmax(0))
        return nodes, nodes.new_ones(self.n_steps), increments.cumsum(0)


class BespokeNonStationary(LinearSolver):
    """BNS: learned nodes and coefficients, started at a classical method, and whatever training makes of them.

    Published with Euler's and the midpoint method as starts; AB2 and Runge-Kutta steps of higher order, which it gains
    by, are ours.
    """

    @staticmethod
    def bases(n: int) -> list[str]:
        """What it may start from."""
        return [*linear_bases(n), *(["runge-kutta"] if n > 2 else [])]

    def __init__(self, loaded: LoadedProblem, n: int, base: str):
        super().__init__(loaded, n)
        size = n // 2 if base == "midpoint" else n
        nodes, increments = (
            runge_kutta_increments(n)
            if base == "runge-kutta"
            else classical_increments(base, torch.full((size,), 1 / size))
        )
        steps = torch.diff(nodes, append=nodes.new_ones(1))
        self.logits = nn.Parameter(steps.log())
        self.a = nn.Parameter(torch.ones(n))
        self.b = nn.Parameter(increments.cumsum(0))

    def tables(self) -> tuple[Tensor, Tensor, Tensor]:
        steps = self.logits.softmax(0)
        nodes = torch.cat([steps.new_zeros(1), steps.cumsum(0)[:-1]])
        return nodes, self.a, self.b.tril()


def fit_linear(
    starts: Iterable[LinearSolver], loaded: LoadedProblem, seed: int, seconds: float
) -> tuple[LinearSolver, Trace]:
    """Train the start that does best on validation rows through the solve.

    The loss is the mean log squared error, as BNS's; it fits all rows alike, whatever their size.
    """
    model = min(starts, key=lambda start: validation_error(start, loaded))
    x, exact = loaded.rows["fit"], loaded.fitted_ends

    def loss(rows: Tensor) -> Tensor:
        error = (model(x[rows]) - exact[rows]).flatten(1).pow(2).mean(dim=1)
        return (error + _TINY).log().mean()

    return model, train(model, loss, loaded, seed=seed, seconds=seconds, lr=1e-2)
