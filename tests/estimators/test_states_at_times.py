"""t_eval= of trajectory, predict, fit and export_onnx: states at given times, one grid for all rows or one a row."""

import json
import pickle

import numpy as np
import onnxruntime
import pytest
import torch
from scipy.linalg import expm
from sklearn.base import clone
from small_hypersolvers import ROUGH_FITS, make_classifier
from torch import nn

import sklearn_hyper
from sklearn_hyper import (
    HypersolverClassifier,
    HypersolverRegressor,
    NeuralODE,
    NeuralODERegressor,
    WeightCorrection,
)
from sklearn_hyper.calibration import NotCalibratedError
from sklearn_hyper.modules import MLPVectorField
from sklearn_hyper.numerics import CountedField

pytestmark = ROUGH_FITS
NAN = np.nan
A = np.array([[0.0, 1.0], [-4.0, -0.3]])
SPAN = (0.5, 2.5)
X = np.random.default_rng(0).uniform(-1, 1, (120, 2))
GRID = [0.6, 0.85, 1.5, 2.0, 2.47]


def oscillate(t, z):
    """A linear field, whose solution is a matrix exponential."""
    return z @ torch.tensor(A.T, dtype=z.dtype)


def exact(X, times, start=SPAN[0]):
    """States of the rows at times: one grid for all, or one a row."""
    times = np.broadcast_to(times, (len(X), np.shape(times)[-1]))
    return np.stack([[expm(A * (t - start)) @ row for t in own] for row, own in zip(X, times, strict=True)])


def make(node=None, **params):
    defaults = {"base_solver": "rk4", "n_steps": 8, "finetune": None, "max_epochs": 10, "random_state": 0}
    return HypersolverRegressor(NeuralODE(oscillate, t_span=SPAN) if node is None else node, **defaults | params)


@pytest.fixture(scope="module")
def fast():
    return make().fit(X)


@pytest.fixture(scope="module")
def adaptive():
    return make(stepping="adaptive", step_rtol=1e-5, max_epochs=20).fit(X)


@pytest.fixture(scope="module")
def own():
    """Irregular times of the rows: one to four of each."""
    rng = np.random.default_rng(1)
    times = np.sort(rng.uniform(*SPAN, (len(X), 4)), axis=1)
    times[np.arange(4) >= rng.integers(1, 5, len(X))[:, None]] = NAN
    return times


# --- truths ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["fast", "adaptive"])
def test_states_at_times_are_those_of_the_neural_ode(which, request):
    hyper = request.getfixturevalue(which)
    at_steps = hyper.trajectory(X)
    scale = np.abs(at_steps - exact(X, np.linspace(*SPAN, 9))).max()
    error = np.abs(hyper.trajectory(X, t_eval=GRID) - exact(X, GRID)).max()
    assert error < max(2 * scale, 1e-4) < 2e-3  # no worse between the steps than at them


def test_the_trajectory_passes_through_its_steps(fast):
    """Through those of the corrected solver, which are others than the base solver's."""
    nodes = fast.trajectory(X, t_eval=np.linspace(*SPAN, 9))
    np.testing.assert_array_equal(nodes, fast.trajectory(X))
    np.testing.assert_array_equal(nodes[:, -1], fast.transform(X))
    np.testing.assert_array_equal(nodes[:, 0], X)
    assert np.abs(nodes - fast.without_correction().trajectory(X)).max() > 1e-5
    around = fast.trajectory(X, t_eval=[1.0 - 1e-6, 1.0, 1.0 + 1e-6])
    assert np.abs(np.diff(around, axis=1)).max() < 1e-5


def test_rows_have_times_of_their_own(fast, own):
    states = fast.trajectory(X, t_eval=own)
    assert states.shape == (len(X), 4, 2)
    np.testing.assert_array_equal(np.isnan(states), np.repeat(np.isnan(own)[..., None], 2, axis=2))
    given = ~np.isnan(own)
    assert np.abs(states[given] - exact(X, np.where(given, own, SPAN[0]))[given]).max() < 1e-3


@pytest.mark.parametrize("which", ["fast", "adaptive"])
def test_one_grid_is_that_grid_for_every_row(which, request):
    hyper = request.getfixturevalue(which)
    shared = hyper.trajectory(X, t_eval=GRID)
    np.testing.assert_array_equal(hyper.trajectory(X, t_eval=np.tile(GRID, (len(X), 1))), shared)


