"""HypersolverRegressor is a regressor to scikit-learn, whose score needs no labels."""

import numpy as np
import pytest
from sklearn.base import is_classifier, is_regressor
from sklearn.ensemble import BaggingRegressor, StackingRegressor, VotingRegressor
from sklearn.frozen import FrozenEstimator
from sklearn.inspection import partial_dependence, permutation_importance
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.model_selection import KFold, cross_val_predict, cross_val_score
from sklearn.multioutput import MultiOutputRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import get_tags
from sklearn.utils.estimator_checks import check_regressors_train

from sklearn_hyper import HypersolverClassifier, HypersolverRegressor, NeuralODERegressor


@pytest.fixture(scope="module")
def data():
    X = np.random.default_rng(0).uniform(-1, 1, (120, 3))
    return X, np.sin(X[:, 0]) + X[:, 1]


@pytest.fixture(scope="module")
def slow(data):
    return NeuralODERegressor(max_epochs=10, random_state=0).fit(*data)


@pytest.fixture
def fast(slow):
    return HypersolverRegressor(slow, base_solver="heun", n_steps=2, max_epochs=2, random_state=0)


@pytest.fixture(scope="module")
def fitted(slow, data):
    hyper = HypersolverRegressor(slow, base_solver="heun", n_steps=2, max_epochs=2, random_state=0)
    return hyper.fit(data[0])


def test_scikit_learn_takes_it_for_a_regressor(fast, slow):
    tags = get_tags(fast)
    assert (
        is_regressor(fast)
        and is_regressor(make_pipeline(StandardScaler(), fast))
        and is_regressor(FrozenEstimator(fast))
    )
    assert not is_classifier(fast) and not is_regressor(HypersolverClassifier(slow))
    assert not tags.target_tags.required and tags.target_tags.multi_output


def test_a_vote_is_the_mean_of_its_members(data, fast, fitted):
    X, y = data
    vote = VotingRegressor([("fast", fast), ("line", Ridge())]).fit(X, y)
    np.testing.assert_allclose(vote.predict(X), (fitted.predict(X) + Ridge().fit(X, y).predict(X)) / 2, rtol=1e-6)


def test_stacking_bagging_and_a_regressor_an_output(data, fast, fitted):
    X, y = data
    assert StackingRegressor([("fast", fast), ("line", Ridge())], cv=2).fit(X, y).score(X, y) > 0.95
    assert BaggingRegressor(fast, n_estimators=2, random_state=0).fit(X, y).score(X, y) > 0.9
    np.testing.assert_allclose(
        MultiOutputRegressor(fast).fit(X, y[:, None]).predict(X)[:, 0], fitted.predict(X), rtol=1e-6
    )


def test_inspection(data, fitted):
    X, y = data
    grid = partial_dependence(fitted, X, [1], grid_resolution=3)
    low = np.where(np.arange(3) == 1, grid["grid_values"][0][0], X)
    assert grid["average"][0, 0] == pytest.approx(fitted.predict(low).mean(), rel=1e-6)
    importance = permutation_importance(fitted, X, y, scoring="r2", n_repeats=2, random_state=0).importances_mean
    assert importance.argmin() == 2 and importance[1] > 0.5  # y does not depend on the last


def test_scores_against_labels_are_asked_for_by_name(data, fast, fitted):
    X, y = data
    assert fitted.score(X, y) == fitted.score(X) == fitted.score(X, np.zeros(len(X))) <= 0
    predicted = cross_val_predict(fast, X, y, cv=2)
    scores = cross_val_score(fast, X, y, cv=2, scoring="r2")
    halves = [test for _, test in KFold(2).split(X)]
    np.testing.assert_allclose(scores, [r2_score(y[half], predicted[half]) for half in halves])


@pytest.mark.filterwarnings("ignore:nothing is learned from y")  # the check brings other data than the model's
def test_scikit_learn_s_own_check_of_a_bound_regressor(data):
    X = np.random.default_rng(0).normal(size=(60, 10))
    slow = NeuralODERegressor(max_epochs=2, random_state=0).fit(X, X[:, 0])
    check_regressors_train(
        "fast", HypersolverRegressor(slow, base_solver="euler", n_steps=2, max_epochs=1, random_state=0)
    )
