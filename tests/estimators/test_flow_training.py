"""ContinuousNormalizingFlow: its objectives, its training, and what an interrupted one leaves."""

import copy

import numpy as np
import pytest
import torch
from flow_problems import (
    BACKWARD,
    LINEAR,
    SCALING,
)
from interruptions import StopsAt
from problems import named
from scipy.stats import multivariate_normal
from sklearn.base import clone
from skorch.callbacks import Checkpoint, LoadInitState
from small_flows import LIKELIHOOD, correlated, make_flow, two_blobs
from torch import nn

from sklearn_hyper import ContinuousNormalizingFlow
from sklearn_hyper.estimators._base import SolverAgreementWarning
from sklearn_hyper.modules import Flow, MLPVectorField, Standardize
from sklearn_hyper.numerics import ReferenceSolveError
from sklearn_hyper.training import flow_fitting
from sklearn_hyper.training.flow_fitting import FlowMatchingLoss, FlowSettings, LikelihoodLoss, StiffFlowWarning
from sklearn_hyper.training.nets import TrainingDivergedError


@pytest.mark.parametrize("t_span", [(0.0, 1.0), (2.0, -1.0)], ids=str)
def test_flow_matching_learns_a_gaussian(t_span):
    flow = make_flow(max_epochs=30, lr=2e-2, t_span=t_span).fit(correlated(600))
    test = correlated(1000, seed=1)
    scale = np.diag([0.1, 40.0])
    true = multivariate_normal([5.0, -300.0], scale @ [[1, 0.9], [0.9, 1]] @ scale).logpdf(test)
    divergence = np.mean(true - flow.score_samples(test))  # of Kullback and Leibler, estimated
    assert -0.02 < divergence < 0.1  # 0.83 where the correlation is missed
    np.testing.assert_allclose(np.corrcoef(flow.sample(2000, random_state=0).T)[0, 1], 0.9, atol=0.05)


@pytest.mark.parametrize("problem", **named([SCALING, BACKWARD]))
def test_the_flow_matching_loss_is_that_of_straight_paths(problem):
    x, (start, end) = problem.sample(7), problem.t_span
    shift, scale = torch.tensor([1.0, -2.0]).double(), torch.tensor([0.5, 3.0]).double()
    flow = Flow(problem.field, n_features=2, t_span=problem.t_span, scaler=Standardize(shift, scale))
    loss = FlowMatchingLoss(flow)
    shares, base = loss.draw(7, x)
    expected = 0.0
    for s, z0, z1 in zip(shares, base, (x - shift) / scale, strict=True):
        velocity = problem.field(start + s * (end - start), ((1 - s) * z0 + s * z1)[None])[0]
        expected += ((end - start) * velocity - (z1 - z0)).pow(2).mean().item() / 7
    assert loss(x, (shares, base)).item() == pytest.approx(expected, rel=1e-12)
    # One share in each seventh, in any order.
    assert sorted((7 * shares).long().tolist()) == list(range(7))


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"adjoint": True},
        {"solver": "rk4", "n_steps": 4},
        {"trace": "rademacher"},
        {"kinetic": 0.01, "jacobian": 0.01, "adjoint": True},
    ],
    ids=str,
)
def test_likelihood_training_raises_the_likelihood(blobs, params):
    test = two_blobs(400, seed=1)
    flow = make_flow(**LIKELIHOOD, max_epochs=4, **params)
    before = clone(flow).set_params(lr=1e-12, max_epochs=1).fit(blobs[:150]).set_params(trace="exact").score(test)
    after = flow.fit(blobs[:150]).set_params(trace="exact").score(test)
    assert after > before + 0.1


def settings(**changes):
    defaults = {
        "solver": "dopri5", "n_steps": 4, "rtol": 1e-9, "atol": 1e-9, "adjoint": False, "max_epochs": 1, "lr": 1e-2,
        "batch_size": 8, "optimizer": None, "callbacks": None, "device": "cpu", "verbose": 0, "objective": "likelihood",
        "noise": None, "kinetic": 0.1, "jacobian": 0.1, "joint": 0.0, "base_solver": "euler",
        "refit_every": None, "refit": None,
    }  # fmt: skip
    return FlowSettings(**defaults | changes)


@pytest.mark.parametrize("noise", [None, "gaussian"])
def test_the_adjoint_gives_the_gradient_of_backpropagation(blobs, noise):
    flow, x = Flow(MLPVectorField(2, hidden=4).double(), n_features=2), torch.from_numpy(blobs[:8])
    drawn = None if noise is None else torch.randn_like(x)
    gradients = []
    for adjoint in (False, True):
        loss = LikelihoodLoss(flow, settings(adjoint=adjoint, noise=noise))(x, drawn)
        gradients.append(torch.autograd.grad(loss, list(flow.parameters())))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_the_likelihood_loss_is_minus_the_mean_log_density(blobs):
    x = LINEAR.sample(20)
    flow = Flow(LINEAR.field, n_features=2)
    loss = LikelihoodLoss(flow, settings(kinetic=0.0, jacobian=0.0))(x)
    assert loss.item() == pytest.approx(-LINEAR.log_prob(x).mean().item(), abs=1e-6)
    # |J|_F is constant: its integral over the span of one is its square.
    penalised = LikelihoodLoss(flow, settings(kinetic=0.0, jacobian=0.1))(x)
    assert (penalised - loss).item() == pytest.approx(0.1 * LINEAR.field.matrix.pow(2).sum().item(), abs=1e-6)


