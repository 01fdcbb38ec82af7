"""Calibrations as parts of estimators: what keeps one, what drops one, and what is refused."""

import copy
import inspect
import pickle
import warnings
from dataclasses import fields

import numpy as np
import pandas as pd
import pytest
import torch
from calibrated import Riccati, draw, errors_of, make_generalist
from sklearn import config_context
from sklearn.base import clone
from sklearn.datasets import load_digits, make_moons
from sklearn.decomposition import PCA
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from user_fields import decay

from sklearn_hyper import (
    ContinuousNormalizingFlow,
    HypersolverClassifier,
    HypersolverDensity,
    HypersolverRegressor,
    NeuralODE,
    NeuralODEClassifier,
)
from sklearn_hyper.calibration import CalibrationRowsError, NotCalibratedError
from sklearn_hyper.estimators import UnsolvedRowsWarning
from sklearn_hyper.estimators._calibrated import ASKED, Wanted
from sklearn_hyper.numerics.reference import ReferenceSolveError

pytestmark = pytest.mark.filterwarnings("ignore::sklearn_hyper.calibration.UnusualRowsWarning")
X = draw(200, 2)


@pytest.fixture(scope="module")
def fast():
    return make_generalist(max_epochs=5).fit(draw(100, 0)).conformalize(draw(600, 1))


# ---------------------------------------------------------------------- it belongs to one solver
def test_without_a_calibration_a_bound_is_refused(fast):
    for other in (fast.with_solver(n_steps=3), fast.with_solver(t_span=(0, 0.9)), fast.without_correction()):
        assert not hasattr(other, "calibration_")
        with pytest.raises(NotCalibratedError, match=r"no calibration \(n_steps=.*call conformalize"):
            other.predict(X, return_bound=True)
    assert hasattr(fast, "calibration_")


def test_a_new_fit_drops_it():
    again = make_generalist(max_epochs=2).fit(draw(100, 0)).conformalize(draw(100, 1))
    again.fit(draw(100, 0))
    with pytest.raises(NotCalibratedError, match="A new fit"):
        again.predict(X, tol=0.1)


def test_clones_have_none_and_copies_keep_it(fast):
    assert not hasattr(clone(fast), "calibration_")
    loaded = pickle.loads(pickle.dumps(fast))
    for how in ({"return_bound": True}, {"tol": 0.1, "alpha": 0.05, "return_info": True}):
        (z, beside), (again, same) = fast.predict(X, **how), loaded.predict(X, **how)
        np.testing.assert_array_equal(z, again)
        np.testing.assert_array_equal(*(np.asarray(getattr(b, "n_evaluations", b)) for b in (beside, same)))


def test_values_alone_are_what_they_were(fast):
    plain = make_generalist(max_epochs=5).fit(draw(100, 0))
    np.testing.assert_array_equal(plain.predict(X), fast.predict(X))


def test_calibrating_twice_gives_the_same_bounds(fast):
    bounds = [fast.conformalize(draw(600, 1)).predict(X, return_bound=True)[1] for _ in range(2)]
    np.testing.assert_array_equal(*bounds)


def test_it_works_in_inference_mode_and_in_float32():
    with torch.inference_mode():
        slow = NeuralODE(Riccati().float())
        single = HypersolverRegressor(slow, base_solver="euler", n_steps=2, max_epochs=5, random_state=0)
        z, bound = single.fit(draw(100, 0)).conformalize(draw(300, 1)).predict(X, return_bound=True, coverage=0.9)
    assert z.dtype == np.float32
    assert (errors_of(z, X) <= bound).mean() > 0.8


# ---------------------------------------------------------------------- rows
def test_rows_that_were_fitted_on_are_refused(fast):
    with pytest.raises(CalibrationRowsError, match="50 of 150 rows of X were fitted on"):
        fast.conformalize(np.concatenate([draw(100, 0)[:50], draw(100, 1)]))


def test_fitted_rows_are_known_in_another_precision_and_order():
    fitted = HypersolverRegressor(Riccati().float(), base_solver="euler", n_steps=2, max_epochs=2, random_state=0)
    fitted.fit(draw(100, 0).astype(np.float32))
    with pytest.raises(CalibrationRowsError, match="100 of 100 rows"):
        fitted.conformalize(draw(100, 0)[::-1])


def test_rows_that_max_samples_left_out_may_calibrate():
    rows = draw(300, 0)
    fitted = make_generalist(max_epochs=2, max_samples=100).fit(rows)
    seen = np.isin(rows, rows).all(axis=1)
    with pytest.raises(CalibrationRowsError, match="100 of 300"):
        fitted.conformalize(rows[seen])


