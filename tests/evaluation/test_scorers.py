"""Label-free scorers compare a hypersolver with its own dopri5 reference, wherever scikit-learn takes a scorer."""

import pickle

import numpy as np
import pandas as pd
import pytest
import sklearn
import torch
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from small_hypersolvers import Swirl, ToLogits, make_classifier, make_regressor
from torch import nn

from sklearn_hyper import HypersolverClassifier, HypersolverDensity, HypersolverRegressor, NeuralODE
from sklearn_hyper.estimators import ConditionError
from sklearn_hyper.evaluation import agreement_scorer, neg_macs_scorer, neg_mape_scorer, neg_nfe_scorer
from sklearn_hyper.metrics import mean_absolute_percentage_error
from sklearn_hyper.modules import ConvVectorField
from sklearn_hyper.numerics import reference

# The fits are as short as can be; whether they learn anything is not the question here.
pytestmark = pytest.mark.filterwarnings("ignore:no epoch was better than the base solver")

SCORERS = [neg_mape_scorer, agreement_scorer]
COSTS = [neg_macs_scorer, neg_nfe_scorer]
each_scorer = pytest.mark.parametrize("scorer", SCORERS, ids=lambda scorer: scorer.__name__)
errors_and_costs = pytest.mark.parametrize("scorer", SCORERS + COSTS, ids=lambda scorer: scorer.__name__)


def test_neg_mape_of_a_regressor_is_its_score(regressor, X):
    assert neg_mape_scorer(regressor, X) == regressor.score(X) < 0


def test_neg_mape_of_a_classifier_compares_logits(classifier, X):
    logits = classifier.trajectory(X, output=True)[:, -1]
    sizes = np.sqrt((classifier.reference(X).astype(float) ** 2).mean(axis=0))
    expected = mean_absolute_percentage_error(classifier.reference(X), logits, floor=classifier.mape_floor * sizes)
    assert neg_mape_scorer(classifier, X) == pytest.approx(-expected, rel=1e-12)


def test_agreement_is_the_share_of_equal_labels(X):
    crude = make_classifier(n_steps=1, max_epochs=1, lr=1e-6).fit(X)
    reference_labels = np.array(["a", "b", "c"])[crude.reference(X).argmax(axis=1)]
    agreement = agreement_scorer(crude, X)
    assert agreement == np.mean(crude.predict(X) == reference_labels)
    assert 0 < agreement < 1


@errors_and_costs
def test_scores_ignore_labels(classifier, X, scorer):
    assert scorer(classifier, X, np.full(len(X), "c")) == scorer(classifier, X, y=None) == scorer(classifier, X)


@errors_and_costs
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


@errors_and_costs
def test_other_estimators_are_refused(X, scorer):
    with pytest.raises(TypeError, match=r"a HypersolverRegressor.* or .* is needed, got LinearRegression"):
        scorer(LinearRegression().fit(X, X[:, 0]), X)


@errors_and_costs
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


# --- costs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("base_solver", "n_steps", "nfe"), [("euler", 1, 1), ("heun", 3, 6), ("rk4", 1, 4)])
def test_costs_are_the_reports(X, base_solver, n_steps, nfe):
    hypersolver = make_classifier(base_solver=base_solver, n_steps=n_steps, max_epochs=5, lr=1e-3).fit(X)
    *_, bare, corrected = hypersolver.solver_report(X)
    assert neg_nfe_scorer(hypersolver, X) == -nfe
    assert neg_macs_scorer(hypersolver, X) == -corrected.macs < -bare.macs == -4 * nfe  # f is a product of 2 x 2


def test_costs_follow_the_solver_and_not_the_rows(regressor, X):
    with pytest.warns(UserWarning, match="outside the fitted range"):
        slower = regressor.with_solver(n_steps=6)
    for cost in COSTS:
        assert cost(slower, X) == 3 * cost(regressor, X) == 3 * cost(regressor, X[:1])
        assert cost(regressor, X.tolist()) == cost(regressor, torch.from_numpy(X)) == cost(regressor, X)


