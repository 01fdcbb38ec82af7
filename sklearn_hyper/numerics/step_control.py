"""Choose the sizes of steps: a PI controller, which goes by their errors, or sizes that are proposed beforehand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

_SAFETY, _LEAST_FACTOR, _LARGEST_FACTOR = 0.9, 0.2, 5.0
"""Aim at nine tenths of the largest step that the tolerance allows; change a step by no more than these factors."""
_PROPORTIONAL, _INTEGRAL = 0.7, 0.4
"""Weights of the PI controller, Hairer and Wanner's, in units of one over the order of the estimate."""
_LEAST_ERROR = 1e-4
"""A smaller error of the last step counts as this, so that one lucky step does not hold back the next."""
_TINY = 1e-30


class StepProposer(Protocol):
    """Proposes the sizes of steps from what is known before a step is taken."""

    @property
    def limit(self) -> Any:
        """Largest error of a base step that is taken, in units of the tolerance: beyond, the proposal was wrong."""
        ...

    def propose(self, s: Tensor, z: Tensor, slopes: Tensor, rtol: float) -> Tensor:
        """Return a positive step size for each row.

        Parameters
        ----------
        s : Tensor of shape (n,) or (1,)
            Starts of the steps, in float64.
        z : Tensor of shape (n, ...)
            States there.
        slopes : Tensor of shape (n, ...)
            f there.
        rtol : float
            Tolerance of a step, as a share of the state, beside the same share of the states' size.
        """
        ...


class StepController(Protocol):
    """Sizes of steps, one a lane: a row, or a whole batch whose rows share their steps."""

    sizes: Tensor
    """Sizes of the next steps, in float64."""

    def even(self, left: Tensor) -> Tensor:
        """Return steps that divide what is left of the span evenly."""
        ...

    def accepts(self, errors: Tensor) -> Tensor:
        """Return which steps are taken, by the errors of base steps in units of the tolerance."""
        ...

    def update(self, eps: Tensor, errors: Tensor) -> None:
        """Take note of the steps that were tried, and of their errors."""
        ...

    def keep(self, lanes: Tensor) -> None:
        """Go on with some of the lanes."""
        ...


def divide_evenly(left: Tensor, sizes: Tensor) -> Tensor:
    """Return steps that divide what is left of the span evenly: no short last step, and an end that is exact."""
    return left / (left.abs() / sizes * (1 - 1e-9)).ceil().clamp(min=1)


class PIController:
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
        """Return steps that divide what is left of the span evenly."""
        return divide_evenly(left, self.sizes)

    def accepts(self, errors: Tensor) -> Tensor:
        """Return which steps are taken: those whose errors are within the tolerance."""
        return errors <= 1

    @torch.no_grad()
    def update(self, eps: Tensor, errors: Tensor) -> None:
        """Choose the next sizes, given the steps that were tried and their errors."""
        passes, positive = self.accepts(errors), errors.clamp(min=_TINY)
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


class ProposedSteps:
    """Sizes that are proposed before each step, so that no step is tried twice to find its size.

    A step fails only if it is not finite, or if its correction is larger than proposals ever need. It is then halved
    until it passes.

    Parameters
    ----------
    propose : callable
        Returns the sizes for where the lanes are now, in float64.
    sizes : Tensor of shape (n_lanes,)
        The longest steps, in float64.
    limit : float
        Largest error of a base step that is taken, in units of the tolerance.
    """

    def __init__(self, propose: Callable[[], Tensor], sizes: Tensor, limit: float):
        self._propose, self._longest, self.limit = propose, sizes, limit
        self.sizes, self.shares = sizes, torch.ones_like(sizes)

    @torch.no_grad()
    def even(self, left: Tensor) -> Tensor:
        """Return steps that divide what is left of the span evenly."""
        # Where f is not finite there is no proposal. The step shows it, and fails.
        proposed = self._propose().nan_to_num(nan=torch.inf)
        self.sizes = torch.minimum(proposed, self._longest) * self.shares
        return divide_evenly(left, self.sizes)

    def accepts(self, errors: Tensor) -> Tensor:
        """Return which steps are taken."""
        return errors <= self.limit

    def update(self, eps: Tensor, errors: Tensor) -> None:
        """Halve the steps that failed."""
        passes = self.accepts(errors)
        # Half of what was tried, which may be shorter than what was proposed.
        self.shares = torch.where(passes, 1.0, self.shares * (eps.abs() / self.sizes).clamp(max=1) / 2)
        self.sizes = torch.where(passes, eps.abs(), eps.abs() / 2)

    def keep(self, lanes: Tensor) -> None:
        """Go on with some of the lanes."""
        self._longest, self.sizes, self.shares = self._longest[lanes], self.sizes[lanes], self.shares[lanes]
