"""What a number of calibration rows can promise: conformal quantiles, and shares certified by learn-then-test."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr

CONFIDENCE = 0.9
"""Probability, over calibration rows, that a certified share holds."""


class CalibrationRowsError(ValueError):
    """The calibration rows do not suffice for what is asked, or were fitted on."""


def _rank(n_rows: int, coverage: float) -> int:
    """Return the rank of the score that bounds a new row's: (n + 1) c, rounded up."""
    return max(1, math.ceil(round((n_rows + 1) * coverage, 9)))


def rows_for_coverage(coverage: float) -> int:
    """Return the smallest number of rows whose largest score is a bound of this coverage: c / (1 - c), rounded up."""
    n_rows = math.ceil(round(coverage / (1 - coverage), 6))
    return n_rows if _rank(n_rows, coverage) <= n_rows else n_rows + 1


def rows_for_risk(alpha: float) -> int:
    """Return the smallest number of rows that can certify a share of violations of at most ``alpha``.

    With none of n rows violated, the share is certified once :math:`(1 - \\alpha)^n \\le 0.1`.
    """
    return math.ceil(round(math.log(1 - CONFIDENCE) / math.log1p(-alpha), 9))


def conformal_quantile(scores: NDArray[np.float64], coverage: float) -> float:
    r"""Return the score that a new row's does not exceed, with probability at least ``coverage``, if all are alike.

    .. math:: q = s_{(\lceil (n + 1) \, c \rceil)}

    The probability is over calibration rows and new rows, drawn alike. It exceeds c by at most 1 / (n + 1).

    Parameters
    ----------
    scores : array of shape (n,)
        Sorted, smallest first.
    coverage : float
        c, between 0 and 1.

    Raises
    ------
    CalibrationRowsError
        If there are too few rows for this coverage; the error says how many are needed.

    References
    ----------
    Vovk, Gammerman, Shafer (2005), *Algorithmic Learning in a Random World*; Angelopoulos, Bates (2023), *Conformal
    Prediction: A Gentle Introduction*.

    Examples
    --------
    >>> import numpy as np
    >>> conformal_quantile(np.arange(1.0, 100.0), 0.9)  # of 99 rows the 90th
    90.0
    """
    n = len(scores)
    rank = _rank(n, coverage)
    if rank > n:
        needed = rows_for_coverage(coverage)
        raise CalibrationRowsError(
            f"coverage={coverage} needs {needed:,} rows to calibrate on, and conformalize had {n:,}. Call it with at "
            f"least {needed:,} rows, or ask for coverage={math.floor(1000 * n / (n + 1)) / 1000} or less."
        )
    return float(scores[rank - 1])


def is_certified(n_violations: int, n_rows: int, alpha: float) -> bool:
    r"""Return whether the share of violations is at most ``alpha``, by an exact binomial test.

    .. math:: P[\mathrm{Bin}(n, \alpha) \le k] \le 1 - 0.9

    References
    ----------
    Angelopoulos, Bates, Candes, Jordan, Lei (2021), *Learn then Test: Calibrating Predictive Algorithms to Achieve Risk
    Control*.

    Examples
    --------
    >>> is_certified(0, 230, 0.01), is_certified(0, 229, 0.01)
    (True, False)
    """
    return bool(bdtr(n_violations, n_rows, alpha) <= 1 - CONFIDENCE)


def last_certified(violations: Sequence[NDArray[np.bool_]], alpha: float) -> int | None:
    """Return the last of a sequence of policies, safest first, of which it and all before it are certified.

    Testing in a fixed order, and stopping at the first failure, keeps the confidence whatever their number.

    Parameters
    ----------
    violations : sequence of arrays of bool of shape (n,)
        Rows over the tolerance, by policy.
    alpha : float
        Largest share of such rows.

    Raises
    ------
    CalibrationRowsError
        If there are too few rows to certify anything; the error says how many are needed.
    """
    n = len(violations[0])
    needed = rows_for_risk(alpha)
    if n < needed:
        raise CalibrationRowsError(
            f"alpha={alpha} needs {needed:,} rows to certify on, and half of the rows of conformalize, which choose "
            f"the solvers, do not count: {n:,} are left. Call conformalize with at least {2 * needed:,} rows"
            f"{' (1,000 are advised)' * (2 * needed < 1000)}, or allow a larger alpha."
        )
    return last_passing(violations, alpha)


def last_passing(violations: Sequence[NDArray[np.bool_]], alpha: float) -> int | None:
    """Return the last policy of :func:`last_certified`; None if none is, be it because there are too few rows."""
    found = None
    for index, violated in enumerate(violations):
        if not is_certified(int(violated.sum()), len(violated), alpha):
            break
        found = index
    return found
