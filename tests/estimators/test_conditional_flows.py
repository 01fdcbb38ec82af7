"""Conditional densities: one flow for all conditions is, for each of them, a density of its own."""

import functools
import pickle

import numpy as np
import pandas as pd
import pytest
import sklearn
import torch
from scipy.stats import norm
from sklearn.model_selection import KFold, cross_val_score
from small_hypersolvers import ROUGH_FITS

from sklearn_hyper import ContinuousNormalizingFlow, HypersolverDensity, load
from sklearn_hyper.calibration import CalibrationRowsError
from sklearn_hyper.estimators._conditions import ConditionError
from sklearn_hyper.estimators.flows import append_noise
from sklearn_hyper.modules import Flow
from sklearn_hyper.modules.conditioned_fields import ConditionedMLPField
from sklearn_hyper.training.flow_fitting import FlowMatchingLoss
from sklearn_hyper.training.given_rows import GivenRows
from sklearn_hyper.training.tasks import row_digests

pytestmark = ROUGH_FITS
MEANS = {"left": (-2.0, 0.0), "right": (2.0, 1.0), "top": (0.0, 3.0)}
SPREAD = 0.5


def affine(t, z, *, rate, push):
    """Carries a standard normal to a normal of known mean and spread, whatever rate and push."""
    return rate[:, None] * z + push


def affine_log_density(x, rate, push):
    mean = push * ((np.exp(rate) - 1) / rate)[:, None]
    return norm.logpdf(x, mean, np.exp(rate)[:, None]).sum(axis=1)


def affine_rows(n, seed=0):
    rng = np.random.default_rng(seed)
    condition = {"rate": rng.uniform(0.2, 0.9, n), "push": rng.normal(size=(n, 2))}
    x = rng.normal(size=(n, 2)) * np.exp(condition["rate"])[:, None] + condition["push"]
    return x, condition


def blobs(n=600, seed=0):
    rng = np.random.default_rng(seed)
    names = rng.choice(sorted(MEANS), size=n)
    return rng.normal(scale=SPREAD, size=(n, 2)) + np.array([MEANS[name] for name in names]), names


def blob_log_density(x, names):
    return norm.logpdf(x, np.array([MEANS[name] for name in names]), SPREAD).sum(axis=1)


@pytest.fixture(scope="module")
def flow():
    X, names = blobs()
    return ContinuousNormalizingFlow(max_epochs=60, random_state=0).fit(X, condition={"blob": names})


@pytest.fixture(scope="module")
def fast():
    X, condition = affine_rows(300)
    hyper = HypersolverDensity(
        affine, n_features=2, base_solver="heun", n_steps=3, max_epochs=30, max_samples=300, random_state=0
    )
    return hyper.fit(X, condition=condition)


GRID = np.stack(np.meshgrid(np.linspace(-8, 8, 41), np.linspace(-8, 8, 41)), axis=-1).reshape(-1, 2)
CELL = 0.4**2


# ---------------------------------------------------------------------- the flow
@pytest.mark.parametrize("name", sorted(MEANS))
def test_the_density_of_each_condition_integrates_to_one(flow, name):
    densities = np.exp(flow.score_samples(GRID, condition={"blob": name}))
    assert densities.sum() * CELL == pytest.approx(1, abs=2e-3)


def test_the_density_of_each_condition_is_that_of_its_own_data(flow):
    X, names = blobs(300, seed=1)
    gap = flow.score_samples(X, condition={"blob": names}) - blob_log_density(X, names)
    assert abs(gap.mean()) < 0.1
    for name, mean in MEANS.items():
        samples = flow.sample(400, random_state=0, condition={"blob": name})
        np.testing.assert_allclose(samples.mean(axis=0), mean, atol=0.25)
        np.testing.assert_allclose(samples.std(axis=0), SPREAD, atol=0.15)


def test_samples_and_densities_go_with_their_conditions(flow):
    X, names = blobs(60, seed=2)
    order = np.random.default_rng(0).permutation(60)
    scores = flow.score_samples(X, condition={"blob": names})
    np.testing.assert_allclose(flow.score_samples(X[order], condition={"blob": names[order]}), scores[order])
    Z = flow.transform(X, condition={"blob": names})
    np.testing.assert_allclose(flow.inverse_transform(Z, condition={"blob": names}), X, atol=1e-5)
    drawn = flow.sample(condition={"blob": names}, random_state=0)
    assert drawn.shape == (60, 2)
    alone = flow.sample(60, random_state=0, condition={"blob": "top"})
    np.testing.assert_allclose(drawn[names == "top"], alone[names == "top"], rtol=1e-5)


