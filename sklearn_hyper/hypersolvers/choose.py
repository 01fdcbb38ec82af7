"""Choose what "auto" stands for, and check that a method can serve a fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from ..modules.corrections import CorrectionSpec, ReachCorrection, WeightCorrection, resolve_spec
from ..modules.corrections.field_module import answers_to_weights
from ..numerics.methods import DEFAULT, NONSTATIONARY, Method, resolve_base_solver
from ..training.coefficients import LearnedCoefficients
from ..training.correction_fit import MAC_SHARE
from ..training.settings import FitSettings
from ..training.tasks import Task

_WIDE = 16
"""Pixels a side from which a few evaluations of a convolutional f do not see across an image. On 7 there is no gain."""
_FEW_DIMENSIONS = 4
"""Up to this many numbers in a state, a correction with a tenth of f's MACs beats learned coefficients."""


class BaseSolverChoice(NamedTuple):
    """A method to plan a fit with, and what learns its coefficients, if any."""

    method: Method
    coefficients: LearnedCoefficients | None = None
    """Learns the method that replaces this one before the correction is fitted; None for a fixed method."""

    def check_steps(self, settings: FitSettings) -> None:
        """Refuse numbers of steps so small that a multistep method takes start-up steps only."""
        for name in ("n_steps", "fit_n_steps"):
            value = getattr(settings, name)
            most = value[-1] if isinstance(value, tuple) else value
            n_startup = self.method.n_startup
            if n_startup and most is not None and most <= n_startup:
                raise ValueError(
                    f"{name}={value!r} with base_solver={self.method.name!r} makes start-up steps only; {name} must "
                    f"reach {n_startup + 1}, or use {_one_step_name(self.method)!r}."
                )


def choose_correction(settings: FitSettings, tasks: Sequence[Task], z: Tensor) -> CorrectionSpec:
    """Choose the correction of a fit.

    ``correction="auto"`` stands for:

    ==============================================================  ==================================================
    for                                                             the correction is
    ==============================================================  ==================================================
    one field with weights, ``base_solver="auto"``, a single        :class:`WeightCorrection`; on images of 16 pixels a
    number of steps and the terminal state                          side and more beside it a
                                                                    :class:`ReachCorrection`, if it takes at most a
                                                                    tenth of f's multiply-accumulates
    images (c, h, w)                                                :class:`ConvCorrection`
    all else                                                        :class:`MLPCorrection`
    ==============================================================  ==================================================

    Changed weights cost nothing at inference, and beat a net at the same number of evaluations. But they serve the
    number of steps of their fit alone. Who names a base solver, or asks for several numbers of steps, gets a net, which
    other methods of its family and other numbers of steps can take over.

    Parameters
    ----------
    settings : FitSettings
    tasks : sequence of Task
        A few rows of each task of the fit, on its device.
    z : Tensor
        Initial states of the first.
    """
    net = resolve_spec(settings.correction, z)
    if settings.is_adaptive and not net.learns_residuals:
        raise ValueError(
            f"correction={settings.correction!r} with stepping='adaptive': it changes the weights of f for steps that "
            "are known beforehand, and estimates no error. Take a net beside f, such as correction=MLPCorrection(), or "
            "stepping='fixed'."
        )
    if not (isinstance(settings.correction, str) and _is_free(settings) and len(tasks) == 1):
        return net
    (task,) = tasks
    if not answers_to_weights(task.neural_ode.vector_field, task.neural_ode.t_span, z, task.inputs):
        return net
    reach = ReachCorrection()
    is_thin = _is_of_wide_images(task, z) and reach.macs(z) <= _macs_budget(task)
    return WeightCorrection(beside=reach if is_thin else None)


def _is_of_wide_images(task: Task, z: Tensor) -> bool:
    x = task.inputs.x
    return z.ndim == 4 and min(z.shape[2:]) >= _WIDE and (x is None or x.shape[2:] == z.shape[2:])


def _macs_budget(task: Task) -> float:
    row = task.rows(slice(0, 1))
    return MAC_SHARE * row.neural_ode.count_field_macs(row.x, row.condition)


def _is_free(settings: FitSettings) -> bool:
    """Return whether the base solver is ours to choose, for one number of steps and the terminal state."""
    return settings.base_solver == "auto" and settings.order is None and _wants_one_end(settings)


def _wants_one_end(settings: FitSettings) -> bool:
    wants_terminal_state = settings.loss == "residual" and settings.finetune in ("terminal", "output")
    return settings.fit_n_steps in (None, settings.n_steps) and wants_terminal_state