def test_costs_need_no_reference(regressor, X, monkeypatch):
    expected = [cost(regressor, X) for cost in COSTS]
    monkeypatch.setattr(reference, "odeint", None)
    with pytest.raises(TypeError):
        neg_mape_scorer(regressor, X)
    assert [cost(regressor, X) for cost in COSTS] == expected


def test_macs_of_images_leave_the_maps_out(X):
    """A convolutional field counts its convolutions: in x out x kernel x pixels, the correction's beside them."""
    images = np.random.default_rng(0).normal(size=(12, 2, 4, 4)).astype(np.float32)
    field = ConvVectorField(2, hidden=3)
    ode = NeuralODE(field, input_map=nn.Conv2d(2, 2, 1), output_map=nn.Flatten())
    hypersolver = HypersolverRegressor(ode, base_solver="euler", n_steps=2, max_epochs=1, lr=1e-6).fit(images)
    hypersolver = hypersolver.without_correction()
    macs_f = sum(layer.weight.numel() * 4 * 4 for layer in field.modules() if isinstance(layer, nn.Conv2d))
    assert neg_macs_scorer(hypersolver, images) == -2 * macs_f


def test_a_data_controlled_field_is_given_its_input(X):
    class Controlled(Swirl):
        def forward(self, t, z, x):
            return super().forward(t, z) * x

    ode = NeuralODE(Controlled(), data_controlled=True)
    hypersolver = HypersolverRegressor(ode, base_solver="euler", n_steps=2, max_epochs=1, lr=1e-6, random_state=0).fit(
        X
    )
    assert neg_macs_scorer(hypersolver, X) == -hypersolver.solver_report(X)[-1].macs


def test_costs_of_a_density_are_those_of_its_log_likelihood(X):
    density = HypersolverDensity(Swirl(), base_solver="heun", n_steps=2, max_epochs=40, random_state=0).fit(X)
    assert neg_macs_scorer(density, X) == -density.solver_report(X)[-1].macs < -density.solver_report()[-1].macs
    assert neg_nfe_scorer(density, X) == -4
    with pytest.raises(TypeError, match=r"or HypersolverClassifier, .* is needed, got HypersolverDensity"):
        neg_mape_scorer(density, X)
    density.set_params(n_features=2).fit()
    for cost in COSTS:
        with pytest.raises(ValueError, match="fitted for sampling only"):
            cost(density, X)


def test_a_field_without_macs_is_an_error_and_not_free(X):
    hypersolver = make_regressor(lambda t, z: -z, n_steps=3, max_epochs=1, lr=1e-6).fit(X)
    with pytest.raises(ValueError, match=r"the vector field has no MACs.*score cost by neg_nfe_scorer"):
        neg_macs_scorer(hypersolver, X)
    assert neg_nfe_scorer(hypersolver, X) == -3


def test_costs_are_checked_like_predictions(regressor, X):
    with pytest.raises(ValueError, match="X has 3 features"):
        neg_macs_scorer(regressor, np.ones((5, 3)))


def test_a_search_counts_costs_beside_errors(X):
    pipeline = make_pipeline(StandardScaler(), make_classifier(max_epochs=1, lr=1e-6))
    scoring = {scorer.__name__: scorer for scorer in SCORERS + COSTS}
    grid = {"hypersolverclassifier__n_steps": [1, 4]}
    search = GridSearchCV(pipeline, grid, scoring=scoring, refit="neg_mape_scorer", cv=2, error_score="raise").fit(X)
    assert search.cv_results_["mean_test_neg_nfe_scorer"].tolist() == [-1, -4]
    cheap, dear = search.cv_results_["mean_test_neg_macs_scorer"]
    assert dear == 4 * cheap == neg_macs_scorer(search, X)


# ---------------------------------------------------------------------- conditions
def damped(t, z, *, rate):
    return -rate[:, None] * z


@pytest.fixture(scope="module")
def rates(X):
    return np.linspace(0.5, 1.5, len(X))


