"""The cells of work_precision.py: one problem, one solver and one seed each, measured in a process of its own."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import joblib
import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor
from wp_measure import Place, ask_peers, errors, keep, measure, model_path, plain
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
from wp_training import G_SHARE, validation_error

from sklearn_hyper import HypersolverRegressor
from sklearn_hyper.numerics.cost import time_interleaved
from sklearn_hyper.numerics.reference import ReferenceSolveError, solve_dopri5
from sklearn_hyper.training.nets import TrainingDivergedError

BUDGETS = (2, 4, 8)
"""Evaluations of f that solvers are compared at."""
MANY_DIMENSIONS = ("wine", "digits", "mnist")
ALTERNATIVES = ("euler", "ab2", "nonstationary")
"""Our base solvers of one evaluation a step; the default is ab2, in many dimensions nonstationary."""
# Ours: arguments of HypersolverRegressor; everything else is its default.
OURS: dict[str, dict[str, Any]] = {
    **{f"default {nfe} NFE": {"n_steps": nfe} for nfe in BUDGETS},
    **{f"{base} {nfe} NFE": {"base_solver": base, "n_steps": nfe} for base in ALTERNATIVES for nfe in BUDGETS},
    "generalist": {"n_steps": 4, "fit_n_steps": (1, 16)},
}
COMPARED = ("van_der_pol", "moons flow_matching", "moons likelihood", "wine", "digits")
"""Problems, one of a family, that our alternatives to the default, time grids and torchdyn are tried on."""
TIMED = (*COMPARED, "mnist")
"""Problems whose solvers are timed."""
GENERALIST_STEPS = (1, 2, 4, 8, 16)
CLASSICAL = {
    "euler": (1, 2, 3, 4, 5, 6, 8, 9, 12, 16, 32),
    "midpoint": (1, 2, 3, 4, 5, 8, 16),
    "heun": (1, 2, 3, 4, 5, 8, 16),
    "ralston": (1, 2, 3, 4, 5, 8, 16),
    "rk3": (1, 2, 3, 4),
    "rk4": (1, 2, 3, 4, 8),
    "ab2": (2, 3, 4, 5, 6, 8, 9, 12, 16, 32),
    "ab3": (2, 3, 4, 5, 6, 8, 12, 16),
    "ab4": (2, 3, 4, 5, 6, 8, 12, 16),
}
TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
ROUNDED_UP = (3, 5, 9)
"""Ours with g rounded up to whole evaluations of f: what solvers without g may use, and what is best for them."""
WITHOUT_MACS = ("pendulum", "van_der_pol", "forced_van_der_pol", "forced_oscillator")
"""Problems that are compared at equal evaluations."""
BATCHES = (1, 256, 4096)
PUBLISHED = {
    "reference (i), published budget": ("moons flow_matching",),
    "reference (ii), published budget": ("moons likelihood",),
}
ONCE = (*(f"ours {base}" for base in (*ALTERNATIVES, "generalist")), "time grid", "torchdyn", "flow map")
"""One seed, to stay within four hours: variants of ours, and the trained rivals that no target is about."""
DIVERGED = (TrainingDivergedError, ReferenceSolveError, FloatingPointError)


def solver_names(problem: str) -> list[str]:
    """Solvers of a problem, ours first."""
    most = BUDGETS if problem in WITHOUT_MACS else ROUNDED_UP
    return [
        *(f"ours {name}" for name in OURS if not name.startswith(ALTERNATIVES) or _is_compared(problem, name)),
        "classical", "dopri5", "torchode",
        *(f"reference (i) K={k}" for k in (1, 2, 4, 8)),
        *(f"reference (ii) K={k}" for k in (1, 2, 4)),
        *(f"BNS {n} NFE" for n in most),
        *(f"time grid {n} NFE" for n in most if problem in COMPARED),
        "flow map, size of g", "flow map, size of f",
        *(f"torchdyn K={k}" for k in (2, 4, 8) if problem in COMPARED),
        *(name for name, problems in PUBLISHED.items() if problem in problems),
    ]  # fmt: skip


def _is_compared(problem: str, setting: str) -> bool:
    """Whether another base solver than the default is tried on a problem."""
    default = "nonstationary" if problem in MANY_DIMENSIONS else "ab2"
    return problem in COMPARED and not setting.startswith(default)


def is_seeded(solver: str) -> bool:
    """Whether the seed makes a difference."""
    return solver not in ("classical", "dopri5", "torchode", "milliseconds")


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
    keep(fast.module_, problem, solver, seed, place)
    value["base"] = measure(problem, fast.without_correction().module_.terminal_state)
    own = fast.module_.n_steps
    # Learned coefficients are made for one number of steps.
    others = () if hasattr(fast.base_solver_, "mesh") else GENERALIST_STEPS
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


# ---------------------------------------------------------------------- milliseconds
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
            model = joblib.load(path)
            solvers[name] = getattr(model, "terminal_state", model)
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


_TIMED_IMAGES = ("dopri5 0.001", "euler K=2", "ab2 K=2", "ab2 K=4", "ab2 K=8", "rk4 K=1", "rk4 K=2", "ours default")


def _largest_batch(problem: Problem, of_images: int) -> int:
    """Up to which batch everything is timed."""
    return of_images if problem.family == "images" else max(BATCHES)


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
