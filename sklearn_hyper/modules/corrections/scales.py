"""What a net's inputs are shifted and scaled by, for one task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...numerics.methods import StepKind


@dataclass(frozen=True)
class ErrorRanges:
    """Where the leading errors of a family of methods lie: from (low, high) of each of its two weights to (-1, 1)."""

    ranges: tuple[tuple[float, float], ...] = ((-1.0, 1.0), (-1.0, 1.0))

    @classmethod
    def of(cls, kinds: Sequence[StepKind]) -> ErrorRanges:
        errors = [kind.leading_error for kind in kinds if kind.leading_error is not None]
        return cls(tuple((min(one), max(one)) for one in zip(*errors, strict=True)))

    def scale(self, kind: StepKind) -> tuple[float, ...]:
        """Leading error of a kind, from -1 to 1 over the family."""
        return tuple(
            (2 * error - low - high) / (high - low or 1.0)
            for error, (low, high) in zip(kind.leading_error or (), self.ranges, strict=True)
        )

    def cover(self, kind: StepKind) -> bool:
        """Whether a kind's leading error lies within the family's."""
        slack = 1e-6
        return kind.leading_error is not None and all(
            low - slack <= error <= high + slack
            for error, (low, high) in zip(kind.leading_error, self.ranges, strict=True)
        )


class InputScales(nn.Module):
    """What a net's inputs are shifted and scaled by, for one task: all features to mean zero and deviation one.

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
        # In plain numbers: s may be so far from zero that a float32 does not hold it.
        self.middle, self.per_half = 0.0, 1.0
        self.errors = ErrorRanges()

    def time_share(self, s: Tensor) -> Tensor:
        """Map the span of time to (-1, 1)."""
        return ((s - self.middle) * self.per_half).to(self.shift.dtype)

    def normalize(self, features: Tensor) -> Tensor:
        """Shift and scale features; append zeros for those that a step with fewer stages lacks."""
        known, n_features = features.shape[1], len(self.shift)
        per_feature = (-1, *[1] * (features.ndim - 2))
        shift, scale = (t[:known].reshape(per_feature) for t in (self.shift, self.scale))
        h = torch.addcmul(-shift * scale, features, scale)
        if known == n_features:
            return h
        # Not len(h), which an export would take for a constant.
        return torch.cat([h, h.new_zeros(h.shape[0], n_features - known, *h.shape[2:])], dim=1)
