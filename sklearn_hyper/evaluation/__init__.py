"""Compare solvers and choose among them: Pareto fronts, displays, label-free scorers. Nothing imports this ring."""

from .density_display import DensityDisplay
from .displays import ParetoDisplay
from .pareto import pareto_front
from .scorers import agreement_scorer, neg_mape_scorer

__all__ = ["DensityDisplay", "ParetoDisplay", "agreement_scorer", "neg_mape_scorer", "pareto_front"]
