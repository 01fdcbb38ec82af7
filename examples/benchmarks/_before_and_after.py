"""Training small fields, and measuring solves of them: evaluations, errors and milliseconds."""

from __future__ import annotations

import contextlib
import copy
import importlib
import importlib.machinery
import statistics
import sys
import time
import types
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchdiffeq import odeint

from sklearn_hyper import HypersolverRegressor, NeuralODE

N, K = 1000, 4
N_FIT = 300
"""Rows that the larger fields, of graphs and of energies, are fitted on."""
Solve = Callable[[], Tensor]


# ---------------------------------------------------------------------- measuring
@contextlib.contextmanager
def counting(module: nn.Module) -> Iterator[list[int]]:
    """Count the calls of a module."""
    calls = [0]

    def count(*_: Any) -> None:
        calls[0] += 1

    handle = module.register_forward_pre_hook(count)
    try:
        yield calls
    finally:
        handle.remove()


def median_ms(solve: Solve) -> float:
    """Median time of five calls, after one that warms up."""
    solve()
    times = []
    for _ in range(5):
        start = time.perf_counter()
        solve()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def measured(solve: Solve, exact: Tensor, net: nn.Module | None = None, evaluations: int | None = None) -> dict:
    """Evaluations, error and milliseconds of a solve."""
    if net is not None:
        with counting(net) as calls:
            found = solve()
        evaluations = calls[0]
    else:
        found = solve()
    error = (found.double() - exact).reshape(len(exact), -1).norm(dim=1).median()
    return {"evaluations": evaluations, "error": float(error), "ms": median_ms(solve)}


def exact_end(
    ode: NeuralODE, x: Tensor, condition: dict[str, Tensor] | None = None, dtype: torch.dtype = torch.float64
) -> Tensor:
    """The output to six digits, in float64 where the net computes in it."""
    precise = copy.deepcopy(ode).to(dtype)
    given = {name: value.to(dtype) if value.is_floating_point() else value for name, value in (condition or {}).items()}
    with torch.no_grad():
        return precise(x.to(dtype), rtol=1e-6, condition=given)


def hypersolved(
    ode: NeuralODE,
    x: Tensor,
    fresh: Tensor,
    exact: Tensor,
    *,
    steps: int = K,
    conditions: tuple[Any, Any] = (None, None),
    **options: Any,
) -> dict[str, Any]:
    """Fit on x, and measure on fresh rows, through the module that is deployed.

    ``conditions`` are those of the rows to fit on and of the fresh ones, ``options`` parameters of the estimator.
    """
    start = time.perf_counter()
    solver = HypersolverRegressor(ode, n_steps=steps, random_state=0, **options)
    fast = solver.fit(x, condition=conditions[0])
    seconds = time.perf_counter() - start
    module, base, given = fast.module_, fast.without_correction().module_, conditions[1]
    found = measured(no_grad(lambda: module(fresh, given)), exact, evaluations=steps)
    without = measured(no_grad(lambda: base(fresh, given)), exact, evaluations=steps)
    return found | {"without its correction": without["error"], "fit_s": seconds}


def by_torchdiffeq(ode: NeuralODE, fresh: Tensor, exact: Tensor, steps: int = K) -> dict[str, Any]:
    """The better of midpoint and rk4 with as many evaluations."""
    field, end = ode.vector_field, ode.t_span[1]
    solves = {}
    for method, stages in (("midpoint", 2), ("rk4", 4)):
        if steps % stages == 0:
            solve = no_grad(partial(odeint, field, fresh, torch.linspace(0, end, steps // stages + 1), method=method))
            solves[method] = measured(lambda solve=solve: solve()[-1], exact, evaluations=steps)
    best = min(solves, key=lambda method: solves[method]["error"])
    return solves[best] | {"method": best}


def by_dopri5(ode: NeuralODE, fresh: Tensor, exact: Tensor) -> dict[str, Any]:
    """torchdiffeq's dopri5 at 1e-5."""
    field, ends = ode.vector_field, torch.tensor([0.0, ode.t_span[1]])
    return measured(no_grad(lambda: odeint(field, fresh, ends, rtol=1e-5, atol=1e-5)[-1]), exact, field)


def no_grad(solve: Solve) -> Solve:
    return torch.no_grad()(solve)


# ---------------------------------------------------------------------- data and training
def moons(n: int, seed: int) -> Tensor:
    """Two moons, standardized."""
    generator = torch.Generator().manual_seed(seed)
    angle = torch.rand(n, generator=generator) * torch.pi
    side = torch.randint(2, (n,), generator=generator)
    x = torch.stack([angle.cos() + side - 0.5, (1 - 2 * side) * (angle.sin() - 0.25)], dim=1)
    return (x + 0.05 * torch.randn(n, 2, generator=generator)) * torch.tensor([1.15, 2.0])


def noise(n: int, d: int = 2, seed: int = 1) -> Tensor:
    """Standard normal rows."""
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def train(module: nn.Module, loss_of: Callable[[int], Tensor], steps: int = 1500) -> None:
    """Adam with a falling rate."""
    optimizer = torch.optim.Adam(module.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        loss = loss_of(step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def match_flow(module: nn.Module, velocity: Callable[[Tensor, Tensor], Tensor], data_at: int = 1) -> None:
    """Flow matching on the moons. ``velocity`` takes (times a row, states)."""
    data = moons(4096, 0)

    def loss(step: int) -> Tensor:
        rows, start = data[torch.randint(len(data), (256,))], torch.randn(256, 2)
        first, last = (start, rows) if data_at == 1 else (rows, start)
        t = torch.rand(256)
        state = (1 - t[:, None]) * first + t[:, None] * last
        return (velocity(t, state) - (last - first)).pow(2).mean()

    train(module, loss)


def mlp(n_in: int, n_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(n_in, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, n_out))


class Nothing(types.ModuleType):
    """A module in which every name is None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def do_without_torchvision() -> None:
    """Put an empty module in torchvision's place where it was built for another torch: torchdyn only names it."""
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError):
        for name in ("torchvision", "torchvision.transforms", "torchvision.models"):
            module = Nothing(name)
            module.__spec__, module.__path__ = importlib.machinery.ModuleSpec(name, None), []
            sys.modules[name] = module
