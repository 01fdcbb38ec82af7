"""HypersolverRegressor and HypersolverClassifier against dopri5, closed forms and their base solvers."""

import copy
import pickle
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import expm
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch import NeuralNetClassifier, NeuralNetRegressor
from skorch.callbacks import EarlyStopping
from small_hypersolvers import Swirl, ToLogits, make_classifier, make_regressor
from torch import nn

from sklearn_hyper import (
    ConvCorrection,
    HypersolverClassifier,
    HypersolverRegressor,
    MLPCorrection,
    NeuralODE,
    NeuralODERegressor,
    alpha_family,
)
from sklearn_hyper.datasets import VanDerPol
from sklearn_hyper.metrics import local_truncation_error, mape_floor, mean_absolute_percentage_error
from sklearn_hyper.modules import HypersolvedODE, MLPVectorField
from sklearn_hyper.numerics import compute_residuals, count_macs, hypersolve, reference_solution
from sklearn_hyper.training.plan import ConditioningWarning

TIGHT = {"fit_n_steps": 1, "rtol": 1e-7, "atol": 1e-7, "random_state": 0}
A = np.array([[-0.5, 2.0], [-2.0, -0.5]])


def spiral(t, z):
    """A linear field with a closed form."""
    return z @ z.new_tensor(A).T


def regressor(neural_ode=None, **params):
    """A hypersolver that learns the swirl in a second: 20 updates of g an epoch or fewer."""
    return make_regressor(
        neural_ode, **{"correction": MLPCorrection(hidden=8), "batch_size": 8, "max_epochs": 10} | params
    )


def base_score(hyper, X):
    """What ``score`` would be without the correction."""
    module = hyper.module_
    base = HypersolvedODE(module.neural_ode, module.base_solver, None, module.grid)
    with torch.no_grad():
        output = base(torch.from_numpy(X).to(hyper.dtype_)).numpy()
    reference = hyper.reference(X).reshape(output.shape)
    floor = mape_floor(hyper.mape_floor, reference)
    return -mean_absolute_percentage_error(reference, output, floor=floor)


def weights(module):
    return {name: value.numpy().tobytes() for name, value in module.state_dict().items()}


# ---------------------------------------------------------------------- what it is for
def test_a_fit_beats_its_base_solver_and_lands_near_the_closed_form(X):
    hyper = regressor(spiral, n_steps=4, max_epochs=60).fit(X[:60])
    held_out = X[60:]
    exact = held_out @ expm(A).T
    np.testing.assert_allclose(hyper.reference(held_out), exact, atol=1e-5)
    np.testing.assert_allclose(hyper.predict(held_out), exact, atol=0.05)
    assert hyper.score(held_out) > 0.2 * base_score(hyper, held_out)


@pytest.mark.parametrize("loss", ["residual", "trajectory", "residual+trajectory"])
@pytest.mark.parametrize("finetune", [None, "terminal", "trajectory", "output"])
def test_every_loss_beats_the_base_solver(X, loss, finetune):
    hyper = regressor(loss=loss, finetune=finetune).fit(X)
    assert hyper.score(X) > 0.8 * base_score(hyper, X)
    assert [row["stage"] for row in hyper.history_][::9] == [loss, finetune or loss]


@pytest.mark.parametrize("fit_n_steps, fitted", [(None, [2]), (3, [3]), ((1, 4), [1, 2, 3, 4])])
def test_step_sizes_that_are_fitted(X, fit_n_steps, fitted):
    hyper = make_regressor(fit_n_steps=fit_n_steps).fit(X)
    assert sorted(hyper.delta_) == fitted and hyper.module_.n_steps == 2
    assert all(0 < bounds["mean"] <= bounds["max"] for bounds in hyper.delta_.values())


def test_local_error_stays_within_delta_on_held_out_states(X):
    """Theorem 1's premise. All rows but a tenth are held out, so delta_ is a maximum over nine tenths of these."""
    hyper = regressor(n_steps=4, validation_fraction=0.9).fit(X)
    field, grid = hyper.neural_ode_.vector_field, hyper.module_.grid
    with torch.no_grad():
        states = reference_solution(field, torch.from_numpy(X), grid, rtol=1e-9, atol=1e-9)
        for k in range(4):
            step = (
                hypersolve(field, states[k], None, None, "euler", hyper.correction_, grid=grid[k : k + 2]) - states[k]
            )
            error = local_truncation_error(states[k], states[k + 1], step)
            assert np.mean(error <= hyper.delta_[4]["max"] * 0.25**2 * (1 + 1e-3)) >= 0.9