def test_likelihood_learns_conditions_by_every_solver():
    X, names = blobs(300)
    for params in ({}, {"solver": "auto", "trace": "rademacher"}, {"solver": "rk4", "n_steps": 4}):
        flow = ContinuousNormalizingFlow(objective="likelihood", max_epochs=3, lr=2e-2, random_state=0, **params)
        flow.fit(X, condition={"blob": names})
        wrong = np.roll(names, 1)
        assert flow.score(X, condition={"blob": names}) > flow.score(X, condition={"blob": wrong}) + 0.5


@pytest.mark.parametrize("trace", ["exact", "rademacher"])
def test_joint_and_hypersolved_trainings_learn_conditions(trace):
    X, names = blobs(300)
    shared = {"objective": "likelihood", "base_solver": "heun", "n_steps": 3, "max_epochs": 3, "lr": 2e-2}
    for params in ({"joint": 1.0}, {"solver": "hypersolved"}):
        flow = ContinuousNormalizingFlow(random_state=0, trace=trace, **shared, **params)
        flow.fit(X, condition={"blob": names})
        right, wrong = (flow.score(X, condition={"blob": given}) for given in (names, np.roll(names, 1)))
        assert right > wrong + 0.5
    # What the training leaves behind takes the condition beside the rows, as the flow does.
    left = flow.hypersolver_
    rows = torch.from_numpy(X if trace == "exact" else append_noise(X, trace, flow._noise_seed))
    condition = {"blob": torch.from_numpy(np.unique(names, return_inverse=True)[1])}
    ends = flow.flow_.log_prob(left.solve(rows, condition))
    np.testing.assert_allclose(ends, flow.score_samples(X, condition={"blob": names}), atol=0.1)
    digests = row_digests(left.neural_ode, rows, condition)
    assert np.isin(left.fitted_rows, digests).all()


def test_integers_and_floats_may_be_a_condition():
    rng = np.random.default_rng(0)
    shift, label = rng.normal(scale=30, size=400), rng.integers(10, 13, size=400)
    X = rng.normal(scale=0.3, size=(400, 1)) + shift[:, None] / 30 + 2 * (label[:, None] - 11)
    condition = pd.DataFrame({"shift": shift, "label": label})
    flow = ContinuousNormalizingFlow(max_epochs=100, random_state=0).fit(X, condition=condition)
    expected = norm.logpdf(X, shift[:, None] / 30 + 2 * (label[:, None] - 11), 0.3).mean()
    assert flow.score(X, condition=condition) > expected - 0.15
    with pytest.raises(ConditionError, match=r"condition\['label'\] holds 13, not among the 3 categories"):
        flow.sample(condition={"shift": 0.0, "label": 13})


