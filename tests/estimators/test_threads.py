"""Fits in threads agree bit for bit with those in turn, and no public method moves a global generator."""

import functools
from concurrent.futures import ThreadPoolExecutor

import joblib
import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from skorch.callbacks import Callback
from small_flows import make_flow, two_blobs
from small_hypersolvers import Swirl, make_classifier, make_regressor
from small_saved import fit_saved
from torch import nn
from torch.distributions import Independent, Laplace

from sklearn_hyper import (
    ContinuousNormalizingFlow,
    HypersolverClassifier,
    HypersolverDensity,
    HypersolverRegressor,
    MLPCorrection,
    NeuralODEClassifier,
    NeuralODERegressor,
)

BASE = Independent(Laplace(torch.zeros(2), torch.ones(2)), 1)
QUICK = {"solver": "rk4", "n_steps": 2, "max_epochs": 2, "batch_size": 24, "random_state": 0}
CURVED = make_flow(hidden=4, gain=2.0, max_epochs=1).fit(two_blobs(60))
DENSITY = {"base_solver": "heun", "n_steps": 2, "max_epochs": 4, "max_samples": 40, "random_state": 0}
DRAWN = {"correction": MLPCorrection(hidden=4), "max_epochs": 4, "batch_size": 16}


@pytest.fixture(scope="module")
def X():
    return np.random.default_rng(0).uniform(-1, 1, (61, 2))


@pytest.fixture(scope="module")
def y(X):
    return (X[:, 0] * X[:, 1] > 0).astype(int)


class Dropping(nn.Module):
    """A user's own correction, which draws in training."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.Tanh(), nn.Linear(8, 2)).double()
        nn.init.zeros_(self.layers[-1].weight)

    def forward(self, eps, s, z, stages, x=None):
        return self.layers(torch.cat([z, stages[0]], dim=1))


class OwnOfTwo(Dropping):
    def __init__(self):
        super().__init__()
        self.layers[0] = nn.Linear(6, 8).double()

    def forward(self, eps, s, z, stages, x=None):
        return self.layers(torch.cat([z, *stages], dim=1))


class Draws(Callback):
    """A user's callback that draws from the global generator."""

    def on_epoch_end(self, net, **kwargs):
        net.history.record("drawn", float(torch.rand(())))


def dropping_field():
    return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 2))


class Timeless(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = dropping_field()

    def forward(self, t, z):
        return self.net(z)


with torch.random.fork_rng():
    FIELD, OWN, OWN_OF_TWO = Timeless(), Dropping(), OwnOfTwo()
THREE_WAYS = make_classifier().neural_ode


# ---------------------------------------------------------------------- threads
def fits(X, y):
    """What each makes of X after a fit."""
    # Made here: building a user's own net in a thread would draw from the global generator beside the fits.
    flow = make_flow(hidden=4, max_epochs=2)
    likelihood = make_flow(
        hidden=4, max_epochs=1, objective="likelihood", solver="rk4", n_steps=6, trace="rademacher", batch_size=30
    )
    base = make_flow(hidden=4, max_epochs=2, base_distribution=BASE)
    return {
        "regressor": lambda: make_regressor(**DRAWN).fit(X).predict(X),
        "trajectories": lambda: make_regressor(**DRAWN, loss="residual+trajectory").fit(X).predict(X),
        "multistep": lambda: make_regressor(base_solver="ab2", n_steps=3, max_epochs=4).fit(X).predict(X),
        "nonstationary": lambda: make_regressor(base_solver="nonstationary", max_epochs=4).fit(X).predict(X),
        "own_correction": lambda: make_regressor(correction=OWN, max_epochs=4, lr=1e-3).fit(X).predict(X),
        "callback": lambda: [row["drawn"] for row in make_regressor(callbacks=[Draws()]).fit(X).net_.history],
        "hypersolver_classifier": lambda: make_classifier(**DRAWN).fit(X).predict_proba(X),
        "density": lambda: HypersolverDensity(CURVED, **DENSITY).fit(X).score_samples(X),
        "classifier": lambda: NeuralODEClassifier(**QUICK).fit(X, y).predict_proba(X),
        "dropout": lambda: NeuralODERegressor(FIELD, input_map=nn.Identity(), **QUICK).fit(X, X).predict(X),
        "partial_fit": lambda: NeuralODEClassifier(**QUICK).partial_fit(X, y).partial_fit(X, y).predict_proba(X),
        "flow": lambda: clone(flow).fit(X).score_samples(X),
        "likelihood": lambda: clone(likelihood).fit(X).score_samples(X),
        "base": lambda: clone(base).fit(X).sample(5, random_state=0),
        "built": lambda: ContinuousNormalizingFlow(max_epochs=1, random_state=0).fit(X).sample(5, random_state=0),
    }  # fmt: skip


NAMES = [*fits(None, None)]


@pytest.mark.filterwarnings("ignore:no epoch was better")
def test_fits_in_threads_agree_bit_for_bit(X, y):
    functions = fits(X, y)
    serial = {name: functions[name]() for name in NAMES}
    state, found = torch.get_rng_state(), np.random.get_state()[1].copy()
    with ThreadPoolExecutor(4) as pool:
        futures = [(name, pool.submit(functions[name])) for name in NAMES * 2]
        for name, future in futures:
            np.testing.assert_array_equal(future.result(), serial[name], err_msg=name)
    assert torch.equal(torch.get_rng_state(), state) and np.array_equal(np.random.get_state()[1], found)


@pytest.mark.parametrize("backend", ["threading", pytest.param("loky", marks=pytest.mark.slow)])
def test_searches_find_the_same_by_any_backend(X, y, backend):
    def search():
        candidate = NeuralODEClassifier(**QUICK)
        return GridSearchCV(candidate, {"lr": [0.01, 0.02]}, cv=2).fit(X, y).cv_results_["mean_test_score"]

    expected = search()
    with joblib.parallel_config(backend=backend, n_jobs=2):
        np.testing.assert_array_equal(search(), expected)


def test_a_seed_decides_and_no_state_of_the_generator_does(X):
    results = []
    for seed in (1, 2):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            results.append([make_regressor(**DRAWN).fit(X).predict(X), make_flow(max_epochs=1).fit(X).sample(3, 0)])
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)
    assert not np.array_equal(make_regressor(**DRAWN | {"random_state": 1}).fit(X).predict(X), results[0][0])


