"""Bad input to flows and their hypersolvers: one clear error before any training or solve."""

import numpy as np
import pytest
import scipy.sparse
import torch
from flow_problems import LINEAR, NoDivergence
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KernelDensity
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from small_flows import holding, make_flow, two_blobs
from torch import nn
from torch.distributions import Independent, Normal, Uniform
from user_fields import Locked, first_column

from sklearn_hyper import (
    ContinuousNormalizingFlow,
    ConvCorrection,
    HypersolverDensity,
    HypersolverRegressor,
    NeuralODE,
    NeuralODERegressor,
)
from sklearn_hyper.modules import VectorFieldError

NORMAL_3D = Independent(Normal(torch.zeros(3), 1.0), 1)


@pytest.fixture(scope="module")
def blobs():
    return two_blobs(60)


@pytest.fixture(scope="module")
def slow(blobs):
    return make_flow(gain=2.0, max_epochs=1).fit(blobs)


@pytest.fixture(scope="module")
def fast(slow, blobs):
    return make_fast(slow).fit(blobs)


@pytest.fixture
def trainings(monkeypatch):
    """Calls of the training loop from here on."""
    calls = []
    monkeypatch.setattr("sklearn_hyper.estimators.flows.train_net", lambda *args: calls.append(args))
    return calls


def make_fast(flow, **params):
    return HypersolverDensity(
        flow, **{"base_solver": "heun", "n_steps": 2, "max_epochs": 3, "random_state": 0} | params
    )


class Scaled(nn.Module):
    """Gives a field of no parameters one to train."""

    def __init__(self, field):
        super().__init__()
        self.field, self.scale = field, nn.Parameter(torch.ones(1, dtype=torch.float64))

    def forward(self, t, z):
        return self.scale * self.field(t, z)


def detached(t, z):
    return z.detach()


def with_input(t, z, x):
    return z


def branching(t, z):
    return z if z.sum() > 0 else -z


# ---------------------------------------------------------------------- fitting a flow
FLOW_PARAMETERS = [
    ({"objective": "mle"}, r"'objective' parameter .*'flow_matching'.*Got 'mle'"),
    ({"trace": "hutchinson"}, r"'trace' parameter .*'rademacher'.*Got 'hutchinson'"),
    ({"solver": "rk5"}, r"solver='rk5' is none that training knows: pass 'dopri5', .*rk4"),
    ({"solver": 3}, r"solver=3 is none that training knows: pass .* a ButcherTableau"),
    ({"t_span": (1, 1)}, r"t_span must .*two different ends"),
    ({"n_steps": 0}, r"'n_steps' parameter .*Got 0"),
    ({"kinetic": -1.0}, r"'kinetic' parameter .*\[0.0, inf\). Got -1.0"),
    ({"jacobian": "yes"}, r"'jacobian' parameter .*Got 'yes'"),
    ({"rtol": 0.0}, r"'rtol' parameter .*Got 0.0"),
    ({"max_epochs": 0}, r"'max_epochs' parameter .*Got 0"),
    ({"validation_fraction": 1.0}, r"'validation_fraction' parameter .*Got 1.0"),
    ({"validation_fraction": 0.999}, r"validation_fraction=0.999 of n_samples=60 leaves no row to train on"),
    ({"device": "cuda:7"}, r"device='cuda:7' is not available here"),
    ({"random_state": "x"}, r"'random_state' parameter .*Got 'x'"),
    ({"base_distribution": "normal"}, r"'base_distribution' parameter .*torch.distributions.*Got 'normal'"),
    ({"base_distribution": NORMAL_3D}, r"base_distribution must be over vectors of 2 features .*event_shape \(3,\)"),
    ({"base_distribution": Normal(torch.zeros(2), 1.0)}, r"got batch_shape \(2,\) .*wrap .*Independent\(..., 1\)"),
    ({"base_distribution": Independent(Uniform(torch.zeros(2), 1.0), 1)}, r"must have a density everywhere"),
    ({"vector_field": 3}, r"'vector_field' parameter .*callable.*Got 3"),
    ({"vector_field": nn.Linear}, r"vector_field must be an nn.Module or a callable, got <class 'torch.nn.*Linear'>"),
    ({"vector_field": LINEAR.field}, r"vector_field=LinearFlow\(\) holds no trainable parameters: there is nothing to fit"),
    ({"vector_field": nn.Linear(2, 2)}, r"vector_field\(t, z\) fails on a state of shape \(2, 2\)"),
    ({"vector_field": Scaled(first_column)}, r"vector_field\(t, z\) must return a tensor like z .*got shape \(2, 1\)"),
    ({"vector_field": Scaled(detached)}, r"output does not depend on z as autograd sees it, so its divergence is unknown"),
    ({"vector_field": Scaled(NoDivergence())}, r"its divergence is not finite at t=0 on some of 16 base samples"),
    ({"vector_field": Scaled(branching)}, r"vector_field mixes the rows of a batch"),
]  # fmt: skip


