"""Scorers without labels for ``scoring=`` of searches: how close a hypersolver is to dopri5, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol, cast

from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV, RandomizedSearchCV
from sklearn.pipeline import Pipeline
from sklearn.utils.metadata_routing import MetadataRequest

from ..estimators import HypersolverClassifier, HypersolverDensity, HypersolverRegressor

_PREDICTORS: tuple[type, ...] = (HypersolverRegressor, HypersolverClassifier)
_ALL = (*_PREDICTORS, HypersolverDensity)


def resolve_hypersolver(estimator: Any, X: Any, kinds: tuple[type, ...] = _PREDICTORS) -> tuple[Any, Any]:
    """Return the hypersolver that a pipeline, search or FrozenEstimator ends in, and X as it receives it.

    Raises
    ------
    TypeError
        If there is no hypersolver at the end.
    NotFittedError
        If a search or a pipeline's step is not fitted.
    """
    if isinstance(estimator, kinds):
        return estimator, X
    if isinstance(estimator, FrozenEstimator):
        return resolve_hypersolver(estimator.estimator, X, kinds)
    if isinstance(estimator, Pipeline):
        earlier = estimator[:-1]
        return resolve_hypersolver(estimator.steps[-1][1], earlier.transform(X) if len(earlier) else X, kinds)
    if hasattr(estimator, "best_estimator_"):
        return resolve_hypersolver(estimator.best_estimator_, X, kinds)
    if isinstance(estimator, (GridSearchCV, RandomizedSearchCV)):
        raise NotFittedError(f"This {type(estimator).__name__} has no best_estimator_: fit it, with refit=True.")
    names = [kind.__name__ for kind in kinds]
    raise TypeError(
        f"a {', '.join(names[:-1])} or {names[-1]}, or a Pipeline or search that ends in one, is needed, got "
        f"{type(estimator).__name__}."
    )


class ConditionScorer:
    """A scorer that searches and cross validation pass a condition to, by metadata routing.

    Parameters
    ----------
    scorer : callable
        ``scorer(estimator, X, y, condition=...)``.
    condition : bool, str or None
        As in ``set_score_request`` of any estimator: whether to ask for it, or its name among the metadata.
    """

    def __init__(self, scorer: Callable[..., float], condition: bool | str | None):
        self.scorer = scorer
        self.request = MetadataRequest(owner=scorer.__name__)
        self.request.score.add_request(param="condition", alias=condition)

    def __call__(self, estimator: Any, X: Any, y: Any = None, *, condition: Any = None) -> float:
        return self.scorer(estimator, X, y, condition=condition)

    def __repr__(self) -> str:
        return f"{self.scorer.__name__}.set_score_request(condition={self.request.score.requests['condition']!r})"

    def get_metadata_routing(self) -> Any:
        """Return what the scorer asks for, as scikit-learn's routers read it."""
        return self.request


class _Scorer(Protocol):
    """A scorer, which as it is asks for nothing."""

    __name__: str

    def __call__(self, estimator: Any, X: Any, y: Any = None, *, condition: Any = None) -> float: ...

    def set_score_request(self, *, condition: bool | str | None) -> ConditionScorer:
        """Return this scorer with a request for a condition."""


def asks_for_conditions(scorer: Callable[..., float]) -> _Scorer:
    """Give a scorer ``set_score_request(condition=...)``, which returns one that asks for a condition."""

    def set_score_request(*, condition: bool | str | None) -> ConditionScorer:
        return ConditionScorer(scorer, condition)

    scorer.set_score_request = set_score_request  # type: ignore[attr-defined]
    return cast(_Scorer, scorer)


@asks_for_conditions
def neg_mape_scorer(estimator: Any, X: Any, y: Any = None, *, condition: Any = None) -> float:
    """Return minus the MAPE of a hypersolver's outputs against dopri5's; greater is better, 0 is perfect.

    For a regressor this is its ``score``. For a classifier the outputs are logits, so the score also tells apart
    candidates that agree on every label.

    Parameters
    ----------
    estimator : hypersolver, or a Pipeline or search that ends in one
        Fitted.
    X : array-like of shape (n_samples, ...)
        Rows to compare on.
    y : ignored
        The reference is dopri5, not labels.
    condition : optional
        As in the hypersolver's ``fit``, where that had one. A search passes it to
        ``SCORER.set_score_request(condition=True)``.

    Returns
    -------
    float

    See Also
    --------
    agreement_scorer : Compares labels instead.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.model_selection import GridSearchCV
    >>> from sklearn_hyper import HypersolverRegressor
    >>> from sklearn_hyper.datasets import VanDerPol
    >>> from sklearn_hyper.evaluation import neg_mape_scorer
    >>> X = np.random.default_rng(0).uniform(-1, 1, (60, 2))
    >>> hypersolver = HypersolverRegressor(VanDerPol(), base_solver="euler", max_epochs=5, random_state=0)
    >>> search = GridSearchCV(hypersolver, {"n_steps": [1, 5]}, cv=2, scoring=neg_mape_scorer).fit(X)
    >>> search.best_params_
    {'n_steps': 5}

    A field with a condition, which a search carries to fits and scores:

    >>> import pandas as pd
    >>> import sklearn
    >>> def decay(t, z, *, rate):
    ...     return -rate[:, None] * z
    >>> rates = pd.DataFrame({"rate": np.linspace(0.5, 1.5, 60)})
    >>> with sklearn.config_context(enable_metadata_routing=True):
    ...     asking = HypersolverRegressor(decay, base_solver="euler", max_epochs=5, random_state=0)
    ...     search = GridSearchCV(
    ...         asking.set_fit_request(condition=True), {"n_steps": [1, 5]}, cv=2,
    ...         scoring=neg_mape_scorer.set_score_request(condition=True),
    ...     ).fit(X, condition=rates)
    >>> search.best_params_
    {'n_steps': 5}
    """
    hypersolver, X = resolve_hypersolver(estimator, X)
    return float(hypersolver.neg_mape(X, condition=condition))