@pytest.mark.parametrize("which", ["fast", "adaptive"])
def test_a_row_depends_on_no_other_row_and_on_no_batch(which, own, request):
    hyper = request.getfixturevalue(which)
    together = hyper.trajectory(X, t_eval=own)
    alone = np.concatenate([hyper.trajectory(X[i : i + 1], t_eval=own[i : i + 1]) for i in range(30)])
    np.testing.assert_allclose(alone, together[:30], rtol=0, atol=1e-10)
    small = clone(hyper).set_params(batch_size=2)
    vars(small).update({name: value for name, value in vars(hyper).items() if name not in small.get_params()})
    np.testing.assert_allclose(small.trajectory(X, t_eval=own), together, rtol=0, atol=1e-10)
    np.testing.assert_allclose(small.trajectory(X, t_eval=GRID), hyper.trajectory(X, t_eval=GRID), atol=1e-10)


def test_a_single_column_gives_each_row_a_span_of_its_own(fast):
    ends = np.random.default_rng(2).uniform(*SPAN, (len(X), 1))
    states = fast.predict(X, t_eval=ends)
    assert states.shape == (len(X), 1, 2) and np.abs(states - exact(X, ends)).max() < 1e-3


def test_spans_may_run_backwards():
    hyper = make(NeuralODE(oscillate, t_span=SPAN[::-1])).fit(X)
    times = GRID[::-1]
    assert np.abs(hyper.trajectory(X, t_eval=times) - exact(X, times, SPAN[1])).max() < 5e-3
    with pytest.raises(ValueError, match=r"t_eval must decrease, as t_span=\(2\.5, 0\.5\) does"):
        hyper.trajectory(X, t_eval=GRID)


def test_predict_maps_the_states_to_outputs(own):
    def read(z):
        if z.isnan().any():
            raise ValueError("this map refuses nan")
        return z[:, :1] + 10

    hyper = make(NeuralODE(oscillate, output_map=read, t_span=SPAN)).fit(X)
    for times in (GRID, own):
        outputs = hyper.predict(X, t_eval=times)
        np.testing.assert_array_equal(outputs, hyper.trajectory(X, output=True, t_eval=times))
        np.testing.assert_array_equal(outputs, hyper.trajectory(X, t_eval=times)[..., :1] + 10)
    np.testing.assert_array_equal(hyper.predict(X, t_eval=[SPAN[1]])[:, 0], hyper.predict(X))


def test_a_single_target_has_no_axis_of_its_own(vectors):
    slow = NeuralODERegressor(MLPVectorField(5, hidden=8), input_map=nn.Linear(3, 5), max_epochs=2, random_state=0)
    hyper = HypersolverRegressor(
        slow.fit(*vectors), base_solver="heun", n_steps=3, max_epochs=2, random_state=0
    ).fit(vectors[0])  # fmt: skip
    assert hyper.predict(vectors[0], t_eval=[0.1, 0.7]).shape == (len(vectors[0]), 2)
    np.testing.assert_array_equal(hyper.predict(vectors[0], t_eval=[1.0])[:, 0], hyper.predict(vectors[0]))


def test_a_classifier_has_logits_on_the_way(digits, digits_hyper):
    logits = digits_hyper.trajectory(digits[0], output=True, t_eval=[0.25, 1.0])
    states = digits_hyper.trajectory(digits[0], t_eval=[0.25, 1.0])
    assert logits.shape == (150, 2, 10) and states.shape == (150, 2, 4, 8, 8)
    np.testing.assert_array_equal(digits_hyper.classes_[logits[:, -1].argmax(axis=1)], digits_hyper.predict(digits[0]))


def test_times_stay_exact_far_from_zero():
    """Seconds of the day in Unix time, which float32 does not resolve."""
    start = 1.7e9

    class Wave(nn.Module):
        def forward(self, t, z):
            return torch.cos(t - start).to(z.dtype) * torch.ones_like(z)

    x = X.astype(np.float32)
    hyper = make(NeuralODE(Wave(), t_span=(start, start + 2)), n_steps=8).fit(x)
    times = start + np.array([0.25, 1.1, 1.9])
    assert np.abs(hyper.trajectory(x, t_eval=times) - x[:, None] - np.sin(times - start)[:, None]).max() < 1e-3


