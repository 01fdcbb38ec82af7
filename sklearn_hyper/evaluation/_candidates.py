"""What advice is chosen from: short trials of hypersolvers, classical methods, and dopri5 at loose tolerances."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn import clone
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from ..estimators import HypersolverClassifier
from ..estimators._fit_html import correction_name
from ..hypersolvers import FittedHypersolver, Task
from ..hypersolvers.report import Answers, measure_solvers
from ..metrics import CountedField, relative_l2
from ..numerics.methods import NONSTATIONARY, resolve_base_solver
from ..numerics.reference import ReferenceSolveError
from ..reports import SolverReport
from ..training.given_rows import Inputs, apart, given
from .pareto import pareto_front

_CLASSICAL = ("euler", "midpoint", "ab2", "rk4")
_EVALUATIONS = (2, 4, 8, 16, 32)
_LOOSE = (1e-1, 1e-2, 1e-3)
TIGHTEST = 1e-4
"""Tolerance of the dopri5 that speed-ups are relative to, as in ``solver_report``."""
_N_STEPS = (2, 4, 8)
_EPOCHS, _UPDATES = 20, 200
_DEFAULT_ROWS = 2000  # that a fit uses of X, unless told otherwise


def trial_epochs(template: Any, n_rows: int) -> int:
    """Return the epochs of a trial: few, but enough updates to tell corrections from their base solvers."""
    n_updates = math.ceil(min(n_rows, _DEFAULT_ROWS) / template.batch_size)
    return min(max(_EPOCHS, math.ceil(_UPDATES / n_updates)), template.max_epochs)


def default_steps(template: Any, evaluations: float | None) -> list[int]:
    """Return the numbers of steps of the trials: the most that evaluations of f allow, and half of them.

    Raises
    ------
    ValueError
        If they allow no step of the base solver.
    """
    if evaluations is None:
        return list(_N_STEPS)
    # What is chosen or learned by the fit evaluates f once a step.
    is_known = template.order is not None or template.base_solver not in ("auto", NONSTATIONARY)
    method = resolve_base_solver(template.base_solver if is_known else "euler", template.order)
    most, fewest = _most_steps(method, evaluations), method.n_startup + 1
    if most is None:
        raise ValueError(
            f"evaluations={evaluations!r} is less than base_solver={method.name!r} takes: allow at least "
            f"{method.count_evaluations(fewest)}."
        )
    return sorted({max(most // 2, fewest), most})


def _most_steps(method: Any, evaluations: float) -> int | None:
    """Return the most steps that keep to a number of evaluations; None if not even start-up steps and one more do."""
    possible = range(method.n_startup + 1, int(evaluations) + 1)
    within = [k for k in possible if method.count_evaluations(k) <= evaluations]
    return within[-1] if within else None


@dataclass(frozen=True)
class Candidate:
    """A solver to measure, and how a user gets it."""

    words: str
    params: dict[str, Any]
    estimator: Any = None
    is_hypersolver: bool = False
    answer: Answers | None = None
    """Solves rows of a solver that is no module of steps."""

    @property
    def fitted(self) -> FittedHypersolver:
        return self.estimator.fitted_


def fit_trials(template: Any, X: Any, condition: Any, steps: Sequence[int]) -> tuple[dict[int, Any], float]:
    """Fit a hypersolver for each number of steps; return them, and the mean seconds of a fit."""
    start, trials = time.perf_counter(), {}
    for k in steps:
        with warnings.catch_warnings():
            # A trial that beats nothing, or whose errors are large, says so in the table.
            warnings.simplefilter("ignore", ConvergenceWarning)
            trials[k] = clone(template).set_params(n_steps=k).fit(X, condition=condition)
    return trials, (time.perf_counter() - start) / len(steps)


def find_candidates(
    trials: Mapping[int, Any], task: Task, reference: Tensor, evaluations: float | None
) -> tuple[dict[str, Candidate], list[str]]:
    """Return what to measure, by name, and notes on what is left out."""
    candidates, notes = _classical(next(iter(trials.values())), task, reference, evaluations)
    for k, trial in trials.items():
        if trial.correction_ is None:
            notes.append(f"The trial of {k} steps beat its base solver in no epoch, and is left out.")
            continue
        if not math.isfinite(_quick_error(trial.fitted_, task, reference)):
            notes.append(f"The trial of {k} steps is not finite on some rows, and is left out.")
            continue
        fitted = trial.fitted_
        words = f"{fitted.method.name} with {correction_name(fitted)} in {k} step{'s' if k > 1 else ''}"
        params = {name: getattr(trial, name) for name in ("base_solver", "n_steps", "correction")}
        if trial.order is not None:
            params["order"] = trial.order
        candidates[f"hyper-{fitted.solver_name}"] = Candidate(words, params, trial, is_hypersolver=True)
    for tolerance in (*_LOOSE, TIGHTEST):
        answer = partial(_dopri5, task.neural_ode, tolerance)
        try:
            answer(given(task.x, task.condition))
        except ReferenceSolveError:
            notes.append(f"dopri5 fails at a tolerance of {tolerance:g}.")
            continue
        candidates[dopri5_name(tolerance)] = Candidate(
            f"dopri5 at a tolerance of {tolerance:g}", {"rtol": tolerance}, answer=answer
        )
    return candidates, notes


def _classical(
    trial: Any, task: Task, reference: Tensor, evaluations: float | None
) -> tuple[dict[str, Candidate], list[str]]:
    """Return classical methods at equal evaluations, without those that others beat in evaluations and error."""
    base, found, errors, unsolved = trial.without_correction(), {}, [], []
    budgets = sorted({*_EVALUATIONS, *([] if evaluations is None else [int(evaluations)])})
    for name in _CLASSICAL:
        method = resolve_base_solver(name)
        for k in sorted({k for n in budgets if (k := _most_steps(method, n)) is not None}):
            estimator = base.with_solver(name, k)
            error = _quick_error(estimator.fitted_, task, reference)
            if not math.isfinite(error):
                unsolved.append(estimator.fitted_.solver_name)
                continue
            params = {"base_solver": name, "n_steps": k}
            words = f"{name} alone in {k} step{'s' if k > 1 else ''}"
            found[estimator.fitted_.solver_name] = Candidate(words, params, estimator)
            errors.append(error)
    costs = [one.fitted.method.count_evaluations(one.fitted.n_steps) for one in found.values()]
    best = pareto_front(costs, errors)
    notes = [f"Not finite on some rows, and left out: {', '.join(unsolved)}."] if unsolved else []
    return {name: one for (name, one), keep in zip(found.items(), best, strict=True) if keep}, notes


def _quick_error(fitted: FittedHypersolver, task: Task, reference: Tensor) -> float:
    """Return the mean relative error of the states; infinite where the field or the output map refuses them."""
    try:
        states = fitted.solve(task.x, task.condition)
        outputs = fitted.map_output(states)
    except Exception:  # far off the trajectory, a user's field or map may raise anything
        return math.inf
    if not (states.isfinite().all() and np.isfinite(outputs).all()):
        return math.inf
    return float(relative_l2(reference.cpu().numpy(), states.cpu().numpy()).mean())


def dopri5_name(tolerance: float) -> str:
    """Return the name that reports have for dopri5 at a tolerance."""
    return f"dopri5 {tolerance:g}"


def _dopri5(ode: Any, tolerance: float, rows: Inputs) -> tuple[Tensor, NDArray[np.float64]]:
    counted, (x, condition) = CountedField(ode.vector_field), apart(rows)
    with torch.no_grad():
        states = ode.solve(x, rtol=tolerance, field=counted, condition=condition)
    return states, np.full(len(x), float(counted.n_evaluations))


def measure_candidates(
    candidates: Mapping[str, Candidate], trial: Any, task: Task, reference: Tensor, batch_size: int
) -> SolverReport:
    """Return a report of all candidates; its accuracy is a classifier's agreement with the reference."""
    solvers = {name: one.fitted.module for name, one in candidates.items() if one.answer is None}
    answers = {name: one.answer for name, one in candidates.items() if one.answer is not None}
    answers.pop(dopri5_name(TIGHTEST), None)  # which every report has
    labels, to_labels = None, None
    if isinstance(trial, HypersolverClassifier):
        to_labels = trial._indices
        labels = to_labels(trial.fitted_.map_output(reference))
    report = measure_solvers(
        solvers, task, reference, labels, answers=answers, to_labels=to_labels, tolerance=TIGHTEST,
        floor=trial.mape_floor, batch_size=batch_size,
    )  # fmt: skip
    if labels is not None:
        return SolverReport(report.rows, [*report.notes, "Accuracy is the share of labels that dopri5 gives, too."])
    return report
