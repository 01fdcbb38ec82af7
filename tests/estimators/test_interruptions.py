"""Ctrl-C: what has been learned is kept, what has not been finished leaves no trace."""

import copy

import numpy as np
import pytest
import torch
from interruptions import Stops, StopsInTraining, interrupted
from reference_solves import REFERENCE_SOLUTION
from sklearn.model_selection import GridSearchCV
from skorch.callbacks import EarlyStopping
from small_flows import make_flow, two_blobs
from small_hypersolvers import make_classifier, make_regressor

from sklearn_hyper import HypersolverDensity, NeuralODEClassifier, NeuralODERegressor
from sklearn_hyper.training import coefficients


@pytest.fixture(scope="module")
def X():
    return np.random.default_rng(0).uniform(-1, 1, (80, 2)).astype(np.float32)


def neural_ode(kind, **params):
    return kind(**{"solver": "rk4", "n_steps": 2, "max_epochs": 20, "batch_size": 24, "random_state": 0} | params)


def interrupt(estimator, *data):
    with pytest.raises(KeyboardInterrupt):
        estimator.fit(*data)
    return estimator


KINDS = {
    "classifier": lambda **params: neural_ode(NeuralODEClassifier, **params),
    "regressor": lambda **params: neural_ode(NeuralODERegressor, **params),
    "flow": lambda **params: make_flow(max_epochs=20, batch_size=24, **params),
}
kinds = pytest.mark.parametrize("kind", KINDS)


def target_of(kind, X):
    return {"classifier": (X[:, 0] > 0).astype(int), "regressor": X[:, 0] + X[:, 1], "flow": None}[kind]


# ---------------------------------------------------------------------- the best epoch, and nothing of half of one
@kinds
@pytest.mark.parametrize("fraction", [0.2, None])
@pytest.mark.parametrize("after_batches", [None, 1])
def test_the_weights_are_those_of_the_best_epoch(X, kind, fraction, after_batches):
    stops = Stops(4, after_batches, spoil=3)
    estimator = KINDS[kind](callbacks=[stops], validation_fraction=fraction)
    interrupt(estimator, X, target_of(kind, X))
    losses = [row["valid_loss" if fraction else "train_loss"] for row in estimator.history_]
    assert len(losses) == len(estimator.net_.history) == len(stops.weights) == (4 if after_batches is None else 3)
    best = stops.weights[int(np.argmin(losses))]
    assert np.argmin(losses) < 2 < np.argmax(losses) + 1  # the spoilt epoch is the worst
    for name, value in estimator.net_.module_.state_dict().items():
        torch.testing.assert_close(value, best[name], rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in estimator.net_.module_.parameters())
    assert not estimator.net_.module_.training and np.isfinite(estimator.score(X, target_of(kind, X)))


@kinds
def test_before_the_first_epoch_ends_nothing_is_fitted(X, kind):
    estimator = interrupt(KINDS[kind](callbacks=[Stops(1, 2)]), X, target_of(kind, X))
    assert not [name for name in vars(estimator) if name.endswith("_")]


@kinds
def test_an_interrupted_warm_start_is_as_it_was_or_better(X, kind):
    y = target_of(kind, X)
    estimator = KINDS[kind](warm_start=True).set_params(max_epochs=2).fit(X, y)
    before, weights = dict(vars(estimator)), copy.deepcopy(estimator.net_.module_.state_dict())
    interrupt(estimator.set_params(callbacks=[Stops(1, 2)]), X, y)
    assert {name: value for name, value in vars(estimator).items() if name != "callbacks"} == {
        name: value for name, value in before.items() if name != "callbacks"
    }
    for name, value in estimator.net_.module_.state_dict().items():
        torch.testing.assert_close(value, weights[name], rtol=0, atol=0)
    interrupt(estimator.set_params(callbacks=[Stops(2, 1)], max_epochs=9), X, y)
    assert [row["epoch"] for row in estimator.history_] == [1]


def test_an_interrupted_partial_fit(X):
    y = target_of("classifier", X)
    estimator = KINDS["classifier"]().partial_fit(X, y).partial_fit(X, y)
    expected, history = estimator.predict_proba(X), estimator.history_
    stopping = copy.deepcopy(estimator)
    stopping.net_.callbacks_.append(("stops", Stops(1, 2)))
    with pytest.raises(KeyboardInterrupt):
        stopping.partial_fit(X, y)
    np.testing.assert_array_equal(stopping.predict_proba(X), expected)
    assert stopping.history_ == history
    first = KINDS["classifier"](callbacks=[Stops(1, 2)])
    with pytest.raises(KeyboardInterrupt):
        first.partial_fit(X, y)
    assert not hasattr(first, "neural_ode_") and not hasattr(first, "classes_")


