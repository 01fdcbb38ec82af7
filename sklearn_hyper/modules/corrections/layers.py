"""Building blocks of the library's nets: layers whose weights depend on the step, and products of small matrices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

GATE_BOUND = 4.0
"""Bound on the magnitude of the entries of a matrix gate."""


class StepWeights(nn.Module):
    r"""Weights and biases of all layers of a net, which depend on the step.

    .. math:: W(s, \epsilon) = W_0 + \sum_m \phi_m(s, \epsilon)\, W_m

    A batch shares s and eps. So this costs one sum of weights per step and nothing per sample: it adds capacity without
    adding MACs. All weights lie in a single parameter, with one row per term. Then one product gives the weights of all
    layers, and the optimizer updates one tensor. In a small net, such overheads dominate the training time.
    """

    def __init__(self, n_terms: int, layers: Sequence[nn.Linear | nn.Conv2d]):
        super().__init__()
        parts = [part.detach() for layer in layers for part in (layer.weight, layer.bias)]  # type: ignore[union-attr]
        self.shapes = [part.shape for part in parts]
        constant = torch.cat([part.flatten() for part in parts])
        self.values = nn.Parameter(torch.cat([constant[None], torch.zeros(n_terms, len(constant))]))
        with torch.no_grad():
            self._split(self.values)[-2].zero_()  # the last layer starts at zero in every step
            self._split(self.values)[-1].zero_()

    def _split(self, values: Tensor) -> tuple[Tensor, ...]:
        return values.split([shape.numel() for shape in self.shapes], dim=-1)

    def at(self, terms: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return the weight and bias of every layer in one step, given its terms (1, phi_1, ...)."""
        parts = [
            part.view(shape)
            for part, shape in zip(self._split(torch.mv(self.values.t(), terms)), self.shapes, strict=True)
        ]
        return list(zip(parts[::2], parts[1::2], strict=True))

    def layers(self, terms: Tensor) -> list[Callable[[Tensor], Tensor]]:
        """Return the layers in the step with these terms (1, phi_1, ...).

        Terms may also have shape (batch, n_terms). Then each row of the batch is in a different step.
        """
        if terms.ndim == 1:
            return [partial(multiply, weight=weight, bias=bias) for weight, bias in self.at(terms)]
        n_terms, parts = len(self.values), self._split(self.values)
        return [
            partial(multiply_rows, terms=terms, weights=weights.view(n_terms, *shape), biases=biases)
            for weights, shape, biases in zip(parts[::2], self.shapes[::2], parts[1::2], strict=True)
        ]


def multiply(h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Apply a linear or a convolutional layer to h."""
    if weight.ndim == 2:
        return functional.linear(h, weight, bias)
    return functional.conv2d(h, weight, bias, padding="same")


def multiply_rows(h: Tensor, terms: Tensor, weights: Tensor, biases: Tensor) -> Tensor:
    """Apply a layer whose weights differ by row: for row i they are sum_m terms[i, m] * weights[m]."""
    # Building the weights of each row would need as many small products as there are rows. Instead use
    # sum_m phi_m (W_m h) = [W_1 W_2 ...] [phi_1 h; phi_2 h; ...], which is a single product for the whole batch.
    positions = [1] * (h.ndim - 2)
    stacked = (terms.reshape(*terms.shape, 1, *positions) * h.unsqueeze(1)).flatten(1, 2)
    side_by_side = weights.transpose(0, 1).flatten(1, 2)
    bias = terms @ biases
    if h.ndim == 2:
        return torch.addmm(bias, stacked, side_by_side.t())
    return functional.conv2d(stacked, side_by_side, padding="same") + bias.reshape(*bias.shape, *positions)


@dataclass(frozen=True)
class CorrectionLayout:
    """Sizes of what a net reads and returns, in features of a vector or channels of an image."""

    state_shape: tuple[int, ...]
    n_state: int
    n_stages: int
    n_input: int
    """Size of x, for data-controlled fields; else 0."""
    n_gate: int
    """How many numbers weigh each stage: none, one, or the entries of a matrix."""
    has_matrix_gate: bool
    hidden: int
    depth: int
    activation: Callable[[], nn.Module]
    reads_tableau: bool
    """Whether the net reads the leading error of the method that it runs with."""
    other_families: tuple[tuple[int, int], ...]
    """Families of steps that are not of the main kind (start-up steps)."""

    @property
    def n_before(self) -> int:
        """Number of features before those of the stages: state and x."""
        return self.n_state + self.n_input

    @property
    def n_in(self) -> int:
        return self.n_before + self.n_state * self.n_stages

    @property
    def n_out(self) -> int:
        return self.n_state + self.n_gate * self.n_stages

    @property
    def n_terms(self) -> int:
        """Number of terms phi: s and eps, two weights of the leading error if it is read, and one per other family."""
        return 2 + 2 * self.reads_tableau + len(self.other_families)


def multiply_matrices(entries: Tensor, stages: Tensor) -> Tensor:
    """Multiply, for each sample, the matrix with these entries (row by row) by the concatenated stages."""
    width = stages.shape[1]
    # Not bmm: it loops over the batch, which takes several times as long for such small matrices.
    return (entries.unflatten(1, (-1, width)) * stages.unsqueeze(1)).sum(dim=2)


def weigh_stages(g: Tensor, gates: Tensor, stages: Sequence[Tensor]) -> Tensor:
    """Return g plus every stage times its gate."""
    for i, stage in enumerate(stages):
        g = torch.addcmul(g, gates[:, i : i + 1], stage)
    return g
