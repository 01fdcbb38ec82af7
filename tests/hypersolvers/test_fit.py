"""Hypersolvers fitted on tensors, without an estimator: for one Neural ODE, for several at once, and again."""

import pickle
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from interruptions import Stops, interrupted
from problems import LOGISTIC
from small_tasks import Turn, fit_settings, rows, turn_task
from torch import nn

from sklearn_hyper import HypersolverRegressor, MLPCorrection, NeuralODE, alpha_family
from sklearn_hyper.hypersolvers import (
    FitSettings,
    FittedHypersolver,
    Task,
    fit_hypersolver,
    fit_hypersolvers,
    refit_hypersolver,
)
from sklearn_hyper.modules.copies import frozen_copy
from sklearn_hyper.modules.serialization import pack, unpack
from sklearn_hyper.numerics import ReferenceSolveError
from sklearn_hyper.training.errors import BaseSolverOverflowError


def mean_error(fast, x):
    return float((fast.solve(x) - fast.reference(x)).norm(dim=1).mean())


def is_better(fast, x):
    return mean_error(fast, x) < mean_error(fast.without_correction(), x)


# ---------------------------------------------------------------------- one Neural ODE
def test_a_fit_beats_its_base_method_and_lands_near_the_closed_form():
    x = torch.linspace(0.1, 0.9, 60, dtype=torch.float64)[:, None]
    ode = NeuralODE(LOGISTIC.f, t_span=LOGISTIC.t_span).eval()
    fast = fit_hypersolver(Task(ode, x), fit_settings(max_epochs=40))
    fresh = torch.linspace(0.12, 0.88, 33, dtype=torch.float64)[:, None]
    exact = LOGISTIC.exact(*LOGISTIC.t_span, fresh)
    errors = [(one.solve(fresh) - exact).abs().mean() for one in (fast, fast.without_correction())]
    assert errors[0] < 0.2 * errors[1]
    torch.testing.assert_close(fast.reference(fresh), exact, rtol=1e-5, atol=1e-5)


PARAMETERS = [
    {},
    {"base_solver": "ab2", "n_steps": 3},
    {"base_solver": "auto", "n_steps": 3, "loss": "trajectory"},
    {"base_solver": "nonstationary", "n_steps": 3},
    {"base_solver": "heun", "fit_n_steps": (1, 4), "finetune": "output"},
    {"base_solver": "midpoint", "correction": MLPCorrection(hidden=6, tableaus=[alpha_family(0.3), "heun"])},
    {"max_samples": 40, "rtol": 1e-4, "finetune": None},
]


@pytest.mark.parametrize("params", PARAMETERS, ids=str)
def test_it_gives_bit_for_bit_what_the_estimator_gives(params):
    settings = fit_settings(**{"max_epochs": 4} | params)
    ode, x, fresh = NeuralODE(Turn()), rows(50), rows(20, seed=7)
    # The estimator takes times in ``fit``.
    parameters = {name: getattr(settings, name) for name in FitSettings.__dataclass_fields__ if name != "t_eval"}
    estimator = HypersolverRegressor(ode, **parameters).fit(x.numpy())
    fast = fit_hypersolver(Task(frozen_copy(ode), x), settings)
    assert fast.method == estimator.base_solver_ and fast.n_samples == estimator.n_samples_fit_
    np.testing.assert_array_equal(fast.predict(fresh).numpy(), estimator.predict(fresh.numpy()))
    np.testing.assert_array_equal(fast.trajectory(fresh).numpy(), estimator.trajectory(fresh.numpy()).swapaxes(0, 1))
    np.testing.assert_array_equal(fast.reference(fresh).numpy(), estimator.reference(fresh.numpy()))
    assert (fast.errors, fast.delta) == (estimator.errors_, estimator.delta_)
    assert [row["valid_loss"] for row in fast.history] == [row["valid_loss"] for row in estimator.history_]


def test_the_neural_ode_and_the_rows_stay_as_they_were():
    task = turn_task()
    x, weight = task.x.clone(), task.neural_ode.vector_field.weight.clone()
    fast = fit_hypersolver(task, fit_settings(max_epochs=3))
    assert torch.equal(task.x, x) and torch.equal(task.neural_ode.vector_field.weight, weight)
    assert fast.neural_ode is not task.neural_ode and task.neural_ode.state_size is None
    assert fit_hypersolver(task, fit_settings(max_epochs=3), copy=False).neural_ode is task.neural_ode


def test_a_field_that_changes_afterwards_does_not_change_the_product():
    task = turn_task()
    fast = fit_hypersolver(task, fit_settings(max_epochs=3))
    before = fast.solve(task.x)
    with torch.no_grad():
        task.neural_ode.vector_field.weight.mul_(2)
    assert torch.equal(fast.solve(task.x), before)