def test_a_field_of_ones_own_takes_the_condition():
    class Own(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Sequential(torch.nn.Linear(4, 32), torch.nn.Tanh(), torch.nn.Linear(32, 2))

        def forward(self, t, z, *, context):
            return self.net(torch.cat([z, context], dim=1))

    rng = np.random.default_rng(0)
    context = rng.normal(size=(300, 2)).astype(np.float32)
    X = context + rng.normal(scale=0.2, size=(300, 2)).astype(np.float32)
    flow = ContinuousNormalizingFlow(Own(), max_epochs=60, random_state=0).fit(X, condition={"context": context})
    assert flow.score(X, condition={"context": context}) > flow.score(X, condition={"context": -context}) + 1
    assert flow.dtype_ == torch.float32


# ---------------------------------------------------------------------- its training
def test_the_loss_of_rows_is_that_of_a_field_with_their_condition_built_in():
    x, condition = affine_rows(20)
    given = {name: torch.from_numpy(value) for name, value in condition.items()}
    rows = GivenRows(torch.from_numpy(x), given)
    bound = Flow(functools.partial(affine, **given), n_features=2)
    drawn = FlowMatchingLoss(bound).draw(20, rows.x)
    for row_times in (True, False):
        loss = FlowMatchingLoss(Flow(affine, n_features=2), None, row_times)(rows, drawn)
        start, end = drawn[1], rows.x
        velocity = affine(None, torch.lerp(start, end, drawn[0][:, None]), **given)
        torch.testing.assert_close(loss, (velocity - (end - start)).pow(2).mean())


def test_the_default_field_takes_a_time_for_all_rows_or_one_a_row():
    label, size = torch.tensor([0, 2, 1]), torch.tensor([[1.0, 5.0], [3.0, 5.0], [2.0, 5.0]])
    field = ConditionedMLPField(2, {"label": label, "size": size}, {"label": 3})
    z, t = torch.randn(3, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([0.1, 0.5, 0.9])
    every = field(t, z, label=label, size=size)
    for row in range(3):
        own = field(t[row], z[[row]], label=label[[row]], size=size[[row]])
        torch.testing.assert_close(every[[row]], own)
    assert not torch.equal(field(t, z, label=label.flip(0), size=size), every)


# ---------------------------------------------------------------------- its hypersolver
def test_conditional_densities_are_those_of_separate_flows_in_closed_form(fast):
    X, condition = affine_rows(200, seed=1)
    truth = affine_log_density(X, condition["rate"], condition["push"])
    found = fast.score_samples(X, condition=condition)
    base = fast.without_correction().score_samples(X, condition=condition)
    assert np.abs(found - truth).mean() < 0.05 and np.abs(found - truth).mean() < 0.5 * np.abs(base - truth).mean()
    for row in range(3):
        bound = functools.partial(
            affine, rate=torch.tensor([condition["rate"][row]]), push=torch.tensor(condition["push"][[row]])
        )
        separate = HypersolverDensity(bound, n_features=2, base_solver="heun", n_steps=3, max_epochs=1, random_state=0)
        separate = separate.fit(X[:40]).without_correction()
        assert base[row] == pytest.approx(separate.score_samples(X[[row]])[0], abs=1e-6)


def test_a_hypersolved_density_integrates_to_one_for_each_condition(fast):
    for rate, push in ((0.3, [[0.5, -0.5]]), (0.8, [[1.0, 0.0]])):
        densities = np.exp(fast.score_samples(GRID, condition={"rate": rate, "push": push}))
        assert densities.sum() * CELL == pytest.approx(1, abs=0.05)


def test_samples_have_the_mean_and_spread_of_their_condition(fast):
    condition = {"rate": 0.7, "push": [[1.0, -2.0]]}
    samples = fast.sample(4000, random_state=0, condition=condition)
    np.testing.assert_allclose(samples.mean(axis=0), np.array([1.0, -2.0]) * (np.exp(0.7) - 1) / 0.7, atol=0.15)
    np.testing.assert_allclose(samples.std(axis=0), np.exp(0.7), rtol=0.05)
    Z = fast.transform(samples[:50], condition=condition)
    np.testing.assert_allclose(fast.inverse_transform(Z, condition=condition), samples[:50], atol=0.1)


def test_a_fitted_flows_categories_are_those_of_its_hypersolver(flow):
    X, names = blobs(200, seed=1)
    fast = HypersolverDensity(flow, n_steps=4, max_epochs=10, max_samples=150, random_state=0)
    fast.fit(X, condition={"blob": names})
    only = {"blob": np.array(["top"] * 20)}  # alone, "top" would be the first of its categories
    exact = flow.score_samples(X[:20], condition=only)
    np.testing.assert_allclose(fast.score_samples(X[:20], condition=only), exact, atol=0.05 * np.abs(exact).max())
    one, other = (est.sample(50, random_state=0, condition=only | {"blob": "top"}) for est in (flow, fast))
    np.testing.assert_allclose(one, other, atol=0.2)
    again = pickle.loads(pickle.dumps(fast))
    one = {"blob": "left"}
    np.testing.assert_array_equal(again.sample(9, 0, condition=one), fast.sample(9, 0, condition=one))
    with pytest.raises(ConditionError, match="'bottom', not among the 3 categories"):
        fast.sample(condition={"blob": "bottom"})


def test_sampling_alone_is_fitted_on_a_condition_without_data():
    _, condition = affine_rows(50)
    fast = HypersolverDensity(affine, n_features=2, base_solver="heun", n_steps=3, max_epochs=3, random_state=0)
    fast.fit(condition=condition)
    assert fast.density_ is None and fast.sample(5, condition={"rate": 0.5, "push": [[0.0, 0.0]]}).shape == (5, 2)


def test_a_refit_of_a_density_takes_a_condition(fast):
    X, condition = affine_rows(200)
    again = HypersolverDensity(
        affine, n_features=2, base_solver="heun", n_steps=2, max_epochs=6, max_samples=100, random_state=0
    ).fit(X, condition=condition)
    again.refit(lambda t, z, *, rate, push: 1.3 * affine(t, z, rate=rate, push=push), X, condition=condition)
    assert again.density_.errors_before is not None and np.isfinite(again.score(X, condition=condition))


def test_bounds_of_samples_and_densities_hold_over_conditions(fast):
    X, condition = affine_rows(700, seed=3)
    fast.conformalize(X, condition=condition, n_samples=300)
    new, given = affine_rows(300, seed=4)
    truth = affine_log_density(new, given["rate"], given["push"])
    scores, bound = fast.score_samples(new, condition=given, return_bound=True, coverage=0.9)
    assert (np.abs(scores - truth) <= bound + 1e-4).mean() > 0.8
    scores = fast.score_samples(new, condition=given, atol=0.02, alpha=0.05)
    assert (np.abs(scores - truth) > 0.021).mean() <= 0.05
    samples, bound = fast.sample(condition=given, random_state=5, return_bound=True, coverage=0.9)
    assert samples.shape == new.shape and np.isfinite(bound).mean() > 0.8


def test_flows_and_densities_transform_with_the_condition_of_their_fit(tmp_path):
    X, names = blobs(120)
    given = {"blob": names}
    flow = ContinuousNormalizingFlow(max_epochs=2, random_state=0)
    states = flow.fit_transform(X, condition=given)
    np.testing.assert_array_equal(states, flow.transform(X, condition=given))
    hyper = HypersolverDensity(flow, n_steps=2, base_solver="heun", max_epochs=2, max_samples=60, random_state=0)
    np.testing.assert_array_equal(hyper.fit_transform(X, condition=given), hyper.transform(X, condition=given))
    for one in (flow, hyper):
        with pytest.raises(
            ConditionError, match=r"random_state has the entries \['blob'\]; pass a condition by its name"
        ):
            one.sample(5, given)
    plain = ContinuousNormalizingFlow(max_epochs=2, random_state=0).fit(X)
    fast = HypersolverDensity(plain, n_steps=2, base_solver="heun", max_epochs=2, max_samples=60, random_state=0).fit(X)
    for one in (plain, fast):
        one.save(tmp_path / "model")
        assert load(tmp_path / "model").condition_ == one.condition_ == {}


def test_rows_with_noise_and_a_condition_are_known_and_bounded():
    X, condition = affine_rows(700, seed=4)
    hyper = HypersolverDensity(
        affine, n_features=2, base_solver="heun", n_steps=3, max_epochs=10, max_samples=300, trace="rademacher",
        random_state=0,
    )  # fmt: skip
    given = {name: values[:300] for name, values in condition.items()}
    hyper.fit(X[:300], condition=given)
    assert hyper.density_.settings.extra_rows == "between"
    with pytest.raises(CalibrationRowsError, match="of 300 rows of X were fitted on"):
        hyper.conformalize(X[:300], condition=given)
    hyper.conformalize(X[300:500], condition={name: values[300:500] for name, values in condition.items()})
    rest = {name: values[500:] for name, values in condition.items()}
    scores, bound = hyper.score_samples(X[500:], condition=rest, return_bound=True, coverage=0.9)
    # The trace of this field does not depend on the noise.
    errors = np.abs(scores - affine_log_density(X[500:], **rest))
    assert (errors <= bound + 1e-6).mean() > 0.85
    assert np.isfinite(bound).mean() > 0.9


def test_reports_and_modules_take_a_condition(fast):
    X, condition = affine_rows(60, seed=5)
    for report in (fast.solver_report(X, condition=condition), fast.solver_report(condition=condition, n_samples=50)):
        _, base, ours = report
        assert ours.l2_mean < base.l2_mean
    given = {name: torch.from_numpy(value) for name, value in condition.items()}
    densities = fast.to_module("density")(torch.from_numpy(X), given)
    np.testing.assert_allclose(densities.detach().numpy(), fast.score_samples(X, condition=condition), rtol=1e-6)


# ---------------------------------------------------------------------- inside scikit-learn, and what is wrong
def test_cross_validation_of_a_flow_cuts_the_condition_with_its_rows():
    X, names = blobs(120)
    with sklearn.config_context(enable_metadata_routing=True):
        flow = ContinuousNormalizingFlow(max_epochs=3, random_state=0)
        flow.set_fit_request(condition=True).set_score_request(condition=True)
        folds, frame = KFold(2), pd.DataFrame({"blob": names})
        scores = cross_val_score(flow, X, cv=folds, params={"condition": frame}, error_score="raise")
        by_hand = [
            sklearn.clone(flow)
            .fit(X[train], condition={"blob": names[train]})
            .score(X[test], condition={"blob": names[test]})
            for train, test in folds.split(X)
        ]
    np.testing.assert_allclose(scores, by_hand)


@pytest.mark.parametrize("method", ["score_samples", "score", "transform", "inverse_transform"])
def test_a_missing_condition_is_named(flow, fast, method):
    with pytest.raises(ConditionError, match="condition must have 'blob', as in fit of this ContinuousNormalizingFlow"):
        getattr(flow, method)(GRID[:5])
    with pytest.raises(ConditionError, match="condition must have 'rate', 'push'"):
        getattr(fast, method)(GRID[:5])


def test_samples_and_entries_of_other_numbers_are_refused(flow, fast):
    for estimator, condition in ((flow, {"blob": ["top"] * 4}), (fast, {"rate": [0.5] * 4, "push": [[0, 0]]})):
        with pytest.raises(ConditionError, match="has 4 entries for 3 rows of X"):
            estimator.sample(3, condition=condition)
        with pytest.raises(ConditionError, match="got None"):
            estimator.sample(3)
