"""Errors for a ``neural_ode`` of no accepted form: why it is refused, and what to pass instead."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, MetaEstimatorMixin
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.utils.validation import check_is_fitted

from ..training.skorch_nets import is_initialized, is_net, net_module
from ._base import TorchEstimator
from .flows import ContinuousNormalizingFlow
from .neural_ode import NeuralODEClassifier, NeuralODERegressor

_SHOWN = 3


def refusal(estimator: Any, is_accepted: Callable[[Any], bool], own: Any, expected: str) -> Exception:
    """Return the error for something that is none of the accepted forms.

    Parameters
    ----------
    estimator : object
        What ``neural_ode`` ends in, behind Pipelines, searches and FrozenEstimators.
    is_accepted : callable
        ``is_accepted(object)`` returns whether the object is an accepted form.
    own : type or tuple of types
        The estimators among the accepted forms.
    expected : str
        Text that lists the accepted forms: "neural_ode must be ...".

    Returns
    -------
    NotFittedError or TypeError
    """
    name = type(estimator).__name__
    if isinstance(estimator, type) or not hasattr(estimator, "fit"):
        return TypeError(f"{expected}; got {estimator!r}.")
    if isinstance(estimator, TorchEstimator) and estimator._model_parameters:
        return TypeError(
            f"neural_ode is a {name}, a hypersolver already: its predictions are fast. Pass the Neural ODE that it was "
            f"made for, its neural_ode, to make another. {expected}."
        )
    if is_net(estimator):
        return _refused_net(estimator)
    if not _is_fitted(estimator):
        if isinstance(estimator, (MetaEstimatorMixin, own)):
            return _not_fitted(estimator)
        return TypeError(f"{expected}; got {estimator!r}.")
    if "cv_results_" in vars(estimator):
        return NotFittedError(
            f"neural_ode is a {name} that was fitted with refit=False and keeps no fitted estimator; fit it with "
            "refit=True."
        )
    if isinstance(estimator, ContinuousNormalizingFlow):
        return TypeError(
            f"neural_ode is a {name}, a flow, which HypersolverDensity takes. For the sampler alone, in advise too, "
            f"pass flow.flow_.sampling(), with base draws as X. {expected}."
        )
    if isinstance(estimator, (NeuralODEClassifier, NeuralODERegressor)):
        return TypeError(
            f"neural_ode is a {name}, which HypersolverRegressor or HypersolverClassifier takes. {expected}."
        )
    return _refused_fitted(estimator, is_accepted, expected)


def _refused_fitted(estimator: Any, is_accepted: Callable[[Any], bool], expected: str) -> TypeError:
    name = type(estimator).__name__
    held = list(_held(estimator, is_accepted))
    if not held:
        return TypeError(
            f"neural_ode is a {name} that is fitted, but none of the accepted forms. {expected}; got {estimator!r}."
        )
    also = f" (also {', '.join(held[1:_SHOWN])}{', ...' * (len(held) > _SHOWN)})" if len(held) > 1 else ""
    return TypeError(
        f"neural_ode is a {name} that is fitted, but none of the accepted forms: what it predicts is not the output of "
        f"its Neural ODE alone. Pass the {name}'s {held[0]}{also}, and do what the {name} does around it to the "
        "hypersolver's outputs yourself."
    )


def _refused_net(net: Any) -> Exception:
    name = type(net).__name__
    if not is_initialized(net):
        return NotFittedError(
            f"neural_ode is a {name}, a skorch net that is not initialized: call fit, or initialize() and "
            "load_params(). If it was, scikit-learn's clone has undone it: wrap it in sklearn.frozen.FrozenEstimator."
        )
    return TypeError(
        f"neural_ode is a {name} whose module is a {type(net_module(net)).__name__}, not a NeuralODE; wrap the "
        "vector field in sklearn_hyper.NeuralODE before training it."
    )


def _not_fitted(estimator: Any) -> NotFittedError:
    return NotFittedError(
        f"neural_ode is a {type(estimator).__name__} that is not fitted. Fit it first (a search with refit=True); if "
        "it was fitted, scikit-learn's clone has unfitted it (as a grid over neural_ode=[...] does): wrap it in "
        "sklearn.frozen.FrozenEstimator."
    )


def _is_fitted(estimator: Any) -> bool:
    if not isinstance(estimator, BaseEstimator):
        return any(name.endswith("_") and not name.startswith("_") for name in vars(estimator))
    try:
        check_is_fitted(estimator)
    except NotFittedError:
        return False
    return True


def _held(estimator: Any, is_accepted: Callable[[Any], bool], depth: int = 2) -> Iterator[str]:
    """Yield the paths to accepted forms among the attributes of a fitted estimator."""
    for path, value in _parts(estimator):
        if is_accepted(value):
            yield path
        elif depth > 1:
            inner = value.estimator if isinstance(value, FrozenEstimator) else value
            yield from (f"{path}.{rest}" for rest in _held(inner, is_accepted, depth - 1))


def _parts(estimator: Any) -> Iterator[tuple[str, Any]]:
    # Attributes that end in "_" are fitted; the members of a calibrated classifier call theirs "estimator".
    for name, value in getattr(estimator, "__dict__", {}).items():
        if name.startswith("_") or not (name.endswith("_") or name == "estimator"):
            continue
        if isinstance(value, (list, tuple)) or (isinstance(value, np.ndarray) and value.dtype == object):
            yield from ((f"{name}[{i}]", item) for i, item in enumerate(value) if _may_hold(item))
        elif _may_hold(value):
            yield name, value


def _may_hold(value: Any) -> bool:
    return not isinstance(value, type) and (hasattr(value, "fit") or hasattr(value, "predict_proba"))