@asks_for_conditions
def agreement_scorer(estimator: Any, X: Any, y: Any = None, *, condition: Any = None) -> float:
    """Return the share of labels on which a hypersolver and its dopri5 reference agree.

    Parameters
    ----------
    estimator : HypersolverClassifier, or a Pipeline or search that ends in one
        Fitted.
    X : array-like of shape (n_samples, ...)
        Rows to compare on.
    y : ignored
        The reference is dopri5, not labels.
    condition : optional
        As in the hypersolver's ``fit``, where that had one. A search passes it to
        ``SCORER.set_score_request(condition=True)``.

    Returns
    -------
    float
        1 where the hypersolver changes no prediction.

    Raises
    ------
    TypeError
        If the hypersolver is not a classifier.

    See Also
    --------
    neg_mape_scorer : Compares logits, which tells more candidates apart.

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
    if not isinstance(hypersolver, HypersolverClassifier):
        raise TypeError(
            f"agreement_scorer compares labels and {type(hypersolver).__name__} predicts none; use neg_mape_scorer."
        )
    return float(hypersolver.agreement(X, condition=condition))


@asks_for_conditions
def neg_macs_scorer(estimator: Any, X: Any, y: Any = None, *, condition: Any = None) -> float:
    """Return minus the multiply-accumulates of a hypersolver's solve for one sample; greater is cheaper.

    Every evaluation of f and g counts, as in ``solver_report``. The input and output maps do not count, because every
    solver of the Neural ODE calls them alike. The count is taken on X's first row, without a dopri5 solve.

    Parameters
    ----------
    estimator : hypersolver, or a Pipeline or search that ends in one
        Fitted. For a HypersolverDensity the density solve is counted, which its ``score`` runs.
    X : array-like of shape (n_samples, ...)
    y : ignored
    condition : optional
        As in :func:`neg_mape_scorer`.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        If the vector field holds no matrix product or convolution, as analytic fields do. Its count would be zero, as
        if f were free. Use :func:`neg_nfe_scorer` then.

    See Also
    --------
    neg_nfe_scorer : Counts evaluations of f, which every field has.
    cheapest_within : Chooses by cost and a tolerance.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_hyper import HypersolverClassifier, NeuralODEClassifier
    >>> from sklearn_hyper.evaluation import neg_macs_scorer
    >>> X, y = load_iris(return_X_y=True)
    >>> slow = NeuralODEClassifier(max_epochs=1, random_state=0).fit(X, y)
    >>> fast = HypersolverClassifier(slow, n_steps=2, max_epochs=1, random_state=0).fit(X)
    >>> report = fast.solver_report(X)
    >>> neg_macs_scorer(fast, X) == -report[-1].macs
    True
    """
    hypersolver, X = resolve_hypersolver(estimator, X, _ALL)
    macs = hypersolver.count_macs(X, condition=condition)
    if math.isnan(macs):
        raise ValueError(
            "the vector field has no MACs, for it holds no matrix product or convolution: score cost by "
            "neg_nfe_scorer instead of neg_macs_scorer."
        )
    return -macs


@asks_for_conditions
def neg_nfe_scorer(estimator: Any, X: Any, y: Any = None, *, condition: Any = None) -> float:
    """Return minus the evaluations of f that a hypersolver makes for a prediction; greater is cheaper.

    The correction is not counted. Use this cost for fields without MACs; for others, :func:`neg_macs_scorer` counts the
    correction too.

    Parameters
    ----------
    estimator : hypersolver, or a Pipeline or search that ends in one
        Fitted.
    X : array-like of shape (n_samples, ...)
        Only adaptive steps depend on it: the score is then the mean over its rows.
    y : ignored
    condition : optional
        As in :func:`neg_mape_scorer`; needed with adaptive steps alone.

    Returns
    -------
    float

    See Also
    --------
    neg_macs_scorer : Counts multiply-accumulates of f and g.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_hyper import HypersolverRegressor
    >>> from sklearn_hyper.datasets import VanDerPol
    >>> from sklearn_hyper.evaluation import neg_nfe_scorer
    >>> X = np.random.default_rng(0).uniform(-1, 1, (60, 2))
    >>> fast = HypersolverRegressor(VanDerPol(), base_solver="heun", n_steps=3, max_epochs=5, random_state=0).fit(X)
    >>> neg_nfe_scorer(fast, X)  # two stages, three steps
    -6.0
    """
    hypersolver, rows = resolve_hypersolver(estimator, X, _ALL)
    return -float(hypersolver.count_evaluations(rows, condition=condition))
