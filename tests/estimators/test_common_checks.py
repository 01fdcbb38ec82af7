"""scikit-learn's own checks on every estimator."""

import functools

import numpy as np
import pytest
from sklearn.datasets import make_blobs
from sklearn.utils.estimator_checks import parametrize_with_checks
from user_fields import decay

from sklearn_hyper import (
    ContinuousNormalizingFlow,
    HypersolverClassifier,
    HypersolverDensity,
    HypersolverRegressor,
    NeuralODE,
    NeuralODEClassifier,
    NeuralODERegressor,
)

_OUTPUTS = "nothing is learned from y: predictions have the shape of the Neural ODE's outputs, here of its state"
_OWN_OUTPUTS = {"check_regressors_train": _OUTPUTS, "check_regressor_multioutput": _OUTPUTS}


def cannot_pass(estimator):
    return _OWN_OUTPUTS if isinstance(estimator, HypersolverRegressor) else {}


@parametrize_with_checks([
    NeuralODEClassifier(max_epochs=5, random_state=0),
    NeuralODERegressor(max_epochs=5, random_state=0),
    HypersolverRegressor(NeuralODE(decay), base_solver="euler", n_steps=2, max_epochs=3, random_state=0),
    ContinuousNormalizingFlow(max_epochs=2, random_state=0),
    NeuralODEClassifier(solver="auto", max_epochs=5, random_state=0),
    NeuralODERegressor(solver="auto", max_epochs=5, random_state=0),
    ContinuousNormalizingFlow(objective="likelihood", solver="auto", max_epochs=2, random_state=0),
    HypersolverDensity(NeuralODE(decay), base_solver="euler", n_steps=2, max_epochs=3, max_samples=20, random_state=0),
], expected_failed_checks=cannot_pass)  # fmt: skip
def test_checks(estimator, check):
    check(estimator)


# Three epochs on twenty rows: the corrections of some fits are no help, and those fits say so.
@pytest.mark.filterwarnings("ignore:no epoch was better:sklearn.exceptions.ConvergenceWarning")
@parametrize_with_checks(
    [HypersolverRegressor(NeuralODE(decay), n_steps=2, max_epochs=3, random_state=0)],
    expected_failed_checks=cannot_pass,
)
def test_checks_of_the_default_base_solver(estimator, check):
    """ab2, or coefficients that are learned where X is wide."""
    check(estimator)


@functools.cache
def bound_to(n_features, labels=(0, 1, 2)):
    """A hypersolver of a fitted classifier: it takes that model's width and predicts that model's labels."""
    X, y = make_blobs(60, centers=len(labels), n_features=n_features, random_state=0)
    slow = NeuralODEClassifier(max_epochs=1, random_state=0).fit(X, np.array(labels)[y])
    return HypersolverClassifier(slow, base_solver="euler", n_steps=2, max_epochs=3, random_state=0)


# Most checks bring 3 features; these bring another width.
_WIDTHS = {
    "check_classifier_data_not_an_array": 2,
    "check_classifiers_regression_target": 10,
    "check_dtype_object": 10,
    "check_estimators_dtypes": 5,
    "check_estimators_fit_returns_self": 2,
    "check_estimators_overwrite_params": 2,
    "check_fit2d_1sample": 10,
    "check_fit_check_is_fitted": 2,
    "check_fit_idempotent": 2,
    "check_n_features_in": 2,
    "check_n_features_in_after_fitting": 4,
    "check_positive_only_tag_during_fit": 4,
    "check_readonly_memmap_input": 2,
}
# Most bring the labels 0, 1 and 2; these bring others, and labels that are not the Neural ODE's are refused.
_BROUGHT = {
    "check_dtype_object": (0, 1, 2, 3),
    "check_estimators_dtypes": (1, 2),
    "check_fit_check_is_fitted": (0, 1),
}
_LABELS = "nothing is learned from y: classes_ are the fitted Neural ODE's, and labels of another problem are refused"
_CANNOT_PASS = {
    "check_classifiers_one_label": _LABELS,
    "check_classifiers_classes": _LABELS,
    "check_classifiers_train": _LABELS,
}


# On the checks' data the field of a barely trained model is all but constant: its residuals are small.
@pytest.mark.filterwarnings("ignore::sklearn_hyper.numerics.residuals.ConditioningWarning")
@parametrize_with_checks([bound_to(3)], expected_failed_checks=lambda estimator: _CANNOT_PASS)
def test_checks_of_a_hypersolver_bound_to_a_fitted_classifier(estimator, check):
    name = check.func.__name__
    check(bound_to(_WIDTHS.get(name, 3), _BROUGHT.get(name, (0, 1, 2))))


def test_the_widths_are_names_of_checks():
    from sklearn.utils import estimator_checks

    assert all(hasattr(estimator_checks, name) for name in (*_WIDTHS, *_BROUGHT, *_CANNOT_PASS, *_OWN_OUTPUTS))


def test_a_bound_classifier_says_which_width_it_takes():
    with pytest.raises(ValueError, match=r"n_features=2\), but neural_ode was fitted on samples of shape \(3,\)"):
        bound_to(3).fit([[0.0, 1.0]] * 5)
