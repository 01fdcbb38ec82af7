"""Predict the size of a row's error from what its solve has computed."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPRegressor

from .describing import Rows

_FLOOR = 1e-3
"""Smallest error that is told apart from zero, as a share of the median: errors of zero and of rounding are alike."""
_FAILED = 1e3
"""What the error of a solve that overflowed counts as, over the largest error of the others."""
_FOLDS = 5
_FARTHEST = 5.0
"""Numbers of a row count as at most so many standard deviations from the mean."""


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
        trees = HistGradientBoostingRegressor(
            max_iter=80, learning_rate=0.08, max_leaf_nodes=12, min_samples_leaf=15, early_stopping=False,
            random_state=0,
        )  # fmt: skip
        self._trees = trees.fit(described, _logs(errors))

    def predict(self, described: Rows) -> Rows:
        """Return the predicted errors, which are positive."""
        return np.asarray(np.exp(self._trees.predict(described)))


class RouterNet:
    """One small net that predicts the logarithms of the errors of all levels at once.

    It is as good as trees, and takes a tenth of their time on a single row, because trees need a model for each level.

    Parameters
    ----------
    described : array of shape (n, m)
        Rows as :func:`describe_run` describes them.
    errors : array of shape (n_levels, n)
        Their errors, by level.
    """

    def __init__(self, described: Rows, errors: Rows):
        self._centre, self._spread = described.mean(axis=0), described.std(axis=0) + np.finfo(float).eps
        logs = np.stack([_logs(error) for error in errors], axis=1)
        self._mean, self._scale = logs.mean(axis=0), logs.std(axis=0) + np.finfo(float).eps
        net = MLPRegressor(
            hidden_layer_sizes=(32, 32), activation="tanh", solver="lbfgs", alpha=1.0, max_iter=300, random_state=0
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # 300 iterations are enough
            targets = (logs - self._mean) / self._scale
            self._net = net.fit(self._scaled(described), targets[:, 0] if targets.shape[1] == 1 else targets)

    def _scaled(self, described: Rows) -> Rows:
        return np.clip((described - self._centre) / self._spread, -_FARTHEST, _FARTHEST)

    def predict(self, described: Rows) -> Rows:
        """Return the predicted errors, which are positive, of shape (n_levels, n)."""
        logs = self._net.predict(self._scaled(described)).reshape(len(described), -1)
        return np.asarray(np.exp(logs * self._scale + self._mean).T)


def _logs(errors: Rows) -> Rows:
    """Return logarithms of errors; those of zero and of rounding are alike."""
    errors = _finite(errors)
    positive = errors[errors > 0]
    floor = _FLOOR * float(np.median(positive)) if len(positive) else 0.0
    return np.asarray(np.log(errors + max(floor, np.finfo(float).tiny)))


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
