"""HypersolverDensity: both directions of a flow against its closed forms, dopri5 and loops by hand."""

import copy
import pickle

import joblib
import numpy as np
import pytest
import torch
from flow_problems import (
    BACKWARD,
    LINEAR,
    SCALING,
    TANH,
    TANH_5D,
    grid_2d,
    log_standard_normal,
    standard_normal,
)
from problems import named
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV, ShuffleSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, PolynomialFeatures, StandardScaler
from skorch.callbacks import Callback
from small_flows import holding, make_flow, two_blobs
from torch import nn
from torch.distributions import Independent, Laplace

from sklearn_hyper import ContinuousNormalizingFlow, HypersolverDensity, MLPCorrection, NeuralODE
from sklearn_hyper.estimators._fitted_neural_ode import resolve_flow
from sklearn_hyper.estimators.flows import append_noise
from sklearn_hyper.modules import Flow
from sklearn_hyper.numerics import count_macs
from sklearn_hyper.training import references

some_flows = pytest.mark.parametrize("problem", **named([SCALING, BACKWARD]))
PARAMS = {"base_solver": "heun", "n_steps": 2, "max_epochs": 3, "max_samples": 40, "random_state": 0}


def make_fast(flow, **params):
    return HypersolverDensity(flow, **PARAMS | params)


def of_problem(problem, **params):
    return make_fast(NeuralODE(problem.field, t_span=problem.t_span), **params)


@pytest.fixture(scope="module")
def blobs():
    return two_blobs()


@pytest.fixture(scope="module")
def flow(blobs):
    return make_flow(max_epochs=20, lr=2e-2).fit(blobs)


@pytest.fixture(scope="module")
def fast(flow, blobs):
    """To be read only."""
    return make_fast(flow, max_epochs=20, max_samples=300).fit(blobs)


@pytest.fixture(scope="module")
def curved(blobs):
    """A flow for conventions, not for accuracy: all but untrained."""
    return make_flow(hidden=4, gain=2.0, max_epochs=1).fit(blobs)


@pytest.fixture(scope="module")
def quick(curved, blobs):
    """Fitted in no time; to be read only."""
    return make_fast(curved).fit(blobs)


# ---------------------------------------------------------------------- accuracy
def test_agrees_with_the_flow_in_both_directions(fast, flow, blobs):
    test = two_blobs(200, seed=1)
    log_densities = flow.score_samples(test)
    assert np.abs(fast.score_samples(test) - log_densities).max() < 0.1
    assert fast.score(test) == pytest.approx(flow.score(test), abs=5e-3)
    # The same random_state takes the same base draws.
    np.testing.assert_allclose(fast.sample(200, random_state=3), flow.sample(200, random_state=3), atol=0.06)
    np.testing.assert_allclose(fast.transform(test), flow.transform(test), atol=0.06)
    z = np.random.default_rng(0).normal(size=(100, 2))
    np.testing.assert_allclose(fast.inverse_transform(z), flow.inverse_transform(z), atol=0.06)
    base = fast.without_correction()
    for one, other in [(base.score(test), fast.score(test)), (base.sample(200, 3), fast.sample(200, 3))]:
        assert np.abs(one - other).max() > 5e-3
    assert abs(base.score(test) - flow.score(test)) > 5 * abs(fast.score(test) - flow.score(test))


def test_a_trained_density_integrates_to_one(fast):
    points, area = grid_2d(half_width=5.0, n_cells=60)
    total = np.exp(fast.score_samples(points)).sum() * area
    assert total == pytest.approx(1, abs=0.01)
    assert abs(np.exp(fast.without_correction().score_samples(points)).sum() * area - 1) > 2 * abs(total - 1)