# ---------------------------------------------------------------------- every public method
def has_correction(estimator):
    """Tell whether no fit fell back to its base solver."""
    fits = [vars(estimator).get(name) for name in ("fitted_", "sampler_", "density_")]
    return all(fit.correction is not None for fit in fits if fit is not None)


def run_public_methods(estimator, X, y, tmp_path, without=()):
    """Call all but some; return the names of those that moved a generator."""
    arguments = {
        "partial_fit": (X, y),
        "predict": (X,),
        "predict_proba": (X,),
        "decision_function": (X,),
        "transform": (X,),
        "fit_transform": (X, y),
        "inverse_transform": (X,),
        "score": (X, y),
        "score_samples": (X,),
        "sample": (4,),
        "trajectory": (X,),
        "reference": (X,),
        "solver_report": (X[:5],),
        "neg_mape": (X,),
        "agreement": (X,),
        "count_macs": (X,),
        "count_evaluations": (),
        "with_solver": (),
        "without_correction": (),
        "to_module": (),
        "export_onnx": (tmp_path / "model.onnx",),
        "conformalize": (X + 1e-3,),
        "save": (tmp_path / "model.safetensors",),
        "get_feature_names_out": (),
        "get_params": (),
        "set_params": (),
        "get_metadata_routing": (),
        "set_output": (),
        "fit": (X, y),
    }
    public = [name for name in dir(estimator) if not name.startswith("_") and not name.endswith("_request")]
    methods = [name for name in public if not name.endswith("_") and callable(getattr(estimator, name))]
    parameters = estimator.get_params(deep=False)
    calls = {name: functools.partial(getattr(estimator, name, print), *given) for name, given in arguments.items()}
    calls["predict_set"] = lambda: estimator.conformalize(X + 1e-3).predict_set(X, coverage=0.5)
    calls["refit"] = lambda: has_correction(estimator) and estimator.refit(estimator.neural_ode, X)
    unknown = [name for name in methods if name not in calls and name not in parameters]
    assert not unknown, f"say how to call {unknown}"
    moved = []
    for name in ["fit", *methods]:
        if name in parameters or name in without:
            continue
        state, found = torch.get_rng_state(), np.random.get_state()[1:3]
        found = (found[0].copy(), found[1])
        calls[name]()
        after = np.random.get_state()[1:3]
        if not torch.equal(torch.get_rng_state(), state) or found[1] != after[1] or (found[0] != after[0]).any():
            moved.append(name)
    return moved


@pytest.mark.filterwarnings("ignore:no epoch was better")
@pytest.mark.filterwarnings("ignore:the calibration is not part of a model file")
@pytest.mark.parametrize("seed", [0, None])
@pytest.mark.parametrize(
    "make",
    [
        lambda: HypersolverRegressor(Swirl(), base_solver="euler", n_steps=2, max_epochs=2, max_samples=30),
        lambda: HypersolverClassifier(
            THREE_WAYS, classes=["a", "b", "c"], base_solver="heun", n_steps=2, max_epochs=2, correction=OWN_OF_TWO
        ),
        lambda: HypersolverDensity(CURVED, **DENSITY | {"max_epochs": 2}),
        lambda: HypersolverDensity(Swirl(), base_distribution=BASE, trace="gaussian", **DENSITY | {"max_epochs": 2}),
        lambda: NeuralODEClassifier(**QUICK),
        lambda: NeuralODERegressor(FIELD, input_map=nn.Identity(), **QUICK | {"warm_start": True}),
        lambda: make_flow(hidden=4, max_epochs=1, base_distribution=BASE),
        lambda: make_flow(hidden=4, max_epochs=1, objective="likelihood", trace="gaussian", warm_start=True),
    ],
)
def test_no_public_method_moves_a_global_generator(X, y, make, seed, tmp_path):
    estimator = make().set_params(random_state=seed)
    target = y if isinstance(estimator, NeuralODEClassifier) else np.array(["a", "b"])[y]
    if isinstance(estimator, NeuralODERegressor):
        target = X
    if isinstance(estimator, HypersolverClassifier):
        target = make().fit(X).predict(X)  # other labels of its classes would be refused
    slow = {"export_onnx": isinstance(estimator, HypersolverRegressor), "solver_report": seed is None}
    without = [name for name, wanted in slow.items() if not wanted or (name == "export_onnx" and seed is None)]
    assert run_public_methods(estimator, X[:40], target[:40], tmp_path, without) == []


@pytest.mark.parametrize("name", ["regressor, weights", "regressor, net", "classifier, estimator", "density, flow"])
def test_predictions_in_many_threads_are_those_of_one(name):
    estimator, rows = fit_saved(name)
    parts = [rows[i % 7 :] for i in range(40)]
    expected = [estimator.transform(part) for part in parts]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(estimator.transform, parts))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
