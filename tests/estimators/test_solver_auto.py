"""solver="auto": a cheap solver in training, raised where it lies, and dopri5 at the end."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from interruptions import Stops, interrupted
from skorch.callbacks import Callback, Checkpoint, EarlyStopping, LoadInitState
from small_flows import make_flow, two_blobs
from torch import nn

from sklearn_hyper import ContinuousNormalizingFlow, NeuralODEClassifier, NeuralODERegressor, load
from sklearn_hyper.estimators._base import SolverAgreementWarning
from sklearn_hyper.modules import MLPVectorField
from sklearn_hyper.numerics import ReferenceSolveError
from sklearn_hyper.training.nets import draw_seed
from sklearn_hyper.training.solver_control import RUNGS, TrainingSolver, count_polish
from sklearn_hyper.training.splits import split_rows

FLOW = {"objective": "likelihood", "solver": "auto", "hidden": 8, "lr": 2e-2, "batch_size": 32}


class Growth(nn.Module):
    """z' = a z: a method of order p, K steps, multiplies z by the Taylor polynomial of exp(a / K), K times."""

    def __init__(self, rate=0.0):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(float(rate)).double())

    def forward(self, t, z):
        return self.rate * z


class Counting(MLPVectorField):
    """Counts the calls of all copies."""

    calls = 0

    def forward(self, t, z):
        Counting.calls += 1
        return super().forward(t, z)


class Calls(Callback):
    """Notes how many calls there were when training began and ended."""

    def on_train_begin(self, net, **kwargs):
        self.begin = Counting.calls

    def on_train_end(self, net, **kwargs):
        self.end = Counting.calls


def growth(factor, rate=0.0, **params):
    """Train z' = a z to multiply by ``factor`` over the span: the output is scaled to y, whose deviation is x's."""
    x = np.linspace(-1, 1, 80)[:, None]
    x /= factor * x.std()
    defaults = {"solver": "auto", "input_map": nn.Identity(), "output_map": nn.Identity(), "random_state": 0, "lr": 0.1}
    model = NeuralODERegressor(Growth(rate), **defaults | {"max_epochs": 80, "batch_size": 24} | params)
    return model.fit(x, x[:, 0]), model.neural_ode_.vector_field.rate.item()


def solvers(model):
    return [(row["solver"], row["n_steps"]) for row in model.solver_history_]


def places(model):
    """Where each solver stands among the rungs; dopri5 is the last."""
    return [len(RUNGS) if row[0] == "dopri5" else RUNGS.index(row) for row in solvers(model)]


@pytest.fixture(scope="module")
def X():
    return np.random.default_rng(0).uniform(-1, 1, (90, 2)).astype(np.float32)


def classifier(X, **params):
    y = (X[:, 0] * X[:, 1] > 0).astype(int)
    model = NeuralODEClassifier(**{"solver": "auto", "max_epochs": 8, "batch_size": 24, "random_state": 0} | params)
    return model.fit(X, y)


def flow(**params):
    return make_flow(**FLOW | {"max_epochs": 4} | params).fit(two_blobs(150))


KINDS = {
    "classifier": lambda **params: classifier(np.random.default_rng(0).normal(size=(90, 2)), **params),
    "flow": flow,
}
kinds = pytest.mark.parametrize("kind", KINDS)


# ---------------------------------------------------------------------- what it learns
def test_a_growth_that_euler_cannot_learn_raises_the_solver_and_is_learned():
    """Euler's single step multiplies by 1 + a, so that it learns a = e^2 - 1 = 6.4 where the truth is a = 2."""
    with pytest.warns(SolverAgreementWarning, match="has learned its solver's errors"):
        _, lie = growth(math.e**2, solver="euler", n_steps=1, lr=0.3)
    assert lie == pytest.approx(math.e**2 - 1, abs=0.2)
    model, rate = growth(math.e**2)
    assert rate == pytest.approx(2.0, abs=0.01)
    assert solvers(model)[0] == ("euler", 1) and solvers(model)[-1] == ("dopri5", None)
    assert max(places(model)[:-1]) > 1
    for row, before, after in zip(model.solver_history_[1:], places(model), places(model)[1:], strict=False):
        assert after < before if row["why"] == "a cheaper one would do" else after > before
    assert model.agreement_.certified and model.agreement_.gap < 1e-4


