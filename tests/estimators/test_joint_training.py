"""joint=: fields that a few steps of a cheap solver solve. solver="hypersolved": corrections refitted in training."""

import copy
import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from interruptions import Stops
from sklearn.base import clone
from small_flows import make_flow, two_blobs
from torch import nn

from sklearn_hyper import MLPCorrection, NeuralODEClassifier, NeuralODERegressor, load
from sklearn_hyper.hypersolvers import Task, fit_hypersolver
from sklearn_hyper.hypersolvers.in_training import correct_in_training
from sklearn_hyper.training.refit_control import frozen
from sklearn_hyper.training.solver_control import RUNGS, TrainingSolver, count_polish

FLOW = {"objective": "likelihood", "hidden": 8, "lr": 2e-2, "batch_size": 32, "max_epochs": 4}
HYPER = {"solver": "hypersolved", "n_steps": 1, "refit_every": 4}


@pytest.fixture(scope="module")
def X():
    return np.random.default_rng(0).uniform(-1, 1, (90, 2)).astype(np.float32)


def classifier(X, **params):
    defaults = {"max_epochs": 6, "batch_size": 24, "random_state": 0, "n_steps": 1}
    return NeuralODEClassifier(**defaults | params).fit(X, (X[:, 0] * X[:, 1] > 0).astype(int))


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.neural_ode_.parameters()])


def gap_of_euler(model, X):
    """The relative error of one step of Euler's method."""
    ode, x = model.neural_ode_, torch.from_numpy(X)
    with torch.no_grad():
        z = ode.input_map(x)
        exact = ode.solve(x, rtol=1e-6)
        return float((z + ode.vector_field(torch.tensor(0.0), z) - exact).norm() / exact.norm())


# ---------------------------------------------------------------------- joint
@pytest.mark.parametrize("solver", ["dopri5", "auto"])
def test_a_joint_field_is_solved_in_fewer_steps(X, solver):
    plain, joint = (classifier(X, joint=weight, solver=solver) for weight in (0.0, 10.0))
    assert gap_of_euler(joint, X) < 0.5 * gap_of_euler(plain, X)
    assert all(row["joint_loss"] > 0 for row in joint.history_)
    assert not any("joint_loss" in row for row in plain.history_)


def test_the_joint_loss_is_the_squared_gap_of_the_base_solver():
    class Decay(nn.Module):
        def __init__(self):
            super().__init__()
            self.rate = nn.Parameter(torch.tensor(-1.0))

        def forward(self, t, z):
            return self.rate * z

    X = np.linspace(0.5, 1, 32, dtype=np.float32)[:, None]
    model = NeuralODERegressor(
        Decay(), input_map=nn.Identity(), joint=1.0, n_steps=2, rtol=1e-6, lr=1e-12, max_epochs=1, batch_size=32,
        validation_fraction=None, random_state=0,
    ).fit(X, X[:, 0])  # fmt: skip
    # Two steps of Euler's method multiply by 1/4, and states are measured in the RMS of what they are at the end.
    assert model.history_[0]["joint_loss"] == pytest.approx((0.25 * math.e - 1) ** 2, rel=1e-3)


def test_joint_0_is_a_training_without_it(X):
    given = classifier(X, joint=0.0, base_solver="rk4")
    torch.testing.assert_close(weights(given), weights(classifier(X)), rtol=0, atol=0)


def test_the_loss_of_held_out_rows_is_the_tasks_alone(X):
    model = classifier(X, joint=5.0, lr=1e-12, max_epochs=1)
    plain = classifier(X, lr=1e-12, max_epochs=1)
    assert model.history_[0]["valid_loss"] == pytest.approx(plain.history_[0]["valid_loss"], rel=1e-5)
    expected = plain.history_[0]["train_loss"] + 5.0 * model.history_[0]["joint_loss"]
    assert model.history_[0]["train_loss"] == pytest.approx(expected, rel=1e-4)