@pytest.fixture(scope="module")
def conditioned(X, rates):
    return make_regressor(damped, base_solver="heun").fit(X, condition={"rate": rates})


@pytest.mark.parametrize("scorer", [neg_mape_scorer, neg_nfe_scorer], ids=lambda scorer: scorer.__name__)
def test_a_scorer_passes_a_condition_on(scorer, conditioned, X, rates):
    expected = {"neg_mape_scorer": conditioned.score(X, condition={"rate": rates}), "neg_nfe_scorer": -4.0}
    for one in (scorer, scorer.set_score_request(condition=True)):
        assert one(conditioned, X, condition={"rate": rates}) == expected[scorer.__name__]
    assert scorer(FrozenEstimator(conditioned), X, condition={"rate": rates}) == expected[scorer.__name__]


def test_labels_and_multiplications_are_scored_with_a_condition(X, rates):
    class Damped(nn.Linear):
        def forward(self, t, z, *, rate):
            return rate[:, None] * super().forward(z)

    torch.manual_seed(0)
    ode, short = (
        NeuralODE(Damped(2, 2).double(), output_map=ToLogits()),
        {"n_steps": 2, "max_epochs": 1, "random_state": 0},
    )
    classifier = HypersolverClassifier(ode, classes=["a", "b", "c"], **short).fit(X, condition={"rate": rates})
    assert agreement_scorer(classifier, X, condition={"rate": rates}) == classifier.agreement(
        X, condition={"rate": rates}
    )
    assert neg_macs_scorer(classifier, X, condition={"rate": 1.0}) == -classifier.count_macs(X, condition={"rate": 1.0})
    flow = HypersolverDensity(
        damped, n_features=2, base_solver="heun", n_steps=2, max_epochs=1, max_samples=40, random_state=0
    )
    assert neg_nfe_scorer(flow.fit(X, condition={"rate": rates}), X, condition={"rate": rates}) == -4


@pytest.fixture
def routing():
    with sklearn.config_context(enable_metadata_routing=True):
        yield


def test_searches_and_cross_validation_pass_a_condition_to_a_scorer_that_asks_for_it(routing, X, rates):
    fast = make_regressor(damped, base_solver="heun").set_fit_request(condition=True)
    asking, frame = neg_mape_scorer.set_score_request(condition=True), pd.DataFrame({"rate": rates})
    scoring = {"mape": asking, "nfe": neg_nfe_scorer}
    search = GridSearchCV(fast, {"n_steps": [1, 4]}, cv=2, scoring=scoring, refit="mape", error_score="raise")
    search.fit(X, condition=frame)
    assert search.best_params_ == {"n_steps": 4}
    np.testing.assert_array_equal(search.cv_results_["mean_test_nfe"], [-2, -8])
    best = sklearn.clone(fast).set_params(n_steps=4)
    found = cross_val_score(best, X, scoring=pickle.loads(pickle.dumps(asking)), cv=2, params={"condition": frame})
    assert found.mean() == pytest.approx(search.best_score_, rel=1e-9)
    named = cross_val_score(
        best.set_fit_request(condition="beside"), X, cv=2, params={"beside": frame},
        scoring=neg_mape_scorer.set_score_request(condition="beside"), error_score="raise",
    )  # fmt: skip
    np.testing.assert_array_equal(named, found)
    assert repr(asking) == "neg_mape_scorer.set_score_request(condition=True)"


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (None, "condition must have 'rate'.*got None"),
        ({"rate": [1.0, 2.0]}, "has 2 entries for"),
        ({"rate": np.nan}, "holds nan or infinity"),
        ({"speed": 1.0}, "must have 'rate'.*got 'speed'"),
    ],
)
def test_a_wrong_condition_is_named(conditioned, X, condition, message):
    for scorer in (neg_mape_scorer, neg_mape_scorer.set_score_request(condition=True), neg_macs_scorer):
        with pytest.raises(ConditionError, match=message):
            scorer(conditioned, X, condition=condition)
