"""The milliseconds of work_precision.py: all solvers of a problem timed in turn, in cells that run alone.

Once as torch runs them, and once as ONNX files: ours beside the best classical solver of every number of evaluations.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import onnxruntime
import torch
from torch import Tensor, nn
from wp_measure import Place, ask_peers, measure, model_path, plain
from wp_names import BUDGETS, CLASSICAL, solver_names
from wp_problems import Problem

from sklearn_hyper.modules import HypersolvedODE
from sklearn_hyper.modules.hypersolved_ode import SolvedODE
from sklearn_hyper.modules.onnx_export import write_onnx
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
    if place.share < 1:  # --quick: exporting takes a minute a problem
        return {"rows": {}, "ms": result}
    return {"rows": {}, "ms": result, "exported": time_exported(problem, place)}


class TerminalState(nn.Module):
    """What is exported: from rows to terminal states."""

    def __init__(self, solver: SolvedODE):
        super().__init__()
        self.solver = solver

    def forward(self, x: Tensor) -> Tensor:
        return self.solver.terminal_state(x)


def time_exported(problem: Problem, place: Place) -> dict[str, dict[str, float]]:
    """Medians of interleaved runs of ONNX files on one thread, by batch and solver."""
    solvers = best_classical(problem) | {
        name: joblib.load(path).fold()
        for name in (f"ours default {budget} NFE" for budget in BUDGETS)
        if (path := model_path(place, problem, name)).exists()
    }
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    x, sessions = problem.rows["test"], {}
    with tempfile.TemporaryDirectory() as folder:
        for name, solver in solvers.items():
            path = Path(folder) / "solver.onnx"
            write_onnx(TerminalState(solver).eval(), x[:64], path, outputs=["z"])
            sessions[name] = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    found = {}
    for batch in (batch for batch in BATCHES if batch <= len(x)):
        some = {"X": x[:batch].numpy()}
        calls = {name: lambda session=session, some=some: session.run(None, some) for name, session in sessions.items()}
        found[f"batch {batch}"] = time_interleaved(calls, repeats=15)
    return found


def best_classical(problem: Problem) -> dict[str, HypersolvedODE]:
    """For every number of evaluations up to twice our largest, the classical solver that is best on test rows."""
    best: dict[int, tuple[float, str, HypersolvedODE]] = {}
    for base in CLASSICAL:
        for k in CLASSICAL[base]:
            solver = plain(problem, base, k)
            evaluations = solver.base_solver.count_evaluations(k)
            if evaluations <= 2 * max(BUDGETS):
                error = measure(problem, solver.terminal_state)["test"]["median"]
                best[evaluations] = min(best.get(evaluations, (math.inf,)), (error, f"{base} K={k}", solver))
    return {name: solver for _, name, solver in best.values()}


def _call(model: Any) -> Callable[[Tensor], Tensor]:
    """A kept model's solve; ours is folded anew, so that today's code is timed."""
    return model.fold().terminal_state if isinstance(model, HypersolvedODE) else model


def _largest_batch(problem: Problem, of_images: int) -> int:
    """Up to which batch everything is timed."""
    return of_images if problem.family == "images" else max(BATCHES)