def test_fewer_than_forty_rows_are_refused(fast):
    with pytest.raises(CalibrationRowsError, match="X has 39 rows; a calibration needs 40"):
        fast.conformalize(draw(39, 1))


# ---------------------------------------------------------------------- wrong values
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tol": 0}, "tol=0 and atol=None allow no error at all; make one of them a positive number"),
        ({"atol": 0.0}, "tol=None and atol=0.0 allow no error at all"),
        ({"tol": 0.0, "atol": 0}, "tol=0.0 and atol=0 allow no error at all"),
        ({"tol": -1e-2}, "tol must be None, a positive number, or 0 beside the other, got -0.01"),
        ({"tol": np.nan}, "tol must be None, a positive number"),
        ({"tol": "small"}, "tol must be None, a positive number, or 0 beside the other, got 'small'"),
        ({"tol": True}, "tol must be None, a positive number, or 0 beside the other, got True"),
        ({"atol": np.inf}, "atol must be None, a positive number"),
        ({"tol": 0.1, "alpha": 0}, "alpha must be a number between 0 and 1, exclusive, got 0"),
        ({"tol": 0.1, "alpha": 1.0}, "alpha must be a number between 0 and 1"),
        ({"return_bound": True, "coverage": 1}, "coverage must be a number between 0 and 1"),
        ({"return_bound": True, "coverage": True}, "coverage must be a number between 0 and 1"),
        ({"return_bound": True, "bound": "tight"}, "bound must be 'learned' or 'verified', got 'tight'"),
        ({"return_bound": True, "tol": 0.1}, "is the bound itself; leave one out"),
        ({"route": True}, "route=True chooses the cheapest solver for a tolerance"),
        ({"tol": 0.1, "route": True, "bound": "verified"}, "two ways to choose a solver by row"),
        # What is neither True nor False.
        ({"return_bound": "verified"}, "return_bound must be True or False, got 'verified'"),
        ({"tol": 0.1, "route": 1}, "route must be True or False, got 1"),
        ({"return_info": None}, "return_info must be True or False, got None"),
        # What has no effect.
        ({"bound": "verified"}, "bound='verified' says how .* pass return_bound=True or tol"),
        ({"bound": "verified", "return_info": True}, "bound='verified' says how"),
        ({"coverage": 0.9}, "coverage=0.9 is that of a bound, and none is asked for; pass return_bound=True"),
        ({"coverage": 0.9, "return_info": True}, "coverage=0.9 is that of a bound"),
        ({"coverage": 0.9, "tol": 0.1}, "coverage=0.9 is .*; the share of rows within a tolerance is 1 - alpha"),
        ({"alpha": 0.05}, "alpha=0.05 is the share of rows that may exceed a tolerance, and there is none; pass tol"),
        ({"alpha": 0.05, "return_bound": True}, "alpha=0.05 is the share"),
        ({"return_bound": True, "route": True}, "route=True chooses the cheapest solver for a tolerance"),
        # What is wrong, though it would have no effect.
        ({"alpha": 2}, "alpha must be a number between 0 and 1, exclusive, got 2"),
        ({"coverage": 99}, "coverage must be a number between 0 and 1, exclusive, got 99"),
        ({"bound": None}, "bound must be 'learned' or 'verified', got None"),
        ({"bound": np.array(["learned"] * 2)}, "bound must be 'learned' or 'verified'"),
    ],
)
def test_wrong_values_are_refused_by_name(fast, wrong, message):
    for method in (fast.predict, fast.transform):
        with pytest.raises(ValueError, match=message):
            method(X, **wrong)


def test_flags_of_numpy_are_flags(fast):
    _, bound, info = fast.predict(X, return_bound=np.True_, return_info=np.True_)
    assert len(bound) == len(info.solver) == len(X)


def test_one_of_two_tolerances_may_be_zero(fast):
    for both, alone in (
        ({"tol": 0.1, "atol": 0.0}, {"tol": 0.1}),
        ({"tol": 0.0, "atol": 0.1}, {"atol": 0.1}),
        ({"tol": 0, "atol": 1}, {"atol": 1.0}),
    ):
        np.testing.assert_array_equal(fast.predict(X, alpha=0.05, **both), fast.predict(X, alpha=0.05, **alone))


def test_defaults_may_be_spelled_out(fast):
    plain = fast.predict(X)
    spelled = fast.predict(X, return_bound=False, coverage=0.99, bound="learned", alpha=0.01, route=False)
    np.testing.assert_array_equal(spelled, plain)
    np.testing.assert_array_equal(fast.transform(X, coverage=0.99), plain)


