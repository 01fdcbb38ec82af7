"""Predict the size of a row's error from what its solve has computed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingRegressor

from .describing import Rows

_FLOOR = 1e-3
"""Smallest error that is told apart from zero, as a share of the mean: errors of zero and of rounding are alike."""
_FOLDS = 5


class ErrorModel:
    """Boosted trees that predict the logarithm of an error. They do not extrapolate: far rows get an error seen before.

    Parameters
    ----------
    described : array of shape (n, m)
        Rows as :func:`describe_run` describes them.
    errors : array of shape (n,)
        Their errors.
    """

    def __init__(self, described: Rows, errors: Rows):
        self._floor = max(_FLOOR * float(errors.mean()), np.finfo(float).tiny)
        trees = HistGradientBoostingRegressor(
            max_iter=80, learning_rate=0.08, max_leaf_nodes=12, min_samples_leaf=15, early_stopping=False,
            random_state=0,
        )  # fmt: skip
        self._trees = trees.fit(described, np.log(errors + self._floor))

    def predict(self, described: Rows) -> Rows:
        """Return the predicted errors, which are positive."""
        return np.asarray(np.exp(self._trees.predict(described)))


class CrossFittedErrorModel:
    """Five models, each learned without a fifth of the rows. Every row has a prediction by a model that never saw it.

    Parameters
    ----------
    described, errors : array
        As those of :class:`ErrorModel`.
    order : array of int of shape (n,)
        The rows in the order in which they are dealt to folds.

    Attributes
    ----------
    unseen : array of shape (n,)
        Predictions of these rows, each by the model that did not learn from it.
    """

    def __init__(self, described: Rows, errors: Rows, order: NDArray[np.int64]):
        self.unseen = np.empty(len(errors))
        self._models = []
        for fold in np.array_split(order, _FOLDS):
            others = np.setdiff1d(order, fold)
            model = ErrorModel(described[others], errors[others])
            self.unseen[fold] = model.predict(described[fold])
            self._models.append(model)

    def predict(self, described: Rows) -> Rows:
        """Return the predicted errors: the geometric mean of the five models'."""
        return np.asarray(np.exp(np.mean([np.log(model.predict(described)) for model in self._models], axis=0)))
