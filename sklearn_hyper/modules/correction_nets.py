"""The nets that compute a correction g."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..numerics.base_solvers import BaseSolver
from ..numerics.residuals import Residual, in_own_units
from .solver_binding import leading_error, make_view, stage_spacings

GATE_BOUND = 4.0
"""What the entries of a matrix gate stay below."""
_MATRIX_GATE = 4
"""Up to this many dimensions the gate is a matrix a stage, above it one number."""


def flatten_samples(t: Tensor) -> Tensor:
    """(batch, ...) to (batch, n); a state may have no axis but the batch's."""
    return t if t.ndim == 2 else t.reshape(t.shape[0], -1)


def wants_matrix_gate(n_state: int) -> bool:
    """Whether a vector state is small enough for a gate that is a matrix a stage."""
    return n_state <= _MATRIX_GATE


def row_column(value: Any, like: Tensor) -> Any:
    """A number a row, shaped to multiply a tensor of states; a number for all is left as it is."""
    return value.reshape(-1, *[1] * (like.ndim - 1)) if isinstance(value, Tensor) and value.ndim else value


class StepWeights(nn.Module):
    r"""Weights and biases of all layers of a net, each of which depends on the step.

    .. math:: W(s, \epsilon) = W_0 + \sum_m \phi_m(s, \epsilon)\, W_m

    s and eps are the same for a whole batch, so this costs a sum of weights a step and no product a sample: capacity that
    does not show in the MACs. All of them lie in one parameter, a row for every term: one product a step then makes the
    weights of all layers, and an optimizer has one tensor to update. A small net's training is made of such overheads.
    """

    def __init__(self, n_terms: int, layers: Sequence[nn.Linear | nn.Conv2d]):
        super().__init__()
        parts = [part.detach() for layer in layers for part in (layer.weight, layer.bias)]  # type: ignore[union-attr]
        self.shapes = [part.shape for part in parts]
        constant = torch.cat([part.flatten() for part in parts])
        self.values = nn.Parameter(torch.cat([constant[None], torch.zeros(n_terms, len(constant))]))
        with torch.no_grad():
            self._split(self.values)[-2].zero_()  # whatever the step, the last layer starts at zero
            self._split(self.values)[-1].zero_()

    def _split(self, values: Tensor) -> tuple[Tensor, ...]:
        return values.split([shape.numel() for shape in self.shapes], dim=-1)

    def at(self, terms: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Weight and bias of every layer in one step."""
        parts = [
            part.view(shape)
            for part, shape in zip(self._split(torch.mv(self.values.t(), terms)), self.shapes, strict=True)
        ]
        return list(zip(parts[::2], parts[1::2], strict=True))

    def layers(self, terms: Tensor) -> list[Callable[[Tensor], Tensor]]:
        """The layers in the step of these terms (1, phi_1, ...), or with a step a row, for a row of terms each."""
        if terms.ndim == 1:
            return [partial(multiply, weight=weight, bias=bias) for weight, bias in self.at(terms)]
        n_terms, parts = len(self.values), self._split(self.values)
        return [
            partial(multiply_rows, terms=terms, weights=weights.view(n_terms, *shape), biases=biases)
            for weights, shape, biases in zip(parts[::2], self.shapes[::2], parts[1::2], strict=True)
        ]


def multiply(h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """h through a linear or a convolutional layer."""
    if weight.ndim == 2:
        return functional.linear(h, weight, bias)
    return functional.conv2d(h, weight, bias, padding="same")


def multiply_rows(h: Tensor, terms: Tensor, weights: Tensor, biases: Tensor) -> Tensor:
    """h through a layer whose weights are, for every row, the sum of ``weights`` by that row's terms."""
    # sum_m phi_m W_m h is one product: of the W_m side by side with every phi_m h, stacked. No loop over a batch's steps.
    positions = [1] * (h.ndim - 2)
    stacked = (terms.reshape(*terms.shape, 1, *positions) * h.unsqueeze(1)).flatten(1, 2)
    side_by_side = weights.transpose(0, 1).flatten(1, 2)
    bias = terms @ biases
    if h.ndim == 2:
        return torch.addmm(bias, stacked, side_by_side.t())
    return functional.conv2d(stacked, side_by_side, padding="same") + bias.reshape(*bias.shape, *positions)


@dataclass(frozen=True)
class CorrectionLayout:
    """What a net reads and returns, in features of a vector or channels of an image."""

    state_shape: tuple[int, ...]
    n_state: int
    n_stages: int
    n_input: int
    """Of x, for data-controlled fields."""
    n_gate: int
    """Numbers that weigh a stage: none, one, or the entries of a matrix."""
    has_matrix_gate: bool
    hidden: int
    depth: int
    activation: Callable[[], nn.Module]
    reads_tableau: bool
    reads_startup: bool

    @property
    def n_before(self) -> int:
        """What comes before the stages: the state and x."""
        return self.n_state + self.n_input

    @property
    def n_in(self) -> int:
        return self.n_before + self.n_state * self.n_stages

    @property
    def n_out(self) -> int:
        return self.n_state + self.n_gate * self.n_stages

    @property
    def n_terms(self) -> int:
        """s and eps; the two weights of the leading error; whether the step is a start-up step."""
        return 2 + 2 * self.reads_tableau + self.reads_startup


class CorrectionNet(nn.Module):
    """Shared by both nets: scaled features in, raw output and gate out. Starts at zero.

    Features are z, x where the field has one, the first stage, and for every further stage the difference quotient
    (r_i - r_1) / (c_i eps), which stays O(1) as eps -> 0 and tells the net the derivative of f along the step, whatever
    c_i is. All weights are linear in s and eps (:class:`StepWeights`).

    Fitted over a family, they are linear in the base solver's leading error too, for R is as eps -> 0. With a multistep
    method, start-up steps (known by their fewer stages) have weights of their own; the (scaled) features they lack are zero.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, layout: CorrectionLayout, layers: Sequence[nn.Linear | nn.Conv2d]):
        super().__init__()
        self.layout = layout
        self.eps_max = 1.0
        # In plain numbers: s may be so far from zero that a float32 does not hold it.
        self.middle, self.per_half = 0.0, 1.0
        # Of the base solver that the net is bound to. Bound to none, quotients are (r_i - r_1) / eps.
        self.spacings: tuple[float, ...] = ()
        self.startup_spacings: tuple[float, ...] = ()
        self.leading_error = (0.0, 0.0)
        self.error_ranges = [(-1.0, 1.0), (-1.0, 1.0)]
        self.weights = StepWeights(layout.n_terms, layers)
        self.activations = nn.ModuleList(layout.activation() for _ in layers[1:])
        self.register_buffer("shift", torch.zeros(layout.n_in))
        self.register_buffer("scale", torch.ones(layout.n_in))

    # ------------------------------------------------------------------ the base solver
    def for_solver(self, solver: BaseSolver) -> CorrectionNet:
        """This net bound to a base solver: a view that shares its weights, or itself where it is bound to it already."""
        known = (stage_spacings(solver), self._startup_spacings(solver), self._scaled_error(solver))
        if known == (self.spacings, self.startup_spacings, self.leading_error):
            return self
        view = make_view(self)
        view.spacings, view.startup_spacings, view.leading_error = known
        return view

    def _startup_spacings(self, solver: BaseSolver) -> tuple[float, ...]:
        return stage_spacings(solver, 1) if self.layout.reads_startup else ()

    def _scaled_error(self, solver: BaseSolver) -> tuple[float, float]:
        """The base solver's leading error, from -1 to 1 over the fitted family."""
        if not self.layout.reads_tableau:
            return self.leading_error
        one, other = (
            (2 * error - low - high) / (high - low or 1.0)
            for error, (low, high) in zip(leading_error(solver), self.error_ranges, strict=True)
        )
        return one, other

    def covers(self, solver: BaseSolver) -> bool:
        """Whether a base solver lies within the fitted family, if the net has been fitted over one."""
        slack = 1e-6
        return not self.layout.reads_tableau or all(
            low - slack <= error <= high + slack
            for error, (low, high) in zip(leading_error(solver), self.error_ranges, strict=True)
        )

    # ------------------------------------------------------------------ scales
    def set_scales(
        self,
        residuals: Sequence[Residual],
        x: Tensor | None,
        t_span: tuple[float, float],
        solvers: Sequence[BaseSolver] = (),
    ) -> None:
        """Take the scaling of the inputs from a sample of residuals, and from the base solver of each."""
        if self.layout.reads_tableau and solvers:
            self.error_ranges = [
                (min(errors), max(errors)) for errors in zip(*map(leading_error, solvers), strict=True)
            ]
        nets = [self.for_solver(solver) for solver in solvers] or [self] * len(residuals)
        # Start-up steps lack features. A few steps' tell the scales; those of all would double the memory of the set.
        full = [pair for pair in zip(nets, residuals, strict=True) if len(pair[1].stages) == self.layout.n_stages]
        few = (full or [(nets[0], residuals[0])])[:: max(1, len(full) // 8)]
        stacked = torch.cat([self._join(net._features(r.eps, r.z, r.stages, x)) for net, r in few])
        axes = [0, *range(2, stacked.ndim)]
        known = stacked.shape[1]
        self.eps_max = max(abs(r.eps) for r in residuals)
        stacked, unit = in_own_units(stacked, tuple(axes))
        unit = unit.flatten()
        self.shift[:known] = self._center(stacked.mean(dim=axes) * unit)
        deviation = stacked.std(dim=axes, unbiased=False) * unit
        size = stacked.pow(2).mean(dim=axes).sqrt() * unit
        # Equal stages have quotients of their rounding, which is that of the first one over eps.
        n, quotients = self.layout.n_state, self.layout.n_before + self.layout.n_state
        smallest = min(abs(r.eps) for _, r in few)
        size[quotients:] = (size[quotients - n : quotients] / smallest).repeat((known - quotients) // n)
        # What varies by no more than rounding is constant: in units of its size, that stays as small as it is.
        rounding = 32 * torch.finfo(size.dtype).eps
        spread = torch.where(deviation > rounding * size, deviation, size)
        self.scale[:known] = 1 / torch.where(spread > 0, spread, torch.ones_like(spread))
        self.middle, self.per_half = (t_span[0] + t_span[1]) / 2, 2 / abs(t_span[1] - t_span[0])

    # ------------------------------------------------------------------ g
    def forward(
        self, eps: float | Tensor, s: Tensor, z: Tensor, stages: Sequence[Tensor], x: Tensor | None = None
    ) -> Tensor:
        """g, in the units that training gave it; eps and s may also hold a number a row."""
        h = self._normalize(self._join(self._features(eps, z, stages, x)))
        first, *others = self.weights.layers(self.terms(eps, s, len(stages)))
        out = first(h)
        for activation, layer in zip(self.activations, others, strict=True):
            out = layer(activation(out))
        return self._combine(out, h[:, self.layout.n_before :]).reshape(z.shape)

    def _combine(self, out: Tensor, stages: Tensor) -> Tensor:
        """Split the last layer's output into correction and gate; weigh the (scaled) stages by the gate."""
        n = self.layout.n_state
        g = out[:, :n]
        if not self.layout.n_gate:
            return g
        if self.layout.has_matrix_gate:
            # R is (f_t + J f) / 2 to leading order: a matrix that depends on the state, times the first stage.
            return g + multiply_matrices(GATE_BOUND * torch.tanh(out[:, n:] / GATE_BOUND), stages)
        return weigh_stages(g, torch.tanh(out[:, n:]), stages.split(n, dim=1))

    def _features(self, eps: float | Tensor, z: Tensor, stages: Sequence[Tensor], x: Tensor | None) -> list[Tensor]:
        first, *others = stages
        spacings, eps = self.spacings_of(len(stages)), row_column(eps, z)
        quotients = [(stage - first) / (c * eps) for stage, c in zip(others, spacings, strict=True)]
        return [z, first, *quotients] if x is None else [z, x, first, *quotients]

    def spacings_of(self, n_stages: int) -> Sequence[float]:
        """What the differences of so many stages are divided by, in units of eps."""
        bound = self.spacings if n_stages == self.layout.n_stages else self.startup_spacings
        return bound or [1.0] * (n_stages - 1)

    def terms(self, eps: float | Tensor, s: Tensor, n_stages: int) -> Tensor:
        """1, and what the weights are linear in: one number each, or a row of them for every row."""
        share = ((s - self.middle) * self.per_half).to(self.shift.dtype)
        terms: list[Any] = [1.0, share, eps / self.eps_max]
        if self.layout.reads_tableau:
            terms += self.leading_error
        if self.layout.reads_startup:
            terms.append(float(n_stages < self.layout.n_stages))
        return torch.stack([t if isinstance(t, Tensor) else torch.full_like(share, t) for t in terms], dim=-1)

    def _normalize(self, features: Tensor) -> Tensor:
        """Features shifted and scaled, with zeros for those that a start-up step lacks."""
        known = features.shape[1]
        per_feature = (-1, *[1] * (features.ndim - 2))
        shift, scale = (t[:known].reshape(per_feature) for t in (self.shift, self.scale))
        h = torch.addcmul(-shift * scale, features, scale)
        if known == self.layout.n_in:
            return h
        # Not len(h), which an export would take for a constant.
        return torch.cat([h, h.new_zeros(h.shape[0], self.layout.n_in - known, *h.shape[2:])], dim=1)

    @abstractmethod
    def _join(self, parts: Sequence[Tensor]) -> Tensor:
        """Features side by side."""

    @abstractmethod
    def _center(self, mean: Tensor) -> Tensor:
        """What to take off the features, given their mean."""


class MLPCorrectionNet(CorrectionNet):
    """A fully connected net; states of any shape are flattened."""

    def __init__(self, layout: CorrectionLayout):
        widths = [layout.n_in, *[layout.hidden] * layout.depth, layout.n_out]
        super().__init__(layout, [nn.Linear(n_in, n_out) for n_in, n_out in pairwise(widths)])

    def _join(self, parts: Sequence[Tensor]) -> Tensor:
        return torch.cat([flatten_samples(part) for part in parts], dim=1)

    def _center(self, mean: Tensor) -> Tensor:
        return mean


class ConvCorrectionNet(CorrectionNet):
    """A convolutional net for image states."""

    def __init__(self, layout: CorrectionLayout, kernel_size: int):
        widths = [layout.n_in, *[layout.hidden] * layout.depth, layout.n_out]
        super().__init__(layout, [nn.Conv2d(n_in, n_out, kernel_size) for n_in, n_out in pairwise(widths)])

    def _join(self, parts: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(parts), dim=1)

    def _center(self, mean: Tensor) -> Tensor:
        # Not shifted: convolutions pad with zeros, so that a shift could not move into their biases.
        return torch.zeros_like(mean)


def multiply_matrices(entries: Tensor, stages: Tensor) -> Tensor:
    """Per sample, the matrix of these entries, row by row, times the stages side by side."""
    width = stages.shape[1]
    # Not bmm, which loops over the batch: for matrices as small as these that takes several times as long.
    return (entries.unflatten(1, (-1, width)) * stages.unsqueeze(1)).sum(dim=2)


def weigh_stages(g: Tensor, gates: Tensor, stages: Sequence[Tensor]) -> Tensor:
    """g plus every stage times its gate."""
    for i, stage in enumerate(stages):
        g = torch.addcmul(g, gates[:, i : i + 1], stage)
    return g
