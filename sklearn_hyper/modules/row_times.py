"""How time enters a field. Rows can step apart where it does not, or where the field takes one time a row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..numerics.times import time_tensor
from .field_probes import PROBED_ROWS, differ
from .neural_ode import NeuralODE, VectorFieldError, call_field

_PROBED_TIMES = 33


def choose_times(
    neural_ode: NeuralODE, x: Tensor, condition: Mapping[str, Any] | None = None, *, row_times: bool | None = None
) -> str:
    """Return what a field gets as its time in an adaptive solve: ``times`` of :class:`Adaptive`.

    Parameters
    ----------
    neural_ode : NeuralODE
    x : Tensor of shape (n, ...)
        Rows of the input, of which a few are probed.
    condition : mapping of str to Tensor, optional
        Keyword arguments of the field.
    row_times : bool, optional
        Whether the field takes a vector of times, one a row: True is checked, and gives "rows". None gives "none" if
        the field has the same values at 33 times over the span, and otherwise "shared", as False does.

    Raises
    ------
    VectorFieldError
        If ``row_times`` is True and the field fails on a vector of times, or gives other values than row by row.
    """
    if row_times is False:
        return "shared"
    places = torch.arange(PROBED_ROWS, device=x.device) % len(x)
    inputs = neural_ode.inputs(x, condition).rows(places)
    with torch.no_grad():
        z = neural_ode.input_map(x[places])
    start, end = neural_ode.t_span
    shares = torch.linspace(0, 1, _PROBED_TIMES, dtype=torch.float64)
    times = time_tensor((start + (end - start) * shares).tolist(), z, neural_ode.t_span)
    with torch.no_grad():
        if row_times is None:
            first = call_field(neural_ode, times[0], z, inputs)
            is_constant = all(torch.equal(call_field(neural_ode, t, z, inputs), first) for t in times[1:])
            return "none" if is_constant else "shared"
        own = times[1 :: _PROBED_TIMES // PROBED_ROWS][:PROBED_ROWS]
        apart = torch.cat(
            [call_field(neural_ode, own[i], z[i : i + 1], inputs.rows(slice(i, i + 1))) for i in range(len(z))]
        )
        try:
            together, reason = call_field(neural_ode, own, z, inputs), ""
        except VectorFieldError as error:
            together, reason = None, f" ({error})"
    if not isinstance(together, Tensor) or differ(together, apart):
        raise VectorFieldError(
            f"row_times=True, but vector_field {'gives other values' if not reason else 'fails'} with a vector of "
            f"times, one a row: t of shape ({len(z)},) beside z of shape {tuple(z.shape)}{reason}. In the field, "
            f"t.reshape(-1{', 1' * (z.ndim - 1)}) broadcasts both a single time and one a row. Or leave row_times=None."
        )
    return "rows"
