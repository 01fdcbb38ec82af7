"""Shapes and norms of batches of states. Axis 0 is the batch; the state may have any shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def flatten_samples(t: Tensor) -> Tensor:
    """Turn (batch, ...) into (batch, n); a state of shape (batch,) becomes (batch, 1)."""
    return t if t.ndim == 2 else t.reshape(t.shape[0], -1)


def per_row(value: Any, like: Tensor) -> Any:
    """Reshape one number per row to broadcast against a batch of states. Leave a number for all rows as it is."""
    return value.reshape(-1, *[1] * (like.ndim - 1)) if isinstance(value, Tensor) and value.ndim else value


def sample_norm(t: Tensor) -> Tensor:
    """Return the 2-norm of every sample, in shape (batch, 1, ..., 1)."""
    axes = list(range(1, t.ndim))
    return torch.linalg.vector_norm(t, dim=axes, keepdim=True) if axes else t.abs()


def row_norms(t: Tensor) -> Tensor:
    """Return the 2-norm of every sample, in shape (batch,)."""
    return torch.linalg.vector_norm(flatten_samples(t), dim=1)


def mean_norm(t: Tensor) -> Tensor:
    """Return the mean over samples of the 2-norm: the norm of both losses of section 3.2."""
    return row_norms(t).mean()


def in_own_units(t: Tensor, dim: tuple[int, ...] = ()) -> tuple[Tensor, Tensor]:
    """Divide a tensor by its largest magnitude over ``dim`` (default all axes), and return that magnitude too.

    The magnitude is 1 where all entries are zero. Residual targets scale like the span to the power -p-1. In many units
    of time their squares leave float32's range, so norms are taken in these units.
    """
    unit = t.abs().amax(dim=dim, keepdim=dim != ())
    unit = torch.where(unit > 0, unit, torch.ones_like(unit))
    return t / unit, unit


def mean_size(t: Tensor, unit: Tensor) -> float:
    """Return the mean norm of ``t / unit``, even where the squares of its entries leave the dtype's range."""
    scaled, largest = in_own_units(t / unit)
    return float(mean_norm(scaled)) * float(largest)


def weighted_sum(weights: Sequence[float], tensors: Sequence[Tensor]) -> Tensor:
    """Return the weighted sum of tensors, skipping zero weights. At least one weight must not be zero."""
    terms = [(weight, tensor) for weight, tensor in zip(weights, tensors, strict=True) if weight]
    weight, total = terms[0]
    if weight != 1:
        total = total * weight
    for weight, tensor in terms[1:]:
        total = total.add(tensor, alpha=weight)
    return total