def test_info_alone_needs_no_rows_for_a_coverage():
    few = make_generalist(max_epochs=2).fit(draw(100, 0)).conformalize(draw(40, 1))
    z, info = few.predict(X, return_info=True)
    np.testing.assert_array_equal(z, few.predict(X))
    assert len(info.unusual) == len(X)
    with pytest.raises(CalibrationRowsError, match="needs 99 rows"):
        few.predict(X, return_bound=True)


def test_large_numbers_of_rows_are_legible(fast):
    with pytest.raises(CalibrationRowsError, match=r"needs 999,999 rows to calibrate on.*at least 999,999 rows"):
        fast.predict(X, return_bound=True, coverage=0.999999)
    with pytest.raises(CalibrationRowsError, match=r"needs 2,302 rows to certify on.*at least 4,604 rows"):
        fast.predict(X, tol=0.1, alpha=0.001)
    with pytest.raises(CalibrationRowsError, match="needs 9,999 rows"):
        fast.trajectory(X, return_bound=True, coverage=0.9999)


# ---------------------------------------------------------------------- levels
def test_levels_must_be_of_the_same_neural_ode(fast):
    other = HypersolverRegressor(decay, base_solver="euler", n_steps=4, max_epochs=2, random_state=0).fit(draw(60, 0))
    with pytest.raises(ValueError, match="hypersolver of another Neural ODE"):
        fast.conformalize(draw(100, 1), levels=[other])
    with pytest.raises(ValueError, match="levels must hold fitted hypersolvers"):
        fast.conformalize(draw(100, 1), levels=[make_generalist()])
    assert fast.calibration_.n_rows == 600  # the one before is kept


@pytest.mark.parametrize("make", [lambda fast: fast, lambda _: "fast", lambda fast: (one for one in [fast])])
def test_levels_must_be_a_list(fast, blobs_flow, make):
    with pytest.raises(
        TypeError, match=r"(?s)levels must be a list or tuple of fitted hypersolvers, got .* into a list"
    ):
        fast.conformalize(draw(100, 1), levels=make(fast))
    with pytest.raises(TypeError, match="levels must be a list or tuple"):
        blobs_flow[1].conformalize(levels=make(blobs_flow[1]))


def _small(neural_ode, rows, **params):
    fitted = HypersolverRegressor(neural_ode, base_solver="euler", n_steps=4, max_epochs=2, random_state=0, **params)
    return fitted.fit(rows)


def test_levels_of_other_inputs_are_refused_by_name(fast):
    wide = np.random.default_rng(0).uniform(0.2, 1.5, (60, 3))
    mapped = NeuralODE(Riccati(), input_map=torch.nn.Linear(3, 2, dtype=torch.float64))
    for other in (_small(Riccati(), wide), _small(mapped, wide)):
        with pytest.raises(ValueError, match=r"(?s)levels holds Hyper.*takes samples of shape \(3,\), and this one's"):
            fast.conformalize(draw(100, 1), levels=[other])
    single = _small(Riccati().float(), draw(60, 0).astype(np.float32))
    with pytest.raises(ValueError, match=r"(?s)levels holds Hyper.*torch.float32, and this one in torch.float64"):
        fast.conformalize(draw(100, 1), levels=[single])


class OnlyPositive(torch.nn.Module):
    """An input map that refuses some rows."""

    def forward(self, x):
        if (x < 1).any():
            raise RuntimeError("negative logarithm")
        return x


def test_a_level_whose_maps_refuse_the_rows_is_of_another_neural_ode(fast):
    other = _small(NeuralODE(Riccati(), input_map=OnlyPositive()), draw(60, 0, low=1.1))
    with pytest.raises(ValueError, match=r"(?s)levels holds Hyper.*another Neural ODE"):
        fast.conformalize(draw(100, 1), levels=[other])


def test_bounds_of_a_trajectory_are_of_states(fast):
    with pytest.raises(ValueError, match="bounds errors of states"):
        fast.trajectory(X, output=True, return_bound=True)


# ---------------------------------------------------------------------- what is solved, and copied, once
def _rated(t, z, x):
    return -x[:, 1:] * z


def _first_column(x):
    return x[:, :1].clone()


