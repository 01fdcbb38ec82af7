"""What hypersolvers take: fitted estimators, modules and fields, and arrays of any kind."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch import NeuralNetClassifier, NeuralNetRegressor
from small_hypersolvers import Swirl, ToLogits, make_classifier, make_learner, make_regressor, spiral
from torch import nn

from sklearn_hyper import (
    HypersolverClassifier,
    HypersolverRegressor,
    NeuralODE,
    NeuralODERegressor,
)


# ---------------------------------------------------------------------- Neural ODEs
def _pipeline(data):
    return make_pipeline(StandardScaler(), NeuralODERegressor(max_epochs=1, random_state=0)).fit(*data)


def _search(data):
    return GridSearchCV(NeuralODERegressor(max_epochs=1, random_state=0), {"lr": [1e-3]}, cv=2).fit(*data)


def _search_of_pipelines(data):
    return GridSearchCV(_pipeline(data), {"neuraloderegressor__lr": [1e-3]}, cv=2).fit(*data)


def _nested(data):
    """Two scalers, one inside the other's pipeline."""
    return Pipeline([("scale", StandardScaler()), ("search", _search_of_pipelines(data))]).fit(*data)


def _skorch(data):
    torch.manual_seed(0)
    ode = NeuralODE(MLPField(), output_map=nn.Linear(3, 1))
    X, y = (np.asarray(a, dtype=np.float32) for a in data)
    return NeuralNetRegressor(ode, max_epochs=1, verbose=0, train_split=None).fit(X, y[:, None])


class MLPField(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3))

    def forward(self, t, z):
        return self.net(z)


@pytest.mark.parametrize("build", [_pipeline, _search, _search_of_pipelines, _nested, _skorch])
@pytest.mark.parametrize("frozen", [False, True], ids=["direct", "frozen"])
def test_fitted_estimators_predict_as_the_original_does(vectors, build, frozen):
    X = vectors[0].astype(np.float32)
    original = build((X, vectors[1]))
    expected = original.predict(X)
    hyper = HypersolverRegressor(
        FrozenEstimator(original) if frozen else original, base_solver="euler", n_steps=4, max_epochs=5, random_state=0
    )
    predicted = hyper.fit(X).predict(X)
    assert predicted.shape == expected.shape == hyper.reference(X).shape
    np.testing.assert_allclose(hyper.reference(X), expected, atol=1e-4)
    np.testing.assert_allclose(predicted, expected, atol=2e-2)
    np.testing.assert_array_equal(original.predict(X), expected)


def test_a_later_refit_of_the_pipeline_does_not_reach_the_hypersolver(vectors):
    X, _ = vectors
    pipeline = _pipeline(vectors)
    hyper = HypersolverRegressor(pipeline, base_solver="euler", n_steps=2, max_epochs=2, random_state=0).fit(X)
    before = hyper.predict(X)
    pipeline[0].fit(100 * X)
    np.testing.assert_array_equal(hyper.predict(X), before)


@pytest.mark.parametrize(
    "wrap", [lambda field: field, NeuralODE, lambda field: field.forward], ids=["field", "NeuralODE", "method"]
)
def test_bare_fields_and_modules_are_taken(X, wrap):
    hyper = HypersolverRegressor(wrap(Swirl()), base_solver="euler", n_steps=2, max_epochs=2, random_state=0).fit(X)
    assert hyper.predict(X).shape == X.shape


def test_classifiers_bring_their_labels_and_bare_modules_need_them(digits, digits_ode, digits_hyper, X):
    np.testing.assert_array_equal(digits_hyper.classes_, digits_ode.classes_)
    assert np.mean(digits_hyper.predict(digits[0]) == digits_ode.predict(digits[0])) > 0.95
    np.testing.assert_allclose(digits_hyper.predict_proba(digits[0]), digits_ode.predict_proba(digits[0]), atol=0.05)
    assert digits_hyper.score(*digits) == np.mean(digits_hyper.predict(digits[0]) == digits[1])
    assert set(make_classifier().fit(X).predict(X)) <= {"a", "b", "c"}


def test_a_skorch_classifier_brings_its_labels(vectors):
    X = vectors[0].astype(np.float32)
    net = NeuralNetClassifier(
        NeuralODE(MLPField(), output_map=nn.Linear(3, 2)), max_epochs=1, verbose=0, train_split=None
    )
    net.set_params(criterion=nn.CrossEntropyLoss).fit(X, (X[:, 0] > 0).astype(np.int64))
    hyper = HypersolverClassifier(net, base_solver="euler", n_steps=2, max_epochs=2, random_state=0).fit(X)
    assert hyper.classes_.tolist() == [0, 1] and hyper.predict(X).shape == (90,)