@pytest.mark.parametrize("base_solver", ["ab2", "ab3"])
def test_delta_bounds_start_up_steps_too(X, base_solver):
    """Their order is lower, so that the same power of eps asks for a larger constant."""
    hyper = regressor(base_solver=base_solver, n_steps=4, validation_fraction=0.9, max_epochs=30).fit(X)
    field, module = hyper.neural_ode_.vector_field, hyper.module_
    with torch.no_grad():
        states = reference_solution(field, torch.from_numpy(X), module.grid, rtol=1e-9, atol=1e-9)
        for r in compute_residuals(field, states, module.grid, module.base_solver):
            missing = r.target - hyper.correction_(r.eps, r.z.new_tensor(r.s), r.z, r.stages)
            error = r.eps ** (r.order + 1) * torch.linalg.vector_norm(missing, dim=1).numpy()
            assert np.mean(error <= hyper.delta_[4]["max"] * r.eps ** (hyper.order_ + 1) * (1 + 1e-3)) >= 0.9


def test_an_untrained_correction_is_the_base_solver_exactly(X):
    hyper = make_regressor(lr=1e-300, max_epochs=1, finetune=None)
    with pytest.warns(UserWarning, match="no epoch was better than the base solver"):
        hyper.fit(X)
    assert hyper.score(X) == base_score(hyper, X)


def test_a_fit_that_falls_back_reports_the_base_solver(X):
    hyper = make_regressor(lr=1e3, max_epochs=1, finetune=None)
    with pytest.warns(UserWarning, match="falls back to it: correction_ is None"):
        hyper.fit(X)
    errors = hyper.errors_[2]
    assert (errors["max"], errors["mean"]) == (errors["base_max"], errors["base_mean"])
    assert hyper.delta_[2]["max"] > 0 and hyper.correction_ is None


def test_a_good_correction_that_training_only_spoils_is_kept(X):
    good = regressor().fit(X)
    kept = regressor(correction=good.correction_.net, lr=1e3, max_epochs=1).fit(X)
    assert kept.score(X) == pytest.approx(good.score(X), rel=0.2)


def test_a_correction_has_to_take_start_up_steps_too(X):
    class TwoStages(nn.Module):
        def forward(self, eps, s, z, stages, x=None):
            return stages[0] - stages[1]

    with pytest.raises(ValueError, match=r"fails on a step of 'ab2' with 1 stages: .*start-up steps .* fewer stages"):
        make_regressor(base_solver="ab2", correction=TwoStages()).fit(X)


@pytest.mark.parametrize(("base_solver", "pair"), [("ab3", (1, 2)), ("ab4", [2, 3])])
def test_a_range_of_start_up_steps_alone_is_refused(X, base_solver, pair):
    with pytest.raises(ValueError, match=r"fit_n_steps=.* makes start-up steps only; fit_n_steps must reach [34]"):
        make_regressor(base_solver=base_solver, n_steps=4, fit_n_steps=pair).fit(X)


@pytest.mark.parametrize("base_solver", ["euler", "ab2", "heun"])
def test_report_counts_the_macs_of_the_solve_as_it_runs(X, base_solver):
    torch.manual_seed(0)
    field = MLPVectorField(4).double()
    hyper = make_regressor(field, base_solver=base_solver, n_steps=3, max_epochs=20, rtol=1e-11, atol=1e-11).fit(
        np.hstack([X, X])
    )
    x = torch.zeros(1, 4, dtype=torch.float64)
    assert hyper.solver_report(np.hstack([X, X]))[-1].macs == count_macs(hyper.module_.terminal_state, x)


def test_a_matrix_gate_does_not_take_the_nets_budget(X):
    torch.manual_seed(0)
    starved, fed = (
        make_regressor(
            MLPVectorField(4, hidden=hidden).double(), base_solver="ab2", max_epochs=20, rtol=1e-9, atol=1e-9
        )
        .fit(np.hstack([X, X]))
        .correction_.net.layout
        for hidden in (64, 256)
    )
    assert not starved.has_matrix_gate and starved.hidden > 5 and fed.has_matrix_gate


def test_a_warm_start_goes_on_in_the_dtype_of_its_rows(X):
    fast = regressor(lambda t, z: torch.sin(z), warm_start=True).fit(X)
    assert fast.fit(X.astype(np.float32)).predict(X.astype(np.float32)).dtype == np.float32


# ---------------------------------------------------------------------- what it takes
def _pipeline(data):
    return make_pipeline(StandardScaler(), NeuralODERegressor(max_epochs=1, random_state=0)).fit(*data)


def _search(data):
    return GridSearchCV(NeuralODERegressor(max_epochs=1, random_state=0), {"lr": [1e-3]}, cv=2).fit(*data)


def _search_of_pipelines(data):
    return GridSearchCV(_pipeline(data), {"neuraloderegressor__lr": [1e-3]}, cv=2).fit(*data)


def _nested(data):
    """Two scalers, one inside the other's pipeline."""
    return Pipeline([("scale", StandardScaler()), ("search", _search_of_pipelines(data))]).fit(*data)


def _skorch(data):
    torch.manual_seed(0)
    ode = NeuralODE(MLPField(), output_map=nn.Linear(3, 1))
    X, y = (np.asarray(a, dtype=np.float32) for a in data)
    return NeuralNetRegressor(ode, max_epochs=1, verbose=0, train_split=None).fit(X, y[:, None])


