"""Prepare a user's Neural ODE for a fit: check it, and settle what would go wrong silently."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from ..modules.copies import check_saveable, freeze
from ..modules.field_probes import PROBED_ROWS, settle_parts
from ..modules.neural_ode import NeuralODE, check_neural_ode
from ..training.settings import FitSettings
from ..training.tasks import Task
from .choose import choose_base_solver


def prepare_neural_ode(
    neural_ode: NeuralODE,
    x: Tensor,
    settings: FitSettings,
    check_output: Callable[[Tensor], object] | None = None,
    condition: Mapping[str, Any] | None = None,
) -> Tensor:
    """Check a frozen copy of a Neural ODE before any solve, and prepare it in place; return two initial states.

    Parameters
    ----------
    neural_ode : NeuralODE
        A copy, on the device of the fit. Its parts may be wrapped.
    x : Tensor
        A few rows, in its dtype and on that device.
    settings : FitSettings
        Settings of the fit.
    check_output : callable, optional
        ``check_output(z)`` refuses wrong outputs of states. It is called before the parts are probed.
    condition : mapping of str to Tensor, optional
        Keyword arguments of the field, for these rows.

    Raises
    ------
    VectorFieldError
        If a signature, shape or dtype is wrong, or a part is random or mixes rows.
    ValueError
        If the fit has to pickle the Neural ODE and cannot.

    Warns
    -----
    GradientWarning, PersistenceWarning
        As :meth:`HypersolverRegressor.fit`.
    """
    few_rows, two_rows = (Task(neural_ode, x, condition or {}).rows(slice(0, n)) for n in (PROBED_ROWS, 2))
    z = check_neural_ode(neural_ode, two_rows.x, two_rows.condition)
    if check_output is not None:
        check_output(z)
    check_saveable(neural_ode, needed_for=_pickling_parameter(settings))
    trains_through = settings.loss != "residual" or settings.finetune is not None
    learns_coefficients = choose_base_solver(settings, 0).coefficients is not None
    settle_parts(neural_ode, few_rows.x, few_rows.condition, differentiates=trains_through or learns_coefficients)
    freeze(neural_ode)  # frozen last, because a field may make its layers at its first call
    return z


def _pickling_parameter(settings: FitSettings) -> str | None:
    """Return the parameter that makes a fit pickle the Neural ODE, if there is one."""
    if settings.memory is not None:
        return f"memory={settings.memory!r}"
    return None if settings.n_jobs in (None, 1) else f"n_jobs={settings.n_jobs}"
