"""Compare solvers and choose among them: Pareto fronts, displays, label-free scorers. Nothing imports this ring."""

from .displays import ParetoDisplay
from .pareto import pareto_front
from .scorers import agreement_scorer, neg_mape_scorer

__all__ = ["ParetoDisplay", "agreement_scorer", "neg_mape_scorer", "pareto_front"]
