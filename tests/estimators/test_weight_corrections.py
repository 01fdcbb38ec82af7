"""Corrections in the weights of a field, as an estimator's parameter: what "auto" stands for, files, errors."""

import copy
import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from small_flows import make_flow
from small_hypersolvers import ROUGH_FITS, Swirl, make_classifier, spiral
from torch import nn

from sklearn_hyper import (
    HypersolverDensity,
    HypersolverRegressor,
    MLPCorrection,
    NeuralODE,
    ReachCorrection,
    WeightCorrection,
)
from sklearn_hyper.modules import BoundedCorrection, ConvVectorField, MLPVectorField
from sklearn_hyper.modules.corrections.changes import LowRankChanges, SmoothWeights
from sklearn_hyper.modules.corrections.weights import FieldWeights, WeightsAndTerm
from sklearn_hyper.training.soap import Soap

pytestmark = ROUGH_FITS


@pytest.fixture(scope="module")
def X():
    return np.random.default_rng(0).uniform(-1, 1, (120, 2))


def field():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MLPVectorField(2, hidden=8).double()


def fitted(X, neural_ode=None, **params):
    defaults = {"n_steps": 2, "correction": WeightCorrection(), "max_epochs": 15, "batch_size": 16, "random_state": 0}
    return HypersolverRegressor(neural_ode or Swirl(), **defaults | params).fit(X)


def gain(fast, X):
    """The score as a share of the base solver's: smaller is better."""
    return fast.score(X) / fast.without_correction().score(X)


# ---------------------------------------------------------------------- fits
@pytest.mark.parametrize(
    "params",
    [
        {},
        {"base_solver": "euler"},
        {"base_solver": "heun", "n_steps": 1},
        {"base_solver": "ab2", "n_steps": 3},
        {"base_solver": "midpoint", "fit_n_steps": (1, 3)},
        {"fit_n_steps": (2, 4), "n_steps": 3},
        {"loss": "trajectory", "base_solver": "euler"},
        {"correction": WeightCorrection(beside=MLPCorrection(hidden=4))},
        {"optimizer": torch.optim.Adam},
    ],
    ids=str,
)
def test_it_beats_its_base_solver_at_the_same_number_of_evaluations(X, params):
    fast = fitted(X, **params)
    assert gain(fast, X) < 0.4
    table = fast.solver_report(X)
    assert len({row.nfe for row in table[1:]}) == 1
    if params.get("correction") is None:
        assert len({row.macs for row in table[1:]}) == 1


def test_coefficients_learn_on_with_the_weights_and_stay_without_them(X):
    fast = fitted(X, n_steps=3)
    base = fast.without_correction()
    assert fast.base_solver_ != base.base_solver_
    assert base.correction_ is None and base.score(X) < fast.score(X)


@pytest.mark.parametrize("rank", [1, 3])
def test_a_rank_limits_what_is_learned(X, rank):
    fast = fitted(X, field(), correction=WeightCorrection(rank=rank))
    low = [change for change in fast.correction_.changes if isinstance(change, LowRankChanges)]
    assert {tuple(up.shape[::2]) for change in low for up in change.ups} == {(2, rank)}
    assert gain(fast, X) < 0.6


def test_layers_limit_what_is_changed(X):
    ode = NeuralODE(field())
    names = [name for name, _ in ode.vector_field.named_parameters()]
    fast = fitted(X, ode, correction=WeightCorrection(layers=names[-2:]))
    changed = [name for one in fast.fitted_.module.folded.fields for name, value in one.named_parameters()
               if not torch.equal(value, ode.vector_field.get_parameter(name.removeprefix("field.")))]  # fmt: skip
    assert {name.removeprefix("field.") for name in changed} == set(names[-2:])


def test_layers_are_named_as_the_field_names_them(X):
    """Also where the library wraps it: for copies of fields that write into z, and for densities."""

    class InPlace(MLPVectorField):
        def forward(self, t, z):
            z *= 1.0
            return super().forward(t, z)

    names = [name for name, _ in field().named_parameters()]
    fast = fitted(X, InPlace(2, hidden=8).double(), correction=WeightCorrection(layers=names[:1]), max_epochs=2)
    assert fast.correction_ is not None
    flow = make_flow().fit(np.random.default_rng(0).normal(size=(50, 2)))
    layers = [next(name for name, _ in flow.flow_.vector_field.named_parameters())]
    HypersolverDensity(flow, correction=WeightCorrection(layers=layers), max_epochs=2, random_state=0).fit(X)


