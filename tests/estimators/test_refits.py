"""Refits: a hypersolver follows a Neural ODE that has been trained on, in a few epochs."""

import pickle

import numpy as np
import pytest
import torch
from interruptions import StopsAt
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from small_flows import make_fast, make_flow, two_blobs
from small_hypersolvers import ROUGH_FITS, make_classifier
from torch import nn

import sklearn_hyper
from sklearn_hyper import HypersolverRegressor, MLPCorrection, NeuralODE, WeightCorrection
from sklearn_hyper.calibration import CalibrationRowsError, NotCalibratedError
from sklearn_hyper.modules import MLPVectorField

pytestmark = ROUGH_FITS
NET, WEIGHTS = MLPCorrection(hidden=8), WeightCorrection()


@pytest.fixture(scope="module")
def X():
    return np.random.default_rng(0).uniform(-1, 1, (160, 2))


def field(moved=0.0, hidden=8):
    """A small net, whose weights are a share ``moved`` of their size away from where they were."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = MLPVectorField(2, hidden=hidden).double()
        with torch.no_grad():
            for weight in net.parameters():
                weight *= 2
                change = torch.randn_like(weight)
                weight += moved * change * weight.norm() / change.norm()
    return net


def fitted(X, neural_ode=None, **params):
    defaults = {"n_steps": 2, "max_epochs": 60, "batch_size": 16, "random_state": 0}
    return HypersolverRegressor(neural_ode or field(), **defaults | params).fit(X)


def errors(fast, X):
    return np.linalg.norm(fast.predict(X) - fast.reference(X), axis=1)


# ---------------------------------------------------------------------- what a refit reaches
@pytest.mark.parametrize("params", [{}, {"correction": NET, "base_solver": "heun"}], ids=["weights", "net"])
def test_a_refit_comes_near_a_fit_in_a_quarter_of_the_epochs(X, params):
    """A tenth of change in random directions is a lot: training on moves the field less."""
    fast, fresh = fitted(X, **params), np.random.default_rng(1).uniform(-1, 1, (100, 2))
    moved = field(0.1)
    full = fitted(X, moved, **params)
    assert fast.refit(moved, X) is fast and len(fast.history_) == 15
    assert errors(fast, fresh).mean() < 2 * errors(full, fresh).mean()
    assert errors(fast, fresh).mean() < 0.5 * errors(fast.without_correction(), fresh).mean()


def test_it_is_for_the_field_as_it_is_now(X):
    fast, moved = fitted(X, max_epochs=2), field(0.1)
    before = fast.predict(X)
    fast.refit(moved, X, max_epochs=1)
    assert fast.neural_ode is moved
    np.testing.assert_allclose(fast.reference(X), NeuralODE(moved)(torch.from_numpy(X)).detach(), atol=1e-4)
    assert not np.allclose(fast.predict(X), before)
    assert fast.neural_ode_.vector_field is not moved  # a copy, as after fit
    assert all(weight.requires_grad for weight in moved.parameters())


def test_it_starts_from_the_correction_as_it_was(X):
    """An epoch at a rate of nearly zero leaves the changes of weights as they were, on top of the new weights."""
    fast = fitted(X, correction=WEIGHTS, base_solver="euler", max_epochs=8)
    changes = [change.clone() for change in fast.correction_.parameters()]
    assert any(change.abs().max() > 0 for change in changes)
    fast.refit(field(0.05), X, max_epochs=1, lr=1e-12)
    for now, was in zip(fast.correction_.parameters(), changes, strict=True):
        torch.testing.assert_close(now, was, rtol=0, atol=1e-9)


def test_it_says_the_errors_before_and_after(X, capsys):
    fast, moved = fitted(X, verbose=0), field(0.1)
    with pytest.raises(AttributeError, match="refit_ is there after refit"):
        _ = fast.refit_
    stale = pickle.loads(pickle.dumps(fast))
    fast.set_params(verbose=1).refit(moved, X)
    said = fast.refit_
    assert said["after"] == fast.errors_
    assert said["before"][2]["base_mean"] == said["after"][2]["base_mean"]
    assert said["after"][2]["mean"] < 0.7 * said["before"][2]["mean"]
    line = capsys.readouterr().out
    assert f"mean error {said['before'][2]['mean']:.3g} before, {said['after'][2]['mean']:.3g} after" in line
    # "before" is the earlier correction on the new field: that of the held-out rows, here within those of all rows.
    stale.refit(moved, X, max_epochs=1, lr=1e-12)
    everywhere = errors(stale, X)
    assert everywhere.min() <= said["before"][2]["mean"] <= everywhere.max()


def test_a_fit_afterwards_forgets_it(X):
    fast = fitted(X, max_epochs=3).refit(field(0.1), X, max_epochs=2)
    assert not hasattr(fast.fit(X), "refit_")


# ---------------------------------------------------------------------- what stays, and what goes
def test_the_base_solver_and_its_learned_coefficients_stay(X):
    fast = fitted(X, base_solver="nonstationary", n_steps=3, max_epochs=3)
    method = fast.base_solver_
    assert fast.refit(field(0.1), X, max_epochs=2).base_solver_ is method


def test_a_calibration_is_dropped_and_both_sets_of_rows_count_as_fitted_on(X):
    fast, others = fitted(X, max_epochs=3), np.random.default_rng(2).uniform(-1, 1, (160, 2))
    fast.conformalize(np.random.default_rng(3).uniform(-1, 1, (60, 2)))
    fast.refit(field(0.1), others, max_epochs=2)
    with pytest.raises(NotCalibratedError):
        fast.predict(X, return_bound=True)
    for rows in (X, others):
        with pytest.raises(CalibrationRowsError, match="fitted on"):
            fast.conformalize(rows)


def test_what_comes_after_works_as_after_a_fit(X, tmp_path):
    fast = fitted(X, correction=NET, fit_n_steps=(1, 4), max_epochs=3).refit(field(0.1), X, max_epochs=2)
    fast.save(tmp_path / "fast.safetensors")
    loaded = sklearn_hyper.load(tmp_path / "fast.safetensors", vector_field=field())
    np.testing.assert_allclose(loaded.predict(X), fast.predict(X))
    assert loaded.refit_ == fast.refit_
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(fast)).predict(X), fast.predict(X))
    assert fast.with_solver(n_steps=3).refit(field(0.2), X, max_epochs=1).fitted_.n_steps == 3
    anew = clone(fast).fit(X)
    np.testing.assert_allclose(anew.reference(X), fast.reference(X))
    loaded.refit(field(0.2), X, max_epochs=1)
    assert loaded.refit_["before"] != fast.refit_["before"]


def test_a_classifier_is_refitted_too(X):
    fast = make_classifier(max_epochs=6).fit(X)
    slow = fast.neural_ode
    with torch.no_grad():
        slow.vector_field.weight *= 1.2
    fast.refit(slow, X)
    assert len(fast.history_) == 2  # a quarter of six, or a third, rounded up
    assert fast.refit_["after"][2]["mean"] < fast.refit_["before"][2]["mean"]


def test_both_directions_of_a_flow_are_refitted():
    X = two_blobs(200)
    flow = make_flow(gain=2.0).fit(X)
    fast = make_fast(flow, max_samples=400, max_epochs=20, batch_size=32).fit(X)
    with torch.no_grad():
        for weight in flow.flow_.vector_field.parameters():
            weight *= 1.1
    fast.refit(flow, X, max_epochs=10)
    for fitted in (fast.sampler_, fast.density_):
        assert fitted.errors[2]["mean"] < fitted.errors_before[2]["mean"]
    ours, base, theirs = (one.score_samples(X) for one in (fast, fast.without_correction(), flow))
    assert np.abs(ours - theirs).mean() < np.abs(base - theirs).mean()


# ---------------------------------------------------------------------- what is refused
class Scaled(nn.Module):
    """A field without weights, for states of any size."""

    def forward(self, t, z):
        return -z


@pytest.mark.parametrize(
    ("neural_ode", "message"),
    [
        (field(hidden=9), r"its field's .*weight has shape \(8, .*\) before and shape \(9, .*\) now"),
        (field().float(), "its states are of torch.float64 before and torch.float32 now"),
        (Scaled(), "has shape .* before and no values now; .*and 4 more parameters"),
        (
            NeuralODE(Scaled(), input_map=lambda x: torch.cat([x, x], dim=1)[:, 1:]),
            r"its states have shape \(2,\) before and \(3,\) now",
        ),
        (NeuralODE(lambda t, z, x: -z, data_controlled=True), r"its field takes \(t, z\) before and \(t, z, x\) now"),
        (NeuralODE(field(), output_map=lambda z: z[:, :1]), r"its outputs have shape \(2,\) before and \(1,\) now"),
    ],
    ids=["width", "dtype", "weights", "states", "inputs", "outputs"],
)
def test_another_architecture_is_refused_by_what_differs(X, neural_ode, message):
    fast = fitted(X, max_epochs=2)
    before = fast.predict(X)
    with pytest.raises(ValueError, match="of another architecture.*" + message):
        fast.refit(neural_ode, X)
    np.testing.assert_array_equal(fast.predict(X), before)
    assert fast.neural_ode is not neural_ode


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"max_epochs": 0}, "max_epochs must be None or an integer >= 1, got 0"),
        ({"max_epochs": 2.5}, "max_epochs must be None or an integer >= 1, got 2.5"),
        ({"lr": -1.0}, "lr must be None or a positive number, got -1.0"),
        ({"lr": "fast"}, "lr must be None or a positive number, got 'fast'"),
    ],
    ids=str,
)
def test_wrong_settings_are_refused(X, params, message):
    with pytest.raises(ValueError, match=message):
        fitted(X, max_epochs=1).refit(field(), X, **params)


def test_there_must_be_something_to_go_on_from(X):
    with pytest.raises(NotFittedError):
        HypersolverRegressor(field()).refit(field(), X)
    fast = fitted(X, max_epochs=2).without_correction()
    with pytest.raises(ValueError, match=r"has no correction to refit: .*without_correction\(\).*Call fit"):
        fast.refit(field(), X)


def test_a_flow_needs_data_where_it_has_densities():
    X = two_blobs(100)
    flow = make_flow(gain=2.0).fit(X)
    with pytest.raises(ValueError, match="densities would be stale: pass X"):
        make_fast(flow).fit(X).refit(flow)
    with pytest.raises(ValueError, match=r"it has fitted none: call fit\(X\)"):
        make_fast(flow).fit().refit(flow, X)


def test_rows_of_another_width_are_refused(X):
    with pytest.raises(ValueError, match="3 features"):
        fitted(X, max_epochs=1).refit(field(), np.ones((20, 3)))


def test_ctrl_c_keeps_the_best_finished_epoch_of_the_new_field(X):
    fast, moved = fitted(X, max_epochs=3), field(0.1)
    fast.set_params(callbacks=[StopsAt(2)])
    with pytest.raises(KeyboardInterrupt):
        fast.refit(moved, X, max_epochs=5)
    assert len(fast.history_) == 2 and fast.neural_ode is moved
    with pytest.raises(KeyboardInterrupt):
        fast.set_params(callbacks=[StopsAt(1)]).refit(field(0.2), X, max_epochs=5)