class MLPField(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3))

    def forward(self, t, z):
        return self.net(z)


@pytest.mark.parametrize("build", [_pipeline, _search, _search_of_pipelines, _nested, _skorch])
@pytest.mark.parametrize("frozen", [False, True], ids=["direct", "frozen"])
def test_fitted_estimators_predict_as_the_original_does(vectors, build, frozen):
    X = vectors[0].astype(np.float32)
    original = build((X, vectors[1]))
    expected = original.predict(X)
    hyper = HypersolverRegressor(
        FrozenEstimator(original) if frozen else original, base_solver="euler", n_steps=4, max_epochs=5, random_state=0
    )
    predicted = hyper.fit(X).predict(X)
    assert predicted.shape == expected.shape == hyper.reference(X).shape
    np.testing.assert_allclose(hyper.reference(X), expected, atol=1e-4)
    np.testing.assert_allclose(predicted, expected, atol=2e-2)
    np.testing.assert_array_equal(original.predict(X), expected)


def test_a_later_refit_of_the_pipeline_does_not_reach_the_hypersolver(vectors):
    X, _ = vectors
    pipeline = _pipeline(vectors)
    hyper = HypersolverRegressor(pipeline, base_solver="euler", n_steps=2, max_epochs=2, random_state=0).fit(X)
    before = hyper.predict(X)
    pipeline[0].fit(100 * X)
    np.testing.assert_array_equal(hyper.predict(X), before)


@pytest.mark.parametrize("wrap", [lambda field: field, NeuralODE, lambda field: field.forward], ids=str)
def test_bare_fields_and_modules_are_taken(X, wrap):
    hyper = HypersolverRegressor(wrap(Swirl()), base_solver="euler", n_steps=2, max_epochs=2, random_state=0).fit(X)
    assert hyper.predict(X).shape == X.shape


def test_classifiers_bring_their_labels_and_bare_modules_need_them(digits, digits_ode, digits_hyper, X):
    np.testing.assert_array_equal(digits_hyper.classes_, digits_ode.classes_)
    assert np.mean(digits_hyper.predict(digits[0]) == digits_ode.predict(digits[0])) > 0.95
    np.testing.assert_allclose(digits_hyper.predict_proba(digits[0]), digits_ode.predict_proba(digits[0]), atol=0.05)
    assert digits_hyper.score(*digits) == np.mean(digits_hyper.predict(digits[0]) == digits[1])
    assert set(make_classifier().fit(X).predict(X)) <= {"a", "b", "c"}


def test_a_skorch_classifier_brings_its_labels(vectors):
    X = vectors[0].astype(np.float32)
    net = NeuralNetClassifier(
        NeuralODE(MLPField(), output_map=nn.Linear(3, 2)), max_epochs=1, verbose=0, train_split=None
    )
    net.set_params(criterion=nn.CrossEntropyLoss).fit(X, (X[:, 0] > 0).astype(np.int64))
    hyper = HypersolverClassifier(net, base_solver="euler", n_steps=2, max_epochs=2, random_state=0).fit(X)
    assert hyper.classes_.tolist() == [0, 1] and hyper.predict(X).shape == (90,)


def test_data_controlled_fields_read_the_raw_input(X):
    ode = NeuralODE(lambda t, z, x: x[:, :1] * z, data_controlled=True)
    hyper = regressor(ode, n_steps=4, max_epochs=30).fit(X)
    np.testing.assert_allclose(hyper.predict(X), X * np.exp(X[:, :1]), atol=0.05)


# ---------------------------------------------------------------------- what it gives
@pytest.mark.parametrize("output", [False, True])
def test_trajectories_end_where_transform_and_predict_do(vectors, vectors_ode, digits, digits_hyper, output):
    regressor = HypersolverRegressor(vectors_ode, base_solver="euler", n_steps=3, max_epochs=2, random_state=0).fit(
        vectors[0]
    )
    path = regressor.trajectory(vectors[0], output=output)
    assert path.shape == ((90, 4) if output else (90, 4, 5))
    np.testing.assert_allclose(
        path[:, -1], (regressor.predict if output else regressor.transform)(vectors[0]), atol=1e-6
    )
    images = digits_hyper.trajectory(digits[0], output=output)
    assert images.shape == ((150, 3, 10) if output else (150, 3, 4, 8, 8))
    if not output:
        np.testing.assert_allclose(images[:, -1], digits_hyper.transform(digits[0]), rtol=1e-5)


def test_reference_is_the_neural_ode_at_a_tight_tolerance(swirl, X):
    with torch.no_grad():
        tight = swirl.neural_ode_(torch.from_numpy(X), rtol=1e-10, atol=1e-10).numpy()
    np.testing.assert_allclose(swirl.reference(X), tight, atol=1e-5)


