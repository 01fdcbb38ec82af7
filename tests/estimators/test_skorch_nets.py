"""Hypersolvers of skorch nets predict what the nets predict, whatever the module's output means to these."""

import json

import numpy as np
import pytest
import torch
from skorch import NeuralNet, NeuralNetBinaryClassifier, NeuralNetClassifier, NeuralNetRegressor
from torch import nn

from sklearn_hyper import (
    ContinuousNormalizingFlow,
    HypersolverClassifier,
    HypersolverRegressor,
    NeuralODE,
    NeuralODEClassifier,
    NeuralODERegressor,
)
from sklearn_hyper.estimators._fitted_neural_ode import resolve_neural_ode
from sklearn_hyper.evaluation import agreement_scorer

# Sixteen steps of rk4 leave less than the reference's noise to learn.
pytestmark = pytest.mark.filterwarnings("ignore::sklearn_hyper.numerics.residuals.ConditioningWarning")
SETTINGS = {"base_solver": "rk4", "n_steps": 16, "max_epochs": 1, "random_state": 0}
X = np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32)
TWO, THREE = (X[:, 0] > 0).astype(np.int64), (X[:, 0] > 0).astype(np.int64) + (X[:, 1] > 0)


class Field(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))

    def forward(self, t, z):
        return self.net(z)


