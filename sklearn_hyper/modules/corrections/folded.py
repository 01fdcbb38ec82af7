"""What is left of a correction's net in a single step, once all that is constant there is folded into its weights."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling, is_exporting
from torch.nn import functional

from ...numerics.tensors import flatten_samples
from .layers import GATE_BOUND, CorrectionLayout, multiply, weigh_stages

_MANY_IMAGES = 8
"""From so many on a convolution to few channels is a product first, see :func:`_convolve_by_columns`."""


class FoldedNet(nn.Module):
    """A gated net in one step, with scales, s, eps and difference quotients in its weights.

    For inference: it reads z and the stages as they come, and neither eps nor s. Its weights are made once, from those
    of the net, in four moves: features that are differences of stages become weights on the stages themselves; scales
    and shifts of the features go into the first layer; the output's scale goes into the last; and what the gate does to
    scaled stages becomes an affine map of the stages as they come.

    Parameters
    ----------
    layout : CorrectionLayout
    layers : list of (weight, bias)
        Of the net in this step.
    activations : nn.ModuleList
    scales : pair of Tensor
        (scale, shift) of the features.
    slopes : list of float
        For each stage, what its difference from the first one (of the first: itself) is multiplied by to make a
        feature.
    output_scale : Tensor
        What g is multiplied by, broadcastable to z.
    """

    @torch.no_grad()
    def __init__(
        self,
        layout: CorrectionLayout,
        layers: list[tuple[Tensor, Tensor]],
        activations: nn.ModuleList,
        scales: tuple[Tensor, Tensor],
        slopes: list[float],
        output_scale: Tensor,
    ):
        super().__init__()
        n, n_stages = layout.n_state, len(slopes)
        self.n_state, self.has_gate, self.has_matrix_gate = n, layout.n_gate > 0, layout.has_matrix_gate
        self.is_image = layers[0][0].ndim == 4
        known = layout.n_before + n * n_stages
        scale, shift = (part[:known] for part in scales)
        output_scale = output_scale.expand(layout.state_shape)
        output_scale = output_scale[:, 0, 0] if self.is_image else output_scale.flatten()
        (first, first_bias), *inner, last = layers
        first = first[:, :known] * _per_channel(scale, first.ndim - 1)
        # An image net does not shift.
        first_bias = first_bias if self.is_image else first_bias - first @ shift
        self.first = _frozen(_on_raw_inputs(first, layout, slopes))
        self.columns = _frozen([_columns(self.first[0])] if self.is_image and _has_few_outputs(self.first[0]) else [])
        last_weight, last_bias = self._scale_outputs(last, layout, n_stages, output_scale)
        # A matrix gate's part of the last layer stands alone: two products are cheaper than taking one's result apart.
        kept = n if self.has_matrix_gate else len(last_bias)
        inner = [*inner, (last_weight[:kept], last_bias[:kept])]
        self.activations = copy.deepcopy(activations)
        self.weights = _frozen([weight for weight, _ in inner])
        self.biases = _frozen([first_bias, *(bias for _, bias in inner)])
        features = slice(layout.n_before, None)
        stage_scale, stage_shift = scale[features].view(-1, n), shift[features].view(-1, n)
        slope, offset = stage_scale * scale.new_tensor(slopes)[:, None], -stage_shift * stage_scale
        if self.has_matrix_gate:
            gate = last_weight[n:], last_bias[n:]
            self.gate = _frozen([*gate, *_matrix_gate(slope, offset, output_scale)])
        else:
            axes = last_weight.ndim - 1
            self.gate_slopes = _frozen([_per_channel(row * output_scale, axes) for row in slope])
            self.gate_offsets = _frozen([_per_channel(row * output_scale, axes) for row in offset])

    def _scale_outputs(
        self, last: tuple[Tensor, Tensor], layout: CorrectionLayout, n_stages: int, output_scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The last layer, without gates of stages that are not there, its outputs scaled."""
        weight, bias = last
        rows, factors = self._outputs(layout, n_stages, output_scale)
        return weight[rows] * _per_channel(factors, weight.ndim), bias[rows] * factors

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
            features = torch.cat(inputs, dim=1)
            if len(self.columns) and _pays_to_multiply_first(z, self.columns[0]):
                out = _convolve_by_columns(features, self.columns[0], bias, first.shape[-1])
            else:
                out = multiply(features, first, bias)
        else:
            inputs = [flatten_samples(part) for part in inputs]
            out = functional.linear(inputs[0], first, bias)
            # Products that add up, where a concatenation would copy.
            for part, weight in zip(inputs[1:], others, strict=True):
                out = torch.addmm(out, part, weight.t())
        for activation, weight, bias in zip(self.activations, _listed(self.weights), biases, strict=True):
            hidden = activation(out)
            out = multiply(hidden, weight, bias)
        combine = self._add_matrix_gate if self.has_matrix_gate else self._add_gate
        g = combine(out, hidden, inputs[-len(stages) :])
        return g if g.ndim == z.ndim else g.reshape(z.shape)

    def _add_matrix_gate(self, out: Tensor, hidden: Tensor, stages: Sequence[Tensor]) -> Tensor:
        weight, bias, collect, weighed, *spreads = _listed(self.gate)
        for stage, spread in zip(stages, spreads, strict=True):
            weighed = torch.addmm(weighed, stage, spread)
        return torch.addmm(out, torch.tanh(functional.linear(hidden, weight, bias)) * weighed, collect)

    def _add_gate(self, out: Tensor, hidden: Tensor, stages: Sequence[Tensor]) -> Tensor:
        n = self.n_state
        if not self.has_gate:
            return out
        first, *others = stages
        features = [first, *(stage - first for stage in others)]
        offsets, slopes = _listed(self.gate_offsets), _listed(self.gate_slopes)
        weighed = [torch.addcmul(*terms) for terms in zip(offsets, features, slopes, strict=True)]
        return weigh_stages(out[:, :n], torch.tanh(out[:, n:]), weighed)


