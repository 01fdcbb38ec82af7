"""Other base solvers, numbers of steps and spans with a fitted correction, and corrections fitted over a family of them."""

import copy
import pickle
import warnings

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from small_hypersolvers import base_score, make_learner, make_regressor

from sklearn_hyper import (
    ConvCorrection,
    HypersolverClassifier,
    HypersolverRegressor,
    MLPCorrection,
    alpha_family,
)
from sklearn_hyper.datasets import VanDerPol
from sklearn_hyper.modules import HypersolvedODE

TIGHT = {"fit_n_steps": 1, "rtol": 1e-7, "atol": 1e-7, "random_state": 0}


def test_with_solver_is_a_copy_with_the_same_correction(X):
    hyper = make_learner(base_solver=alpha_family(0.95), fit_n_steps=(1, 4), max_epochs=20).fit(X)
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
    hyper = make_learner(base_solver="midpoint").fit(X)
    images = HypersolverClassifier(digits_ode, base_solver="midpoint", n_steps=1, max_epochs=1, **TIGHT).fit(digits[0])
    for fitted, rows in ((hyper, X), (images, digits[0])):
        for same in ("midpoint", alpha_family(0.5)):
            np.testing.assert_array_equal(fitted.with_solver(same).transform(rows), fitted.transform(rows))
            there_and_back = fitted.with_solver("heun").with_solver(same)
            np.testing.assert_array_equal(there_and_back.transform(rows), fitted.transform(rows))


# ---------------------------------------------------------------------- families of base solvers
FAMILY = [alpha_family(alpha) for alpha in (0.05, 0.25, 0.75, 1.0)]
UNSEEN = (0.1, 0.4, 0.6, 0.9)


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
    hyper = make_learner(
        base_solver="midpoint", loss=loss, finetune=finetune, correction=correction, max_epochs=30
    ).fit(X)
    for alpha in (0.1, 0.5, 1.0):
        swapped = hyper.with_solver(alpha_family(alpha))
        assert swapped.score(X) > base_score(swapped, X)


def test_a_family_fits_image_states_and_warm_starts(digits, digits_ode):
    fast = HypersolverClassifier(
        digits_ode, base_solver="midpoint", n_steps=1, correction=ConvCorrection(hidden=4, tableaus=FAMILY),
        max_epochs=4, lr=5e-3, max_samples=60, warm_start=True, **TIGHT,
    ).fit(digits[0])  # fmt: skip
    again = fast.set_params(base_solver=alpha_family(0.25)).fit(digits[0])
    assert again.base_solver_.main_kind.spacings == (0.25,) and again.correction_.net.layout.reads_tableau


def test_wrong_families_are_refused_before_any_solve(X, solves):
    hyper = make_learner(base_solver="midpoint", correction=MLPCorrection(tableaus=["heun", "rk4"]))
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
