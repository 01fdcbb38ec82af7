"""ContinuousNormalizingFlow: closed forms, training, and scikit-learn's conventions."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from flow_problems import BACKWARD, FLOWS, LINEAR, PLANE_FLOWS, SCALING, TANH_5D, grid_2d, log_standard_normal
from problems import named
from scipy.stats import multivariate_normal
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch.callbacks import Callback, Checkpoint, LoadInitState
from small_flows import correlated, holding, make_flow, two_blobs
from torch import nn
from torch.distributions import Independent, Laplace, MultivariateNormal

from sklearn_hyper import ContinuousNormalizingFlow
from sklearn_hyper.estimators._base import SolverAgreementWarning
from sklearn_hyper.estimators.flows import append_noise
from sklearn_hyper.modules import Flow, MLPVectorField, Standardize
from sklearn_hyper.numerics import ReferenceSolveError
from sklearn_hyper.training import flow_fitting
from sklearn_hyper.training.flow_fitting import FlowMatchingLoss, FlowSettings, LikelihoodLoss, StiffFlowWarning
from sklearn_hyper.training.nets import TrainingDivergedError

each_flow = pytest.mark.parametrize("problem", **named(FLOWS))
LIKELIHOOD = {"objective": "likelihood", "hidden": 8, "lr": 2e-2, "batch_size": 64}


@pytest.fixture(scope="module")
def blobs():
    return two_blobs()


@pytest.fixture(scope="module")
def fitted(blobs):
    """To be read only."""
    return make_flow(max_epochs=20, lr=2e-2, validation_fraction=0.2).fit(blobs)


# ---------------------------------------------------------------------- densities and samples
@each_flow
def test_densities_samples_and_maps_have_their_closed_forms(problem):
    flow, x = holding(problem), problem.sample(50)
    np.testing.assert_allclose(flow.score_samples(x), problem.log_prob(x), atol=1e-6)
    assert flow.score(x) == pytest.approx(problem.log_prob(x).mean().item(), abs=1e-6)
    np.testing.assert_allclose(flow.transform(x), problem.pull(x), atol=1e-6)
    np.testing.assert_allclose(flow.inverse_transform(problem.pull(x)), x, atol=1e-6)


@pytest.mark.parametrize("problem", **named(PLANE_FLOWS))
def test_densities_integrate_to_one(problem):
    points, area = grid_2d(n_cells=60)
    total = np.exp(holding(problem, batch_size=512).score_samples(points)).sum() * area
    assert total == pytest.approx(1, abs=1e-3)


def test_a_trained_density_integrates_to_one(fitted):
    points, area = grid_2d(half_width=5.0, n_cells=60)
    assert np.exp(fitted.score_samples(points)).sum() * area == pytest.approx(1, abs=0.01)


def test_transform_and_inverse_transform_undo_each_other(fitted, blobs):
    np.testing.assert_allclose(fitted.inverse_transform(fitted.transform(blobs)), blobs, atol=1e-5)
    z = np.random.default_rng(0).normal(size=(50, 2))
    np.testing.assert_allclose(fitted.transform(fitted.inverse_transform(z)), z, atol=1e-5)


def test_the_density_is_that_of_the_change_of_variables(fitted, blobs):
    # log p(x) = log p_0(z) + log |det dz/dx|, the Jacobian by differences.
    x, h = blobs[:5], 1e-4
    columns = [(fitted.transform(x + h * e) - fitted.transform(x - h * e)) / (2 * h) for e in np.eye(2)]
    log_det = np.linalg.slogdet(np.stack(columns, axis=2))[1]
    base = log_standard_normal(torch.from_numpy(fitted.transform(x))).numpy()
    np.testing.assert_allclose(fitted.score_samples(x), base + log_det, atol=1e-4)


def test_samples_have_the_density_s_moments():
    samples = holding(LINEAR, batch_size=2048).sample(20_000, random_state=0)
    covariance = LINEAR.field.covariance(*LINEAR.t_span).numpy()
    assert np.abs(samples.mean(axis=0)).max() < 0.04
    np.testing.assert_allclose(np.cov(samples.T), covariance, atol=0.06)


def test_samples_depend_on_random_state_alone(fitted):
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    one, same, other = (fitted.sample(5, random_state=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).min() > 1e-6
    generator = np.random.RandomState(0)
    assert np.abs(fitted.sample(5, random_state=generator) - fitted.sample(5, random_state=generator)).min() > 1e-6
    assert fitted.sample().shape == (1, 2) and fitted.sample(np.int64(3)).shape == (3, 2)
    assert torch.equal(torch.get_rng_state(), torch_state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)


def test_results_do_not_depend_on_the_batch(fitted, blobs):
    piecewise = copy.copy(fitted).set_params(batch_size=1)
    np.testing.assert_allclose(piecewise.score_samples(blobs[:20]), fitted.score_samples(blobs)[:20], atol=1e-6)


# ---------------------------------------------------------------------- Hutchinson's trace
def test_hutchinsons_densities_are_those_of_their_noise():
    x = LINEAR.sample(30)
    flow = holding(LINEAR, trace="gaussian")
    base = log_standard_normal(LINEAR.pull(x)).numpy()
    noise = append_noise(x.numpy(), "gaussian", flow._noise_seed)[:, 2:]
    estimate = np.einsum("ni,ij,nj->n", noise, LINEAR.field.matrix, noise)
    np.testing.assert_allclose(flow.score_samples(x), base - estimate, atol=1e-6)
    np.testing.assert_array_equal(flow.score_samples(x), flow.score_samples(x))


def test_hutchinsons_densities_are_unbiased():
    flow, x = holding(TANH_5D, trace="rademacher", batch_size=512), TANH_5D.sample(1)
    estimates = flow.score_samples(x.expand(4000, 5))
    standard_error = estimates.std() / math.sqrt(4000)
    assert estimates.std() > 0.05
    assert abs(estimates.mean() - TANH_5D.log_prob(x).item()) < 4 * standard_error


def test_wide_data_get_an_estimate_unless_asked_otherwise():
    X = np.random.default_rng(0).normal(size=(40, 17))
    flow = make_flow(17, hidden=4, max_epochs=1).fit(X)
    estimated, exact = flow.score_samples(X), copy.copy(flow).set_params(trace="exact").score_samples(X)
    assert 0 < np.abs(estimated - exact).max() < 20
    np.testing.assert_array_equal(estimated, copy.copy(flow).set_params(trace="rademacher").score_samples(X))


# ---------------------------------------------------------------------- training
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
        "noise": None, "kinetic": 0.1, "jacobian": 0.1,
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


# ---------------------------------------------------------------------- data in and out
def test_units_are_of_no_account():
    X = two_blobs(100)
    scale, shift = np.array([1e-9, 1e6]), np.array([3e-9, 5.0])
    plain, scaled = make_flow(max_epochs=2).fit(X), make_flow(max_epochs=2).fit(X * scale + shift)
    expected = plain.score_samples(X) - np.log(scale).sum()
    np.testing.assert_allclose(scaled.score_samples(X * scale + shift), expected, atol=1e-4)
    np.testing.assert_allclose(scaled.sample(9, 0), plain.sample(9, 0) * scale + shift, rtol=1e-5, atol=1e-5 * scale[0])


def test_units_whose_squares_underflow_are_none_either():
    X = two_blobs(100).astype(np.float32)
    plain, tiny = (make_flow(dtype=torch.float32, max_epochs=2).fit(X * unit) for unit in (1, np.float32(1e-25)))
    np.testing.assert_allclose(
        tiny.score_samples(X * np.float32(1e-25)), plain.score_samples(X) + 50 * np.log(10), rtol=1e-3
    )


def test_behind_a_scaler_the_density_is_that_of_the_scaled_data(blobs):
    pipeline = make_pipeline(StandardScaler(), make_flow(max_epochs=2)).fit(blobs)
    log_density = pipeline.score_samples(blobs) - np.log(pipeline[0].scale_).sum()
    points, area = grid_2d(half_width=5.0, n_cells=50)
    total = np.exp(pipeline.score_samples(points.numpy()) - np.log(pipeline[0].scale_).sum()).sum() * area
    assert total == pytest.approx(1, abs=0.01)
    # The flow standardises by itself, so that a scaler changes nothing else.
    np.testing.assert_allclose(log_density, make_flow(max_epochs=2).fit(blobs).score_samples(blobs), atol=1e-5)
    np.testing.assert_allclose(pipeline.inverse_transform(pipeline.transform(blobs)), blobs, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_computes_in_the_field_s_dtype(blobs, dtype):
    flow = make_flow(dtype=dtype).fit(blobs)
    results = flow.score_samples(blobs), flow.sample(3, random_state=0), flow.transform(blobs.astype(np.float32))
    assert {result.dtype for result in results} == {np.dtype(str(dtype).removeprefix("torch."))}
    double = copy.deepcopy(flow)
    double.flow_.double()
    double.dtype_ = torch.float64
    np.testing.assert_allclose(flow.score_samples(blobs), double.score_samples(blobs), atol=1e-4)


def test_without_a_field_one_is_built_in_the_data_s_dtype(blobs):
    flow = ContinuousNormalizingFlow(max_epochs=1, random_state=0).fit(blobs.astype(np.float32).tolist())
    assert flow.dtype_ == torch.float64 and flow.flow_.vector_field.first.out_features == 128
    assert flow.set_params(max_epochs=1).fit(blobs.astype(np.float32)).dtype_ == torch.float32


@pytest.mark.parametrize(
    "base, objective",
    [
        (Independent(Laplace(torch.zeros(2), torch.ones(2)), 1), "likelihood"),
        (MultivariateNormal(torch.tensor([4.0, 0.0]), torch.tensor([[2.0, 0.5], [0.5, 1.0]])), "flow_matching"),
    ],
    ids=["Laplace", "MultivariateNormal"],
)
def test_base_distributions(blobs, base, objective):
    params = {"objective": objective, "base_distribution": base, "solver": "rk4", "n_steps": 4, "lr": 2e-2}
    flow = make_flow(**params, max_epochs=10, batch_size=256).fit(blobs)
    assert flow.flow_.base_distribution is not base
    points, area = grid_2d(half_width=7.0, n_cells=60)
    assert np.exp(flow.score_samples(points)).sum() * area == pytest.approx(1, abs=0.02)
    assert np.linalg.norm(flow.sample(2000, random_state=0).mean(axis=0) - blobs.mean(axis=0)) < 0.5


def test_a_frame_s_names_belong_to_the_data_and_not_to_the_base(blobs):
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(blobs, columns=["length", "width"])
    flow = make_flow().set_output(transform="pandas").fit(frame)
    z = flow.transform(frame)
    assert list(z.columns) == ["continuousnormalizingflow0", "continuousnormalizingflow1"]
    assert list(flow.get_feature_names_out()) == list(z.columns) and list(flow.feature_names_in_) == ["length", "width"]
    for states in (z, z.to_numpy(), z.to_numpy().tolist(), torch.tensor(z.to_numpy())):
        np.testing.assert_allclose(flow.inverse_transform(states), blobs, atol=1e-5)


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


class StopsAt(Callback):
    """Presses Ctrl-C at the end of an epoch."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_epoch_end(self, net, **kwargs):
        if len(net.history) == self.epoch:
            raise KeyboardInterrupt


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


