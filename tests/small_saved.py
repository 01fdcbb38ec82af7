"""Estimators of every kind that a model file can hold, fitted in a moment, and what each needs to be loaded."""

import functools
import warnings

import numpy as np
import torch
from small_flows import make_fast, make_flow, two_blobs
from small_hypersolvers import Swirl, ToLogits, make_classifier, make_regressor
from torch import nn

from sklearn_hyper import (
    ContinuousNormalizingFlow,
    ConvCorrection,
    HypersolverClassifier,
    HypersolverRegressor,
    MLPCorrection,
    NeuralODE,
    NeuralODEClassifier,
    NeuralODERegressor,
    ReachCorrection,
    WeightCorrection,
    alpha_family,
)
from sklearn_hyper.modules import ConvVectorField
from sklearn_hyper.modules.conditioned_fields import ConditionedMLPField
from sklearn_hyper.numerics import Method, Step, StepKind

X = np.random.default_rng(0).normal(size=(40, 2))
IMAGES = np.random.default_rng(1).normal(size=(24, 2, 4, 4)).astype(np.float32)


class OwnNet(nn.Module):
    """A correction of the user's own."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, 2, dtype=torch.float64))

    def forward(self, eps, s, z, stages, x=None):
        return stages[0] @ self.weight


class OwnEuler(Method):
    """A method of the user's own."""

    name, order = "own euler", 1

    def kind(self, index):
        return StepKind(order=1, nodes=(0.0,), offsets=(0.0,))

    def step(self, f, times, z, eps, state):
        r = f(times[0], z)
        return Step(direction=r, stages=[r], state=state)


def controlled(t, z, x):
    return torch.sin(x) - z


def by_condition(t, z, *, rate, kind, step):
    """A field with floats, a category and an integer as its condition."""
    return -rate.mean(dim=1, keepdim=True) * z * (1 + kind[:, None]) + step[:, None]


CONDITION = {"rate": X**2, "kind": np.array(["a", "b", "c"])[np.arange(40) % 3], "step": np.arange(40) % 2}
LABELLED = {"label": np.array(["left", "right"])[np.arange(40) % 2], "size": X[:, 0]}


def make_image_field():
    torch.manual_seed(0)
    return ConvVectorField(2, hidden=4)


def far_normal():
    ones = torch.ones(2, dtype=torch.float64)
    return torch.distributions.Independent(torch.distributions.Normal(0.5 * ones, 2 * ones), 1)


NET = MLPCorrection(hidden=4, depth=1)


def _classifier(**params):
    return NeuralODEClassifier(max_epochs=1, random_state=0, **params)


def make_conditional_flow():
    torch.manual_seed(0)
    given = {"label": torch.zeros(1, dtype=torch.int64), "size": torch.zeros(1)}
    field = ConditionedMLPField(2, given, {"label": 2}, hidden=4).double()
    return ContinuousNormalizingFlow(field, max_epochs=1, random_state=0)


