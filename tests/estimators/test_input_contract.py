"""A hypersolver takes what the fitted model takes: names, order, number and shape of features, or a pipeline's own input."""

import pickle
import warnings

import numpy as np
import pytest
import torch
from sklearn.compose import make_column_transformer
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, MinMaxScaler, OneHotEncoder, StandardScaler
from skorch import NeuralNetRegressor
from small_hypersolvers import make_regressor
from torch import nn

from sklearn_hyper import (
    ContinuousNormalizingFlow,
    ConvCorrection,
    HypersolverClassifier,
    HypersolverDensity,
    HypersolverRegressor,
    NeuralODE,
    NeuralODEClassifier,
    NeuralODERegressor,
)
from sklearn_hyper.modules import MLPVectorField

pd = pytest.importorskip("pandas")
SETTINGS = {"base_solver": "euler", "n_steps": 2, "max_epochs": 1, "max_samples": 40, "random_state": 0}
ROWS = np.random.default_rng(0).uniform(-1, 1, (40, 2))
FRAME = pd.DataFrame(ROWS, columns=["a", "b"])
SWAPPED = FRAME[["b", "a"]]
TARGET, LABELS = ROWS[:, 0] ** 2, (ROWS[:, 0] > 0).astype(int)


def fitted(kind, X):
    field = MLPVectorField(2, hidden=4) if kind is ContinuousNormalizingFlow else None
    return kind(field, max_epochs=1, random_state=0).fit(X, LABELS if kind is NeuralODEClassifier else TARGET)


KINDS = {
    NeuralODERegressor: HypersolverRegressor,
    NeuralODEClassifier: HypersolverClassifier,
    ContinuousNormalizingFlow: HypersolverDensity,
}


def message_of(call, *args):
    with pytest.raises(ValueError) as caught:
        call(*args)
    return str(caught.value)


# ---------------------------------------------------------------------- without steps before it
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "X",
    [SWAPPED, FRAME.rename(columns={"b": "c"}), FRAME.assign(c=0.0), FRAME[["a"]]],
    ids=["order", "name", "more", "fewer"],
)
def test_names_are_the_fitted_model_s_in_fit_and_after(kind, X):
    slow = fitted(kind, FRAME)
    own = slow.score_samples if kind is ContinuousNormalizingFlow else slow.predict
    expected = message_of(own, X)
    assert "feature names should match" in expected
    for form in (slow, FrozenEstimator(slow), make_pipeline(slow)):
        assert message_of(KINDS[kind](form, **SETTINGS).fit, X) == expected
    fast = KINDS[kind](slow, **SETTINGS).fit(FRAME)
    assert fast.feature_names_in_.tolist() == ["a", "b"]
    names = ["transform", "score"] + (
        ["score_samples", "solver_report"]
        if kind is ContinuousNormalizingFlow
        else ["predict", "trajectory", "reference"]
    )
    for name in names:
        labels = [LABELS] if name == "score" else []
        assert message_of(getattr(fast, name), X, *labels) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_names_are_asked_of_predictions_after_a_fit_on_an_array(kind):
    slow = fitted(kind, FRAME)
    with pytest.warns(UserWarning, match=f"X does not have valid feature names, but {kind.__name__} was fitted with"):
        fast = KINDS[kind](slow, **SETTINGS).fit(ROWS)
    assert fast.feature_names_in_.tolist() == ["a", "b"]
    assert "feature names should match" in message_of(fast.transform, SWAPPED)
    assert "feature names should match" in message_of(pickle.loads(pickle.dumps(fast)).transform, SWAPPED)
    fast.transform(FRAME)


@pytest.mark.parametrize("kind", KINDS)
def test_names_that_the_model_has_not_seen_are_warned_of(kind):
    with pytest.warns(UserWarning, match=f"X has feature names, but {kind.__name__} was fitted without feature names"):
        fast = KINDS[kind](fitted(kind, ROWS), **SETTINGS).fit(FRAME)
    assert "feature names should match" in message_of(fast.transform, SWAPPED)


@pytest.mark.parametrize("kind", KINDS)
def test_the_number_of_features_is_the_model_s(kind):
    message = rf"X has 3 features, but {kind.__name__} is expecting 2 features"
    for form in (fitted(kind, ROWS), GridSearchCV(kind(random_state=0), {"max_epochs": [1]}, cv=2).fit(ROWS, LABELS)):
        with pytest.raises(ValueError, match=message):
            KINDS[kind](form, **SETTINGS).fit(np.c_[ROWS, ROWS[:, :1]])


