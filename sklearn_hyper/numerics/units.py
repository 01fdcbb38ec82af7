"""Sizes of states, by which the library measures everything that has units.

The rule of units, for the whole library: **the result of a fit does not depend on the units of X, of states, of outputs
or of time.** So every tolerance, floor and threshold is a share of what it is compared with, or has no units. A
quantity is divided by its size before it is squared, because squares of small numbers underflow.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_LEAST_SHARE = 0.3
"""Smallest size of a feature, as a share of the RMS of all features, that is still measured in that RMS."""


def feature_sizes(z: Tensor, n_unitless: int = 0) -> Tensor:
    """Return the RMS over a batch for each feature or channel (axis 1), in float64; other axes have length one.

    Sizes are positive. A feature that is zero gets the RMS of all features, or 1 if all are zero. The last
    ``n_unitless`` features (log densities) have no units and get 1.
    """
    squares = z.detach().double().square()
    sizes = squares.mean(dim=[axis for axis in range(z.ndim) if axis != 1], keepdim=True).sqrt()
    whole = squares[:, : z.shape[1] - n_unitless].mean().sqrt() if n_unitless else squares.mean().sqrt()
    sizes = torch.where(sizes > 0, sizes, torch.where(whole > 0, whole, torch.ones_like(whole)))
    if n_unitless:
        sizes[:, -n_unitless:] = 1
    return sizes


def state_units(z: Tensor, n_unitless: int = 0) -> Tensor:
    """Return what to divide states by before their norms are taken, in z's dtype and shaped to broadcast.

    Most features share one unit, the RMS of all features over the batch, so that norms keep their meaning. A feature
    that is much smaller probably has other units. Its unit is smaller, so that it counts for about a third of an
    average one.
    """
    sizes = feature_sizes(z, n_unitless)
    measured = sizes[:, : sizes.shape[1] - n_unitless] if n_unitless else sizes
    units = torch.minimum(measured.square().mean().sqrt(), measured / _LEAST_SHARE)
    return (torch.cat([units, sizes[:, -n_unitless:]], dim=1) if n_unitless else units).to(z.dtype)


def absolute_tolerance(
    atol: float | Tensor | None, rtol: float, z: Tensor, sizes: Sequence[float] | None = None, n_unitless: int = 0
) -> float | Tensor:
    """Return ``atol``. If it is None, return ``rtol`` times the size of the states by feature.

    The size is ``sizes`` where given, else that of the batch z.
    """
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
    """Return whether values of this size and spread vary by no more than the rounding of the dtype."""
    return ~(spread > 2 * torch.finfo(dtype).eps * size)