def test_score_is_minus_the_floored_mape_and_ignores_y(swirl, X):
    sizes = np.sqrt((swirl.reference(X) ** 2).mean(axis=0))
    expected = -mean_absolute_percentage_error(swirl.reference(X), swirl.predict(X), floor=swirl.mape_floor * sizes)
    assert swirl.score(X) == swirl.score(X, np.zeros(len(X))) == pytest.approx(expected) and expected < 0
    first = np.r_[1.0, np.zeros(len(X) - 1)]
    assert swirl.score(X, sample_weight=first) == pytest.approx(swirl.score(X[:1]), rel=1e-3)
    coarse = copy.copy(swirl).set_params(mape_floor=10.0)
    error = (np.abs(swirl.reference(X) - swirl.predict(X)) / sizes).mean()
    assert coarse.score(X) == pytest.approx(-error / 10)


def test_score_of_a_classifier_needs_labels_and_names_the_scorers_that_do_not(digits, digits_hyper):
    with pytest.raises(ValueError, match=r"needs labels y.*evaluation\.neg_mape_scorer or agreement_scorer"):
        digits_hyper.score(digits[0])


def test_solver_report_ranks_the_hypersolver_above_its_base(swirl, X, digits, digits_hyper):
    base, hyper = swirl.solver_report(X).rows[1:]
    assert hyper.mape < base.mape and hyper.nfe == base.nfe == 3
    assert digits_hyper.solver_report(*digits).rows[2].accuracy == digits_hyper.score(*digits)


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_predictions_do_not_depend_on_the_batch_size(swirl, X, batch_size):
    np.testing.assert_allclose(
        copy.copy(swirl).set_params(batch_size=batch_size).predict(X), swirl.predict(X), rtol=1e-9
    )


def test_digits_model_is_invariant_to_subsets_order_and_refits(digits_hyper, digits):
    X, _ = digits
    probabilities = digits_hyper.predict_proba(X)
    order = np.random.default_rng(0).permutation(len(X))
    np.testing.assert_allclose(digits_hyper.predict_proba(X[order]), probabilities[order], atol=1e-5)
    rows = np.vstack([digits_hyper.predict_proba(row[None]) for row in X[:20]])
    np.testing.assert_allclose(rows, probabilities[:20], atol=1e-5)
    before = dict(vars(digits_hyper))
    np.testing.assert_array_equal(clone(digits_hyper).fit(X).predict_proba(X), probabilities)
    assert vars(digits_hyper) == before  # predict sets nothing


# ---------------------------------------------------------------------- with_solver, to_module
def test_with_solver_is_a_copy_with_the_same_correction(X):
    hyper = regressor(base_solver=alpha_family(0.95), fit_n_steps=(1, 4), max_epochs=20).fit(X)
    before = hyper.predict(X)
    swapped = hyper.with_solver("heun", n_steps=4)
    assert (swapped.base_solver, swapped.n_steps) == ("heun", 4) == (swapped.base_solver_.name, swapped.module_.n_steps)
    assert swapped.correction_ is hyper.correction_ and swapped.score(X) > base_score(swapped, X)
    np.testing.assert_array_equal(hyper.predict(X), before)
    assert hyper.n_steps == 2 and hyper.base_solver_.tableau == alpha_family(0.95)
    halfway = hyper.with_solver(n_steps=1, t_span=(0.0, 0.5))
    assert halfway.neural_ode_.t_span == (0.0, 0.5) and hyper.neural_ode_.t_span == (0.0, 1.0)
    assert halfway.score(X) < 0


def test_with_solver_refuses_another_order_and_warns_outside_the_fitted_steps(swirl):
    with pytest.raises(ValueError, match=r"'heun' \(order 2, 2 stages\).*'euler' \(order 1, 1 stages\)"):
        swirl.with_solver("heun")
    with pytest.warns(UserWarning, match=r"step size 0\.01 lies outside the fitted range \[0\.2\d*, 0\.5\]"):
        swirl.with_solver(n_steps=100)
    with pytest.raises(ValueError, match=r"n_steps must be an integer >= 1, got 0"):
        swirl.with_solver(n_steps=0)


def test_with_solver_on_the_fitted_tableau_is_the_same_bit_for_bit(X, digits, digits_ode):
    hyper = regressor(base_solver="midpoint").fit(X)
    images = HypersolverClassifier(digits_ode, base_solver="midpoint", n_steps=1, max_epochs=1, **TIGHT).fit(digits[0])
    for fitted, rows in ((hyper, X), (images, digits[0])):
        for same in ("midpoint", alpha_family(0.5)):
            np.testing.assert_array_equal(fitted.with_solver(same).transform(rows), fitted.transform(rows))
            there_and_back = fitted.with_solver("heun").with_solver(same)
            np.testing.assert_array_equal(there_and_back.transform(rows), fitted.transform(rows))