@pytest.mark.parametrize(
    ("neural_ode", "params"),
    [
        (Riccati(), {"base_solver": "euler"}),
        (Riccati(), {"base_solver": "heun", "stepping": "adaptive", "fit_n_steps": (1, 8), "max_epochs": 25}),
        (NeuralODE(_rated, input_map=_first_column, data_controlled=True), {"base_solver": "ab2"}),
    ],
    ids=["fixed", "adaptive", "reads its inputs"],
)
def test_a_trajectory_with_a_bound_is_the_one_without_and_is_solved_once(neural_ode, params, monkeypatch):
    fit = HypersolverRegressor(neural_ode, **{"n_steps": 3, "max_epochs": 2, "random_state": 0} | params)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit.fit(draw(100, 0)).conformalize(draw(200, 1))
    assert fit.fitted_.is_adaptive == ("stepping" in params)
    solves = []
    original = type(fit.module_).trajectory
    monkeypatch.setattr(type(fit.module_), "trajectory", lambda *a: solves.append(len(a[1])) or original(*a))
    plain = fit.trajectory(X)
    states, bound = fit.trajectory(X, return_bound=True, coverage=0.9)
    assert solves == [len(X), len(X)]
    assert bound.shape == (len(X),) and states.dtype == plain.dtype
    np.testing.assert_allclose(states, plain, rtol=1e-12)


class Counted(torch.nn.Module):
    """An input map that counts the rows it has seen."""

    def __init__(self):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x):
        Counted.n_rows += len(x)
        return self.factor * x


@pytest.fixture(scope="module")
def counted():
    fit = HypersolverRegressor(NeuralODE(Riccati(), input_map=Counted()), base_solver="euler", n_steps=2, max_epochs=3)
    Counted.n_rows = 0
    return fit.set_params(fit_n_steps=(1, 8), random_state=0).fit(draw(100, 0)).conformalize(draw(600, 1))


@pytest.mark.parametrize(
    "how",
    [
        {"return_info": True},
        {"return_bound": True},
        {"return_bound": True, "bound": "verified"},
        {"tol": 0.1, "alpha": 0.05},
        {"tol": 0.02, "alpha": 0.05, "route": True},
        {"tol": 0.02, "alpha": 0.05, "bound": "verified"},
    ],
    ids=str,
)
def test_the_input_map_runs_once(counted, how):
    far = np.concatenate([X, draw(3, 4, 30, 40)])  # goes to dopri5
    Counted.n_rows = 0
    counted.predict(far, **how)
    assert Counted.n_rows == len(far)


@pytest.mark.parametrize("kind", ["fixed", "adaptive", "levels", "flow"])
def test_a_calibration_on_another_device_has_each_neural_ode_once(fast, blobs_flow, kind):
    if kind == "flow":
        estimator = blobs_flow[1]
        ask = estimator.score_samples, blobs_flow[2], "density_calibration_"
    else:
        estimator, levels = copy.copy(fast), []
        if kind == "levels":
            levels = [make_generalist(n_steps=5, fit_n_steps=None, max_epochs=2).fit(draw(60, 0))]
        if kind == "adaptive":
            estimator = make_generalist(base_solver="heun", stepping="adaptive").fit(draw(100, 0))
            assert estimator.fitted_.is_adaptive
        estimator.conformalize(draw(200, 1), levels=levels)
        ask = estimator.predict, X, "calibration_"
    predict, rows, name = ask
    here = vars(estimator)[name]
    there = here.to("cpu")

    def neural_odes(calibration):
        levels = [calibration._own, *calibration.bounds.verifiers.values()]
        levels += [level for ladder in calibration.ladders.values() for level in ladder.levels]
        return {id(level.solver.neural_ode) for level in levels if level} | {
            id(level.solver.module.neural_ode) for level in levels if level
        }

    assert len(neural_odes(there)) == len(neural_odes(here)) <= 2
    assert not neural_odes(there) & neural_odes(here)
    hows = (
        {"return_bound": True, "coverage": 0.9},
        {"atol": 0.1, "alpha": 0.1},
        {"atol": 0.1, "alpha": 0.1, "route": True},
    )
    expected = [predict(rows, return_info=True, **how) for how in hows]
    try:
        vars(estimator)[name] = there
        for how, before in zip(hows, expected, strict=True):
            for a, b in zip(before[:-1], predict(rows, return_info=True, **how)[:-1], strict=True):
                np.testing.assert_array_equal(a, b)
    finally:
        vars(estimator)[name] = here


# ---------------------------------------------------------------------- classifiers
@pytest.fixture(scope="module")
def digits():
    rows, labels = load_digits(return_X_y=True)
    rows = rows / 16
    slow = NeuralODEClassifier(max_epochs=5, random_state=0).fit(rows[:300], labels[:300])
    quick = HypersolverClassifier(slow, n_steps=1, max_epochs=3, random_state=0).fit(rows[:300])
    return slow, quick.conformalize(rows[300:900]), rows[900:]


