"""Predict the size of a row's error from what its solve has computed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingRegressor

from .describing import Rows

_FLOOR = 1e-3
"""Smallest error that is told apart from zero, as a share of the median: errors of zero and of rounding are alike."""
_FAILED = 1e3
"""What the error of a solve that overflowed counts as, over the largest error of the others."""
_FOLDS = 5


class ErrorModel:
    """Boosted trees that predict the logarithm of an error. They do not extrapolate: far rows get an error seen before.

    Parameters
    ----------
    described : array of shape (n, m)
        Rows as :func:`describe_run` describes them.
    errors : array of shape (n,)
        Their errors. Those of solves that overflowed are infinite.
    """

    def __init__(self, described: Rows, errors: Rows):
        errors = _finite(errors)
        positive = errors[errors > 0]
        floor = _FLOOR * float(np.median(positive)) if len(positive) else 0.0
        trees = HistGradientBoostingRegressor(
            max_iter=80, learning_rate=0.08, max_leaf_nodes=12, min_samples_leaf=15, early_stopping=False,
            random_state=0,
        )  # fmt: skip
        self._trees = trees.fit(described, np.log(errors + max(floor, np.finfo(float).tiny)))

    def predict(self, described: Rows) -> Rows:
        """Return the predicted errors, which are positive."""
        return np.asarray(np.exp(self._trees.predict(described)))


def _finite(errors: Rows) -> Rows:
    finite = errors[np.isfinite(errors)]
    largest = float(finite.max()) if len(finite) else 1.0
    return np.minimum(errors, max(_FAILED * largest, np.finfo(float).tiny))


def predict_unseen(described: Rows, errors: Rows, order: NDArray[np.int64]) -> Rows:
    """Return predictions of errors, each by a model that learned from four fifths of the rows, but not from this one.

    Parameters
    ----------
    described, errors : array
        As those of :class:`ErrorModel`.
    order : array of int of shape (n,)
        The rows in the order in which they are dealt to folds.
    """
    unseen = np.empty(len(errors))
    for fold in np.array_split(order, _FOLDS):
        others = np.setdiff1d(order, fold)
        unseen[fold] = ErrorModel(described[others], errors[others]).predict(described[fold])
    return unseen
