"""Advice is the best of what was measured, on rows that no trial has seen, and says when a hypersolver does not pay."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from small_hypersolvers import Swirl, make_classifier, make_learner, make_regressor, spiral

from sklearn_hyper import (
    ContinuousNormalizingFlow,
    HypersolverClassifier,
    HypersolverRegressor,
    MLPCorrection,
    NeuralODE,
    NeuralODERegressor,
)
from sklearn_hyper.estimators import ConditionError
from sklearn_hyper.evaluation import Advice, ParetoDisplay, advise
from sklearn_hyper.evaluation._candidates import default_steps, trial_epochs
from sklearn_hyper.numerics import ReferenceSolveError
from sklearn_hyper.numerics.row_errors import UndefinedOutputError
from sklearn_hyper.training.tasks import row_digests

QUICK = {"n_steps": [2, 4], "max_epochs": 3, "random_state": 0}


@pytest.fixture(scope="module")
def under_budget(X):
    return advise(Swirl(), X, evaluations=2, max_epochs=10, random_state=0)


@pytest.fixture(scope="module")
def to_error(X):
    return advise(Swirl(), X, error=0.01, cost="nfe", **QUICK)


def is_hyper(row):
    return row.solver.startswith("hyper-")


# ---------------------------------------------------------------------- the choice
def test_an_error_is_reached_by_the_cheapest(to_error):
    within = [row for row in to_error.report if row.mape <= 0.01]
    best = to_error.report.to_dict()[to_error.best_solver_]
    assert to_error.reached_ and best["mape"] <= 0.01
    assert best["nfe"] == min(row.nfe for row in within)


def test_a_budget_is_kept_by_the_most_accurate(under_budget):
    within = [row for row in under_budget.report if row.nfe <= 2]
    best = under_budget.report.to_dict()[under_budget.best_solver_]
    assert under_budget.reached_ and best["nfe"] <= 2
    assert best["mape"] == min(row.mape for row in within)


def test_milliseconds_are_a_budget_too(X):
    advice = advise(Swirl(), X, milliseconds=1e3, **QUICK)  # all keep it
    assert advice.reached_ and advice.report.to_dict()[advice.best_solver_]["mape"] == min(
        row.mape for row in advice.report
    )


@pytest.mark.parametrize(("metric", "column"), [("relative_l2", "l2_mean"), ("relative_l2_max", "l2_max")])
def test_the_metric_is_what_the_target_is_about(X, metric, column):
    advice = advise(Swirl(), X, error=0.02, metric=metric, cost="nfe", **QUICK)
    within = [row for row in advice.report if getattr(row, column) <= 0.02]
    assert advice.report.to_dict()[advice.best_solver_]["nfe"] == min(row.nfe for row in within)


def test_labels_are_compared_with_those_of_dopri5(classifier, X):
    advice = advise(classifier, X, error=0.06, metric="disagreement", cost="nfe", **QUICK)
    best = advice.report.to_dict()[advice.best_solver_]
    assert 1 - best["accuracy"] <= 0.06
    assert any("Accuracy is the share of labels that dopri5 gives" in note for note in advice.report.notes)
    assert isinstance(advice.best_estimator_, HypersolverClassifier)


def test_where_a_hypersolver_wins_it_pays(under_budget, X):
    assert under_budget.pays_ and under_budget.best_solver_ == "hyper-nonstationary K=2"
    assert "A hypersolver pays" in under_budget.recommendation_
    assert "nonstationary with WeightCorrection in 2 steps" in under_budget.recommendation_
    assert under_budget.best_params_ == {"base_solver": "auto", "n_steps": 2, "correction": "auto"}
    HypersolverRegressor(Swirl(), **under_budget.best_params_)  # the parameters are a hypersolver's


def test_where_a_classical_method_wins_it_does_not_pay(X):
    advice = advise(spiral, X, error=0.01, cost="nfe", n_steps=[2], max_epochs=1, random_state=0)
    assert not advice.pays_ and advice.reached_
    assert "does not pay here: none of those tried is within an error of 0.01" in advice.recommendation_
    base, steps = advice.best_params_["base_solver"], advice.best_params_["n_steps"]
    assert advice.best_solver_ == f"{base} K={steps}"


def test_a_tie_in_cost_goes_to_a_solver_without_a_fit(under_budget, X):
    plain = min(row.mape for row in under_budget.report if row.nfe == 2 and not is_hyper(row))
    advice = advise(Swirl(), X, error=1.01 * plain, cost="nfe", n_steps=[2], max_epochs=10, random_state=0)
    rows = advice.report.to_dict()
    assert rows[advice.best_solver_]["nfe"] == rows["hyper-nonstationary K=2"]["nfe"] == 2
    assert rows["hyper-nonstationary K=2"]["mape"] < rows[advice.best_solver_]["mape"] <= 1.01 * plain
    assert not advice.pays_ and "A hypersolver does not pay here: the best of them is" in advice.recommendation_
    assert advice.best_solver_ in advice.shown


def test_a_target_out_of_reach_is_said_and_the_closest_named(X):
    advice = advise(Swirl(), X, error=2e-6, **QUICK)
    assert not advice.reached_ and not advice.pays_
    assert advice.recommendation_.startswith("Nothing tried is within an error of 2e-06. Closest is")
    assert advice.report.to_dict()[advice.best_solver_]["mape"] == min(row.mape for row in advice.report)


# ---------------------------------------------------------------------- what is measured
def test_the_best_estimator_predicts_as_measured(to_error, under_budget, X):
    for advice in (to_error, under_budget):
        best = advice.best_estimator_
        assert best.count_evaluations() == advice.report.to_dict()[advice.best_solver_]["nfe"]
        assert best.predict(X).shape == X.shape


def test_trials_are_measured_on_rows_that_none_has_seen(under_budget, X):
    for trial in under_budget.trials_.values():
        digests = row_digests(trial.fitted_.neural_ode, torch.from_numpy(X))
        assert np.isin(digests, trial.fitted_.fitted_rows).sum() == 60
    assert "milliseconds for a batch of 20." in under_budget.report.notes[0]


def test_one_seed_gives_one_advice(under_budget, X):
    again = advise(Swirl(), X, evaluations=2, max_epochs=10, random_state=0)
    for one, other in zip(under_budget.report, again.report, strict=True):
        assert (one.solver, one.mape, one.l2_max, one.nfe, one.macs) == (
            other.solver, other.mape, other.l2_max, other.nfe, other.macs,
        )  # fmt: skip
    assert (again.best_solver_, again.best_params_) == (under_budget.best_solver_, under_budget.best_params_)


def test_a_budget_chooses_the_numbers_of_steps(under_budget, X):
    assert {trial.n_steps for trial in under_budget.trials_.values()} == {1, 2}
    heun = advise(make_learner(base_solver="heun"), X, evaluations=5, random_state=0)
    assert {trial.n_steps for trial in heun.trials_.values()} == {1, 2}  # two evaluations a step


def test_dopri5_is_there_at_several_tolerances_and_no_solver_beats_another_classical(to_error):
    names = [row.solver for row in to_error.report]
    assert {"dopri5 0.1", "dopri5 0.01", "dopri5 0.001", "dopri5 0.0001"} <= set(names)
    classical = [row for row in to_error.report if not is_hyper(row) and "dopri5" not in row.solver]
    by_cost = sorted(classical, key=lambda row: row.nfe)
    assert [row.l2_mean for row in by_cost] == sorted((row.l2_mean for row in classical), reverse=True)


def test_a_hypersolver_lends_its_parameters_and_stays_as_it_is(X):
    template = make_regressor(correction=MLPCorrection(hidden=4), n_steps=7)
    advice = advise(template, X, error=0.01, **QUICK)
    assert not hasattr(template, "fitted_") and template.n_steps == 7 and template.max_epochs == 3
    for trial in advice.trials_.values():
        assert trial.base_solver == "euler" and trial.correction.hidden == 4


def test_a_trial_that_beats_nothing_is_left_out_and_said(X):
    template = make_regressor(lr=1e3, correction=MLPCorrection(hidden=4))
    advice = advise(template, X, error=0.01, **QUICK)
    assert advice.trials_ == {} and not advice.pays_
    assert "A hypersolver does not pay here: no trial beat its base solver." in advice.recommendation_
    assert "The trial of 2 steps beat its base solver in no epoch, and is left out." in advice.report.notes


@pytest.mark.parametrize(("rows", "epochs"), [(80, 120), (1000, 25), (4000, 20)])
def test_trials_have_enough_updates_and_are_no_longer_than_a_full_fit(rows, epochs):
    assert trial_epochs(HypersolverRegressor(None), rows) == epochs
    assert trial_epochs(HypersolverRegressor(None, max_epochs=3), rows) == 3


def test_short_trials_are_said_to_be_short(X, to_error):
    assert "Hypersolvers were fitted for 3 epochs; full fits have smaller errors." in to_error.recommendation_
    full = advise(make_learner(max_epochs=2), X, error=0.01, n_steps=[2], max_epochs=2, random_state=0)
    assert "full fits" not in full.recommendation_


def test_a_pipeline_takes_frames(X):
    frame = pd.DataFrame(X, columns=["a", "b"])
    model = make_pipeline(StandardScaler(), NeuralODERegressor(max_epochs=1, random_state=0)).fit(frame, X[:, 0])
    advice = advise(model, frame, evaluations=2, max_epochs=1, random_state=0)
    assert isinstance(advice, Advice)
    if advice.best_estimator_ is not None:
        assert advice.best_estimator_.predict(frame).shape == (80,)


def test_tensors_are_taken(X):
    advice = advise(Swirl(), torch.from_numpy(X), evaluations=2, max_epochs=1, n_steps=[2], random_state=0)
    assert len(advice.report) > 4


def test_formulas_are_compared_by_time(X):
    def turn(t, z):
        return torch.stack([z[:, 1], -torch.sin(z[:, 0])], dim=1)

    advice = advise(turn, X, error=0.05, **QUICK)
    assert "milliseconds a batch" in advice.recommendation_
    with pytest.raises(ValueError, match="cost='macs' counts multiply-accumulates, and the vector field has none"):
        advise(turn, X, error=0.05, cost="macs", **QUICK)


def test_rows_that_cannot_be_solved_are_numbered_as_in_X(X):
    def explode(t, z):
        return torch.where(z.abs() > 5, z**3, -z)

    bad = np.vstack([X, [[9.0, 9.0]]])
    with pytest.raises(ReferenceSolveError) as caught:
        advise(explode, bad, error=0.01, **QUICK)
    assert caught.value.rows == (80,)


def test_outputs_that_are_undefined_name_their_rows(X):
    class Root(torch.nn.Module):
        def forward(self, z):
            return torch.where(z[:, :1] > 0.9, torch.nan, z[:, :1])

    node = NeuralODE(Swirl(), output_map=Root())
    undefined = node(torch.from_numpy(X)).isnan()[:, 0].numpy()
    with pytest.raises(UndefinedOutputError) as caught:
        advise(node, X, error=0.01, **QUICK)
    assert 0 < len(caught.value.rows) < len(X) and undefined[list(caught.value.rows)].all()


# ---------------------------------------------------------------------- how it shows
def test_it_prints_and_displays_its_table_and_words(under_budget):
    text = str(under_budget)
    assert text.startswith("solver") and under_budget.recommendation_ in text and repr(under_budget) == text
    html = under_budget._repr_html_()
    assert "<table>" in html and "A hypersolver pays" in html
    shown = [row.solver for row in under_budget.table]
    assert under_budget.best_solver_ in shown and "dopri5 0.0001" in shown
    assert len(shown) < len(under_budget.report)


def test_the_report_can_be_drawn(under_budget):
    assert "hypersolver" in ParetoDisplay(under_budget.report, cost="nfe").plot().points_


# ---------------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"error": None}, ValueError, "give exactly one target, error=, milliseconds= or evaluations=, got none"),
        ({"evaluations": 2}, ValueError, "give exactly one target.*got error, evaluations"),
        ({"error": 0}, ValueError, "error must be positive and finite, got 0"),
        ({"error": math.nan}, ValueError, "error must be positive and finite, got nan"),
        ({"error": "small"}, TypeError, "error must be a number, got 'small'"),
        ({"error": True}, TypeError, "error must be a number, got True"),
        ({"error": None, "evaluations": 0.5}, ValueError, "evaluations must be at least 1, got 0.5"),
        ({"metric": "mse"}, ValueError, "metric must be one of 'mape', .*, got 'mse'"),
        ({"metric": "disagreement"}, ValueError, "metric='disagreement' compares labels, and there are none"),
        ({"cost": "flops"}, ValueError, "cost must be one of 'nfe', 'macs', 'ms', got 'flops'"),
        ({"error": None, "evaluations": 2, "cost": "ms"}, ValueError, "cost='ms' has no effect"),
        ({"n_steps": []}, ValueError, r"n_steps must be a list of integers of at least 1, such as \[2, 4\], got \[\]"),
        ({"n_steps": 4}, ValueError, "n_steps must be a list of integers"),
        ({"n_steps": [0]}, ValueError, "n_steps must be a list of integers"),
        ({"max_epochs": 0}, ValueError, "max_epochs must be an integer of at least 1, got 0"),
        ({"batch_size": 1.5}, ValueError, "batch_size must be an integer of at least 1, got 1.5"),
    ],
)
def test_wrong_parameters_are_refused_before_any_work(X, changed, error, message):
    with pytest.raises(error, match=message):
        advise(Swirl(), X, **{"error": 0.01} | changed)


def test_too_few_rows_are_refused(X):
    with pytest.raises(ValueError, match="X has 19 rows, and advise needs at least 20"):
        advise(Swirl(), X[:19], error=0.01)


def test_a_budget_below_one_step_is_refused(X):
    with pytest.raises(ValueError, match="evaluations=3 is less than base_solver='rk4' takes: allow at least 4"):
        advise(make_regressor(base_solver="rk4"), X, evaluations=3)


def test_an_error_that_cannot_be_measured_is_refused(X):
    with pytest.raises(ValueError, match="error=1e-06 is not larger than rtol=1e-06 of the dopri5"):
        advise(Swirl(), X, error=1e-6)


@pytest.mark.parametrize(
    ("base_solver", "evaluations", "steps"),
    [("auto", 5, [2, 5]), ("auto", 1, [1]), ("rk4", 9, [1, 2]), ("ab2", 3, [2, 3]), ("nonstationary", 4, [2, 4])],
)
def test_steps_of_a_budget_fit_the_base_solver(base_solver, evaluations, steps):
    assert default_steps(HypersolverRegressor(None, base_solver=base_solver), evaluations) == steps


def test_adaptive_steps_are_refused(X):
    with pytest.raises(ValueError, match="stepping='adaptive', and advise compares numbers of fixed steps"):
        advise(make_regressor(base_solver="rk4", stepping="adaptive"), X, error=0.01)


def test_a_flow_is_refused_and_its_sampler_taken(X):
    flow = ContinuousNormalizingFlow(max_epochs=1, random_state=0).fit(X)
    with pytest.raises(TypeError, match=r"in advise too, pass flow.flow_.sampling\(\), with base draws as X"):
        advise(flow, X, error=0.01)
    draws = np.random.default_rng(0).normal(size=X.shape).astype(np.float32)
    assert advise(flow.flow_.sampling(), draws, error=0.5, **QUICK).reached_


def test_labels_of_a_module_are_a_classifiers(X):
    advice = advise(make_classifier(), X, error=0.2, metric="disagreement", **QUICK)
    assert all(isinstance(trial, HypersolverClassifier) for trial in advice.trials_.values())


# ---------------------------------------------------------------------- conditions
def damped(t, z, *, rate, kind):
    return -rate[:, None] * z * (1 + kind[:, None])


def condition_of(X):
    """The last row alone is of a rare kind: the trials know it, whether they are fitted on that row or not."""
    kinds = pd.Categorical(["common"] * (len(X) - 1) + ["rare"], categories=["rare", "common"])
    return {"rate": np.linspace(0.5, 1, len(X)), "kind": pd.Series(kinds)}


def test_a_condition_goes_with_its_rows(X):
    condition = condition_of(X)
    for seed in (0, 1):
        advice = advise(damped, X, condition=condition, evaluations=4, n_steps=[4], max_epochs=3, random_state=seed)
        best = advice.best_estimator_
        assert best.condition_["kind"].categories.tolist() == ["rare", "common"]
        exact = X * np.exp(-condition["rate"] * np.where(condition["kind"] == "common", 2, 1))[:, None]
        np.testing.assert_allclose(best.reference(X, condition=condition), exact, rtol=1e-4)
        row = next(row for row in advice.report if row.solver == advice.best_solver_)
        assert row.mape < 0.2
        assert next(row for row in advice.report if row.solver.startswith("dopri5")).mape < 1e-2


def test_the_condition_of_a_fitted_estimator_is_its_own(X):
    kind = np.where(np.arange(len(X)) % 2, "up", "down")
    shared = {"solver": "euler", "n_steps": 1, "validation_fraction": None, "max_epochs": 1, "random_state": 0}
    ode = NeuralODERegressor(**shared).fit(X, X[:, 0], condition={"kind": kind})
    advice = advise(ode, X, condition={"kind": "up"}, evaluations=2, n_steps=[1], max_epochs=1, random_state=0)
    up = advice.best_estimator_.reference(X, condition={"kind": "up"})
    np.testing.assert_allclose(up, ode.predict(X, condition={"kind": "up"}), rtol=1e-3)
    with pytest.raises(ConditionError, match="must have 'kind', as in fit of this NeuralODERegressor, got None"):
        advise(ode, X, evaluations=2)
    with pytest.raises(ConditionError, match="'left', not among the 2 categories"):
        advise(HypersolverRegressor(ode), X, condition={"kind": "left"}, evaluations=2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rate": [1.0, 2.0]}, "has 2 entries for"),
        ({"rate": np.nan}, "holds nan or infinity"),
        ({"kind": {"a", "b"}}, "which is neither a number, a string nor an array"),
        ({"z": 1.0}, "must name the field's keyword arguments"),
    ],
)
def test_a_wrong_condition_is_named_before_any_fit(X, changes, message):
    with pytest.raises(ConditionError, match=message):
        advise(damped, X, condition=condition_of(X) | changes, evaluations=2)