# ---------------------------------------------------------------------- families of base solvers
FAMILY = [alpha_family(alpha) for alpha in (0.05, 0.25, 0.75, 1.0)]
UNSEEN = (0.1, 0.4, 0.6, 0.9)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(("n_steps", "name"), [(1, "euler"), (3, "ab2")])
def test_the_default_base_solver_takes_one_evaluation_a_step(X, n_steps, name):
    fast = make_regressor(base_solver="auto", n_steps=n_steps).fit(X)
    assert (fast.base_solver_.name, fast.base_solver_.count_evaluations(n_steps)) == (name, n_steps)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(
    ("params", "name"),
    [
        ({}, "nonstationary"),
        ({"n_steps": 1}, "euler"),
        ({"fit_n_steps": (2, 3)}, "ab2"),
        ({"finetune": "trajectory"}, "ab2"),
        ({"loss": "trajectory"}, "ab2"),
        ({"order": 2}, "midpoint"),
    ],
    ids=str,
)
def test_the_default_for_large_states_learns_coefficients_where_these_serve(params, name):
    X = np.random.default_rng(0).uniform(-1, 1, (30, 5))
    fast = HypersolverRegressor(lambda t, z: -(z**3), **{"n_steps": 2, "max_epochs": 1, "random_state": 0} | params)
    assert fast.fit(X).base_solver_.name == name
    if name == "nonstationary":
        with pytest.raises(
            ValueError, match=r"made for n_steps=2 alone, got n_steps=3; fit it anew, or .*base_solver='ab2'"
        ):
            fast.with_solver(n_steps=3)


def test_a_warm_start_keeps_what_auto_stood_for(X):
    fast = make_regressor(base_solver="auto", n_steps=3, max_epochs=20, batch_size=8, warm_start=True).fit(X)
    fast.set_params(n_steps=4).fit(X)
    assert fast.base_solver_.name == "ab2"
    with pytest.raises(ValueError, match=r"n_steps=1 with base_solver='ab2' makes start-up steps only"):
        fast.set_params(n_steps=1).fit(X)


def test_a_fit_at_one_step_needs_a_base_solver_that_is_one_there(X):
    assert (
        make_regressor(base_solver="auto", n_steps=3, fit_n_steps=1, finetune=None).fit(X).base_solver_.name == "euler"
    )
    with pytest.raises(
        ValueError, match=r"fit_n_steps=1 with base_solver='ab2' makes start-up steps only.*or use 'euler'"
    ):
        make_regressor(base_solver="ab2", n_steps=3, fit_n_steps=1).fit(X)


@pytest.fixture(scope="module")
def van_der_pol():
    """HyperMidpoint of the oscillator, and the same net fitted over the family."""
    X = np.random.default_rng(1).uniform(-2, 2, (300, 2))
    one, family = (
        HypersolverRegressor(
            VanDerPol(), base_solver="midpoint", n_steps=4, correction=MLPCorrection(hidden=16, tableaus=tableaus),
            finetune=None, max_epochs=40, batch_size=16, random_state=0,
        ).fit(X)
        for tableaus in (None, FAMILY)
    )  # fmt: skip
    return one, family


@pytest.fixture(scope="module")
def oscillator_states():
    return np.random.default_rng(2).uniform(-2, 2, (200, 2))


def terminal_error(hyper, X):
    return np.linalg.norm(hyper.transform(X) - hyper.reference(X), axis=1).mean()


def plain_error(hyper, X):
    base = HypersolvedODE(hyper.neural_ode_, hyper.base_solver_, None, hyper.module_.grid)
    return np.linalg.norm(base(torch.from_numpy(X)).numpy() - hyper.reference(X), axis=1).mean()


@pytest.mark.parametrize("alpha", [0.05, *UNSEEN, 1.0])
def test_a_fit_over_a_family_serves_all_of_it(van_der_pol, oscillator_states, alpha):
    X = oscillator_states
    one, family = (hyper.with_solver(alpha_family(alpha)) for hyper in van_der_pol)
    assert terminal_error(one, X) < plain_error(one, X)
    assert terminal_error(family, X) < 0.2 * plain_error(family, X)
    if alpha in (0.05, 0.1, 0.9, 1.0):
        assert terminal_error(family, X) < 0.3 * terminal_error(one, X)


def test_the_order_survives_a_swap(van_der_pol, oscillator_states):
    X, steps = oscillator_states, np.array([24, 36, 54])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # these steps are shorter than the fitted ones
        finer = [van_der_pol[1].with_solver(alpha_family(0.3), n_steps=k) for k in steps]
    exact = van_der_pol[1].set_params(rtol=1e-10, atol=1e-10).reference(X)
    van_der_pol[1].set_params(rtol=1e-6, atol=1e-6)
    errors = [np.linalg.norm(hyper.transform(X) - exact, axis=1).mean() for hyper in finer]
    assert -np.polyfit(np.log(steps), np.log(errors), 1)[0] > 1.8


def test_delta_and_attributes_are_those_of_the_fitted_base_solver(van_der_pol):
    one, family = van_der_pol
    assert family.base_solver_.name == family.module_.base_solver.name == "midpoint"
    assert sorted(family.delta_) == [4] and family.delta_[4]["mean"] < 5 * one.delta_[4]["mean"]