def test_a_field_that_becomes_easy_gets_a_cheap_solver_again():
    model, rate = growth(1.1, rate=1.5, lr=0.3)
    assert rate == pytest.approx(math.log(1.1), abs=0.01)
    assert places(model)[0] > 3 > places(model)[-2]
    assert "a cheaper one would do" in [row["why"] for row in model.solver_history_]


def test_a_field_that_becomes_hard_is_learned_too():
    model, rate = growth(200.0, lr=0.3)
    assert rate == pytest.approx(math.log(200.0), rel=0.01)
    assert max(places(model)[:-1]) > 4 and model.agreement_.certified


def test_the_first_solver_is_the_cheapest_whose_gap_is_half_of_what_is_allowed():
    rate, factor = 0.7, 3.0
    model, _ = growth(factor, rate=rate, max_epochs=1)
    row = model.solver_history_[0]

    def loss(multiplier):
        return (multiplier - factor) ** 2  # times the mean of x**2 over the probe's rows

    def gap(rung):
        order = {"euler": 1, "midpoint": 2, "rk3": 3, "rk4": 4}[rung.solver]
        z = rate / rung.n_steps
        step = sum(z**k / math.factorial(k) for k in range(order + 1))
        return abs(loss(step**rung.n_steps) - loss(math.exp(rate)))

    squares = row["loss"] / loss(math.exp(rate))
    assert squares == pytest.approx(1 / factor**2, rel=0.2)
    within = [rung for rung in RUNGS if gap(rung) * squares <= row["allowed"] / 2]
    assert (row["solver"], row["n_steps"]) == within[0] != RUNGS[0]
    assert 0 < row["allowed"] <= 0.0051


def test_without_a_gap_nothing_is_raised(X):
    class Still(Growth):
        def forward(self, t, z):
            return 0 * self.rate * z

    model = NeuralODERegressor(
        Still(), input_map=nn.Identity(), solver="auto", max_epochs=30, batch_size=16, random_state=0
    ).fit(X, X[:, 0])
    assert solvers(model) == [("euler", 1), ("dopri5", None)]
    assert [row["why"] for row in model.solver_history_] == ["the start", "the polish"]
    assert model.agreement_.gap == model.agreement_.error_p99 == 0.0


def test_a_field_that_dopri5_cannot_solve_goes_back_to_weights_that_agreed(X, monkeypatch):
    by_dopri5, seen, probes = TrainingSolver.by_dopri5, [], []

    def failing(self, x, max_evaluations=None):
        if max_evaluations is not None:  # a probe
            probes.append(copy.deepcopy(self.ode.state_dict()))
            if len(probes) == 3:
                raise ReferenceSolveError.of("dopri5 failed", (), len(x))
        return by_dopri5(self, x, max_evaluations)

    class Sees(Callback):
        def on_batch_begin(self, net, training, **kwargs):
            if training:
                seen.append((len(probes), copy.deepcopy(net.module_.solver.ode.state_dict())))

    monkeypatch.setattr(TrainingSolver, "by_dopri5", failing)
    model = classifier(X, callbacks=[Sees()])
    weights = next(weights for n_probes, weights in seen if n_probes == 3)
    for name, value in weights.items():
        torch.testing.assert_close(value, probes[1][name], rtol=0, atol=0)
    row = next(row for row in model.solver_history_ if "failed" in row["why"])
    before = model.solver_history_[model.solver_history_.index(row) - 1]
    rungs = [RUNGS.index((one["solver"], one["n_steps"])) for one in (before, row)]
    assert rungs[1] == rungs[0] + 1 and row["gap"] == math.inf
    assert model.agreement_.certified


