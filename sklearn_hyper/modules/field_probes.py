"""Probes of a field and its maps before a fit: a few calls that reveal errors which would otherwise pass silently."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..numerics.protection import FieldInputs, is_written, shares_memory
from ..numerics.row_errors import list_rows
from ..numerics.times import time_tensor
from .neural_ode import NeuralODE, VectorFieldError, call_field, call_part
from .serialization import DeviceFreeModule

PROBED_ROWS = 8
_START_ROWS = 2048
"""Rows that :func:`check_start` evaluates at once."""
_APART = 1e-3
"""Largest difference of two evaluations of a row, as a share of the largest value. It allows for rounding only."""
_STEP = 5e-3
"""Step of the difference quotient, in usual sizes of the states."""
_CUT = 0.2
"""Largest error of autograd's derivative, as a share of a difference quotient. It allows for kinks only."""


class GradientWarning(UserWarning):
    """Autograd's derivative of a field differs from a difference quotient of its values."""


class CopyingPart(DeviceFreeModule):
    """Run a field or map on copies, because it writes into its arguments or returns the same buffer at each call.

    Where gradients are off, the output is detached too: a part that differentiates inside may return a graph.

    Parameters
    ----------
    part : nn.Module or callable
    """

    def __init__(self, part: Any):
        super().__init__()
        self.part = part

    def forward(self, *arguments: Tensor, **condition: Any) -> Tensor:
        output = self.part(
            *map(_copied, arguments), **{key: _copied(value) for key, value in condition.items()}
        ).clone()
        return output if torch.is_grad_enabled() else output.detach()


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def settle_parts(
    neural_ode: NeuralODE, x: Tensor, condition: Mapping[str, Any] | None = None, *, differentiates: bool = True
) -> None:
    """Make parts that write into their arguments or reuse their output work on copies. Refuse parts no solver can use.

    Parameters
    ----------
    neural_ode : NeuralODE
        Already checked by :func:`check_neural_ode`. Must be a copy of the user's, because its parts may be wrapped. It
        is probed in eval mode.
    x : Tensor of shape (n, ...)
        A few rows of the input.
    condition : mapping of str to Tensor, optional
        Keyword arguments of the field, for these rows.
    differentiates : bool, default True
        Whether training goes through the field, so that its gradient matters.

    Raises
    ------
    VectorFieldError
        If the field or a map is random, mixes the rows of a batch, or computes in half precision.

    Warns
    -----
    GradientWarning
        If autograd's derivative of the field differs from a difference quotient.
    """
    x = x[:PROBED_ROWS]
    modes = {module: module.training for module in neural_ode.modules()}
    neural_ode.eval()
    try:
        with torch.no_grad():
            _settle(neural_ode, "input_map", x)
            z = neural_ode.input_map(x.clone())
            start, end = neural_ode.t_span
            t = time_tensor(start + 0.4 * (end - start), z, neural_ode.t_span)
            inputs = neural_ode.inputs(x, condition).rows(slice(0, len(x)))
            _settle(neural_ode, "vector_field", t, z, *inputs.arguments, **inputs.condition)
            _settle(neural_ode, "output_map", z)
            _check_full_precision(neural_ode, t, z, inputs)
        if differentiates:
            _check_gradient(neural_ode, t, z, inputs)
    finally:
        for module, training in modes.items():
            module.training = training


def _settle(neural_ode: NeuralODE, name: str, /, *arguments: Tensor, **condition: Any) -> None:
    part = getattr(neural_ode, name)
    if isinstance(part, nn.Identity):
        return
    given, keywords = [argument.clone() for argument in arguments], {k: _copied(v) for k, v in condition.items()}
    output = part(*given, **keywords)
    version, first = output._version, output.clone()
    again = part(*map(_copied, arguments), **{key: _copied(value) for key, value in condition.items()})
    pairs = [*zip(given, arguments, strict=True), *((keywords[key], value) for key, value in condition.items())]
    writes = any(is_written(*pair) for pair in pairs)
    reuses = output._version != version or shares_memory(again, output)
    if writes or reuses or output.requires_grad:  # gradients are off here, so a graph should not come out
        setattr(neural_ode, name, CopyingPart(part))
    if differ(first, again):
        raise VectorFieldError(
            f"{name} is random or keeps a state: two calls with the same arguments give other values. Dropout outside "
            "nn.Dropout goes on in eval mode (functional.dropout needs training=self.training), and noise must be an "
            "input."
        )
    _check_rows(neural_ode, name, first, arguments, condition)
    _check_graph(neural_ode, name, arguments, condition)