@pytest.mark.parametrize("how", ["learned", "verified"])
def test_sets_hold_dopri5s_label_at_the_stated_rate(digits, how):
    slow, quick, rows = digits
    sets = quick.predict_set(rows, coverage=0.9, bound=how)
    assert sets.dtype == bool and sets.shape == (len(rows), 10)
    assert sets[np.arange(len(rows)), slow.predict(rows)].mean() > 0.87
    assert sets[np.arange(len(rows)), quick.predict(rows)].all()  # its own label is always one of them


def test_labels_that_cannot_change_do_not(digits):
    slow, quick, rows = digits
    certain = quick.predict_set(rows).sum(axis=1) == 1
    assert certain.any()
    assert (quick.predict(rows) == slow.predict(rows))[certain].mean() > 0.985


def test_a_classifier_keeps_a_tolerance_of_its_logits(digits):
    slow, quick, rows = digits
    labels, info = quick.predict(rows, tol=1e-3, alpha=0.05, return_info=True)
    assert (labels == slow.predict(rows)).mean() > 0.99
    assert info.n_evaluations.mean() > 1


@pytest.fixture(scope="module")
def signs():
    """Labels by z' = -z^2, which leaves every bound from z = -5 on."""
    fit = HypersolverClassifier(Riccati(), classes=["a", "b"], base_solver="euler", n_steps=2, max_epochs=3)
    return fit.set_params(random_state=0).fit(draw(100, 0)).conformalize(draw(600, 1))


@pytest.mark.parametrize("policy", [{}, {"route": True}, {"bound": "verified"}])
@pytest.mark.parametrize("lost", [[3], [0, 5], [0, 1, 2, 3, 4, 5]])
def test_rows_without_a_label_are_refused_by_name_and_not_said_to_be_nan(signs, policy, lost):
    """As the Neural ODE itself refuses them; the numbers behind labels are nan there, with a warning."""
    rows = draw(6, 3, 0.4, 1.3)
    rows[lost] = -5.0
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnsolvedRowsWarning)
        with pytest.raises(
            ReferenceSolveError, match=r"there is no label where nothing solves .* to the tol"
        ) as raised:
            signs.predict(rows, tol=1e-1, alpha=0.05, **policy)
    assert list(raised.value.rows) == lost and raised.value.n_rows == 6
    with pytest.warns(UnsolvedRowsWarning, match=f"{len(lost)} of 6 rows of X"):
        states = signs.transform(rows, tol=1e-1, alpha=0.05, **policy)
    assert np.flatnonzero(np.isnan(states).any(axis=1)).tolist() == lost
    others = np.delete(rows, lost, axis=0)
    if len(others):
        labels = signs.predict(others, tol=1e-1, alpha=0.05, **policy)
        assert (labels == np.array(["a", "b"])[others.argmax(axis=1)]).mean() > 0.7


class Logarithm(torch.nn.Module):
    def forward(self, z):
        return torch.log(z)


@pytest.mark.parametrize("how", [{"tol": 0.1, "alpha": 0.05}, {"return_bound": True, "coverage": 0.9}, {}])
def test_an_output_map_that_gives_nan_is_named_whatever_is_asked_for(how):
    ode = NeuralODE(decay, output_map=Logarithm())
    fit = HypersolverClassifier(ode, classes=["a", "b"], base_solver="euler", n_steps=2, max_epochs=3, random_state=0)
    fit.fit(draw(100, 0)).conformalize(draw(300, 1))
    rows = draw(6, 3, 0.4, 1.3)
    rows[[1, 4]] *= -1
    whose = "probabilities are nan" if how else "predict_proba gives nan"
    with pytest.raises(ValueError, match=rf"there is no label, since {whose} .*2 of 6 rows of X \(rows 1, 4\)"):
        fit.predict(rows, **how)


class Stub(HypersolverClassifier):
    """Logits and bounds as they are given."""

    def __init__(self, logits, limit):
        self.logits, self.limit, self._head = np.array(logits), np.array(limit), None

    def _answer(self, X, kind, wanted, **how):
        return torch.zeros(len(self.logits), 1), [self.limit]

    def _final_outputs(self, ends):
        return self.logits


def test_a_set_holds_all_labels_where_logits_or_bound_are_not_finite():
    nan, inf = np.nan, np.inf
    logits = [[nan, 0, 5], [nan, nan, nan], [inf, 0, 1], [-inf, 0, 9], [9, 0, 0], [9, 0, 0], [9, 0, 0]]
    sets = Stub(logits, [0.1, 0.1, 0.1, 0.1, nan, inf, 0.1]).predict_set(None)
    assert sets[:6].all()
    assert sets[6].tolist() == [True, False, False]