def _has_few_outputs(weight: Tensor) -> bool:
    """Whether a convolution may run as a product first, see :func:`_convolve_by_columns`."""
    return weight[:, 0].numel() <= 2 * weight.shape[1]


def _pays_to_multiply_first(z: Tensor, columns: Tensor) -> bool:
    """Whether it gains: measured, for torch's own kernels and for those of ONNX Runtime."""
    if z.device.type != "cpu":
        return False
    if is_exporting():  # 1.1 to 2.6 times on a single image, 1.6 to 8 on many
        return True
    # Fewer entries to move after the product than before it. A compiler has kernels of its own.
    return not is_compiling() and len(z) >= _MANY_IMAGES and columns.shape[0] <= columns.shape[1]


def _columns(weight: Tensor) -> Tensor:
    """A convolution's weight as the matrix that :func:`_convolve_by_columns` multiplies by."""
    return weight.flip(2, 3).permute(0, 2, 3, 1).reshape(-1, weight.shape[1])


def _convolve_by_columns(h: Tensor, columns: Tensor, bias: Tensor, kernel_size: int) -> Tensor:
    """A convolution that keeps the shape, as a product at every position whose entries then move to where they count.

    For a handful of output channels it takes a third of the time of ``conv2d`` on a CPU, which moves every input
    channel first; its multiply-accumulates are the same.
    """
    shape, products = tuple(h.shape[2:]), torch.matmul(columns, h.flatten(2))
    if not is_exporting():
        # The samples as channels of one: torch's fold loops over samples. ONNX Runtime's does not.
        products = products.flatten(0, 1)
    moved = functional.fold(products, shape, kernel_size, padding=kernel_size // 2)
    return moved.view(-1, len(bias), *shape) + _per_channel(bias, 3)


def _matrix_gate(slope: Tensor, offset: Tensor, output_scale: Tensor) -> list[Tensor]:
    r"""Matrices that make the gate's products of matrices and stages, sample by sample, two products of batches.

    With :math:`w` the scaled stages side by side (affine in the stages), :math:`\sum_j \gamma_{aj} w_j` is
    :math:`(\gamma \odot \mathrm{spread}(w)) C`: spread repeats w for every a, and C adds up over j.

    Returns
    -------
    list of Tensor
        C, what spread adds, and the matrix of every stage.
    """
    n_stages, n = slope.shape
    on_stages = [torch.zeros(n, n_stages * n).to(slope) for _ in range(n_stages)]
    for i, row in enumerate(slope):
        own = slice(i * n, (i + 1) * n)
        on_stages[i][:, own] += torch.diag(row)
        if i:  # a later stage's feature is its difference from the first one
            on_stages[0][:, own] -= torch.diag(row)
    collect = torch.block_diag(*output_scale.unsqueeze(1).expand(n, n_stages * n)).t() * GATE_BOUND
    return [collect, offset.flatten().repeat(n), *(matrix.repeat(1, n) for matrix in on_stages)]


def _per_channel(values: Tensor, ndim: int) -> Tensor:
    """Values of rows or channels, shaped to multiply a weight, or a state without its batch, of ``ndim`` axes."""
    return values.reshape(-1, *[1] * (ndim - 1))


def _listed(tensors: nn.ParameterList) -> list[Tensor]:
    """Its tensors, without the list's own look-ups, which cost as much as a small product each."""
    return list(tensors._parameters.values())  # type: ignore[arg-type]


def _frozen(tensors: Sequence[Tensor]) -> nn.ParameterList:
    return nn.ParameterList(
        [
            nn.Parameter(tensor.detach().clone(memory_format=torch.contiguous_format), requires_grad=False)
            for tensor in tensors
        ]
    )


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