def test_a_base_solver_outside_the_family_is_a_warning(van_der_pol):
    with pytest.warns(UserWarning, match=r"base_solver 'alpha\(3\)' lies outside the family.*its|'s tableaus"):
        van_der_pol[1].with_solver(alpha_family(3.0))
    van_der_pol[0].with_solver(alpha_family(3.0))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda h: pickle.loads(pickle.dumps(h))], ids=["deepcopy", "pickle"])
def test_copies_of_a_family_swap_as_it_does(van_der_pol, oscillator_states, copied):
    X = oscillator_states
    for hyper in (van_der_pol[1], van_der_pol[1].with_solver(alpha_family(0.3))):
        other = copied(hyper)
        np.testing.assert_array_equal(other.transform(X), hyper.transform(X))
        swapped = hyper.with_solver("heun").transform(X)
        np.testing.assert_array_equal(other.with_solver("heun").transform(X), swapped)


def test_a_family_exports_with_any_member(van_der_pol, oscillator_states):
    swapped, x = van_der_pol[1].with_solver(alpha_family(0.3)), torch.from_numpy(oscillator_states)
    exported = torch.export.export(swapped.to_module(), (x,)).module()
    torch.testing.assert_close(exported(x), torch.from_numpy(swapped.transform(oscillator_states)))


@pytest.mark.parametrize(
    ("loss", "finetune"), [("residual", None), ("residual", "terminal"), ("residual+trajectory", "output")]
)
def test_every_kind_of_loss_fits_a_family(X, loss, finetune):
    correction = MLPCorrection(hidden=8, tableaus=FAMILY)
    hyper = regressor(base_solver="midpoint", loss=loss, finetune=finetune, correction=correction, max_epochs=30).fit(X)
    for alpha in (0.1, 0.5, 1.0):
        swapped = hyper.with_solver(alpha_family(alpha))
        assert swapped.score(X) > base_score(swapped, X)


def test_a_family_fits_image_states_and_warm_starts(digits, digits_ode):
    fast = HypersolverClassifier(
        digits_ode, base_solver="midpoint", n_steps=1, correction=ConvCorrection(hidden=4, tableaus=FAMILY),
        max_epochs=4, lr=5e-3, max_samples=60, warm_start=True, **TIGHT,
    ).fit(digits[0])  # fmt: skip
    again = fast.set_params(base_solver=alpha_family(0.25)).fit(digits[0])
    assert again.correction_.net.spacings == (0.25,) and again.correction_.net.layout.reads_tableau


def test_wrong_families_are_refused_before_any_solve(X, solves):
    hyper = regressor(base_solver="midpoint", correction=MLPCorrection(tableaus=["heun", "rk4"]))
    with pytest.raises(ValueError, match=r"MLPCorrection.tableaus holds 'rk4' \(order 4, 4 stages\).*'midpoint'"):
        hyper.fit(X)
    with pytest.raises(ValueError, match=r"MLPCorrection.tableaus must be None or a list .* got 'heun'"):
        hyper.set_params(correction__tableaus="heun").fit(X)
    assert solves == []


def test_families_can_be_searched_over(X):
    grid = {"correction__tableaus": [None, FAMILY], "correction__hidden": [4]}
    correction = MLPCorrection()
    search = GridSearchCV(make_regressor(base_solver="midpoint", correction=correction, max_epochs=10), grid, cv=2).fit(
        X
    )
    assert search.best_params_["correction__tableaus"] in (None, FAMILY) and correction.tableaus is None
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert clone(search.best_estimator_).correction == search.best_estimator_.correction


@pytest.mark.parametrize("kind", ["swirl", "digits"])
def test_exported_module_predicts_the_same_for_any_batch(swirl, X, digits_hyper, digits, kind):
    hyper, rows = (swirl, X) if kind == "swirl" else (digits_hyper, digits[0])
    module, x = hyper.to_module(), torch.from_numpy(rows)
    batch = torch.export.Dim("batch")
    exported = torch.export.export(module, (x[:5],), dynamic_shapes=({0: batch},)).module()
    for n in (2, 50):
        with torch.no_grad():
            expected = module(x[:n])
            torch.testing.assert_close(exported(x[:n]), expected, rtol=1e-5, atol=1e-6)
    assert module is not hyper.module_
    with torch.no_grad():  # what predict runs is its fold
        np.testing.assert_array_equal(module.fold()(x).numpy(), hyper.module_(x).numpy())


# ---------------------------------------------------------------------- fitting on and on
def test_warm_start_continues_from_the_last_correction(X):
    hyper = regressor(warm_start=True, finetune=None).fit(X)
    best = min(row["valid_loss"] for row in hyper.history_)
    assert hyper.set_params(max_epochs=1, lr=1e-6).fit(X).history_[0]["valid_loss"] == pytest.approx(best, rel=1e-3)
    with pytest.raises(ValueError, match=r"'heun' \(order 2, 2 stages\) cannot take over.*warm_start=False"):
        hyper.set_params(base_solver="heun").fit(X)


