"""Bad input: one clear error before any solve, and nothing lost."""

import copy

import numpy as np
import pytest
import scipy.sparse
import torch
from interruptions import StopsAt
from reference_solves import REFERENCE_SOLUTION
from sklearn.exceptions import NotFittedError
from small_hypersolvers import Swirl, make_classifier, make_regressor
from torch import nn
from user_fields import Locked, first_column

from sklearn_hyper import (
    ButcherTableau,
    ConvCorrection,
    HypersolverRegressor,
    MLPCorrection,
    NeuralODE,
    NeuralODEClassifier,
    NeuralODERegressor,
)
from sklearn_hyper.modules import VectorFieldError
from sklearn_hyper.numerics import ReferenceSolveError
from sklearn_hyper.training.nets import TrainingDivergedError


class WrongShape(nn.Module):
    def forward(self, eps, s, z, stages, x=None):
        return z[:, :1]


# ---------------------------------------------------------------------- parameters
PARAMETERS = [
    ({"base_solver": "eulr"}, r"base_solver='eulr' is unknown; valid names are euler, heun.*or pass a ButcherTableau"),
    (
        {"base_solver": "heun", "order": 1},
        r"order=1 contradicts base_solver='heun', which has order 2; leave order=None",
    ),
    ({"base_solver": 3}, r"base_solver must be a name \(.*\), a ButcherTableau or a numerics.Method, got int"),
    (
        {"base_solver": "auto", "order": 5},
        r"base_solver='auto' knows orders \[1, 2, 3, 4\], got order=5; pass a ButcherTableau",
    ),
    ({"order": 0}, r"'order' parameter .* int in the range \[1, 5\]. Got 0"),
    ({"n_steps": 0}, r"'n_steps' parameter .* int in the range \[1, inf\). Got 0"),
    ({"n_steps": 1.5}, r"'n_steps' parameter .* int .*Got 1.5"),
    ({"n_steps": True}, r"n_steps must be an integer >= 1, got True"),
    ({"fit_n_steps": (3, 2)}, r"fit_n_steps=\(a, b\) needs a < b, got \(3, 2\); pass an integer"),
    ({"fit_n_steps": (1, 2, 3)}, r"fit_n_steps must be None, an integer or a pair \(a, b\), got \(1, 2, 3\)"),
    ({"fit_n_steps": (1, 2.5)}, r"fit_n_steps must be an integer >= 1, got 2.5"),
    ({"correction": "big"}, r"'correction' parameter .*'auto'.*Got 'big'"),
    ({"correction": MLPCorrection(hidden=0)}, r"MLPCorrection.hidden must be an integer >= 1, got 0"),
    ({"correction": ConvCorrection()}, r"ConvCorrection needs states of shape \(c, h, w\), got \(2,\)"),
    ({"correction": nn.Linear(2, 2)}, r"correction=Linear.* fails.*forward\(eps, s, z, stages, x=None\)"),
    ({"correction": WrongShape()}, r"correction=WrongShape\(\) returns shape \(2, 1\).*state of shape \(2, 2\)"),
    ({"loss": "mse"}, r"'loss' parameter .*'residual'.*Got 'mse'"),
    ({"finetune": "all"}, r"'finetune' parameter .*None.*Got 'all'"),
    ({"rtol": 0.0}, r"'rtol' parameter .* range \(0.0, inf\). Got 0.0"),
    ({"atol": -1.0}, r"'atol' parameter .* range \(0.0, inf\). Got -1.0"),
    ({"rtol": float("nan")}, r"'rtol' parameter .*Got nan"),
    ({"max_samples": 1}, r"'max_samples' parameter .*\[2, inf\). Got 1"),
    ({"max_epochs": 0}, r"'max_epochs' parameter .*Got 0"),
    ({"lr": 0.0}, r"'lr' parameter .*Got 0.0"),
    ({"batch_size": 0}, r"'batch_size' parameter .*Got 0"),
    ({"mape_floor": 0.0}, r"'mape_floor' parameter .*Got 0.0"),
    ({"memory": 3}, r"'memory' parameter .*Got 3"),
    ({"device": "cuda:7"}, r"device='cuda:7' is not available here .*; use one of cpu"),
    ({"device": "meta"}, r"device='meta' is not available here .*; use one of cpu"),
    ({"device": "gpu"}, r"device='gpu' is not available here .*; use one of cpu"),
    ({"validation_fraction": 1.0}, r"'validation_fraction' parameter .*\(0.0, 1.0\). Got 1.0"),
    (
        {"validation_fraction": 0.999},
        r"validation_fraction=0.999 of n_samples=80 leaves no row to train on, with 80 held out; lower it, or give",
    ),
    ({"random_state": "x"}, r"'random_state' parameter .*Got 'x'"),
]


