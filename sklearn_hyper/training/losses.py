"""Losses of a correction (paper, section 3.2). State losses return differences, of which a fit takes the mean norm.

A fit divides each loss by the base solver's at the same step size. Then 1 is the base solver and 0 is exact, large and
small eps weigh alike, and different losses can be added.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, nn

from ..numerics.residuals import Residual
from ..numerics.tensors import mean_norm

StateLoss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Takes a hypersolver's and the reference's states, both (K + 1, batch, ...); returns differences, by row."""


def residual_loss(correction: nn.Module, residual: Residual, x: Tensor | None, unit: Tensor) -> Tensor:
    r"""Residual fitting: :math:`\ell = \|R - g\|_2`, averaged over samples, in units of ``unit``."""
    g = correction(residual.eps, residual.time(), residual.z, residual.stages, x, residual.kind)
    # Divide before the norm: R scales with span^-(p + 1), whose square may overflow.
    return mean_norm((residual.target - g) / unit)


def terminal_loss(states: Tensor, reference: Tensor) -> Tensor:
    r"""Terminal fitting: :math:`\|z(S) - z_K\|_2`, averaged over samples."""
    return reference[-1] - states[-1]


def trajectory_loss(states: Tensor, reference: Tensor) -> Tensor:
    r"""Trajectory fitting: :math:`\|z(s_k) - z_k\|_2`, averaged over k and samples."""
    return (reference - states)[1:].flatten(0, 1)


def output_loss(output_map: Callable[[Tensor], Tensor]) -> StateLoss:
    r"""Output fitting: return the loss :math:`\|h_y(z(S)) - h_y(z_K)\|_2`, averaged over samples."""

    def loss(states: Tensor, reference: Tensor) -> Tensor:
        return output_map(reference[-1]) - output_map(states[-1])

    return loss


class ScaledMSELoss(nn.Module):
    """Mean squared error in units of the targets' variance, so that one learning rate suits any units of y."""

    scale: Tensor
    reduction = "mean"

    def __init__(self, scale: Tensor):
        super().__init__()
        self.register_buffer("scale", scale)

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        squares = ((prediction - target) / self.scale).pow(2)
        return squares if self.reduction == "none" else squares.mean()


class ObservedMSELoss(ScaledMSELoss):
    """Mean squared error over the targets that were observed: those that are not nan, each with the same weight."""

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        observed = ~target.isnan()
        # Predictions are nan where no time is given. Not nan * 0, which would be nan, and so would be its gradient.
        difference = torch.where(observed, prediction - target.nan_to_num(), torch.zeros_like(target))
        # The mean over all entries is the mean over those observed. So rows with more of them have larger losses.
        share = observed.sum().clamp(min=1) / observed.numel()
        squares = (difference / self.scale).pow(2) / share
        return squares if self.reduction == "none" else squares.mean()
