"""NeuralODEClassifier and NeuralODERegressor: every way to train them."""

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_iris
from skorch.callbacks import EarlyStopping, LRScheduler
from torch import nn

from sklearn_hyper import NeuralODEClassifier, NeuralODERegressor
from sklearn_hyper.estimators import SolverAgreementWarning
from sklearn_hyper.modules import MLPVectorField
from sklearn_hyper.numerics import alpha_family


@pytest.fixture(scope="module")
def iris():
    X, y = load_iris(return_X_y=True)
    return X.astype(np.float32), np.array(["a", "b", "c"])[y]


def classifier(**params):
    return NeuralODEClassifier(**{"max_epochs": 2, "random_state": 0} | params)


class Spin(nn.Module):
    """A field whose first Euler step lands far from where dopri5 does."""

    def __init__(self):
        super().__init__()
        self.turn = nn.Parameter(torch.tensor([[0.0, -6.0], [6.0, 0.0]]))

    def forward(self, t, z):
        return z @ self.turn.T


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"adjoint": True},
        {"solver": "rk4", "n_steps": 4},
        {"solver": alpha_family(0.7), "n_steps": 6},
        {"t_span": (1.0, 0.0)},
        {"validation_fraction": None},
        {"optimizer": torch.optim.SGD, "lr": 0.1},
    ],
    ids=lambda params: " ".join(map(str, params)) or "default",
)
def test_each_way_of_training_learns(iris, params):
    first = classifier(max_epochs=4, **params).fit(*iris)
    losses = [row["train_loss"] for row in first.history_]
    assert len(losses) == 4 and losses[-1] < losses[0]
    assert set(first.predict(iris[0])) <= {"a", "b", "c"}
    np.testing.assert_allclose(first.predict_proba(iris[0]).sum(axis=1), 1, rtol=1e-6)
    assert not first.neural_ode_.training


def test_adjoint_training_takes_the_steps_of_backpropagation(iris):
    """Both differentiate one solve; they differ by the adjoint's own discretisation error."""
    tight = {"rtol": 1e-6, "atol": 1e-6, "max_epochs": 1}
    plain, adjoint = (classifier(adjoint=flag, **tight).fit(*iris).predict_proba(iris[0]) for flag in (False, True))
    np.testing.assert_allclose(adjoint, plain, atol=1e-3)


def test_predictions_are_the_modules_own(iris):
    fitted = classifier().fit(*iris)
    with torch.no_grad():
        logits = fitted.neural_ode_(torch.from_numpy(iris[0]), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(fitted.predict_proba(iris[0]), logits.softmax(dim=1).numpy(), atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_default_modules_take_the_dtype_of_X(vectors, dtype):
    X, y = vectors
    fitted = NeuralODERegressor(max_epochs=1).fit(X.astype(dtype), y)
    assert str(fitted.neural_ode_.dtype) == f"torch.{dtype}" and fitted.predict(X).dtype == dtype


def test_users_modules_set_the_dtype_and_are_only_read(vectors):
    field = MLPVectorField(3, hidden=4)
    before = {name: value.clone() for name, value in field.state_dict().items()}
    fitted = NeuralODERegressor(field, input_map=nn.Identity(), max_epochs=1).fit(*vectors)
    assert fitted.neural_ode_.dtype == torch.float32
    assert field.training and all(torch.equal(before[name], value) for name, value in field.state_dict().items())


@pytest.mark.parametrize("n_outputs", [1, 2])
def test_regressor_predicts_in_the_shape_and_units_of_y(vectors, n_outputs):
    X, y = vectors
    many = 1e4 + 1e3 * np.column_stack([y] * n_outputs)
    target = many[:, 0] if n_outputs == 1 else many
    fitted = NeuralODERegressor(max_epochs=3, random_state=0).fit(X, target)
    assert fitted.predict(X).shape == target.shape
    assert abs(fitted.predict(X).mean() - target.mean()) < 500


def test_early_stopping_and_schedules_of_the_user(iris):
    stopped = classifier(max_epochs=50, lr=1e-9, callbacks=[EarlyStopping(patience=2, threshold=0.5)]).fit(*iris)
    assert len(stopped.history_) < 10
    callbacks = [("rate", LRScheduler("StepLR", step_size=1, gamma=0.1))]
    scheduled = classifier(max_epochs=3, callbacks=callbacks).fit(*iris)
    assert scheduled.net_.optimizer_.param_groups[0]["lr"] == pytest.approx(scheduled.lr * 0.1**3)


def test_warm_start_goes_on_and_a_plain_fit_starts_anew(iris):
    model = classifier(warm_start=True).fit(*iris)
    first = model.history_[0]["train_loss"]
    assert model.fit(*iris).history_[0]["train_loss"] < first
    assert model.set_params(warm_start=False).fit(*iris).history_[0]["train_loss"] == pytest.approx(first)


def test_partial_fit_goes_on_and_knows_all_classes_from_the_first_call(iris):
    X, y = iris
    model = classifier().partial_fit(X[:60], y[:60], classes=["c", "b", "a"])
    assert model.classes_.tolist() == ["a", "b", "c"]
    before = model.predict_proba(X)
    losses = [model.partial_fit(X, y).history_[-1]["train_loss"] for _ in range(4)]
    assert losses[-1] < losses[0] and not np.allclose(model.predict_proba(X), before)
    with pytest.raises(ValueError, match=r"labels \['d'\] that are not among classes_ .*'c'"):
        model.partial_fit(X[:2], ["a", "d"])


def test_training_with_too_few_fixed_steps_warns_that_dopri5_disagrees():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 2)).astype(np.float32)
    y = X[:, 0] > 0
    coarse = classifier(
        vector_field=Spin(), input_map=nn.Identity(), solver="euler", n_steps=1, validation_fraction=0.5, max_epochs=5
    )
    with pytest.warns(SolverAgreementWarning, match=r"'euler' \(n_steps=1\) and 0\.\d+ with dopri5.*Raise n_steps"):
        coarse.fit(X, y)
    clone(coarse).set_params(solver="rk4", n_steps=60).fit(X, y)


def test_same_random_state_same_result_and_global_generators_as_found(iris):
    states = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    one, two, other = (classifier(random_state=seed).fit(*iris).predict_proba(iris[0]) for seed in (1, 1, 2))
    classifier(random_state=None, max_epochs=1).fit(*iris)
    np.testing.assert_array_equal(one, two)
    assert not np.allclose(one, other)
    assert torch.equal(states[0], torch.random.get_rng_state()) and (states[1] == np.random.get_state()[1]).all()


def test_digits_model_is_invariant_to_subsets_order_and_refits(digits_ode, digits):
    X, _ = digits
    probabilities = digits_ode.predict_proba(X)
    order = np.random.default_rng(0).permutation(len(X))
    np.testing.assert_allclose(digits_ode.predict_proba(X[order]), probabilities[order], atol=1e-5)
    np.testing.assert_allclose(
        np.vstack([digits_ode.predict_proba(row[None]) for row in X[:20]]), probabilities[:20], atol=1e-5
    )
    np.testing.assert_array_equal(clone(digits_ode).fit(*digits).predict_proba(X), probabilities)