def choose_base_solver(settings: FitSettings, n_state: int) -> BaseSolverChoice:
    """Choose the base method of a fit.

    Without ``order``, ``base_solver="auto"`` stands for:

    ==================================================================  =====================================
    for                                                                 the method is
    ==================================================================  =====================================
    ``stepping="adaptive"``                                             "rk4"
    a single step (``n_steps`` or ``fit_n_steps`` is 1)                 "euler"
    a net beside a field whose states have up to four numbers           "ab2"
    a fit at other numbers of steps than ``n_steps``                    "ab2"
    a ``loss`` or ``finetune`` that asks for the states between the     "ab2"
    ends, or for no training through the solver
    all else                                                            "nonstationary": learned coefficients
    ==================================================================  =====================================

    All of these evaluate f once a step. Learned coefficients serve a single number of steps and only the terminal
    state. For large states they gain more than a net, which is small beside the state. Under changed weights they gain
    for all. With ``order``, "auto" is the canonical Runge-Kutta method: euler, midpoint, rk3, rk4.

    Parameters
    ----------
    settings : FitSettings
        Its ``correction`` is what :func:`choose_correction` has chosen; "auto" counts as a net.
    n_state : int
        Number of values in a state.

    Returns
    -------
    BaseSolverChoice
        The method, and what learns its coefficients.

    Raises
    ------
    ValueError
        If the name is unknown, contradicts ``order``, or names a method that cannot serve these numbers of steps.
    TypeError
        If ``base_solver`` is not a name, tableau or method.

    Examples
    --------
    >>> from sklearn_hyper import MLPCorrection, WeightCorrection
    >>> from sklearn_hyper.hypersolvers import FitSettings, choose_base_solver
    >>> net, weights = (FitSettings(n_steps=4, correction=spec) for spec in (MLPCorrection(), WeightCorrection()))
    >>> [choose_base_solver(settings, 2).method.name for settings in (net, weights)]
    ['ab2', 'nonstationary']
    """
    _check_controller(settings)
    name = auto_name(settings, n_state)
    if name != NONSTATIONARY:
        choice = BaseSolverChoice(resolve_base_solver(name, settings.order))
        choice.check_steps(settings)
        _check_adaptive(settings, choice.method.name, choice.method.memory)
        if settings.step_controller == "learned" and choice.method.main_kind.nodes[0] != 0:
            raise ValueError(
                f"step_controller='learned' with base_solver={choice.method.name!r}, which does not evaluate f at the "
                "start of a step, from which its size is chosen. Take step_controller='pi'."
            )
        return choice
    _check_adaptive(settings, NONSTATIONARY, settings.n_steps)
    if settings.fit_n_steps not in (None, settings.n_steps):
        raise ValueError(
            f"fit_n_steps={settings.fit_n_steps!r} with base_solver={NONSTATIONARY!r}, whose coefficients are made for "
            f"n_steps={settings.n_steps} alone; leave fit_n_steps=None."
        )
    learned = LearnedCoefficients(settings)
    return BaseSolverChoice(resolve_base_solver(learned.start, settings.order), learned)


def _check_controller(settings: FitSettings) -> None:
    """Refuse a controller where there is nothing to control."""
    if settings.step_controller != "pi" and not settings.is_adaptive:
        raise ValueError(
            f"step_controller={settings.step_controller!r} with stepping={settings.stepping!r}, whose steps are all "
            "known beforehand. Pass stepping='adaptive', or leave step_controller='pi'."
        )


def _check_adaptive(settings: FitSettings, name: str, memory: int) -> None:
    """Refuse adaptive steps of a method, or over step sizes, that they cannot be."""
    if not settings.is_adaptive:
        return
    if memory:
        raise ValueError(
            f"base_solver={name!r} with stepping='adaptive': it remembers earlier steps, and its correction is made "
            "for steps that are planned beforehand. Take a Runge-Kutta method, such as 'rk4', which 'auto' stands for "
            "here, or stepping='fixed'."
        )
    for name, value, others in [("loss", settings.loss, "'residual'"), ("finetune", settings.finetune, "None")]:
        if value not in ("residual", None):
            raise ValueError(
                f"{name}={value!r} with stepping='adaptive': it trains through equal steps, and a correction that "
                f"estimates errors is trained on residuals alone. Pass {name}={others}."
            )
    if not isinstance(settings.fit_n_steps, tuple):
        raise ValueError(
            f"fit_n_steps={settings.fit_n_steps!r} with stepping='adaptive', whose steps are of many sizes: pass a "
            "pair (a, b), with the longest and shortest steps as |S|/a and |S|/b, or None for "
            "(n_steps / 4, 4 n_steps)."
        )


def auto_name(settings: FitSettings, n_state: int) -> Any:
    """Return ``base_solver``, or the name that "auto" stands for by the table of :func:`choose_base_solver`."""
    if settings.base_solver != "auto" or settings.order is not None:
        return settings.base_solver
    if settings.is_adaptive:
        return "rk4"
    if 1 in (settings.n_steps, settings.fit_n_steps):
        return "euler"
    is_learned = n_state > _FEW_DIMENSIONS or getattr(settings.correction, "tunes_method", False)
    return NONSTATIONARY if is_learned and _wants_one_end(settings) else DEFAULT


def check_same_family(method: Method, fitted: Method, advice: str) -> None:
    """Refuse a method that cannot take over a correction fitted for another.

    The steps of both, start-up steps included, must have the same orders and numbers of stages.
    """
    if _families(method) != _families(fitted):
        raise ValueError(
            f"base_solver {method.name!r} ({_describe(method)}) cannot take over the correction fitted for "
            f"{fitted.name!r} ({_describe(fitted)}); {advice}."
        )


def _families(method: Method) -> tuple[Any, ...]:
    return method.memory, tuple(kind.family for kind in method.kinds)


def _describe(method: Method) -> str:
    startup = f", {method.memory} start-up steps" if method.memory else ""
    return f"order {method.order}, {method.n_stages} stages{startup}"


def _one_step_name(method: Method) -> str:
    """Return the name of a one-step method that evaluates f where a multistep method's first step does."""
    first = method.kinds[0]
    matching = (
        name
        for name in ("euler", "midpoint", "heun", "rk3")
        if resolve_base_solver(name).main_kind.nodes == first.nodes
    )
    return next(matching, "midpoint")
