"""The field of a conditional flow or Neural ODE that a user passes none for."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..numerics.units import is_constant
from .vector_fields import MLPVectorField, _share, _velocity


class ConditionedMLPField(MLPVectorField):
    """f(t, z, **condition): a fully connected net whose first layer also takes time and a condition.

    Labels are embedded: each has a vector of its own, which is learned. Other numbers are standardised and appended to
    the state.

    Parameters
    ----------
    n_features : int
        Width of the state.
    condition : mapping of str to Tensor
        Rows of the condition, one entry each, that tell shapes and units. Integers are labels, from 0.
    n_labels : mapping of str to int
        Number of labels, by the names of integers.
    hidden, depth, t_span
        As in :class:`MLPVectorField`.

    Examples
    --------
    >>> import torch
    >>> label = torch.tensor([0, 1, 2, 1])
    >>> field = ConditionedMLPField(2, {"label": label}, {"label": 3})
    >>> field(torch.tensor(0.5), torch.zeros(4, 2), label=label).shape
    torch.Size([4, 2])
    """

    def __init__(
        self,
        n_features: int,
        condition: Mapping[str, Tensor],
        n_labels: Mapping[str, int],
        hidden: int = 64,
        depth: int = 2,
        t_span: tuple[float, float] = (0.0, 1.0),
    ):
        super().__init__(n_features, hidden, depth, t_span)
        self.n_labels = {name: n for name, n in n_labels.items() if name in condition}
        self.widths = {name: math.prod(values.shape[1:]) for name, values in condition.items()}
        """Numbers or labels of a row, by name."""
        self.encoders = nn.ModuleDict()
        for name, values in condition.items():
            if name in n_labels:
                self.encoders[f"of_{name}"] = _Labels(n_labels[name], self.widths[name], hidden)
            else:
                self.encoders[f"of_{name}"] = _Numbers(values, hidden)

    def forward(self, t: Tensor, z: Tensor, **condition: Tensor) -> Tensor:
        share = _share(t, self.t_span)
        h = functional.linear(z, self.first.weight, self.first.bias)
        h = h + (share[:, None] if t.ndim else share) * self.time
        for name, value in condition.items():
            h = h + self.encoders[f"of_{name}"](value)
        h = torch.tanh(h)
        for layer in self.middle:
            h = torch.tanh(layer(h))
        return _velocity(self.last(h), self.t_span)


class _Labels(nn.Module):
    """Embed labels: a row of several has a table for each of them."""

    offsets: Tensor

    def __init__(self, n_labels: int, per_row: int, width: int):
        super().__init__()
        self.table = nn.Embedding(n_labels * per_row, width)
        self.register_buffer("offsets", n_labels * torch.arange(per_row))

    def forward(self, labels: Tensor) -> Tensor:
        # shape[0] instead of len, which an export would treat as a constant: here and below.
        return self.table(labels.reshape(labels.shape[0], -1) + self.offsets).sum(dim=1)


class _Numbers(nn.Module):
    """Standardise numbers and map them linearly: the columns that they have in a first layer's weight."""

    shift: Tensor
    scale: Tensor

    def __init__(self, values: Tensor, width: int):
        super().__init__()
        flat = values.reshape(len(values), -1).double()
        shift, scale = flat.mean(dim=0), flat.std(dim=0, unbiased=False)
        constant = is_constant(scale, shift.abs(), values.dtype)
        self.register_buffer("shift", shift.to(values.dtype))
        self.register_buffer("scale", torch.where(constant, torch.ones_like(scale), scale).to(values.dtype))
        self.weight = nn.Linear(flat.shape[1], width, bias=False)

    def forward(self, values: Tensor) -> Tensor:
        return self.weight((values.reshape(values.shape[0], -1) - self.shift) / self.scale)