RECIPES = {
    "regressor, net": (lambda: make_regressor(correction=NET).fit(X), X, {"vector_field": Swirl}),
    "regressor, weights": (
        lambda: make_regressor(correction=WeightCorrection(), max_epochs=5).fit(X), X, {"vector_field": Swirl},
    ),
    "regressor, learned coefficients": (
        lambda: make_regressor(base_solver="auto", max_epochs=5).fit(X), X, {"vector_field": Swirl},
    ),
    "regressor, range of steps": (
        lambda: make_regressor(base_solver="ab3", n_steps=4, fit_n_steps=(4, 6), correction=WeightCorrection()).fit(X), X,
        {"vector_field": Swirl},
    ),
    "regressor, family": (
        lambda: make_regressor(
            base_solver="heun", correction=MLPCorrection(hidden=2, activation="prelu", tableaus=[alpha_family(0.4)])
        ).fit(X), X, {"vector_field": Swirl},
    ),
    "regressor, learned steps": (
        lambda: make_regressor(
            base_solver="heun", stepping="adaptive", step_controller="learned", n_steps=4, correction=NET
        ).fit(X), X, {"vector_field": Swirl},
    ),
    "regressor, own parts": (
        lambda: make_regressor(NeuralODE(Swirl(), output_map=ToLogits()), base_solver=OwnEuler(), correction=OwnNet()).fit(X),
        X, {"vector_field": Swirl, "output_map": ToLogits, "correction": OwnNet, "base_solver": OwnEuler},
    ),
    "regressor, other solver": (
        lambda: make_regressor(base_solver="midpoint", correction=NET).fit(X).with_solver("heun", n_steps=2), X,
        {"vector_field": Swirl},
    ),
    "regressor, base solver alone": (
        lambda: make_regressor(correction=NET).fit(X).without_correction(), X, {"vector_field": Swirl},
    ),
    "regressor, data-controlled": (
        lambda: make_regressor(NeuralODE(controlled, data_controlled=True), correction=NET).fit(X), X,
        {"vector_field": lambda: controlled},
    ),
    "regressor, images": (
        lambda: HypersolverRegressor(
            make_image_field(), base_solver="euler", n_steps=2, max_epochs=2, random_state=0,
            correction=ConvCorrection(hidden=2),
        ).fit(IMAGES), IMAGES, {},
    ),
    "regressor, images, weights and reach": (
        lambda: HypersolverRegressor(
            make_image_field(), base_solver="euler", n_steps=2, max_epochs=4, random_state=0,
            correction=WeightCorrection(rank=1, beside=ReachCorrection(hidden=2)),
        ).fit(IMAGES), IMAGES, {},
    ),
    "classifier, module": (
        lambda: make_classifier(correction=NET).fit(X), X, {"vector_field": Swirl, "output_map": ToLogits},
    ),
    "classifier, estimator": (
        lambda: HypersolverClassifier(
            _classifier().fit(X.astype(np.float32), X[:, 0] > 0), n_steps=2, max_epochs=2, random_state=0
        ).fit(X), X, {},
    ),
    "regressor, estimator": (
        lambda: HypersolverRegressor(
            NeuralODERegressor(max_epochs=1, random_state=0).fit(X, X[:, 0]), n_steps=2, max_epochs=2, random_state=0,
            correction=NET,
        ).fit(X), X, {},
    ),
    "Neural ODE, classifier": (lambda: _classifier().fit(X, np.where(X[:, 0] > 0, "yes", "no")), X, {}),
    "Neural ODE, images": (lambda: _classifier().fit(IMAGES, IMAGES.mean(axis=(1, 2, 3)) > 0), IMAGES, {}),
    "Neural ODE, regressor": (
        lambda: NeuralODERegressor(Swirl(), input_map=nn.Identity(), max_epochs=1, random_state=0).fit(X, X), X,
        {"vector_field": Swirl},
    ),
    "flow": (lambda: make_flow(max_epochs=1).fit(two_blobs(40)), two_blobs(40), {}),
    "density, flow": (lambda: make_fast(make_flow(max_epochs=1).fit(two_blobs(40))).fit(two_blobs(40)), two_blobs(40), {}),
    "regressor, condition": (
        lambda: make_regressor(by_condition, correction=NET).fit(X, condition=CONDITION), X,
        {"vector_field": lambda: by_condition},
    ),
    "Neural ODE, condition": (
        lambda: NeuralODERegressor(max_epochs=1, random_state=0).fit(X, X[:, 0], condition=LABELLED), X, {},
    ),
    "classifier, condition": (
        lambda: HypersolverClassifier(
            _classifier(solver="hypersolved", n_steps=1).fit(X, X[:, 0] > 0, condition=LABELLED), n_steps=2,
            max_epochs=2, random_state=0,
        ).fit(X, condition=LABELLED), X, {},
    ),
    "density, condition": (
        lambda: make_fast(make_conditional_flow().fit(two_blobs(40), condition=LABELLED)).fit(
            two_blobs(40), condition=LABELLED
        ), two_blobs(40), {},
    ),
    "density, field": (
        lambda: make_fast(Swirl(), base_distribution=far_normal(), trace="rademacher").fit(X), X,
        {"vector_field": Swirl, "base_distribution": far_normal},
    ),
}  # fmt: skip
"""By name: how to fit it, rows, and makers of what ``load`` is passed."""

METHODS = ("predict", "predict_proba", "transform", "trajectory", "reference", "score_samples", "inverse_transform")


@functools.cache
def fit_saved(name):
    """The fitted estimator and its rows, fitted once."""
    make, rows, _ = RECIPES[name]
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")  # fits are tiny, and no test of files is about their accuracy
        torch.manual_seed(0)
        return make(), rows


def templates_of(name):
    return {argument: make() for argument, make in RECIPES[name][2].items()}


def beside(estimator, n_rows):
    """Keyword arguments of its methods for some rows: their condition, where its fit had one."""
    names = getattr(estimator, "condition_", {})
    known = CONDITION | LABELLED
    return {"condition": {name: known[name][:n_rows] for name in names}} if names else {}


def answers(estimator, X):
    """Everything that an estimator computes from X, by method."""
    given = beside(estimator, len(X))
    found = {method: getattr(estimator, method)(X, **given) for method in METHODS if hasattr(estimator, method)}
    if hasattr(estimator, "sample"):
        found["sample"] = estimator.sample(5, random_state=0, **beside(estimator, 5))
    if hasattr(estimator, "neg_mape"):
        found["neg_mape"] = np.array(estimator.neg_mape(X, **given))
    if hasattr(estimator, "score_samples"):
        found["score"] = np.array(estimator.score(X, **given))
    return found


def assert_same_answers(one, other, X):
    expected, found = answers(one, X), answers(other, X)
    assert expected.keys() == found.keys() and len(found) >= 1
    for method, values in expected.items():
        np.testing.assert_array_equal(found[method], values, err_msg=method, strict=True)