def test_what_a_fit_has_to_say_is_part_of_the_product():
    fast = fit_hypersolver(turn_task(), fit_settings(lr=1e-300, max_epochs=1, finetune=None))
    assert fast.correction is None and fast.module.has_correction is False
    (problem,) = fast.problems
    assert problem.startswith("no epoch was better than the base solver on held-out rows")
    assert fit_hypersolver(turn_task(), fit_settings()).problems == ()


class BadInFewRows(nn.Module):
    """Euler's leading residual, and something else where the state is small."""

    def __init__(self):
        super().__init__()
        self.size = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, eps, s, z, stages, x=None):
        return torch.where(z < 0.12, -0.16, self.size * 0.5 * stages[0] * (1 - 2 * z))


@pytest.mark.parametrize(("at_most", "is_kept"), [(1.0, True), (0.5, False)])
def test_a_correction_that_is_worse_in_few_rows_is_a_last_choice(at_most, is_kept, monkeypatch):
    """This one hardly acts, since its bound begins at nothing: it leaves .97 of the mean, and 1.04 of the largest."""
    monkeypatch.setattr("sklearn_hyper.training.errors._LAST_CHOICE_MEAN", at_most)
    x = torch.linspace(0.1, 0.9, 100, dtype=torch.float64)[:, None]
    ode = NeuralODE(LOGISTIC.f, t_span=LOGISTIC.t_span).eval()
    settings = fit_settings(
        correction=BadInFewRows(), base_solver="euler", n_steps=3, lr=1e-9, max_epochs=1, finetune=None,
        validation_fraction=0.5, random_state=0,
    )  # fmt: skip
    fast = fit_hypersolver(Task(ode, x), settings)
    (problem,) = fast.problems
    row = fast.errors[3]
    assert (fast.correction is not None) == is_kept
    if is_kept:
        assert row["max"] > row["base_max"] and row["mean"] < row["base_mean"]
        assert f"largest error on held-out rows is above the base solver's ({row['max']:.3g} for" in problem
        assert 0.999 < fast.history[-1]["valid_loss"] < 1
    else:
        assert "no epoch was better" in problem and row["max"] == row["base_max"]


def test_errors_larger_than_the_states_are_a_problem():
    x = rows(60) * 7
    fast = fit_hypersolver(Task(NeuralODE(lambda t, z: -(z**3)).eval(), x), fit_settings(n_steps=4, max_epochs=1))
    assert any("times the size of the states at the end of t_span on held-out rows" in line for line in fast.problems)


def test_the_draw_of_rows_follows_the_seed_and_their_order_is_kept():
    def predictions(seed):
        fast = fit_hypersolver(turn_task(100), fit_settings(max_samples=30, random_state=seed, max_epochs=2))
        assert fast.n_samples == 30
        return fast.solve(rows(5))

    assert torch.equal(predictions(0), predictions(0)) and not torch.equal(predictions(0), predictions(1))


# ---------------------------------------------------------------------- refusals, before or after the first solve
class WritesIntoStages(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2, dtype=torch.float64)

    def forward(self, eps, s, z, stages, x=None):
        return self.layer(stages[0].mul_(2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_solver": "ab2", "n_steps": 1}, "makes start-up steps only"),
        (
            {"validation_fraction": 0.999},
            "validation_fraction=0.999 of n_samples=60 leaves no row to train on, with 60",
        ),
        ({"correction": nn.Linear(2, 2)}, "fails on a step of 'euler'"),
        ({"correction": WritesIntoStages()}, r"writes in place into stages\[0\]"),
    ],
    ids=str,
)
def test_what_cannot_be_fitted_is_refused_before_any_solve(changes, message, solves):
    with pytest.raises(ValueError, match=message):
        fit_hypersolver(turn_task(), fit_settings(**changes))
    assert not solves


def test_units_of_time_out_of_range_are_refused(solves):
    task = Task(NeuralODE(lambda t, z: -z, t_span=(0.0, 1e-12)).eval(), rows(20, dtype=torch.float32))
    with pytest.raises(ValueError, match=r"divides by eps\^5.*range of torch.float32.*Measure time in units"):
        fit_hypersolver(task, fit_settings(base_solver="rk4"))
    assert not solves


@pytest.mark.parametrize("base_solver", ["heun", "nonstationary"])
def test_rows_are_named_as_they_were_given(base_solver):
    x = rows(120)
    x[7::12] = 3.0
    task = Task(NeuralODE(lambda t, z: 0.1 * z**3).eval(), x)
    with pytest.raises(ReferenceSolveError, match="of 120 rows") as raised:
        fit_hypersolver(task, fit_settings(base_solver=base_solver, n_steps=3, max_samples=40))
    assert max(raised.value.rows) > 40 and all(row % 12 == 7 for row in raised.value.rows)


