"""Refit a hypersolver to a Neural ODE that has been trained on: from the present correction, in a few epochs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..modules.corrections.field_module import FieldModule
from ..modules.neural_ode import NeuralODE
from ..training.tasks import Task
from .fit import fit_hypersolvers
from .fitted import FittedHypersolver

_NAMED = 3
"""Parameters that an error names."""


def refit_hypersolver(
    previous: FittedHypersolver,
    x: Tensor,
    neural_ode: NeuralODE | None = None,
    condition: Mapping[str, Any] | None = None,
    **changes: Any,
) -> FittedHypersolver:
    """Continue a fit on other rows, or for a field that has changed since.

    A net's units (scales, caps and floors) are measured again. Changes of weights go on in theirs, from the weights
    that the field has now. The method's coefficients are kept.

    Parameters
    ----------
    previous : FittedHypersolver
        The fit to continue.
    x : Tensor of shape (n, ...)
        Rows to fit on.
    neural_ode : NeuralODE, optional
        The Neural ODE to fit for, in eval mode. By default that of ``previous``.
    condition : mapping of str to Tensor, optional
        Keyword arguments of the field, with one entry for each row of x.
    **changes
        Settings to change, such as ``max_epochs``: a warm start needs fewer epochs.

    Returns
    -------
    FittedHypersolver
        Its ``errors_before`` has the errors of the correction as it was, and ``errors`` those after.

    Raises
    ------
    ValueError
        If there is no correction to continue. If the Neural ODE is of another architecture: the error says what
        differs.

    Examples
    --------
    >>> import torch
    >>> from sklearn_hyper import NeuralODE
    >>> from sklearn_hyper.hypersolvers import FitSettings, Task, fit_hypersolver, refit_hypersolver
    >>> x = torch.linspace(0.5, 1, 40)[:, None]
    >>> settings = FitSettings(n_steps=2, max_epochs=30, random_state=0)
    >>> fast = fit_hypersolver(Task(NeuralODE(lambda t, z: -z).eval(), x), settings)
    >>> moved = NeuralODE(lambda t, z: -1.2 * z).eval()
    >>> again = refit_hypersolver(fast, x, moved, max_epochs=60)
    >>> bool((again.solve(x) - again.reference(x)).abs().max() < 1e-2)
    True
    """
    if previous.correction is None:
        raise ValueError("previous has no correction to continue; use fit_hypersolver.")
    task = Task(previous.neural_ode if neural_ode is None else neural_ode, x, condition or {})
    settings = replace(previous.settings, **changes)
    check_same_architecture(previous.neural_ode, task.neural_ode, task.rows(slice(0, 2)).to(settings.device).x)
    return fit_hypersolvers([task], settings, [previous], refit_units=True)[0]


def check_same_architecture(before: NeuralODE, now: NeuralODE, x: Tensor) -> None:
    """Refuse a Neural ODE that is not the earlier one with other numbers in it.

    Parameters
    ----------
    before, now : NeuralODE
        On the device of x, in eval mode.
    x : Tensor of shape (n, ...)
        A few inputs.

    Raises
    ------
    ValueError
        If states, their dtype, the inputs of the field or its parameters differ; the error says what and how.
    """
    found = [
        f"{what} {was} before and {got} now"
        for what, was, got in zip(_COMPARED, _traits(before, x), _traits(now, x), strict=True)
        if was != got
    ]
    found = found or _other_parameters(before, now)
    if found:
        raise ValueError(
            f"neural_ode is of another architecture than the one that this hypersolver was fitted for: "
            f"{'; '.join(found)}. A refit takes the same one with other weights; fit a new hypersolver for this one."
        )


_COMPARED = ("its states have shape", "its states are of", "its field takes", "its outputs have shape")


def _traits(neural_ode: NeuralODE, x: Tensor) -> tuple[Any, ...]:
    with torch.no_grad():
        try:
            z = neural_ode.input_map(x.to(neural_ode.dtype or x.dtype))
        except RuntimeError as error:  # what torch raises for inputs of another size
            raise ValueError(
                f"X has rows of shape {tuple(x.shape[1:])}, which an input_map does not take: {error}. Pass rows as "
                "the Neural ODE takes them."
            ) from error
        outputs = neural_ode.output_map(z)
    takes = "(t, z, x)" if neural_ode.data_controlled else "(t, z)"
    return tuple(z.shape[1:]), z.dtype, takes, tuple(outputs.shape[1:])


def _other_parameters(before: NeuralODE, now: NeuralODE) -> list[str]:
    """Describe the parameters of the field by which two Neural ODEs differ: names and shapes of a few."""
    was, got = (
        {name: tuple(parameter.shape) for name, parameter in FieldModule(ode.vector_field).named_parameters()}
        for ode in (before, now)
    )
    names = [name for name in [*was, *(name for name in got if name not in was)] if was.get(name) != got.get(name)]
    described = [f"its field's {name} has {_shape(was, name)} before and {_shape(got, name)} now" for name in names]
    more = [f"and {len(names) - _NAMED} more parameters"] if len(names) > _NAMED else []
    return [*described[:_NAMED], *more]


def _shape(shapes: Mapping[str, Any], name: str) -> str:
    return f"shape {shapes[name]}" if name in shapes else "no values"
