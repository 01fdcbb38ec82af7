"""What fitted hypersolvers give: trajectories, references, scores, reports and modules."""

import copy

import numpy as np
import pytest
import torch
from sklearn.base import clone
from small_hypersolvers import make_classifier, make_regressor

from sklearn_hyper import (
    HypersolverRegressor,
)
from sklearn_hyper.metrics import mean_absolute_percentage_error
from sklearn_hyper.modules import MLPVectorField
from sklearn_hyper.numerics import count_macs


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


@pytest.mark.parametrize("base_solver", ["euler", "ab2", "heun"])
def test_report_counts_the_macs_of_the_solve_as_it_runs(X, base_solver):
    torch.manual_seed(0)
    field = MLPVectorField(4).double()
    hyper = make_regressor(field, base_solver=base_solver, n_steps=3, max_epochs=20, rtol=1e-11, atol=1e-11).fit(
        np.hstack([X, X])
    )
    x = torch.zeros(1, 4, dtype=torch.float64)
    assert hyper.solver_report(np.hstack([X, X]))[-1].macs == count_macs(hyper.module_.terminal_state, x)


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