@some_flows
def test_densities_of_bare_fields_have_their_closed_forms(problem):
    x = problem.sample(300)
    fast = of_problem(problem, max_epochs=30, max_samples=300).fit(x)
    errors = np.abs(fast.score_samples(x) - problem.log_prob(x).numpy())
    assert np.median(errors) < 0.02 and errors.max() < 0.2
    np.testing.assert_allclose(fast.transform(x[:50]), problem.pull(x[:50]), atol=0.1)
    z = standard_normal(50, 2)
    np.testing.assert_allclose(fast.inverse_transform(z), problem.push(z), atol=0.1)
    points, area = grid_2d(n_cells=60)
    assert np.exp(fast.score_samples(points)).sum() * area == pytest.approx(1, abs=0.01)


def test_transform_and_inverse_transform_undo_each_other(fast, blobs):
    np.testing.assert_allclose(fast.inverse_transform(fast.transform(blobs)), blobs, atol=0.1)


def heun_by_hand(f, trace, z, start, end, n_steps):
    """The state and the integral of the trace along the way."""
    eps, log_det = (end - start) / n_steps, 0.0
    for k in range(n_steps):
        t = torch.tensor(start + k * eps)
        r1, trace1 = f(t, z), trace(t, z)
        r2, trace2 = f(t + eps, z + eps * r1), trace(t + eps, z + eps * r1)
        z, log_det = z + eps * (r1 + r2) / 2, log_det + eps * (trace1 + trace2) / 2
    return z, log_det


@some_flows
@pytest.mark.filterwarnings("ignore:no epoch was better")
def test_without_a_correction_it_is_the_base_solver_with_its_log_determinant(problem):
    x, z = problem.sample(40), standard_normal(40, 2)
    plain = of_problem(problem, n_steps=3, max_epochs=3).fit(x).without_correction()
    f, trace = problem.field, lambda t, z: problem.field.divergence(float(t), z)
    base, integral = heun_by_hand(f, trace, x, *problem.t_span[::-1], 3)
    # From data to base the integral runs backwards: log p(x) = log p_0(z) + it.
    np.testing.assert_allclose(plain.score_samples(x), log_standard_normal(base) + integral, atol=1e-6)
    np.testing.assert_allclose(plain.transform(x), base, atol=1e-6)
    np.testing.assert_allclose(plain.inverse_transform(z), heun_by_hand(f, trace, z, *problem.t_span, 3)[0], atol=1e-6)


# ---------------------------------------------------------------------- cost
class Counted(nn.Module):
    """LINEAR's field, counting its calls and those that ask for gradients."""

    def __init__(self):
        super().__init__()
        self.field, self.calls, self.with_gradients = LINEAR.field, 0, 0

    def forward(self, t, z):
        self.calls += 1
        self.with_gradients += z.requires_grad
        return self.field(t, z)


@pytest.mark.parametrize("base_solver, stages", [("euler", 1), ("rk4", 4)])
def test_every_step_evaluates_field_and_trace_once_a_stage(base_solver, stages):
    x = LINEAR.sample(40)
    fast = make_fast(Counted(), base_solver=base_solver, n_steps=2, rtol=1e-9, atol=1e-9).fit(x)
    density, sampling = fast.density_.module_.neural_ode.vector_field.vector_field, fast.module_.neural_ode.vector_field
    density.calls = density.with_gradients = sampling.calls = sampling.with_gradients = 0
    fast.score_samples(x)
    assert (density.calls, density.with_gradients, sampling.calls) == (stages * 2, stages * 2, 0)
    fast.sample(10, random_state=0)
    assert (sampling.calls, sampling.with_gradients, density.calls) == (stages * 2, 0, stages * 2)
    rows = fast.solver_report(x).rows
    assert [row.nfe for row in rows[1:]] == [stages * 2] * 2


