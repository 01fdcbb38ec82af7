"""The milliseconds of work_precision.py: all solvers of a problem timed in turn, in cells that run alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import joblib
import torch
from torch import Tensor
from wp_measure import Place, ask_peers, model_path, plain
from wp_names import CLASSICAL, solver_names
from wp_problems import Problem

from sklearn_hyper.modules import HypersolvedODE
from sklearn_hyper.numerics.cost import time_interleaved
from sklearn_hyper.numerics.reference import solve_dopri5

BATCHES = (1, 256, 4096)
_TIMED_IMAGES = ("dopri5 0.001", "euler K=2", "ab2 K=2", "ab2 K=4", "ab2 K=8", "rk4 K=1", "rk4 K=2", "ours default")


def measure_milliseconds(problem: Problem, solver: str, seed: int, place: Place) -> dict[str, Any]:
    """Medians of interleaved runs of all solvers whose models of seed 0 are kept, at three batch sizes."""
    ode = problem.neural_ode
    solvers: dict[str, Callable[[Tensor], Tensor]] = {
        f"dopri5 {tolerance:g}": lambda x, tolerance=tolerance: solve_dopri5(
            ode.vector_field, ode.input_map(x), ode.t_span, rtol=tolerance, atol=tolerance, x=ode.control(x)
        )
        for tolerance in (1e-3, 1e-5)
    }
    most = 16 if problem.family == "images" else 32
    for base in CLASSICAL:
        for k in CLASSICAL[base]:
            module = plain(problem, base, k)
            if module.base_solver.count_evaluations(k) <= most:
                solvers[f"{base} K={k}"] = module.terminal_state
    for name in solver_names(problem.name):
        path = model_path(place, problem, name)
        if path.exists() and not name.startswith("time grid"):
            solvers[name] = _call(joblib.load(path))
    batches = tuple(batch for batch in BATCHES if batch <= _largest_batch(problem, 256))
    jobs = {
        f"torchode {method} 1e-05": {"package": "torchode", "method": method, "tolerance": 1e-5, "batches": batches}
        for method in ("dopri5", "tsit5")
    }
    others = ask_peers(problem, jobs, place) if place.peers_python else {}
    x, result = problem.rows["test"], {}
    for batch in BATCHES:
        some = x.repeat(-(-batch // len(x)), *[1] * (x.ndim - 1))[:batch]
        timed = solvers
        if batch > _largest_batch(problem, 256):  # seconds a solve: only what the comparison is about
            timed = {name: solve for name, solve in solvers.items() if name.startswith(_TIMED_IMAGES)}
        with torch.no_grad():
            result[f"batch {batch}"] = time_interleaved(
                {name: lambda solve=solve, some=some: solve(some) for name, solve in timed.items()},
                repeats=7 if timed is solvers else 3,
            ) | {name: answer["ms"][batch] for name, answer in others.items() if batch in answer["ms"]}
    return {"rows": {}, "ms": result}


def _call(model: Any) -> Callable[[Tensor], Tensor]:
    """A kept model's solve; ours is folded anew, so that today's code is timed."""
    if isinstance(model, HypersolvedODE):
        return HypersolvedODE(model.neural_ode, model.base_solver, model.correction, model.grid).eval().terminal_state
    return model


def _largest_batch(problem: Problem, of_images: int) -> int:
    """Up to which batch everything is timed."""
    return of_images if problem.family == "images" else max(BATCHES)
