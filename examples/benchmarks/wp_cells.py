"""The cells of work_precision.py: one problem, one solver and one seed each, measured in a process of its own."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor
from wp_measure import Place, ask_peers, errors, keep, measure, plain
from wp_names import BUDGETS, CLASSICAL, GENERALIST_STEPS, OURS
from wp_problems import Problem, count_calls, load_problem
from wp_recipes import (
    ReferenceHyperEuler,
    ReferenceHyperHeun,
    TorchdynHyperEuler,
    fit_endpoint,
    fit_published_hypereuler,
    fit_published_hyperheun,
    fit_residuals,
)
from wp_rivals import BespokeNonStationary, FlowMap, LearnedGrid, LinearSolver, fit_flow_map, fit_linear, linear_bases
from wp_timing import measure_milliseconds
from wp_training import G_SHARE, validation_error

from sklearn_hyper import HypersolverRegressor
from sklearn_hyper.numerics.base_solvers import owns_mesh
from sklearn_hyper.numerics.reference import ReferenceSolveError, solve_dopri5
from sklearn_hyper.training.nets import TrainingDivergedError

TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
DIVERGED = (TrainingDivergedError, ReferenceSolveError, FloatingPointError)


def run_cell(problem_name: str, solver: str, seed: int, place: Place) -> dict[str, Any]:
    """Measure a cell: rows by name, each of errors and costs, and what the fit took."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    start, cpu = time.perf_counter(), time.process_time()
    problem = load_problem(problem_name, place.cache, place.data, place.share)
    loaded = time.process_time() - cpu
    try:
        value = _dispatch(solver)(problem, solver, seed, place)
    except DIVERGED as error:
        value = {"rows": {}, "diverged": f"{type(error).__name__}: {error}"}
    value["cpu_seconds"] = time.process_time() - cpu - loaded
    return value | {"seconds": time.perf_counter() - start}


def _dispatch(solver: str) -> Callable[[Problem, str, int, Place], dict[str, Any]]:
    return next(measure for start, measure in _MEASURES.items() if solver.startswith(start))


# ---------------------------------------------------------------------- ours
def measure_ours(problem: Problem, solver: str, seed: int, place: Place) -> dict[str, Any]:
    """A hypersolver of this library, at its own K and at others, and whether it fell back to its base."""
    settings = OURS[solver.removeprefix("ours ")]
    start, cpu = time.perf_counter(), time.process_time()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fast = HypersolverRegressor(problem.neural_ode, random_state=seed, **settings).fit(problem.rows["fit"].numpy())
    value: dict[str, Any] = {
        "fit_cpu_seconds": time.process_time() - cpu,
        "fit_seconds": time.perf_counter() - start,
        "fallback": fast.correction_ is None or any(issubclass(w.category, ConvergenceWarning) for w in caught),
        "warnings": sorted({str(w.message) for w in caught}),
        "rows": {},
    }
    keep(fast.to_module(), problem, solver, seed, place)
    value["base"] = measure(problem, fast.without_correction().module_.terminal_state, fast.neural_ode_)
    own = fast.module_.n_steps
    # Learned coefficients are made for one number of steps.
    others = () if owns_mesh(fast.base_solver_) else GENERALIST_STEPS
    for k in dict.fromkeys([own, *others]):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # step sizes that it was not fitted at are the point
            module = fast.module_ if k == own else fast.with_solver(n_steps=k).module_
        value["rows"][f"K={k}"] = {
            "K": k, "own": k == own or "fit_n_steps" in settings,
            **measure(problem, module.terminal_state, module.neural_ode),
        }  # fmt: skip
    return value


# ---------------------------------------------------------------------- without training
def measure_classical(problem: Problem, solver: str, seed: int, place: Place) -> dict[str, Any]:
    """Fixed-step methods over step counts."""
    rows = {}
    for base in CLASSICAL:
        for k in CLASSICAL[base]:
            rows[f"{base} K={k}"] = {"K": k, **measure(problem, plain(problem, base, k).terminal_state)}
    return {"rows": rows}


def measure_dopri5(problem: Problem, solver: str, seed: int, place: Place) -> dict[str, Any]:
    """torchdiffeq's dopri5 over tolerances: the evaluations it makes on the test rows in one batch."""
    ode, rows, diverged = problem.neural_ode, {}, []
    for tolerance in TOLERANCES:

        def solve(x: Tensor, tolerance: float = tolerance) -> Tensor:
            return solve_dopri5(
                ode.vector_field, ode.input_map(x), ode.t_span, rtol=tolerance, atol=tolerance, x=ode.control(x)
            )

        try:
            row = measure(problem, solve)
        except ReferenceSolveError as error:  # of a loose tolerance, on rows outside
            diverged.append(f"{tolerance:g}: {error}")
            continue
        with torch.no_grad():
            nfe = count_calls(ode.vector_field, lambda solve=solve: solve(problem.rows["test"]))
        rows[f"dopri5 {tolerance:g}"] = row | {"nfe": nfe, "macs": nfe * problem.macs_f}
    return {"rows": rows} | ({"diverged": "; ".join(diverged)} if diverged else {})


# ---------------------------------------------------------------------- other packages
def measure_torchode(problem: Problem, solver: str, seed: int, place: Place) -> dict[str, Any]:
    """torchode's adaptive solvers; mean evaluations a row, each row having its own step sizes."""
    jobs = {
        f"torchode {method} {tolerance:g}": {"package": "torchode", "method": method, "tolerance": tolerance}
        for method in ("dopri5", "tsit5")
        for tolerance in TOLERANCES
    }
    rows = {}
    for name, answer in ask_peers(problem, jobs, place).items():
        nfe = answer["nfe"]
        rows[name] = {"nfe": nfe, "macs": nfe * problem.macs_f, **errors(problem, answer["states"])}
    return {"rows": rows}