def test_the_shape_of_images_is_the_model_s(digits, digits_ode):
    turned = digits[0][:, :, :, :7]
    with pytest.raises(ValueError, match=r"samples of shape \(1, 8, 7\).*fitted on samples of shape \(1, 8, 8\)"):
        HypersolverClassifier(digits_ode, **SETTINGS).fit(turned)


def test_a_flow_s_names_outlast_a_fit_without_data():
    assert HypersolverDensity(
        fitted(ContinuousNormalizingFlow, FRAME), **SETTINGS
    ).fit().feature_names_in_.tolist() == ["a", "b"]


def test_a_warm_start_asks_the_model_too():
    fast = HypersolverRegressor(fitted(NeuralODERegressor, FRAME), warm_start=True, **SETTINGS).fit(FRAME)
    assert "feature names should match" in message_of(fast.fit, SWAPPED)
    fast.fit(FRAME).predict(FRAME)


# ---------------------------------------------------------------------- with steps before it
MIXED = pd.DataFrame({"a": ROWS[:, 0], "c": np.where(ROWS[:, 1] > 0, "u", "v")})


def by_name():
    return make_column_transformer((OneHotEncoder(sparse_output=False), ["c"]), (StandardScaler(), ["a"]))


def test_columns_are_taken_by_name():
    pipeline = make_pipeline(by_name(), NeuralODEClassifier(max_epochs=1, random_state=0)).fit(MIXED, LABELS)
    nested = make_pipeline(FunctionTransformer(), pipeline).fit(MIXED, LABELS)
    for model in (pipeline, FrozenEstimator(pipeline), nested):
        fast = HypersolverClassifier(model, **SETTINGS).fit(MIXED)
        expected = fast.predict_proba(MIXED)
        assert fast.n_features_in_ == 2 and fast.feature_names_in_.tolist() == ["a", "c"]
        for X in (MIXED[["c", "a"]], MIXED.assign(note="x"), MIXED.assign(note="x")[["note", "c", "a"]]):
            np.testing.assert_array_equal(fast.predict_proba(X), expected)
            np.testing.assert_array_equal(fast.transform(X), fast.transform(MIXED))
            assert fast.reference(X).shape == expected.shape and fast.score(X, LABELS) >= 0
            assert len(fast.trajectory(X)) == len(X) and len(fast.solver_report(X)) == 3
            np.testing.assert_array_equal(HypersolverClassifier(model, **SETTINGS).fit(X).predict_proba(X), expected)
        with pytest.raises(ValueError, match="columns are missing"):
            fast.predict(MIXED[["a"]])
        loaded = pickle.loads(pickle.dumps(fast))
        np.testing.assert_array_equal(loaded.predict_proba(MIXED[["c", "a"]]), expected)


def test_a_flow_takes_columns_by_name():
    slow = make_pipeline(
        make_column_transformer((StandardScaler(), ["b", "a"])), ContinuousNormalizingFlow(max_epochs=1, random_state=0)
    ).fit(FRAME)
    fast = HypersolverDensity(slow, **SETTINGS).fit(FRAME)
    np.testing.assert_array_equal(fast.score_samples(SWAPPED.assign(note="x")), fast.score_samples(FRAME))
    assert np.abs(fast.score_samples(SWAPPED) - slow.score_samples(FRAME)).mean() < 1


def test_text():
    documents = ["to be", "not to be", "be", "not"] * 10
    counts = CountVectorizer()
    dense = FunctionTransformer(lambda A: A.toarray().astype(float))
    slow = make_pipeline(counts, dense, NeuralODEClassifier(max_epochs=1, random_state=0)).fit(documents, LABELS)
    fast = HypersolverClassifier(slow, **SETTINGS).fit(documents)
    np.testing.assert_array_equal(fast.reference(documents).argmax(axis=1), slow.predict(documents))
    assert fast.predict(documents[:1]).shape == (1,) and not hasattr(fast, "n_features_in_")


def to_images(A):
    return A.reshape(len(A), 1, 2, 2)


def to_sequences(A):
    return A.reshape(len(A), 2, 2)