# ---------------------------------------------------------------------- flows
@pytest.fixture(scope="module")
def blobs_flow():
    rows = make_moons(900, noise=0.1, random_state=0)[0]
    flow = ContinuousNormalizingFlow(max_epochs=3, random_state=0).fit(rows[:300])
    quick = HypersolverDensity(flow, n_steps=2, max_epochs=3, max_samples=200, random_state=0).fit(rows[:300])
    return flow, quick.conformalize(rows[300:600]), rows[600:]


def test_samples_have_bounds(blobs_flow):
    flow, quick, _ = blobs_flow
    samples, bound = quick.sample(400, random_state=3, return_bound=True, coverage=0.9)
    truth = flow.sample(400, random_state=3)
    assert (np.linalg.norm(samples - truth, axis=1) <= bound).mean() > 0.85


def test_log_densities_have_bounds_and_tolerances_in_nats(blobs_flow):
    flow, quick, rows = blobs_flow
    truth = flow.score_samples(rows)
    densities, bound = quick.score_samples(rows, return_bound=True, coverage=0.9)
    assert (np.abs(densities - truth) <= bound).mean() > 0.83
    kept, info = quick.score_samples(rows, atol=1e-3, alpha=0.05, return_info=True)
    assert (np.abs(kept - truth) > 1.1e-3).mean() <= 0.1
    assert info.n_evaluations.min() >= 2


def test_densities_without_data_are_not_calibrated(blobs_flow):
    _, quick, rows = blobs_flow
    with pytest.raises(NotCalibratedError, match="no calibration"):
        quick.with_solver().score_samples(rows, return_bound=True)
    sampling_only = quick.with_solver().conformalize()
    sampling_only.sample(5, return_bound=True)
    with pytest.raises(NotCalibratedError, match="no calibration"):
        sampling_only.score_samples(rows, return_bound=True)


@pytest.mark.parametrize("trace", ["exact", "rademacher", "gaussian"])
def test_data_that_densities_were_fitted_on_are_refused_whatever_their_noise(trace):
    """Also where they stand elsewhere, or were a level's, which has another seed."""
    rows = make_moons(400, noise=0.1, random_state=0)[0]
    kwargs = {"trace": trace, "n_steps": 2, "max_epochs": 2, "max_samples": 200}
    quick = HypersolverDensity(decay, random_state=0, **kwargs).fit(rows[:100])
    with pytest.raises(CalibrationRowsError, match="60 of 160 rows of X were fitted on"):
        quick.conformalize(np.concatenate([rows[100:200], rows[:60]]))
    level = HypersolverDensity(decay, random_state=1, **kwargs).fit(rows[100:200])
    with pytest.raises(CalibrationRowsError, match="60 of 160 rows of X were fitted on, by this hypersolver or one"):
        quick.conformalize(rows[140:300], levels=[level])
    assert quick.conformalize(rows[200:300], levels=[level]).density_calibration_.n_rows == 100


@pytest.mark.parametrize("trace", ["rademacher", "gaussian"])
def test_noise_does_not_make_rows_usual_or_unusual(trace):
    rows = np.random.default_rng(0).normal(size=(500, 5))
    kwargs = {"trace": trace, "n_steps": 2, "max_epochs": 2, "max_samples": 200}
    quick = HypersolverDensity(decay, random_state=0, **kwargs).fit(rows[:100]).conformalize(rows[100:400])
    near, far = rows[400:], rows[400:] + 6
    _, info = quick.score_samples(np.concatenate([near, far]), return_info=True)
    assert info.unusual[:100].mean() < 0.1 and info.unusual[100:].mean() > 0.95
    exact = HypersolverDensity(decay, random_state=0, **kwargs | {"trace": "exact"}).fit(rows[:100])
    _, other = exact.conformalize(rows[100:400]).score_samples(np.concatenate([near, far]), return_info=True)
    np.testing.assert_array_equal(info.unusual, other.unusual)


def _refuse_nan(Z):
    assert np.isfinite(Z).all()
    return Z - 1


@pytest.mark.parametrize(
    "step",
    [StandardScaler(), PCA(random_state=0), FunctionTransformer(lambda Z: Z + 1, _refuse_nan)],
    ids=["passes nan on", "multiplies", "refuses nan"],
)
def test_samples_that_nothing_solves_stay_nan_behind_a_pipeline(step):
    rows = make_moons(200, noise=0.1, random_state=0)[0]
    step.fit(rows)
    flow = make_pipeline(step, blank_flow(rows))
    fast = HypersolverDensity(flow, n_steps=2, max_epochs=2, max_samples=50, random_state=0).fit()
    Z = rows[:5].copy()
    Z[2, 1] = np.nan
    X = fast._undo_steps(Z)
    assert np.isnan(X[2]).all()
    np.testing.assert_allclose(X[[0, 1, 3, 4]], step.inverse_transform(rows[[0, 1, 3, 4]]))


