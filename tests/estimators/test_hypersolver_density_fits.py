"""HypersolverDensity: what it takes, its fits and interruptions, and scikit-learn's conventions."""

import copy

import joblib
import numpy as np
import pytest
import torch
from flow_problems import (
    LINEAR,
    TANH,
    grid_2d,
)
from interruptions import StopsInTraining
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV, ShuffleSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, PolynomialFeatures, StandardScaler
from small_flows import make_fast, make_flow
from torch.distributions import Independent, Laplace

from sklearn_hyper import HypersolverDensity, MLPCorrection, NeuralODE
from sklearn_hyper.estimators._fitted_neural_ode import resolve_flow
from sklearn_hyper.modules import Flow, neural_ode
from sklearn_hyper.training import correction_fit, extra_rows, references


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
    # One a direction, of max_samples; rows drawn between them are others for another number of steps.
    assert [solve.n_rows for solve in solves if solve.n_rows > 9] == [40, 40]
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


def test_ctrl_c_keeps_what_has_been_fitted(curved, blobs):
    sampling_only = make_fast(curved, max_epochs=4, callbacks=[StopsInTraining(1, epoch=2, at_end=True)])
    with pytest.raises(KeyboardInterrupt):
        sampling_only.fit(blobs)
    assert len(sampling_only.sampler_.history) == 2 and np.isfinite(sampling_only.sample(5)).all()
    with pytest.raises(ValueError, match=r"fitted for sampling only, by fit\(X=None\) or a fit that was interrupted"):
        sampling_only.score_samples(blobs)
    both = make_fast(curved, max_epochs=4, callbacks=[StopsInTraining(2, epoch=2, at_end=True)])
    with pytest.raises(KeyboardInterrupt):
        both.fit(blobs)
    assert (len(both.sampler_.history), len(both.density_.history)) == (4, 2) and np.isfinite(both.score(blobs))


def test_ctrl_c_in_a_reference_solve(curved, quick, blobs, monkeypatch):
    solve, solved = neural_ode.reference_solution, []

    def interrupted(*args, **kwargs):
        if len(solved) == allowed:
            raise KeyboardInterrupt
        solved.append(1)
        return solve(*args, **kwargs)

    fitted, unfitted = copy.copy(quick).set_params(warm_start=True), make_fast(curved)
    before = dict(vars(fitted))
    monkeypatch.setattr(neural_ode, "reference_solution", interrupted)
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
    assert best.sampler_.settings.correction.hidden == 4 and best.neural_ode is quick.neural_ode


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


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(("n_features", "name"), [(4, "ab2"), (5, "nonstationary")])
def test_both_directions_have_the_base_solver_that_auto_chooses_for_the_features(n_features, name):
    X = np.random.default_rng(0).normal(size=(30, n_features))
    fast = HypersolverDensity(NeuralODE(_curl), n_steps=2, max_epochs=1, random_state=0)
    fast.fit(X)
    assert fast.sampler_.method.name == fast.density_.method.name == name


def _curl(t, z):
    return torch.sin(z.roll(1, dims=1))


# ---------------------------------------------------------------------- rows beside X
rough = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@rough
def test_rows_between_those_of_x_are_for_densities_alone(blobs, monkeypatch):
    """Base states fill their space already; data leave gaps, in which nothing else is learned."""
    drawn = []
    draw = extra_rows.draw_extra_rows

    def remember(task, runs, settings, rng):
        drawn.append((task.neural_ode.n_unitless, settings.extra_rows, extra := draw(task, runs, settings, rng)))
        return extra

    monkeypatch.setattr(correction_fit, "draw_extra_rows", remember)
    fast = make_fast(LINEAR.field, max_epochs=1).fit(blobs)
    ((n_unitless, how, extra),) = drawn
    assert (n_unitless, how) == (1, "between")
    assert len(extra.task) == 9  # a quarter of the 36 rows, of max_samples=40, that are trained on
    clone(fast).set_params(extra_rows=None).fit(blobs)
    make_fast(LINEAR.field, n_features=2, max_epochs=1).fit()
    assert len(drawn) == 1
    clone(fast).set_params(extra_rows="worst").fit(blobs)
    assert drawn[1][:2] == (1, "worst")


@rough
def test_rows_between_have_noise_of_hutchinson_s_estimate_too(blobs):
    fast = make_fast(TANH.field, trace="gaussian", max_epochs=2).fit(blobs)
    assert np.isfinite(fast.score_samples(blobs)).all()
