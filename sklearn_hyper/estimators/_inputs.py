"""Check X: run the frozen steps before the Neural ODE, and require what its estimator was fitted on.

A contract is an estimator that stores the names, number and shape of features that X must have, and nothing else. Its
``_validate_X`` checks X and names the estimator's class in errors.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from sklearn.utils.validation import _check_feature_names, _check_n_features

from ._base import TorchEstimator
from ._conditions import with_condition

_LEARNED = ("n_features_in_", "feature_names_in_", "_input_shape")


def contract_of(estimator: TorchEstimator) -> TorchEstimator:
    """Return an instance of the estimator's class that stores what X has to be, and nothing of the model."""
    contract = bare(type(estimator))
    take_over(contract, estimator)
    return contract


def bare(kind: type[TorchEstimator]) -> TorchEstimator:
    """Return an instance without parameters or weights, whose ``_validate_X`` can learn from X or check it."""
    empty = kind.__new__(kind)
    vars(empty).update(dict.fromkeys(kind._get_param_names()))  # its repr, which errors may show, reads the parameters
    return empty


def take_over(estimator: TorchEstimator, fitted: TorchEstimator | None) -> None:
    """Make ``estimator`` require of X what ``fitted`` requires; nothing if ``fitted`` is None."""
    for name in _LEARNED:
        vars(estimator).pop(name, None)
        if fitted is not None and name in vars(fitted):
            setattr(estimator, name, vars(fitted)[name])


def take_X(
    estimator: TorchEstimator, X: Any, fitted: TorchEstimator | None, preprocess: Any, *, reset: bool
) -> np.ndarray:
    """Check X of a fit and return it as the Neural ODE takes it; store what later calls must pass.

    Parameters
    ----------
    estimator : TorchEstimator
        The one that is being fitted. Its ``preprocess_`` and ``_contract`` are set.
    X : array-like
    fitted : estimator or None
        The estimator that the Neural ODE came from: X must be what its own ``predict`` takes.
    preprocess : Pipeline or None
        The fitted steps before it. They check X themselves; their output is checked here.
    reset : bool
        Whether to forget what an earlier fit learned about X.
    """
    estimator.preprocess_ = copy.deepcopy(preprocess)
    estimator._contract = None if fitted is None else contract_of(fitted)
    if preprocess is None:
        return _take_checked(estimator, X, reset=reset)
    if reset:
        # Names and number of columns are only recorded: the steps may select columns by name, or take text.
        vars(estimator).pop("n_features_in_", None)
        _check_feature_names(estimator, X, reset=True)
        _check_n_features(estimator, X, reset=True)
    X = estimator.preprocess_.transform(X)
    learns = estimator._contract is None
    if learns:
        estimator._contract = bare(type(estimator))
    X = estimator._contract._validate_X(X, reset=learns)
    if not reset and X.shape[1:] != estimator._input_shape:
        raise ValueError(
            f"the steps before the Neural ODE give samples of shape {X.shape[1:]}, those of the fit that warm_start "
            f"goes on from gave {estimator._input_shape}; fit anew with warm_start=False."
        )
    estimator._input_shape = X.shape[1:]
    return X


def _take_checked(estimator: TorchEstimator, X: Any, *, reset: bool) -> np.ndarray:
    contract, checked = estimator._contract, estimator._validate_X(X, reset=reset)
    if contract is None:
        return checked
    _check_feature_names(contract, X, reset=False)
    shape, expected = checked.shape[1:], contract._input_shape
    if shape != expected:
        raise ValueError(
            f"X has samples of shape {shape} (n_features={shape[0]}), but neural_ode was fitted on samples of shape "
            f"{expected}; pass X as neural_ode takes it. X has {shape[0]} features, but {type(contract).__name__} is "
            f"expecting {expected[0]} features as input."
        )
    if hasattr(contract, "feature_names_in_"):
        estimator.feature_names_in_ = contract.feature_names_in_
    return checked


def prepare_rows(estimator: TorchEstimator, X: Any, condition: Any) -> Any:
    """Check X and its condition, and return them as the Neural ODE takes them.

    Raises
    ------
    ConditionError
    """
    return with_condition(estimator, condition, prepare_X(estimator, X))


def prepare_X(estimator: TorchEstimator, X: Any) -> np.ndarray:
    """Run the frozen steps of a fitted pipeline, which check X themselves, then the input check."""
    if estimator.preprocess_ is None:
        return estimator._validate_X(X, reset=False)
    return estimator._contract._validate_X(estimator.preprocess_.transform(X), reset=False)