def blank_flow(rows):
    return ContinuousNormalizingFlow(max_epochs=1, random_state=0).fit(rows)


@pytest.mark.parametrize("n_samples", [1, 20, 39])
def test_too_few_base_draws_are_refused_by_name(blobs_flow, n_samples):
    with pytest.raises(CalibrationRowsError, match=f"n_samples={n_samples} base draws are too few; .* needs 40"):
        blobs_flow[1].conformalize(n_samples=n_samples)
    with pytest.raises(ValueError, match="n_samples"):
        blobs_flow[1].conformalize(n_samples=100.5)
    few = blobs_flow[1].with_solver().conformalize(n_samples=60)
    for how in ({"return_bound": True}, {"tol": 0.1}, {"atol": 0.1, "route": True}):
        with pytest.raises(CalibrationRowsError, match=r"needs .* rows to .* number to conformalize as n_samples"):
            few.sample(5, **how)


def test_a_level_without_densities_calibrates_samples_alone(blobs_flow):
    flow, quick, rows = blobs_flow
    level = HypersolverDensity(flow, n_steps=4, max_epochs=2, max_samples=200, random_state=0).fit()
    with pytest.raises(
        ValueError, match=r"(?s)levels holds Hyper.* was fitted for sampling only .*conformalize without X"
    ):
        quick.conformalize(rows, levels=[level])
    assert quick.with_solver().conformalize(levels=(level,), n_samples=60).calibration_.n_rows == 60
    for wrong in (quick.sampler_, flow, HypersolverDensity(flow)):
        with pytest.raises(ValueError, match="levels must hold fitted hypersolvers like this one"):
            quick.conformalize(rows, levels=[wrong])


def test_levels_of_other_flows_are_refused_by_name(blobs_flow):
    _, quick, _ = blobs_flow
    for width in (1, 3):
        other = HypersolverDensity(decay, n_features=width, n_steps=2, max_epochs=9, max_samples=200, random_state=0)
        with pytest.raises(
            ValueError, match=rf"(?s)levels holds Hyper.*shape \({width},\), and this one's takes \(2,\)"
        ):
            quick.conformalize(levels=[other.fit()])


# ---------------------------------------------------------------------- reports
def test_a_report_has_a_row_for_each_tolerance(fast):
    report = fast.solver_report(X, tol=[0.1, 1e-3], alpha=0.05)
    loose, tight = (next(row for row in report if row.solver == f"tol={tol:g}") for tol in (0.1, 1e-3))
    for tol, row in ((0.1, loose), (1e-3, tight)):
        _, info = fast.predict(X, tol=tol, alpha=0.05, return_info=True)
        assert row.nfe == pytest.approx(info.n_evaluations.mean())
        assert row.l2_mean < tol
    assert loose.nfe < tight.nfe
    assert "tol=0.001" in str(report)
    assert [row.solver for row in fast.solver_report(X, tol=0.1, alpha=0.05)][-1] == "tol=0.1"


def test_a_report_of_a_tolerance_needs_a_calibration():
    with pytest.raises(NotCalibratedError, match="call conformalize"):
        make_generalist(max_epochs=2).fit(draw(100, 0)).solver_report(X, tol=0.1)


@pytest.mark.parametrize("tol", [None, (), []])
def test_a_report_without_tolerances_has_no_row_for_one(fast, tol):
    assert not [row for row in fast.solver_report(X, tol=tol) if row.solver.startswith("tol=")]
    for wrong, message in (
        ({"alpha": 2}, "alpha must be a number between 0 and 1, exclusive, got 2"),
        ({"route": "yes"}, "route must be True or False, got 'yes'"),
        ({"bound": "tight"}, "bound must be 'learned' or 'verified'"),
        ({"alpha": 0.05}, "alpha=0.05: solver_report keeps tolerances so, and there is none; pass tol"),
        ({"route": True, "alpha": 0.05}, "alpha=0.05 and route=True: solver_report"),
        ({"bound": "verified"}, "bound='verified': solver_report"),
    ):
        with pytest.raises(ValueError, match=message):
            fast.solver_report(X, tol=tol, **wrong)


