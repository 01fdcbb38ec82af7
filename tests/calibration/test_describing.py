"""Descriptions of runs, models of errors, and rows unlike the others."""

import numpy as np
import pytest

from sklearn_hyper.calibration.describing import UsualRows, describe_run
from sklearn_hyper.calibration.error_model import ErrorModel, predict_unseen


@pytest.mark.parametrize("shape", [(1,), (2,), (3, 4, 4), (100,)])
@pytest.mark.parametrize("n_steps", [1, 2, 30])
def test_a_description_has_one_row_a_sample_and_is_finite(shape, n_steps):
    states = np.random.default_rng(0).normal(size=(n_steps + 1, 7, *shape))
    states[:, 3] = 0  # a row at rest
    described = describe_run(states)
    assert described.shape[0] == 7
    assert np.isfinite(described).all()
    assert described.shape == (7, describe_run(states[:, :1]).shape[1])


def test_a_row_is_described_without_regard_to_its_neighbours():
    states = np.random.default_rng(0).normal(size=(5, 9, 2))
    np.testing.assert_array_equal(describe_run(states)[4:5], describe_run(states[:, 4:5]))


@pytest.mark.parametrize("width", [1, 2, 200])
def test_rows_far_away_are_unusual_and_rows_like_the_others_are_not(width):
    generator = np.random.default_rng(0)
    usual = UsualRows(generator.normal(size=(600, width)))
    assert usual.are_unusual(generator.normal(size=(600, width))).mean() < 0.03
    assert usual.are_unusual(10 + generator.normal(size=(50, width))).all()


def test_units_do_not_make_rows_unusual():
    rows = np.random.default_rng(0).normal(size=(300, 3))
    scales = np.array([1e-6, 1.0, 1e6])
    new = np.random.default_rng(1).normal(size=(300, 3)) * 1.5
    np.testing.assert_array_equal(UsualRows(rows).are_unusual(new), UsualRows(rows * scales).are_unusual(new * scales))


def test_constant_columns_and_one_value_do_no_harm():
    usual = UsualRows(np.ones((50, 2)))
    assert not usual.are_unusual(np.ones((2, 2))).any()
    assert usual.are_unusual(np.full((1, 2), 2.0)).all()


def test_errors_are_predicted_to_a_factor():
    generator = np.random.default_rng(0)
    described = generator.uniform(-2, 2, size=(2000, 2))
    errors = np.exp(3 * described[:, 0])
    predicted = ErrorModel(described[:1000], errors[:1000]).predict(described[1000:])
    assert np.median(np.abs(np.log(predicted / errors[1000:]))) < 0.3


def test_errors_of_zero_have_a_model():
    assert (ErrorModel(np.zeros((60, 1)), np.zeros(60)).predict(np.zeros((3, 1))) >= 0).all()


def test_unseen_predictions_do_not_know_their_own_error():
    generator = np.random.default_rng(0)
    described, errors, order = generator.normal(size=(100, 2)), generator.exponential(size=100), np.arange(100)
    changed = errors.copy()
    changed[:20] *= 1000  # the first fold
    before, after = (predict_unseen(described, e, order) for e in (errors, changed))
    np.testing.assert_allclose(after[:20], before[:20])
    assert not np.allclose(after[20:], before[20:])


@pytest.mark.parametrize("outlier", [1e3, 1e12, 1e70, np.inf])
def test_one_outlying_error_does_not_blur_the_others(outlier):
    """Nor one that is infinite, of a solve that overflowed."""
    generator = np.random.default_rng(0)
    described = generator.uniform(-2, 2, size=(1000, 2))
    errors = np.exp(3 * described[:, 0])
    errors[17] = outlier
    predicted = ErrorModel(described, errors).predict(described)
    assert np.isfinite(predicted).all()
    others = np.arange(1000) != 17
    assert np.median(np.abs(np.log(predicted[others] / errors[others]))) < 0.3


@pytest.mark.parametrize("value", [0.0, 1.0, 1e6])
def test_a_column_where_all_rows_agree_tells_rows_that_differ(value):
    """Such as a parameter that the calibration never varied."""
    rows = np.random.default_rng(0).normal(size=(300, 3))
    rows[:, 1] = value
    new = rows[:20].copy()
    usual = UsualRows(rows)
    assert not usual.are_unusual(new).any()
    new[:, 1] += 0.1 * max(1, value)
    assert usual.are_unusual(new).all()


def test_pixels_that_are_dark_in_all_images_may_be_lit_in_one():
    generator = np.random.default_rng(0)
    images = generator.normal(size=(300, 100))
    images[:, :10] = 0
    new = generator.normal(size=(200, 100))
    new[:, :10] = 0
    new[:, 3] = 1
    assert UsualRows(images, by_chance=True).are_unusual(new).mean() < 0.1


@pytest.mark.parametrize("noise", [0, 1e-15])
def test_values_on_a_grid_are_usual_but_for_rounding(noise):
    grid = np.repeat(np.arange(10.0), 30)[:, None]
    new = np.arange(10.0)[:, None] + noise
    assert not UsualRows(grid).are_unusual(new).any()
    assert UsualRows(grid).are_unusual(new + 0.5).all()


@pytest.mark.parametrize("width", [3, 70, 200])
def test_a_constant_column_of_a_table_is_a_guard_however_many_there_are(width):
    rows = np.random.default_rng(0).normal(size=(300, width))
    rows[:, -1] = 1
    new = rows[:20].copy()
    new[:, -1] = 2
    assert UsualRows(rows).are_unusual(new).all()


@pytest.mark.parametrize(("centre", "deviation"), [(1e6, 0.9), (1.6e9, 1000), (-1e9, 1)])
def test_a_large_offset_does_not_make_a_column_constant(centre, deviation):
    rows = centre + deviation * np.random.default_rng(0).normal(size=(600, 1))
    new = centre + deviation * np.random.default_rng(1).normal(size=(600, 1))
    assert UsualRows(rows).are_unusual(new).mean() < 0.03


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e308])
def test_rows_that_are_not_finite_are_unusual(value):
    rows = np.random.default_rng(0).normal(size=(300, 2))
    new = rows[:3].copy()
    new[1, 0] = value
    assert UsualRows(rows).are_unusual(new).tolist() == [False, True, False]