def _check_rows(
    neural_ode: NeuralODE, name: str, output: Tensor, arguments: tuple[Tensor, ...], condition: Mapping[str, Any]
) -> None:
    n_rows = len(arguments[-1])
    if len(output) != n_rows:
        raise VectorFieldError(f"{name} returns {len(output)} rows for {n_rows}: it must return one for every row.")
    for row in range(n_rows):
        row_arguments = [_row_of(argument, row) for argument in arguments]
        keywords = {key: _row_of(value, row) for key, value in condition.items()}
        if differ(call_part(neural_ode, name, *row_arguments, **keywords), output[row : row + 1]):
            raise VectorFieldError(
                f"{name} mixes the rows of a batch: for row {row} it gives other values alone than beside {n_rows - 1} "
                "more. A row is one sample, which is solved and predicted in any batch. Make what interacts (nodes of "
                "a graph, particles) one sample of shape (n, ...), or take means over other axes than the first."
            )


def _row_of(value: Any, row: int) -> Any:
    return value[row : row + 1] if isinstance(value, Tensor) and value.ndim else value


def _check_graph(neural_ode: NeuralODE, name: str, arguments: tuple[Tensor, ...], condition: Mapping[str, Any]) -> None:
    """Refuse parts that use trained tensors which the copy does not hold. Autograd's graph shows which they use."""
    known = {id(parameter) for parameter in neural_ode.parameters()}
    with torch.enable_grad():
        calls = [_find_leaves(call_part(neural_ode, name, *arguments, **condition)) for _ in range(2)]
    # A leaf that the part itself makes at each call, to differentiate by, has another identity in the second call.
    foreign = [leaf for i, leaf in calls[0].items() if i in calls[1] and i not in known]
    if foreign:
        raise TypeError(
            f"{name} calls a module, or uses a tensor that requires gradients, of shape {tuple(foreign[0].shape)}, "
            "which fit can neither copy nor freeze, and would not train: it is reached in a way that is not followed. "
            "Pass the module itself, or an nn.Module that holds it and whose forward calls it."
        )


def _find_leaves(output: Tensor) -> dict[int, Tensor]:
    """Return the leaf tensors of an output's graph, by id."""
    leaves, seen, queue = {}, set(), [output.grad_fn]
    while queue:
        node = queue.pop()
        if node is not None and node not in seen:
            seen.add(node)
            variable = getattr(node, "variable", None)  # only nodes that accumulate gradients have one
            if variable is not None:
                leaves[id(variable)] = variable
            queue += [following for following, _ in node.next_functions]
    return leaves


def differ(first: Tensor, second: Tensor) -> bool:
    """Return whether two evaluations of the same rows differ by more than rounding. Only finite values are compared."""
    if first.shape != second.shape:
        return True
    finite = first.isfinite() & second.isfinite()
    apart = torch.where(finite, (first - second).abs(), 0.0)
    size = torch.where(finite, torch.maximum(first.abs(), second.abs()), 0.0)
    return bool((apart > _APART * size.amax()).any())


def _check_full_precision(neural_ode: NeuralODE, t: Tensor, z: Tensor, inputs: FieldInputs) -> None:
    """Refuse fields that compute in half precision (autocast): to a solver, their rounding looks like stiffness."""
    dz = call_field(neural_ode, t, z * (1 + 1e-3 / 3), inputs)
    values = dz[dz.isfinite() & (dz != 0)][:64]
    # A field of round numbers (signs, counts) has few distinct values, and would be exact in half precision too.
    if len(values.abs().unique()) < max(8, 0.6 * len(values)):
        return
    for half in (torch.bfloat16, torch.float16):
        if torch.equal(values.to(half).to(values.dtype), values) and not torch.equal(z.to(half).to(z.dtype), z):
            raise VectorFieldError(
                f"vector_field computes in {half}: all its values are rounded to it, which a solver cannot tell from a "
                "stiff field. Compute in float32 (no autocast, no .bfloat16() or .half() inside)."
            )


