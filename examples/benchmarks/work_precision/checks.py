"""Whether the re-implemented rivals do as well as their published figures say."""

from __future__ import annotations

from typing import Any

import torch
from _results import finite
from torch import Tensor

from sklearn_hyper import NeuralODE
from sklearn_hyper.datasets import make_pendulum
from sklearn_hyper.numerics import reference_solution

from .cells import Check
from .loading import LoadedProblem
from .problems import SystemProblem
from .recipes import ReferenceHyperEuler, fit_residuals

PENDULUM = {0.03: 7.1e-5, 0.1: 7.0e-4, 0.3: 4.3e-3}
"""Mean error of one step, by dt: of a HyperEuler net 5-32-32-2 trained for that dt alone, 7 to 51 minutes."""
CHECKS = tuple(map(Check, PENDULUM))
SECONDS, ROWS = 60.0, 20_000


def run_check(check: Check, share: float = 1.0) -> dict[str, Any]:
    """One net for one dt by recipe (i): 20,000 samples, batches of 1,024, lr from 1e-2 to 0, 60 CPU seconds."""
    torch.set_num_threads(1)
    torch.manual_seed(0)

    def draw(n: int, seed: int) -> tuple[Tensor, NeuralODE]:
        X, ode = make_pendulum(n, random_state=seed)
        span = NeuralODE(ode.vector_field, input_map=ode.input_map, t_span=(0.0, check.dt), data_controlled=True)
        return torch.from_numpy(X), span

    (fit, ode), (valid, _), (test, _) = draw(ROWS, 0), draw(1000, 1), draw(ROWS, 2)
    rows = {"fit": fit.float(), "valid": valid.float(), "test": test.float(), "outside": valid.float()}
    loaded = LoadedProblem(SystemProblem(check.label, "physics"), ode, rows)
    loaded.references = loaded.solve_references()
    model = ReferenceHyperEuler(loaded, 1, published=32)
    trace = fit_residuals(model, loaded, 0, seconds=share * SECONDS, lr=1e-2, final_lr=0.0, batch=1024)
    times = (0.0, check.dt)
    exact = reference_solution(ode.vector_field, ode.input_map(test), times, rtol=1e-10, atol=1e-10, x=test)[-1]
    with torch.no_grad():
        error = float((model(rows["test"]).double() - exact).norm(dim=1).mean())
    published = PENDULUM[check.dt]
    return finite({
        "error": error, "published": published, "ratio": error / published,
        "iterations": trace[-1]["iteration"], "cpu_seconds": trace[-1]["seconds"],
    })  # fmt: skip
