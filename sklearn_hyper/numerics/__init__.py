"""The numeric core: torch only, importable and useful without scikit-learn or skorch."""

from .adaptive import Adaptive
from .adaptive_solve import StepLimitError
from .correction import Correction
from .cost import CountedField, count_macs, count_nfe, relative_overhead, time_interleaved
from .methods import AdamsBashforth, Method, Nonstationary, RungeKutta, Step, StepKind, StepPlan, resolve_base_solver
from .protection import FieldInputs
from .reference import ReferenceSolveError, reference_solution
from .residuals import ConditioningWarning, Residual, compute_residuals
from .solve import hypersolve, hypersolve_trajectory
from .stepping import FixedMesh, Stepping
from .tableaus import ButcherTableau, alpha_family

__all__ = [
    "AdamsBashforth",
    "Adaptive",
    "ButcherTableau",
    "ConditioningWarning",
    "Correction",
    "CountedField",
    "FieldInputs",
    "FixedMesh",
    "Method",
    "Nonstationary",
    "ReferenceSolveError",
    "Residual",
    "RungeKutta",
    "Step",
    "StepKind",
    "StepLimitError",
    "StepPlan",
    "Stepping",
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