def test_changed_weights_serve_on_the_way():
    torch.manual_seed(0)
    field = MLPVectorField(2, hidden=16)
    x = X.astype(np.float32)
    hyper = HypersolverRegressor(
        field, base_solver="heun", correction=WeightCorrection(), n_steps=4, finetune="trajectory", max_epochs=20,
        random_state=0,
    ).fit(x)  # fmt: skip
    assert hyper.correction_ is not None
    times, rows = [0.1, 0.4, 0.6, 0.9], torch.from_numpy(x)
    node = hyper.neural_ode_
    reference = node.reference(rows, node.inputs(rows), [0.0, *times], rtol=1e-7, atol=1e-7)[1:].transpose(0, 1).numpy()
    found = [np.abs(one.trajectory(x, t_eval=times) - reference).mean() for one in (hyper, hyper.without_correction())]
    assert found[0] < found[1]
    assert hyper.count_evaluations(x, t_eval=times) == 8 + 5  # f itself at every node
    live = hyper.to_module()
    assert live.count_evaluations(rows, times=torch.tensor(times, dtype=torch.float64)) == 13
    states = live.states_at(rows, torch.tensor(times, dtype=torch.float64)).transpose(0, 1).numpy()
    np.testing.assert_allclose(states, hyper.trajectory(x, t_eval=times), rtol=0, atol=1e-5)


# --- cost ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("times", [[1.0], [0.6], [0.5], [0.6, 2.5], [0.6, 2.4], np.tile([[0.6], [0.9]], (60, 1))])
@pytest.mark.parametrize("which", ["fast", "adaptive"])
def test_evaluations_are_counted_exactly(which, times, request):
    hyper = request.getfixturevalue(which)
    counted = CountedField(hyper.neural_ode_.vector_field)
    module = hyper.to_module()
    module.neural_ode = NeuralODE(counted, t_span=SPAN, state_size=module.neural_ode.state_size)
    module.states_at(torch.from_numpy(X), torch.as_tensor(times, dtype=torch.float64))
    assert hyper.count_evaluations(X, t_eval=times) == counted.n_rows_evaluated / len(X)


def test_a_solve_at_times_costs_at_most_one_evaluation_more(fast):
    counts = [fast.count_evaluations(X, t_eval=times) for times in ([2.5], [2.4], [0.6], np.linspace(*SPAN, 50))]
    assert fast.count_evaluations() == 32 and counts == [32, 33, 9, 33]
    with pytest.raises(ValueError, match="X=None: with t_eval evaluations depend on the rows; pass X"):
        fast.count_evaluations(t_eval=GRID)


# --- fits at times ---------------------------------------------------------------------------------------------------


def test_a_fit_at_times_is_better_there():
    """Times early in the span, where a fit at the steps has but one."""
    early, few = [0.55, 0.6, 0.7], {"base_solver": "heun", "n_steps": 4, "finetune": "trajectory", "max_epochs": 40}
    rows = np.random.default_rng(3).uniform(-1, 1, (100, 2))
    errors = [
        np.abs(make(**few).fit(X, t_eval=times).trajectory(rows, t_eval=early) - exact(rows, early)).mean()
        for times in (None, early)
    ]
    assert errors[1] < 0.6 * errors[0]


def test_changed_weights_are_fitted_at_times_too():
    """Slopes between the steps are those of f itself, live weights included."""
    torch.manual_seed(0)
    x, early = X.astype(np.float32), [0.05, 0.15]
    hyper = HypersolverRegressor(
        MLPVectorField(2, hidden=16), base_solver="euler", correction=WeightCorrection(), n_steps=2,
        finetune="trajectory", max_epochs=20, random_state=0,
    ).fit(x, t_eval=early)  # fmt: skip
    node, rows = hyper.neural_ode_, torch.from_numpy(x)
    reference = node.reference(rows, node.inputs(rows), [0.0, *early], rtol=1e-7, atol=1e-7)[1:].transpose(0, 1).numpy()
    found = [np.abs(one.trajectory(x, t_eval=early) - reference).mean() for one in (hyper, hyper.without_correction())]
    assert found[0] < 0.7 * found[1]