# ---------------------------------------------------------------------- what is recorded
@pytest.mark.parametrize("adjoint", [False, True])
def test_evaluations_are_those_that_the_field_saw_in_training(X, adjoint):
    calls = Calls()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        field = Counting(2, hidden=8)
    model = classifier(X, vector_field=field, input_map=nn.Identity(), callbacks=[calls], max_epochs=3, adjoint=adjoint)
    kept = model.net_.get_params()["callbacks"][-1][1]
    assert model.n_evaluations_ == kept.end - kept.begin > 100


def test_evaluations_of_a_fixed_solver_and_of_none():
    model, _ = growth(1.5, solver="rk4", n_steps=2, max_epochs=3)
    # 72 rows are three batches, and 8 held-out ones are a fourth.
    assert model.n_evaluations_ == 3 * (3 + 1) * 8
    assert not hasattr(model, "solver_history_") and not hasattr(model, "agreement_")
    assert not hasattr(make_flow(max_epochs=1).fit(two_blobs(60)), "n_evaluations_")


def test_held_out_losses_are_dopri5s(X):
    model = classifier(X)
    _, valid = split_rows(0.1, len(X), draw_seed(0))
    y = (X[:, 0] * X[:, 1] > 0).astype(int)[valid]
    loss = -np.log(model.predict_proba(X[valid])[np.arange(len(valid)), y]).mean()
    assert model.history_[-1]["valid_loss"] == pytest.approx(loss, abs=2e-3)


def test_the_agreement_and_its_bound(X):
    agreement = classifier(X).agreement_
    assert agreement.n_rows == 9 and agreement.held_out and agreement.certified
    # One of nine rows has the largest error, which is the 99th percentile: none lies above it.
    assert agreement.share_over == pytest.approx(1 - 0.05 ** (1 / 9)) or agreement.share_over < 0.5
    assert 0 < agreement.error_p99 < 1e-2 and agreement.n_evaluations >= 8
    unbound = classifier(X, validation_fraction=None).agreement_
    assert unbound.n_rows == 90 and not unbound.held_out and math.isnan(unbound.share_over)


@kinds
def test_the_same_random_state_gives_the_same(kind):
    first, second = KINDS[kind](), KINDS[kind]()
    assert first.solver_history_ == second.solver_history_
    assert first.n_evaluations_ == second.n_evaluations_ and first.agreement_ == second.agreement_


def test_the_last_steps_are_dopri5s(X):
    model = classifier(X, max_epochs=10)
    n_steps = 4 * 10  # 81 rows in batches of 24
    assert model.solver_history_[-1]["step"] == n_steps - count_polish(n_steps) < n_steps
    alone = classifier(X[:20], max_epochs=1)
    assert solvers(alone) == [("dopri5", None)]


# ---------------------------------------------------------------------- beside the rest of the estimator
@kinds
@pytest.mark.parametrize("fraction", [0.2, None])
def test_ctrl_c_leaves_the_best_weights_by_dopri5(kind, fraction):
    stops = Stops(4, spoil=3)
    model = KINDS[kind]
    estimators = []
    original = {"classifier": NeuralODEClassifier, "flow": ContinuousNormalizingFlow}[kind]
    fit = original.fit
    with pytest.MonkeyPatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(original, "fit", lambda self, *data: (estimators.append(self), fit(self, *data))[1])
        model(max_epochs=20, callbacks=[stops], validation_fraction=fraction)
    (estimator,) = estimators
    key = "valid_loss" if fraction else "dopri5_loss"
    losses = [row[key] for row in estimator.net_.history]
    best = stops.weights[int(np.argmin(losses))]
    for name, value in estimator.net_.module_.state_dict().items():
        torch.testing.assert_close(value, best[name], rtol=0, atol=0)
    assert estimator.agreement_ is None and estimator.solver_history_ and estimator.n_evaluations_ > 0


def test_ctrl_c_in_the_last_comparison_keeps_the_fit(X, monkeypatch):
    model = NeuralODEClassifier(solver="auto", max_epochs=2, random_state=0)
    monkeypatch.setattr(NeuralODEClassifier, "_certify", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, X[:, 0] > 0)
    assert len(model.history_) == 2 and np.isfinite(model.predict_proba(X)).all()


