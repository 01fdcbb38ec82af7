"""The library's own nets for a correction g. They read features of a step, and return g and weights of the stages."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Self

import torch
from torch import Tensor, nn

from ...numerics.methods import Method, StepKind, StepPlan
from ...numerics.residuals import Residual
from ...numerics.tensors import flatten_samples, in_own_units, per_row
from .contract import CorrectionNet, ScaleSample
from .folded import FoldedNet
from .layers import GATE_BOUND, CorrectionLayout, StepWeights, multiply_matrices, weigh_stages
from .scales import ErrorRanges, InputScales


class GatedNet(CorrectionNet):
    """Base class of both nets: scaled features in, a raw output and gates of the stages out. Starts at zero.

    Features are z, x if the field has one, the first stage, and for each further stage the difference quotient
    (r_i - r_1) / (c_i eps). The quotient stays O(1) as eps -> 0, and shows the derivative of f along the step for any
    c_i. All weights are linear in s and eps (:class:`StepWeights`).

    For eps -> 0, R is linear in the method's leading error. So are the weights of a net that is fitted over a family of
    methods. Steps that are not of the main kind add their own term to the weights. Scaled features that such steps lack
    are zero.

    Parameters
    ----------
    layout : CorrectionLayout
    weights : StepWeights
    activations : nn.ModuleList
        One after each layer but the last.
    scales : InputScales
    """

    takes_row_steps = True

    def __init__(self, layout: CorrectionLayout, weights: StepWeights, activations: nn.ModuleList, scales: InputScales):
        super().__init__()
        self.layout, self.weights, self.activations, self.scales = layout, weights, activations, scales

    @classmethod
    def from_layers(cls, layout: CorrectionLayout, layers: Sequence[nn.Linear | nn.Conv2d]) -> Self:
        """Return a new net with the weights of these layers, and a last layer of zeros."""
        activations = nn.ModuleList(layout.activation() for _ in layers[1:])
        return cls(layout, StepWeights(layout.n_terms, layers), activations, InputScales(layout.n_in))

    def covers(self, method: Method) -> bool:
        return not self.layout.reads_tableau or self.scales.errors.cover(method.main_kind)

    # ------------------------------------------------------------------ scales
    def with_scales(self, sample: ScaleSample) -> Self:
        scales = InputScales(self.layout.n_in).to(self.scales.shift)
        kinds = [residual.kind for residual in sample.residuals]
        if self.layout.reads_tableau:
            scales.errors = ErrorRanges.of(kinds)
        scales.eps_max = max(abs(r.eps) for r in sample.residuals)
        start, end = sample.t_span
        scales.middle, scales.per_half = (start + end) / 2, 2 / abs(end - start)
        # Start-up steps lack features, so leave them out. About eight steps are enough to measure scales; the features
        # of all steps would double the memory of the training set.
        full = [r for r in sample.residuals if r.kind.n_stages == self.layout.n_stages]
        measured = (full or [sample.residuals[0]])[:: max(1, len(full) // 8)]
        self._measure(scales, measured, sample.x)
        return type(self)(self.layout, self.weights, self.activations, scales)

    def _measure(self, scales: InputScales, residuals: Sequence[Residual], x: Tensor | None) -> None:
        """Set shift and scale from the features in these steps."""
        stacked = torch.cat([self._join(self._features(r.eps, r.z, r.stages, x, r.kind)) for r in residuals])
        axes = [0, *range(2, stacked.ndim)]
        known = stacked.shape[1]
        stacked, unit = in_own_units(stacked, tuple(axes))
        unit = unit.flatten()
        scales.shift[:known] = self._center(stacked.mean(dim=axes) * unit)
        deviation = stacked.std(dim=axes, unbiased=False) * unit
        size = stacked.pow(2).mean(dim=axes).sqrt() * unit
        # Where stages are equal, their quotients are rounding of the first stage divided by eps. Measure their size by
        # the first stage over eps, so that the test below recognises such quotients as constant.
        n, quotients = self.layout.n_state, self.layout.n_before + self.layout.n_state
        smallest = min(abs(r.eps) for r in residuals)
        size[quotients:] = (size[quotients - n : quotients] / smallest).repeat((known - quotients) // n)
        # A feature that varies by no more than rounding is constant. Dividing by its size keeps that rounding small;
        # dividing by its deviation would blow it up.
        rounding = 32 * torch.finfo(size.dtype).eps
        spread = torch.where(deviation > rounding * size, deviation, size)
        scales.scale[:known] = 1 / torch.where(spread > 0, spread, torch.ones_like(spread))

    # ------------------------------------------------------------------ g
    def forward(
        self, eps: Any, s: Tensor, z: Tensor, stages: Sequence[Tensor], x: Tensor | None, kind: StepKind
    ) -> Tensor:
        h = self.scales.normalize(self._join(self._features(eps, z, stages, x, kind)))
        first, *later = self.weights.layers(self.terms(eps, s, kind))
        out = first(h)
        for activation, layer in zip(self.activations, later, strict=True):
            out = layer(activation(out))
        return self._combine(out, h[:, self.layout.n_before :]).reshape(z.shape)

    def _combine(self, out: Tensor, stages: Tensor) -> Tensor:
        """Split the last layer's output into correction and gates, and add the scaled stages, weighted by the gates."""
        n = self.layout.n_state
        g = out[:, :n]
        if not self.layout.n_gate:
            return g
        if self.layout.has_matrix_gate:
            # For Euler's method R is (f_t + J f) / 2 to leading order. J f is a state-dependent matrix times the first
            # stage, which is what a matrix gate computes.
            return g + multiply_matrices(GATE_BOUND * torch.tanh(out[:, n:] / GATE_BOUND), stages)
        return weigh_stages(g, torch.tanh(out[:, n:]), stages.split(n, dim=1))

    def _features(
        self, eps: Any, z: Tensor, stages: Sequence[Tensor], x: Tensor | None, kind: StepKind
    ) -> list[Tensor]:
        first, *later = stages
        eps = per_row(eps, z)
        quotients = [(stage - first) / (c * eps) for stage, c in zip(later, kind.spacings, strict=True)]
        return [z, first, *quotients] if x is None else [z, x, first, *quotients]

    def terms(self, eps: Any, s: Tensor, kind: StepKind) -> Tensor:
        """Return the terms in which the weights are linear, 1 first: in shape (n,), or (batch, n) for steps by row."""
        scales, layout = self.scales, self.layout
        share = scales.time_share(s)
        terms: list[Any] = [1.0, share, eps / scales.eps_max]
        if layout.reads_tableau:
            terms += scales.errors.scale(kind)
        terms += [float(kind.family == family) for family in layout.other_families]
        return torch.stack([t if isinstance(t, Tensor) else torch.full_like(share, t) for t in terms], dim=-1)

    def fold(self, plan: StepPlan, scale: Tensor) -> nn.Module:
        scales = self.scales.scale, self.scales.shift
        layers = self.weights.at(self.terms_of(plan))
        return FoldedNet(self.layout, layers, self.activations, scales, self.slopes_of(plan), scale)

    def terms_of(self, plan: StepPlan) -> Tensor:
        """Return the terms of a step that is known beforehand."""
        return self.terms(plan.eps, self.scales.shift.new_tensor(plan.s, dtype=torch.float64), plan.kind)

    def slopes_of(self, plan: StepPlan) -> list[float]:
        """Return one factor per stage.

        Each later stage's feature is its difference from the first stage times its factor; the first's is itself.
        """
        return [1.0, *(1 / (spacing * plan.eps) for spacing in plan.kind.spacings)]

    @abstractmethod
    def _join(self, parts: Sequence[Tensor]) -> Tensor:
        """Concatenate features."""

    @abstractmethod
    def _center(self, mean: Tensor) -> Tensor:
        """Return what to subtract from the features, given their mean."""


