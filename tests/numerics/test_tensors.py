"""Shapes and norms of batches: axis 0 is the batch, whatever the state's own shape."""

import math

import pytest
import torch

from sklearn_hyper.numerics.tensors import (
    flatten_samples,
    in_own_units,
    mean_norm,
    mean_size,
    per_row,
    row_norms,
    sample_norm,
    weighted_sum,
)

SHAPES = [(4,), (4, 3), (4, 2, 3), (4, 2, 3, 2)]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def batch(shape, generator, dtype=torch.float64):
    return torch.randn(shape, generator=generator, dtype=dtype)


@each_shape
def test_samples_are_flattened_and_rows_stay_rows(shape, generator):
    t = batch(shape, generator)
    flat = flatten_samples(t)
    assert flat.shape == (4, math.prod(shape[1:]))
    assert all(torch.equal(row, sample.flatten()) for row, sample in zip(flat, t, strict=True))


@each_shape
def test_norms_are_those_of_the_samples(shape, generator):
    t = batch(shape, generator)
    expected = torch.stack([sample.square().sum().sqrt() for sample in t])
    torch.testing.assert_close(row_norms(t), expected, rtol=1e-14, atol=0)
    torch.testing.assert_close(sample_norm(t).flatten(), expected, rtol=1e-14, atol=0)
    assert sample_norm(t).shape == (4, *[1] * (len(shape) - 1))
    assert mean_norm(t).item() == pytest.approx(expected.mean().item(), rel=1e-14)


@each_shape
def test_a_number_a_row_multiplies_its_row(shape, generator):
    t, factors = batch(shape, generator), torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    product = per_row(factors, t) * t
    assert all(torch.equal(row, factor * sample) for row, factor, sample in zip(product, factors, t, strict=True))


@pytest.mark.parametrize("value", [0.3, 2, torch.tensor(0.3)])
def test_a_number_for_all_rows_stays_as_it_is(value):
    assert per_row(value, torch.ones(4, 2)) is value


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_own_units_bring_any_size_into_range(size, generator):
    """1e30 squared is no float32."""
    t = batch((4, 3), generator, torch.float32) * size
    scaled, unit = in_own_units(t)
    assert unit.shape == () and scaled.abs().max() == 1 and torch.allclose(scaled * unit, t)
    scaled, units = in_own_units(t, (0,))
    assert units.shape == (1, 3) and torch.equal(scaled.abs().amax(dim=0), torch.ones(3))
    assert torch.allclose(scaled * units, t)


def test_what_is_zero_has_the_unit_one():
    t = torch.tensor([[0.0, 2.0], [0.0, -4.0]])
    scaled, units = in_own_units(t, (0,))
    assert units.tolist() == [[1.0, 4.0]] and scaled.tolist() == [[0.0, 0.5], [0.0, -1.0]]
    assert in_own_units(torch.zeros(2, 2))[1] == 1


@pytest.mark.parametrize("size", [1e-25, 1.0, 1e25])
def test_a_mean_size_is_the_mean_norm_in_a_unit_whatever_its_size(size, generator):
    t, unit = batch((5, 3), generator), torch.tensor([[1.0, 2.0, 4.0]])
    expected = mean_norm(t / unit).item()
    assert mean_size((t * size).float(), unit) == pytest.approx(size * expected, rel=1e-5)
    assert mean_size(torch.zeros(2, 3), unit) == 0


@pytest.mark.parametrize("weights", [(1.0,), (0.5, 0.5), (0.0, 1.0, 0.0), (-1.0, 0.0, 2.0), (1.0, 0.25, -0.25)])
def test_sums_are_weighted_and_leave_their_terms_alone(weights, generator):
    tensors = [batch((4, 2), generator) for _ in weights]
    kept = [tensor.clone() for tensor in tensors]
    expected = sum(weight * tensor for weight, tensor in zip(weights, tensors, strict=True))
    torch.testing.assert_close(weighted_sum(weights, tensors), expected, rtol=1e-15, atol=1e-15)
    assert all(map(torch.equal, tensors, kept))


def test_terms_of_weight_zero_are_not_read():
    """They may be infinite."""
    one, lost = torch.ones(2), torch.full((2,), math.inf)
    assert torch.equal(weighted_sum((2.0, 0.0), [one, lost]), 2 * one)
    with pytest.raises(ValueError, match=r"shorter|longer"):
        weighted_sum((1.0,), [one, lost])