def test_partial_fit_trains_through_dopri5(X):
    y = X[:, 0] > 0
    models = [NeuralODEClassifier(solver=solver, random_state=0) for solver in ("auto", "dopri5")]
    for model in models:
        model.partial_fit(X, y).partial_fit(X, y)
    np.testing.assert_array_equal(*(model.predict_proba(X) for model in models))
    assert models[0].n_evaluations_ == models[1].n_evaluations_ and not hasattr(models[0], "solver_history_")


def test_a_fit_that_follows_leaves_nothing_of_the_last_one(X):
    y = (X[:, 0] * X[:, 1] > 0).astype(int)
    model = classifier(X).set_params(warm_start=True)
    first = model.history_[0]["train_loss"]
    assert model.fit(X, y).history_[0]["train_loss"] < first and solvers(model)[-1] == ("dopri5", None)
    model.partial_fit(X, y)
    assert not hasattr(model, "solver_history_") and not hasattr(model, "agreement_")
    model.fit(X, y)
    assert model.agreement_.certified
    model.set_params(solver="dopri5").fit(X, y)
    assert not hasattr(model, "solver_history_")


def test_a_checkpoint_resumes(tmp_path):
    def fit(**params):
        checkpoint = Checkpoint(dirname=tmp_path)
        return flow(callbacks=[checkpoint, LoadInitState(checkpoint)], **params)

    before = fit()
    after = fit()
    assert len(after.history_) == 8 and after.history_[:4] == before.history_
    assert after.score(two_blobs(300, seed=1)) > before.score(two_blobs(300, seed=1))
    assert next(row["epoch"] for row in after.solver_history_) == 5


def test_records_survive_pickles_and_model_files(X, tmp_path):
    model = classifier(X)
    for again in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model), load(model.save(tmp_path / "model"))):
        assert again.solver_history_ == model.solver_history_ and again.n_evaluations_ == model.n_evaluations_
        assert again.agreement_.gap == model.agreement_.gap


@pytest.mark.parametrize(
    "params",
    [{"trace": "rademacher"}, {"kinetic": 0.01, "jacobian": 0.01}, {"adjoint": True}, {"validation_fraction": None}],
    ids=str,
)
def test_flows_of_every_kind(params):
    trained = flow(**params)
    assert solvers(trained)[-1] == ("dopri5", None) and trained.agreement_.certified
    start = flow(**params, lr=1e-9)
    test = two_blobs(300, seed=1)
    assert trained.set_params(trace="exact").score(test) > start.set_params(trace="exact").score(test) + 0.05


# ---------------------------------------------------------------------- what it refuses, and what it warns of
def test_a_fit_that_is_not_certified_says_so():
    with pytest.warns(SolverAgreementWarning, match="this fit is not certified") as warned:
        model, _ = growth(20.0, rate=2.5, rtol=50.0, max_epochs=1)
    assert warned[0].filename == __file__  # where fit was called
    assert not model.agreement_.certified and model.agreement_.gap > 0.005


def test_a_fit_that_ends_before_dopri5_takes_over_is_measured(X):
    stopper = EarlyStopping(monitor="train_loss", patience=2, threshold=10.0, threshold_mode="abs")
    model = classifier(X, max_epochs=30, callbacks=[stopper])
    assert len(model.history_) == 3 and solvers(model)[-1][0] != "dopri5"
    assert model.agreement_.gap > 0 and model.agreement_.n_evaluations > 6


@pytest.mark.parametrize("solver", ["Auto", "dopri8", 5, None])
def test_solvers_that_are_none_are_refused(X, solver):
    with pytest.raises((TypeError, ValueError), match=r"solver=.* is none that training knows: pass 'dopri5', 'auto'"):
        classifier(X, solver=solver)
    with pytest.raises((TypeError, ValueError), match=r"a fixed-step solver \(.*rk4.*\)\.$"):
        flow(solver=solver)