def test_outputs_can_be_what_counts(X):
    fast = make_classifier(
        base_solver="auto", correction=WeightCorrection(), finetune="output", max_epochs=15, batch_size=16
    ).fit(X)
    assert {row["stage"] for row in fast.fitted_.history} == {"output"}
    _, base, ours = fast.solver_report(X)
    assert ours.l2_mean < 0.3 * base.l2_mean


def test_a_flow_bends_in_both_directions():
    X = np.random.default_rng(0).normal(size=(150, 2))
    fast = HypersolverDensity(
        make_flow().fit(X), n_steps=2, correction=WeightCorrection(), max_epochs=15, batch_size=32, random_state=0
    ).fit(X)
    assert isinstance(fast.density_.correction, FieldWeights) and isinstance(fast.sampler_.correction, FieldWeights)
    _, base, ours = fast.solver_report(X)
    assert ours.l2_mean < 0.5 * base.l2_mean
    assert fast.sample(5).shape == (5, 2)


def test_the_same_seed_gives_the_same_weights(X):
    one, other = (fitted(X, max_epochs=3).predict(X) for _ in range(2))
    np.testing.assert_array_equal(one, other)


def test_a_warm_start_goes_on(X):
    fast = fitted(X, max_epochs=4, warm_start=True)
    first = fast.score(X)
    assert fast.set_params(max_epochs=15).fit(X).score(X) > first


def test_a_warm_start_is_compared_with_the_base_solver_of_the_first_fit(X):
    """Not with coefficients that were trained on together with weights: those are no base solver without them."""
    fast = fitted(X, n_steps=3, warm_start=True)
    first, base = fast.errors_[3]["base_mean"], fast.without_correction().predict(X)
    fast.fit(X)
    assert fast.errors_[3]["base_mean"] == pytest.approx(first, rel=1e-4)
    np.testing.assert_allclose(fast.without_correction().predict(X), base)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_steps": 3}, "3 steps with 3 evaluations: the correction has weights of f for 2 steps"),
        ({"correction": MLPCorrection()}, "cannot go on from a fit with WeightCorrection.*warm_start=False"),
        ({"neural_ode": NeuralODE(field())}, "changes the weights of another field"),
    ],
    ids=str,
)
def test_a_warm_start_goes_on_with_its_own_kind_steps_and_field_alone(X, changes, message):
    fast = fitted(X, base_solver="euler", max_epochs=2, warm_start=True)
    with pytest.raises(ValueError, match=message):
        fast.set_params(**changes).fit(X)


@pytest.mark.parametrize("n_steps", [4, 12])
def test_a_field_that_other_weights_would_drive_away_is_fitted(X, n_steps):
    """dz/dt = -c z^3, which long steps hardly bear."""

    class Cubic(nn.Module):
        def __init__(self):
            super().__init__()
            self.c, self.turn = nn.Parameter(torch.tensor(4.0)), nn.Parameter(torch.eye(2))

        def forward(self, t, z):
            return -self.c * (z @ self.turn) ** 3

    fast = fitted(X.astype(np.float32), Cubic(), correction="auto", n_steps=n_steps, max_epochs=3)
    assert fast.score(X) >= fast.without_correction().score(X)


# ---------------------------------------------------------------------- what "auto" stands for
def test_auto_is_the_weights_with_soap(X):
    fast = fitted(X, correction="auto")
    assert isinstance(fast.correction_, FieldWeights) and fast.base_solver_.name == "nonstationary"
    assert isinstance(fast.fitted_.net.optimizer_, Soap)


@pytest.mark.parametrize(
    "params",
    [{"base_solver": "euler"}, {"order": 2}, {"fit_n_steps": (2, 4), "n_steps": 3}, {"finetune": "trajectory"}],
    ids=str,
)
def test_auto_is_a_net_where_more_than_one_end_is_wanted_or_a_method_is_named(X, params):
    fast = fitted(X, correction="auto", **params, max_epochs=2)
    assert isinstance(fast.correction_, BoundedCorrection) or fast.correction_ is None
    assert isinstance(fast.fitted_.net.optimizer_, torch.optim.Adam)


class Checks(Swirl):
    """Refuses other weights than its own."""

    def forward(self, t, z):
        if not torch.equal(self.weight.detach().sum(), torch.zeros((), dtype=torch.float64)):
            raise ValueError("these are not my weights")
        return super().forward(t, z)


