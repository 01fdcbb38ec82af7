"""stepping="adaptive": what is fitted, what a prediction costs, and what is refused before any work."""

import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_iris
from torch import nn

from sklearn_hyper import (
    ConvCorrection,
    HypersolverClassifier,
    HypersolverRegressor,
    NeuralODE,
    NeuralODEClassifier,
    WeightCorrection,
)
from sklearn_hyper.datasets import VanDerPol
from sklearn_hyper.evaluation import neg_nfe_scorer
from sklearn_hyper.modules import ConvVectorField, HypersolvedODE, MLPVectorField, VectorFieldError
from sklearn_hyper.numerics import Adaptive, CountedField, FixedMesh, StepLimitError, reference_solution

RNG = np.random.default_rng(0)
X, X_TEST = RNG.uniform(-2, 2, (120, 2)), RNG.uniform(-2, 2, (40, 2))


def adaptive(field=None, **params):
    field = NeuralODE(VanDerPol(2.0), t_span=(0.0, 3.0)) if field is None else field
    defaults = {"n_steps": 12, "max_epochs": 60, "batch_size": 16, "random_state": 0}
    return HypersolverRegressor(field, stepping="adaptive", **defaults | params)


@pytest.fixture(scope="module")
def fast():
    return adaptive().fit(X)


def forced(t, z):
    return torch.stack([z[:, 1], torch.sin(4 * t) - z[:, 0]], dim=1)


def forced_rows(t, z):
    return torch.stack([z[:, 1], torch.sin(4 * t).expand(len(z)) - z[:, 0]], dim=1)


def errors(fast, rows):
    return np.linalg.norm(fast.transform(rows) - fast.reference(rows), axis=1)


# --- what a fit gives -----------------------------------------------------------------------------------------------


def test_errors_fall_and_evaluations_grow_with_the_tolerance(fast):
    """After the fit, by the same correction."""
    found = [fast.with_solver(step_rtol=rtol) for rtol in (1e-1, 1e-3, 1e-5)]
    means = [errors(one, X_TEST).mean() for one in found]
    evaluations = [one.count_evaluations(X_TEST) for one in found]
    assert means[0] > 2 * means[1] > 10 * means[2] and means[2] < 3e-4
    assert evaluations == sorted(evaluations) and evaluations[-1] > 2 * evaluations[0]
    assert [one.step_rtol for one in found] == [1e-1, 1e-3, 1e-5] and fast.step_rtol == 1e-3


def test_the_defaults_are_rk4_and_a_range_around_n_steps(fast):
    assert fast.base_solver_.name == "rk4" and fast.fit_n_steps is None
    assert fast.fitted_.fitted_eps == pytest.approx((3 / 48, 3 / 3))
    assert {row["stage"] for row in fast.history_} == {"residual"}  # nothing is trained through equal steps
    assert list(fast.errors_) == [12]
    stepping = fast.module_.stepping
    assert isinstance(stepping, Adaptive) and (stepping.times, stepping.max_step) == ("none", pytest.approx(1.0))


def test_evaluations_are_counted_by_row(fast):
    """By a wrapper around the field, and in batches as alone."""
    field = CountedField(fast.neural_ode_.vector_field)
    module = fast.to_module()
    module.neural_ode = NeuralODE(field, t_span=module.neural_ode.t_span, state_size=module.neural_ode.state_size)
    module.terminal_state(torch.from_numpy(X_TEST))
    assert fast.count_evaluations(X_TEST) == field.n_rows_evaluated / len(X_TEST) < field.n_evaluations
    alone = [fast.count_evaluations(X_TEST[i : i + 1]) for i in range(len(X_TEST))]
    assert np.mean(alone) == pytest.approx(fast.count_evaluations(X_TEST))
    assert len(set(alone)) > 1
    assert neg_nfe_scorer(fast, X_TEST) == -fast.count_evaluations(X_TEST)
    with pytest.raises(ValueError, match="evaluations depend on the rows; pass X"):
        fast.count_evaluations()