@pytest.mark.parametrize("tol", [0.0, [0.1, 0], "small", [0.1, None], np.ones((2, 2)), [[0.1], 0.2], object()])
def test_tolerances_of_a_report_are_positive_numbers(fast, tol):
    with pytest.raises(ValueError, match="tol"):
        fast.solver_report(X, tol=tol)


# ---------------------------------------------------------------------- with scikit-learn
def test_columns_of_frames_and_output_containers_are_respected():
    frame = pd.DataFrame(draw(100, 0), columns=["a", "b"])
    named = make_generalist(max_epochs=2).set_output(transform="pandas").fit(frame)
    named.conformalize(pd.DataFrame(draw(100, 1), columns=["a", "b"]))
    states, bound = named.transform(pd.DataFrame(X, columns=["a", "b"]), return_bound=True, coverage=0.9)
    assert isinstance(states, pd.DataFrame) and len(bound) == len(X)
    with pytest.raises(ValueError, match="feature names"):
        named.conformalize(pd.DataFrame(draw(100, 1), columns=["b", "c"]))


def test_frozen_steps_come_before_it():
    rows, labels = load_digits(return_X_y=True)
    slow = make_pipeline(StandardScaler(), NeuralODEClassifier(max_epochs=2, random_state=0))
    slow.fit(rows[:200], labels[:200])
    quick = HypersolverClassifier(slow, n_steps=1, max_epochs=2, random_state=0).fit(rows[:200])
    _, bound = quick.conformalize(rows[200:600]).predict(rows[600:], return_bound=True, coverage=0.9)
    assert bound.shape == (len(rows) - 600,)


def test_an_unknown_keyword_is_named_with_its_method(fast, digits, blobs_flow):
    flow = blobs_flow[1]
    for method, name in (
        (fast.predict, r"predict\(\)"),
        (fast.transform, r"HypersolverRegressor.transform\(\)"),
        (digits[1].predict, r"HypersolverClassifier.predict\(\)"),
        (digits[1].transform, r"HypersolverClassifier.transform\(\)"),
        (flow.score_samples, r"HypersolverDensity.score_samples\(\)"),
        (lambda X, **asked: flow.sample(2, **asked), r"HypersolverDensity.sample\(\)"),
    ):
        with pytest.raises(TypeError, match=f"{name} got an unexpected keyword argument 'covrage'"):
            method(X, covrage=0.9)
    with pytest.raises(TypeError, match="it takes return_bound, coverage, bound, tol, atol, alpha, route, return_info"):
        fast.transform(X, tolerance=0.1)


def test_keywords_are_those_of_the_regressors_predict():
    parameters = inspect.signature(HypersolverRegressor.predict).parameters
    explicit = {
        name: value.default for name, value in parameters.items() if name not in ("self", "X", "condition", "t_eval")
    }
    assert tuple(explicit) == ASKED
    assert explicit == {field.name: field.default for field in fields(Wanted)}


def test_keywords_are_routed_through_pipelines(fast, digits):
    _, quick, rows = digits
    with config_context(enable_metadata_routing=True):
        for step, given in ((fast, X), (quick, rows)):
            asking = copy.copy(step).set_predict_request(return_bound=True).set_transform_request(tol=True)
            piped = Pipeline([("same", FunctionTransformer()), ("fast", asking)])
            for got, expected in zip(
                piped.predict(given, return_bound=True), step.predict(given, return_bound=True), strict=True
            ):
                np.testing.assert_array_equal(got, expected)
            np.testing.assert_array_equal(piped.transform(given, tol=0.1), step.transform(given, tol=0.1))


class Calibrated(HypersolverRegressor):
    """Calibrates on rows like those of its fit."""

    def fit(self, X, y=None):
        super().fit(X, y)
        rows = np.asarray(X, dtype=float)
        fresh = np.random.default_rng(0).normal(rows.mean(axis=0), rows.std(axis=0) + 1e-3, (60, rows.shape[1]))
        return self.conformalize(pd.DataFrame(fresh, columns=X.columns) if hasattr(X, "columns") else fresh)

    def predict(self, X):
        return super().predict(X, return_bound=True, coverage=0.9)[0]


_OUTPUTS = "nothing is learned from y: predictions have the shape of the Neural ODE's outputs, here of its state"


@parametrize_with_checks(
    [Calibrated(NeuralODE(decay), base_solver="euler", n_steps=2, max_epochs=2, random_state=0)],
    expected_failed_checks=lambda _: {"check_regressors_train": _OUTPUTS, "check_regressor_multioutput": _OUTPUTS},
)
def test_common_checks_of_a_calibrated_estimator(estimator, check):
    check(estimator)