@pytest.mark.parametrize("params, message", FLOW_PARAMETERS, ids=lambda value: str(value)[:50].replace("\n", ""))
def test_parameters_of_a_flow(blobs, trainings, params, message):
    flow = make_flow().set_params(**params)
    with pytest.raises((ValueError, TypeError), match=f"(?s){message}"):
        flow.fit(blobs)
    assert not trainings and not [name for name in vars(flow) if name.endswith("_")]


BAD_X = [
    (lambda X: X * np.nan, ValueError, "contains NaN"),
    (lambda X: X + np.inf, ValueError, "contains infinity"),
    (lambda X: X[:0], ValueError, "0 sample"),
    (lambda X: X[:, 0], ValueError, "Expected 2D array, got 1D array"),
    (lambda X: X[:, :, None], ValueError, r"X must be 2-dimensional.*flatten images|X has samples of shape \(2, 1\)"),
    (lambda X: scipy.sparse.csr_matrix(X), TypeError, "Sparse data was passed"),
    (lambda X: X.astype(str).astype(object) + "a", ValueError, "could not convert string to float"),
]


@pytest.mark.parametrize("spoil, error, message", BAD_X)
def test_inputs_of_flows(blobs, slow, fast, trainings, solves, spoil, error, message):
    bad = spoil(blobs)
    for fit in (make_flow().fit, make_fast(slow).fit, make_fast(LINEAR.field).fit):
        with pytest.raises(error, match=message):
            fit(bad)
    methods = ("score_samples", "score", "transform", "inverse_transform")
    for method in [getattr(model, name) for model in (slow, fast) for name in methods] + [fast.solver_report]:
        with pytest.raises(error, match=f"{message}|Found array with dim 3"):
            method(bad)
    assert not trainings and not solves


def test_data_without_a_density(blobs, trainings):
    X = np.hstack([blobs, np.full((60, 1), 0.1), blobs, np.zeros((60, 1))])
    with pytest.raises(
        ValueError, match=r"X is singular: features 2, 5 constant, so X has no density.*VarianceThreshold"
    ):
        make_flow(6).fit(X)
    with pytest.raises(ValueError, match=r"X is singular: feature 2 constant"):
        make_flow(3).fit(X[:, :3].astype(np.float32))
    with pytest.raises(ValueError, match="at least 2 samples, got n_samples=1"):
        make_flow().fit(blobs[:1])
    assert not trainings


def test_widths(blobs, slow, fast, solves):
    wide, message = np.hstack([blobs, blobs]), "X has 4 features, but {} is expecting 2 features"
    for model in (slow, fast):
        for method in (model.score_samples, model.score, model.transform):
            with pytest.raises(ValueError, match=message.format(type(model).__name__)):
                method(wide)
        with pytest.raises(ValueError, match="Z has 4 features, but the base distribution's samples have 2"):
            model.inverse_transform(wide)
    with pytest.raises(ValueError, match=r"X has 4 features, but ContinuousNormalizingFlow is expecting 2"):
        make_fast(slow).fit(wide)
    with pytest.raises(ValueError, match=r"X has 4 features, but the flow has n_features=3"):
        make_fast(LINEAR.field, n_features=3).fit(wide)
    assert not solves


