"""Pickles: anywhere, by any version, with lambdas, and never silently wrong."""

import copy
import pickle
import subprocess
import sys
import threading

import joblib
import numpy as np
import pytest
import torch
from small_flows import make_flow, two_blobs
from small_hypersolvers import make_regressor
from torch import nn

import sklearn_hyper.estimators._base as base
from sklearn_hyper import (
    ContinuousNormalizingFlow,
    HypersolverDensity,
    HypersolverRegressor,
    NeuralODEClassifier,
    NeuralODERegressor,
)
from sklearn_hyper.estimators._base import VersionMismatchWarning
from sklearn_hyper.modules.copies import PersistenceWarning
from sklearn_hyper.training.references import digest


def _reload(estimator):
    return pickle.loads(pickle.dumps(estimator))


def test_a_fresh_process_predicts_the_same(tmp_path, digits, digits_ode, digits_hyper):
    X = two_blobs(40)
    flow = make_flow(gain=2.0, max_epochs=1).fit(X)
    fast = HypersolverDensity(flow, base_solver="heun", n_steps=2, max_epochs=3, random_state=0).fit(X)
    for name, model, method, data in [
        ("classifier", digits_ode, "predict_proba", digits[0]),
        ("fast classifier", digits_hyper, "predict_proba", digits[0]),
        ("flow", flow, "score_samples", X),
        ("fast flow", fast, "score_samples", X),
    ]:
        joblib.dump((model, method, data, getattr(model, method)(data)), tmp_path / f"{name}.joblib")
    program = """
import pathlib, joblib, numpy as np, torch
torch.set_num_threads(1)
for path in pathlib.Path().glob("*.joblib"):
    model, method, X, expected = joblib.load(path)
    np.testing.assert_array_equal(getattr(model, method)(X), expected)
    if hasattr(model, "sample"):
        assert model.sample(3, random_state=0).shape == (3, 2)
    print("same", end=" ")
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.stdout == 4 * "same ", done.stderr


@pytest.mark.parametrize("copied", [_reload, copy.deepcopy], ids=["pickle", "deepcopy"])
def test_copies_are_equal_hash_alike_and_stand_alone(digits, digits_ode, digits_hyper, copied):
    for model in (digits_ode, digits_hyper):
        other = copied(model)
        np.testing.assert_array_equal(other.predict_proba(digits[0]), model.predict_proba(digits[0]))
        x = torch.from_numpy(digits[0][:20])
        assert digest(other.neural_ode_, x) == digest(model.neural_ode_, x)
        assert not {id(p) for p in other.neural_ode_.parameters()} & {id(p) for p in model.neural_ode_.parameters()}


@pytest.mark.parametrize("copied", [_reload, copy.deepcopy], ids=["pickle", "deepcopy"])
def test_a_copy_goes_on_training_where_the_original_stood(vectors, copied):
    X, y = vectors[0].astype(np.float32), (vectors[1] > 0).astype(int)
    model = NeuralODEClassifier(random_state=0).partial_fit(X, y).partial_fit(X, y)
    other = copied(model)
    before = model.predict_proba(X)
    model.partial_fit(X, y), other.partial_fit(X, y)
    np.testing.assert_allclose(other.predict_proba(X), model.predict_proba(X), rtol=1e-5)
    assert np.abs(model.predict_proba(X) - before).max() > 1e-3


def test_a_pickle_holds_no_training_data(X):
    few, many = (len(pickle.dumps(make_regressor(batch_size=10).fit(X[:n]))) for n in (10, 80))
    assert abs(many - few) < 2000


def test_another_version_is_named(monkeypatch, swirl, X):
    packed = pickle.dumps(swirl)
    monkeypatch.setattr(base, "__version__", "99.0")
    with pytest.warns(VersionMismatchWarning, match=r"saved by sklearn_hyper \d.* and is loaded by 99\.0.*Refit it"):
        np.testing.assert_array_equal(pickle.loads(packed).predict(X), swirl.predict(X))


def test_a_missing_device_is_replaced_by_the_cpu(swirl, X):
    elsewhere = copy.deepcopy(swirl)
    elsewhere.device = elsewhere.device_ = "cuda:7"
    packed = pickle.dumps(elsewhere)
    with pytest.warns(UserWarning, match=r"device='cuda:7' is not available here.*loaded on the CPU instead"):
        loaded = pickle.loads(packed)
    assert loaded.device_ == "cpu" and loaded.device == "cuda:7"
    np.testing.assert_array_equal(loaded.predict(X), swirl.predict(X))


def test_lambdas_and_local_classes_pickle(X):
    hyper = HypersolverRegressor(lambda t, z: -z, n_steps=2, max_epochs=5, random_state=0).fit(X)
    np.testing.assert_array_equal(_reload(hyper).predict(X), hyper.predict(X))


def test_what_cannot_be_pickled_says_what_to_do(X):
    lock = threading.Lock()

    def guarded(t, z):
        with lock:
            return -z

    hyper = HypersolverRegressor(guarded, n_steps=2, max_epochs=5, random_state=0)
    with pytest.warns(PersistenceWarning, match=r"cannot be pickled.*neither saved nor sent"):
        hyper.fit(X)
    with pytest.raises(ValueError, match=r"memory='cache' needs to pickle neural_ode"):
        hyper.set_params(memory="cache").fit(X)
    with pytest.raises(ValueError, match=r"n_jobs=2 needs to pickle neural_ode"):
        hyper.set_params(memory=None, n_jobs=2).fit(X)
    with pytest.raises(pickle.PicklingError, match=r"cannot be pickled.*locks.*drop them, or define __getstate__"):
        pickle.dumps(hyper)


def test_a_model_trained_with_a_progress_bar_loads(capsys):
    X = np.random.default_rng(0).normal(size=(20, 2))
    slow = NeuralODEClassifier(max_epochs=1, random_state=0, verbose=2).fit(X, X[:, 0] > 0)
    np.testing.assert_array_equal(_reload(slow).predict(X), slow.predict(X))


class Unsaveable(nn.Module):
    """Copies, but cannot be pickled."""

    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()
        self.weight = nn.Parameter(torch.ones(2, dtype=torch.float64))

    def forward(self, t, z):
        return -z * self.weight.to(z.dtype)

    def __deepcopy__(self, memo):
        return type(self)()


@pytest.mark.parametrize(
    "estimator",
    [
        HypersolverRegressor(Unsaveable(), n_steps=2, max_epochs=5, random_state=0),
        HypersolverDensity(Unsaveable(), n_features=2, n_steps=2, max_epochs=2, max_samples=20, random_state=0),
        NeuralODERegressor(Unsaveable(), input_map=nn.Identity(), max_epochs=1, random_state=0),
        ContinuousNormalizingFlow(Unsaveable(), max_epochs=1, random_state=0),
    ],
    ids=lambda estimator: type(estimator).__name__,
)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_what_cannot_be_saved_is_said_at_the_line_that_fits(X, estimator):
    with pytest.warns(PersistenceWarning) as warned:
        estimator.fit(X, X[:, 0])
    assert {warning.filename for warning in warned} == {__file__}