class MLPCorrectionNet(GatedNet):
    """A fully connected net. States of any shape are flattened."""

    @classmethod
    def build(cls, layout: CorrectionLayout) -> Self:
        """Return a new net with this layout."""
        widths = [layout.n_in, *[layout.hidden] * layout.depth, layout.n_out]
        return cls.from_layers(layout, [nn.Linear(n_in, n_out) for n_in, n_out in pairwise(widths)])

    def _join(self, parts: Sequence[Tensor]) -> Tensor:
        return torch.cat([flatten_samples(part) for part in parts], dim=1)

    def _center(self, mean: Tensor) -> Tensor:
        return mean


class ConvCorrectionNet(GatedNet):
    """A convolutional net for image states."""

    takes_row_steps = False
    """Different weights in each row would take one convolution per row."""

    @classmethod
    def build(cls, layout: CorrectionLayout, kernel_size: int) -> Self:
        """Return a new net with this layout."""
        widths = [layout.n_in, *[layout.hidden] * layout.depth, layout.n_out]
        return cls.from_layers(layout, [nn.Conv2d(n_in, n_out, kernel_size) for n_in, n_out in pairwise(widths)])

    def _join(self, parts: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(parts), dim=1)

    def _center(self, mean: Tensor) -> Tensor:
        # Images are not shifted: convolutions pad with zeros, so folding could not move a shift into their biases.
        return torch.zeros_like(mean)
