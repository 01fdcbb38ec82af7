"""Choose the sizes of steps by their errors: a PI controller."""

from __future__ import annotations

import torch
from torch import Tensor

_SAFETY, _LEAST_FACTOR, _LARGEST_FACTOR = 0.9, 0.2, 5.0
"""Aim at nine tenths of the largest step that the tolerance allows; change a step by no more than these factors."""
_PROPORTIONAL, _INTEGRAL = 0.7, 0.4
"""Weights of the PI controller, Hairer and Wanner's, in units of one over the order of the estimate."""
_LEAST_ERROR = 1e-4
"""A smaller error of the last step counts as this, so that one lucky step does not hold back the next."""
_TINY = 1e-30


class StepController:
    r"""Sizes of steps, one a lane: a row, or a whole batch whose rows share their steps.

    .. math:: \epsilon' = \epsilon \cdot 0.9\, E^{-0.7 / q}\, E_{\mathrm{last}}^{\,0.4 / q}

    E is the error in units of the tolerance, and q the power of the step size that it goes with. A step with E > 1 has
    failed. It is repeated with the size :math:`0.9\, \epsilon E^{-1 / q}`, and the step after that does not grow.

    Parameters
    ----------
    sizes : Tensor of shape (n_lanes,)
        Sizes of the first steps, in float64.
    power : int
        q.
    max_step : float
    """

    def __init__(self, sizes: Tensor, power: int, max_step: float):
        self.sizes, self.power, self.max_step = sizes.clamp(max=max_step), power, max_step
        self.last_errors = torch.ones_like(sizes)
        self.has_failed = torch.zeros_like(sizes, dtype=torch.bool)

    def even(self, left: Tensor) -> Tensor:
        """Return steps that divide what is left of the span evenly: no short last step, and an end that is exact."""
        return left / (left.abs() / self.sizes * (1 - 1e-9)).ceil().clamp(min=1)

    @torch.no_grad()
    def update(self, eps: Tensor, errors: Tensor) -> None:
        """Choose the next sizes, given the steps that were tried and their errors."""
        passes, positive = errors <= 1, errors.clamp(min=_TINY)
        grown = positive ** (-_PROPORTIONAL / self.power) * self.last_errors ** (_INTEGRAL / self.power)
        factors = _SAFETY * torch.where(passes, grown, positive ** (-1 / self.power))
        # After a failure a step does not grow: it has just been found to be as long as the tolerance allows.
        most = torch.where(passes & ~self.has_failed, _LARGEST_FACTOR, 1.0)
        self.sizes = (eps.abs() * torch.minimum(factors.clamp(min=_LEAST_FACTOR), most)).clamp(max=self.max_step)
        self.last_errors = torch.where(passes, errors.clamp(min=_LEAST_ERROR), self.last_errors)
        self.has_failed = ~passes

    def keep(self, lanes: Tensor) -> None:
        """Go on with some of the lanes."""
        self.sizes, self.last_errors = self.sizes[lanes], self.last_errors[lanes]
        self.has_failed = self.has_failed[lanes]