@pytest.mark.parametrize("direction", [1, -1])
def test_a_fit_takes_any_times_and_keeps_them_for_a_refit(direction):
    """Also the start, where there is nothing to learn, and times of the mesh of references up to rounding."""
    node = NeuralODE(oscillate, t_span=SPAN[::direction])
    times = [SPAN[0], 0.1 + 0.2 + 0.5, 1.5 + 1e-15, 2.01, SPAN[1]][::direction]
    hyper = make(node, base_solver="ab2", n_steps=6, loss="residual+trajectory", finetune="trajectory", max_epochs=4)
    hyper.fit(X, t_eval=times)
    assert hyper.fitted_.settings.t_eval == tuple(times)
    assert np.isfinite(hyper.history_[-1]["valid_loss"])
    assert hyper.refit(node, X).fitted_.settings.t_eval == tuple(times)
    assert hyper.fit(X).fitted_.settings.t_eval is None
    again = make(node, base_solver="ab2", n_steps=6, finetune="trajectory", max_epochs=4).fit(X, t_eval=times)
    same = clone(again).fit(X, t_eval=times)
    np.testing.assert_array_equal(again.predict(X), same.predict(X))


def test_fits_and_states_at_times_survive_saving(tmp_path, own):
    hyper = make(base_solver="heun", n_steps=3, finetune="trajectory", max_epochs=4).fit(X, t_eval=GRID)
    path = hyper.save(tmp_path / "fast.safetensors")
    again = sklearn_hyper.load(path, vector_field=oscillate)
    for one in (again, pickle.loads(pickle.dumps(hyper))):
        assert one.fitted_.settings.t_eval == tuple(GRID)
        np.testing.assert_array_equal(one.trajectory(X, t_eval=own), hyper.trajectory(X, t_eval=own))


def test_an_ordinary_file_holds_nothing_of_times(fast, tmp_path):
    """So that files from before t_eval are read."""
    assert b"t_eval" not in fast.save(tmp_path / "fast.safetensors").read_bytes()
    assert sklearn_hyper.load(tmp_path / "fast.safetensors", vector_field=oscillate).fitted_.settings.t_eval is None


# --- export ----------------------------------------------------------------------------------------------------------


def test_a_file_gives_outputs_at_its_times(tmp_path):
    x = X.astype(np.float32)
    hyper = make(NeuralODE(oscillate, output_map=lambda z: z[:, :1], t_span=SPAN), n_steps=3).fit(x)
    classifier = make_classifier().fit(X)
    for one, rows, name in ((hyper, x, "output"), (classifier, X[:5], "logits")):
        times = GRID if one is hyper else [0.2, 0.5, 1.0]
        path = one.export_onnx(tmp_path / f"{name}.onnx", X=rows, t_eval=times)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        found = dict(zip(names, session.run(None, {"X": rows}), strict=True))
        expected = one.trajectory(rows, output=True, t_eval=times)
        np.testing.assert_allclose(found[name], expected, rtol=0, atol=1e-4 * np.abs(expected).max())
        assert json.loads(session.get_modelmeta().custom_metadata_map["t_eval"]) == list(times)
    assert found["probabilities"].shape == (5, 3, 3)
    np.testing.assert_allclose(found["probabilities"].sum(axis=-1), 1, rtol=1e-5)
    np.testing.assert_allclose(found["probabilities"][:, -1], classifier.predict_proba(rows), atol=1e-5)


