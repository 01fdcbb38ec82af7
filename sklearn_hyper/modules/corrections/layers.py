"""Layers whose weights depend on the step, and products of small matrices: what the library's nets are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

GATE_BOUND = 4.0
"""What the entries of a matrix gate stay below."""


class StepWeights(nn.Module):
    r"""Weights and biases of all layers of a net, each of which depends on the step.

    .. math:: W(s, \epsilon) = W_0 + \sum_m \phi_m(s, \epsilon)\, W_m

    s and eps are the same for a whole batch, so this costs a sum of weights a step and no product a sample: capacity
    that does not show in the MACs. All of them lie in one parameter, a row for every term: one product a step then
    makes the weights of all layers, and an optimizer has one tensor to update. A small net's training is made of such
    overheads.
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
    # sum_m phi_m W_m h is one product: of the W_m side by side with every phi_m h, stacked. No loop over a batch's
    # steps.
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
    """Whether the net is told the leading error of the method it runs with."""
    other_families: tuple[tuple[int, int], ...]
    """Families of the steps that are not of the main kind: start-up steps."""

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
        """s and eps; the two weights of the leading error; of which other family the step is."""
        return 2 + 2 * self.reads_tableau + len(self.other_families)


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