def test_auto_is_a_net_beside_a_field_that_refuses_other_weights(X):
    assert isinstance(fitted(X, Checks(), correction="auto").correction_, BoundedCorrection)


def test_auto_is_a_net_beside_a_formula(X):
    assert isinstance(fitted(X, NeuralODE(spiral), correction="auto").correction_, BoundedCorrection)


@pytest.mark.parametrize(("size", "sees_far"), [(6, False), (16, True)])
def test_auto_on_images_sees_far_if_that_is_thin(size, sees_far):
    X = np.random.default_rng(0).normal(size=(24, 32 if sees_far else 2, size, size)).astype(np.float32)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ode = NeuralODE(ConvVectorField(X.shape[1], hidden=64 if sees_far else 4))
    fast = HypersolverRegressor(ode, n_steps=2, max_epochs=2, batch_size=8, random_state=0).fit(X)
    assert isinstance(fast.correction_, WeightsAndTerm if sees_far else FieldWeights)


# ---------------------------------------------------------------------- afterwards
def test_it_survives_copies_and_files(X, tmp_path):
    fast = fitted(X, correction=WeightCorrection(beside=MLPCorrection(hidden=4)))
    expected = fast.predict(X)
    for other in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        np.testing.assert_array_equal(other.predict(X), expected)
        assert other.base_solver_ == fast.base_solver_
    np.testing.assert_array_equal(clone(fast).fit(X).predict(X), expected)


def test_other_numbers_of_steps_are_refused_by_name(X):
    fast = fitted(X, base_solver="euler")
    with pytest.raises(ValueError, match=r"weights of f for 2 steps with 2 evaluations.*fit_n_steps=\(a, b\)"):
        fast.with_solver(n_steps=3)
    smooth = fitted(X, base_solver="euler", fit_n_steps=(1, 4))
    assert isinstance(smooth.correction_.schedule, SmoothWeights)
    assert gain(smooth.with_solver(n_steps=4), X) < 1


def test_a_module_for_deployment_is_f_and_sums(X):
    fast = fitted(X, field())
    exported = torch.export.export(fast.to_module().fold(), (torch.from_numpy(X[:4]),))
    torch.testing.assert_close(exported.module()(torch.from_numpy(X[:4])).numpy(), fast.predict(X[:4]))


# ---------------------------------------------------------------------- errors
class CopiesWeights(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2, dtype=torch.float64)
        self.copied = [self.layer.weight.detach()]

    def forward(self, t, z):
        return z @ self.copied[0].T


@pytest.mark.parametrize(
    ("neural_ode", "correction", "message"),
    [
        (Swirl(), WeightCorrection(rank=0), r"WeightCorrection.rank must be None or an integer >= 1, got 0"),
        (Swirl(), WeightCorrection(layers="weight"), r"layers must be 'all' or a list of names.*\['weight'\]"),
        (Swirl(), WeightCorrection(layers=["bias"]), r"layers must be 'all' .* got \['bias'\]; the field has \['weight"),
        (Swirl(), WeightCorrection(layers=[]), "layers must be 'all'"),
        (Swirl(), WeightCorrection(beside="auto"), r"beside must be None or the spec of a net.* got 'auto'"),
        (Swirl(), WeightCorrection(beside=WeightCorrection()), "beside must be None or the spec of a net"),
        (Swirl(), WeightCorrection(beside=ReachCorrection()), r"needs states of shape \(c, h, w\), got \(2,\)"),
        (Swirl(), ReachCorrection(hidden=0), r"ReachCorrection.hidden must be an integer >= 1, got 0"),
        (NeuralODE(spiral), WeightCorrection(), "this field has none; take correction='auto'"),
        (CopiesWeights(), WeightCorrection(), "changes nothing: with other parameters a solve ends where"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_fitted_is_refused_before_any_solve(X, neural_ode, correction, message):
    with pytest.raises(ValueError, match=message):
        fitted(X, neural_ode, correction=correction)


def test_parameters_are_nested():
    spec = WeightCorrection(beside=MLPCorrection())
    assert spec.set_params(rank=2, beside__hidden=8).get_params()["beside__hidden"] == 8
    fast = HypersolverRegressor(Swirl(), correction=spec).set_params(correction__beside__hidden=16)
    assert fast.correction.beside.hidden == 16
    with pytest.raises(ValueError, match=r"beside is None and has no parameters, got \['hidden'\]"):
        WeightCorrection().set_params(beside__hidden=8)
