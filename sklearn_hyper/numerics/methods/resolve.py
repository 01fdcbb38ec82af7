"""Resolve a name, a tableau or an order to a method."""

from __future__ import annotations

from typing import Any

from ..tableaus import TABLEAUS, ButcherTableau
from .adams_bashforth import AdamsBashforth
from .method import Method
from .nonstationary import NONSTATIONARY
from .predictor_corrector import PredictorCorrector
from .runge_kutta import RungeKutta

CANONICAL = {1: "euler", 2: "midpoint", 3: "rk3", 4: "rk4"}
"""The method that ``base_solver="auto"`` means, by order."""

DEFAULT = "ab2"
"""The method that ``base_solver="auto"`` means without an order: one evaluation of f per step, starting with Euler."""

MULTISTEP: dict[str, Method] = {
    method.name: method for method in (*map(AdamsBashforth, (2, 3, 4)), *map(PredictorCorrector, (1, 2)))
}
"""Methods that have no tableau, by name."""

NAMES = (*sorted(TABLEAUS), *MULTISTEP)
"""Of every method that has one."""


def resolve_base_solver(base_solver: Any = "auto", order: int | None = None) -> Method:
    """Return the method that a user's ``base_solver`` and ``order`` mean.

    Parameters
    ----------
    base_solver : str, ButcherTableau or Method
        ``"auto"`` is the canonical method of ``order`` (euler, midpoint, rk3, rk4 for 1 to 4), or ``"ab2"`` without an
        order. ``"ab2"``, ``"ab3"`` and ``"ab4"`` are :class:`AdamsBashforth`. ``"abm2"`` and ``"abm2_pec"`` are
        :class:`PredictorCorrector` with two evaluations and with one. All other names are tableaus.
    order : int, optional
        Chooses the method with ``"auto"``. Otherwise it must agree with the method.

    Returns
    -------
    Method

    Raises
    ------
    ValueError
        If the name is unknown, or ``order`` contradicts the method.
    TypeError
        If ``base_solver`` is of another type.

    Examples
    --------
    >>> from sklearn_hyper.numerics import resolve_base_solver
    >>> resolve_base_solver("auto", order=2).name
    'midpoint'
    """
    if order is not None and (isinstance(order, bool) or order not in range(1, 6)):
        raise ValueError(f"order must be None or an integer from 1 to 5, got {order!r}.")
    if isinstance(base_solver, str):
        name = DEFAULT if base_solver == "auto" and order is None else base_solver
        method: Method = MULTISTEP.get(name) or RungeKutta(_named_tableau(name, order))
    elif isinstance(base_solver, ButcherTableau):
        method = RungeKutta(base_solver)
    elif isinstance(base_solver, Method):
        method = base_solver
    else:
        raise TypeError(
            f"base_solver must be a name ({', '.join(NAMES)}, auto), a ButcherTableau or a numerics.Method, "
            f"got {type(base_solver).__name__}."
        )
    if order is not None and order != method.order:
        raise ValueError(
            f"order={order} contradicts base_solver={method.name!r}, which has order {method.order}; "
            "leave order=None, or search over a list of dicts, one per solver."
        )
    return method


def _named_tableau(name: str, order: int | None) -> ButcherTableau:
    if name == "auto":
        if order not in CANONICAL:
            raise ValueError(
                f"base_solver='auto' knows orders {sorted(CANONICAL)}, got order={order}; pass a ButcherTableau "
                "instead."
            )
        name = CANONICAL[order]
    if name == NONSTATIONARY:
        raise ValueError(
            f"base_solver={NONSTATIONARY!r} is learned by an estimator's fit; here pass its base_solver_, or a "
            "Nonstationary."
        )
    if name not in TABLEAUS:
        raise ValueError(
            f"base_solver={name!r} is unknown; valid names are {', '.join(NAMES)}, 'auto' and, for estimators, "
            f"{NONSTATIONARY!r}; or pass a ButcherTableau (alpha_family(0.7), say)."
        )
    return TABLEAUS[name]
