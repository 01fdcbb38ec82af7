"""Compare solvers and choose among them: Pareto fronts, displays, scorers, budgets."""

from .budget import cheapest_within
from .density_display import DensityDisplay
from .displays import ParetoDisplay
from .pareto import pareto_front
from .scorers import agreement_scorer, neg_macs_scorer, neg_mape_scorer, neg_nfe_scorer

__all__ = [
    "DensityDisplay",
    "ParetoDisplay",
    "agreement_scorer",
    "cheapest_within",
    "neg_macs_scorer",
    "neg_mape_scorer",
    "neg_nfe_scorer",
    "pareto_front",
]