def test_a_correction_of_the_users_own_is_copied(X):
    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.map = nn.Linear(4, 2, dtype=torch.float64)

        def forward(self, eps, s, z, stages, x=None):
            return self.map(torch.cat([z, stages[0]], dim=1))

    own = Linear()
    before = weights(own)
    hyper = regressor(correction=own).fit(X)
    assert hyper.score(X) > base_score(hyper, X)
    assert weights(own) == before and own.training


def test_a_specs_parameters_are_the_hypersolvers(X):
    hyper = make_regressor(correction=MLPCorrection(hidden=4)).set_params(correction__hidden=6)
    assert hyper.get_params()["correction__hidden"] == 6
    assert hyper.fit(X).correction_.net.layout.hidden == 6


def test_clone_shares_the_neural_ode_and_is_unfitted(digits_ode, digits_hyper):
    copied = clone(digits_hyper)
    assert copied.neural_ode is digits_ode and not hasattr(copied, "module_")
    with pytest.raises(ValueError, match="neural_ode__lr: the fitted neural_ode cannot be changed"):
        copied.set_params(neural_ode__lr=1.0)
    assert not any(name.startswith("neural_ode__") for name in copied.get_params(deep=True))


def test_the_users_module_is_only_read(X):
    class Noisy(Swirl):
        def __init__(self):
            super().__init__()
            self.norm, self.dropout = nn.BatchNorm1d(2, dtype=torch.float64), nn.Dropout(0.5)

        def forward(self, t, z):
            return super().forward(t, self.dropout(self.norm(z)))

    ode = NeuralODE(Noisy())
    before, attributes = weights(ode), {name: set(vars(module)) for name, module in ode.named_modules()}
    hyper = HypersolverRegressor(ode, base_solver="euler", n_steps=2, max_epochs=2, random_state=0).fit(X)
    hyper.predict(X), hyper.score(X), hyper.solver_report(X)
    assert weights(ode) == before == weights(hyper.neural_ode_)
    assert all(module.training for module in ode.modules()) and not any(m.training for m in hyper.module_.modules())
    assert all(p.requires_grad and p.grad is None for p in ode.parameters())
    assert {name: set(vars(module)) for name, module in ode.named_modules()} == attributes


def test_same_random_state_same_result_and_global_generators_as_found(X):
    states = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    one, two, other = (make_regressor(random_state=seed).fit(X).predict(X) for seed in (1, 1, 2))
    make_regressor(random_state=None, max_samples=40).fit(X)
    np.testing.assert_array_equal(one, two)
    assert not np.allclose(one, other, rtol=1e-12)
    assert torch.equal(states[0], torch.random.get_rng_state()) and (states[1] == np.random.get_state()[1]).all()


def test_early_stopping_ends_a_fit_quietly(X):
    hyper = regressor(max_epochs=100, callbacks=[EarlyStopping(patience=2, threshold=10)]).fit(X)
    assert len(hyper.history_) < 10 and hyper.score(X) > base_score(hyper, X)


def test_one_reference_solve_a_fit_and_none_in_predict(X, solves):
    hyper = make_regressor(max_samples=50).fit(X)
    assert solves == [50]
    hyper.predict(X), hyper.transform(X), hyper.trajectory(X)
    assert solves == [50]


def test_ill_conditioned_targets_are_solved_for_again(X):
    with pytest.warns(ConditioningWarning, match=r"order 4.*A lower order or fewer steps"):
        hyper = make_regressor(base_solver="rk4", n_steps=10).fit(X)
    assert hyper.dtype_ == torch.float64 and hyper.score(X) > -1e-4


# ---------------------------------------------------------------------- anything in
_CONVERSIONS = {
    "list": lambda X: X.tolist(),
    "tensor": torch.from_numpy,
    "grad tensor": lambda X: torch.from_numpy(X).double().requires_grad_(),
    "read-only": lambda X: _flagged(X),
    "negative strides": lambda X: X[::-1, ::-1].copy()[::-1, ::-1],
    "Fortran": np.asfortranarray,
    "DataFrame": lambda X: pytest.importorskip("pandas").DataFrame(X, columns=list("ab")),
}


def _flagged(X):
    X = X.copy()
    X.setflags(write=False)
    return X


@settings(max_examples=15)
@given(
    n=st.integers(1, 40),
    dtype=st.sampled_from(["float32", "float64", "int64", "int8", "float16", "bool"]),
    conversion=st.sampled_from(sorted(set(_CONVERSIONS) - {"DataFrame"})),
)
def test_arrays_of_any_kind_give_the_same_prediction(swirl, n, dtype, conversion):
    rows = (np.arange(2 * n).reshape(n, 2) % 3).astype(dtype)
    predicted = swirl.predict(_CONVERSIONS[conversion](rows))
    assert predicted.shape == (n, 2) and predicted.dtype == np.float64
    np.testing.assert_array_equal(predicted, swirl.predict(rows.astype(np.float64)))


