"""What ``base_solver="auto"`` stands for, and whether a method can serve a fit at all."""

from __future__ import annotations

from typing import Any, NamedTuple

from ..numerics.methods import DEFAULT, NONSTATIONARY, Method, resolve_base_solver
from ..training.coefficients import LearnedCoefficients
from ..training.settings import FitSettings

_FEW_DIMENSIONS = 4
"""Up to here a correction with a tenth of f's MACs knows the state well; beyond, learned coefficients are worth more."""


class BaseSolverChoice(NamedTuple):
    """A method to plan a fit with, and how its coefficients are learned before."""

    method: Method
    coefficients: LearnedCoefficients | None = None
    """What learns the method that takes its place; None for a method that is as it is."""

    def check_steps(self, settings: FitSettings) -> None:
        """Refuse so few steps that a multistep method never leaves its start-up."""
        for name in ("n_steps", "fit_n_steps"):
            value = getattr(settings, name)
            most = value[-1] if isinstance(value, tuple) else value
            n_startup = self.method.n_startup
            if n_startup and most is not None and most <= n_startup:
                raise ValueError(
                    f"{name}={value!r} with base_solver={self.method.name!r} makes start-up steps only; {name} must "
                    "reach "
                    f"{n_startup + 1}, or use {_startup_name(self.method)!r}."
                )


def choose_base_solver(settings: FitSettings, n_state: int) -> BaseSolverChoice:
    """Choose the base method of a fit.

    Without ``order``, ``base_solver="auto"`` stands for:

    ==================================================================  =====================================
    for                                                                 the method is
    ==================================================================  =====================================
    a single step (``n_steps`` or ``fit_n_steps`` is 1)                 "euler"
    states of up to four numbers                                        "ab2"
    a fit at other numbers of steps than ``n_steps``                    "ab2"
    a ``loss`` or ``finetune`` that asks for the states between the     "ab2"
    ends, or for no training through the solver
    all else                                                            "nonstationary": learned coefficients
    ==================================================================  =====================================

    All of these evaluate f once a step. Learned coefficients serve one number of steps and the terminal state alone,
    and are worth more than a correction that is small beside a large state. With ``order``, "auto" is the canonical
    Runge-Kutta method: euler, midpoint, rk3, rk4.

    Parameters
    ----------
    settings : FitSettings
    n_state : int
        Numbers in a state.

    Returns
    -------
    BaseSolverChoice

    Raises
    ------
    ValueError
        If the name is unknown, ``order`` contradicts it, or the method cannot serve these numbers of steps.
    TypeError
        If ``base_solver`` is no name, tableau or method.

    Examples
    --------
    >>> from sklearn_hyper.hypersolvers import FitSettings, choose_base_solver
    >>> [choose_base_solver(FitSettings(n_steps=4), n_state).method.name for n_state in (2, 64)]
    ['ab2', 'nonstationary']
    """
    name = auto_name(settings, n_state)
    if name != NONSTATIONARY:
        choice = BaseSolverChoice(resolve_base_solver(name, settings.order))
        choice.check_steps(settings)
        return choice
    if settings.fit_n_steps not in (None, settings.n_steps):
        raise ValueError(
            f"fit_n_steps={settings.fit_n_steps!r} with base_solver={NONSTATIONARY!r}, whose coefficients are made for "
            f"n_steps={settings.n_steps} alone; leave fit_n_steps=None."
        )
    learned = LearnedCoefficients(settings)
    return BaseSolverChoice(resolve_base_solver(learned.start, settings.order), learned)


def auto_name(settings: FitSettings, n_state: int) -> Any:
    """``base_solver``, or the name that "auto" stands for: the table of :func:`choose_base_solver`."""
    if settings.base_solver != "auto" or settings.order is not None:
        return settings.base_solver
    if 1 in (settings.n_steps, settings.fit_n_steps):
        return "euler"
    wants_one = settings.fit_n_steps in (None, settings.n_steps)
    wants_terminal_state = settings.loss == "residual" and settings.finetune in ("terminal", "output")
    return NONSTATIONARY if n_state > _FEW_DIMENSIONS and wants_one and wants_terminal_state else DEFAULT


def check_same_family(method: Method, fitted: Method, advice: str) -> None:
    """Refuse a method that a correction fitted for another cannot run with.

    Both have to take steps of the same families: order and number of stages, of start-up steps, too.
    """
    if _families(method) != _families(fitted):
        raise ValueError(
            f"base_solver {method.name!r} ({_describe(method)}) cannot take over the correction fitted for "
            f"{fitted.name!r} "
            f"({_describe(fitted)}); {advice}."
        )


def _families(method: Method) -> tuple[Any, ...]:
    return method.memory, tuple(kind.family for kind in method.kinds)


def _describe(method: Method) -> str:
    startup = f", {method.memory} start-up steps" if method.memory else ""
    return f"order {method.order}, {method.n_stages} stages{startup}"


def _startup_name(method: Method) -> str:
    """A one-step method that takes the steps that a multistep method starts with."""
    first = method.kinds[0]
    return next(
        name
        for name in ("euler", "midpoint", "heun", "rk3")
        if resolve_base_solver(name).main_kind.nodes == first.nodes
    )
