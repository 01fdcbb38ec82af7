"""Fit hypersolvers and use them, on tensors and without scikit-learn; the estimators delegate to these functions."""

from ..training.settings import FitSettings, SolveSettings
from ..training.tasks import Task
from .choose import choose_base_solver
from .fit import fit_hypersolver, fit_hypersolvers
from .fitted import FittedHypersolver
from .refitting import refit_hypersolver

__all__ = [
    "FitSettings",
    "FittedHypersolver",
    "SolveSettings",
    "Task",
    "choose_base_solver",
    "fit_hypersolver",
    "fit_hypersolvers",
    "refit_hypersolver",
]