# ---------------------------------------------------------------------- using it
@pytest.mark.parametrize(
    "method", ["score_samples", "score", "transform", "inverse_transform", "sample", "solver_report"]
)
def test_methods_before_fit(blobs, slow, method):
    for model in (make_flow(), make_fast(slow)):
        if method != "solver_report" or isinstance(model, HypersolverDensity):
            with pytest.raises(
                NotFittedError, match=f"This {type(model).__name__} instance is not fitted yet. Call 'fit'"
            ):
                getattr(model, method)(*([] if method == "sample" else [blobs]))
    for method in (make_fast(slow).to_module, make_fast(slow).with_solver, make_fast(slow).without_correction):
        with pytest.raises(NotFittedError, match="Call 'fit'"):
            method()
    with pytest.raises(NotFittedError, match="Call 'fit'"):
        make_fast(slow).solver_report()


@pytest.mark.parametrize("n_samples", [0, -1, 1.5, 2.0, True, "3", None, np.ones(2)], ids=str)
def test_numbers_of_samples(slow, fast, n_samples):
    for draw in (slow.sample, fast.sample, lambda n: fast.solver_report(n_samples=n)):
        with pytest.raises(ValueError, match="n_samples must be an integer >= 1, got "):
            draw(n_samples)


def test_random_states(slow, fast):
    for model in (slow, fast):
        with pytest.raises(ValueError, match="'x' cannot be used to seed"):
            model.sample(2, random_state="x")


def test_densities_after_fitting_sampling_only(slow, blobs):
    fast = make_fast(slow, max_samples=30).fit()
    message = (
        r"fitted for sampling only, by fit\(X=None\).*call fit\(X\) with data for score_samples, score and transform"
    )
    for use in (
        fast.score_samples,
        fast.score,
        fast.transform,
        fast.solver_report,
        lambda X: fast.to_module("density"),
    ):
        with pytest.raises(ValueError, match=message):
            use(blobs)
    assert fast.solver_report(n_samples=20).rows


def test_directions(fast):
    with pytest.raises(ValueError, match="direction must be 'sampling' or 'density', got 'reverse'"):
        fast.to_module("reverse")


# ---------------------------------------------------------------------- what is passed as neural_ode


HIDDEN = nn.Linear(2, 2)


def hiding(t, z):
    return HIDDEN(z)


def mapped():
    return NeuralODE(LINEAR.field, output_map=nn.Linear(2, 2))


UNFITTED_SEARCH = GridSearchCV(ContinuousNormalizingFlow(), {"lr": [1.0]})
FORMS = [
    (ContinuousNormalizingFlow(), NotFittedError, "ContinuousNormalizingFlow that is not fitted.*FrozenEstimator"),
    (
        make_pipeline(StandardScaler(), ContinuousNormalizingFlow()),
        NotFittedError,
        "ContinuousNormalizingFlow that is not",
    ),
    (UNFITTED_SEARCH, NotFittedError, "GridSearchCV that is not fitted.*refit=True"),
    (ContinuousNormalizingFlow, TypeError, r"neural_ode must be a fitted ContinuousNormalizingFlow.*got <class"),
    (KernelDensity(), TypeError, r"neural_ode must be a fitted ContinuousNormalizingFlow.*got KernelDensity\(\)"),
    (NeuralODERegressor(), TypeError, r"or a bare vector field f\(t, z\); got NeuralODERegressor\(\)"),
    (HypersolverRegressor(LINEAR.field), TypeError, r"neural_ode must be a fitted ContinuousNormalizingFlow"),
    (3, TypeError, r"neural_ode must be a fitted ContinuousNormalizingFlow.*got 3"),
    (
        mapped(),
        ValueError,
        r"neural_ode is a NeuralODE with an input_map or output_map, whose log-determinant is unknown",
    ),
    (NeuralODE(with_input, data_controlled=True), ValueError, r"data-controlled; a flow's field is f\(t, z\)"),
    (with_input, VectorFieldError, r"vector_field\(t, z\) fails.*data_controlled=True"),
    (first_column, VectorFieldError, r"like z \(shape \(2, 2\).*got shape \(2, 1\)"),
    (detached, VectorFieldError, r"its divergence is unknown: do not detach"),
    (NoDivergence(), VectorFieldError, r"its divergence is not finite at t=0 on some of 16 base samples"),
    (Locked(), TypeError, r"neural_ode cannot be copied.*Drop locks"),
    (hiding, TypeError, r"vector_field is a function that calls the module HIDDEN"),
]


