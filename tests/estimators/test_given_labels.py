"""y handed to a fit that learns nothing from it is compared with what the Neural ODE predicts."""

import numpy as np
import pytest
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import TransformedTargetRegressor
from sklearn.datasets import load_iris
from sklearn.ensemble import BaggingClassifier, StackingClassifier, VotingClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.multiclass import OneVsOneClassifier, OneVsRestClassifier, OutputCodeClassifier
from sklearn.multioutput import MultiOutputClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_hyper import HypersolverClassifier, HypersolverRegressor, NeuralODEClassifier, NeuralODERegressor

SETTINGS = {"base_solver": "heun", "n_steps": 2, "max_epochs": 2, "random_state": 0}
NAMES = np.array(["setosa", "versicolor", "virginica"])


@pytest.fixture(scope="module")
def iris():
    return load_iris(return_X_y=True)


@pytest.fixture(scope="module")
def slow(iris):
    """Of the labels 1, 2, 3."""
    X, y = iris
    return NeuralODEClassifier(max_epochs=10, random_state=0).fit(X, y + 1)


@pytest.fixture(scope="module")
def named(iris):
    X, y = iris
    return NeuralODEClassifier(max_epochs=10, random_state=0).fit(X, NAMES[y])


@pytest.fixture(scope="module")
def zero_based(iris):
    return NeuralODEClassifier(max_epochs=10, random_state=0).fit(*iris)


def fast(slow):
    return HypersolverClassifier(slow, **SETTINGS)


RECODERS = {
    "voting": lambda member: VotingClassifier([("one", member)]),
    "stacking": lambda member: StackingClassifier([("one", member)], cv=2),
    "bagging": lambda member: BaggingClassifier(member, n_estimators=1, random_state=0),
    "one-vs-rest": OneVsRestClassifier,
    "one-vs-one": OneVsOneClassifier,
    "output code": lambda member: OutputCodeClassifier(member, random_state=0),
}


@pytest.mark.parametrize("name", RECODERS)
def test_labels_recoded_by_meta_estimators_are_refused(iris, slow, name, solves):
    X, y = iris
    with pytest.raises(
        ValueError, match=r"not among classes_ \[1, 2, 3\].*recode labels.*FrozenEstimator\(hypersolver\)"
    ):
        RECODERS[name](fast(slow)).fit(X, y + 1)
    assert not solves


@pytest.mark.parametrize("name", ["one-vs-rest", "one-vs-one"])
def test_recoded_labels_that_happen_to_be_names_of_classes_are_refused(iris, zero_based, name):
    with pytest.raises(ValueError, match=r"y holds \[0, 1\] of classes_ \[0, 1, 2\].*always predicting.*recode labels"):
        RECODERS[name](fast(zero_based)).fit(*iris)


def test_labels_of_long_sorted_data_are_compared_too(iris, zero_based):
    X, y = (np.repeat(part, 7, axis=0) for part in iris)
    with pytest.raises(ValueError, match=r"always predicting 0 with 6\d%: these seem to be other labels"):
        fast(zero_based).fit(X, (y == 0).astype(int))


def test_labels_of_another_problem_with_the_same_names_are_refused(iris, zero_based):
    X, y = iris
    with pytest.raises(ValueError, match=r"agree with [0-9]% of it.*other labels of the same names"):
        MultiOutputClassifier(fast(zero_based)).fit(X, np.c_[y, (y + 1) % 3])
    binary = NeuralODEClassifier(max_epochs=10, random_state=0).fit(X, y > 0)
    fast(binary).fit(X, y > 0)
    with pytest.raises(ValueError, match="other labels of the same names"):
        fast(binary).fit(X, y == 0)


def test_strings_recoded_to_numbers_are_refused(iris, named):
    X, y = iris
    with pytest.raises(ValueError, match=r"y holds labels \[0, 1, 2\] that are not among classes_ \['setosa'"):
        VotingClassifier([("one", fast(named))]).fit(X, NAMES[y])


def test_what_the_message_recommends_predicts_the_right_labels(iris, slow, named):
    X, y = iris
    for model, labels in ((slow, y + 1), (named, NAMES[y])):
        fitted = FrozenEstimator(fast(model).fit(X))
        vote = VotingClassifier([("one", fitted), ("two", fitted)], voting="soft").fit(X, labels)
        np.testing.assert_array_equal(vote.predict(X), fitted.predict(X))
        stack = StackingClassifier([("one", fitted), ("two", LogisticRegression(max_iter=500))], cv=2).fit(X, labels)
        assert stack.score(X, labels) > 0.9
        assert CalibratedClassifierCV(fitted).fit(X, labels).score(X, labels) > 0.9


def test_the_right_labels_are_taken_all_or_some(iris, slow):
    X, y = iris
    for rows in (slice(None), y > 0, y == 2, slice(0, 120)):
        hyper = fast(slow).fit(X[rows], (y + 1)[rows])
        assert hyper.classes_.tolist() == [1, 2, 3]
    assert cross_val_score(fast(slow), X, y + 1, cv=2).min() > 0.9


def test_y_changes_nothing(iris, slow):
    X, y = iris
    np.testing.assert_array_equal(fast(slow).fit(X, y + 1).predict_proba(X), fast(slow).fit(X).predict_proba(X))


def test_wrong_lengths_are_refused(iris, slow):
    X, y = iris
    with pytest.raises(ValueError, match="y has 149 rows, X has 150"):
        fast(slow).fit(X, y[:-1] + 1)


# ---------------------------------------------------------------------- targets
@pytest.fixture(scope="module")
def regression():
    X = np.random.default_rng(0).uniform(-1, 1, (120, 2))
    y = np.exp(3 + X[:, 0])
    return X, y, NeuralODERegressor(max_epochs=10, random_state=0).fit(X, y)


def test_targets_that_a_wrapper_transformed_are_warned_of(regression):
    X, y, slow = regression
    for wrapper in (
        TransformedTargetRegressor(HypersolverRegressor(slow, **SETTINGS), func=np.log, inverse_func=np.exp),
        TransformedTargetRegressor(HypersolverRegressor(slow, **SETTINGS), transformer=StandardScaler()),
    ):
        with pytest.warns(UserWarning, match=r"nothing is learned from y.*R2 = -.*TransformedTargetRegressor"):
            wrapper.fit(X, y)


def test_targets_that_the_neural_ode_predicts_pass(regression):
    X, y, slow = regression
    for targets in (y, y[:, None], y.tolist(), np.c_[y, y]):  # the last is of another shape, and of no matter
        HypersolverRegressor(slow, **SETTINGS).fit(X, targets)


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda y: np.where(y > y.mean(), np.nan, y), "Input y contains NaN"),
        (lambda y: y[:-1], "y has 119 rows, X has 120"),
        (lambda y: np.where(y > y.mean(), np.inf, y), "Input y contains infinity"),
    ],
)
def test_targets_are_finite_numbers_a_row(regression, spoil, message, solves):
    X, y, slow = regression
    with pytest.raises(ValueError, match=message):
        HypersolverRegressor(slow, **SETTINGS).fit(X, spoil(y))
    assert not solves


def test_labels_of_a_later_step_pass_a_regressor_that_transforms(regression):
    X, y, slow = regression
    names = np.where(y > y.mean(), "high", "low")
    for labels in (names, names.astype(object), names.tolist()):
        steps = make_pipeline(HypersolverRegressor(slow, **SETTINGS), LogisticRegression()).fit(X, labels)
        assert steps.score(X, labels) > 0.8