def test_a_row_is_predicted_alike_in_any_batch(fast):
    alone = np.concatenate([fast.predict(X_TEST[i : i + 1]) for i in range(len(X_TEST))])
    np.testing.assert_allclose(alone, fast.predict(X_TEST), rtol=1e-10, atol=1e-10)
    many = np.tile(X_TEST, (50, 1))  # more than a batch of predictions
    np.testing.assert_allclose(fast.predict(many)[-40:], alone, rtol=1e-10, atol=1e-10)


def test_trajectories_are_at_equal_times(fast):
    states = fast.trajectory(X_TEST)
    assert states.shape == (40, 13, 2)
    np.testing.assert_array_equal(states[:, 0], X_TEST)
    np.testing.assert_array_equal(states[:, -1], fast.transform(X_TEST))
    rows, times = torch.from_numpy(X_TEST), np.linspace(0, 3, 13)
    exact = reference_solution(fast.neural_ode_.vector_field, rows, times.tolist(), rtol=1e-9).transpose(0, 1).numpy()
    found = [np.abs(fast.with_solver(step_rtol=rtol).trajectory(X_TEST) - exact).max() for rtol in (1e-3, 1e-6)]
    assert 0.3 > found[0] > 10 * found[1]


def test_the_report_counts_the_mean_of_a_batch(fast):
    dopri5, base, corrected = fast.solver_report(X_TEST)
    assert [base.solver, corrected.solver] == ["rk4 K=12", "hyper-rk4 rtol=0.001"]
    assert base.nfe == 48 and corrected.nfe == fast.count_evaluations(X_TEST)
    assert corrected.l2_mean < base.l2_mean and dopri5.nfe > 0
    assert f"{corrected.nfe:.4g}" in str(fast.solver_report(X_TEST))


def test_without_the_correction_only_a_method_with_an_estimate_stays_adaptive(fast):
    assert isinstance(fast.without_correction().module_.stepping, FixedMesh)
    heun = adaptive(base_solver="heun", n_steps=24, max_epochs=20).fit(X)
    assert isinstance(heun.without_correction().module_.stepping, Adaptive)
    assert [row.solver for row in heun.solver_report(X_TEST)][1:] == ["heun rtol=0.001", "hyper-heun rtol=0.001"]


def test_it_survives_pickles_clones_and_modules(fast):
    again = pickle.loads(pickle.dumps(fast))
    np.testing.assert_array_equal(again.predict(X_TEST), fast.predict(X_TEST))
    assert clone(fast).get_params()["stepping"] == "adaptive"
    module = fast.to_module()
    assert isinstance(module, HypersolvedODE)
    np.testing.assert_allclose(module(torch.from_numpy(X_TEST)).detach().numpy(), fast.predict(X_TEST), rtol=1e-12)
    again.set_params(warm_start=True, max_epochs=2).fit(X)
    assert again.correction_ is not None and isinstance(again.module_.stepping, Adaptive)


def test_reverse_time():
    """Back from where the field leads, to rows of X."""
    field = NeuralODE(lambda t, z: -0.5 * z + 0 * t, t_span=(1.0, 0.0))
    back = adaptive(field, max_epochs=5).fit(X)
    np.testing.assert_allclose(back.predict(X_TEST), X_TEST * np.exp(0.5), rtol=1e-3)


def test_a_classifier_predicts_the_neural_ode_s_labels():
    rows, labels = load_iris(return_X_y=True)
    slow = NeuralODEClassifier(max_epochs=8, random_state=0).fit(rows, labels)
    fast = HypersolverClassifier(slow, stepping="adaptive", row_times=True, n_steps=4, max_epochs=5, random_state=0)
    fast.fit(rows)
    assert fast.module_.stepping.times == "rows"  # the library's own fields take a time a row
    assert (fast.predict(rows) == slow.predict(rows)).mean() > 0.99


# --- how time enters ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "row_times", "times"),
    [(forced, None, "shared"), (forced_rows, True, "rows"), (forced_rows, None, "shared"),
     (lambda t, z: -z, None, "none"), (lambda t, z: -z, False, "shared")],
)  # fmt: skip
def test_rows_step_apart_where_the_field_lets_them(field, row_times, times):
    fast = adaptive(field, row_times=row_times, max_epochs=10, n_steps=8).fit(X)
    assert fast.module_.stepping.times == times
    assert errors(fast, X_TEST).max() < 0.05