def measure_torchdyn(problem: Problem, solver: str, seed: int, place: Place) -> dict[str, Any]:
    """torchdyn's HyperEuler, its g trained by recipe (i) for this K, run by the package."""
    model = TorchdynHyperEuler(problem, _number(solver))
    value = _timed(lambda: fit_residuals(model, problem, seed))
    answer = ask_peers(
        problem, {"own": {"package": "torchdyn", "net": model.net, "n_steps": model.n_steps}}, place
    )["own"]  # fmt: skip
    row = measure(problem, model)  # for the MACs; errors and evaluations are the package's
    return value | {"rows": {"own": row | {"nfe": answer["nfe"], **errors(problem, answer["states"])}}}


# ---------------------------------------------------------------------- trained rivals
def _number(solver: str) -> int:
    """The number in "reference (i) K=4" or "BNS 4 NFE"."""
    return int(solver.removesuffix(" NFE").replace("=", " ").split()[-1])


def _timed(fit: Callable[[], Any]) -> dict[str, Any]:
    """What a fit took, and its validation errors on the way (four of them)."""
    start, cpu = time.perf_counter(), time.process_time()
    trace = fit()
    return {
        "fit_cpu_seconds": time.process_time() - cpu,
        "fit_seconds": time.perf_counter() - start,
        "iterations": trace[-1]["iteration"],
        "trace": trace[:: max(1, len(trace) // 4)],
    }


def _measure_recipe(problem: Problem, model: Any, name: str = "own") -> dict[str, Any]:
    """A recipe at the evaluations its code makes and, the same numbers, at those that it could do with."""
    rows = {}
    for shared, suffix in [(False, ""), (True, ", f shared")]:
        model.shared = shared
        rows[name + suffix] = {"K": model.n_steps, **measure(problem, model)}
    return rows


def measure_recipe(problem: Problem, solver: str, seed: int, place: Place) -> dict[str, Any]:
    """Reference recipe (i) or (ii) at our budget, trained at the step size it is used with."""
    one = solver.startswith("reference (i) ")
    model = (ReferenceHyperEuler if one else ReferenceHyperHeun)(problem, _number(solver))
    value = _timed(lambda: (fit_residuals if one else fit_endpoint)(model, problem, seed))
    rows = _measure_recipe(problem, model)
    if one and model.n_steps == max(BUDGETS):  # the published use: trained at one small step, used at all
        for k in (1, 2, 4, 8):
            model.n_steps = k
            rows |= _measure_recipe(problem, model, f"one eps K={k}")
    model.shared = False
    keep(model, problem, solver, seed, place)
    return value | {"rows": rows}


def measure_published(problem: Problem, solver: str, seed: int, place: Place) -> dict[str, Any]:
    """A reference recipe as published: its budget, its one step size, its width; also at other step counts."""
    one = solver.startswith("reference (i),")
    found: list[Any] = []

    def fit() -> list:
        model, trace = (fit_published_hypereuler if one else fit_published_hyperheun)(problem, seed)
        found.append(model)
        return trace

    value, rows = _timed(fit), {}
    for k in (1, 2, 4, 9) if one else (1, 2):
        found[0].n_steps = k
        rows |= _measure_recipe(problem, found[0], f"K={k}")
    return value | {"rows": rows}


def measure_bns(problem: Problem, solver: str, seed: int, place: Place) -> dict[str, Any]:
    """BNS of n evaluations."""
    n = _number(solver)
    starts = [BespokeNonStationary(problem, n, base) for base in BespokeNonStationary.bases(n)]
    return _measure_linear(problem, solver, seed, place, [starts], n)


def measure_grid(problem: Problem, solver: str, seed: int, place: Place) -> dict[str, Any]:
    """Learned step sizes of each classical method in turn; the one that does best on validation rows counts."""
    n = _number(solver)
    return _measure_linear(
        problem, solver, seed, place, [[LearnedGrid(problem, n, base)] for base in linear_bases(n)], n
    )


def _measure_linear(
    problem: Problem, solver: str, seed: int, place: Place, groups: list[list[LinearSolver]], n: int
) -> dict[str, Any]:
    """One model of each group is trained, in an equal share of the seconds."""
    models: list[LinearSolver] = []

    def fit() -> list:
        seconds = problem.seconds_for(n) / len(groups)
        for starts in groups:
            model, trace = fit_linear(starts, problem, seed, seconds)
            models.append(model)
        return trace

    value = _timed(fit)
    best = min(models, key=lambda model: validation_error(model, problem))
    keep(best, problem, solver, seed, place)
    return value | {"rows": {"own": measure(problem, best)}}


def measure_flow_map(problem: Problem, solver: str, seed: int, place: Place) -> dict[str, Any]:
    """A net from the input to the terminal state."""
    model = FlowMap(problem, G_SHARE if solver.endswith("g") else 1.0)
    value = _timed(lambda: fit_flow_map(model, problem, seed))
    keep(model, problem, solver, seed, place)
    return value | {"rows": {"own": measure(problem, model)}}


_MEASURES: dict[str, Callable[[Problem, str, int, Place], dict[str, Any]]] = {
    "ours ": measure_ours,
    "classical": measure_classical,
    "dopri5": measure_dopri5,
    "torchode": measure_torchode,
    "torchdyn": measure_torchdyn,
    "reference (i) ": measure_recipe,
    "reference (ii) ": measure_recipe,
    "reference (i), published": measure_published,
    "reference (ii), published": measure_published,
    "BNS": measure_bns,
    "time grid": measure_grid,
    "flow map": measure_flow_map,
    "milliseconds": measure_milliseconds,
}
