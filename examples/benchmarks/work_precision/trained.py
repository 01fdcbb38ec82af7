"""Trials of what others train: reference recipes, learned coefficients, flow maps and torchdyn's hypersolver."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from .amed import Amed, fit_amed
from .cells import Trial
from .contenders import BUDGETS
from .fine_tuned import FineTunedCopy, fit_copy
from .flow_maps import FlowMapNet, fit_flow_map
from .linear_solvers import BespokeNonStationary, LearnedGrid, LinearSolver, fit_linear, linear_bases
from .loading import LoadedProblem
from .measuring import Measured, Stopwatch, make_row, measure, validation_error
from .peer_jobs import TorchdynJob
from .place import Place
from .recipes import (
    ReferenceHyperEuler,
    ReferenceHyperHeun,
    TorchdynHyperEuler,
    fit_endpoint,
    fit_published_hypereuler,
    fit_published_hyperheun,
    fit_residuals,
)
from .runs import Row, Run

Trace = list[dict[str, float]]


def _timed(fit: Callable[[], Trace]) -> dict[str, Any]:
    """What a fit took, and its validation errors on the way (four of them)."""
    with Stopwatch() as watch:
        trace = fit()
    return watch.facts() | {"iterations": trace[-1]["iteration"], "trace": trace[:: max(1, len(trace) // 4)]}


def measure_torchdyn(trial: Trial, loaded: LoadedProblem, place: Place) -> Measured:
    """torchdyn's HyperEuler, its g trained by recipe (i) for this number of steps, run by the package."""
    model = TorchdynHyperEuler(loaded, trial.contender.n_steps)
    facts = _timed(lambda: fit_residuals(model, loaded, trial.seed))
    answer = place.ask_peers(loaded, {"own": TorchdynJob(model.net, model.n_steps)})["own"]
    row = measure(loaded, Run(), model)  # for the MACs; errors and evaluations are the package's
    return Measured([replace(make_row(loaded, Run(), answer.nfe, 0.0, answer.states), macs=row.macs)], facts)


# ---------------------------------------------------------------------- reference recipes
def measure_recipe(trial: Trial, loaded: LoadedProblem, place: Place) -> Measured:
    """Recipe (i) or (ii) at our budget, trained at the step size it is used with."""
    contender = trial.contender
    build, fit = {"i": (ReferenceHyperEuler, fit_residuals), "ii": (ReferenceHyperHeun, fit_endpoint)}[contender.recipe]
    model = build(loaded, contender.n_steps)
    facts = _timed(lambda: fit(model, loaded, trial.seed))
    rows = _rows_of_recipe(loaded, model, contender.n_steps)
    if contender.one_step_size:  # the published use: trained at one small step, used at all
        for n_steps in (1, *BUDGETS):
            rows += _rows_of_recipe(loaded, model, n_steps, refitted=False)
    model.n_steps, model.shared = contender.n_steps, False
    place.keep(model, trial)
    return Measured(rows, facts)


def measure_published(trial: Trial, loaded: LoadedProblem, place: Place) -> Measured:
    """A recipe as published: its budget, its one step size, its width; also at other step counts."""
    fit, steps = {
        "i": (fit_published_hypereuler, (1, 2, 4, 9)),
        "ii": (fit_published_hyperheun, (1, 2)),
    }[trial.contender.recipe]
    models = []

    def fit_one() -> Trace:
        model, trace = fit(loaded, trial.seed)
        models.append(model)
        return trace

    facts = _timed(fit_one)
    return Measured([row for n_steps in steps for row in _rows_of_recipe(loaded, models[0], n_steps)], facts)


def measure_paper_sized(trial: Trial, loaded: LoadedProblem, place: Place) -> Measured:
    """Recipe (i) with a g of the paper's share of f, trained at the step size it is used with; f is shared with it."""
    contender = trial.contender
    model = ReferenceHyperEuler(loaded, contender.n_steps, share=contender.SHARE)
    model.shared = True
    facts = _timed(lambda: fit_residuals(model, loaded, trial.seed))
    place.keep(model, trial)
    return Measured([measure(loaded, Run(n_steps=contender.n_steps, shares_f=True), model)], facts)


def _rows_of_recipe(
    loaded: LoadedProblem, model: ReferenceHyperEuler | ReferenceHyperHeun, n_steps: int, *, refitted: bool = True
) -> list[Row]:
    """At the evaluations its code makes and, the same numbers, at those that it could do with."""
    model.n_steps, rows = n_steps, []
    for shared in (False, True):
        model.shared = shared
        rows.append(measure(loaded, Run(n_steps=n_steps, shares_f=shared, refitted=refitted), model))
    return rows


# ---------------------------------------------------------------------- from f's weights and layers
def measure_fine_tuned(trial: Trial, loaded: LoadedProblem, place: Place) -> Measured:
    """Euler steps of a copy of f that is trained on."""
    model = FineTunedCopy(loaded, trial.contender.n_steps)
    facts = _timed(lambda: fit_copy(model, loaded, trial.seed))
    place.keep(model, trial)
    return Measured([measure(loaded, Run(), model, [model.neural_ode.vector_field])], facts)


def measure_amed(trial: Trial, loaded: LoadedProblem, place: Place) -> Measured:
    """Times and lengths of second evaluations from f's hidden layer."""
    model = Amed(loaded, trial.contender.n_steps)
    facts = _timed(lambda: fit_amed(model, loaded, trial.seed))
    return Measured([measure(loaded, Run(), model)], facts)


# ---------------------------------------------------------------------- without a correction
def measure_bns(trial: Trial, loaded: LoadedProblem, place: Place) -> Measured:
    """BNS, started from the classical method that does best."""
    n = trial.contender.n_evaluations
    starts = [BespokeNonStationary(loaded, n, base) for base in BespokeNonStationary.bases(n)]
    return _measure_linear(trial, loaded, place, [starts], n)


def measure_time_grid(trial: Trial, loaded: LoadedProblem, place: Place) -> Measured:
    """Learned step sizes of each classical method in turn; the one that does best on validation rows counts."""
    n = trial.contender.n_evaluations
    return _measure_linear(trial, loaded, place, [[LearnedGrid(loaded, n, base)] for base in linear_bases(n)], n)


def _measure_linear(
    trial: Trial, loaded: LoadedProblem, place: Place, groups: list[list[LinearSolver]], n: int
) -> Measured:
    """One model of each group is trained, in an equal share of the seconds."""
    models: list[LinearSolver] = []

    def fit() -> Trace:
        seconds = loaded.seconds_for(n) / len(groups)
        for starts in groups:
            model, trace = fit_linear(starts, loaded, trial.seed, seconds)
            models.append(model)
        return trace

    facts = _timed(fit)
    best = min(models, key=lambda model: validation_error(model, loaded))
    place.keep(best, trial)
    return Measured([measure(loaded, Run(), best)], facts)


def measure_flow_map(trial: Trial, loaded: LoadedProblem, place: Place) -> Measured:
    """A net from the input to the terminal state."""
    model = FlowMapNet(loaded, trial.contender.size_of)
    facts = _timed(lambda: fit_flow_map(model, loaded, trial.seed))
    place.keep(model, trial)
    return Measured([measure(loaded, Run(), model)], facts)
