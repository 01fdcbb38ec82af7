"""Compare solvers and choose among them: advice, Pareto fronts, displays, scorers, budgets."""

from .advice import Advice, advise
from .budget import cheapest_within
from .coverage_display import CoverageDisplay
from .density_display import DensityDisplay
from .displays import ParetoDisplay
from .pareto import pareto_front
from .row_error_display import RowErrorDisplay
from .scorers import agreement_scorer, neg_macs_scorer, neg_mape_scorer, neg_nfe_scorer
from .trajectory_display import TrajectoryDisplay

__all__ = [
    "Advice",
    "CoverageDisplay",
    "DensityDisplay",
    "ParetoDisplay",
    "RowErrorDisplay",
    "TrajectoryDisplay",
    "advise",
    "agreement_scorer",
    "cheapest_within",
    "neg_macs_scorer",
    "neg_mape_scorer",
    "neg_nfe_scorer",
    "pareto_front",
]
