"""Milliseconds: all contenders of a problem timed in turn, in cells that run alone.

Once as torch runs them, and once as ONNX files: ours beside the best classical solver of every number of evaluations.
"""

from __future__ import annotations

import math
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch
from _results import finite
from _solving import dopri5_solver, open_onnx, plain_solver, repeat_rows
from torch import Tensor

from sklearn_hyper import HypersolverRegressor
from sklearn_hyper.numerics import time_interleaved

from .cells import Timing
from .contenders import BUDGETS, Classical, Contender, Ours, TimeGrid, Torchode
from .loading import LoadedProblem
from .measuring import measure
from .peer_jobs import TorchodeJob
from .place import Place
from .plan import contenders_of
from .runs import Run

BATCHES = (1, 256, 4096)
MOST_IMAGES = 256
"""Up to this batch everything is timed on images; seconds a solve beyond, so only what the comparison is about."""
DOPRI5 = (Run("dopri5", tolerance=1e-3), Run("dopri5", tolerance=1e-5))
TORCHODE = tuple(Run(method, tolerance=1e-5) for method in Torchode.METHODS)
_LARGE_BATCHES = (
    DOPRI5[0], Run("euler", 2), Run("ab2", 2), Run("ab2", 4), Run("ab2", 8), Run("rk4", 1), Run("rk4", 2)
)  # fmt: skip

Solve = Callable[[Tensor], Any]
Milliseconds = dict[str, dict[str, float]]
"""By batch and name."""


def time_solvers(timing: Timing, place: Place) -> dict[str, Any]:
    """Medians of interleaved runs of all contenders that are kept from seed 0, at three batch sizes."""
    torch.set_num_threads(1)
    start, cpu = time.perf_counter(), time.process_time()
    loaded = place.load(timing.problem)
    loading = time.process_time() - cpu
    found: dict[str, Any] = {"macs_f": loaded.macs_f, "ms": _time_in_torch(loaded, place)}
    if place.share == 1:  # exporting takes a minute a problem, which --quick has not
        found["exported"] = _time_exported(loaded, place)
    found |= {"cpu_seconds": time.process_time() - cpu - loading, "seconds": time.perf_counter() - start}
    return finite(found)


def _time_in_torch(loaded: LoadedProblem, place: Place) -> Milliseconds:
    of_images = loaded.problem.of_images
    everything = {run.label: dopri5_solver(loaded.neural_ode, run.tolerance) for run in DOPRI5}
    everything |= _classical_solvers(loaded, 16 if of_images else 32)
    kept = _kept(loaded, place)
    everything |= {contender.label: _solve_of(model) for contender, model in kept.items()}
    compared = {run.label for run in _LARGE_BATCHES} | {
        contender.label for contender in kept if isinstance(contender, Ours) and contender.is_default
    }
    of_peers = _time_torchode(loaded, place)
    result = {}
    for batch in BATCHES:
        reduced = of_images and batch > MOST_IMAGES
        timed = {name: solve for name, solve in everything.items() if name in compared or not reduced}
        x = repeat_rows(loaded.rows["test"], batch)
        with torch.no_grad():
            calls = {name: lambda solve=solve, x=x: solve(x) for name, solve in timed.items()}
            times = time_interleaved(calls, repeats=3 if reduced else 7)
        result[str(batch)] = times | {name: found[batch] for name, found in of_peers.items() if batch in found}
    return result


def _classical_solvers(loaded: LoadedProblem, most: int) -> dict[str, Solve]:
    """Fixed-step methods of up to so many evaluations."""
    solvers = {run.label: plain_solver(loaded.neural_ode, run.method, run.n_steps) for run in Classical().runs()}
    return {
        name: solver.terminal_state
        for name, solver in solvers.items()
        if solver.base_solver.count_evaluations(solver.n_steps) <= most
    }


def _kept(loaded: LoadedProblem, place: Place) -> dict[Contender, Any]:
    """What trials of seed 0 have left; time grids take as long as their base."""
    paths = {
        contender: place.model_path(loaded.problem, contender.label)
        for contender in contenders_of(loaded.problem)
        if not isinstance(contender, TimeGrid)
    }
    return {contender: joblib.load(path) for contender, path in paths.items() if path.exists()}


def _solve_of(model: Any) -> Solve:
    """A kept model's solve; ours is folded anew, so that today's code is timed."""
    return model.to_module().fold().terminal_state if isinstance(model, HypersolverRegressor) else model


def _time_torchode(loaded: LoadedProblem, place: Place) -> dict[str, dict[int, float]]:
    """Milliseconds by name and batch, where there is an interpreter for it."""
    if not place.peers_python:
        return {}
    batches = tuple(batch for batch in BATCHES if batch <= MOST_IMAGES or not loaded.problem.of_images)
    jobs = {Torchode().run_label(run): TorchodeJob(run.method, run.tolerance, batches) for run in TORCHODE}
    return {name: answer.milliseconds for name, answer in place.ask_peers(loaded, jobs).items()}


# ---------------------------------------------------------------------- exported
def _time_exported(loaded: LoadedProblem, place: Place) -> Milliseconds:
    """Medians of interleaved runs of ONNX files, as ``export_onnx`` writes them, on one thread."""
    ours = {
        contender.label: model
        for contender, model in _kept(loaded, place).items()
        if isinstance(contender, Ours) and contender.is_default
    }
    if not ours:
        return {}
    bare = next(iter(ours.values())).without_correction()
    solvers = {run.label: _with_method(bare, run) for run in best_classical(loaded)} | ours
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "solver.onnx"
        sessions = {name: open_onnx(solver.export_onnx(path)) for name, solver in solvers.items()}
    found = {}
    for batch in (batch for batch in BATCHES if batch <= len(loaded.rows["test"])):
        x = {"X": np.ascontiguousarray(loaded.rows["test"][:batch].numpy())}
        calls = {name: lambda session=session, x=x: session.run(None, x) for name, session in sessions.items()}
        found[str(batch)] = time_interleaved(calls, repeats=15)
    return found


def _with_method(bare: HypersolverRegressor, run: Run) -> HypersolverRegressor:
    """A classical method as an estimator, which can be exported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return bare.with_solver(base_solver=run.method, n_steps=run.n_steps)


def best_classical(loaded: LoadedProblem) -> list[Run]:
    """For every number of evaluations up to twice our largest, the classical run that is best on test rows."""
    best: dict[int, tuple[float, Run]] = {}
    for run in Classical().runs():
        solver = plain_solver(loaded.neural_ode, run.method, run.n_steps)
        evaluations = solver.base_solver.count_evaluations(run.n_steps)
        if evaluations <= 2 * max(BUDGETS):
            error = measure(loaded, run, solver.terminal_state).test["median"]
            if error < best.get(evaluations, (math.inf,))[0]:
                best[evaluations] = (error, run)
    return [run for _, run in best.values()]