def test_frames_and_memory_maps(X, tmp_path):
    frame = _CONVERSIONS["DataFrame"](X)
    hyper = make_regressor().fit(frame)
    assert hyper.feature_names_in_.tolist() == ["a", "b"]
    with pytest.raises(ValueError, match="feature names should match"):
        hyper.predict(frame[["b", "a"]])
    np.save(tmp_path / "X.npy", X)
    plain, mapped = make_regressor().fit(X), make_regressor().fit(np.load(tmp_path / "X.npy", mmap_mode="r"))
    np.testing.assert_array_equal(plain.predict(X), mapped.predict(np.load(tmp_path / "X.npy", mmap_mode="r")))
    np.testing.assert_array_equal(plain.predict(X), hyper.predict(frame))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_fields_without_tensors_compute_in_the_dtype_of_X(X, dtype):
    assert make_regressor(spiral, n_steps=8).fit(X.astype(dtype)).predict(X).dtype == dtype


def test_logits_need_one_column_a_class(X):
    with pytest.raises(ValueError, match=r"logits of shape \(n_samples, 2\), one a class, got \(2, 3\)"):
        make_classifier(classes=["a", "b"]).fit(X)
    with pytest.raises(ValueError, match=r"classes=None.*pass classes=\[\.\.\.\] in the order of the logits"):
        HypersolverClassifier(NeuralODE(Swirl(), output_map=ToLogits())).fit(X)


def test_report_takes_labels_in_any_order_of_classes_and_refuses_others(X):
    fast = make_classifier(classes=["c", "a", "b"]).fit(X)
    accuracy = fast.solver_report(X, fast.predict(X))[-1].accuracy
    assert accuracy == 1
    with pytest.raises(ValueError, match=r"y must hold one of classes_ \['c', 'a', 'b'\].*\['d'\] are not among"):
        fast.solver_report(X, ["d"] * len(X))
    with pytest.raises(ValueError, match=r"for each of the \d+ rows of X, got 1 labels"):
        fast.solver_report(X, ["a"])


def test_report_gives_the_relative_overhead_of_g_alone(X):
    dopri5, base, hyper = make_regressor().fit(X).solver_report(X)
    assert np.isnan(dopri5.relative_overhead) and np.isnan(base.relative_overhead)
    assert hyper.relative_overhead == pytest.approx(hyper.macs / base.macs)


class Hamiltonian(nn.Module):
    """Differentiates its energy inside, as Hamiltonian and gradient-flow fields do."""

    def forward(self, t, z):
        with torch.enable_grad():
            q = z if z.requires_grad else z.detach().requires_grad_(True)
            energy = (1 - q[:, 0].cos() + q[:, 1].pow(2) / 2).sum()
            (slope,) = torch.autograd.grad(energy, q, create_graph=True)
        return torch.stack([slope[:, 1], -slope[:, 0]], dim=1)


def test_a_field_may_differentiate_inside(X):
    fast = make_regressor(Hamiltonian()).fit(X)
    assert np.isfinite(fast.predict(X)).all() and np.isfinite(fast.score(X))


def test_a_state_may_have_no_axis_but_the_batchs(X):
    fast = make_regressor(NeuralODE(lambda t, z: -z, input_map=lambda x: x[:, 0])).fit(X)
    assert fast.transform(X).shape == (len(X),)


def test_delta_is_measured_on_what_the_targets_were_made_of(X):
    params = {"base_solver": "rk4", "n_steps": 20, "finetune": None, "max_epochs": 20}
    with pytest.warns(ConditioningWarning, match="solved for again in float64"):
        single = make_regressor(Swirl().float(), **params).fit(X.astype(np.float32))
    exact = make_regressor(Swirl(), rtol=1e-12, atol=1e-12, **params).fit(X)
    # Noise alone would be of order 1e-6 / eps^5 = 3.
    assert single.delta_[20]["max"] == pytest.approx(exact.delta_[20]["max"], rel=0.2)
    assert single.delta_[20]["max"] < 0.5


def test_targets_keep_their_noise_where_the_field_does_not_run_in_float64(X):
    matrix = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    with pytest.warns(ConditioningWarning, match="does not run in float64"):
        fast = make_regressor(lambda t, z: torch.tanh(z @ matrix), base_solver="rk4").fit(X.astype(np.float32))
    assert np.isfinite(fast.score(X))


def test_a_module_inside_a_function_is_refused(X):
    net = nn.Linear(2, 2)
    with pytest.raises(
        TypeError, match=r"vector_field is a function that calls the module net.*Pass the module itself"
    ):
        make_regressor(lambda t, z: net(z)).fit(X)


def test_features_are_those_that_enter_the_pipeline(vectors):
    features, targets = vectors
    wide = np.hstack([features, features[:, :1]])
    steps = make_pipeline(PCA(2), NeuralODERegressor(max_epochs=2, random_state=0)).fit(wide, targets)
    fast = make_regressor(steps).fit(wide)
    assert fast.n_features_in_ == wide.shape[1]
    with pytest.raises(ValueError, match=f"{wide.shape[1] - 1} features, but PCA is expecting"):
        fast.predict(wide[:, :-1])
