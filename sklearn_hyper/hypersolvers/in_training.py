"""Fit the correction that a training solves with: warm, on a few rows, in a few epochs."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

from ..modules.neural_ode import NeuralODE
from ..numerics.residuals import ConditioningWarning
from ..training.given_rows import Inputs, apart
from ..training.settings import FitSettings
from ..training.tasks import Task
from .fit import fit_hypersolver
from .fitted import FittedHypersolver
from .refitting import refit_hypersolver

_FIRST, _AGAIN, _LAST = 20, 10, 60
"""Epochs of the first fit, of a refit, and of the fit that the training leaves behind."""
_BATCH_SIZE = 64


def correct_in_training(
    neural_ode: NeuralODE,
    x: Inputs,
    settings: Any,
    previous: FittedHypersolver | None,
    *,
    last: bool = False,
    seed: int | None = None,
) -> FittedHypersolver:
    """Fit a correction for a field in training.

    Parameters
    ----------
    neural_ode : NeuralODE
        As it is now, in eval mode. A frozen copy is fitted for.
    x : Tensor of shape (n, ...), or GivenRows
        Rows to fit on.
    settings : TrainingSettings
        Of the training: base solver, steps and device. References have the tolerance of every fit.
    previous : FittedHypersolver or None
        The fit to go on from; None starts anew, and so does one that fell back to its base solver.
    last : bool, default False
        Fit for longer, since this fit is to be kept.
    seed : int, optional
        Seed of the fit.

    Returns
    -------
    FittedHypersolver

    Raises
    ------
    ReferenceSolveError, ValueError
        As :func:`fit_hypersolver`.
    """
    fit = FitSettings(
        base_solver=settings.base_solver, n_steps=settings.n_steps, device=settings.device, max_epochs=_FIRST,
        batch_size=_BATCH_SIZE, max_samples=len(x), random_state=seed,
    )  # fmt: skip
    epochs, (rows, condition) = _LAST if last else _AGAIN, apart(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConditioningWarning)  # of residuals that are solved for again, in every refit
        if previous is None or previous.correction is None:
            return fit_hypersolver(Task(neural_ode, rows, condition), replace(fit, max_epochs=_LAST) if last else fit)
        return refit_hypersolver(previous, rows, neural_ode, condition, max_epochs=epochs)
