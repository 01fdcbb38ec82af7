"""What a number of calibration rows can promise, by counting."""

import numpy as np
import pytest
from scipy.stats import binom

from sklearn_hyper.calibration import CalibrationRowsError
from sklearn_hyper.calibration.conformal import (
    conformal_quantile,
    is_certified,
    last_certified,
    rows_for_coverage,
    rows_for_risk,
)


@pytest.mark.parametrize(("coverage", "needed"), [(0.5, 1), (0.9, 9), (0.95, 19), (0.99, 99), (0.999, 999)])
def test_a_coverage_needs_as_many_rows_as_its_odds(coverage, needed):
    assert rows_for_coverage(coverage) == needed
    assert conformal_quantile(np.arange(float(needed)), coverage) == needed - 1  # the largest score of all
    with pytest.raises(CalibrationRowsError, match=f"needs {needed} rows"):
        conformal_quantile(np.arange(needed - 1.0), coverage)


@pytest.mark.parametrize("coverage", [0.8, 0.9, 0.97])
def test_a_new_score_is_covered_at_the_stated_rate(coverage):
    """The rank of a new score among n is uniform, so the rate is known: ceil((n + 1) c) / (n + 1)."""
    generator, n = np.random.default_rng(0), 120
    covered = []
    for _ in range(20_000):
        scores = generator.exponential(size=n + 1)
        covered.append(scores[-1] <= conformal_quantile(np.sort(scores[:-1]), coverage))
    exact = np.ceil((n + 1) * coverage) / (n + 1)
    assert abs(np.mean(covered) - exact) < 4 * np.sqrt(exact * (1 - exact) / 20_000)


@pytest.mark.parametrize(("alpha", "needed"), [(0.01, 230), (0.05, 45), (0.1, 22)])
def test_a_certificate_needs_enough_rows_without_a_violation(alpha, needed):
    assert rows_for_risk(alpha) == needed
    assert is_certified(0, needed, alpha)
    assert not is_certified(0, needed - 1, alpha)
    assert (1 - alpha) ** needed <= 0.1 < (1 - alpha) ** (needed - 1)


def test_a_share_at_the_limit_is_certified_in_one_of_ten_at_most():
    n, alpha = 500, 0.02
    most = max(k for k in range(n) if is_certified(k, n, alpha))
    assert binom.cdf(most, n, alpha) <= 0.1 < binom.cdf(most + 1, n, alpha)


def test_policies_are_certified_up_to_the_first_that_fails():
    good, bad = np.zeros(300, dtype=bool), np.arange(300) < 30
    assert last_certified([good, good, bad, good], 0.01) == 1
    assert last_certified([bad, good], 0.01) is None
    with pytest.raises(CalibrationRowsError, match="needs 230 rows"):
        last_certified([good[:200]], 0.01)


@pytest.mark.parametrize("coverage", [1e-13, 1e-9, 0.1])
def test_a_tiny_coverage_takes_a_small_score(coverage):
    assert conformal_quantile(np.arange(1.0, 10.0), coverage) == 1.0