def test_data_controlled_fields_read_the_raw_input(X):
    ode = NeuralODE(lambda t, z, x: x[:, :1] * z, data_controlled=True)
    hyper = make_learner(ode, n_steps=4, max_epochs=30).fit(X)
    np.testing.assert_allclose(hyper.predict(X), X * np.exp(X[:, :1]), atol=0.05)


class Hamiltonian(nn.Module):
    """Differentiates its energy inside, as Hamiltonian and gradient-flow fields do."""

    def forward(self, t, z):
        with torch.enable_grad():
            q = z if z.requires_grad else z.detach().requires_grad_(True)
            energy = (1 - q[:, 0].cos() + q[:, 1].pow(2) / 2).sum()
            (slope,) = torch.autograd.grad(energy, q, create_graph=True)
        return torch.stack([slope[:, 1], -slope[:, 0]], dim=1)


def test_a_field_may_differentiate_inside(X):
    fast = make_regressor(Hamiltonian()).fit(X)
    assert np.isfinite(fast.predict(X)).all() and np.isfinite(fast.score(X))


def test_a_state_may_have_no_axis_but_the_batchs(X):
    fast = make_regressor(NeuralODE(lambda t, z: -z, input_map=lambda x: x[:, 0])).fit(X)
    assert fast.transform(X).shape == (len(X),)


def test_a_module_inside_a_function_is_refused(X):
    net = nn.Linear(2, 2)
    with pytest.raises(
        TypeError, match=r"vector_field is a function that calls the module net.*Pass the module itself"
    ):
        make_regressor(lambda t, z: net(z)).fit(X)


def test_logits_need_one_column_a_class(X):
    with pytest.raises(ValueError, match=r"logits of shape \(n_samples, 2\), one a class, got \(2, 3\)"):
        make_classifier(classes=["a", "b"]).fit(X)
    with pytest.raises(ValueError, match=r"classes=None.*pass classes=\[\.\.\.\] in the order of the logits"):
        HypersolverClassifier(NeuralODE(Swirl(), output_map=ToLogits())).fit(X)


def test_features_are_those_that_enter_the_pipeline(vectors):
    features, targets = vectors
    wide = np.hstack([features, features[:, :1]])
    steps = make_pipeline(PCA(2), NeuralODERegressor(max_epochs=2, random_state=0)).fit(wide, targets)
    fast = make_regressor(steps).fit(wide)
    assert fast.n_features_in_ == wide.shape[1]
    with pytest.raises(ValueError, match=f"{wide.shape[1] - 1} features, but PCA is expecting"):
        fast.predict(wide[:, :-1])


# ---------------------------------------------------------------------- rows
_CONVERSIONS = {
    "list": lambda X: X.tolist(),
    "tensor": torch.from_numpy,
    "grad tensor": lambda X: torch.from_numpy(X).double().requires_grad_(),
    "read-only": lambda X: _flagged(X),
    "negative strides": lambda X: X[::-1, ::-1].copy()[::-1, ::-1],
    "Fortran": np.asfortranarray,
    "DataFrame": lambda X: pytest.importorskip("pandas").DataFrame(X, columns=list("ab")),
}


def _flagged(X):
    X = X.copy()
    X.setflags(write=False)
    return X


@settings(max_examples=15)
@given(
    n=st.integers(1, 40),
    dtype=st.sampled_from(["float32", "float64", "int64", "int8", "float16", "bool"]),
    conversion=st.sampled_from(sorted(set(_CONVERSIONS) - {"DataFrame"})),
)
def test_arrays_of_any_kind_give_the_same_prediction(swirl, n, dtype, conversion):
    rows = (np.arange(2 * n).reshape(n, 2) % 3).astype(dtype)
    predicted = swirl.predict(_CONVERSIONS[conversion](rows))
    assert predicted.shape == (n, 2) and predicted.dtype == np.float64
    np.testing.assert_array_equal(predicted, swirl.predict(rows.astype(np.float64)))


def test_frames_and_memory_maps(X, tmp_path):
    frame = _CONVERSIONS["DataFrame"](X)
    hyper = make_regressor().fit(frame)
    assert hyper.feature_names_in_.tolist() == ["a", "b"]
    with pytest.raises(ValueError, match="feature names should match"):
        hyper.predict(frame[["b", "a"]])
    np.save(tmp_path / "X.npy", X)
    plain, mapped = make_regressor().fit(X), make_regressor().fit(np.load(tmp_path / "X.npy", mmap_mode="r"))
    np.testing.assert_array_equal(plain.predict(X), mapped.predict(np.load(tmp_path / "X.npy", mmap_mode="r")))
    np.testing.assert_array_equal(plain.predict(X), hyper.predict(frame))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_fields_without_tensors_compute_in_the_dtype_of_X(X, dtype):
    assert make_regressor(spiral, n_steps=8).fit(X.astype(dtype)).predict(X).dtype == dtype
