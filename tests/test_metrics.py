"""Errors have their closed forms."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sklearn_hyper.metrics import (
    global_truncation_error,
    local_truncation_error,
    mean_absolute_percentage_error,
    relative_l2,
)
from sklearn_hyper.numerics import hypersolve_trajectory

batches = arrays(float, (3, 2), elements=st.floats(-1e3, 1e3).map(lambda value: round(value, 3)))


# ---------------------------------------------------------------------- MAPE
def test_mape_is_the_mean_share():
    assert mean_absolute_percentage_error([[1.0, -2.0], [4.0, 5.0]], [[1.5, -1.0], [4.0, 6.0]]) == pytest.approx(
        (0.5 + 0.5 + 0 + 0.2) / 4
    )


def test_mape_divides_by_the_floor_where_the_reference_is_smaller():
    true, pred = [0.0, 1e-3, 2.0], [0.1, 0.1, 2.2]
    assert mean_absolute_percentage_error(true, pred) == pytest.approx((10 + 9.9 + 0.1) / 3)
    assert mean_absolute_percentage_error(true, pred, floor=1.0) == pytest.approx((0.1 + 0.099 + 0.1) / 3)


def test_mape_weighs_samples():
    true, pred = np.ones((3, 2, 2)), np.ones((3, 2, 2)) + np.array([0.1, 0.2, 0.4])[:, None, None]
    assert mean_absolute_percentage_error(true, pred, sample_weight=[1, 2, 0]) == pytest.approx(0.5 / 3)
    assert mean_absolute_percentage_error(true, pred, sample_weight=[2, 2, 2]) == pytest.approx(0.7 / 3)


@given(batches, batches, st.floats(0.01, 100))
def test_mape_depends_on_units_only_through_the_floor(true, pred, unit):
    error = mean_absolute_percentage_error(true, pred)
    assert mean_absolute_percentage_error(unit * true, unit * pred, floor=unit * 1e-2) == pytest.approx(error)


@pytest.mark.parametrize("floor", [0, -1.0, math.nan])
def test_mape_refuses_a_floor_that_is_not_positive(floor):
    with pytest.raises(ValueError, match="floor must be positive"):
        mean_absolute_percentage_error([1], [1], floor=floor)


@pytest.mark.parametrize("metric", [mean_absolute_percentage_error, relative_l2])
def test_metrics_refuse_empty_and_mismatched_arrays(metric):
    with pytest.raises(ValueError, match=r"same shape, got \(1, 2\) and \(2,\)"):
        metric([[1, 2]], [1, 2])
    with pytest.raises(ValueError, match="empty"):
        metric([], [])


# ---------------------------------------------------------------------- relative L2
def test_relative_l2_is_one_number_a_sample_of_any_rank():
    true = np.zeros((2, 2, 2))
    true[0, 0, 0], true[1] = 5.0, 1.0
    assert relative_l2(true, true + 0.5) == pytest.approx([1 / 5, 1 / 2])


def test_relative_l2_of_a_zero_reference_is_zero_or_infinite():
    assert relative_l2([[0.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 1e-9]]).tolist() == [0.0, math.inf]


@given(batches, st.floats(0.01, 100))
def test_relative_l2_does_not_depend_on_units(true, unit):
    assert relative_l2(unit * true, unit * (true + 1)) == pytest.approx(relative_l2(true, true + 1))


# ---------------------------------------------------------------------- truncation errors
def test_truncation_errors_of_an_euler_solve_by_hand():
    # z' = z from (3, 4) in two Euler steps of 1/2; the exact states are z0 e^s.
    z0, eps, times = np.array([[3.0, 4.0], [0.0, 1.0]]), 0.5, np.array([0.0, 0.5, 1.0])
    exact = z0[:, None] * np.exp(times)[:, None]
    solve = hypersolve_trajectory(lambda t, z: z, torch.from_numpy(z0), (0, 1), 2, "euler").transpose(0, 1).numpy()
    size = np.array([5.0, 1.0])
    for k in (0, 1):
        error = local_truncation_error(exact[:, k], exact[:, k + 1], eps * exact[:, k])
        assert error == pytest.approx(size * np.exp(times[k]) * (np.exp(eps) - 1 - eps))
    expected = size[:, None] * (np.exp(times) - [1, 1.5, 1.5**2])
    assert global_truncation_error(exact, solve) == pytest.approx(expected)


def test_truncation_errors_of_image_states_take_the_norm_of_a_sample():
    z, z_next = np.zeros((2, 1, 2, 2)), np.ones((2, 1, 2, 2))
    assert local_truncation_error(z, z_next, 0 * z).tolist() == [2, 2]
    assert global_truncation_error(np.stack([z, z_next], 1), np.zeros((2, 2, 1, 2, 2))).tolist() == [[0, 2], [0, 2]]