@pytest.mark.parametrize(("field", "what"), [(lambda t, z: z * t, "fails"),
                                             (lambda t, z: z * t.sum(), "gives other values")])  # fmt: skip
def test_a_field_that_takes_no_vector_of_times_is_refused(field, what):
    with pytest.raises(VectorFieldError, match=rf"row_times=True, but vector_field {what} .*t.reshape\(-1, 1\)"):
        adaptive(field, row_times=True).fit(X)


@pytest.mark.parametrize("shape", [(3,), (2, 5, 5)])
def test_the_library_s_fields_take_a_time_a_row(shape):
    torch.manual_seed(0)
    field = MLPVectorField(3, t_span=(0.0, 2.0)) if len(shape) == 1 else ConvVectorField(2, t_span=(0.0, 2.0))
    nn.init.normal_(field.time)
    z, t = torch.randn(4, *shape), torch.linspace(0, 2, 4)
    apart = torch.cat([field(t[i], z[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(field(t, z), apart, rtol=1e-5, atol=1e-6)


# --- steps that a net proposes --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def learned():
    return adaptive(step_controller="learned").fit(X)


def test_a_learned_controller_leaves_the_correction_as_it_is(fast, learned):
    for one, other in zip(fast.correction_.parameters(), learned.correction_.parameters(), strict=True):
        assert torch.equal(one, other)
    assert fast.module_.stepping.proposer is None
    assert learned.module_.proposer is learned.module_.stepping.proposer is learned.fitted_.steps


@pytest.mark.parametrize("rtol", [1e-2, 1e-4])
def test_the_mean_error_of_a_learned_step_is_the_tolerance(learned, rtol):
    """Of one corrected step from fresh rows, somewhere in the span, against dopri5."""
    field, span = learned.neural_ode_.vector_field, learned.neural_ode_.t_span
    rows = torch.from_numpy(X_TEST)
    state = reference_solution(field, rows, (0.0, 1.3), rtol=1e-10)[-1]
    sizes = torch.tensor([learned.neural_ode_.state_size])
    found = []
    for s, z in ((0.0, rows), (1.3, state)):
        time = torch.tensor([s], dtype=torch.float64)
        eps = learned.fitted_.steps.propose(time, z, field(time, z), rtol)
        for row, size in zip(z, eps.tolist(), strict=True):
            end = min(s + size, span[1])
            exact = reference_solution(field, row[None], (s, end), rtol=1e-10)[-1]
            one = HypersolvedODE(NeuralODE(field, t_span=(s, end)), learned.base_solver_, learned.correction_, (s, end))
            missed = (one.terminal_state(row[None]) - exact) / (sizes + torch.maximum(row.abs(), exact.abs()))
            found.append(float(missed.detach().square().mean().sqrt()))
    assert rtol / 3 < np.mean(found) < 3 * rtol


def test_learned_steps_reach_an_error_with_fewer_evaluations(fast, learned):
    """At each error that the PI controller reaches; both are interpolated on logarithmic axes."""
    curves = []
    for one in (fast, learned):
        at = [one.with_solver(step_rtol=10.0**-power) for power in range(1, 8)]
        curves.append(np.log([(errors(each, X_TEST).mean(), each.count_evaluations(X_TEST)) for each in at]))
    (pi_errors, pi_evaluations), (own_errors, own_evaluations) = (np.array(curve).T for curve in curves)
    wanted = np.log([1e-2, 1e-3, 1e-4])
    pi = np.interp(wanted, pi_errors[::-1], pi_evaluations[::-1])
    own = np.interp(wanted, own_errors[::-1], own_evaluations[::-1])
    assert np.exp(np.median(own - pi)) < 0.95


def test_learned_steps_survive_pickles_clones_modules_and_dtypes(learned):
    again = pickle.loads(pickle.dumps(learned))
    np.testing.assert_array_equal(again.predict(X_TEST), learned.predict(X_TEST))
    assert again.module_.proposer is again.module_.stepping.proposer is again.fitted_.steps
    assert clone(learned).get_params()["step_controller"] == "learned"
    module = learned.to_module()
    np.testing.assert_allclose(module(torch.from_numpy(X_TEST)).detach().numpy(), learned.predict(X_TEST), rtol=1e-12)
    single = module.float()(torch.from_numpy(X_TEST).float())
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single.detach().numpy(), learned.predict(X_TEST), rtol=0.05, atol=0.01)
    assert learned.fitted_.steps.shift.dtype == torch.float64  # to_module gave a copy


def test_learned_steps_are_alike_in_any_batch_and_counted(learned):
    alone = np.concatenate([learned.predict(X_TEST[i : i + 1]) for i in range(len(X_TEST))])
    np.testing.assert_allclose(alone, learned.predict(X_TEST), rtol=1e-9, atol=1e-9)
    by_row = [learned.count_evaluations(X_TEST[i : i + 1]) for i in range(len(X_TEST))]
    assert np.mean(by_row) == pytest.approx(learned.count_evaluations(X_TEST))
    assert len(set(by_row)) > 1 and set(np.mod(by_row, 4)) == {0}  # no step is tried twice


class Scaled(nn.Module):
    """The same field in other units."""

    def __init__(self, size, time):
        super().__init__()
        self.field, self.size, self.time = VanDerPol(2.0), size, time

    def forward(self, t, z):
        return self.field(t / self.time, z / self.size) * (self.size / self.time)


@pytest.mark.parametrize(("size", "time"), [(2.0**-20, 1.0), (1.0, 2.0**10)])
def test_learned_steps_do_not_depend_on_units(learned, size, time):
    scaled = NeuralODE(Scaled(size, time), t_span=(0.0, 3.0 * time))
    other = adaptive(scaled, step_controller="learned").fit(X * size)
    assert other.count_evaluations(X_TEST * size) == pytest.approx(learned.count_evaluations(X_TEST), rel=0.05)


def test_another_base_solver_steps_by_pi(learned):
    assert learned.with_solver("rk4").module_.stepping.proposer is not None
    assert learned.with_solver(n_steps=6, t_span=(0.0, 2.0)).module_.stepping.proposer is not None
    assert learned.with_solver("rk4_38").module_.stepping.proposer is None
    assert isinstance(learned.without_correction().module_.stepping, FixedMesh)


def test_a_learned_controller_is_fitted_anew_in_a_warm_start(learned):
    again = pickle.loads(pickle.dumps(learned)).set_params(warm_start=True, max_epochs=2, random_state=1)
    again.fit(X)  # others are held out
    assert not torch.equal(again.fitted_.steps.net[0].weight, learned.fitted_.steps.net[0].weight)


@pytest.mark.parametrize(("field", "row_times"), [(forced, None), (forced_rows, True)])
def test_learned_steps_know_the_time(field, row_times):
    fast = adaptive(field, row_times=row_times, max_epochs=10, n_steps=8, step_controller="learned").fit(X)
    found = [fast.with_solver(step_rtol=rtol) for rtol in (1e-2, 1e-5)]
    assert errors(found[1], X_TEST).max() < min(0.02, errors(found[0], X_TEST).max())


def test_learned_steps_of_few_rows():
    field = NeuralODE(lambda t, z: torch.stack([z[:, 1], -torch.sin(z[:, 0])], dim=1), t_span=(0.0, 3.0))
    fast = adaptive(field, step_controller="learned", batch_size=4, n_steps=6).fit(X[:20])
    found = [fast.with_solver(step_rtol=rtol) for rtol in (1e-2, 1e-5)]
    assert errors(found[1], X_TEST).mean() < min(0.02, errors(found[0], X_TEST).mean())


def test_learned_steps_of_images():
    images = np.random.default_rng(3).normal(size=(40, 1, 5, 5))
    params = {"correction": ConvCorrection(hidden=4), "step_controller": "learned", "step_rtol": 1e-4}
    fast = adaptive(lambda t, z: -z, n_steps=4, **params).fit(images)
    assert fast.module_.stepping.times == "shared" and fast.module_.proposer is not None
    np.testing.assert_allclose(fast.predict(images), images * np.exp(-1), rtol=1e-3)


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"base_solver": "nonstationary"}, "base_solver='nonstationary' with stepping='adaptive'.*'rk4'"),
        ({"base_solver": "ab2"}, "base_solver='ab2' with stepping='adaptive': it remembers earlier steps"),
        ({"fit_n_steps": 8}, r"fit_n_steps=8 with stepping='adaptive'.*pass a pair \(a, b\)"),
        ({"loss": "trajectory"}, "loss='trajectory' with stepping='adaptive'.*Pass loss='residual'"),
        ({"finetune": "output"}, "finetune='output' with stepping='adaptive'.*Pass finetune=None"),
        ({"correction": WeightCorrection()}, "changes the weights of f for steps that are known beforehand"),
        ({"stepping": "adaptiv"}, "The 'stepping' parameter"),
        ({"step_rtol": 0.0}, "The 'step_rtol' parameter"),
        ({"row_times": "yes"}, "The 'row_times' parameter"),
        ({"step_controller": "PID"}, "The 'step_controller' parameter"),
        (
            {"step_controller": "learned", "stepping": "fixed"},
            "step_controller='learned' with stepping='fixed', whose steps are all known.*Pass stepping='adaptive'",
        ),
    ],
    ids=str,
)
def test_what_cannot_work_is_refused_before_any_work(params, message):
    calls = []

    class Field(MLPVectorField):
        def forward(self, t, z):
            calls.append(len(z))
            return super().forward(t, z)

    with pytest.raises(ValueError, match=message):
        adaptive(Field(2)).set_params(**params).fit(X)
    assert sum(calls) < 2000  # probes of a few rows


