"""Choose the cheapest solver that is accurate enough: a rule for the ``refit`` of scikit-learn's searches."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ATTAINABLE = {"agreement": 1.0, "neg_mape": 0.0}
# A mean of 0.999 over folds is within 0.001 of 1, whatever its last digits.
_ROUNDING = 1e-12


def cheapest_within(
    tolerance: float, *, metric: str = "agreement", cost: str = "neg_macs", reference: float | None = None
) -> Callable[[Mapping[str, Any]], int]:
    """Make a rule that chooses the cheapest candidate of a search whose metric is within a tolerance.

    Pass it as ``refit`` to ``GridSearchCV`` or ``RandomizedSearchCV``. Call it on ``cv_results_`` of a finished search
    to choose by another rule without searching again.

    Parameters
    ----------
    tolerance : float
        How far ``mean_test_<metric>`` may fall below the reference, in the units of the metric. For an accuracy, 0.001
        is 0.1 %. For an agreement on n test rows, a tolerance below 1/n allows no change at all.
    metric : str, default "agreement"
        Name in the search's ``scoring`` of what must be accurate. Greater is better.
    cost : str, default "neg_macs"
        Name in the search's ``scoring`` of minus the cost: :func:`neg_macs_scorer`, :func:`neg_nfe_scorer` or your own.
    reference : float, optional
        Value that the metric is compared with, such as dopri5's own accuracy. By default the best possible value where
        it is known: 1 for a metric named "agreement", 0 for one named "neg_mape". Otherwise the best candidate's.

    Returns
    -------
    callable
        Takes ``cv_results_`` and returns the index of the chosen candidate. Among equally cheap ones it takes the most
        accurate, then the first. It pickles and compares by value.

    Raises
    ------
    TypeError, ValueError
        At once, if a parameter is wrong. When the rule is applied, a ValueError if the search has no such metric or
        cost, or the metric is nan for every candidate. That error keeps the results in its attribute ``cv_results_``.

    Warns
    -----
    UserWarning
        When the rule is applied, if no candidate is within the tolerance, or none of those has a known cost. The most
        accurate candidate is taken then, so that a long search is not lost.

    Notes
    -----
    Candidates whose metric is not finite are never chosen. Those whose cost is not finite are chosen only as the most
    accurate. In scikit-learn, a search with several metrics and a callable ``refit`` has no ``best_score_`` and its
    ``score`` fails: call ``best_estimator_.score``, or a scorer on the search.

    See Also
    --------
    pareto_front : Marks all candidates that no other beats in both cost and error.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.model_selection import GridSearchCV
    >>> from sklearn_hyper import HypersolverRegressor
    >>> from sklearn_hyper.datasets import VanDerPol
    >>> from sklearn_hyper.evaluation import cheapest_within, neg_mape_scorer, neg_nfe_scorer
    >>> X = np.random.default_rng(0).uniform(-1, 1, (60, 2))
    >>> search = GridSearchCV(
    ...     HypersolverRegressor(VanDerPol(), base_solver="euler", max_epochs=5, random_state=0),
    ...     {"n_steps": [2, 4, 8]},
    ...     scoring={"neg_mape": neg_mape_scorer, "neg_nfe": neg_nfe_scorer},
    ...     refit=cheapest_within(0.2, metric="neg_mape", cost="neg_nfe"),
    ...     cv=2,
    ... ).fit(X)
    >>> search.best_params_
    {'n_steps': 4}
    >>> strict = cheapest_within(0.1, metric="neg_mape", cost="neg_nfe")
    >>> search.cv_results_["params"][strict(search.cv_results_)]
    {'n_steps': 8}
    """
    _check_number("tolerance", tolerance)
    if tolerance < 0:
        raise ValueError(f"tolerance must be at least 0, got {tolerance!r}: how far may {metric} fall?")
    if reference is not None:
        _check_number("reference", reference)
    for name, value in [("metric", metric), ("cost", cost)]:
        if not isinstance(value, str):
            raise TypeError(f"{name} must be a name in the search's scoring, got {value!r}.")
    if metric == cost:
        raise ValueError(f"metric and cost must differ, got {metric!r} for both.")
    return _CheapestWithin(tolerance, metric, cost, reference)


def _check_number(name: str, value: Any) -> None:
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got {value!r}.")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value!r}.")


@dataclass(frozen=True)
class _CheapestWithin:
    """The rule itself; a dataclass, so that searches that hold it can be cloned and pickled."""

    tolerance: float
    metric: str
    cost: str
    reference: float | None

    def __call__(self, results: Mapping[str, Any]) -> int:
        scores, costs = self._means(results, self.metric), -self._means(results, self.cost)
        if not np.isfinite(scores).any():
            raise _refuse(
                results,
                f"mean_test_{self.metric} is finite for no candidate, so there is nothing to choose by. Its scorer "
                "failed: search with error_score='raise' to see why.",
            )
        # Candidates that could not be measured come last.
        scores = np.where(np.isfinite(scores), scores, -np.inf)
        costs = np.where(np.isfinite(costs), costs, np.inf)
        reference = self._reference(scores)
        within = reference - scores <= self.tolerance + _ROUNDING * max(abs(reference), self.tolerance)
        eligible = within & (costs < np.inf)
        if eligible.any():
            return int(np.lexsort((-scores, costs, ~eligible))[0])
        best = int(np.lexsort((costs, -scores))[0])
        if within.any():
            reason = f"mean_test_{self.cost} is finite for no candidate within the tolerance"
        else:
            reason = (
                f"no candidate is within {self.tolerance:g} of {self.metric} {reference:.6g}; the best reaches "
                f"{scores[best]:.6g}: search over more n_steps and higher orders, or raise the tolerance"
            )
        warnings.warn(
            f"{reason}. The most accurate was taken, whatever it costs: {results['params'][best]}.", stacklevel=2
        )
        return best

    def _reference(self, scores: NDArray[np.float64]) -> float:
        if self.reference is not None:
            return float(self.reference)
        return _ATTAINABLE.get(self.metric, float(scores.max()))

    @staticmethod
    def _means(results: Mapping[str, Any], name: str) -> NDArray[np.float64]:
        if f"mean_test_{name}" not in results:
            scored = [key.removeprefix("mean_test_") for key in results if key.startswith("mean_test_")]
            raise _refuse(
                results,
                f"the search has no scores named {name!r}, only {', '.join(map(repr, scored)) or 'none'}: name metric= "
                "and "
                "cost= of cheapest_within as in scoring={'agreement': agreement_scorer, 'neg_macs': neg_macs_scorer}.",
            )
        return np.asarray(results[f"mean_test_{name}"], dtype=float)


def _refuse(results: Mapping[str, Any], message: str) -> ValueError:
    """Return an error that keeps the results, which a search that fails to choose would lose."""
    error = ValueError(f"{message} The results of the search are this error's cv_results_.")
    error.cv_results_ = results
    return error
