"""Trials: how each kind of contender is measured, in a process of its own."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from _results import finite

from sklearn_hyper.estimators import TrainingDivergedError
from sklearn_hyper.numerics import ReferenceSolveError

from . import contenders as kinds
from .cells import Outcome, Trial
from .loading import LoadedProblem
from .measuring import Measured
from .ours import measure_ours
from .place import Place
from .trained import (
    measure_amed,
    measure_bns,
    measure_fine_tuned,
    measure_flow_map,
    measure_paper_sized,
    measure_published,
    measure_recipe,
    measure_time_grid,
    measure_torchdyn,
)
from .untrained import measure_classical, measure_dopri5, measure_torchode

DIVERGED = (TrainingDivergedError, ReferenceSolveError, FloatingPointError)

MEASURES: dict[type[kinds.Contender], Callable[[Trial, LoadedProblem, Place], Measured]] = {
    kinds.Ours: measure_ours,
    kinds.Classical: measure_classical,
    kinds.Dopri5: measure_dopri5,
    kinds.Torchode: measure_torchode,
    kinds.Recipe: measure_recipe,
    kinds.PublishedRecipe: measure_published,
    kinds.BNS: measure_bns,
    kinds.TimeGrid: measure_time_grid,
    kinds.FlowMap: measure_flow_map,
    kinds.Torchdyn: measure_torchdyn,
    kinds.PaperSized: measure_paper_sized,
    kinds.FineTuned: measure_fine_tuned,
    kinds.ScalarPredictor: measure_amed,
}


def run_trial(trial: Trial, place: Place) -> Outcome:
    """Measure a contender on a problem, and what that took."""
    torch.set_num_threads(1)
    torch.manual_seed(trial.seed or 0)
    start, cpu = time.perf_counter(), time.process_time()
    loaded = place.load(trial.problem)
    loading = time.process_time() - cpu
    try:
        found = MEASURES[type(trial.contender)](trial, loaded, place)
    except DIVERGED as error:
        found = Measured([], {"diverged": f"{type(error).__name__}: {error}"})
    facts: dict[str, Any] = {
        **found.facts,
        "cpu_seconds": time.process_time() - cpu - loading,
        "seconds": time.perf_counter() - start,
    }
    return Outcome(finite(loaded.macs_f), tuple(found.rows), found.base, finite(facts))
