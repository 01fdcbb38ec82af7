"""What all cells of work_precision.py measure: errors on every part of the rows, evaluations of f and MACs."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch
from torch import Tensor, nn
from wp_problems import Problem, count_calls
from wp_training import relative_errors

from sklearn_hyper.modules import HypersolvedODE
from sklearn_hyper.numerics import count_macs, resolve_base_solver
from sklearn_hyper.numerics.solve import uniform_grid

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Place:
    """Where models and data are, the interpreter that has the other packages, and the share of its seconds a rival gets."""

    cache: str
    data: str | None = None
    peers_python: str | None = None
    share: float = 1.0


def measure(problem: Problem, solve: Callable[[Tensor], Tensor], ode: nn.Module | None = None) -> dict[str, Any]:
    """Errors on all parts of the rows, evaluations of f and MACs of a solver from rows to terminal states."""
    ode = problem.neural_ode if ode is None else ode
    with torch.no_grad():
        found = {part: solve(problem.rows[part]) for part in ("valid", "test", "outside")}
        one = problem.rows["test"][:1]
        nfe = count_calls(ode.vector_field, lambda: solve(one))
        macs = count_macs(solve, one) - np.nan_to_num(count_macs(ode.input_map, one))
    return {"nfe": nfe, "macs": macs, **errors(problem, found)}


def errors(problem: Problem, found: dict[str, Tensor]) -> dict[str, Any]:
    """Relative errors of terminal states by part, and how often a classifier's label is dopri5's."""
    result: dict[str, Any] = {}
    for part, states in found.items():
        error = relative_errors(problem.states[part], states).numpy()
        result[part] = {"median": np.median(error), "p99": np.quantile(error, 0.99), "max": error.max()}
    if problem.labels is not None:
        head = problem.neural_ode.output_map
        with torch.no_grad():
            own, expected = (head(z.float()).argmax(1) for z in (found["test"], problem.states["test"]))
        result["agreement"] = float((own == expected).double().mean())
        result["accuracy"] = float(np.mean(own.numpy() == problem.labels))
    return result


def model_path(place: Place, problem: Problem, solver: str) -> Path:
    """Where the model of seed 0 is kept for timing."""
    return Path(place.cache) / "work_precision" / f"{problem.name} {solver}.joblib"


def keep(model: nn.Module, problem: Problem, solver: str, seed: int, place: Place) -> None:
    """Keep a model of seed 0 for timing."""
    if seed == 0:
        path = model_path(place, problem, solver)
        path.parent.mkdir(parents=True, exist_ok=True)
        joblib.dump(model, path)


def plain(problem: Problem, base: str, n_steps: int) -> HypersolvedODE:
    """A base solver without a correction."""
    ode = problem.neural_ode
    return HypersolvedODE(ode, resolve_base_solver(base), None, uniform_grid(ode.t_span, n_steps))


def ask_peers(problem: Problem, jobs: dict[str, dict[str, Any]], place: Place) -> dict[str, Any]:
    """Answers of wp_peers.py, run by the interpreter that has the packages."""
    with tempfile.TemporaryDirectory() as folder:
        asked, answers = Path(folder) / "jobs.joblib", Path(folder) / "answers.joblib"
        rows = {part: problem.rows[part] for part in ("valid", "test", "outside")}
        joblib.dump({"neural_ode": problem.neural_ode, "rows": rows, "jobs": jobs}, asked)
        subprocess.run([place.peers_python, str(HERE / "wp_peers.py"), str(asked), str(answers)], check=True)
        return joblib.load(answers)
