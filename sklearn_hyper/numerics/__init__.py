"""The numeric core: torch only, importable and useful without scikit-learn or skorch."""

from .base_solvers import AdamsBashforth, BaseSolver, BaseStep, RungeKutta, resolve_base_solver
from .cost import CountedField, count_macs, count_nfe, relative_overhead, time_interleaved
from .nonstationary import Nonstationary
from .reference import ReferenceSolveError, reference_solution
from .residuals import ConditioningWarning, Residual, compute_residuals
from .solve import hypersolve, hypersolve_trajectory
from .tableaus import ButcherTableau, alpha_family

__all__ = [
    "AdamsBashforth",
    "BaseSolver",
    "BaseStep",
    "ButcherTableau",
    "ConditioningWarning",
    "CountedField",
    "Nonstationary",
    "ReferenceSolveError",
    "Residual",
    "RungeKutta",
    "alpha_family",
    "compute_residuals",
    "count_macs",
    "count_nfe",
    "hypersolve",
    "hypersolve_trajectory",
    "reference_solution",
    "relative_overhead",
    "resolve_base_solver",
    "time_interleaved",
]
