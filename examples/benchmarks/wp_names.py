"""What is measured in work_precision.py: the settings of every solver, and which problem has which solvers and seeds."""

from __future__ import annotations

from typing import Any

BUDGETS = (2, 4, 8)
"""Evaluations of f that solvers are compared at."""
MANY_DIMENSIONS = ("wine", "digits", "mnist")
ALTERNATIVES = ("euler", "ab2", "nonstationary")
"""Our base solvers of one evaluation a step; the default is ab2, in many dimensions nonstationary."""
# Ours: arguments of HypersolverRegressor; everything else is its default.
OURS: dict[str, dict[str, Any]] = {
    **{f"default {nfe} NFE": {"n_steps": nfe} for nfe in BUDGETS},
    **{f"{base} {nfe} NFE": {"base_solver": base, "n_steps": nfe} for base in ALTERNATIVES for nfe in BUDGETS},
    "generalist": {"n_steps": 4, "fit_n_steps": (1, 16)},
}
COMPARED = ("van_der_pol", "moons flow_matching", "moons likelihood", "wine", "digits")
"""Problems, one of a family, that our alternatives to the default, time grids and torchdyn are tried on."""
TIMED = (*COMPARED, "mnist")
"""Problems whose solvers are timed."""
GENERALIST_STEPS = (1, 2, 4, 8, 16)
CLASSICAL = {
    "euler": (1, 2, 3, 4, 5, 6, 8, 9, 12, 16, 32),
    "midpoint": (1, 2, 3, 4, 5, 8, 16),
    "heun": (1, 2, 3, 4, 5, 8, 16),
    "ralston": (1, 2, 3, 4, 5, 8, 16),
    "rk3": (1, 2, 3, 4),
    "rk4": (1, 2, 3, 4, 8),
    "ab2": (2, 3, 4, 5, 6, 8, 9, 12, 16, 32),
    "ab3": (2, 3, 4, 5, 6, 8, 12, 16),
    "ab4": (2, 3, 4, 5, 6, 8, 12, 16),
}
ROUNDED_UP = (3, 5, 9)
"""Ours with g rounded up to whole evaluations of f: what solvers without g may use, and what is best for them."""
WITHOUT_MACS = ("pendulum", "van_der_pol", "forced_van_der_pol", "forced_oscillator")
"""Problems that are compared at equal evaluations."""
PUBLISHED = {
    "reference (i), published budget": ("moons flow_matching",),
    "reference (ii), published budget": ("moons likelihood",),
}
ONCE = (
    *(f"ours {base}" for base in (*ALTERNATIVES, "generalist")),
    "time grid", "torchdyn", "flow map", "reference (i) K=1", "reference (ii) K=4", "BNS 8 NFE", "BNS 9 NFE",
)  # fmt: skip
"""One seed, to stay within four hours: variants of ours, and the trained rivals that no target is about."""


def solver_names(problem: str) -> list[str]:
    """Solvers of a problem, ours first."""
    most = BUDGETS if problem in WITHOUT_MACS else ROUNDED_UP
    return [
        *(f"ours {name}" for name in OURS if not name.startswith(ALTERNATIVES) or _is_compared(problem, name)),
        "classical", "dopri5", "torchode",
        *(f"reference (i) K={k}" for k in (1, 2, 4, 8)),
        *(f"reference (ii) K={k}" for k in (1, 2, 4)),
        *(f"BNS {n} NFE" for n in most),
        *(f"time grid {n} NFE" for n in most if problem in COMPARED),
        "flow map, size of g", "flow map, size of f",
        *(f"torchdyn K={k}" for k in (2, 4, 8) if problem in COMPARED),
        *(name for name, problems in PUBLISHED.items() if problem in problems),
    ]  # fmt: skip


def _is_compared(problem: str, setting: str) -> bool:
    """Whether another base solver than the default is tried on a problem."""
    default = "nonstationary" if problem in MANY_DIMENSIONS else "ab2"
    return problem in COMPARED and not setting.startswith(default)


def is_seeded(solver: str) -> bool:
    """Whether the seed makes a difference."""
    return solver not in ("classical", "dopri5", "torchode", "milliseconds")