def test_reports_on_both_directions(fast, blobs):
    sampling, density = fast.solver_report(n_samples=100, random_state=0), fast.solver_report(blobs[:100], n_samples=50)
    for report in (sampling, density):
        slow, plain, corrected = report.rows
        assert (slow.solver, plain.solver, corrected.solver) == ("dopri5 1e-05", "heun K=2", "hyper-heun K=2")
        assert corrected.l2_mean < plain.l2_mean / 2 and corrected.nfe == plain.nfe == 4 < slow.nfe
        assert corrected.macs > plain.macs and slow.macs > corrected.macs
    # One evaluation of (f, trace): a forward pass and two backward ones; linear layers of 2-16-16-2.
    products = 2 * 16 + 16 * 16 + 16 * 2
    assert sampling.rows[1].macs == 4 * products
    assert density.rows[1].macs == 4 * 3 * products
    module = fast.to_module("density").solver.neural_ode
    state = module.input_map(torch.zeros(1, 2, dtype=torch.float64))
    assert count_macs(module.vector_field, state.new_tensor(0.0), state) == 3 * products


# ---------------------------------------------------------------------- Hutchinson
def test_reference_and_hypersolver_see_the_same_noise():
    x = LINEAR.sample(60)
    fast = make_fast(LINEAR.field, trace="gaussian").fit(x)
    rows = append_noise(x.numpy(), "gaussian", fast._noise_seed)
    estimate = np.einsum("ni,ij,nj->n", rows[:, 2:], LINEAR.field.matrix, rows[:, 2:])
    assert np.ptp(estimate) > 1
    np.testing.assert_allclose(fast.density_.reference(rows)[:, 2], estimate, atol=1e-5)
    np.testing.assert_allclose(fast.without_correction().density_.predict(rows)[:, 2], estimate, atol=1e-6)
    log_densities = log_standard_normal(torch.from_numpy(fast.transform(x))).numpy() - fast.density_.predict(rows)[:, 2]
    np.testing.assert_allclose(fast.score_samples(x), log_densities, atol=1e-9)
    module = fast.to_module("density")
    with torch.no_grad():
        np.testing.assert_allclose(module(torch.from_numpy(rows)), fast.score_samples(x), atol=1e-12)


@pytest.mark.parametrize("trace", ["auto", "exact"])
def test_the_flows_trace_and_noise_are_taken_over(trace):
    slow, x = holding(TANH_5D, trace="rademacher"), TANH_5D.sample(100)
    fast = make_fast(slow, trace=trace, max_epochs=20, max_samples=100).fit(x)
    taken_over, other = slow.score_samples(x), TANH_5D.log_prob(x).numpy()
    if trace == "exact":
        taken_over, other = other, taken_over
    assert np.abs(fast.score_samples(x) - taken_over).mean() < 0.1
    assert np.abs(fast.score_samples(x) - other).mean() > 0.3


# ---------------------------------------------------------------------- what is passed as neural_ode
def test_a_bare_field_with_a_base_distribution_samples_without_data():
    base = Independent(Laplace(torch.zeros(2), torch.ones(2)), 1)
    fast = make_fast(LINEAR.field, base_distribution=base, n_features=2, max_epochs=20).fit()
    assert fast.density_ is None and fast.n_features_in_ == 2
    draws = fast.sample(4000, random_state=0) @ np.linalg.inv(torch.linalg.matrix_exp(LINEAR.field.matrix).numpy()).T
    np.testing.assert_allclose(np.abs(draws).mean(axis=0), 1, atol=0.08)  # a Laplace's, not 0.8 of a normal's
    full = make_fast(LINEAR.field, base_distribution=base, max_epochs=20).fit(LINEAR.sample(60))
    x = LINEAR.sample(20, seed=1)
    expected = base.log_prob(LINEAR.pull(x).float()) - LINEAR.log_det(LINEAR.pull(x))
    assert np.abs(full.score_samples(x) - expected.numpy()).mean() < 0.01


