"""What is fitted is not called unfitted: the message names what to pass."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import TransformedTargetRegressor
from sklearn.ensemble import (
    BaggingRegressor,
    StackingRegressor,
    VotingClassifier,
    VotingRegressor,
)
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.model_selection import FixedThresholdClassifier, GridSearchCV, TunedThresholdClassifierCV
from sklearn.multiclass import OneVsRestClassifier
from sklearn.multioutput import MultiOutputRegressor
from sklearn.neighbors import KernelDensity
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch import NeuralNetRegressor
from small_hypersolvers import make_regressor
from torch import nn

from sklearn_hyper import (
    ContinuousNormalizingFlow,
    HypersolverClassifier,
    HypersolverDensity,
    HypersolverRegressor,
    NeuralODE,
    NeuralODEClassifier,
    NeuralODERegressor,
)

X = np.random.default_rng(0).uniform(-1, 1, (40, 2))
TARGET, LABELS = np.exp(X[:, 0]), (X[:, 0] > 0).astype(int)
REGRESSOR = NeuralODERegressor(max_epochs=1, random_state=0)
CLASSIFIER = NeuralODEClassifier(max_epochs=1, random_state=0)


def logged(regressor):
    return TransformedTargetRegressor(regressor, func=np.log, inverse_func=np.exp)


WRAPPERS = [
    (logged(REGRESSOR), TARGET, r"regressor_"),
    (logged(make_pipeline(StandardScaler(), REGRESSOR)), TARGET, r"regressor_"),
    (BaggingRegressor(REGRESSOR, n_estimators=2), TARGET, r"estimators_\[0\] \(also estimators_\[1\]\)"),
    (VotingRegressor([("line", Ridge()), ("ode", REGRESSOR)]), TARGET, r"estimators_\[1\]"),
    (StackingRegressor([("ode", REGRESSOR)], cv=2), TARGET, r"estimators_\[0\]"),
    (MultiOutputRegressor(REGRESSOR), np.c_[TARGET, TARGET], r"estimators_\[0\]"),
    (logged(VotingRegressor([("ode", REGRESSOR)])), TARGET, r"regressor_\.estimators_\[0\]"),
    (CalibratedClassifierCV(CLASSIFIER, cv=2), LABELS, r"calibrated_classifiers_\[0\]\.estimator"),
    (FixedThresholdClassifier(CLASSIFIER), LABELS, r"estimator_"),
    (TunedThresholdClassifierCV(CLASSIFIER, cv=2), LABELS, r"estimator_"),
    (OneVsRestClassifier(CLASSIFIER), LABELS, r"estimators_\[0\]"),
    (VotingClassifier([("ode", CLASSIFIER)]), LABELS, r"estimators_\[0\]"),
]


@pytest.mark.parametrize("wrapper, y, path", WRAPPERS, ids=lambda value: type(value).__name__)
def test_of_a_fitted_wrapper_the_path_to_its_neural_ode_is_named(wrapper, y, path):
    name = type(wrapper).__name__
    wrapper.fit(X, y)
    for form in (wrapper, FrozenEstimator(wrapper), make_pipeline(StandardScaler(), FrozenEstimator(wrapper))):
        with pytest.raises(
            TypeError, match=f"is a {name} that is fitted, but none of the accepted forms.*Pass the {name}'s {path}"
        ):
            HypersolverRegressor(form, n_steps=2).fit(X)


def test_the_named_path_is_an_accepted_form():
    wrapper = logged(REGRESSOR).fit(X, TARGET)
    fast = make_regressor(wrapper.regressor_).fit(X)
    np.testing.assert_allclose(np.exp(fast.reference(X)), wrapper.predict(X), rtol=1e-4)


class Wrapper:
    """As some write them, without scikit-learn's base class."""

    def fit(self, X, y):
        self.model_ = clone(REGRESSOR).fit(X, y)
        return self


def test_wrappers_without_a_base_class():
    with pytest.raises(TypeError, match=r"is a Wrapper that is fitted, but none.*Pass the Wrapper's model_"):
        HypersolverRegressor(Wrapper().fit(X, TARGET)).fit(X)
    with pytest.raises(TypeError, match=r"neural_ode must be a fitted NeuralODEClassifier.*got <.*Wrapper"):
        HypersolverRegressor(Wrapper()).fit(X)


def test_a_net_of_another_module_says_so():
    net = NeuralNetRegressor(nn.Linear, module__in_features=2, module__out_features=1).initialize()
    for form in (net, FrozenEstimator(net)):
        with pytest.raises(TypeError, match=r"NeuralNetRegressor whose module is a Linear, not a NeuralODE; wrap"):
            HypersolverRegressor(form).fit(X)


def test_of_a_wrapped_flow_too():
    wrapper = VotingClassifier([("flow", CLASSIFIER)]).fit(X, LABELS)
    wrapper.flow_model_ = ContinuousNormalizingFlow(max_epochs=1, random_state=0).fit(X)
    with pytest.raises(TypeError, match=r"that is fitted, but none.*Pass the VotingClassifier's flow_model_"):
        HypersolverDensity(wrapper).fit(X)


OTHERS = [
    (
        LinearRegression().fit(X, TARGET),
        "a LinearRegression that is fitted, but none of the accepted forms. neural_ode must be",
    ),
    (StandardScaler().fit(X), "a StandardScaler that is fitted, but none of the accepted forms"),
    (make_regressor(), "is a HypersolverRegressor, a hypersolver already.*its neural_ode"),
    (make_regressor().fit(X), "is a HypersolverRegressor, a hypersolver already.*its neural_ode"),
]


@pytest.mark.parametrize("estimator, message", OTHERS, ids=str)
@pytest.mark.parametrize("kind", [HypersolverRegressor, HypersolverClassifier, HypersolverDensity])
def test_fitted_estimators_that_hold_no_neural_ode(kind, estimator, message):
    with pytest.raises(TypeError, match=message):
        kind(estimator).fit(X)


def test_estimators_of_the_other_kind_say_which_hypersolver_takes_them():
    flow = ContinuousNormalizingFlow(max_epochs=1, random_state=0).fit(X)
    with pytest.raises(TypeError, match="a ContinuousNormalizingFlow, a flow, which HypersolverDensity takes"):
        HypersolverRegressor(flow).fit(X)
    with pytest.raises(
        TypeError, match="NeuralODERegressor, which HypersolverRegressor or HypersolverClassifier takes"
    ):
        HypersolverDensity(NeuralODERegressor(max_epochs=1, random_state=0).fit(X, TARGET)).fit(X)
    with pytest.raises(TypeError, match="a KernelDensity that is fitted, but none of the accepted forms"):
        HypersolverDensity(KernelDensity().fit(X)).fit(X)


def test_what_is_not_fitted_is_called_so():
    unfitted = [
        (GridSearchCV(REGRESSOR, {"lr": [1e-2]}), r"GridSearchCV that is not fitted.*refit=True"),
        (CalibratedClassifierCV(CLASSIFIER), "CalibratedClassifierCV that is not fitted"),
        (GridSearchCV(REGRESSOR, {"lr": [1e-2]}, cv=2, refit=False).fit(X, TARGET), "was fitted with refit=False"),
        (NeuralNetRegressor(NeuralODE), r"NeuralNetRegressor, a skorch net that is not initialized.*load_params\(\)"),
    ]
    for estimator, message in unfitted:
        with pytest.raises(NotFittedError, match=message):
            HypersolverRegressor(estimator).fit(X)
