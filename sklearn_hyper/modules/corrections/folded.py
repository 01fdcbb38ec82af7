"""A correction's net made fast for a single step: all that is constant in the step is folded into its weights."""

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
"""Batch size from which a convolution to few channels runs as a matrix product, see :func:`_convolve_by_columns`."""


class FoldedNet(nn.Module):
    """A gated net in one step, for inference, with scales, s, eps and difference quotients folded into its weights.

    It reads z and the raw stages, and ignores eps and s. Its weights are computed once from those of the net:

    1. Scales and shifts of the features go into the first layer.
    2. Weights on differences of stages become weights on the stages themselves.
    3. The scale of the output goes into the last layer.
    4. The gates act on an affine map of the raw stages, which replaces the scaled features.

    Parameters
    ----------
    layout : CorrectionLayout
    layers : list of (weight, bias)
        The net's layers in this step.
    activations : nn.ModuleList
    scales : pair of Tensor
        (scale, shift) of the features.
    slopes : list of float
        One factor per stage. A later stage's feature is its difference from the first stage times its factor; the
        first stage's feature is the stage times its factor.
    output_scale : Tensor
        Factor of g, broadcastable to z.
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
        # Image features are not shifted.
        first_bias = first_bias if self.is_image else first_bias - first @ shift
        self.first = _frozen(_on_raw_inputs(first, layout, slopes))
        self.columns = _frozen([_columns(self.first[0])] if self.is_image and _has_few_outputs(self.first[0]) else [])
        last_weight, last_bias = self._scale_outputs(last, layout, n_stages, output_scale)
        # A matrix gate's part of the last layer is kept separate: two products are cheaper than one whose result has to
        # be split.
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
        """Return the last layer with scaled outputs, without the gates of stages that this step lacks."""
        weight, bias = last
        rows, factors = self._outputs(layout, n_stages, output_scale)
        return weight[rows] * _per_channel(factors, weight.ndim), bias[rows] * factors

    def _outputs(self, layout: CorrectionLayout, n_stages: int, output_scale: Tensor) -> tuple[Tensor, Tensor]:
        """Return indices of the last layer's outputs to keep, and their factors. Gates of absent stages are dropped."""
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
        """Return g times the output scale."""
        inputs = [z, *([] if x is None else [x]), *stages]
        (first, *later), (bias, *biases) = _listed(self.first), _listed(self.biases)
        if self.is_image:
            features = torch.cat(inputs, dim=1)
            if len(self.columns) and _pays_to_multiply_first(z, self.columns[0]):
                out = _convolve_by_columns(features, self.columns[0], bias, first.shape[-1])
            else:
                out = multiply(features, first, bias)
        else:
            inputs = [flatten_samples(part) for part in inputs]
            out = functional.linear(inputs[0], first, bias)
            # One product per input, added up, instead of a concatenation, which would copy all inputs.
            for part, weight in zip(inputs[1:], later, strict=True):
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
        first, *later = stages
        features = [first, *(stage - first for stage in later)]
        offsets, slopes = _listed(self.gate_offsets), _listed(self.gate_slopes)
        weighed = [torch.addcmul(*terms) for terms in zip(offsets, features, slopes, strict=True)]
        return weigh_stages(out[:, :n], torch.tanh(out[:, n:]), weighed)


def _has_few_outputs(weight: Tensor) -> bool:
    """Return whether a convolution may run as a matrix product, see :func:`_convolve_by_columns`."""
    return weight[:, 0].numel() <= 2 * weight.shape[1]


def _pays_to_multiply_first(z: Tensor, columns: Tensor) -> bool:
    """Return whether the matrix product is faster, as measured with kernels of torch and of ONNX Runtime."""
    if z.device.type != "cpu":
        return False
    if is_exporting():  # in ONNX Runtime it is 1.1 to 2.6 times as fast on a single image, 1.6 to 8 times on many
        return True
    # It pays if fewer entries have to be moved after the product than before. torch.compile has kernels of its own.
    return not is_compiling() and len(z) >= _MANY_IMAGES and columns.shape[0] <= columns.shape[1]


