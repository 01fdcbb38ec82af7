"""All that a hypersolver has learned is one value, ``fitted_``; its other attributes are read from it."""

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from small_hypersolvers import make_classifier, make_regressor

from sklearn_hyper.hypersolvers import FittedHypersolver

PARTS = {
    "module_": lambda fitted: fitted.module,
    "correction_": lambda fitted: fitted.correction,
    "base_solver_": lambda fitted: fitted.method,
    "order_": lambda fitted: fitted.method.order,
    "neural_ode_": lambda fitted: fitted.neural_ode,
    "delta_": lambda fitted: fitted.delta,
    "errors_": lambda fitted: fitted.errors,
    "history_": lambda fitted: fitted.history,
    "net_": lambda fitted: fitted.net,
    "n_samples_fit_": lambda fitted: fitted.n_samples,
}
each_part = pytest.mark.parametrize("name", PARTS)


@each_part
def test_attributes_are_those_of_the_product(swirl, name):
    assert getattr(swirl, name) is PARTS[name](swirl.fitted_)


@each_part
def test_attributes_are_read_only_and_absent_before_a_fit(swirl, name):
    with pytest.raises(AttributeError):
        setattr(swirl, name, None)
    assert not hasattr(clone(swirl), name)


def test_a_product_of_ones_own_is_what_predicts(swirl, X):
    assert isinstance(swirl.fitted_, FittedHypersolver)
    x = torch.from_numpy(X)
    np.testing.assert_array_equal(swirl.predict(X), swirl.fitted_.predict(x).numpy())
    np.testing.assert_array_equal(swirl.transform(X), swirl.fitted_.solve(x).numpy())
    np.testing.assert_array_equal(swirl.reference(X), swirl.fitted_.reference(x).numpy())


def test_other_solvers_are_other_products(swirl):
    other, plain = swirl.with_solver(n_steps=2), swirl.without_correction()
    assert other.fitted_ is not swirl.fitted_ and other.fitted_.correction is swirl.fitted_.correction
    assert plain.fitted_.correction is None and swirl.fitted_.correction is not None


def test_a_product_can_be_saved_without_the_estimator(X, tmp_path):
    hyper = make_classifier().fit(X)
    loaded = FittedHypersolver.load(hyper.fitted_.save(tmp_path / "fast.bin"))
    logits = loaded.predict(torch.from_numpy(X))
    np.testing.assert_array_equal(hyper.classes_[logits.argmax(dim=1)], hyper.predict(X))


@pytest.mark.parametrize(
    "call",
    [
        lambda hyper, X: hyper.predict(X),
        lambda hyper, X: hyper.transform(X),
        lambda hyper, X: hyper.trajectory(X),
        lambda hyper, X: hyper.reference(X),
        lambda hyper, X: hyper.score(X),
        lambda hyper, X: hyper.neg_mape(X),
        lambda hyper, X: hyper.solver_report(X),
        lambda hyper, X: hyper.count_macs(X),
        lambda hyper, X: hyper.count_evaluations(),
        lambda hyper, X: hyper.with_solver("euler"),
        lambda hyper, X: hyper.without_correction(),
        lambda hyper, X: hyper.to_module(),
    ],
)
def test_before_a_fit_every_method_says_so(X, call):
    with pytest.raises(NotFittedError, match="HypersolverRegressor instance is not fitted yet"):
        call(make_regressor(), X)


def test_counts_are_those_of_the_report(swirl, X):
    row = swirl.solver_report(X)[-1]
    assert (swirl.count_evaluations(), swirl.count_macs(X)) == (row.nfe, row.macs)
    assert swirl.neg_mape(X) == swirl.score(X) == pytest.approx(-row.mape)


def test_a_classifiers_scores_need_no_labels(X):
    hyper = make_classifier().fit(X)
    expected = hyper.reference(X).argmax(axis=1)
    assert hyper.agreement(X) == np.mean(hyper.predict(X) == hyper.classes_[expected])
    assert hyper.neg_mape(X) < 0
