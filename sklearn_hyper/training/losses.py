"""Losses of a correction (paper, section 3.2), as differences of which a fit takes the mean norm.

Fits divide each by what the base solver leaves at the same step size: then 1 is the base solver, 0 is exact, large and
small eps are both served, and terms of different kinds can be added.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor, nn

from ..numerics.residuals import Residual
from ..numerics.tensors import mean_norm

StateLoss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Takes a hypersolver's states and the reference's, both (K + 1, batch, ...), and returns what should vanish, by row."""


def residual_loss(correction: nn.Module, residual: Residual, x: Tensor | None, unit: Tensor) -> Tensor:
    r"""Residual fitting: :math:`\ell = \|R - g\|_2`, averaged over samples, in units of ``unit``."""
    g = correction(residual.eps, residual.time(), residual.z, residual.stages, x, residual.kind)
    # Divided first: R is of the size of span^-p-1, which is not to be squared.
    return mean_norm((residual.target - g) / unit)


def terminal_loss(states: Tensor, reference: Tensor) -> Tensor:
    r""":math:`\|z(S) - z_K\|_2`, averaged over samples."""
    return reference[-1] - states[-1]


def trajectory_loss(states: Tensor, reference: Tensor) -> Tensor:
    r"""Trajectory fitting: :math:`\|z(s_k) - z_k\|_2`, averaged over k and samples."""
    return (reference - states)[1:].flatten(0, 1)


def output_loss(output_map: Callable[[Tensor], Tensor]) -> StateLoss:
    r""":math:`\|h_y(z(S)) - h_y(z_K)\|_2`: the terminal error that the output map lets through."""

    def loss(states: Tensor, reference: Tensor) -> Tensor:
        return output_map(reference[-1]) - output_map(states[-1])

    return loss


class ScaledMSELoss(nn.Module):
    """Mean squared error in units of the targets' variance, so that one learning rate fits any units of y."""

    scale: Tensor

    def __init__(self, scale: Tensor):
        super().__init__()
        self.register_buffer("scale", scale)

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        return ((prediction - target) / self.scale).pow(2).mean()
