"""Layers whose weights depend on the step, and products of small matrices, are what their formulas say."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from sklearn_hyper.modules.corrections.layers import (
    StepWeights,
    multiply,
    multiply_matrices,
    multiply_rows,
    weigh_stages,
)
from sklearn_hyper.numerics import count_macs

DOUBLE = torch.float64
LAYERS = {
    "linear": (lambda: [nn.Linear(4, 5), nn.Linear(5, 3)], (4,)),
    "convolution": (lambda: [nn.Conv2d(4, 5, 3), nn.Conv2d(5, 3, 3)], (4, 6, 5)),
}
each_layers = pytest.mark.parametrize(("make", "shape"), LAYERS.values(), ids=LAYERS)


def make_weights(make, n_terms=2):
    weights = StepWeights(n_terms, make()).double().requires_grad_(False)
    nn.init.normal_(weights.values)
    return weights


@each_layers
def test_weights_start_as_those_of_the_layers_and_the_last_layer_at_zero(make, shape):
    layers = make()
    weights = StepWeights(2, layers)
    for terms in (torch.tensor([1.0, 0.0, 0.0]), torch.tensor([1.0, -0.7, 2.0])):  # nothing depends on the step yet
        (weight, bias), (last, last_bias) = weights.at(terms)
        assert torch.equal(weight, layers[0].weight) and torch.equal(bias, layers[0].bias)
        assert not last.any() and not last_bias.any()
    assert [name for name, _ in weights.named_parameters()] == ["values"]


@each_layers
def test_weights_are_linear_in_the_terms(make, shape):
    weights = make_weights(make)
    terms = torch.tensor([1.0, -0.4, 0.9], dtype=DOUBLE)
    single = [weights.at(row) for row in torch.eye(3, dtype=DOUBLE)]
    for i, pair in enumerate(weights.at(terms)):
        for j, part in enumerate(pair):
            torch.testing.assert_close(part, sum(term * one[i][j] for term, one in zip(terms, single, strict=True)))


@each_layers
def test_a_step_a_row_is_every_row_s_own_step(make, shape):
    """As one product for all rows."""
    weights, h = make_weights(make), torch.randn(4, *shape, dtype=DOUBLE)
    terms = torch.cat([torch.ones(4, 1), torch.randn(4, 2)], dim=1).double()
    for i, layer in enumerate(weights.layers(terms)):
        out = layer(h)
        apart = torch.cat([weights.layers(row)[i](h[k : k + 1]) for k, row in enumerate(terms)])
        torch.testing.assert_close(out, apart, rtol=1e-12, atol=1e-12)
        h = out


def test_products_are_those_of_torch():
    h, weight, bias = torch.randn(3, 4), torch.randn(2, 4), torch.randn(2)
    assert torch.equal(multiply(h, weight, bias), functional.linear(h, weight, bias))
    image, kernel = torch.randn(3, 4, 5, 6), torch.randn(2, 4, 3, 3)
    assert torch.equal(multiply(image, kernel, bias), functional.conv2d(image, kernel, bias, padding=1))


def test_a_step_a_row_costs_a_product_a_term():
    h, terms = torch.randn(6, 4), torch.randn(6, 3)
    assert count_macs(multiply_rows, h, terms, torch.randn(3, 2, 4), torch.randn(3, 2)) == 6 * 3 * (2 * 4 + 2)


def test_matrices_multiply_stages_side_by_side(generator):
    """Row by row, n x (n times stages) entries a sample."""
    entries, stages = (torch.randn(5, size, generator=generator, dtype=DOUBLE) for size in (3 * 6, 6))
    expected = torch.stack([entry.view(3, 6) @ stage for entry, stage in zip(entries, stages, strict=True)])
    torch.testing.assert_close(multiply_matrices(entries, stages), expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("shape", [(3,), (3, 4, 5)])
def test_stages_are_weighed_by_a_number_each(shape, generator):
    """A number a position for images."""
    g, one, two = (torch.randn(2, *shape, generator=generator, dtype=DOUBLE) for _ in range(3))
    gates = torch.randn(2, 2, *shape[1:], generator=generator, dtype=DOUBLE)
    expected = g + gates[:, :1] * one + gates[:, 1:] * two
    torch.testing.assert_close(weigh_stages(g, gates, [one, two]), expected, rtol=1e-14, atol=1e-14)