@kinds
def test_early_stopping_is_no_interruption(X, kind):
    stopper = EarlyStopping(monitor="train_loss", patience=2, threshold=10.0, threshold_mode="abs")
    estimator = KINDS[kind](callbacks=[stopper, last := Stops(99)], validation_fraction=None)
    estimator.fit(X, target_of(kind, X))
    assert len(estimator.history_) == 3
    if len(last.weights) == 3:
        for name, value in estimator.net_.module_.state_dict().items():  # the last weights, as at every normal end
            torch.testing.assert_close(value, last.weights[-1][name], rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["classifier", "regressor", "flow"])
def test_in_the_check_after_training_nothing_is_lost(X, kind, monkeypatch):
    params = {"objective": "likelihood", "solver": "rk4", "n_steps": 6} if kind == "flow" else {}
    estimator = KINDS[kind](**params).set_params(max_epochs=2)
    monkeypatch.setattr(type(estimator), "_check_agreement", interrupted)
    interrupt(estimator, X, target_of(kind, X))
    assert len(estimator.history_) == 2 and np.isfinite(estimator.score(X, target_of(kind, X)))


# ---------------------------------------------------------------------- each phase of a hypersolver's fit
@pytest.mark.parametrize("epoch", [2, 4])  # of residuals, and of fine-tuning
@pytest.mark.parametrize("make", [make_regressor, make_classifier])
def test_a_hypersolver_keeps_its_best_epoch(X, make, epoch):
    fast = interrupt(make(max_epochs=5, batch_size=16, lr=5e-2, callbacks=[Stops(epoch, 2)]), X)
    whole = make(max_epochs=5, batch_size=16, lr=5e-2).fit(X)
    rows = [{name: value for name, value in row.items() if name != "dur"} for row in fast.history_]
    assert rows == [{name: row[name] for name in rows[0]} for row in whole.history_[: epoch - 1]]
    assert fast.errors_[2]["mean"] < fast.errors_[2]["base_mean"]
    assert all(parameter.grad is None for parameter in fast.correction_.parameters())


@pytest.mark.parametrize("name", ["sklearn_hyper.training.references._solve_chunk", REFERENCE_SOLUTION])
def test_a_reference_solve_that_is_interrupted_leaves_no_fit_and_no_cache(X, tmp_path, monkeypatch, name):
    expected = make_regressor().fit(X).predict(X)
    fast = make_regressor(memory=str(tmp_path))
    with monkeypatch.context() as patched:
        patched.setattr(name, interrupted)
        interrupt(fast, X)
    assert not hasattr(fast, "module_") and not list(tmp_path.rglob("output.pkl"))
    np.testing.assert_array_equal(fast.fit(X).predict(X), expected)


def test_learning_coefficients_that_is_interrupted_leaves_no_fit(X, monkeypatch):
    fast = make_regressor(base_solver="nonstationary")
    monkeypatch.setattr(coefficients.LossNet, "train_step", interrupted)
    interrupt(fast, X)
    assert not [name for name in vars(fast) if name.endswith("_")]


def test_a_hypersolver_before_the_first_epoch_ends(X):
    fast = interrupt(make_regressor(callbacks=[Stops(1, 1)]), X)
    assert not [name for name in vars(fast) if name.endswith("_")]
    fitted = make_regressor(warm_start=True).fit(X)
    expected = fitted.predict(X)
    interrupt(fitted.set_params(callbacks=[Stops(1, 1)]), X)
    np.testing.assert_array_equal(fitted.predict(X), expected)


# ---------------------------------------------------------------------- both directions, and searches


def test_a_density_interrupted_in_either_direction():
    blobs = two_blobs(100)
    flow = make_flow(hidden=4, gain=2.0, max_epochs=1).fit(blobs)
    params = {"base_solver": "heun", "n_steps": 2, "max_epochs": 2, "max_samples": 40, "random_state": 0}
    first = interrupt(HypersolverDensity(flow, **params, callbacks=[StopsInTraining(1)]), blobs)
    assert not [name for name in vars(first) if name.endswith("_")]
    second = interrupt(HypersolverDensity(flow, **params, callbacks=[StopsInTraining(2)]), blobs)
    assert second.density_ is None and len(second.sampler_.history) == 2
    both = HypersolverDensity(flow, **params, warm_start=True).fit(blobs)
    expected = both.score_samples(blobs)
    for training, epoch in ((1, 2), (2, 1)):  # the sampler goes on, its density is as it was
        interrupt(both.set_params(callbacks=[StopsInTraining(training, epoch)]), blobs)
        np.testing.assert_array_equal(both.score_samples(blobs), expected)
    another = make_flow(hidden=4, gain=2.0, max_epochs=2).fit(blobs)
    interrupt(both.set_params(neural_ode=another, callbacks=[StopsInTraining(2)]), blobs)
    assert both.density_ is None


def test_a_search_stops(X):
    scored = []
    search = GridSearchCV(make_regressor(callbacks=[Stops(2, 1)]), {"lr": [0.01, 0.02]}, cv=2, scoring=scored.append)
    with pytest.raises(KeyboardInterrupt):
        search.fit(X)
    assert not scored and not hasattr(search, "cv_results_")