@pytest.mark.parametrize("penalty, coordinate", [("kinetic", -2), ("jacobian", -1)])
def test_penalties_make_fields_cheaper(blobs, penalty, coordinate):
    def integral(weight):
        flow = make_flow(**LIKELIHOOD, max_epochs=4, solver="rk4", n_steps=4, **{penalty: weight}).fit(blobs)
        with torch.no_grad():
            states = flow.flow_.density(penalties=True)(torch.from_numpy(blobs[:50]), 1e-5, 1e-5)
        return states[:, coordinate].abs().mean()

    assert integral(1.0) < 0.5 * integral(0.0)


def test_evaluations_a_solve_are_recorded_and_the_adjoints_own_are_not(blobs):
    first = [
        make_flow(**LIKELIHOOD, max_epochs=2, adjoint=adjoint).fit(blobs[:100]).history_[0]["nfe"]
        for adjoint in (False, True)
    ]
    assert first[0] == first[1] > 6
    matched = make_flow(max_epochs=1).fit(blobs)
    assert "nfe" not in matched.history_[0] and matched.history_[0]["epoch"] == 1


def test_exploding_evaluations_warn_once(blobs, monkeypatch):
    monkeypatch.setattr(flow_fitting, "_MANY_EVALUATIONS", 5)
    monkeypatch.setattr(flow_fitting, "_GROWTH", 1.01)
    flow = make_flow(**LIKELIHOOD | {"lr": 0.2}, max_epochs=4)
    with pytest.warns(
        StiffFlowWarning, match=r"epoch \d: a solve takes \d+ evaluations.*1\.\d times.*Set kinetic"
    ) as seen:
        flow.fit(blobs[:100])
    assert len(seen) == 1 and flow.history_[-1]["nfe"] > flow.history_[0]["nfe"]


def test_a_fixed_step_solver_that_disagrees_with_dopri5_warns(blobs):
    flow = make_flow(**LIKELIHOOD | {"lr": 0.1}, max_epochs=8, solver="euler", n_steps=1)
    message = r"held-out log likelihood is -?\d.* with the training solver 'euler' \(n_steps=1\) and -?\d.* with dopri5"
    with pytest.warns(SolverAgreementWarning, match=message) as seen:
        flow.fit(blobs)
    assert seen[0].filename == __file__
    # Penalties are no part of the likelihood, and so no disagreement.
    make_flow(**LIKELIHOOD, max_epochs=1, solver="rk4", n_steps=8, kinetic=1.0, trace="gaussian").fit(blobs)


def test_a_solve_that_training_has_made_too_long_blames_the_learning_rate(blobs, monkeypatch):
    flow = make_flow(**LIKELIHOOD | {"lr": 1.0}, max_epochs=3)
    monkeypatch.setattr(flow_fitting, "_MAX_EVALUATIONS", 30)
    with pytest.raises(TrainingDivergedError, match=r"diverged in epoch \d.*Lower lr \(now 1\)"):
        flow.fit(blobs)
    # Before any step of the optimizer the field itself is to blame.
    monkeypatch.setattr(flow_fitting, "_MAX_EVALUATIONS", 5)
    with pytest.raises(ReferenceSolveError, match="more than 5 evaluations of the vector field: the field is stiff"):
        flow.fit(blobs)
    assert not [name for name in vars(flow) if name.endswith("_")]


class Noisy(nn.Module):
    """A field with dropout: training sees it, validation and inference must not."""

    def __init__(self):
        super().__init__()
        self.field, self.dropout = MLPVectorField(2, hidden=8), nn.Dropout(0.5)

    def forward(self, t, z):
        return self.field(t, self.dropout(z))


@pytest.mark.parametrize("objective", ["flow_matching", "likelihood"])
def test_held_out_losses_are_those_of_inference(blobs, objective):
    flow = ContinuousNormalizingFlow(
        Noisy(), objective=objective, solver="rk4", n_steps=4, max_epochs=2, lr=1e-9, random_state=0
    )
    held_out = [row["valid_loss"] for row in flow.fit(blobs).history_]
    assert held_out[0] == pytest.approx(held_out[1], rel=1e-5)  # all but the same weights, the same draws
    assert not flow.flow_.training
    np.testing.assert_array_equal(flow.score_samples(blobs[:9]), flow.score_samples(blobs[:9]))