@pytest.mark.parametrize("neural_ode, error, message", FORMS, ids=[message[:60] for *_, message in FORMS])
def test_forms_of_a_flow(blobs, solves, neural_ode, error, message):
    fast = make_fast(neural_ode)
    with pytest.raises(error, match=f"(?s){message}"):
        fast.fit(blobs)
    assert not solves and not [name for name in vars(fast) if name.endswith("_")]


FAST_PARAMETERS = [
    ({"trace": "hutchinson"}, r"'trace' parameter .*Got 'hutchinson'"),
    ({"base_solver": "eulr"}, r"base_solver='eulr' is unknown"),
    ({"n_steps": 0}, r"'n_steps' parameter .*Got 0"),
    ({"n_features": 0}, r"'n_features' parameter .*Got 0"),
    ({"base_distribution": 3}, r"'base_distribution' parameter .*Got 3"),
    ({"base_distribution": NORMAL_3D}, r"base_distribution must be over vectors of 2 features"),
    ({"fit_n_steps": (3, 2)}, r"fit_n_steps=\(a, b\) needs a < b"),
    ({"correction": ConvCorrection()}, r"ConvCorrection needs states of shape \(c, h, w\), got \(2,\)"),
    ({"max_samples": 1}, r"'max_samples' parameter .*\[2, inf\). Got 1"),
    ({"device": "cuda:7"}, r"device='cuda:7' is not available here"),
]


@pytest.mark.parametrize("params, message", FAST_PARAMETERS, ids=str)
def test_parameters_of_a_hypersolver(blobs, solves, params, message):
    with pytest.raises(ValueError, match=message):
        make_fast(LINEAR.field).set_params(**params).fit(blobs)
    assert not solves


class OfWidthTwo(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2, dtype=torch.float64)

    def forward(self, eps, s, z, stages, x=None):
        return self.linear(z)


def test_a_correction_for_one_direction_only_shows_before_the_other_is_fitted(blobs, solves):
    with pytest.raises(ValueError, match=r"(?s)correction=OfWidthTwo.* fails.*forward\(eps, s, z, stages, x=None\)"):
        make_fast(LINEAR.field, correction=OfWidthTwo()).fit(blobs)
    assert not solves


def test_a_bare_field_s_width_and_a_fitted_flow_s_base(blobs, slow, solves):
    with pytest.raises(
        ValueError, match=r"n_features is needed to fit a bare field without X: pass n_features=, or fit\(X\)"
    ):
        make_fast(LINEAR.field).fit()
    message = (
        r"base_distribution and n_features: only for a bare field; the fitted flow passed as neural_ode brings its own"
    )
    with pytest.raises(ValueError, match=message):
        make_fast(slow, base_distribution=NORMAL_3D, n_features=2).fit(blobs)
    with pytest.raises(ValueError, match="neural_ode__lr: the fitted neural_ode cannot be changed"):
        make_fast(slow).set_params(neural_ode__lr=0.1)
    assert not solves


def test_a_failed_refit_keeps_what_was_fitted(blobs):
    slow = holding(LINEAR)
    fast = make_fast(slow, max_samples=30).fit(LINEAR.sample(60))
    before, expected = dict(vars(fast)), fast.score_samples(blobs)
    with pytest.raises(ValueError, match="contains NaN"):
        fast.fit(blobs * np.nan)
    with pytest.raises(ValueError, match="base_solver"):
        fast.set_params(base_solver="eulr").fit(blobs)
    assert vars(fast) == before | {"base_solver": "eulr"}
    np.testing.assert_array_equal(fast.score_samples(blobs), expected)
