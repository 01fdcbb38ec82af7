"""What is left of a correction's net in a single step, once all that is constant there is folded into its weights."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from .correction_nets import (
    GATE_BOUND,
    CorrectionLayout,
    CorrectionNet,
    flatten_samples,
    multiply,
    multiply_matrices,
    weigh_stages,
)


class FoldedNet(nn.Module):
    """A net at one step, with scales, s, eps and difference quotients in its weights.

    For inference: it reads z and the stages as they come, and neither eps nor s.
    """

    @torch.no_grad()
    def __init__(self, net: CorrectionNet, eps: float, s: float, n_stages: int, output_scale: Tensor):
        super().__init__()
        layout, n = net.layout, net.layout.n_state
        self.n_state, self.has_gate, self.has_matrix_gate = n, layout.n_gate > 0, layout.has_matrix_gate
        terms = net.terms(eps, net.shift.new_tensor(s), n_stages)
        (first, first_bias), *layers = (layer.at(terms) for layer in net.layers)  # type: ignore[operator]
        self.is_image = first.ndim == 4
        known = layout.n_before + n * n_stages
        scale, shift = net.scale[:known], net.shift[:known]
        # A stage's feature: its difference from the first one (the first: itself) times a slope.
        slopes = [1.0, *(1 / (spacing * eps) for spacing in net.spacings_of(n_stages))]
        first = first[:, :known] * _per_channel(scale, first.ndim - 1)
        self.first = _frozen(_on_raw_inputs(first, layout, slopes))
        # An image net does not shift.
        first_bias = first_bias if self.is_image else first_bias - first @ shift
        output_scale = output_scale.expand(layout.state_shape)
        output_scale = output_scale[:, 0, 0] if self.is_image else output_scale.flatten()
        unit = output_scale.new_full((n,), GATE_BOUND) if self.has_matrix_gate else output_scale
        last, last_bias = layers.pop()
        rows, factors = self._outputs(layout, n_stages, output_scale)
        layers.append((last[rows] * _per_channel(factors, last.ndim), last_bias[rows] * factors))
        self.activations = copy.deepcopy(net.activations)
        self.weights = _frozen([weight for weight, _ in layers])
        self.biases = _frozen([first_bias, *(bias for _, bias in layers)])
        per_stage = zip(scale[layout.n_before :].split(n), shift[layout.n_before :].split(n), slopes, strict=True)
        state = last.ndim - 1
        gate = [
            (_per_channel(slope * k * unit, state), _per_channel(-m * k * unit, state)) for k, m, slope in per_stage
        ]
        self.gate_slopes = _frozen([slope for slope, _ in gate])
        self.gate_offsets = _frozen([offset for _, offset in gate])
        self.output_scale = nn.Parameter(output_scale.clone(), requires_grad=False)

    def _outputs(self, layout: CorrectionLayout, n_stages: int, output_scale: Tensor) -> tuple[Tensor, Tensor]:
        """Which outputs of the last layer to keep (gates of stages that are there), and what to multiply them by."""
        n = layout.n_state
        gates = torch.arange(n, layout.n_out, device=output_scale.device)
        if self.has_matrix_gate:
            gates = gates.unflatten(0, (n, -1))[:, : n * n_stages].flatten()
        elif self.has_gate:
            gates = gates[:n_stages]
        rows = torch.cat([torch.arange(n, device=gates.device), gates])
        factor = 1 / GATE_BOUND if self.has_matrix_gate else 1.0
        return rows, torch.cat([output_scale, output_scale.new_full((len(gates),), factor)])

    def forward(self, eps: float, s: Tensor, z: Tensor, stages: Sequence[Tensor], x: Tensor | None = None) -> Tensor:
        """g, in the units of its targets."""
        inputs = [z, *([] if x is None else [x]), *stages]
        (first, *others), (bias, *biases) = _listed(self.first), _listed(self.biases)
        if self.is_image:
            out = multiply(torch.cat(inputs, dim=1), first, bias)
        else:
            inputs = [flatten_samples(part) for part in inputs]
            out = functional.linear(inputs[0], first, bias)
            # Products that add up, where a concatenation would copy.
            for part, weight in zip(inputs[1:], others, strict=True):
                out = torch.addmm(out, part, weight.t())
        for activation, weight, bias in zip(self.activations, _listed(self.weights), biases, strict=True):
            out = multiply(activation(out), weight, bias)
        g = self._combine(out, inputs[-len(stages) :])
        return g if g.ndim == z.ndim else g.reshape(z.shape)

    def _combine(self, out: Tensor, stages: Sequence[Tensor]) -> Tensor:
        n = self.n_state
        if not self.has_gate:
            return out
        first, *others = stages
        weighed = [
            torch.addcmul(offset, stage, slope)
            for offset, stage, slope in zip(
                _listed(self.gate_offsets),
                [first, *(stage - first for stage in others)],
                _listed(self.gate_slopes),
                strict=True,
            )
        ]
        gates = torch.tanh(out[:, n:])
        if self.has_matrix_gate:
            side_by_side = weighed[0] if len(weighed) == 1 else torch.cat(weighed, dim=1)
            return torch.addcmul(out[:, :n], multiply_matrices(gates, side_by_side), self.output_scale)
        return weigh_stages(out[:, :n], gates, weighed)


def _per_channel(values: Tensor, ndim: int) -> Tensor:
    """Values of rows or channels, shaped to multiply a weight, or a state without its batch, of ``ndim`` axes."""
    return values.reshape(-1, *[1] * (ndim - 1))


def _listed(tensors: nn.ParameterList) -> list[Tensor]:
    """Its tensors, without the list's own look-ups, which cost as much as a small product each."""
    return list(tensors._parameters.values())  # type: ignore[arg-type]


def _frozen(tensors: Sequence[Tensor]) -> nn.ParameterList:
    return nn.ParameterList([nn.Parameter(tensor.detach().clone(), requires_grad=False) for tensor in tensors])


def _on_raw_inputs(first: Tensor, layout: CorrectionLayout, slopes: Sequence[float]) -> list[Tensor]:
    """The first layer's weights on z, on x, and on the stages as they come instead of on quotients of them."""
    before, features = first[:, : layout.n_before], first[:, layout.n_before :].split(layout.n_state, dim=1)
    on_stages = [slope * feature for slope, feature in zip(slopes, features, strict=True)]
    on_first = on_stages[0] - sum(on_stages[1:])
    weights = [
        part for part in (*before.split([layout.n_state, layout.n_input], dim=1), on_first, *on_stages[1:])
        if part.shape[1]
    ]  # fmt: skip
    return [torch.cat(weights, dim=1)] if first.ndim == 4 else weights