def test_a_joint_flow_is_solved_in_fewer_steps():
    x = two_blobs(150)
    plain, joint = (make_flow(**FLOW, joint=weight, n_steps=1).fit(x) for weight in (0.0, 10.0))

    def gap(flow):
        ode, rows = flow.flow_.density(), torch.from_numpy(x)
        solver = TrainingSolver(ode, flow.net_.module_.settings)
        with torch.no_grad():
            states = solver.by_rung(RUNGS[0], rows)
            return float((flow.flow_.log_prob(states) - flow.flow_.log_prob(ode.solve(rows, rtol=1e-6))).abs().mean())

    assert gap(joint) < 0.8 * gap(plain)


def test_auto_takes_no_solver_for_the_truth_that_is_as_coarse_as_the_base_solver(X):
    model = classifier(X, solver="auto", joint=1.0, n_steps=4)
    taken = [(row["solver"], row["n_steps"]) for row in model.solver_history_[:-1] if row["solver"] != "dopri5"]
    assert all(rung.n_evaluations >= 8 for rung in RUNGS if rung in taken)


def test_partial_fit_and_warm_start_are_joint_too(X):
    y = (X[:, 0] > 0).astype(int)
    model = NeuralODEClassifier(joint=1.0, n_steps=1, random_state=0).partial_fit(X, y)
    assert "joint_loss" in model.partial_fit(X, y).history_[-1]
    model.set_params(warm_start=True, max_epochs=1).fit(X, y)
    assert "joint_loss" in model.history_[-1]


# ---------------------------------------------------------------------- hypersolved
@pytest.mark.parametrize("refit_every", [None, 5])
def test_a_hypersolved_training_learns_and_ends_as_dopri5_says(X, refit_every):
    y = (X[:, 0] * X[:, 1] > 0).astype(int)
    model = classifier(X, **HYPER | {"refit_every": refit_every}, max_epochs=10)
    assert model.score(X, y) > 0.7
    assert model.agreement_.gap < 1e-3 and model.agreement_.certified
    reasons = [row["why"] for row in model.solver_history_]
    assert reasons[0] == "the start" and reasons[-1] == "the polish"
    n_batches = 10 * 4  # 81 rows in batches of 24 at most
    steps = [row["step"] for row in model.solver_history_]
    assert steps[-1] == n_batches - count_polish(n_batches)
    if refit_every is None:
        assert set(reasons[1:-1]) <= {"the field moved"} and all(step % 5 == 0 for step in steps[:-1])
    else:
        assert steps[:-1] == list(range(0, steps[-1], refit_every))


def test_the_hypersolver_left_behind_is_of_the_field_left_behind(X):
    model = classifier(X, **HYPER, max_epochs=5)
    fast, x = model.hypersolver_, torch.from_numpy(X)
    own = torch.cat([p.flatten() for p in fast.neural_ode.parameters()])
    torch.testing.assert_close(own, weights(model), rtol=0, atol=0)
    exact = model.neural_ode_.solve(x, rtol=1e-6)
    error, plain = ((one.solve(x) - exact).norm() for one in (fast, fast.without_correction()))
    assert error < plain


@pytest.mark.parametrize("correction", ["auto", "mlp"])
def test_the_loss_moves_the_field_and_never_the_correction(X, correction):
    model = classifier(X, max_epochs=1)
    ode, x = model.neural_ode_, torch.from_numpy(X)
    settings = copy.copy(model.net_.module_.settings)
    fitted = correct_in_training(ode, x, settings, None, seed=0)
    if correction == "mlp":
        fitted = fit_hypersolver(Task(ode, x), replace(fitted.settings, correction=MLPCorrection()))
    solver = TrainingSolver(ode, settings)
    kept = frozen(fitted.correction)
    solver.correct(kept)
    ode.requires_grad_(True).zero_grad()
    before = solver.n_evaluations
    solver(x).square().mean().backward()
    assert solver.n_evaluations - before == 1
    assert all(p.grad is None for p in kept.parameters())
    assert sum(p.grad.abs().sum() for p in ode.vector_field.parameters() if p.grad is not None) > 0
    expected = fitted.solve(x)  # the field has not moved since
    torch.testing.assert_close(solver(x).detach(), expected, rtol=1e-4, atol=1e-5)


