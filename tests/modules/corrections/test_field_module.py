"""What is asked of a field before its weights are changed: whether it notices, and what autograd keeps of it."""

import pytest
import torch
from small_weights import DOUBLE, SPAN, Wave, chosen, each_field, made, states
from torch import nn

from sklearn_hyper.modules.corrections.field_module import answers_to_weights, graph_bytes
from sklearn_hyper.numerics.protection import NO_INPUTS


class CopiesWeights(nn.Module):
    """Computes with a tensor that it took from its layer once."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2, dtype=DOUBLE)
        self.copied = [self.layer.weight.detach()]

    def forward(self, t, z):
        return z @ self.copied[0].T


class NoGrad(Wave):
    def forward(self, t, z):
        with torch.no_grad():
            return super().forward(t, z)


class Growing(nn.Module):
    """A field whose weights count for nothing at the start."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2, dtype=DOUBLE)

    def forward(self, t, z):
        return -z + t * self.layer(z)


def test_weights_that_time_multiplies_count():
    assert answers_to_weights(made(Growing).vector_field, SPAN, states(2), NO_INPUTS)


def formula(t, z):
    return -z


@each_field
def test_these_fields_answer_to_changes(make):
    assert answers_to_weights(made(make).vector_field, SPAN, states(2), NO_INPUTS)


@pytest.mark.parametrize("make", [CopiesWeights, NoGrad, lambda: formula], ids=["copies", "no grad", "formula"])
def test_these_do_not(make):
    assert not answers_to_weights(made(make).vector_field, SPAN, states(2), NO_INPUTS)


def test_parameters_without_numbers_are_left_out():
    class Empty(Wave):
        def __init__(self):
            super().__init__()
            self.empty, self.count = nn.Parameter(torch.zeros(0, 3)), nn.Parameter(torch.ones(2).int(), False)

    assert not {"field.empty", "field.count"} & set(chosen(made(Empty).vector_field))


def test_the_graph_of_an_evaluation_is_counted_by_row():
    """tanh keeps its output of six numbers, the first layer its input of three; the state is counted once."""
    f = made(Wave).vector_field
    one, ten = (graph_bytes(f, SPAN, states(n), NO_INPUTS) for n in (1, 10))
    assert one == 8 * (6 + 3) and ten == 10 * one


class Potential(nn.Module):
    """A field that is the gradient of a net, taken by torch.func, which bears no hooks on saved tensors."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 3, dtype=DOUBLE)

    def forward(self, t, z):
        return torch.func.grad(lambda state: torch.tanh(self.layer(state)).sum())(z)


def test_a_graph_that_cannot_be_hooked_is_kept():
    f = made(Potential).vector_field
    assert graph_bytes(f, SPAN, states(2), NO_INPUTS) == 0
    assert answers_to_weights(f, SPAN, states(2), NO_INPUTS)
