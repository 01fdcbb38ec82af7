"""Whether the re-implemented rivals of work_precision.py do as well as their published figures say."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from wp_problems import Problem, solve_references
from wp_recipes import ReferenceHyperEuler, fit_residuals

from sklearn_hyper import NeuralODE
from sklearn_hyper.datasets import make_pendulum
from sklearn_hyper.numerics import reference_solution

PENDULUM = {0.03: 7.1e-5, 0.1: 7.0e-4, 0.3: 4.3e-3}
"""Mean error of one step, by dt: of a HyperEuler net 5-32-32-2 trained for that dt alone, 7 to 51 minutes."""
HYPERHEUN = 0.004
"""Median relative error of recipe (ii) on an FFJORD field of the moons, K = 1."""
SECONDS, ROWS = 60.0, 20_000


def check_names() -> list[str]:
    """All checks."""
    return [f"pendulum dt={dt:g}" for dt in PENDULUM]


def run_check(name: str, share: float = 1.0) -> dict[str, Any]:
    """Our version of a rival beside its published figure."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return check_pendulum(float(name.split("=")[1]), share)


def check_hyperheun(cells: dict[str, Any]) -> dict[str, Any]:
    """The cell of recipe (ii) at its published budget beside its published figure, once it is there."""
    cell = cells.get("moons likelihood | reference (ii), published budget | seed 0")
    if cell is None:
        return {}
    error = cell["rows"]["K=1"]["test"]["median"]
    compared = {"error": error, "published": HYPERHEUN, "ratio": error / HYPERHEUN}
    return {"check reference (ii) on moons likelihood": compared | {"cpu_seconds": cell["fit_cpu_seconds"]}}


def check_pendulum(dt: float, share: float = 1.0) -> dict[str, Any]:
    """One net for one dt by recipe (i): 20,000 samples, batches of 1,024, lr from 1e-2 to 0, 60 CPU seconds."""

    def draw(n: int, seed: int) -> tuple[Tensor, NeuralODE]:
        X, ode = make_pendulum(n, random_state=seed)
        span = NeuralODE(ode.vector_field, input_map=ode.input_map, t_span=(0.0, dt), data_controlled=True)
        return torch.from_numpy(X), span

    (fit, ode), (valid, _), (test, _) = draw(ROWS, 0), draw(1000, 1), draw(ROWS, 2)
    rows = {"fit": fit.float(), "valid": valid.float(), "test": test.float(), "outside": valid.float()}
    problem = Problem(f"pendulum dt={dt:g}", "physics", ode, rows)
    solve_references(problem)
    model = ReferenceHyperEuler(problem, 1, published=32)
    trace = fit_residuals(
        model, problem, seed=0, seconds=share * SECONDS, lr=1e-2, final_lr=0.0, batch=1024
    )  # fmt: skip
    exact = reference_solution(ode.vector_field, ode.input_map(test), (0.0, dt), rtol=1e-10, atol=1e-10, x=test)[-1]
    with torch.no_grad():
        error = float((model(rows["test"]).double() - exact).norm(dim=1).mean())
    published = PENDULUM[dt]
    return {
        "error": error, "published": published, "ratio": error / published,
        "iterations": trace[-1]["iteration"], "cpu_seconds": trace[-1]["seconds"],
    }  # fmt: skip
