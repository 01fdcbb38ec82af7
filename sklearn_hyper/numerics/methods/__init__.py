"""Fixed-step methods: the contract (``method``), one file for each family, and names (``resolve``)."""

from .adams_bashforth import AdamsBashforth, adams_bashforth_weights
from .method import Field, Method, Step, StepKind, StepPlan
from .nonstationary import NONSTATIONARY, Nonstationary, compose_predictor_corrector, compose_tableaus
from .resolve import CANONICAL, DEFAULT, NAMES, resolve_base_solver
from .runge_kutta import RungeKutta, leading_error

__all__ = [
    "CANONICAL",
    "DEFAULT",
    "NAMES",
    "NONSTATIONARY",
    "AdamsBashforth",
    "Field",
    "Method",
    "Nonstationary",
    "RungeKutta",
    "Step",
    "StepKind",
    "StepPlan",
    "adams_bashforth_weights",
    "compose_predictor_corrector",
    "compose_tableaus",
    "leading_error",
    "resolve_base_solver",
]