# ---------------------------------------------------------------------- scikit-learn
def test_a_grid_search_picks_by_likelihood(blobs):
    grid = {"lr": [1e-9, 2e-2]}
    search = GridSearchCV(make_flow(max_epochs=10, random_state=1), grid, cv=2, error_score="raise").fit(blobs)
    assert search.best_params_ == {"lr": 2e-2}
    assert search.score(blobs) == search.best_estimator_.score(blobs)


def test_clones_share_nothing_and_are_unfitted(fitted, blobs):
    copied = clone(fitted)
    assert not hasattr(copied, "flow_") and copied.get_params().keys() == fitted.get_params().keys()
    assert copied.vector_field is not fitted.vector_field
    np.testing.assert_array_equal(copied.fit(blobs).score_samples(blobs), fitted.score_samples(blobs))


@pytest.mark.parametrize(
    "copied", [lambda flow: pickle.loads(pickle.dumps(flow)), copy.deepcopy], ids=["pickle", "deepcopy"]
)
@pytest.mark.parametrize("params", [{}, LIKELIHOOD], ids=["matched", "likelihood"])
def test_copies_are_equal_and_stand_alone(blobs, params, copied):
    base = Independent(Laplace(torch.zeros(2), torch.ones(2)), 1)
    flow = make_flow(**params | {"max_epochs": 1}, base_distribution=base, warm_start=True).fit(blobs)
    other = copied(flow)
    np.testing.assert_array_equal(other.score_samples(blobs), flow.score_samples(blobs))
    np.testing.assert_array_equal(other.sample(3, random_state=0), flow.sample(3, random_state=0))
    assert not {id(p) for p in other.flow_.parameters()} & {id(p) for p in flow.flow_.parameters()}
    # What the copy's modules share they still share: training one trains all.
    assert {id(p) for p in other.flow_.parameters()} == {id(p) for p in other.net_.module_.parameters()}
    np.testing.assert_allclose(other.fit(blobs).score_samples(blobs), flow.fit(blobs).score_samples(blobs), rtol=1e-6)


def test_a_pickle_holds_no_training_data():
    few, many = (len(pickle.dumps(make_flow(max_epochs=1, batch_size=n).fit(two_blobs(n)))) for n in (20, 2000))
    assert abs(many - few) < 2000
