"""Neural ODEs that are trained with a condition: each row is solved with its own, wherever rows go."""

import pickle

import numpy as np
import pandas as pd
import pytest
import sklearn
import torch
from sklearn.model_selection import GridSearchCV, KFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from small_hypersolvers import ROUGH_FITS
from torch import nn

from sklearn_hyper import HypersolverClassifier, HypersolverRegressor, NeuralODEClassifier, NeuralODERegressor
from sklearn_hyper.estimators._conditions import ConditionError
from sklearn_hyper.modules import Standardize
from sklearn_hyper.modules.conditioned_fields import ConditionedMLPField

pytestmark = ROUGH_FITS
rng = np.random.default_rng(0)
X, RATE = rng.uniform(0.5, 1.5, (90, 1)), rng.uniform(0.5, 2, 90)
GIVEN = {"rate": RATE}
KIND = np.array(["down", "up"])[np.arange(90) % 2]
SIGN = np.where(KIND == "up", 1.0, -1.0)


class Decay(nn.Module):
    """-speed * rate * z: one number to learn, and a solution in closed form for every rate."""

    def __init__(self):
        super().__init__()
        self.speed = nn.Parameter(torch.tensor(0.6).double())

    def forward(self, t, z, *, rate):
        return -self.speed * rate[:, None] * z


def truth(rate=RATE, times=1.0):
    return X[: len(rate)] * np.exp(-np.multiply.outer(rate, times)).reshape(len(rate), -1)


def make(y, kind=NeuralODERegressor, **params):
    """Its output is the state: what scales outputs back to y is undone."""
    scaler = Standardize.from_data(torch.from_numpy(y).reshape(-1, 1))
    shared = {"lr": 0.1, "batch_size": 30, "max_epochs": 4, "solver": "rk4", "n_steps": 3, "random_state": 0}
    return kind(Decay(), input_map=nn.Identity(), output_map=scaler, **shared | params)


class Own(NeuralODERegressor):
    """Predicts as its parent does, by a method of its own."""

    def predict(self, X, t_eval=None, *, condition=None):
        return super().predict(X, t_eval, condition=condition)


class Other(Own):
    def predict(self, X, t_eval=None, *, condition=None):
        return 2 * super().predict(X, t_eval, condition=condition)


@pytest.fixture(scope="module")
def by_kind():
    """The default field, on targets whose sign is that of a label."""
    ode = NeuralODERegressor(solver="rk4", n_steps=2, max_epochs=20, lr=2e-2, random_state=0)
    return ode.fit(X, SIGN * X[:, 0], condition={"kind": KIND})


@pytest.fixture(scope="module")
def classifier():
    ode = NeuralODEClassifier(solver="rk4", n_steps=2, max_epochs=20, lr=2e-2, random_state=0)
    return ode.fit(X, SIGN * (X[:, 0] - 1) > 0, condition={"kind": KIND})


# ---------------------------------------------------------------------- a row is trained and solved with its condition
SOLVERS = [
    {"solver": "dopri5"},
    {"solver": "dopri5", "adjoint": True},
    {"solver": "auto"},
    {"solver": "hypersolved", "base_solver": "heun", "n_steps": 2},
    {"solver": "auto", "joint": 0.1, "base_solver": "heun"},
    {"solver": "rk4"},
]


@pytest.mark.parametrize("params", SOLVERS, ids=lambda params: "-".join(map(str, params.values())))
def test_every_solver_learns_the_number_that_fits_all_rates(params):
    ode = make(truth(), **params).fit(X, truth(), condition=GIVEN)
    assert ode.neural_ode_.vector_field.speed.item() == pytest.approx(1, abs=0.15)
    assert ode.score(X, truth(), condition=GIVEN) > 0.9 > ode.score(X, truth(), condition={"rate": RATE[::-1]})
    if params["solver"] == "hypersolved":  # what it leaves behind takes the condition, too
        ends = ode.hypersolver_.solve(torch.from_numpy(X), {"rate": torch.from_numpy(RATE)})
        np.testing.assert_allclose(ends, ode.predict(X, condition=GIVEN), rtol=0.1)