def test_steps_that_overflow_name_rows():
    x = rows(60)
    x[[7, 55]] = 1e3
    with pytest.raises(BaseSolverOverflowError, match=r"overflows from 2 of 60 rows of X \(rows 7, 55\)") as raised:
        fit_hypersolver(Task(NeuralODE(lambda t, z: -(z**3)).eval(), x), fit_settings(n_steps=9))
    assert raised.value.rows == (7, 55)


# ---------------------------------------------------------------------- interruptions
def test_an_interrupted_training_gives_what_it_has_learned():
    fast = fit_hypersolver(turn_task(), fit_settings(callbacks=[Stops(6, 1)]))
    whole = fit_hypersolver(turn_task(), fit_settings())
    assert fast.interrupted and not whole.interrupted
    assert [row["valid_loss"] for row in fast.history] == [row["valid_loss"] for row in whole.history[:5]]
    assert is_better(fast, rows(30, seed=4))


def test_an_interruption_before_the_first_epoch_is_passed_on():
    with pytest.raises(KeyboardInterrupt):
        fit_hypersolver(turn_task(), fit_settings(callbacks=[Stops(1, 1)]))


def test_an_interrupted_reference_solve_is_passed_on(monkeypatch):
    monkeypatch.setattr("sklearn_hyper.training.references._solve_chunk", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit_hypersolver(turn_task(), fit_settings())


def test_an_interruption_of_several_tasks_keeps_all_of_them():
    both = fit_hypersolvers([turn_task(), turn_task(speed=1.5)], fit_settings(callbacks=[Stops(6, 1)]))
    assert [fast.interrupted for fast in both] == [True, True]
    assert all(is_better(fast, rows(30, seed=4)) for fast in both)


# ---------------------------------------------------------------------- several Neural ODEs
@pytest.fixture(scope="module")
def turns():
    return fit_hypersolvers([turn_task(speed=1.0), turn_task(80, speed=1.5, seed=1)], fit_settings(max_epochs=30))


def test_several_fields_share_weights_and_are_each_better_than_their_base(turns):
    one, other = turns
    assert one.correction.net.weights is other.correction.net.weights
    assert {id(p) for p in one.correction.parameters()} == {id(p) for p in other.correction.parameters()}
    fresh = rows(50, seed=9)
    for fast in turns:
        assert mean_error(fast, fresh) < 0.5 * mean_error(fast.without_correction(), fresh)
    assert (one.n_samples, other.n_samples) == (60, 80)


def test_several_fields_have_units_of_their_own(turns):
    one, other = turns
    (scale,), (larger,) = (list(fast.correction.units.buffers()) for fast in turns)
    torch.testing.assert_close(larger, 1.5**2 * scale, rtol=0.4, atol=0)  # Euler's residual is quadratic in speed
    assert other.correction.units.floor > 1.2 * one.correction.units.floor
    assert not torch.equal(one.correction.net.scales.scale, other.correction.net.scales.scale)


def test_one_task_among_several_is_what_it_is_alone():
    (alone,) = fit_hypersolvers([turn_task()], fit_settings(max_epochs=3))
    same = fit_hypersolver(turn_task(), fit_settings(max_epochs=3))
    assert torch.equal(alone.solve(rows(9)), same.solve(rows(9)))


@pytest.mark.parametrize(
    ("x", "kind"),
    [(torch.rand(30, 3).double(), r"\(3,\), torch.float64"), (rows(30, dtype=torch.float32), r"\(2,\), torch.float32")],
    ids=["width", "dtype"],
)
def test_states_of_several_tasks_have_one_shape_and_dtype(x, kind, solves):
    other = Task(NeuralODE(lambda t, z: -z).eval(), x)
    with pytest.raises(ValueError, match=rf"of one shape and dtype, got 2 with \[.*{kind}.*fit the others apart"):
        fit_hypersolvers([turn_task(), other], fit_settings())
    with pytest.raises(ValueError, match="tasks must be one or more"):
        fit_hypersolvers([], fit_settings())
    assert not solves


def test_previous_corrections_are_one_a_task():
    first = fit_hypersolver(turn_task(), fit_settings())
    with pytest.raises(ValueError, match="warm holds 1 corrections for 2 tasks; pass one a task"):
        fit_hypersolvers([turn_task(), turn_task(speed=1.5)], fit_settings(), [first])


def test_learned_coefficients_of_several_tasks_are_those_of_the_first():
    settings = fit_settings(base_solver="nonstationary", n_steps=3, max_epochs=6)
    one, other = fit_hypersolvers([turn_task(), turn_task(speed=1.5)], settings)
    assert one.method == other.method == fit_hypersolver(turn_task(), settings).method


# ---------------------------------------------------------------------- again
def test_a_fit_goes_on_from_another_and_leaves_it_as_it_was():
    settings = fit_settings(base_solver="auto", fit_n_steps=(2, 4), n_steps=3)
    first = fit_hypersolver(turn_task(), settings)
    before = first.solve(rows(9))
    again = fit_hypersolver(turn_task(), replace(settings, n_steps=4, max_epochs=2), first)
    assert again.method is first.method and again.n_steps == 4 and again.correction is not first.correction
    assert torch.equal(first.solve(rows(9)), before)


def test_a_fit_cannot_go_on_from_another_family():
    first = fit_hypersolver(turn_task(), fit_settings())
    with pytest.raises(ValueError, match=r"'heun' \(order 2, 2 stages\) cannot take over.*with warm_start=False"):
        fit_hypersolver(turn_task(), fit_settings(base_solver="heun"), first)


def test_without_a_correction_there_is_nothing_to_go_on_from():
    first = fit_hypersolver(turn_task(), fit_settings()).without_correction()
    again = fit_hypersolver(turn_task(), fit_settings(base_solver="heun"), first)
    assert again.method.name == "heun" and again.correction is not None


def test_a_refit_follows_a_field_that_has_changed():
    """In a few epochs: better than the correction as it was, than a new one, and than the base method."""
    settings, fresh = fit_settings(n_steps=4, max_epochs=60, lr=2e-2), rows(50, seed=9)
    first = fit_hypersolver(turn_task(200), settings)
    moved = Task(NeuralODE(Turn(1.25)).eval().requires_grad_(False), rows(200))
    again = refit_hypersolver(first, moved.x, moved.neural_ode, max_epochs=3)
    others = {
        "stale": on(first, moved.neural_ode),
        "new": fit_hypersolver(moved, replace(settings, max_epochs=3)),
        "base": again.without_correction(),
    }
    errors = {name: mean_error(fast, fresh) for name, fast in others.items()}
    assert mean_error(again, fresh) < 0.8 * errors["stale"]
    assert mean_error(again, fresh) < 0.5 * min(errors["new"], errors["base"])
    assert again.settings.max_epochs == 3


def test_units_of_a_refit_are_those_of_the_field_as_it_is():
    first = fit_hypersolver(turn_task(), fit_settings())
    again = refit_hypersolver(first, rows(60), NeuralODE(Turn(1.25)).eval().requires_grad_(False), max_epochs=1)
    (old,), (new,) = (list(fast.correction.units.buffers()) for fast in (first, again))
    torch.testing.assert_close(new, 1.25**2 * old, rtol=0.2, atol=0)
    assert not torch.equal(first.correction.net.scales.scale, again.correction.net.scales.scale)


def on(fast, neural_ode):
    """The same solver on another field."""
    values = {field.name: getattr(fast, field.name) for field in fields(fast) if field.init}
    return FittedHypersolver(**values | {"neural_ode": neural_ode})


def test_a_refit_keeps_learned_coefficients():
    first = fit_hypersolver(turn_task(), fit_settings(base_solver="nonstationary", n_steps=3))
    assert refit_hypersolver(first, rows(40, seed=2), max_epochs=2).method is first.method


def test_settings_of_a_refit_are_those_of_the_fit_but_for_changes():
    first = fit_hypersolver(turn_task(), fit_settings())
    again = refit_hypersolver(first, rows(40), max_epochs=2, lr=1e-4)
    net = {"correction": MLPCorrection()}  # what "auto" stood for
    assert first.settings == fit_settings(**net) and again.settings == fit_settings(**net, max_epochs=2, lr=1e-4)
    assert again.n_samples == 40


def test_a_refit_goes_on_with_the_solver_of_a_swapped_copy():
    first = fit_hypersolver(turn_task(), fit_settings(base_solver="midpoint", n_steps=4))
    swapped = first.with_solver("heun", 5)
    again = refit_hypersolver(swapped, rows(60), max_epochs=2)
    assert (again.method.name, again.n_steps) == ("heun", 5)


def test_a_refit_needs_a_correction():
    first = fit_hypersolver(turn_task(), fit_settings()).without_correction()
    with pytest.raises(ValueError, match=r"no correction to continue; use fit_hypersolver"):
        refit_hypersolver(first, rows(60))


def test_corrections_that_no_longer_share_a_net_are_not_gone_on_from_together():
    tasks = [turn_task(), turn_task(speed=2.0)]
    both = fit_hypersolvers(tasks, fit_settings(n_steps=3, max_epochs=20))
    fit_hypersolvers(tasks, fit_settings(n_steps=3, max_epochs=1), both)
    apart = [pickle.loads(pickle.dumps(one)) for one in both]
    with pytest.raises(ValueError, match="nets of their own"):
        fit_hypersolvers(tasks, fit_settings(n_steps=3, max_epochs=1), apart)
    together = unpack(pack(both))
    assert together[0].correction.net.weights is together[1].correction.net.weights
