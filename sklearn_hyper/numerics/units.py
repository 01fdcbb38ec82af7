"""Sizes of states, which everything that has units is measured by.

The rule of units, for the whole library: **what a fit gives does not depend on the units of X, of states, of outputs or
of time.** Constants are relative to the data's own size: a tolerance, a floor or a threshold is a share of what it is
compared with, or has no units. What is squared is divided by such a size before, since the squares of small units
underflow.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_LEAST_SHARE = 0.3


def feature_sizes(z: Tensor, n_unitless: int = 0) -> Tensor:
    """RMS over a batch, by feature or channel (axis 1), in float64 and with axes of length one for the others.

    A feature that is zero is as large as all together, and all zero is 1: sizes are positive. So many features at the
    end as have no units (log densities) are 1.
    """
    squares = z.detach().double().square()
    sizes = squares.mean(dim=[axis for axis in range(z.ndim) if axis != 1], keepdim=True).sqrt()
    whole = squares[:, : z.shape[1] - n_unitless].mean().sqrt() if n_unitless else squares.mean().sqrt()
    sizes = torch.where(sizes > 0, sizes, torch.where(whole > 0, whole, torch.ones_like(whole)))
    if n_unitless:
        sizes[:, -n_unitless:] = 1
    return sizes


def state_units(z: Tensor, n_unitless: int = 0) -> Tensor:
    """What to divide states by before their norms are taken, in z's dtype and shaped to broadcast.

    It is one number, the RMS of all features over the batch, so that norms are those of the states. Smaller ones go
    with features that are smaller by far, whose units must be others: each counts for at least a third of an average
    one.
    """
    sizes = feature_sizes(z, n_unitless)
    own = sizes[:, : sizes.shape[1] - n_unitless] if n_unitless else sizes
    units = torch.minimum(own.square().mean().sqrt(), own / _LEAST_SHARE)
    return (torch.cat([units, sizes[:, -n_unitless:]], dim=1) if n_unitless else units).to(z.dtype)


def absolute_tolerance(
    atol: float | Tensor | None, rtol: float, z: Tensor, sizes: Sequence[float] | None = None, n_unitless: int = 0
) -> float | Tensor:
    """``atol``, or where it is None, ``rtol`` times the size of the states by feature: ``sizes``, or those of the batch z."""
    if atol is not None:
        return atol
    if sizes is None:
        return rtol * feature_sizes(z, n_unitless)
    n_features = z.shape[1] if z.ndim > 1 else 1
    if len(sizes) != n_features:
        raise ValueError(
            f"state_size must hold one size a feature or channel of the state, {n_features}, got {len(sizes)}."
        )
    return rtol * z.new_tensor(sizes, dtype=torch.float64).reshape([-1 if axis == 1 else 1 for axis in range(z.ndim)])


def is_constant(spread: Tensor, size: Tensor, dtype: torch.dtype) -> Tensor:
    """Whether what varies by so much beside its size varies by rounding alone, in that dtype."""
    return ~(spread > 2 * torch.finfo(dtype).eps * size)