def test_a_hypersolved_flow_is_saved_and_loaded(tmp_path):
    x = two_blobs(150)
    flow = make_flow(**FLOW, **HYPER | {"n_steps": 2}).fit(x)
    assert flow.agreement_.certified
    rows = torch.from_numpy(x)
    states = flow.hypersolver_.solve(rows)
    assert float((flow.flow_.log_prob(states).mean() - flow.score(x)).abs()) < 0.5
    loaded = load(flow.save(tmp_path / "flow.safetensors"), vector_field=flow.vector_field)
    torch.testing.assert_close(loaded.hypersolver_.solve(rows), states)


def test_save_pickle_and_clone(X, tmp_path):
    model = classifier(X, **HYPER, max_epochs=3)
    x = torch.from_numpy(X)
    for copied in (load(model.save(tmp_path / "model.safetensors")), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(copied.hypersolver_.solve(x), model.hypersolver_.solve(x))
        np.testing.assert_array_equal(copied.predict(X), model.predict(X))
        assert copied.solver_history_ == model.solver_history_
    assert clone(model).get_params()["refit_every"] == 4 and not hasattr(clone(model), "hypersolver_")


def test_ctrl_c_leaves_a_usable_estimator_without_a_hypersolver_of_another_field(X):
    y = (X[:, 0] * X[:, 1] > 0).astype(int)
    model = NeuralODEClassifier(max_epochs=8, batch_size=24, random_state=0, **HYPER, callbacks=[Stops(3)])
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, y)
    assert model.hypersolver_ is None and model.agreement_ is None
    assert model.predict(X).shape == (90,) and 0 < len(model.history_) < 8


def test_partial_fit_of_a_hypersolved_estimator_trains_through_dopri5(X):
    model = NeuralODEClassifier(random_state=0, **HYPER).partial_fit(X, (X[:, 0] > 0).astype(int))
    assert not hasattr(model, "hypersolver_") and model.net_.module_.settings.solver == "dopri5"


# ---------------------------------------------------------------------- what is refused
@pytest.mark.parametrize(("n_rows", "fraction"), [(1, None), (2, 0.5), (3, 0.7)])
def test_a_hypersolved_training_needs_two_rows_and_says_so(X, n_rows, fraction):
    model = NeuralODERegressor(random_state=0, validation_fraction=fraction, **HYPER)
    with pytest.raises(ValueError, match="solver='hypersolved' has 1 row to train on, and needs 2 or more"):
        model.fit(X[:n_rows], X[:n_rows, 0])
    assert not hasattr(model, "neural_ode_")


@pytest.mark.parametrize(
    "params, message",
    [
        ({"joint": -1.0}, "'joint' parameter of NeuralODEClassifier must be a float in the range"),
        ({"joint": 1.0, "solver": "rk4"}, "joint=1.0 with solver='rk4'.*Set solver='dopri5' or 'auto'"),
        ({"joint": 1.0, "solver": "hypersolved"}, "joint=1.0 with solver='hypersolved'"),
        ({"refit_every": 0, "solver": "hypersolved"}, "'refit_every' parameter"),
        ({"refit_every": 5}, "refit_every=5 with solver='dopri5': only solver='hypersolved'"),
        ({"base_solver": "eular"}, "base_solver='eular' is no fixed-step solver"),
    ],
    ids=str,
)
def test_bad_values_are_refused_by_name(X, params, message):
    with pytest.raises(ValueError, match=message):
        classifier(X, **params)


def test_flow_matching_refuses_joint():
    with pytest.raises(ValueError, match="joint: only used by objective='likelihood'"):
        make_flow(objective="flow_matching", joint=1.0).fit(two_blobs(50))