def _check_gradient(neural_ode: NeuralODE, t: Tensor, z: Tensor, inputs: FieldInputs) -> None:
    """Compare a directional derivative by autograd with a difference quotient, and warn if most rows differ."""
    generator = torch.Generator().manual_seed(0)
    direction, weights = (torch.randn(z.shape, generator=generator).to(z) for _ in range(2))
    direction = direction * _usual_sizes(z)

    def weighed(state: Tensor) -> Tensor:
        return (call_field(neural_ode, t, state, inputs) * weights).reshape(len(z), -1)

    with torch.no_grad():
        ahead, behind = weighed(z + _STEP * direction), weighed(z - _STEP * direction)
    quotient = (ahead - behind).sum(dim=1) / (2 * _STEP)
    rounding = 8 * torch.finfo(z.dtype).eps * ahead.abs().sum(dim=1) / _STEP
    with torch.enable_grad():
        leaf = z.detach().clone().requires_grad_(True)
        values = weighed(leaf)
        slope = torch.autograd.grad(values.sum(), leaf, allow_unused=True)[0] if values.requires_grad else None
    derivative = torch.zeros_like(quotient)
    if slope is not None:
        derivative = (slope * direction).reshape(len(z), -1).sum(dim=1)
    # Most rows must differ: a single row may lie at a kink, or so far out that its quotient is mostly rounding.
    off = (quotient - derivative).abs()
    if (off > _CUT * quotient.abs() + rounding).double().mean() > 0.5:
        share = float((off / quotient.abs().clamp(min=torch.finfo(z.dtype).tiny)).median())
        warnings.warn(
            f"autograd's derivative of vector_field along a direction is {share:.2g} of a difference quotient away "
            "from it, so training through the solver would follow a wrong gradient: something inside is detached, "
            "under no_grad, in NumPy, or differentiated without create_graph=True. Mend that, or fit with "
            "loss='residual', finetune=None, which differentiate "
            "no field.",
            GradientWarning,
            stacklevel=2,
        )


def _usual_sizes(z: Tensor) -> Tensor:
    """Return by how much each number of a state varies among the rows, or its magnitude if it does not vary."""
    spread = (z - z.median(dim=0, keepdim=True).values).abs().median(dim=0, keepdim=True).values
    size = z.abs().median(dim=0, keepdim=True).values
    usual = torch.where(spread > 0, spread, size)
    whole = usual.amax()
    return torch.where(usual > 0, usual, whole if whole > 0 else torch.ones_like(whole))


def check_start(neural_ode: NeuralODE, x: Tensor, rows: Any = None, condition: Mapping[str, Any] | None = None) -> None:
    """Refuse rows at which the input map, or the field at the start of the span, is not finite.

    Parameters
    ----------
    neural_ode : NeuralODE
    x : Tensor of shape (n, ...)
    rows : sequence of int, optional
        Row numbers to show in the message. If missing: positions in x.
    condition : mapping of str to Tensor, optional
        Keyword arguments of the field.

    Raises
    ------
    VectorFieldError
    """
    lost: dict[str, list[int]] = {"input_map": [], "vector_field": []}
    device = next((tensor.device for tensor in (*neural_ode.parameters(), *neural_ode.buffers())), x.device)
    with torch.no_grad():
        for first in range(0, len(x), _START_ROWS):
            batch = slice(first, first + _START_ROWS)
            z = neural_ode.input_map(x[batch].to(device, copy=True))
            t = time_tensor(neural_ode.t_span[0], z, neural_ode.t_span)
            inputs = neural_ode.inputs(x, condition).rows(batch).each(lambda tensor: tensor.to(device, copy=True))
            slope = neural_ode.vector_field(t, z.clone(), *inputs.arguments, **inputs.condition)
            values = {"input_map": z, "vector_field": slope}
            for name, value in values.items():
                bad = ~value.reshape(len(value), -1).isfinite().all(dim=1)
                lost[name] += (first + bad.nonzero().ravel().cpu()).tolist()
    for name, places in lost.items():
        if places:
            named = list_rows(places if rows is None else [int(rows[place]) for place in places])
            raise VectorFieldError(
                f"{name} is not finite (nan or infinite) for {len(places)} of {len(x)} rows of X ({named}) at the "
                "start of t_span. Leave those rows out, scale the inputs, or mend it."
            )