def test_every_form_of_a_fitted_flow_is_taken(curved, quick, blobs):
    search = GridSearchCV(make_flow(max_epochs=1), {"lr": [5e-3]}, cv=2).fit(blobs)
    forms = [FrozenEstimator(curved), make_pipeline(curved), FrozenEstimator(make_pipeline(FrozenEstimator(curved)))]
    for form in (curved, *forms):
        assert resolve_flow(form)[:4] == (curved.flow_, None, "auto", curved._noise_seed)
    assert resolve_flow(FrozenEstimator(search)).flow is search.best_estimator_.flow_
    assert resolve_flow(curved.flow_)[:4] == (curved.flow_, None, "auto", None)
    again = make_fast(quick).fit(blobs)  # the flow of a HypersolverDensity
    np.testing.assert_array_equal(again.score_samples(blobs), quick.score_samples(blobs))
    piped = make_pipeline(StandardScaler(), make_pipeline(PCA(), clone(curved))).fit(blobs)
    steps = resolve_flow(piped).preprocess
    np.testing.assert_allclose(steps.transform(blobs), piped[1][0].transform(piped[0].transform(blobs)))


def test_a_pipeline_s_steps_are_applied_and_undone(blobs):
    X = blobs * [100.0, 1e-3] + [7.0, 0.0]
    pipeline = make_pipeline(StandardScaler(), make_flow(gain=2.0, max_epochs=1)).fit(X)
    scaler, slow = pipeline
    fast = make_fast(pipeline, n_steps=3, max_epochs=20, max_samples=150).fit(X)
    assert np.abs(fast.score_samples(X) - pipeline.score_samples(X)).mean() < 0.05  # of the scaled data
    errors = fast.sample(200, random_state=0) - scaler.inverse_transform(slow.sample(200, random_state=0))
    assert np.abs(errors / scaler.scale_).max() < 0.05
    assert np.abs((fast.inverse_transform(fast.transform(X)) - X) / scaler.scale_).max() < 0.1
    points, area = grid_2d(half_width=6.0, n_cells=60)
    log_density = fast.score_samples(scaler.inverse_transform(points)) - np.log(scaler.scale_).sum()
    assert np.exp(log_density).sum() * area * scaler.scale_.prod() == pytest.approx(1, abs=0.01)


def test_steps_may_change_the_number_of_features(blobs):
    X = np.hstack([blobs, blobs @ [[1.0], [2.0]]])
    pipeline = make_pipeline(PCA(2), make_flow(gain=2.0, max_epochs=1)).fit(X)
    fast = make_fast(pipeline).fit(X)
    assert (fast.n_features_in_, fast.transform(X).shape, fast.sample(4, 0).shape) == (3, (300, 2), (4, 3))
    assert fast.inverse_transform(fast.transform(X)).shape == X.shape
    assert fast.fit().n_features_in_ == 3
    with pytest.raises(ValueError, match="Z has 3 features, but the base distribution's samples have 2"):
        fast.inverse_transform(X)


def test_steps_that_cannot_be_undone_leave_densities_alone(blobs):
    pipeline = make_pipeline(PolynomialFeatures(1, include_bias=False), make_flow(gain=2.0, max_epochs=1)).fit(blobs)
    fast = make_fast(pipeline).fit(blobs)
    assert np.isfinite(fast.score(blobs))
    for back in (fast.sample, lambda: fast.inverse_transform(blobs)):
        with pytest.raises(
            ValueError, match=r"(?s)samples cannot be carried back through Pipeline.*no inverse_transform"
        ):
            back()


# ---------------------------------------------------------------------- other solvers, modules, other processes
def test_with_solver_swaps_steps_and_base_in_both_directions(fast, blobs):
    ralston = fast.with_solver("ralston")
    assert (ralston.base_solver, fast.base_solver, ralston.sampler_.base_solver_.name) == ("ralston", "heun", "ralston")
    assert ralston.density_.base_solver_.name == "ralston" and ralston.density_.correction_ is fast.density_.correction_
    assert 0 < np.abs(ralston.score_samples(blobs) - fast.score_samples(blobs)).max() < 0.5
    with pytest.warns(UserWarning, match=r"step size 0.0625 lies outside the fitted range"):
        finer = fast.with_solver(n_steps=16)
    assert (finer.n_steps, finer.module_.n_steps, finer.density_.module_.n_steps, fast.module_.n_steps) == (
        16,
        16,
        16,
        2,
    )
    assert np.abs(finer.without_correction().score(blobs) - fast.score(blobs)) < 0.02
    with pytest.raises(ValueError, match=r"base_solver 'rk4' .* cannot take over the correction fitted for 'heun'"):
        fast.with_solver("rk4")


