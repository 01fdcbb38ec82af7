"""Learned solvers without a correction net, for work_precision.py: time grids, BNS, and maps that skip f altogether.

Written from their published descriptions. They get what the rivals of wp_recipes.py get.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from wp_problems import Problem
from wp_training import Solver, conv, mlp, train, validation_error, widest

from sklearn_hyper.training.coefficient_fitting import classical_starts

_TINY = 1e-20


class LinearSolver(Solver):
    """y_i = a_i z_0 + sum_{j < i} b_ij f(t_j, y_j): what every explicit method of n evaluations is."""

    def solve(self, f: Callable, z: Tensor) -> Tensor:
        times, a, b = self.tables()
        start, end = self.neural_ode.t_span
        times = start + (end - start) * times
        y, slopes = z, []
        for i, time_i in enumerate(times):
            slopes.append(f(time_i, y))
            y = a[i] * z + (end - start) * sum(b[i, j] * slope for j, slope in enumerate(slopes))
        return y


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
    first = torch.zeros_like(steps)
    diagonal = torch.stack([half, steps], dim=1).flatten()
    below = -torch.stack([half, first], dim=1).flatten()[:-1]
    return nodes, torch.diag(diagonal) + torch.diag(below, -1)


def linear_bases(n: int) -> list[str]:
    """Classical methods of n evaluations whose step sizes may be learned."""
    return ["euler", "ab2", *(["midpoint"] if n % 2 == 0 else [])]


def runge_kutta_increments(n: int) -> tuple[Tensor, Tensor]:
    """Nodes and increments of the Runge-Kutta steps of highest order that ours start from, too."""
    start = classical_starts(n)[-1]
    shares = torch.tensor(start.shares)
    increments = torch.zeros(n, n)
    for k, row in enumerate(start.weights):
        increments[k, : k + 1] = shares.diff()[k] * torch.tensor(row)
    return shares[:-1], increments


class LearnedGrid(LinearSolver):
    """A classical method whose step sizes are learned."""

    def __init__(self, problem: Problem, n: int, base: str):
        super().__init__(problem, n)
        self.base = base
        self.logits = nn.Parameter(torch.zeros(n // 2 if base == "midpoint" else n))

    def tables(self) -> tuple[Tensor, Tensor, Tensor]:
        """Nodes, a and b."""
        nodes, increments = classical_increments(self.base, self.logits.softmax(0))
        return nodes, nodes.new_ones(self.n_steps), increments.cumsum(0)


class BespokeNonStationary(LinearSolver):
    """BNS: learned nodes and coefficients, started at a classical method, and whatever training makes of them.

    Published with Euler's and the midpoint method as starts; AB2 and Runge-Kutta steps of higher order, which it gains by,
    are ours.
    """

    @staticmethod
    def bases(n: int) -> list[str]:
        """What it may start from."""
        return [*linear_bases(n), *(["runge-kutta"] if n > 2 else [])]

    def __init__(self, problem: Problem, n: int, base: str):
        super().__init__(problem, n)
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
        """Nodes, a and b."""
        steps = self.logits.softmax(0)
        nodes = torch.cat([steps.new_zeros(1), steps.cumsum(0)[:-1]])
        return nodes, self.a, self.b.tril()


def fit_linear(
    starts: Iterable[LinearSolver], problem: Problem, seed: int, seconds: float
) -> tuple[LinearSolver, list[dict[str, float]]]:
    """Train the start that does best on validation rows through the solve.

    The loss is the mean log squared error, as BNS's; it fits all rows alike, whatever their size.
    """
    model = min(starts, key=lambda start: validation_error(start, problem))
    x, exact = problem.rows["fit"], problem.trajectory[-1]

    def loss(rows: Tensor) -> Tensor:
        error = (model(x[rows]) - exact[rows]).flatten(1).pow(2).mean(dim=1)
        return (error + _TINY).log().mean()

    trace = train(model, loss, problem, seed=seed, seconds=seconds, lr=1e-2)
    return model, trace


# ---------------------------------------------------------------------- flow maps
class FlowMap(nn.Module):
    """Straight from the input to the terminal state, past f: z_0 + net(x), scaled by the rows it is fitted on."""

    def __init__(self, problem: Problem, share: float):
        super().__init__()
        self.neural_ode = problem.neural_ode
        z0, exact = problem.initial_states, problem.trajectory[-1]
        x = problem.rows["fit"] if problem.neural_ode.data_controlled else z0
        axes = [0, *range(2, x.ndim)]
        self.register_buffer("shift", x.mean(dim=axes, keepdim=True))
        self.register_buffer("scale", x.std(dim=axes, keepdim=True).clamp(min=1e-6))
        self.register_buffer("out", (exact - z0).pow(2).mean(dim=axes, keepdim=True).sqrt())
        d_in, d = x.shape[1], z0.shape[1]
        area = 9 * z0[0, 0].numel()
        limit = share * problem.macs_f
        if z0.ndim == 2:
            hidden = widest(lambda h: d_in * h + h * h + h * d, limit, 32 if share < 1 else 128)
            self.net = mlp(d_in, [hidden, hidden], d, nn.SiLU)
        elif share < 1:
            self.net = conv(d_in, [widest(lambda h: area * (d_in + d) * h, limit, 16)], d, nn.SiLU)
        else:
            hidden = widest(lambda h: area * ((d_in + d) * h + h * h), limit, 32)
            self.net = conv(d_in, [hidden, hidden], d, nn.SiLU)

    def forward(self, x: Tensor) -> Tensor:
        z0 = self.neural_ode.input_map(x)
        given = x if self.neural_ode.data_controlled else z0
        return z0 + self.out * self.net((given - self.shift) / self.scale)


def fit_flow_map(model: FlowMap, problem: Problem, seed: int) -> list[dict[str, float]]:
    """The mean distance of terminal states."""
    x, exact = problem.rows["fit"], problem.trajectory[-1]

    def loss(rows: Tensor) -> Tensor:
        return ((model(x[rows]) - exact[rows]) / model.out).flatten(1).norm(dim=1).mean()

    return train(model, loss, problem, seed=seed, seconds=max(problem.seconds), lr=1e-2)