def test_times_that_no_file_can_have_are_refused(fast, adaptive, own, tmp_path):
    for times, message in [
        (own, "here all rows share one grid"),
        ([9.0], "must lie within t_span"),
    ]:
        with pytest.raises(ValueError, match=message):
            fast.export_onnx(tmp_path / "a.onnx", t_eval=times)
    with pytest.raises(ValueError, match="stepping='adaptive' cannot be exported"):
        adaptive.export_onnx(tmp_path / "a.onnx", t_eval=GRID)
    assert not list(tmp_path.iterdir())


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([0.4, 1.0], r"t_eval must lie within t_span=\(0\.5, 2\.5\); a time is outside: \[0\.4, 1\.0\]"),
        ([1.0, 2.6], "a time is outside"),
        ([NAN, 1.0], "t_eval holds nan"),
        ([1.0, np.inf], "infinity"),
        ([1.0, 1.0], "must increase"),
        ([2.0, 1.0], "must increase"),
        ([], "must have shape"),
        (1.0, "must have shape"),
        (np.ones((3, 2)), r"times of their own for each of the 120 rows of X, got \(3, 2\)"),
        (np.full((120, 2), [NAN, 1.0]), "a time for every row"),
    ],
)
@pytest.mark.parametrize("method", ["trajectory", "predict", "count_evaluations"])
def test_wrong_times_are_refused_before_anything_is_solved(fast, method, times, message):
    with pytest.raises(ValueError, match=message):
        getattr(fast, method)(X, t_eval=times)


def test_bounds_and_tolerances_are_of_the_end(fast):
    for asked in ({"return_bound": True}, {"tol": 1e-3}, {"return_info": True}):
        with pytest.raises(ValueError, match="t_eval with a bound, a tolerance or return_info"):
            fast.predict(X, t_eval=GRID, **asked)
    with pytest.raises(ValueError, match="return_bound=True bounds errors at the solver's own steps"):
        fast.trajectory(X, t_eval=GRID, return_bound=True)
    with pytest.raises(NotCalibratedError):
        fast.trajectory(X, return_bound=True)


def test_learned_coefficients_serve_the_ends_alone():
    hyper = make(base_solver="nonstationary", n_steps=6, finetune="terminal", max_epochs=3).fit(X)
    ends = hyper.trajectory(X, t_eval=SPAN)
    np.testing.assert_array_equal(ends[:, 0], X)
    np.testing.assert_array_equal(ends[:, 1], hyper.transform(X))
    own = np.array([[0.5, 2.5], [2.5, NAN]])
    np.testing.assert_array_equal(hyper.trajectory(X[:2], t_eval=own)[1, 0], ends[1, 1])
    for call in (hyper.trajectory, hyper.predict):
        with pytest.raises(ValueError, match=r"t_eval holds 1\.5, between the ends .* Fit with finetune='trajectory'"):
            call(X, t_eval=[1.5, 2.5])
    followed = make(base_solver="auto", n_steps=6, finetune="trajectory", max_epochs=3).fit(X)
    assert followed.trajectory(X, t_eval=[1.5, 2.5]).shape == (120, 2, 2)


@pytest.mark.parametrize(
    ("params", "times", "message"),
    [
        ({"finetune": "terminal"}, GRID, "finetune='terminal' reads none of them: pass finetune='trajectory'"),
        ({"finetune": None}, GRID, "finetune=None reads none of them: pass finetune='trajectory'"),
        ({"stepping": "adaptive", "finetune": None}, GRID, "stepping='adaptive' has no such loss"),
        ({"base_solver": "nonstationary"}, GRID, "t_eval with base_solver='nonstationary'"),
        ({}, np.tile(GRID, (120, 1)), "here all rows share one grid, .* np.nanquantile"),
        ({}, [0.5], "holds the start of t_span=.* alone"),
        ({}, [0.5, 7.0], "must lie within t_span"),
    ],
)
def test_times_that_no_fit_can_use_are_refused(params, times, message):
    with pytest.raises(ValueError, match=message):
        make(**{"finetune": "trajectory"} | params).fit(X, t_eval=times)


def test_a_refit_on_another_span_needs_its_times_within():
    hyper = make(base_solver="heun", n_steps=3, finetune="trajectory", max_epochs=3).fit(X, t_eval=GRID)
    before = hyper.predict(X)
    with pytest.raises(ValueError, match=r"t_eval must lie within t_span.*These are the times of the fit before"):
        hyper.refit(NeuralODE(oscillate, t_span=(0.5, 1.0)), X)
    np.testing.assert_array_equal(hyper.predict(X), before)


def test_a_classifier_is_fitted_at_times_too(digits, digits_ode):
    hyper = HypersolverClassifier(
        digits_ode, base_solver="euler", n_steps=2, finetune="trajectory", max_epochs=2, random_state=0
    ).fit(digits[0][:60], t_eval=[0.3, 1.0])
    assert hyper.fitted_.settings.t_eval == (0.3, 1.0)