# ---------------------------------------------------------------------- starting again
def test_the_same_random_state_gives_the_same_flow_and_touches_no_generator(blobs):
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    one, same, other = (make_flow(max_epochs=2, random_state=seed).fit(blobs) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.score_samples(blobs), same.score_samples(blobs))
    assert np.abs(one.score_samples(blobs) - other.score_samples(blobs)).max() > 1e-3
    assert torch.equal(torch.get_rng_state(), torch_state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)


def test_fit_only_reads_the_field(blobs):
    flow = make_flow()
    before = copy.deepcopy(flow.vector_field.state_dict())
    flow.fit(blobs)
    assert all(torch.equal(value, before[key]) for key, value in flow.vector_field.state_dict().items())
    assert flow.vector_field.training and flow.flow_.vector_field is not flow.vector_field


def test_a_warm_start_goes_on_from_weights_and_scaling(blobs):
    flow = make_flow(max_epochs=20, lr=2e-2, warm_start=True).fit(blobs)
    before, shift = flow.score(blobs), flow.flow_.scaler.shift
    flow.set_params(lr=1e-9, max_epochs=1).fit(blobs + 0.5)
    assert torch.equal(flow.flow_.scaler.shift, shift)
    assert flow.score(blobs) == pytest.approx(before, abs=1e-6)
    flow.set_params(objective="likelihood", solver="rk4", n_steps=6, lr=1e-2, max_epochs=5, batch_size=64).fit(blobs)
    assert flow.score(blobs) > before + 0.01


@pytest.mark.parametrize("objective", ["flow_matching", "likelihood"])
def test_a_checkpoint_resumes_an_interrupted_fit(blobs, tmp_path, objective):
    def callbacks():
        checkpoint = Checkpoint(dirname=tmp_path, f_optimizer=None)
        return [checkpoint, LoadInitState(checkpoint)]

    params = {"objective": objective, "solver": "rk4", "n_steps": 4, "lr": 2e-2}
    stopped = make_flow(**params, max_epochs=50, callbacks=[*callbacks(), StopsAt(3)])
    with pytest.raises(KeyboardInterrupt):
        stopped.fit(blobs)
    assert len(stopped.history_) == 3 and not stopped.flow_.training
    best = min(row["valid_loss"] for row in stopped.history_)
    # A new process starts from nothing but the files; at no learning rate it finds what was lost.
    resumed = make_flow(**params | {"lr": 1e-9}, max_epochs=1, callbacks=callbacks()).fit(blobs)
    assert [row["epoch"] for row in resumed.history_] == list(range(1, len(resumed.history_) + 1))
    assert resumed.history_[-1]["valid_loss"] == pytest.approx(best, rel=1e-6)
    np.testing.assert_allclose(resumed.score_samples(blobs), stopped.score_samples(blobs), rtol=1e-5)
    # Nor is it lost to epochs that are worse.
    worse = make_flow(**params | {"lr": 0.5}, max_epochs=1, callbacks=callbacks()).fit(blobs)
    assert worse.history_[-1]["valid_loss"] > best
    np.testing.assert_allclose(worse.score_samples(blobs), stopped.score_samples(blobs), rtol=1e-5)


def test_ctrl_c_keeps_the_best_weights_and_is_raised(blobs):
    flow = make_flow(max_epochs=50, lr=2e-2, callbacks=[StopsAt(4)])
    with pytest.raises(KeyboardInterrupt):
        flow.fit(blobs)
    best = min(row["valid_loss"] for row in flow.history_)
    assert len(flow.history_) == 4 and np.isfinite(flow.score(blobs))
    resumed = flow.set_params(warm_start=True, callbacks=None, lr=1e-9, max_epochs=1).fit(blobs)
    assert resumed.history_[0]["valid_loss"] == pytest.approx(best, rel=0.2)
    assert flow.flow_.vector_field.first.weight.requires_grad


def test_a_checkpoint_with_the_optimizer_s_state_is_taken_up_too(blobs, tmp_path):
    def fit(**params):
        checkpoint = Checkpoint(dirname=tmp_path)
        return make_flow(**LIKELIHOOD | params, callbacks=[checkpoint, LoadInitState(checkpoint)]).fit(blobs)

    before, after = fit(max_epochs=2), fit(max_epochs=4)
    assert len(after.history_) == 6 and after.history_[:2] == before.history_
    assert after.score(blobs) > before.score(blobs) + 0.02


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_a_fit_interrupted_before_training_leaves_the_estimator_as_it_was(blobs, monkeypatch, error):
    def interrupted(*args, **kwargs):
        raise error

    fitted, unfitted = make_flow(max_epochs=1).fit(blobs), make_flow()
    expected, before = fitted.score_samples(blobs), dict(vars(fitted))
    monkeypatch.setattr("sklearn_hyper.estimators.flows.build_flow_net", interrupted)
    for flow in (fitted, unfitted):
        with pytest.raises(error):
            flow.fit(blobs.astype(np.float32) + 1)
    assert vars(fitted) == before and not [name for name in vars(unfitted) if name.endswith("_")]
    np.testing.assert_array_equal(fitted.score_samples(blobs), expected)
