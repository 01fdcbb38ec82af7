"""NeuralODERegressor on targets at several times: t_eval in fit, partial_fit, predict and score."""

import pickle
import warnings

import numpy as np
import pytest
import torch
from interruptions import StopsAt
from problems import LEARNED
from scipy.linalg import expm
from sklearn import config_context
from sklearn.base import clone
from sklearn.metrics import r2_score
from sklearn.model_selection import GridSearchCV, KFold, cross_val_predict, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from torch import nn

from sklearn_hyper import HypersolverRegressor, MLPCorrection, NeuralODEClassifier, NeuralODERegressor, load
from sklearn_hyper.estimators import SolverAgreementWarning
from sklearn_hyper.modules import MLPVectorField
from sklearn_hyper.training.nets import draw_seed
from sklearn_hyper.training.splits import split_rows

NAN = np.nan
SPIRAL = np.array([[-0.3, 1.5], [-1.5, -0.3]])
SPAN = (0.0, 2.0)


class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(torch.tensor([[0.0, 0.5], [-0.5, 0.0]]).double())

    def forward(self, t, z):
        return z @ self.matrix.T


def spiral(X, times):
    """The solution of z' = SPIRAL z at times of each row's own."""
    return np.array([[expm(SPIRAL * t) @ x for t in row] for x, row in zip(X, times, strict=True)])


def make_linear(**params):
    given = {
        "input_map": nn.Identity(), "t_span": SPAN, "max_epochs": 60, "lr": 0.1, "batch_size": 20, "random_state": 0,
    }  # fmt: skip
    return NeuralODERegressor(Linear(), **given | params)


def make_small(**params):
    """A regressor of one output, made to be quick."""
    torch.manual_seed(0)
    field = MLPVectorField(2, hidden=4, t_span=SPAN).double()
    given = {"input_map": nn.Identity(), "t_span": SPAN, "max_epochs": 2, "batch_size": 16, "random_state": 0}
    return NeuralODERegressor(field, **given | params)


