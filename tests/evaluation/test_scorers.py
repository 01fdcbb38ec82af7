"""Label-free scorers compare a hypersolver with its own dopri5 reference, wherever scikit-learn takes a scorer."""

import numpy as np
import pytest
import sklearn
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from small_hypersolvers import make_classifier, make_regressor

from sklearn_hyper.evaluation import agreement_scorer, neg_mape_scorer
from sklearn_hyper.metrics import mean_absolute_percentage_error

SCORERS = [neg_mape_scorer, agreement_scorer]
each_scorer = pytest.mark.parametrize("scorer", SCORERS, ids=lambda scorer: scorer.__name__)


def test_neg_mape_of_a_regressor_is_its_score(regressor, X):
    assert neg_mape_scorer(regressor, X) == regressor.score(X) < 0


def test_neg_mape_of_a_classifier_compares_logits(classifier, X):
    logits = classifier.trajectory(X, output=True)[:, -1]
    expected = mean_absolute_percentage_error(classifier.reference(X), logits, floor=classifier.mape_floor)
    assert neg_mape_scorer(classifier, X) == pytest.approx(-expected, rel=1e-12)


def test_agreement_is_the_share_of_equal_labels(X):
    crude = make_classifier(n_steps=1, max_epochs=1, lr=1e-6).fit(X)
    reference_labels = np.array(["a", "b", "c"])[crude.reference(X).argmax(axis=1)]
    agreement = agreement_scorer(crude, X)
    assert agreement == np.mean(crude.predict(X) == reference_labels)
    assert 0 < agreement < 1


@each_scorer
def test_scores_ignore_labels(classifier, X, scorer):
    assert scorer(classifier, X, np.full(len(X), "c")) == scorer(classifier, X, y=None) == scorer(classifier, X)


@each_scorer
def test_pipelines_searches_and_frozen_estimators_are_seen_through(classifier, X, scorer):
    expected = scorer(classifier, X)
    scaler = StandardScaler().fit(3 * X + 1)
    # The pipeline's own input: scaled back to what the hypersolver was fitted on.
    pipeline = Pipeline([("scaler", scaler), ("hypersolver", classifier)])
    assert scorer(pipeline, scaler.inverse_transform(X)) == pytest.approx(expected, abs=1e-12)
    assert scorer(Pipeline([("hypersolver", classifier)]), X) == expected
    assert scorer(Pipeline([("none", "passthrough"), ("hypersolver", classifier)]), X) == expected
    assert scorer(FrozenEstimator(classifier), X) == expected
    search = GridSearchCV(make_classifier(), {"n_steps": [2]}, scoring=scorer, cv=2).fit(X)
    assert scorer(search, X) == expected


@each_scorer
def test_grid_search_ranks_and_refits_without_labels(X, scorer):
    search = GridSearchCV(make_classifier(max_epochs=1, lr=1e-6), {"n_steps": [1, 6]}, scoring=scorer, cv=2).fit(X)
    assert search.best_params_ == {"n_steps": 6}
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.score(X) == scorer(search.best_estimator_, X)


def test_grid_search_takes_both_scorers_over_a_pipeline_with_metadata_routing(X):
    pipeline = make_pipeline(StandardScaler(), make_classifier(max_epochs=1))
    scoring = {scorer.__name__: scorer for scorer in SCORERS}
    grid = {"hypersolverclassifier__n_steps": [1, 6]}
    with sklearn.config_context(enable_metadata_routing=True):
        search = GridSearchCV(pipeline, grid, scoring=scoring, refit="agreement_scorer", cv=2).fit(X)
    for name, scorer in scoring.items():
        assert np.isfinite(search.cv_results_[f"mean_test_{name}"]).all()
        assert np.isfinite(scorer(search, X))


def test_cross_validation_of_a_regressor(X):
    scores = cross_val_score(make_regressor(), X, scoring=neg_mape_scorer, cv=2)
    assert np.array_equal(scores, cross_val_score(make_regressor(), X, cv=2))


def test_agreement_of_a_regressor_is_refused(regressor, X):
    with pytest.raises(TypeError, match="HypersolverRegressor predicts none; use neg_mape_scorer"):
        agreement_scorer(regressor, X)


@each_scorer
def test_other_estimators_are_refused(X, scorer):
    with pytest.raises(TypeError, match=r"a HypersolverRegressor or .* is needed, got LinearRegression"):
        scorer(LinearRegression().fit(X, X[:, 0]), X)


@each_scorer
@pytest.mark.parametrize(
    "wrap",
    [
        lambda estimator: estimator,
        lambda estimator: make_pipeline(StandardScaler(), estimator),
        lambda estimator: GridSearchCV(estimator, {}),
    ],
    ids=["bare", "pipeline", "search"],
)
def test_unfitted_estimators_say_so(X, scorer, wrap):
    with pytest.raises(NotFittedError):
        scorer(wrap(make_classifier()), X)