def _columns(weight: Tensor) -> Tensor:
    """Return a convolution's weight as the matrix that :func:`_convolve_by_columns` multiplies by."""
    return weight.flip(2, 3).permute(0, 2, 3, 1).reshape(-1, weight.shape[1])


def _convolve_by_columns(h: Tensor, columns: Tensor, bias: Tensor, kernel_size: int) -> Tensor:
    """Convolve with padding that keeps the shape: first multiply at every position, then add up shifted products.

    ``conv2d`` on a CPU gathers the neighbours of every input channel before its product. Here the few output channels
    are shifted after the product instead. For a few output channels this takes a third of the time, with the same
    multiply-accumulates.
    """
    shape, products = tuple(h.shape[2:]), torch.matmul(columns, h.flatten(2))
    if not is_exporting():
        # Treat the samples as channels of one sample, because torch's fold loops over samples. ONNX Runtime's does not.
        products = products.flatten(0, 1)
    moved = functional.fold(products, shape, kernel_size, padding=kernel_size // 2)
    return moved.view(-1, len(bias), *shape) + _per_channel(bias, 3)


def _matrix_gate(slope: Tensor, offset: Tensor, output_scale: Tensor) -> list[Tensor]:
    r"""Return matrices that replace the gate's matrix product in every sample by products over the whole batch.

    Let :math:`w` be the concatenated scaled stages, which are affine in the raw stages. The gate's term
    :math:`\sum_j \gamma_{aj} w_j` is :math:`(\gamma \odot \mathrm{spread}(w)) C`. Here spread repeats w for every a,
    and C adds up over j.

    Returns
    -------
    list of Tensor
        C, the constant part of spread(w), and the matrix of spread(w) for each raw stage.
    """
    n_stages, n = slope.shape
    on_stages = [torch.zeros(n, n_stages * n).to(slope) for _ in range(n_stages)]
    for i, row in enumerate(slope):
        block = slice(i * n, (i + 1) * n)
        on_stages[i][:, block] += torch.diag(row)
        if i:  # a later stage's feature is its difference from the first one
            on_stages[0][:, block] -= torch.diag(row)
    collect = torch.block_diag(*output_scale.unsqueeze(1).expand(n, n_stages * n)).t() * GATE_BOUND
    return [collect, offset.flatten().repeat(n), *(matrix.repeat(1, n) for matrix in on_stages)]


def _per_channel(values: Tensor, ndim: int) -> Tensor:
    """Shape one value per row or channel to broadcast against a tensor of ``ndim`` axes whose first axis is theirs."""
    return values.reshape(-1, *[1] * (ndim - 1))


def _listed(tensors: nn.ParameterList) -> list[Tensor]:
    """Return the list's tensors directly. Each look-up by the list itself costs as much as a small matrix product."""
    return list(tensors._parameters.values())  # type: ignore[arg-type]


def _frozen(tensors: Sequence[Tensor]) -> nn.ParameterList:
    return nn.ParameterList(
        [
            nn.Parameter(tensor.detach().clone(memory_format=torch.contiguous_format), requires_grad=False)
            for tensor in tensors
        ]
    )


def fold_image_inputs(first: Tensor, scale: Tensor, layout: CorrectionLayout, slopes: Sequence[float]) -> Tensor:
    """Return the weight of a convolution on z, x and the raw stages, given that on their scaled features."""
    known = layout.n_before + layout.n_state * len(slopes)
    (weight,) = _on_raw_inputs(first[:, :known] * _per_channel(scale[:known], first.ndim - 1), layout, slopes)
    return weight


def _on_raw_inputs(first: Tensor, layout: CorrectionLayout, slopes: Sequence[float]) -> list[Tensor]:
    """Return the first layer's weights on z, on x and on the raw stages, instead of on difference quotients."""
    before, features = first[:, : layout.n_before], first[:, layout.n_before :].split(layout.n_state, dim=1)
    on_stages = [slope * feature for slope, feature in zip(slopes, features, strict=True)]
    on_first = on_stages[0] - sum(on_stages[1:])
    weights = [
        part for part in (*before.split([layout.n_state, layout.n_input], dim=1), on_first, *on_stages[1:])
        if part.shape[1]
    ]  # fmt: skip
    return [torch.cat(weights, dim=1)] if first.ndim == 4 else weights