def test_modules_predict_the_same(fast, blobs):
    z = torch.from_numpy(np.random.default_rng(0).normal(size=(10, 2)))
    sampling, density = fast.to_module(), fast.to_module("density")
    assert not sampling.training and not density.training and density.solver is not fast.density_.module_
    x = torch.from_numpy(blobs)
    with torch.no_grad():
        np.testing.assert_array_equal(sampling.fold()(z), fast.inverse_transform(z))
        np.testing.assert_array_equal(density.fold()(x), fast.score_samples(blobs))
        np.testing.assert_array_equal(density.fold().base_state(x), fast.transform(blobs))
        torch.testing.assert_close(sampling(z), sampling.fold()(z))
        torch.testing.assert_close(density(x), density.fold()(x))


def test_a_density_module_holds_each_weight_once_and_trains_it(blobs):
    slow = ContinuousNormalizingFlow(max_epochs=1, random_state=0).fit(blobs)
    module = make_fast(slow, base_solver="heun", n_steps=2, max_epochs=1).fit(blobs).to_module("density")
    tensors = [tensor for tensor in module.state_dict().values() if tensor.numel()]
    assert len({tensor.data_ptr() for tensor in tensors}) == len(tensors)
    n_field = sum(parameter.numel() for parameter in slow.flow_.vector_field.parameters())
    assert sum(parameter.numel() for parameter in module.solver.neural_ode.parameters()) == n_field
    module.requires_grad_(True)(torch.from_numpy(blobs)).mean().backward()
    assert all(parameter.grad is not None for parameter in module.solver.neural_ode.parameters())
    assert not any("flow" in name for name in module.state_dict())


