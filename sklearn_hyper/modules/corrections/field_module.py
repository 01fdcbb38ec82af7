"""A field as a module that can be called with other weights, and what has to be known of it for that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ...numerics.protection import FieldInputs
from ...numerics.times import time_tensor
from ..serialization import DeviceFreeModule
from ..user_code import find_hidden_modules

_WITHIN = 0.38
"""Where in its span a field is probed."""


class FieldModule(DeviceFreeModule):
    """Call a vector field, and name all parameters that it reaches, hidden ones too."""

    def __init__(self, field: Callable[..., Tensor]):
        super().__init__()
        self.field = field
        hidden = find_hidden_modules({"vector_field": field})
        if hidden:
            self.reached = nn.ModuleList(hidden)

    def forward(self, t: Tensor, z: Tensor, *arguments: Any, **condition: Any) -> Tensor:
        return self.field(t, z, *arguments, **condition)


def changeable_weights(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters that a change makes sense for: floating-point ones that hold numbers."""
    return {name: p for name, p in module.named_parameters() if p.is_floating_point() and p.numel()}


def answers_to_weights(f: Callable[..., Tensor], t_span: Any, z: Tensor, inputs: FieldInputs) -> bool:
    """Return whether a field computes other values with other weights, and gradients lead back to them.

    Not so without weights, in fields that compute with copies of them, and without autograd.
    """
    module = FieldModule(f)
    weights = {name: weight.detach() for name, weight in changeable_weights(module).items()}
    start, end = t_span
    # Not at the start: weights may be multiplied by t, which is 0 there.
    time = time_tensor(start + _WITHIN * (end - start), z, t_span)
    with torch.enable_grad():
        other = {
            name: (1.01 * weight + 1e-3 * typical_size(weight)).requires_grad_(True) for name, weight in weights.items()
        }
        try:
            given, bent = (
                functional_call(module, used, (time, z.clone(), *inputs.arguments), dict(inputs.condition))
                for used in (weights, other)
            )
        except Exception:  # whatever it is that a user's field does not like about other weights
            return False
    return bent.requires_grad and not torch.equal(given.detach(), bent.detach())


def graph_bytes(f: Callable[..., Tensor], t_span: Any, z: Tensor, inputs: FieldInputs) -> int:
    """Count the bytes that autograd keeps of an evaluation of f, beside its weights; 0 where it cannot be hooked."""
    module, sizes = FieldModule(f), {}
    own = {parameter.untyped_storage().data_ptr() for parameter in (*module.parameters(), *module.buffers())}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    weights = {name: weight.detach().requires_grad_(True) for name, weight in changeable_weights(module).items()}
    arguments = (time_tensor(t_span[0], z, t_span), z.clone().requires_grad_(True), *inputs.arguments)
    try:
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            kept = functional_call(module, weights, arguments, dict(inputs.condition))
    except RuntimeError:
        return 0  # a field that differentiates by torch.func bears no hooks, and so no repeated evaluation either
    del kept
    return sum(sizes.values())


def typical_size(tensor: Tensor) -> Tensor:
    """Return the root mean square of a tensor's entries."""
    return tensor.detach().pow(2).mean().sqrt()