@pytest.mark.parametrize("solver", ["dopri5", "auto", "rk4"])
def test_times_of_its_own_go_with_a_rows_condition(solver):
    times = np.sort(rng.uniform(0, 1, (90, 2)), axis=1)
    times[::3, 1] = np.nan
    y = X * np.exp(-RATE[:, None] * times)
    ode = make(y[~np.isnan(y)], solver=solver).fit(X, y, times, condition=GIVEN)
    assert ode.score(X, y, t_eval=times, condition=GIVEN) > 0.9
    ode.neural_ode_.vector_field.speed.data.fill_(1.0)
    grid = [0.25, 0.5, 1.0]
    np.testing.assert_allclose(ode.predict(X, grid, condition=GIVEN), truth(RATE, grid), atol=1e-5)
    found = ode.predict(X, times, condition=GIVEN)
    np.testing.assert_allclose(found[~np.isnan(times)], y[~np.isnan(times)], atol=1e-5)
    assert np.isnan(found[np.isnan(times)]).all()


def test_permuted_rows_and_batches_give_permuted_results(by_kind, classifier):
    order = np.random.default_rng(1).permutation(90)
    for one, method in ((by_kind, "predict"), (classifier, "predict_proba")):
        call = getattr(one, method)
        found, again = call(X, condition={"kind": KIND}), call(X[order], condition={"kind": KIND[order]})
        few = sklearn.clone(one).set_params(batch_size=3)
        vars(few).update({name: value for name, value in vars(one).items() if name not in few.get_params()})
        for other in (again, getattr(few, method)(X[order], condition={"kind": KIND[order]})):
            np.testing.assert_allclose(other, found[order], rtol=1e-5, atol=1e-8)


def test_a_default_field_embeds_labels_and_appends_numbers(by_kind, classifier):
    assert isinstance(by_kind.neural_ode_.vector_field, ConditionedMLPField)
    assert by_kind.score(X, SIGN * X[:, 0], condition={"kind": KIND}) > 0.9
    up = by_kind.predict(X, condition={"kind": "up"})
    np.testing.assert_allclose(up[KIND == "up"], by_kind.predict(X, condition={"kind": KIND})[KIND == "up"], rtol=1e-5)
    labels = SIGN * (X[:, 0] - 1) > 0
    assert classifier.score(X, labels, condition={"kind": KIND}) > 0.9
    assert classifier.score(X, labels, condition={"kind": KIND[::-1]}) < 0.3
    weight = (KIND == "up").astype(float)
    alone = classifier.score(X[KIND == "up"], labels[KIND == "up"], condition={"kind": "up"})
    assert classifier.score(X, labels, weight, condition={"kind": KIND}) == pytest.approx(alone)
    numbers = NeuralODERegressor(solver="rk4", n_steps=2, max_epochs=15, lr=2e-2, random_state=0)
    assert numbers.fit(X, X[:, 0] * RATE, condition=GIVEN).score(X, X[:, 0] * RATE, condition=GIVEN) > 0.9