@pytest.fixture(scope="module")
def data():
    """Rows, irregular times (of which some rows have fewer than others), and both components at these times."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 2))
    times = np.sort(rng.uniform(*SPAN, (60, 5)), axis=1)
    Y = spiral(X, times)
    times[::3, -2:] = NAN
    return X, times, Y


# ---------------------------------------------------------------------- what is learned
@pytest.mark.parametrize(
    "params",
    [{}, {"solver": "rk4", "n_steps": 8}, {"solver": "auto", "max_epochs": 90}],
    ids=["dopri5", "rk4", "auto"],
)
def test_the_matrix_is_recovered_and_times_never_seen_are_predicted(data, params):
    X, times, Y = data
    fitted = make_linear(**params).fit(X, Y, times)
    np.testing.assert_allclose(fitted.neural_ode_.vector_field.matrix.detach(), SPIRAL, atol=0.02)
    fresh = np.linspace(*SPAN, 7)
    np.testing.assert_allclose(fitted.predict(X, fresh), spiral(X, np.tile(fresh, (60, 1))), atol=0.1)
    assert fitted.score(X, Y, t_eval=times) > 0.999
    if params.get("solver") == "auto":
        assert fitted.agreement_.certified and fitted.solver_history_[-1]["solver"] == "dopri5"


def test_the_adjoint_takes_the_steps_of_backpropagation(data):
    X, times, Y = data
    plain, adjoint = (make_small(adjoint=flag, rtol=1e-6, max_epochs=1).fit(X, Y, times) for flag in (False, True))
    np.testing.assert_allclose(adjoint.predict(X, times), plain.predict(X, times), atol=1e-4)


def test_time_that_runs_back_is_learned_too(data):
    X, times, Y = data
    back = make_linear(t_span=(2.0, 0.0), solver="rk4", n_steps=8).fit(X, Y, 2 - times)
    np.testing.assert_allclose(back.neural_ode_.vector_field.matrix.detach(), -SPIRAL, atol=0.02)


def test_a_single_time_at_the_end_is_the_fit_without_times(data):
    X, _, Y = data
    plain = make_small().fit(X, Y[:, 0])
    timed = make_small().fit(X, Y[:, :1], np.full((60, 1), SPAN[1]))
    np.testing.assert_allclose(timed.predict(X, [SPAN[1]])[:, 0], plain.predict(X), rtol=1e-6)
    assert [row["valid_loss"] for row in timed.history_] == pytest.approx([r["valid_loss"] for r in plain.history_])


def test_an_evaluation_at_the_end_equals_the_prediction_without_times(data):
    X, times, Y = data
    fitted = make_small().fit(X, Y, times)
    np.testing.assert_allclose(fitted.predict(X, [SPAN[1]])[:, 0], fitted.predict(X), rtol=1e-12)
    np.testing.assert_allclose(fitted.predict(X, np.linspace(*SPAN, 5))[:, -1], fitted.predict(X), rtol=1e-12)


def test_the_start_is_the_initial_state(data):
    X, times, Y = data
    fitted = make_linear(max_epochs=1, output_map=nn.Identity()).fit(X, Y, times)
    scale, shift = fitted._y_scale, fitted._y_shift
    np.testing.assert_allclose(fitted.predict(X, [0.0])[:, 0], X * scale + shift, rtol=1e-12)


def test_a_fit_without_times_predicts_at_any():
    X = np.random.default_rng(0).normal(size=(40, 2))
    fitted = make_small(max_epochs=1).fit(X, X[:, 0])
    np.testing.assert_allclose(fitted.predict(X, [0.5, 2.0])[:, 1], fitted.predict(X), rtol=1e-12)


# ---------------------------------------------------------------------- forms of times and targets
@pytest.mark.parametrize("solver", ["dopri5", "rk4"])
def test_one_grid_is_the_same_grid_in_each_row(data, solver):
    X, _, Y = data
    grid = np.linspace(0.1, 2.0, 5)
    shared, each = (make_small(solver=solver).fit(X, Y, t) for t in (grid, np.tile(grid, (60, 1))))
    np.testing.assert_array_equal(shared.predict(X, grid), each.predict(X, np.tile(grid, (60, 1))))


@pytest.mark.parametrize("solver", ["dopri5", "euler"])
@pytest.mark.filterwarnings("ignore::sklearn_hyper.estimators.SolverAgreementWarning")
def test_padding_changes_nothing(data, solver):
    X, times, Y = data
    wide = np.concatenate([times, np.full((60, 3), NAN)], axis=1)
    junk = np.concatenate([np.where(np.isnan(times)[:, :, None], 1e9, Y), np.full((60, 3, 2), 7.0)], axis=1)
    # A layer that takes statistics over what it is given would notice padding.
    given = {"solver": solver, "output_map": nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2)).double()}
    one, other = make_small(**given).fit(X, Y, times), make_small(**given).fit(X, junk, wide)
    assert [row["train_loss"] for row in one.history_] == pytest.approx([row["train_loss"] for row in other.history_])
    np.testing.assert_allclose(other.predict(X, wide)[:, :5], one.predict(X, times), atol=1e-7)
    assert np.isnan(one.predict(X, wide)[:, 5:]).all()
    assert one.score(X, Y, t_eval=times) == pytest.approx(one.score(X, junk, t_eval=wide))


def test_predictions_do_not_depend_on_the_rows_they_come_with(data):
    X, times, Y = data
    fitted = make_small(batch_size=2).fit(X, Y, times)  # sixteen rows are predicted at a time
    together, order = fitted.predict(X, times), np.random.default_rng(1).permutation(60)
    np.testing.assert_allclose(fitted.predict(X[order], times[order]), together[order], atol=1e-7)
    alone = np.concatenate([fitted.predict(X[i : i + 1], times[i : i + 1]) for i in range(9)])
    np.testing.assert_allclose(alone, together[:9], atol=1e-7)


@pytest.mark.parametrize("n_outputs", [None, 1, 2])
def test_predictions_have_the_shape_of_the_targets(data, n_outputs):
    X, times, Y = data
    y = Y[:, :, 0] if n_outputs is None else Y[:, :, :n_outputs]
    fitted = make_small(max_epochs=1).fit(X, y, times)
    assert fitted.predict(X, times).shape == y.shape
    assert fitted.predict(X).shape == (60,) if n_outputs is None else (60, n_outputs)


def test_missing_values_count_for_nothing(data):
    X, times, Y = data
    rng = np.random.default_rng(2)
    holes = Y.copy()
    holes[rng.random(Y.shape) < 0.4] = NAN
    holes[3] = NAN  # a row of which nothing was observed
    fitted = make_linear(solver="rk4", n_steps=8).fit(X, holes, times)
    np.testing.assert_allclose(fitted.neural_ode_.vector_field.matrix.detach(), SPIRAL, atol=0.05)
    assert fitted.score(X, holes, t_eval=times) > 0.999
    seen = ~np.isnan(holes) & ~np.isnan(times)[:, :, None]
    np.testing.assert_allclose(fitted._y_shift, [holes[..., j][seen[..., j]].mean() for j in range(2)])
    np.testing.assert_allclose(fitted._y_scale, [holes[..., j][seen[..., j]].std() for j in range(2)])


def test_the_loss_is_the_mean_over_all_that_was_observed(data):
    X, times, Y = data
    # Nothing moves at this rate, so the loss on rows held out is that of the predictions.
    fitted = make_small(lr=1e-12, validation_fraction=0.5, max_epochs=1, rtol=1e-8).fit(X, Y, times)
    seen = ~np.isnan(times)
    squares = ((fitted.predict(X, times) - Y)[seen] / fitted._y_scale) ** 2
    both = [(fitted.history_[-1][f"{name}_loss"]) for name in ("train", "valid")]
    assert min(both) < squares.mean() < max(both)


def test_scores_are_those_of_scikit_learn_on_what_was_observed(data):
    X, times, Y = data
    fitted = make_small().fit(X, Y, times)
    seen, weight = ~np.isnan(times), np.arange(60.0)
    truth, prediction = Y[seen], fitted.predict(X, times)[seen]
    assert fitted.score(X, Y, t_eval=times) == pytest.approx(r2_score(truth, prediction))
    own = np.repeat(weight, seen.sum(axis=1))
    expected = r2_score(truth, prediction, sample_weight=own)
    assert fitted.score(X, Y, weight, t_eval=times) == pytest.approx(expected)
    plain = make_small(max_epochs=1).fit(X, Y[:, 0])
    assert plain.score(X, Y[:, 0]) == pytest.approx(r2_score(Y[:, 0], plain.predict(X)))


def test_what_was_hardly_observed_has_no_score(data):
    X, times, Y = data
    fitted = make_small(max_epochs=1).fit(X, Y, times)
    once = np.full_like(Y, NAN)
    once[0, 0, 1] = Y[0, 0, 1]
    assert np.isnan(fitted.score(X, once, t_eval=times))
    once[..., 0] = Y[..., 0]
    seen = ~np.isnan(times)
    assert fitted.score(X, once, t_eval=times) == pytest.approx(
        r2_score(Y[seen][:, 0], fitted.predict(X, times)[seen][:, 0])
    )
    with pytest.raises(ValueError, match="y has 1 outputs, the first fit had 2"):
        fitted.score(X, Y[..., 0], t_eval=times)
    # After the first batch, a batch need not hold all outputs.
    assert np.isfinite(fitted.partial_fit(X, once, times).predict(X)).all()


# ---------------------------------------------------------------------- ways to train
def test_partial_fit_takes_other_times_in_every_batch(data):
    X, times, Y = data
    fitted = make_linear(lr=0.1, solver="rk4", n_steps=8)
    for epoch in range(60):
        part = slice(epoch % 3, None, 3)
        fitted.partial_fit(X[part], Y[part, : 3 + epoch % 2], times[part, : 3 + epoch % 2])
    np.testing.assert_allclose(fitted.neural_ode_.vector_field.matrix.detach(), SPIRAL, atol=0.1)


def test_partial_fit_and_warm_starts_change_between_times_and_none(data):
    X, times, Y = data
    mixed = make_small().partial_fit(X, Y, times).partial_fit(X, Y[:, 0]).partial_fit(X, Y, times)
    assert np.isfinite(mixed.predict(X)).all()
    warm = make_small(warm_start=True).fit(X, Y, times)
    before = warm.history_[0]["train_loss"]
    assert warm.fit(X, Y, times).history_[0]["train_loss"] < before
    with pytest.raises(ValueError, match="y has 1 outputs, the first fit had 2"):
        warm.fit(X, Y[:, :, 0], times)


@pytest.mark.parametrize("order", ["tet", "ete", "tee"])
def test_evaluations_of_partial_fit_add_up_whether_batches_have_times_or_not(data, order):
    X, times, Y = data
    mixed, expected, counts = make_small(solver="rk4", n_steps=3), 0, {"t": 3 * 4 + 1, "e": 3 * 4}
    for kind in order:
        mixed.partial_fit(X[:16], *((Y[:16], times[:16]) if kind == "t" else (Y[:16, 0],)))
        expected += counts[kind]
        assert mixed.n_evaluations_ == expected


@pytest.mark.parametrize("solver", ["dopri5", "rk4", "auto"])
def test_a_split_with_observations_on_one_side_alone_is_refused(data, solver):
    # The loss of rows held out was 0 in every epoch, so that the weights of the first were kept as the best.
    X, times, Y = data
    for part, what in zip(
        split_rows(0.1, len(X), draw_seed(0)), ("54 rows.* trained on", "6 rows.* held out"), strict=True
    ):
        lacking = Y[:, :, 0].copy()
        lacking[part] = NAN
        with pytest.raises(ValueError, match=rf"validation_fraction=0\.1: y holds nothing but nan of the {what}"):
            make_small(solver=solver).fit(X, lacking, times)
        fitted = make_small(solver=solver, validation_fraction=None, max_epochs=1).fit(X, lacking, times)
        assert np.isfinite(fitted.predict(X)).all()


def test_a_warm_start_goes_on_with_its_span(data):
    X, times, Y = data
    warm = make_small(warm_start=True).fit(X, Y, times).set_params(t_span=(0.0, 1.0))
    with pytest.raises(ValueError, match=r"within t_span=\(0.0, 1.0\)"):
        clone(warm).fit(X, Y, times)
    warm.fit(X, Y, times)


def test_an_interrupted_fit_keeps_what_it_has_learned(data):
    X, times, Y = data
    fitted = make_small(max_epochs=9, callbacks=[StopsAt(2)])
    with pytest.raises(KeyboardInterrupt):
        fitted.fit(X, Y, times)
    assert len(fitted.history_) == 2 and np.isfinite(fitted.predict(X, [1.0])).all()


def test_evaluations_are_counted(data):
    X, times, Y = data
    fitted = make_small(solver="rk4", n_steps=3, validation_fraction=0.2, max_epochs=1).fit(X, Y, times)
    n_batches, n_each = 3 + 1, 3 * 4 + 1  # three batches of 16 rows and the rows held out; three steps and the end
    assert fitted.n_evaluations_ == n_batches * n_each


def test_steps_that_are_too_long_are_reported(data):
    X, times, Y = data
    coarse = make_linear(solver="euler", n_steps=2, validation_fraction=0.3, max_epochs=20)
    with pytest.warns(SolverAgreementWarning, match="has learned its solver's errors"):
        coarse.fit(X, Y, times)


def test_rows_that_cannot_be_solved_are_named(data):
    X, times, Y = data

    def runs_away(t, z):
        return z**3

    given = {"input_map": nn.Identity(), "output_map": nn.Linear(2, 2).double(), "t_span": SPAN, "max_epochs": 1}
    X = X / 10
    X[17] = 5.0
    with pytest.raises(RuntimeError, match=r"1 of 60 rows \(row 17\)"):
        NeuralODERegressor(runs_away, **given, validation_fraction=None).fit(X, Y, times)
    fitted = NeuralODERegressor(runs_away, **given).fit(
        np.delete(X, 17, 0), np.delete(Y, 17, 0), np.delete(times, 17, 0)
    )
    with pytest.raises(RuntimeError, match=r"1 of 60 rows \(row 17\)"):
        fitted.predict(X, times)
    # The solution from row 17 is lost at 0.01: before that it can be predicted.
    assert np.isfinite(fitted.predict(X, [0.005])).all()


def test_a_hypersolver_is_fitted_for_it(data):
    X, times, Y = data
    slow = make_small().fit(X, Y, times)
    fast = HypersolverRegressor(slow, base_solver="rk4", n_steps=8, max_epochs=1, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fast.fit(X)
    np.testing.assert_allclose(fast.predict(X), slow.predict(X), atol=1e-2)


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
@pytest.mark.parametrize("span", [(0.0, 2.0), (1e9, 1e9 + 2), (0.0, 2e9), (2.0, 0.0)])
def test_a_hypersolver_of_enough_steps_agrees_with_it_at_all_times(data, span, scale):
    X, times, Y = data
    own = span[0] + (span[1] - span[0]) * times / 2
    slow = NeuralODERegressor(t_span=span, max_epochs=2, batch_size=16, random_state=0).fit(scale * X, scale * Y, own)
    fast = HypersolverRegressor(
        slow, base_solver="rk4", n_steps=16, correction=MLPCorrection(), max_epochs=1, random_state=0
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fast.fit(scale * X)
    for asked in (own, np.linspace(*span, 7)):
        expected = slow.predict(scale * X, asked)
        for found in (fast.predict(scale * X, t_eval=asked), fast.trajectory(scale * X, output=True, t_eval=asked)):
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * scale)


# ---------------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    ("targets", "shape"),
    [
        (lambda Y: Y, r"\(60, 5, 2\)"),
        (lambda Y: Y[:, :, 0], r"\(60, 5\)"),
        (lambda Y: Y[:, :1], r"\(60, 1, 2\)"),
    ],
)
def test_targets_at_times_are_not_scored_without_them(data, targets, shape):
    X, times, Y = data
    fitted = make_small(max_epochs=1).fit(X, Y, times)
    with pytest.raises(ValueError, match=rf"y of shape {shape} without t_eval.*set_score_request\(t_eval=True\)"):
        fitted.score(X, targets(Y))


@pytest.mark.parametrize(
    ("t_eval", "message"),
    [
        ([0.5, 0.4, 0.6, 0.7, 0.8], "t_eval must increase"),
        ([0.1, 0.2, 0.3, 0.4, 2.5], r"t_eval must lie within t_span=\(0.0, 2.0\)"),
        ([[0.1, 0.2, 0.3, 0.4, 0.5]], r"t_eval must have shape \(n_times,\)"),
        (0.5, "t_eval must have shape|t_eval"),
        ([0.1, 0.2], r"beside t_eval of 2 times a row, y must have shape \(60, 2\) for one output"),
    ],
)
def test_bad_times_are_refused(data, t_eval, message):
    X, _, Y = data
    with pytest.raises(ValueError, match=message):
        make_small().fit(X, Y, t_eval)
    fitted = make_small(max_epochs=1).fit(X, Y, np.linspace(0.1, 1, 5))
    if "beside" not in message:
        with pytest.raises(ValueError, match=message):
            fitted.predict(X, t_eval)
    with pytest.raises(ValueError, match=message):
        fitted.score(X, Y, t_eval=t_eval)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda Y: Y[:, 0, 0], r"y must have shape \(60, 5\).*got \(60,\)"),
        (lambda Y: Y[:, :4], r"got \(60, 4, 2\)"),
        (lambda Y: Y[..., None], r"got \(60, 5, 2, 1\)"),
        (lambda Y: Y[:, :, :0], r"got \(60, 5, 0\)"),
        (lambda Y: Y[:50], "inconsistent numbers of samples"),
        (lambda Y: np.where(Y > 1, np.inf, Y), "y contains infinity"),
        (lambda Y: Y * [1, NAN], "output 1 of y is nan at all times"),
        (lambda Y: Y[:, :, 0] * NAN, "y is nan at all times"),
        (lambda Y: None, "requires y to be passed"),
    ],
)
def test_bad_targets_are_refused(data, change, message):
    X, times, Y = data
    with pytest.raises(ValueError, match=message):
        make_small().fit(X, change(Y), times)


def test_targets_without_times_stay_finite_and_flat(data):
    X, _, Y = data
    with pytest.raises(ValueError, match="Input y contains NaN"):
        make_small().fit(X, Y[:, 0] * [1, NAN])
    with pytest.raises(ValueError, match="pass t_eval"):
        make_small().fit(X, Y)


def test_a_solver_without_states_on_its_way_is_refused(data):
    X, times, Y = data
    with pytest.raises(ValueError, match=r"approximates the state at the end of t_span alone.*pass 'dopri5'"):
        make_small(solver=LEARNED, n_steps=3).fit(X, Y, times)


def test_a_classifier_takes_no_times(data):
    X, times, Y = data
    with pytest.raises(TypeError, match="t_eval"):
        NeuralODEClassifier().fit(X, Y[:, 0, 0] > 0, t_eval=times)


# ---------------------------------------------------------------------- inside scikit-learn
def test_times_are_routed_with_their_rows(data):
    X, times, Y = data
    cv = KFold(3)
    with config_context(enable_metadata_routing=True):
        model = make_small(max_epochs=1).set_fit_request(t_eval=True).set_score_request(t_eval=True)
        pipe = make_pipeline(FunctionTransformer(), model)
        scores = cross_validate(pipe, X, Y, cv=cv, params={"t_eval": times})["test_score"]
        search = GridSearchCV(pipe, {"neuraloderegressor__lr": [1e-2, 1e-1]}, cv=cv).fit(X, Y, t_eval=times)
        assert search.score(X, Y, t_eval=times) == pytest.approx(search.best_estimator_.score(X, Y, t_eval=times))
        predicted = cross_val_predict(pipe, X, Y, cv=cv, params={"t_eval": times})
        asked = clone(model).set_predict_request(t_eval=True)
        routed = make_pipeline(FunctionTransformer(), asked).fit(X, Y, t_eval=times).predict(X, t_eval=times)
    np.testing.assert_array_equal(search.cv_results_["mean_test_score"][0], scores.mean())
    train, test = next(cv.split(X))
    own = make_small(max_epochs=1).fit(X[train], Y[train], times[train])
    assert scores[0] == pytest.approx(own.score(X[test], Y[test], t_eval=times[test]))
    np.testing.assert_allclose(predicted[test], own.predict(X[test]))
    assert routed.shape == Y.shape


def test_one_grid_goes_through_cross_validation_where_it_is_not_taken_for_rows(data):
    X, _, Y = data
    grid = np.linspace(0.1, 2.0, 5)
    with config_context(enable_metadata_routing=True):
        model = make_small(max_epochs=1).set_fit_request(t_eval=True).set_score_request(t_eval=True)
        scores = cross_validate(model, X, Y, cv=2, params={"t_eval": grid})["test_score"]
        each = cross_validate(model, X, Y, cv=2, params={"t_eval": np.tile(grid, (60, 1))})["test_score"]
    np.testing.assert_array_equal(scores, each)


def test_saved_and_pickled_models_predict_at_any_time(data, tmp_path):
    X, times, Y = data
    fitted = make_small().fit(X, Y, times)
    expected = fitted.predict(X, times)
    loaded = load(fitted.save(tmp_path / "model.safetensors"))
    for copied in (loaded, pickle.loads(pickle.dumps(fitted))):
        np.testing.assert_array_equal(copied.predict(X, times), expected)
        copied.partial_fit(X, Y, times)


def test_lists_will_do(data):
    X, _, Y = data
    grid = [0.1, 0.5, 1.0, 1.5, 2]
    one = make_small(max_epochs=1).fit(X.tolist(), Y.tolist(), grid)
    np.testing.assert_array_equal(
        one.predict(X.tolist(), grid), make_small(max_epochs=1).fit(X, Y, grid).predict(X, grid)
    )


def test_images_have_trajectories_too():
    X = np.random.default_rng(0).normal(size=(24, 1, 4, 4)).astype(np.float32)
    times = np.array([0.0, 0.3, 1.0])
    y = np.exp(-times) * X.mean(axis=(1, 2, 3))[:, None]
    fitted = NeuralODERegressor(max_epochs=1, batch_size=8, random_state=0).fit(X, y, times)
    assert fitted.predict(X, times).shape == (24, 3) and fitted.predict(X, times).dtype == np.float32


def test_an_input_map_of_ones_own_takes_sequences(data):
    X, times, Y = data

    class Last(nn.Module):
        def forward(self, x):
            return x[:, -1]

    sequences = np.stack([X[::-1], X], axis=1)
    plain, of_sequences = make_small().fit(X, Y, times), make_small(input_map=Last()).fit(sequences, Y, times)
    np.testing.assert_array_equal(of_sequences.predict(sequences, times), plain.predict(X, times))


@pytest.mark.parametrize(
    ("params", "named"), [({"joint": 1.0}, "joint=1.0"), ({"solver": "hypersolved"}, "solver='hypersolved'")]
)
def test_what_is_about_the_end_alone_is_refused(data, params, named):
    X, times, Y = data
    with pytest.raises(ValueError, match=f"t_eval with {named}.*Set joint=0.0 and solver="):
        make_linear(**params).fit(X, Y, t_eval=times)
