"""How the rivals of work_precision.py are trained, and the nets that they are made of."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable
from itertools import pairwise

import torch
from torch import Tensor, nn
from wp_problems import Problem

from sklearn_hyper.numerics.solve import uniform_grid

G_SHARE = 0.1
"""MACs of a rival's g over those of f: what our default g may have."""


def train(
    model: nn.Module,
    loss: Callable[[Tensor], Tensor],
    problem: Problem,
    *,
    seed: int,
    seconds: float = math.inf,
    iterations: float = math.inf,
    lr: float,
    final_lr: float = 0.0,
    batch: int = 256,
    clip: float = 1.0,
    weight_decay: float = 0.0,
    checks: int = 20,
) -> list[dict[str, float]]:
    """AdamW on a cosine, for so many CPU seconds or iterations; the weights that did best on validation rows stay.

    Returns the validation error at every check, with the iterations and CPU seconds up to there.
    """
    draw = torch.Generator().manual_seed(seed)
    n_rows = len(problem.rows["fit"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)
    best, kept, trace = math.inf, copy.deepcopy(model.state_dict()), []
    start, checking, iteration, share = time.process_time(), 0.0, 0, 0.0
    while True:
        if share >= len(trace) / checks:
            began = time.process_time()
            error = validation_error(model, problem)
            trace.append({"iteration": iteration, "seconds": began - start - checking, "error": error})
            if error < best:
                best, kept = error, copy.deepcopy(model.state_dict())
            checking += time.process_time() - began
        if share >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = final_lr + (lr - final_lr) * (1 + math.cos(math.pi * share)) / 2
        optimizer.zero_grad()
        value = loss(torch.randint(n_rows, (batch,), generator=draw))
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        iteration += 1
        share = max((time.process_time() - start - checking) / seconds, iteration / iterations)
    model.load_state_dict(kept)
    return trace


def validation_error(model: nn.Module, problem: Problem) -> float:
    """Median relative error on the validation rows; inf where it is not finite."""
    with torch.no_grad():
        error = relative_errors(problem.states["valid"], model(problem.rows["valid"])).median()
    return float(error) if torch.isfinite(error) else math.inf


def relative_errors(exact: Tensor, found: Tensor) -> Tensor:
    """Relative error of every row, in float64; inf where it is not a number."""
    difference = (found.double() - exact.double()).flatten(1).norm(dim=1) / exact.double().flatten(1).norm(dim=1)
    return difference.nan_to_num(nan=math.inf)


# ---------------------------------------------------------------------- nets
def widest(macs: Callable[[int], float], limit: float, default: int, at_most: int = 512) -> int:
    """The widest hidden layer within a limit of MACs; the default where f has none."""
    if math.isnan(limit):
        return default
    return max((h for h in range(1, at_most + 1) if macs(h) <= limit), default=1)


def mlp(n_in: int, hidden: Iterable[int], n_out: int, activation: type[nn.Module]) -> nn.Sequential:
    """Linear layers with an activation between them."""
    sizes = [n_in, *hidden, n_out]
    layers = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), activation())]
    return nn.Sequential(*layers[:-1])


def conv(n_in: int, hidden: Iterable[int], n_out: int, activation: type[nn.Module]) -> nn.Sequential:
    """3x3 convolutions that keep the shape, with an activation between them."""
    sizes = [n_in, *hidden, n_out]
    layers = [part for a, b in pairwise(sizes) for part in (nn.Conv2d(a, b, 3, padding=1), activation())]
    return nn.Sequential(*layers[:-1])


def recipe_net(problem: Problem, n_states: int, published: int | None) -> nn.Sequential:
    """A net that reads n_states states and eps: of the published width, or as wide as G_SHARE of f's MACs allows.

    PReLU, as published for fields that are nets; on the analytic ones SiLU does better by half (on validation rows).
    """
    z, limit = problem.initial_states[0], G_SHARE * problem.macs_f
    d = z.shape[0]
    activation = nn.SiLU if math.isnan(limit) else nn.PReLU
    n_in = n_states * d + 1
    if z.ndim == 1:
        hidden = published or widest(lambda h: n_in * h + h * h + h * d, limit, 32, at_most=64)
        return mlp(n_in, [hidden, hidden], d, activation)
    if published:
        return conv(n_in, [published, published], d, activation)
    area = 9 * z[0].numel()
    return conv(n_in, [widest(lambda h: area * (n_in + d) * h, limit, 16)], d, activation)


def with_eps(parts: list[Tensor], eps: float) -> Tensor:
    """States side by side, and eps as a feature or channel."""
    return torch.cat([*parts, torch.full_like(parts[0][:, :1], eps)], dim=1)


# ---------------------------------------------------------------------- steps
class Solver(nn.Module):
    """Steps of a Neural ODE from its rows to terminal states.

    Parameters
    ----------
    problem : Problem
    n_steps : int
    """

    def __init__(self, problem: Problem, n_steps: int):
        super().__init__()
        self.neural_ode = problem.neural_ode
        self.n_steps = n_steps

    def forward(self, x: Tensor) -> Tensor:
        ode = self.neural_ode
        control = ode.control(x)

        def f(s: float, z: Tensor) -> Tensor:
            t = torch.as_tensor(s, dtype=z.dtype)  # learned nodes keep their gradient
            return ode.vector_field(t, z) if control is None else ode.vector_field(t, z, control)

        return self.solve(f, ode.input_map(x))

    def solve(self, f: Callable[[float, Tensor], Tensor], z: Tensor) -> Tensor:
        """Terminal state, of a field with its input bound."""
        grid = uniform_grid(self.neural_ode.t_span, self.n_steps)
        z0 = z
        for s, after in pairwise(grid):
            z = self.step(f, s, after - s, z, z0)
        return z