def test_images_take_a_condition_by_a_field_of_ones_own():
    class Shift(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.table = nn.Conv2d(8, 8, 3, padding=1), nn.Embedding(2, 8)

        def forward(self, t, z, *, kind):
            return torch.tanh(self.conv(z) + self.table(kind)[:, :, None, None])

    images = rng.normal(size=(30, 1, 4, 4)).astype(np.float32)
    kind = np.arange(30) % 2
    shared = {"max_epochs": 1, "solver": "euler", "n_steps": 1, "validation_fraction": None, "random_state": 0}
    found = NeuralODEClassifier(Shift(), **shared).fit(images, kind, condition={"kind": kind})
    assert found.predict_proba(images, condition={"kind": 1}).shape == (30, 2)
    with pytest.raises(
        ValueError, match=r"no default vector_field that takes a condition \('kind'\) for states of shape"
    ):
        NeuralODEClassifier(**shared).fit(images, kind, condition={"kind": kind})


def test_batches_of_partial_fit_share_the_categories_of_the_first(by_kind):
    kinds = pd.DataFrame({"kind": pd.Categorical(KIND, categories=["down", "sideways", "up"])})
    ode = NeuralODEClassifier(solver="rk4", n_steps=2, random_state=0)
    for _ in range(2):
        ode.partial_fit(X, KIND, condition=kinds)
    ode.partial_fit(X[:4], KIND[:4], condition={"kind": "sideways"})
    assert ode.predict_proba(X, condition={"kind": "sideways"}).shape == (90, 2) and len(ode.history_) == 3
    with pytest.raises(ConditionError, match="'away', not among the 3 categories"):
        ode.partial_fit(X, KIND, condition={"kind": "away"})
    timed = NeuralODERegressor(max_epochs=1, solver="rk4", n_steps=2, random_state=0)
    timed.partial_fit(X, np.hstack([X, X]), [0.5, 1.0], condition={"kind": KIND}).partial_fit(
        X, X, condition={"kind": KIND}
    )
    assert len(timed.history_) == 1  # with times or without are nets of their own


def test_copies_and_pickles_remember_the_condition(by_kind):
    again = pickle.loads(pickle.dumps(by_kind))
    given = {"kind": KIND}
    np.testing.assert_array_equal(again.predict(X, condition=given), by_kind.predict(X, condition=given))
    warm = pickle.loads(pickle.dumps(by_kind)).set_params(warm_start=True, max_epochs=1)
    with pytest.raises(ConditionError, match="condition must have 'kind', as in fit of this NeuralODERegressor"):
        warm.fit(X, X)


# ---------------------------------------------------------------------- made fast
def test_a_hypersolver_takes_the_condition_as_the_field_has_learned_it(by_kind, classifier):
    params = {"base_solver": "heun", "n_steps": 2, "max_epochs": 4, "random_state": 0}
    only = {"kind": np.array(["up"] * 45)}  # alone, "up" would be the first of its categories
    up = X[KIND == "up"]
    fast = HypersolverRegressor(by_kind, **params).fit(up, by_kind.predict(up, condition=only), condition=only)
    assert fast.condition_ == by_kind.condition_
    expected = by_kind.predict(up, condition=only)
    np.testing.assert_allclose(fast.predict(up, condition=only), expected, atol=0.4)
    down = by_kind.predict(up, condition={"kind": "down"})
    np.testing.assert_allclose(fast.reference(up, condition={"kind": "down"}), down, atol=1e-4)
    labels = SIGN * (X[:, 0] - 1) > 0
    fast = HypersolverClassifier(classifier, **params).fit(X, labels, condition={"kind": KIND})
    assert fast.agreement(X, condition={"kind": KIND}) > 0.95
    with pytest.raises(ConditionError, match="must have 'kind', as in fit of this NeuralODEClassifier, got None"):
        sklearn.clone(fast).fit(X)
    with pytest.raises(ConditionError, match="'left', not among the 2 categories"):
        sklearn.clone(fast).fit(X, condition={"kind": "left"})


def test_a_refit_follows_the_categories_of_the_field(by_kind):
    fast = HypersolverRegressor(by_kind, base_solver="heun", n_steps=2, max_epochs=2, random_state=0)
    fast.fit(X, condition={"kind": KIND})
    renamed = NeuralODERegressor(solver="euler", n_steps=1, max_epochs=1, validation_fraction=None, random_state=1)
    names = np.where(KIND == "up", "a", "b")  # in the other order
    renamed.fit(X, SIGN * X[:, 0], condition={"kind": names})
    fast.refit(renamed, X, condition={"kind": names})
    np.testing.assert_allclose(
        fast.reference(X, condition={"kind": names}), renamed.predict(X, condition={"kind": names}), atol=1e-4
    )


def test_a_predict_of_ones_own_is_compared_with_its_condition():
    params = {"base_solver": "heun", "n_steps": 1, "max_epochs": 1, "random_state": 0}
    kinds = {"kind": KIND}
    own, other = (
        kind(max_epochs=1, solver="euler", n_steps=1, validation_fraction=None, random_state=0).fit(
            X, SIGN, condition=kinds
        )
        for kind in (Own, Other)
    )
    assert HypersolverRegressor(own, **params).fit(X, condition=kinds).predict(X, condition=kinds).shape == (90,)
    with pytest.raises(TypeError, match="a Other whose predict gives"):
        HypersolverRegressor(other, **params).fit(X, condition=kinds)


# ---------------------------------------------------------------------- inside scikit-learn
@pytest.fixture
def routing():
    with sklearn.config_context(enable_metadata_routing=True):
        yield


def requesting(y, **params):
    return make(y, **params).set_fit_request(condition=True).set_score_request(condition=True)


def test_cross_validation_and_searches_cut_the_condition_with_its_rows(routing):
    given, y, folds = pd.DataFrame(GIVEN), truth(), KFold(2)
    ode = requesting(y)
    expected = [
        sklearn.clone(ode)
        .fit(X[train], y[train], condition={"rate": RATE[train]})
        .score(X[test], y[test], condition={"rate": RATE[test]})
        for train, test in folds.split(X)
    ]
    scores = cross_val_score(ode, X, y, cv=folds, params={"condition": given}, error_score="raise")
    np.testing.assert_allclose(scores, expected, rtol=1e-9)
    search = GridSearchCV(ode, {"lr": [1e-4, 0.1]}, cv=folds, error_score="raise").fit(X, y, condition=given)
    assert search.best_params_ == {"lr": 0.1}
    assert search.cv_results_["mean_test_score"][1] == pytest.approx(np.mean(expected), rel=1e-9)


def test_a_search_carries_times_and_a_condition(routing):
    times = np.tile([0.5, 1.0], (90, 1))
    y = truth(RATE, [0.5, 1.0])
    ode = requesting(y).set_fit_request(condition=True, t_eval=True).set_score_request(condition=True, t_eval=True)
    search = GridSearchCV(ode, {"lr": [1e-4, 0.1]}, cv=2, error_score="raise")
    search.fit(X, y, t_eval=times, condition=pd.DataFrame(GIVEN))
    assert search.best_params_ == {"lr": 0.1} and search.best_score_ > 0.8


def test_pipelines_carry_the_condition(routing):
    ode = requesting(truth()).set_predict_request(condition=True)
    pipeline = make_pipeline(FunctionTransformer(), ode).fit(X, truth(), condition=GIVEN)
    alone = make(truth()).fit(X, truth(), condition=GIVEN)
    expected = alone.predict(X, condition=GIVEN)
    np.testing.assert_array_equal(pipeline.predict(X, condition=GIVEN), expected)
    fast = HypersolverRegressor(pipeline, base_solver="rk4", n_steps=2, max_epochs=1, random_state=0)
    fast = fast.set_fit_request(condition=True).fit(X, condition=GIVEN)
    np.testing.assert_allclose(fast.predict(X, condition=GIVEN), expected, rtol=0.1)


# ---------------------------------------------------------------------- what is wrong is named
@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ({"kind": KIND[:7]}, r"condition\['kind'\] has 7 entries for 90 rows of X; pass one a row, or one for all"),
        ({"kind": np.array([None, *KIND[1:]], dtype=object)}, r"condition\['kind'\] lacks 1 values \(None or nan\)"),
        ({"kind": np.full(90, np.nan)}, r"condition\['kind'\] holds nan or infinity in 90 places"),
        ({"t": KIND}, r"condition must name the field's keyword arguments.*got the names \['t'\]"),
    ],
)
def test_a_wrong_condition_of_a_fit_is_named_and_leaves_the_estimator_as_it_was(by_kind, condition, message):
    again = pickle.loads(pickle.dumps(by_kind)).set_params(warm_start=False)
    for fit in (again.fit, NeuralODEClassifier().fit, NeuralODERegressor().partial_fit):
        with pytest.raises(ConditionError, match=message):
            fit(X, SIGN, condition=condition)
    assert again.score(X, SIGN * X[:, 0], condition={"kind": KIND}) > 0.9


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (None, "condition must have 'kind', as in fit of this NeuralODE.*, got None"),
        ({"label": KIND}, "condition must have 'kind'.*got 'label'"),
        ({"kind": KIND, "rate": RATE}, "condition must have 'kind'.*got 'kind', 'rate'"),
        ({"kind": KIND[:7]}, r"condition\['kind'\] has 7 entries for 90 rows of X"),
        ({"kind": "away"}, r"condition\['kind'\] holds 'away', not among the 2 categories of the fit \('down', 'up'\)"),
        ({"kind": np.array([np.nan] * 90, dtype=object)}, r"condition\['kind'\] holds nan|lacks 90 values"),
    ],
)
def test_a_wrong_condition_of_a_later_call_is_named(by_kind, classifier, condition, message):
    calls = [
        lambda: by_kind.predict(X, condition=condition),
        lambda: by_kind.predict(X, [0.5], condition=condition),
        lambda: by_kind.score(X, SIGN, condition=condition),
        lambda: classifier.predict(X, condition=condition),
        lambda: classifier.predict_proba(X, condition=condition),
        lambda: classifier.score(X, KIND == "up", condition=condition),
    ]
    for call in calls:
        with pytest.raises(ConditionError, match=message):
            call()


def test_a_condition_that_the_fit_had_not_is_refused():
    ode = NeuralODERegressor(max_epochs=1, solver="euler", n_steps=1, validation_fraction=None, random_state=0)
    ode.fit(X, SIGN)
    assert ode.condition_ == {}
    with pytest.raises(ConditionError, match="this NeuralODERegressor was fitted without a condition"):
        ode.predict(X, condition=GIVEN)
    with pytest.raises(ConditionError, match="this NeuralODERegressor was fitted without a condition"):
        HypersolverRegressor(ode, n_steps=1).fit(X, condition=GIVEN)
