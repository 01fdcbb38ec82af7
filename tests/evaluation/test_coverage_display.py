"""Coverage is counted against dopri5, on rows that neither fit nor calibration has seen."""

import numpy as np
import pytest
from matplotlib import pyplot
from small_hypersolvers import make_learner

from sklearn_hyper.calibration import NotCalibratedError
from sklearn_hyper.evaluation import CoverageDisplay


@pytest.fixture(scope="module")
def calibrated():
    rows = np.random.default_rng(1).uniform(-1, 1, (700, 2))
    return make_learner().fit(rows[:100]).conformalize(rows[100:400]), rows[400:]


def test_coverage_is_counted_against_dopri5(calibrated):
    hypersolver, rows = calibrated
    display = CoverageDisplay.from_estimator(hypersolver, rows, coverages=[0.9, 0.5])
    states, bound = hypersolver.transform(rows, return_bound=True, coverage=0.5)
    errors = np.linalg.norm(states - hypersolver.reference(rows), axis=1)
    assert display.shares[1] == np.mean(errors <= bound)
    assert abs(display.shares - display.coverages).max() < 0.15
    assert display.line_.get_xdata().tolist() == [0.5, 0.9]  # in order


def test_coverages_by_default_rise_and_the_band_narrows_with_rows(calibrated):
    hypersolver, rows = calibrated
    display = CoverageDisplay.from_estimator(hypersolver, rows)
    assert len(display.shares) == 10 and (np.diff(display.shares) >= 0).all()
    narrow, wide = (CoverageDisplay([0.5], [0.5], n).plot(ax=pyplot.subplots()[1]) for n in (10_000, 100))
    assert _height(narrow.band_) == pytest.approx(0.01, rel=0.1) and _height(wide.band_) == pytest.approx(0.1, rel=0.1)


def _height(band):
    """Of a band at the middle of its axis."""
    vertices = band.get_paths()[0].vertices
    return np.ptp(vertices[np.abs(vertices[:, 0] - 0.5) < 1e-3, 1])


def test_coverage_needs_a_calibration(regressor, X):
    with pytest.raises(NotCalibratedError):
        CoverageDisplay.from_estimator(regressor, X)


@pytest.mark.parametrize(("coverages", "shares"), [([0.5], [0.5, 0.6]), ([], []), ([[0.5]], [[0.5]])])
def test_coverages_and_shares_belong_together(coverages, shares):
    with pytest.raises(ValueError, match="coverages and shares must be one-dimensional, of one length and not empty"):
        CoverageDisplay(coverages, shares, 10)
