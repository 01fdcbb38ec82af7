"""scikit-learn's own checks on every estimator."""

import functools

import pytest
from sklearn.datasets import make_blobs
from sklearn.utils.estimator_checks import parametrize_with_checks

from sklearn_hyper import (
    ContinuousNormalizingFlow,
    HypersolverClassifier,
    HypersolverDensity,
    HypersolverRegressor,
    NeuralODE,
    NeuralODEClassifier,
    NeuralODERegressor,
)


def decay(t, z):
    """A field of any width: the checks bring 1 to 20 features."""
    return -z


@parametrize_with_checks([
    NeuralODEClassifier(max_epochs=5, random_state=0),
    NeuralODERegressor(max_epochs=5, random_state=0),
    HypersolverRegressor(NeuralODE(decay), base_solver="euler", n_steps=2, max_epochs=3, random_state=0),
    ContinuousNormalizingFlow(max_epochs=2, random_state=0),
    HypersolverDensity(NeuralODE(decay), base_solver="euler", n_steps=2, max_epochs=3, max_samples=20, random_state=0),
])  # fmt: skip
def test_checks(estimator, check):
    check(estimator)


# Three epochs on twenty rows: the corrections of some fits are no help, and those fits say so.
@pytest.mark.filterwarnings("ignore:no epoch was better:sklearn.exceptions.ConvergenceWarning")
@parametrize_with_checks([HypersolverRegressor(NeuralODE(decay), n_steps=2, max_epochs=3, random_state=0)])
def test_checks_of_the_default_base_solver(estimator, check):
    """ab2, or coefficients that are learned where X is wide."""
    check(estimator)


@functools.cache
def bound_to(n_features):
    """A hypersolver of a fitted classifier: it takes that model's width and predicts that model's three classes."""
    X, y = make_blobs(60, centers=3, n_features=n_features, random_state=0)
    slow = NeuralODEClassifier(max_epochs=1, random_state=0).fit(X, y)
    return HypersolverClassifier(slow, base_solver="euler", n_steps=2, max_epochs=3, random_state=0)


# Most checks bring 3 features; these bring another width.
_WIDTHS = {
    "check_classifier_data_not_an_array": 2,
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
_LABELS = "fit takes no labels: classes_ are the fitted Neural ODE's, so y is neither learned from nor validated"
_CANNOT_PASS = {
    "check_classifiers_one_label": _LABELS,
    "check_classifiers_classes": _LABELS,
    "check_classifiers_train": _LABELS,
    "check_classifiers_regression_target": _LABELS,
    "check_supervised_y_2d": _LABELS,
}


# On the checks' data the field of a barely trained model is all but constant: its residuals are small.
@pytest.mark.filterwarnings("ignore::sklearn_hyper.numerics.residuals.ConditioningWarning")
@parametrize_with_checks([bound_to(3)], expected_failed_checks=lambda estimator: _CANNOT_PASS)
def test_checks_of_a_hypersolver_bound_to_a_fitted_classifier(estimator, check):
    check(bound_to(_WIDTHS.get(check.func.__name__, 3)))


def test_the_widths_are_names_of_checks():
    from sklearn.utils import estimator_checks

    assert all(hasattr(estimator_checks, name) for name in (*_WIDTHS, *_CANNOT_PASS))


def test_a_bound_classifier_says_which_width_it_takes():
    with pytest.raises(ValueError, match=r"n_features=2\), but neural_ode was fitted on samples of shape \(3,\)"):
        bound_to(3).fit([[0.0, 1.0]] * 5)