def test_steps_that_make_images(digits):
    X = digits[0].reshape(-1, 64)[:40]
    pipeline = make_pipeline(
        MinMaxScaler(),
        FunctionTransformer(lambda A: A.reshape(-1, 1, 8, 8)),
        NeuralODEClassifier(max_epochs=1, random_state=0),
    ).fit(X, digits[1][:40])
    fast = HypersolverClassifier(pipeline, correction=ConvCorrection(), **SETTINGS).fit(X)
    assert fast.n_features_in_ == 64 and fast.transform(X).shape[1:] == (8, 8, 8)
    np.testing.assert_allclose(fast.reference(X).argmax(axis=1), pipeline.predict(X))
    with pytest.raises(ValueError, match="X has 63 features, but MinMaxScaler is expecting 64"):
        fast.predict(X[:, 1:])


def test_steps_that_make_sequences_or_tensors():
    wide = np.c_[ROWS, ROWS[::-1]]
    ode = {"vector_field": MLPVectorField(4, hidden=4), "input_map": nn.Flatten(), "max_epochs": 1, "random_state": 0}
    for step in (
        to_sequences,
        lambda A: torch.from_numpy(to_sequences(A)),
        lambda A: torch.tensor(to_sequences(A), requires_grad=True),
    ):
        pipeline = make_pipeline(FunctionTransformer(step), NeuralODERegressor(**ode)).fit(wide, TARGET)
        fast = HypersolverRegressor(pipeline, **SETTINGS).fit(wide)
        np.testing.assert_allclose(fast.reference(wide), pipeline.predict(wide), atol=1e-4)
        with pytest.raises(ValueError, match=r"cannot reshape|samples of shape|features"):
            fast.predict(wide[:, :3])


def test_what_comes_out_of_the_steps_is_checked():
    def spoilt(how):
        return make_pipeline(FunctionTransformer(how), fitted(NeuralODERegressor, ROWS))

    for how, message in [
        (lambda A: np.where(A > 0, np.nan, A), "contains NaN"),
        (lambda A: A[:, :1], "X has 1 features, but NeuralODERegressor is expecting 2"),
        (to_images, r"features|shape"),
    ]:
        X = np.c_[ROWS, ROWS] if how is to_images else ROWS
        with pytest.raises(ValueError, match=message):
            HypersolverRegressor(spoilt(how), **SETTINGS).fit(X)


def test_names_that_steps_give_are_the_model_s():
    slow = make_pipeline(
        StandardScaler().set_output(transform="pandas"), NeuralODERegressor(max_epochs=1, random_state=0)
    )
    slow.fit(FRAME, TARGET)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fast = HypersolverRegressor(slow, **SETTINGS).fit(FRAME)
        fast.predict(FRAME)
    turned = make_pipeline(FunctionTransformer(lambda F: F[F.columns[::-1]]), slow[-1])
    assert "feature names should match" in message_of(turned.predict, FRAME)
    assert message_of(HypersolverRegressor(turned, **SETTINGS).fit, FRAME) == message_of(turned.predict, FRAME)
    assert "feature names should match" in message_of(fast.predict, SWAPPED)


def test_nets_and_bare_modules_behind_steps():
    torch.manual_seed(0)
    ode = NeuralODE(MLPVectorField(2, hidden=4), output_map=nn.Linear(2, 1))
    net = NeuralNetRegressor(ode, max_epochs=1, verbose=0, train_split=None)
    cast = FunctionTransformer(lambda A: np.asarray(A, dtype=np.float32))
    slow = make_pipeline(make_column_transformer((StandardScaler(), ["b", "a"])), cast, net).fit(
        FRAME, TARGET[:, None].astype("f4")
    )
    fast = HypersolverRegressor(slow, **SETTINGS).fit(FRAME)
    np.testing.assert_allclose(fast.reference(SWAPPED), slow.predict(FRAME), atol=1e-4)
    bare = make_regressor(make_pipeline(FunctionTransformer(lambda A: A[:, :2]), FrozenEstimator(slow[-1]))).fit(
        np.c_[ROWS, ROWS]
    )
    with pytest.raises(ValueError, match="X has 1 features, but HypersolverRegressor is expecting 2"):
        bare.predict(ROWS[:, :1])


def test_export_compares_on_what_the_pipeline_takes(tmp_path):
    pytest.importorskip("onnxscript")
    slow = make_pipeline(by_name(), NeuralODEClassifier(max_epochs=1, random_state=0)).fit(MIXED, LABELS)
    fast = HypersolverClassifier(slow, **SETTINGS).fit(MIXED)
    assert fast.export_onnx(tmp_path / "fast.onnx", X=MIXED.assign(note="x"), preprocessed=True).exists()
    with pytest.raises(ValueError, match="columns are missing"):
        fast.export_onnx(tmp_path / "none.onnx", X=MIXED[["a"]], preprocessed=True)
