"""Go on from an earlier fit: with its method, and with corrections that serve the new one."""

from __future__ import annotations

from collections.abc import Sequence

from ..modules.corrections import BoundedCorrection
from ..numerics.methods import Method
from ..numerics.stepping import FixedMesh
from ..training.settings import FitSettings
from ..training.tasks import Task
from .choose import BaseSolverChoice, check_same_family
from .fitted import FittedHypersolver


def resume(
    choice: BaseSolverChoice, previous: Sequence[FittedHypersolver], tasks: Sequence[Task], settings: FitSettings
) -> BaseSolverChoice:
    """Return the method to go on with; refuse corrections of an earlier fit that cannot serve this one.

    Parameters
    ----------
    choice : BaseSolverChoice
        What a fit that starts anew would take.
    previous : sequence of FittedHypersolver
        The earlier fit, one for each task.

    Raises
    ------
    ValueError
        If the corrections share no net any more, are of another kind than ``settings`` asks for, or are made for
        another family of methods, other steps or another field.
    """
    _check_shared(previous)
    _check_kind(settings, previous[0])
    choice = _method_of(choice, previous[0].method, tasks[0], settings)
    _check_serves(previous, tasks, choice.method, settings)
    return choice


def base_of(previous: FittedHypersolver, method: Method) -> Method:
    """Return the method without a correction of a fit that goes on with the method of an earlier one."""
    return previous.base_method if previous.base_method is not None and method is previous.method else method


def _method_of(choice: BaseSolverChoice, fitted: Method, task: Task, settings: FitSettings) -> BaseSolverChoice:
    """Return the method that a warm start continues with, of the fitted family; "auto" keeps the fitted one."""
    if settings.base_solver == "auto" and settings.order is None:
        choice = BaseSolverChoice(fitted)
        choice.check_steps(settings)
        # Raises an error if learned coefficients are asked for another number of steps.
        fitted.mesh(task.neural_ode.t_span, settings.n_steps)
    check_same_family(choice.method, fitted, "fit another one, with warm_start=False")
    # Coefficients are not learned again, because the correction was fitted for these.
    return choice if choice.coefficients is None else BaseSolverChoice(fitted)


def _check_shared(previous: Sequence[FittedHypersolver]) -> None:
    """Refuse to go on from corrections that have been pickled one by one, and so share no net any more."""
    nets = [one.correction.net for one in previous if isinstance(one.correction, BoundedCorrection)]
    if len({tuple(id(parameter) for parameter in net.parameters()) for net in nets}) > 1:
        raise ValueError(
            "previous holds corrections with nets of their own, and a fit over several tasks trains one. Pass those of "
            "one fit, pickled as one list if at all, or previous=None."
        )


def _check_kind(settings: FitSettings, previous: FittedHypersolver) -> None:
    """Refuse to go on from changed weights with a net, or the other way round."""
    bends = not getattr(settings.correction, "learns_residuals", True)
    before = not getattr(previous.settings.correction, "learns_residuals", True)
    if bends != before:
        raise ValueError(
            f"correction={settings.correction!r} cannot go on from a fit with {previous.settings.correction!r}: one "
            "changes the weights of the field, the other is a net beside it. Fit another one, with warm_start=False."
        )


def _check_serves(
    previous: Sequence[FittedHypersolver], tasks: Sequence[Task], method: Method, settings: FitSettings
) -> None:
    """Refuse to go on from corrections that are made for other steps, or for another field."""
    for one, task in zip(previous, tasks, strict=False):
        if one.correction is not None:
            one.correction.check_steps(FixedMesh.of(method, task.neural_ode.t_span, settings.n_steps).plans)
            one.correction.check_field(task.neural_ode.vector_field)