class Column(nn.Module):
    """Outputs of shape (n,)."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 1)

    def forward(self, z):
        return self.linear(z)[:, 0]


def train(kind, head, y, **params):
    torch.manual_seed(0)
    net = kind(NeuralODE(Field(), output_map=head), max_epochs=3, lr=0.1, verbose=0, train_split=None, **params)
    return net.fit(X, y)


def softened(logits):
    return torch.softmax(logits / 3, dim=1)


def doubled(output):
    return 2 * output


class Labelled(NeuralNetClassifier):
    """Looks its labels up, as many do."""

    def predict(self, X):
        return self.classes_[super().predict(X)]


class Tempered(NeuralNetClassifier):
    def predict_proba(self, X):
        return 0.9 * super().predict_proba(X) + 0.05


class Clipped(NeuralNetRegressor):
    def predict(self, X):
        return np.maximum(super().predict(X), 0)


class Cautious(NeuralNetClassifier):
    def predict(self, X):
        return (self.predict_proba(X)[:, 1] > 0.9).astype(np.int64)


def softmax_head(n):
    return nn.Sequential(nn.Linear(2, n), nn.Softmax(dim=-1))


FLOAT = TWO.astype(np.float32)
CLASSIFIERS = {
    "cross entropy": lambda: train(NeuralNetClassifier, nn.Linear(2, 3), THREE, criterion=nn.CrossEntropyLoss),
    "softmax": lambda: train(NeuralNetClassifier, softmax_head(3), THREE),
    "no nonlinearity": lambda: train(
        NeuralNetClassifier, nn.Linear(2, 3), THREE, criterion=nn.CrossEntropyLoss, predict_nonlinearity=None
    ),
    "own nonlinearity": lambda: train(
        NeuralNetClassifier, nn.Linear(2, 3), THREE, criterion=nn.CrossEntropyLoss, predict_nonlinearity=softened
    ),
    "one logit": lambda: train(NeuralNetBinaryClassifier, Column(), FLOAT),
    "one logit, a column": lambda: train(NeuralNetBinaryClassifier, nn.Linear(2, 1), FLOAT, threshold=0.7),
    "one probability": lambda: train(
        NeuralNetBinaryClassifier, nn.Sequential(Column(), nn.Sigmoid()), FLOAT, criterion=nn.BCELoss, threshold=0.3
    ),
    "labels with a gap": lambda: train(NeuralNetClassifier, softmax_head(3), 2 * TWO),
    "labels of its own": lambda: train(
        Labelled, nn.Linear(2, 2), TWO, criterion=nn.CrossEntropyLoss, classes=np.array(["no", "yes"])
    ),
    "labels that it does not predict": lambda: train(
        NeuralNetClassifier, nn.Linear(2, 2), TWO, criterion=nn.CrossEntropyLoss, classes=["no", "yes"]
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_probabilities_and_labels_are_the_net_s(name):
    net = CLASSIFIERS[name]()
    fast = HypersolverClassifier(net, **SETTINGS).fit(X)
    np.testing.assert_allclose(fast.predict_proba(X), net.predict_proba(X), atol=2e-4)
    np.testing.assert_array_equal(fast.predict(X), net.predict(X))
    assert set(np.unique(net.predict(X))) <= set(fast.classes_)
    # All that labels are read off agrees: outputs of the reference, the report, the scorer.
    np.testing.assert_allclose(fast.reference(X), net.forward(X).numpy().reshape(fast.reference(X).shape), atol=1e-4)
    np.testing.assert_allclose(fast.trajectory(X, output=True)[:, -1], fast.reference(X), atol=1e-3)
    assert fast.solver_report(X, net.predict(X))[-1].accuracy == agreement_scorer(fast, X) == 1
    assert fast.score(X, net.predict(X)) == 1


def test_a_threshold_moves_labels():
    labels = [
        HypersolverClassifier(train(NeuralNetBinaryClassifier, Column(), FLOAT, threshold=t), **SETTINGS)
        .fit(X)
        .predict(X)
        for t in (0.0, 0.5, 1.0)
    ]
    assert labels[0].all() and not labels[2].any() and 0 < labels[1].mean() < 1


def test_classes_of_the_hypersolver_come_before_the_net_s():
    net = CLASSIFIERS["softmax"]()
    fast = HypersolverClassifier(net, classes=["a", "b", "c"], **SETTINGS).fit(X)
    np.testing.assert_array_equal(fast.predict(X), np.array(["a", "b", "c"])[net.predict(X)])


def test_a_plain_net_needs_labels_and_keeps_its_probabilities():
    net = train(NeuralNet, nn.Linear(2, 3), THREE, criterion=nn.CrossEntropyLoss)
    with pytest.raises(ValueError, match=r"classes=None.*brings no labels"):
        HypersolverClassifier(net, **SETTINGS).fit(X)
    fast = HypersolverClassifier(net, classes=[0, 1, 2], **SETTINGS).fit(X)
    np.testing.assert_allclose(fast.predict_proba(X), net.predict_proba(X), atol=2e-4)
    np.testing.assert_array_equal(fast.predict(X), net.predict(X).argmax(axis=1))


REGRESSORS = {
    "plain": lambda: train(NeuralNetRegressor, nn.Linear(2, 1), X[:, :1]),
    "flat": lambda: train(NeuralNetRegressor, Column(), X[:, 0]),
    "function": lambda: train(NeuralNetRegressor, nn.Linear(2, 1), X[:, :1], predict_nonlinearity=doubled),
    "module": lambda: train(NeuralNetRegressor, nn.Linear(2, 1), X[:, :1], predict_nonlinearity=nn.ELU()),
    "plain net": lambda: train(NeuralNet, nn.Linear(2, 2), X, criterion=nn.MSELoss, predict_nonlinearity=torch.exp),
}


@pytest.mark.parametrize("name", REGRESSORS)
def test_regressions_are_the_net_s(name):
    net = REGRESSORS[name]()
    fast = HypersolverRegressor(net, **SETTINGS).fit(X)
    expected = net.predict(X)
    for found in (fast.predict(X), fast.reference(X), fast.trajectory(X, output=True)[:, -1]):
        np.testing.assert_allclose(found, expected, atol=1e-3)
    assert fast.score(X) > -1e-2
    np.testing.assert_array_equal(net.predict(X), expected)  # the net is left alone


@pytest.mark.parametrize(
    "kind, hypersolver, method",
    [
        (Tempered, HypersolverClassifier, "predict_proba"),
        (Cautious, HypersolverClassifier, "predict"),
        (Clipped, HypersolverRegressor, "predict"),
    ],
)
def test_methods_of_its_own_are_refused_before_the_fit(kind, hypersolver, method, solves):
    head, y = (nn.Linear(2, 1), X[:, :1]) if kind is Clipped else (softmax_head(2), TWO)
    net = train(kind, head, y)
    with pytest.raises(
        TypeError, match=f"a {kind.__name__} whose {method} gives.*has a {method} of.*Pass predict_nonlinearity="
    ):
        hypersolver(net, **SETTINGS).fit(X)
    assert not solves


class Halved(NeuralODERegressor):
    def predict(self, X):
        return super().predict(X) / 2


class Reluctant(NeuralODEClassifier):
    def predict(self, X):
        return np.zeros(len(X), dtype=int)


def test_subclasses_of_our_own_with_a_predict_of_their_own_are_refused(solves):
    for kind, y, hypersolver in ((Halved, X[:, 0], HypersolverRegressor), (Reluctant, TWO, HypersolverClassifier)):
        with pytest.raises(TypeError, match=rf"a {kind.__name__} whose predict gives.*neural_ode=model\.neural_ode_"):
            hypersolver(kind(max_epochs=2, random_state=0).fit(X, y), **SETTINGS).fit(X)
    assert max(solve.n_rows for solve in solves) == 32  # the rows that are compared, and no others


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # of the compiler itself
def test_a_compiled_net_is_taken_by_its_module():
    net = CLASSIFIERS["softmax"]()
    module = net.module_
    net.module_ = torch.compile(module)  # as compile=True does
    assert resolve_neural_ode(net).module is module


def test_a_file_gives_the_net_s_probabilities(tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    net = CLASSIFIERS["one logit, a column"]()
    fast = HypersolverClassifier(net, **SETTINGS | {"n_steps": 4}).fit(X)
    session = runtime.InferenceSession(fast.export_onnx(tmp_path / "fast.onnx", X=X))
    np.testing.assert_allclose(session.run(["probabilities"], {"X": X})[0], fast.predict_proba(X), atol=1e-5)
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["classes"]) == [0, 1] and float(metadata["threshold"]) == 0.7


@pytest.mark.parametrize("estimator", [
    NeuralODEClassifier(max_epochs=1, random_state=0),
    NeuralODERegressor(solver="auto", max_epochs=1, random_state=0),
    ContinuousNormalizingFlow(max_epochs=1, random_state=0),
    HypersolverRegressor(lambda t, z: -z, base_solver="heun", n_steps=2, max_epochs=1, random_state=0),
], ids=lambda estimator: type(estimator).__name__)  # fmt: skip
def test_a_net_holds_no_set_that_may_be_pickled_in_another_order(estimator):
    """A copy of a fitted estimator had another joblib.hash, in some processes: two names of a set may change places."""
    X = np.random.default_rng(0).normal(size=(20, 2))
    estimator.fit(X, (X[:, 0] > 0).astype(int))
    sets = {name: value for name, value in vars(estimator.net_).items() if isinstance(value, set)}
    assert "_params_to_validate" in sets  # skorch's
    assert all(len(value) < 2 for value in sets.values()), sets
