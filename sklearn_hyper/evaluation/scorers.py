"""Label-free scorers: how well a hypersolver stands in for dopri5, as ``scoring=`` of scikit-learn's searches."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV, RandomizedSearchCV
from sklearn.pipeline import Pipeline

from ..estimators._hypersolver import Hypersolver


def resolve_hypersolver(estimator: Any, X: Any) -> tuple[Any, Any]:
    """The hypersolver that a pipeline, search or FrozenEstimator ends in, and X as it reaches it.

    Raises
    ------
    TypeError
        If there is no hypersolver at the end.
    NotFittedError
        If a search or a pipeline's step is not fitted.
    """
    if isinstance(estimator, Hypersolver):
        return estimator, X
    if isinstance(estimator, FrozenEstimator):
        return resolve_hypersolver(estimator.estimator, X)
    if isinstance(estimator, Pipeline):
        earlier = estimator[:-1]
        return resolve_hypersolver(estimator.steps[-1][1], earlier.transform(X) if len(earlier) else X)
    if hasattr(estimator, "best_estimator_"):
        return resolve_hypersolver(estimator.best_estimator_, X)
    if isinstance(estimator, (GridSearchCV, RandomizedSearchCV)):
        raise NotFittedError(f"This {type(estimator).__name__} has no best_estimator_: fit it, with refit=True.")
    raise TypeError(
        "a HypersolverRegressor or HypersolverClassifier, or a Pipeline or search that ends in one, is needed, "
        f"got {type(estimator).__name__}."
    )


def neg_mape_scorer(estimator: Any, X: Any, y: Any = None) -> float:
    """Minus the MAPE of a hypersolver's outputs against dopri5's; greater is better, 0 is perfect.

    For a regressor this is its ``score``. For a classifier the outputs are the logits, so it tells candidates apart
    that agree on every label.

    Parameters
    ----------
    estimator : hypersolver, or a Pipeline or search that ends in one
        Fitted.
    X : array-like of shape (n_samples, ...)
    y : ignored
        The reference is dopri5, not labels.

    Returns
    -------
    float

    See Also
    --------
    agreement_scorer : Counts labels instead.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.model_selection import GridSearchCV
    >>> from sklearn_hyper import HypersolverRegressor
    >>> from sklearn_hyper.datasets import VanDerPol
    >>> from sklearn_hyper.evaluation import neg_mape_scorer
    >>> X = np.random.default_rng(0).uniform(-1, 1, (60, 2))
    >>> hypersolver = HypersolverRegressor(VanDerPol(), max_epochs=5, random_state=0)
    >>> search = GridSearchCV(hypersolver, {"n_steps": [1, 5]}, cv=2, scoring=neg_mape_scorer).fit(X)
    >>> search.best_params_
    {'n_steps': 5}
    """
    hypersolver, X = resolve_hypersolver(estimator, X)
    return float(hypersolver._neg_mape(X))


def agreement_scorer(estimator: Any, X: Any, y: Any = None) -> float:
    """Share of labels on which a hypersolver and its dopri5 reference agree.

    Parameters
    ----------
    estimator : HypersolverClassifier, or a Pipeline or search that ends in one
        Fitted.
    X : array-like of shape (n_samples, ...)
    y : ignored
        The reference is dopri5, not labels.

    Returns
    -------
    float
        1 where the hypersolver changes no prediction.

    Raises
    ------
    TypeError
        If the hypersolver predicts no labels.

    See Also
    --------
    neg_mape_scorer : Compares logits, which is finer.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_hyper import HypersolverClassifier, NeuralODEClassifier
    >>> from sklearn_hyper.evaluation import agreement_scorer
    >>> X, y = load_iris(return_X_y=True)
    >>> slow = NeuralODEClassifier(max_epochs=5, random_state=0).fit(X, y)
    >>> fast = HypersolverClassifier(slow, n_steps=2, max_epochs=10, random_state=0).fit(X)
    >>> agreement_scorer(fast, X) > 0.9
    True
    """
    hypersolver, X = resolve_hypersolver(estimator, X)
    if not hasattr(hypersolver, "predict_proba"):
        raise TypeError(
            f"agreement_scorer compares labels and {type(hypersolver).__name__} predicts none; use neg_mape_scorer."
        )
    expected = hypersolver.reference(X).argmax(axis=1)
    return float(np.mean(hypersolver.predict(X) == hypersolver.classes_[expected]))
