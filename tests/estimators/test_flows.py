"""ContinuousNormalizingFlow: closed forms, data in and out, and scikit-learn's conventions."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from flow_problems import (
    LINEAR,
    PLANE_FLOWS,
    TANH_5D,
    each_flow,
    grid_2d,
    log_standard_normal,
)
from problems import named
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from small_flows import LIKELIHOOD, holding, make_flow, two_blobs
from torch.distributions import Independent, Laplace, MultivariateNormal

from sklearn_hyper import ContinuousNormalizingFlow
from sklearn_hyper.estimators._base import dopri5_states
from sklearn_hyper.estimators.flows import append_noise


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
    """Over the seeds of fits: a row has one estimate for each."""
    flow, x = holding(TANH_5D, trace="rademacher"), TANH_5D.sample(1)
    rows = np.concatenate([append_noise(x.numpy(), "rademacher", seed) for seed in range(4000)])
    ode = flow.flow_.density(hutchinson=True)
    with torch.no_grad():
        estimates = flow.flow_.log_prob(dopri5_states(ode, torch.from_numpy(rows))).numpy()
    standard_error = estimates.std() / math.sqrt(4000)
    assert estimates.std() > 0.05
    assert abs(estimates.mean() - TANH_5D.log_prob(x).item()) < 4 * standard_error


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
@pytest.mark.parametrize("width", [1, 5, 40])
def test_noise_belongs_to_a_row(kind, width):
    """Not to its place, its batch, or its precision; and to the seed."""
    X = np.random.default_rng(0).normal(size=(300, width)).astype(np.float32)
    noise = append_noise(X, kind, 7)[:, width:]
    order = np.random.default_rng(1).permutation(300)
    np.testing.assert_array_equal(append_noise(X[order], kind, 7)[:, width:], noise[order])
    for some in (X[5:6], X[5:6].astype(np.float64), X[5:6].astype(np.float64) * (1 + 1e-12)):
        np.testing.assert_allclose(append_noise(some, kind, 7)[:, width:], noise[5:6], rtol=1e-6)
    np.testing.assert_array_equal(append_noise(0 * X, kind, 7), append_noise(-0.0 * np.abs(X), kind, 7))
    assert (append_noise(X, kind, 8)[:, width:] != noise).mean() > 0.4
    assert abs(np.corrcoef(noise[:-1].ravel(), noise[1:].ravel())[0, 1]) < 5 / math.sqrt(noise.size)


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
@pytest.mark.parametrize("scale", [1e-60, 1.0, 1e60])
def test_noise_has_mean_zero_and_unit_covariance(kind, scale):
    X = scale * np.random.default_rng(0).normal(size=(4000, 6))
    noise = append_noise(X, kind, 0)[:, 6:]
    within = 5 / math.sqrt(4000)
    assert np.abs(noise.mean(axis=0)).max() < within
    assert np.abs(noise.T @ noise / 4000 - np.eye(6)).max() < 2 * within


@pytest.mark.parametrize("trace", ["rademacher", "gaussian"])
def test_hutchinsons_density_of_a_row_does_not_depend_on_others(trace):
    flow, X = holding(TANH_5D, trace=trace), TANH_5D.sample(12).numpy()
    densities = flow.score_samples(X)
    np.testing.assert_allclose(flow.score_samples(X[::-1])[::-1], densities, atol=1e-6)
    np.testing.assert_allclose(
        np.concatenate([flow.score_samples(X[i : i + 1]) for i in range(12)]), densities, atol=1e-6
    )


def test_wide_data_get_an_estimate_unless_asked_otherwise():
    X = np.random.default_rng(0).normal(size=(40, 17))
    flow = make_flow(17, hidden=4, max_epochs=1).fit(X)
    estimated, exact = flow.score_samples(X), copy.copy(flow).set_params(trace="exact").score_samples(X)
    assert 0 < np.abs(estimated - exact).max() < 20
    np.testing.assert_array_equal(estimated, copy.copy(flow).set_params(trace="rademacher").score_samples(X))


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