def test_a_correction_of_one_step_size_shares_steps_or_is_refused():
    images = RNG.normal(size=(40, 1, 5, 5))
    field = lambda t, z: -z  # noqa: E731
    fast = adaptive(field, max_epochs=2, n_steps=4, correction=ConvCorrection(hidden=4)).fit(images)
    assert fast.module_.stepping.times == "shared"
    with pytest.raises(ValueError, match="row_times=True with correction=ConvCorrection"):
        adaptive(field, row_times=True, correction=ConvCorrection(hidden=4)).fit(images)


def test_a_number_of_steps_is_no_tolerance(fast):
    fixed = HypersolverRegressor(VanDerPol(), base_solver="heun", n_steps=3, max_epochs=2, random_state=0).fit(X)
    with pytest.raises(ValueError, match=r"step_rtol=0\.1 is the tolerance of adaptive steps.*takes 3 fixed ones"):
        fixed.with_solver(step_rtol=0.1)
    with pytest.raises(ValueError, match="step_rtol must be a positive finite number, got -1"):
        fast.with_solver(step_rtol=-1)


def test_it_is_not_exported(fast, tmp_path):
    pytest.importorskip("onnxscript")
    with pytest.raises(ValueError, match="stepping='adaptive' cannot be exported"):
        fast.export_onnx(tmp_path / "file.onnx")


def test_rows_that_take_too_many_steps_are_named(fast):
    """By their numbers in all of X."""
    rows = np.tile(X_TEST, (60, 1))
    rows[2100] = 1e8
    with pytest.raises(StepLimitError, match=r"from 1 of 2400 rows \(row 2100\)"):
        fast.predict(rows)


def test_a_fit_that_falls_back_takes_equal_steps():
    class Useless(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))

        def forward(self, eps, s, z, stages, x=None):
            return 0 * self.weight * z

    with pytest.warns(UserWarning) as caught:
        fast = adaptive(correction=Useless(), max_epochs=1).fit(X)
    assert any("takes n_steps=12 equal steps instead of adaptive ones" in str(one.message) for one in caught)
    assert fast.correction_ is None and fast.count_evaluations() == 48