@pytest.mark.parametrize("params, message", PARAMETERS, ids=lambda value: str(value)[:40])
def test_parameters(X, solves, params, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make_regressor(**params).fit(X)
    assert not solves


@pytest.mark.parametrize(
    "a, b, c, message",
    [
        ([[0, 1], [0, 0]], [0.5, 0.5], [1, 0], "explicit"),
        ([[0, 0], [1, 0]], [0.5, 0.4], [0, 1], "order"),
        ([[0, 0], [1, 0]], [0.5, 0.5], [0, 0.5], "row"),
    ],
    ids=["implicit", "order conditions", "row sums"],
)
def test_tableaus(a, b, c, message):
    with pytest.raises(ValueError, match=message):
        ButcherTableau("mine", order=2, a=a, b=b, c=c)


@pytest.mark.parametrize(
    "t_span, message", [((1, 1), "two different ends, got"), ((0, np.inf), "finite, got"), (3, "pair")]
)
def test_spans(X, t_span, message):
    with pytest.raises(ValueError, match=f"t_span must .*{message}"):
        NeuralODE(Swirl(), t_span=t_span)
    with pytest.raises(ValueError, match=f"t_span must .*{message}"):
        NeuralODERegressor(t_span=t_span).fit(X, X[:, 0])
    with pytest.raises(ValueError, match=f"t_span must .*{message}"):
        make_regressor(max_epochs=1).fit(X).with_solver(t_span=t_span)


# ---------------------------------------------------------------------- the Neural ODE
@pytest.mark.parametrize(
    "neural_ode, error, message",
    [
        (NeuralODEClassifier(), NotFittedError, r"NeuralODEClassifier that is not fitted.*FrozenEstimator"),
        (NeuralODEClassifier, TypeError, r"neural_ode must be a fitted NeuralODEClassifier.*got <class"),
        (3, TypeError, r"neural_ode must be .*or a vector field f\(t, z\); got 3"),
        (lambda z: z, VectorFieldError, r"vector_field\(t, z\) fails.*with z alone it works"),
        (lambda t, z, x: z, VectorFieldError, r"vector_field\(t, z\) fails.*data_controlled=True"),
        (first_column, VectorFieldError, r"like z \(shape \(2, 2\).*got shape \(2, 1\)"),
        (lambda t, z: z.float(), VectorFieldError, r"like z \(.*torch.float64.*got .*torch.float32"),
        (lambda t, z: z.to("meta"), VectorFieldError, r"like z \(.*cpu\), got .*meta"),
        (lambda t, z: None, VectorFieldError, r"got NoneType"),
        (
            NeuralODE(Swirl(), input_map=nn.Linear(5, 2)),
            VectorFieldError,
            r"input_map fails on an input of shape \(2, 2\)",
        ),
        (
            NeuralODE(Swirl(), output_map=first_column),
            VectorFieldError,
            r"output_map fails on a state of shape \(2, 2\)",
        ),
        (Locked(), TypeError, r"neural_ode cannot be copied.*Drop locks"),
    ],
)
def test_neural_odes(X, solves, neural_ode, error, message):
    with pytest.raises(error, match=message):
        HypersolverRegressor(neural_ode).fit(X)
    assert not solves


def test_width_of_a_fitted_model(vectors_ode, X, solves):
    with pytest.raises(
        ValueError, match=r"shape \(2,\) \(n_features=2\), but neural_ode was fitted on samples of shape \(3,\)"
    ):
        HypersolverRegressor(vectors_ode).fit(X)
    assert not solves


def test_a_stiff_field_does_not_hang(X):
    stiff = make_regressor(lambda t, z: -1e7 * (z - torch.cos(t)))
    with pytest.raises(ReferenceSolveError, match=r"field is stiff or .*Loosen rtol and atol, scale the inputs"):
        stiff.fit(X)
    assert not hasattr(stiff, "module_") and not hasattr(stiff, "n_features_in_")
    with pytest.raises(ReferenceSolveError, match=r"underflow in dt.*grows without bound"):
        make_regressor(lambda t, z: 1 + 9 * z**2).fit(X)


# ---------------------------------------------------------------------- X and y
BAD_X = [
    (lambda X: X * np.nan, ValueError, "contains NaN"),
    (lambda X: X + np.inf, ValueError, "contains infinity"),
    (lambda X: X[:0], ValueError, "0 sample"),
    (lambda X: X[:, :0], ValueError, "0 feature"),
    (lambda X: X[:, 0], ValueError, "Expected 2D array, got 1D array"),
    (lambda X: X + 1j, ValueError, "Complex data not supported"),
    (scipy.sparse.csr_matrix, TypeError, r"Sparse data was passed.*toarray"),
    (lambda X: [["a", "b"]], ValueError, "could not convert string to float"),
    (lambda X: np.full((4, 1, 2, 2), np.nan), ValueError, "contains NaN"),
    (lambda X: torch.full((4, 2), torch.nan), ValueError, "contains NaN"),
]


@pytest.mark.parametrize("spoil, error, message", BAD_X, ids=[message for *_, message in BAD_X])
def test_inputs_in_fit_and_predict(X, swirl, solves, spoil, error, message):
    bad = spoil(X)
    with pytest.raises(error, match=message):
        make_regressor().fit(bad)
    with pytest.raises(error, match=message):
        NeuralODERegressor(max_epochs=1).fit(bad, np.zeros(bad.shape[0] if hasattr(bad, "shape") else len(bad)))
    for method in (swirl.predict, swirl.transform, swirl.trajectory, swirl.reference, swirl.score, swirl.solver_report):
        with pytest.raises(error, match=message):
            method(bad)
    assert not solves


def test_wrong_feature_counts_name_both(X, swirl, digits_hyper, digits):
    with pytest.raises(ValueError, match=r"X has 3 features, but HypersolverRegressor is expecting 2"):
        swirl.predict(np.ones((2, 3)))
    with pytest.raises(
        ValueError, match=r"X has samples of shape \(1, 4, 4\).* fitted on samples of shape \(1, 8, 8\)"
    ):
        digits_hyper.predict(digits[0][:, :, :4, :4])
    with pytest.raises(ValueError, match=r"n_samples=1"):
        make_regressor().fit(X[:1])
    with pytest.raises(ValueError, match=r"sample_weight.shape == \(2,\), expected \(80,\)"):
        swirl.score(X, sample_weight=[1.0, 2.0])


@pytest.mark.parametrize("method", ["predict", "transform", "trajectory", "reference", "score", "solver_report"])
def test_methods_before_fit(X, method):
    for estimator in (make_regressor(), make_classifier()):
        arguments = (X, X[:, 0]) if method == "score" else (X,)
        with pytest.raises(NotFittedError, match="Call 'fit'"):
            getattr(estimator, method)(*arguments)
    for convert in (make_regressor().with_solver, make_regressor().to_module):
        with pytest.raises(NotFittedError, match="Call 'fit'"):
            convert()


@pytest.mark.parametrize(
    "params, message",
    [
        ({"solver": "rk5"}, r"solver='rk5' is none that training knows: pass 'dopri5', .*rk4"),
        ({"validation_fraction": 0.99}, r"validation_fraction=0.99 of n_samples=5 leaves no row to train on"),
        ({"device": "cuda:7"}, r"device='cuda:7' is not available"),
        ({"rtol": 0.0}, r"'rtol' parameter"),
        ({"input_map": nn.Linear(7, 3)}, r"input_map fails on an input of shape \(2, 2\)"),
        ({"vector_field": nn.Linear(3, 3)}, r"vector_field\(t, z\) fails on a state"),
        ({"output_map": nn.Linear(7, 3)}, r"output_map fails on a state of shape \(2, 10\)"),
        (
            {"output_map": nn.Sequential(nn.Flatten(), nn.Linear(10, 3))},
            r"shape \(n_samples, 2\) for this y, got \(2, 3\)",
        ),
    ],
    ids=lambda value: str(value)[:30],
)
def test_training_a_neural_ode(X, params, message):
    with pytest.raises(ValueError, match=message):
        NeuralODEClassifier(**params).fit(X[:5], [0, 1, 0, 1, 0])


def test_targets(X):
    with pytest.raises(ValueError, match="y contains NaN"):
        NeuralODEClassifier().fit(X[:2], [0.0, np.nan])
    with pytest.raises(ValueError, match=r"y cannot be None|requires y to be passed"):
        NeuralODERegressor().fit(X, None)
    with pytest.raises(ValueError, match=r"inconsistent numbers of samples: \[80, 2\]"):
        NeuralODERegressor().fit(X, [0.0, 1.0])
    with pytest.raises(ValueError, match="nothing to fit"):
        NeuralODERegressor(_zero, input_map=_same, output_map=_output).fit(X, X[:, 0])
    with pytest.raises(ValueError, match=r"no default input_map for samples of shape \(2, 3\)"):
        NeuralODERegressor().fit(np.zeros((5, 2, 3)), np.arange(5.0))


def _zero(t, z):
    return 0 * z


def _same(x):
    return x


def _output(z):
    return z[:, :1]


# ---------------------------------------------------------------------- things that go wrong in the middle


def test_ctrl_c_in_training_keeps_the_best_weights_and_is_raised(X):
    hyper = make_regressor(max_epochs=50, callbacks=[StopsAt(4)])
    with pytest.raises(KeyboardInterrupt):
        hyper.fit(X)
    assert len(hyper.history_) == 4 and np.isfinite(hyper.score(X))
    slow = NeuralODERegressor(max_epochs=50, callbacks=[StopsAt(2)], random_state=0)
    with pytest.raises(KeyboardInterrupt):
        slow.fit(X, X[:, 0])
    assert len(slow.history_) == 2 and slow.predict(X).shape == (80,)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_reference_solve_leaves_the_estimator_as_it_was(X, monkeypatch, error):
    def interrupted(*args, **kwargs):
        raise error

    fitted, unfitted = make_regressor(max_epochs=1).fit(X), make_regressor()
    expected, before = fitted.predict(X), dict(vars(fitted))
    monkeypatch.setattr(REFERENCE_SOLUTION, interrupted)
    for hyper in (fitted, unfitted):
        with pytest.raises(error):
            hyper.fit(X[:, ::-1])
    assert vars(fitted) == before and not [name for name in vars(unfitted) if name.endswith("_")]
    np.testing.assert_array_equal(fitted.predict(X), expected)


class Unbounded(nn.Module):
    """A correction that Adam can drive to infinity in one step."""

    def __init__(self):
        super().__init__()
        self.size = nn.Parameter(torch.ones(2, dtype=torch.float64))

    def forward(self, eps, s, z, stages, x=None):
        return self.size.cosh() * z


class Growth(nn.Module):
    def __init__(self):
        super().__init__()
        self.rate = nn.Parameter(torch.zeros(2))

    def forward(self, t, z):
        return self.rate * z


def test_divergence_names_the_learning_rate_and_loses_nothing(X):
    with pytest.raises(TrainingDivergedError, match=r"diverged in epoch \d.*Lower lr \(now 1e\+30\)"):
        make_regressor(correction=Unbounded(), lr=1e30).fit(X)
    slow = NeuralODERegressor(Growth(), input_map=nn.Identity(), max_epochs=1, warm_start=True).fit(X, X[:, 0])
    expected = slow.predict(X)
    with pytest.raises(TrainingDivergedError, match=r"diverged in epoch \d.*Lower lr \(now 1e\+30\)"):
        slow.set_params(lr=1e30, max_epochs=3).fit(X, X[:, 0])
    with pytest.raises(TrainingDivergedError, match=r"diverged in epoch \d.*Lower lr \(now 1e\+30\)"):
        for _ in range(4):
            slow.partial_fit(X, X[:, 0])
    assert np.isfinite(expected).all() and np.isfinite(slow.predict(X)).all()


def test_a_fit_that_never_beats_its_base_solver_warns(X):
    with pytest.warns(UserWarning, match=r"no epoch was better than the base solver.*Lower lr"):
        make_regressor(lr=1e6).fit(X)


def test_a_failed_refit_keeps_the_classes(X):
    hyper = make_classifier().fit(X)
    labels = hyper.predict(X)
    with pytest.raises(ValueError, match="one a class"):
        copy.copy(hyper).set_params(classes=[0, 1]).fit(X)
    with pytest.raises(ValueError, match="one a class"):
        hyper.set_params(classes=[0, 1]).fit(X)
    np.testing.assert_array_equal(hyper.predict(X), labels)


def test_auto_has_no_parameters_to_search():
    with pytest.raises(
        ValueError, match=r"correction__hidden: correction='auto' has no parameters; pass .*MLPCorrection"
    ):
        HypersolverRegressor(lambda t, z: -z).set_params(correction__hidden=8)
    changed = HypersolverRegressor(lambda t, z: -z).set_params(correction=MLPCorrection(), correction__hidden=8)
    assert changed.correction.hidden == 8