def test_sampling_exports(fast):
    module, z = fast.to_module().fold(), torch.zeros(2, 2, dtype=torch.float64)
    exported = torch.export.export(module, (z,), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
    z = torch.from_numpy(np.random.default_rng(0).normal(size=(7, 2)))
    np.testing.assert_allclose(exported(z).detach(), module(z).detach(), rtol=1e-12)


@pytest.mark.parametrize(
    "copied", [lambda fast: pickle.loads(pickle.dumps(fast)), copy.deepcopy], ids=["pickle", "deepcopy"]
)
def test_copies_are_equal_and_stand_alone(fast, blobs, copied):
    other = copied(fast)
    np.testing.assert_array_equal(other.score_samples(blobs), fast.score_samples(blobs))
    np.testing.assert_array_equal(other.sample(3, random_state=0), fast.sample(3, random_state=0))
    assert other.module_ is other.sampler_.module_ and other.module_ is not fast.module_
    np.testing.assert_array_equal(other.with_solver("ralston").sample(3, 0), fast.with_solver("ralston").sample(3, 0))


def test_a_pickle_holds_no_training_data(quick):
    assert abs(len(pickle.dumps(clone(quick).fit(two_blobs(3000)))) - len(pickle.dumps(quick))) < 2000


# ---------------------------------------------------------------------- fitting
def test_the_same_random_state_gives_the_same_fit_and_touches_no_generator(quick, blobs):
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    same, other = (clone(quick).set_params(random_state=seed).fit(blobs) for seed in (0, 1))
    for method in (lambda m: m.score_samples(blobs), lambda m: m.sample(5, random_state=0)):
        np.testing.assert_array_equal(method(same), method(quick))
        assert np.abs(method(other) - method(quick)).max() > 1e-6
    assert torch.equal(torch.get_rng_state(), torch_state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)


def test_fit_leaves_the_flow_alone(curved, quick):
    weights = [{id(p) for p in module.parameters()} for module in (curved.flow_, quick.flow_, quick.module_)]
    assert weights[0].isdisjoint(weights[1] | weights[2])
    assert all(p.requires_grad for p in curved.flow_.parameters())
    assert not any(p.requires_grad for p in quick.module_.parameters())


def test_computes_in_the_field_s_dtype(blobs):
    fast = make_fast(make_flow(dtype=torch.float32, gain=2.0, max_epochs=1).fit(blobs)).fit(blobs)
    results = fast.score_samples(blobs), fast.sample(3, random_state=0), fast.transform(blobs.astype(np.float32))
    assert {result.dtype for result in results} == {np.dtype("float32")}


def test_a_cached_reference_is_not_solved_again(curved, blobs, solves, tmp_path):
    one, other = (make_fast(curved, n_steps=k, memory=str(tmp_path)).fit(blobs) for k in (2, 1))
    assert solves == [40, 40]  # one a direction, of max_samples
    assert np.abs(one.score_samples(blobs) - other.score_samples(blobs)).max() > 0


def test_jobs_change_nothing(curved, quick, blobs, monkeypatch):
    monkeypatch.setattr(references, "chunk_rows", lambda numel: 20)
    with joblib.parallel_config("threading"):
        parallel = make_fast(curved, n_jobs=2).fit(blobs)
    np.testing.assert_allclose(parallel.score_samples(blobs), quick.score_samples(blobs), atol=1e-3)


def test_a_warm_start_goes_on_with_both_corrections(curved, quick, blobs):
    fast = copy.copy(quick).set_params(warm_start=True, lr=1e-12, max_epochs=1)
    fast.fit(blobs)
    np.testing.assert_allclose(fast.score_samples(blobs), quick.score_samples(blobs), atol=1e-6)
    np.testing.assert_allclose(fast.sample(9, 0), quick.sample(9, 0), atol=1e-6)
    fast.fit()
    assert fast.density_ is None
    assert np.isfinite(fast.set_params(lr=2e-2, max_epochs=3).fit(blobs).score(blobs))


class StopsIn(Callback):
    """Presses Ctrl-C at the end of an epoch of the n-th training."""

    def __init__(self, training, epoch=2):
        self.training, self.epoch, self.begun = training, epoch, 0

    def on_train_begin(self, net, **kwargs):
        self.begun += 1

    def on_epoch_end(self, net, **kwargs):
        if (self.begun, len(net.history)) == (self.training, self.epoch):
            raise KeyboardInterrupt


def test_ctrl_c_keeps_what_has_been_fitted(curved, blobs):
    sampling_only = make_fast(curved, max_epochs=4, callbacks=[StopsIn(1)])
    with pytest.raises(KeyboardInterrupt):
        sampling_only.fit(blobs)
    assert len(sampling_only.sampler_.history_) == 2 and np.isfinite(sampling_only.sample(5)).all()
    with pytest.raises(ValueError, match=r"fitted for sampling only, by fit\(X=None\) or a fit that was interrupted"):
        sampling_only.score_samples(blobs)
    both = make_fast(curved, max_epochs=4, callbacks=[StopsIn(2)])
    with pytest.raises(KeyboardInterrupt):
        both.fit(blobs)
    assert (len(both.sampler_.history_), len(both.density_.history_)) == (4, 2) and np.isfinite(both.score(blobs))


def test_ctrl_c_in_a_reference_solve(curved, quick, blobs, monkeypatch):
    solve, solved = references.reference_solution, []

    def interrupted(*args, **kwargs):
        if len(solved) == allowed:
            raise KeyboardInterrupt
        solved.append(1)
        return solve(*args, **kwargs)

    fitted, unfitted = copy.copy(quick).set_params(warm_start=True), make_fast(curved)
    before = dict(vars(fitted))
    monkeypatch.setattr(references, "reference_solution", interrupted)
    for fast in (fitted, unfitted):
        allowed = len(solved)
        with pytest.raises(KeyboardInterrupt):
            fast.fit(blobs + 1)
    assert vars(fitted) == before and not [name for name in vars(unfitted) if name.endswith("_")]
    allowed = len(solved) + 1  # the sampler's is done: its fit is kept
    with pytest.raises(KeyboardInterrupt):
        unfitted.fit(blobs)
    assert unfitted.sample().shape == (1, 2) and unfitted.density_ is None


# ---------------------------------------------------------------------- scikit-learn
def test_clones_share_the_flow_and_are_unfitted(quick):
    copied = clone(quick)
    assert copied.neural_ode is quick.neural_ode and not hasattr(copied, "sampler_") and not hasattr(copied, "module_")


def test_searches_run_over_solvers_and_corrections(quick, blobs, tmp_path):
    candidate = make_fast(quick.neural_ode, correction=MLPCorrection(), memory=str(tmp_path))
    grid, one_split = {"n_steps": [1, 2], "correction__hidden": [4]}, ShuffleSplit(1, random_state=0)
    search = GridSearchCV(candidate, grid, cv=one_split, error_score="raise").fit(blobs)
    best = search.best_estimator_
    assert search.score(blobs) == best.score(blobs) and best.n_steps == search.best_params_["n_steps"]
    assert best.sampler_.correction.hidden == 4 and best.neural_ode is quick.neural_ode


def test_names_of_features(quick, blobs):
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(blobs, columns=["length", "width"])
    with pytest.warns(UserWarning, match="ContinuousNormalizingFlow was fitted without feature names"):
        fast = clone(quick).set_output(transform="pandas").fit(frame)
    z = fast.transform(frame)
    assert list(z.columns) == list(fast.get_feature_names_out()) == ["hypersolverdensity0", "hypersolverdensity1"]
    np.testing.assert_allclose(fast.inverse_transform(z), quick.inverse_transform(z.to_numpy()), rtol=1e-9)
    assert list(fast.feature_names_in_) == ["length", "width"]
    assert not hasattr(fast.fit(), "feature_names_in_")


def test_runs_behind_a_scaler_with_a_flow_of_the_same_coordinates(curved, quick, blobs):
    X = blobs * 10 + 3
    pipeline = make_pipeline(
        FunctionTransformer(from_tens, inverse_func=to_tens, check_inverse=False), clone(quick)
    ).fit(X)
    np.testing.assert_allclose(pipeline.score_samples(X), quick.score_samples(blobs), rtol=1e-6)
    assert pipeline.score(X) == pytest.approx(quick.score(blobs))
    np.testing.assert_allclose(
        pipeline.inverse_transform(quick.transform(blobs)), 10 * quick.inverse_transform(quick.transform(blobs)) + 3
    )


def from_tens(X):
    return (X - 3) / 10


def to_tens(X):
    return X * 10 + 3


def test_a_flow_module_is_taken_as_it_is():
    fast = make_fast(Flow(TANH.field, n_features=2, t_span=TANH.t_span)).fit()
    assert fast.flow_.t_span == (0.0, 0.8) and fast.sample(3, 0).shape == (3, 2)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(("n_features", "name"), [(4, "ab2"), (5, "nonstationary")])
def test_both_directions_have_the_base_solver_that_auto_chooses_for_the_features(n_features, name):
    X = np.random.default_rng(0).normal(size=(30, n_features))
    fast = HypersolverDensity(NeuralODE(_curl), n_steps=2, max_epochs=1, random_state=0)
    fast.fit(X)
    assert fast.sampler_.base_solver_.name == fast.density_.base_solver_.name == name


def _curl(t, z):
    return torch.sin(z.roll(1, dims=1))
