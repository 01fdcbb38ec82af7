"""Make a user's Neural ODE one that a fit can rely on."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..modules.copies import check_saveable, freeze
from ..modules.field_probes import PROBED_ROWS, settle_parts
from ..modules.neural_ode import NeuralODE, check_neural_ode
from ..training.settings import FitSettings
from .choose import choose_base_solver


def prepare_neural_ode(
    neural_ode: NeuralODE, x: Tensor, settings: FitSettings, check_output: Callable[[Tensor], object] | None = None
) -> Tensor:
    """Check a frozen copy of a Neural ODE before any solve, and settle what would go wrong silently; return two states.

    Parameters
    ----------
    neural_ode : NeuralODE
        A copy, on the device of the fit: parts of it may be wrapped.
    x : Tensor
        A few rows, in its dtype and on that device.
    settings : FitSettings
    check_output : callable, optional
        Called with the states, before the parts are probed: what the outputs have to be.

    Raises
    ------
    VectorFieldError
        If a signature, shape or dtype is wrong, or a part is random or mixes rows.
    ValueError
        If the fit has to pickle the Neural ODE, and it cannot be.

    Warns
    -----
    GradientWarning, PersistenceWarning
    """
    x = x[:PROBED_ROWS]
    z = check_neural_ode(neural_ode, x[:2])
    if check_output is not None:
        check_output(z)
    check_saveable(neural_ode, needed_for=_pickling_parameter(settings))
    trains_through = settings.loss != "residual" or settings.finetune is not None
    learns_coefficients = choose_base_solver(settings, 0).coefficients is not None
    settle_parts(neural_ode, x, differentiates=trains_through or learns_coefficients)
    freeze(neural_ode)  # a field may make its layers when it is called first
    return z


def _pickling_parameter(settings: FitSettings) -> str | None:
    """The parameter for which a fit pickles the Neural ODE."""
    if settings.memory is not None:
        return f"memory={settings.memory!r}"
    return None if settings.n_jobs in (None, 1) else f"n_jobs={settings.n_jobs}"
