"""Shifts and scales of a net's inputs, for one task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...numerics.methods import StepKind


@dataclass(frozen=True)
class ErrorRanges:
    """Ranges (low, high) of the two weights of the leading error over a family of methods, mapped to (-1, 1)."""

    ranges: tuple[tuple[float, float], ...] = ((-1.0, 1.0), (-1.0, 1.0))

    @classmethod
    def of(cls, kinds: Sequence[StepKind]) -> ErrorRanges:
        """Return the ranges over these kinds."""
        errors = [kind.leading_error for kind in kinds if kind.leading_error is not None]
        return cls(tuple((min(weights), max(weights)) for weights in zip(*errors, strict=True)))

    def scale(self, kind: StepKind) -> tuple[float, ...]:
        """Return the leading error of a kind, scaled to lie between -1 and 1 over the family."""
        return tuple(
            (2 * error - low - high) / (high - low or 1.0)
            for error, (low, high) in zip(kind.leading_error or (), self.ranges, strict=True)
        )

    def cover(self, kind: StepKind) -> bool:
        """Return whether a kind's leading error lies within the family's ranges."""
        slack = 1e-6
        return kind.leading_error is not None and all(
            low - slack <= error <= high + slack
            for error, (low, high) in zip(kind.leading_error, self.ranges, strict=True)
        )


class InputScales(nn.Module):
    """Shifts and scales that give a net's features mean zero and deviation one on one task.

    Parameters
    ----------
    n_features : int
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, n_features: int):
        super().__init__()
        self.register_buffer("shift", torch.zeros(n_features))
        self.register_buffer("scale", torch.ones(n_features))
        self.eps_max = 1.0
        # Plain numbers, not tensors: s may lie so far from zero that float32 does not resolve it.
        self.middle, self.per_half = 0.0, 1.0
        self.errors = ErrorRanges()

    def time_share(self, s: Tensor) -> Tensor:
        """Map time to a number from -1 to 1 over the span."""
        return ((s - self.middle) * self.per_half).to(self.shift.dtype)

    def normalize(self, features: Tensor) -> Tensor:
        """Shift and scale features. Append zeros for features that a step with fewer stages lacks."""
        known, n_features = features.shape[1], len(self.shift)
        per_feature = (-1, *[1] * (features.ndim - 2))
        shift, scale = (t[:known].reshape(per_feature) for t in (self.shift, self.scale))
        h = torch.addcmul(-shift * scale, features, scale)
        if known == n_features:
            return h
        # h.shape[0] instead of len(h), which an export would treat as a constant.
        return torch.cat([h, h.new_zeros(h.shape[0], n_features - known, *h.shape[2:])], dim=1)
