"""The nets that compute a correction g."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..numerics.base_solvers import BaseSolver
from ..numerics.residuals import Residual
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


class StepLayer(nn.Module):
    r"""A linear or convolutional layer whose weights depend on the step.

    .. math:: W(s, \epsilon) = W_0 + \sum_m \phi_m(s, \epsilon)\, W_m

    s and eps are the same for a whole batch, so this costs a sum of weights a step and no product a sample: capacity that
    does not show in the MACs.
    """

    def __init__(self, n_terms: int, layer: nn.Linear | nn.Conv2d):
        super().__init__()
        weight, bias = layer.weight.detach(), layer.bias.detach()  # type: ignore[union-attr]
        self.weight = nn.Parameter(torch.cat([weight[None], torch.zeros(n_terms, *weight.shape)]))
        self.bias = nn.Parameter(torch.cat([bias[None], torch.zeros(n_terms, *bias.shape)]))

    def start_at_zero(self) -> None:
        """Make the layer return zero, whatever the step."""
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def at(self, terms: Tensor) -> tuple[Tensor, Tensor]:
        """Weight and bias of one step."""
        weight = torch.mv(self.weight.flatten(1).t(), terms).view(self.weight.shape[1:])
        return weight, torch.mv(self.bias.t(), terms)

    def forward(self, h: Tensor, terms: Tensor) -> Tensor:
        """The layer on a batch of one step, for terms (1, phi_1, ...), or with a step a row, for a row of terms each."""
        if terms.ndim == 1:
            return multiply(h, *self.at(terms))
        # All W_m h in one product, then their sum: no loop over the steps of a batch.
        products = multiply(h, self.weight.flatten(0, 1), self.bias.flatten())
        return torch.einsum("nm,nm...->n...", terms, products.unflatten(1, (terms.shape[1], -1)))


def multiply(h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """h through a linear or a convolutional layer."""
    if weight.ndim == 2:
        return functional.linear(h, weight, bias)
    return functional.conv2d(h, weight, bias, padding="same")


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
    c_i is. All weights are linear in s and eps (:class:`StepLayer`).

    Fitted over a family, they are linear in the base solver's leading error too, for R is as eps -> 0. With a multistep
    method, start-up steps (known by their fewer stages) have weights of their own; the (scaled) features they lack are zero.
    """

    shift: Tensor
    scale: Tensor
    time_range: Tensor

    def __init__(self, layout: CorrectionLayout, layers: Sequence[nn.Linear | nn.Conv2d]):
        super().__init__()
        self.layout = layout
        self.eps_max = 1.0
        # Of the base solver that the net is bound to. Bound to none, quotients are (r_i - r_1) / eps.
        self.spacings: tuple[float, ...] = ()
        self.startup_spacings: tuple[float, ...] = ()
        self.leading_error = (0.0, 0.0)
        self.error_ranges = [(-1.0, 1.0), (-1.0, 1.0)]
        self.layers = nn.ModuleList(StepLayer(layout.n_terms, layer) for layer in layers)
        self.activations = nn.ModuleList(layout.activation() for _ in layers[1:])
        self.layers[-1].start_at_zero()  # type: ignore[operator]
        self.register_buffer("shift", torch.zeros(layout.n_in))
        self.register_buffer("scale", torch.ones(layout.n_in))
        self.register_buffer("time_range", torch.tensor([0.0, 1.0]))

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
        self.shift[:known] = self._center(stacked.mean(dim=axes))
        deviation = stacked.std(dim=axes, unbiased=False)
        self.scale[:known] = 1 / torch.where(deviation > 1e-6, deviation, torch.ones_like(deviation))
        self.eps_max = max(abs(r.eps) for r in residuals)
        middle, half = (t_span[0] + t_span[1]) / 2, abs(t_span[1] - t_span[0]) / 2
        self.time_range.copy_(torch.tensor([middle, 1 / half]))

    # ------------------------------------------------------------------ g
    def forward(
        self, eps: float | Tensor, s: Tensor, z: Tensor, stages: Sequence[Tensor], x: Tensor | None = None
    ) -> Tensor:
        """g, in the units that training gave it; eps and s may also hold a number a row."""
        h = self._normalize(self._join(self._features(eps, z, stages, x)))
        terms = self.terms(eps, s, len(stages))
        out = self.layers[0](h, terms)
        for activation, layer in zip(self.activations, list(self.layers)[1:], strict=True):
            out = layer(activation(out), terms)
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
        middle, per_half = self.time_range.unbind()
        terms: list[Any] = [1.0, (s - middle) * per_half, eps / self.eps_max]
        if self.layout.reads_tableau:
            terms += self.leading_error
        if self.layout.reads_startup:
            terms.append(float(n_stages < self.layout.n_stages))
        return torch.stack([t if isinstance(t, Tensor) else torch.full_like(terms[1], t) for t in terms], dim=-1)

    def _normalize(self, features: Tensor) -> Tensor:
        """Features shifted and scaled, with zeros for those that a start-up step lacks."""
        known = features.shape[1]
        per_feature = (-1, *[1] * (features.ndim - 2))
        h = (features - self.shift[:known].reshape(per_feature)) * self.scale[:known].reshape(per_feature)
        if known == self.layout.n_in:
            return h
        return torch.cat([h, h.new_zeros(len(h), self.layout.n_in - known, *h.shape[2:])], dim=1)

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
    return torch.bmm(entries.reshape(-1, entries.shape[1] // width, width), stages.unsqueeze(2)).squeeze(2)


def weigh_stages(g: Tensor, gates: Tensor, stages: Sequence[Tensor]) -> Tensor:
    """g plus every stage times its gate."""
    for i, stage in enumerate(stages):
        g = torch.addcmul(g, gates[:, i : i + 1], stage)
    return g
