"""The Pareto picture shows what the reports say, and keeps the kinds of solvers apart."""

import builtins
import math
from dataclasses import replace

import numpy as np
import pytest
from matplotlib import pyplot
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from small_hypersolvers import Swirl, make_classifier, make_regressor

from sklearn_hyper import HypersolverRegressor
from sklearn_hyper.evaluation import ParetoDisplay
from sklearn_hyper.metrics import SolverReport, SolverRow

ROW = SolverRow("", 0.9, 0.1, 0.2, 0.2, 0.3, 0.4, 1, 1e3, 1.0, 10.0)
REPORT = SolverReport(
    [
        replace(ROW, solver="dopri5 0.0001", accuracy=0.96, mape=1e-4, l2_mean=2e-4, nfe=50, macs=5e4, ms=10.0),
        replace(ROW, solver="euler K=2", accuracy=0.90, mape=1e-1, l2_mean=2e-1, nfe=2, macs=2e3, ms=0.5),
        replace(ROW, solver="heun K=2", accuracy=0.95, mape=2e-1, l2_mean=2e-2, nfe=4, macs=4e3, ms=1.0),
        replace(ROW, solver="hyper-euler K=2", accuracy=0.97, mape=1e-2, l2_mean=2e-3, nfe=2, macs=3e3, ms=0.7),
    ]
)


def offsets(display, kind):
    return np.asarray(display.points_[kind].get_offsets()).tolist()


@pytest.mark.parametrize(
    ("cost", "error", "hyper", "front"),
    [
        ("nfe", "mape", [2, 1e-2], [[2, 1e-2], [50, 1e-4]]),
        ("macs", "relative_l2", [3e3, 2e-3], [[2e3, 2e-1], [3e3, 2e-3], [5e4, 2e-4]]),
        ("ms", "accuracy_loss", [0.7, -1.0], [[0.5, 6.0], [0.7, -1.0]]),
    ],
)
def test_points_and_front_are_the_reports(cost, error, hyper, front):
    display = ParetoDisplay(REPORT, cost=cost, error=error).plot()
    assert np.allclose(offsets(display, "hypersolver"), [hyper])
    assert np.allclose(display.front_.get_xydata(), front)
    assert [text.get_text() for text in display.texts_] == [row.solver for row in REPORT]
    assert display.kinds == ["dopri5", "base solver", "base solver", "hypersolver"]
    scale = "linear" if error == "accuracy_loss" else "log"
    assert (display.ax_.get_xscale(), display.ax_.get_yscale()) == ("log", scale)


def test_kinds_differ_in_shape_and_stand_in_the_legend():
    display = ParetoDisplay(REPORT).plot()
    shapes = [points.get_paths()[0].vertices for points in display.points_.values()]
    assert len({shape.tobytes() for shape in shapes}) == 3
    labels = [text.get_text() for text in display.ax_.get_legend().get_texts()]
    assert labels == ["Pareto front", "dopri5", "base solver", "hypersolver"]
    assert "NFE" in display.ax_.get_xlabel() and "MAPE" in display.ax_.get_ylabel()


def test_plot_draws_on_the_axes_given_and_leaves_names_out_on_request():
    figure, ax = pyplot.subplots()
    display = ParetoDisplay(REPORT).plot(ax=ax, annotate=False)
    assert display.ax_ is ax and display.figure_ is figure and display.texts_ == []


def test_an_exact_solver_keeps_its_place_on_the_axis():
    exact = SolverReport([*REPORT, replace(ROW, solver="hyper-rk4 K=4", mape=0.0, nfe=16)])
    display = ParetoDisplay(exact).plot()
    assert display.ax_.get_yscale() == "symlog"
    assert [16, 0] in offsets(display, "hypersolver")


def test_solvers_that_are_not_finite_are_named_and_left_out():
    report = SolverReport([*REPORT, replace(ROW, solver="euler K=1", mape=math.inf, nfe=1)])
    with pytest.warns(UserWarning, match="^euler K=1: not drawn, for nfe or mape is not finite"):
        display = ParetoDisplay(report).plot()
    assert np.allclose(display.front_.get_xydata(), [[2, 1e-2], [50, 1e-4]])
    assert len(display.texts_) == len(REPORT)


def test_a_field_without_macs_is_sent_to_another_cost():
    report = SolverReport(replace(row, macs=math.nan) for row in REPORT)
    with pytest.raises(ValueError, match=r"no solver has a finite macs and mape.*use cost='nfe'"):
        ParetoDisplay(report, cost="macs").plot()


def test_accuracy_loss_needs_accuracies_and_dopri5():
    for rows in (REPORT[1:], [replace(row, accuracy=math.nan) for row in REPORT]):
        with pytest.raises(ValueError, match=r"needs a report with dopri5 and accuracies.*solver_report\(X, y\)"):
            ParetoDisplay(SolverReport(rows), error="accuracy_loss").plot()


@pytest.mark.parametrize(("name", "value"), [("cost", "flops"), ("error", "mse")])
def test_unknown_axes_are_refused_before_any_work(name, value):
    with pytest.raises(ValueError, match=f"{name} must be one of .*, got '{value}'"):
        ParetoDisplay(REPORT, **{name: value})
    with pytest.raises(ValueError, match=f"{name} must be one of .*, got '{value}'"):
        ParetoDisplay.from_estimators([None], None, **{name: value})


def test_missing_matplotlib_names_the_extra_before_any_work(monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    for draw in (ParetoDisplay(REPORT).plot, lambda: ParetoDisplay.from_estimators([None], None)):
        with pytest.raises(ImportError, match=r'pip install "sklearn_hyper\[plots\]"'):
            draw()


# --- measured -----------------------------------------------------------------------------------------------------


def test_a_list_of_estimators_brings_base_solvers_and_dopri5(regressor, X):
    heun = make_regressor(base_solver="heun", n_steps=1).fit(X)
    display = ParetoDisplay.from_estimators([regressor, heun], X, error="relative_l2", tolerance=1e-3)
    names = ["dopri5 0.001", "euler K=2", "heun K=1", "hyper-euler K=2", "hyper-heun K=1"]
    assert display.solvers == names
    assert display.costs.tolist()[1:] == [2, 2, 2, 2] and display.costs[0] > 2
    measured = heun.solver_report(X, tolerance=1e-3).to_dict()
    assert display.errors[4] == pytest.approx(measured["hyper-heun K=1"]["l2_mean"])
    assert display.report.to_dict()["heun K=1"]["macs"] == measured["heun K=1"]["macs"]


def test_hypersolvers_of_one_base_solver_are_all_drawn(regressor, X):
    display = ParetoDisplay.from_estimators([regressor, regressor.with_solver()], X)
    assert display.solvers[2:] == ["hyper-euler K=2", "hyper-euler K=2 (2)"]
    assert display.kinds[2:] == ["hypersolver"] * 2


def test_a_dict_names_the_hypersolvers_and_pipelines_are_seen_through(classifier, X):
    pipeline = make_pipeline(FunctionTransformer(), classifier)
    y = classifier.predict(X)
    display = ParetoDisplay.from_estimators({"small": classifier, "piped": pipeline}, X, y, error="accuracy_loss")
    assert display.solvers[2:] == ["small", "piped"]
    assert display.kinds == ["dopri5", "base solver", "hypersolver", "hypersolver"]
    report = classifier.solver_report(X, y).to_dict()
    loss = 100 * (report["dopri5 0.0001"]["accuracy"] - report["hyper-euler K=2"]["accuracy"])
    assert np.allclose(display.errors[2:], loss)


def test_labels_of_a_regressor_are_ignored(regressor, X):
    ParetoDisplay.from_estimators([regressor], X, np.zeros(len(X)))


def test_different_neural_odes_do_not_share_a_front(regressor, X):
    other = Swirl()
    other.weight.data *= 0.5
    slower = HypersolverRegressor(other, base_solver="euler", n_steps=2, max_epochs=1, random_state=0).fit(X)
    with pytest.raises(ValueError, match=r"estimators\[0\] and estimators\[1\] hypersolve different Neural ODEs"):
        ParetoDisplay.from_estimators([regressor, slower], X)


def test_accuracy_loss_without_labels_is_refused(classifier, X):
    with pytest.raises(ValueError, match="needs labels: pass y"):
        ParetoDisplay.from_estimators([classifier], X, error="accuracy_loss")


def test_a_name_that_a_base_solver_has_is_refused(regressor, X):
    with pytest.raises(ValueError, match="euler K=2: the name of a hypersolver is that of a base solver"):
        ParetoDisplay.from_estimators({"euler K=2": regressor}, X)


@pytest.mark.parametrize(
    ("estimators", "error", "message"),
    [
        ([], ValueError, "estimators is empty"),
        (make_classifier(), TypeError, "must be a list or dict of fitted hypersolvers, got HypersolverClassifier"),
        ([FunctionTransformer()], TypeError, "is needed, got FunctionTransformer"),
    ],
)
def test_what_is_no_collection_of_hypersolvers_is_refused(X, estimators, error, message):
    with pytest.raises(error, match=message):
        ParetoDisplay.from_estimators(estimators, X)


def test_labels_of_neighbours_lie_apart_and_inside_the_axes():
    close = [replace(ROW, solver=f"solver {i}", l2_mean=0.04 * 1.03**i, nfe=6, macs=2e3) for i in range(2)]
    report = SolverReport([*REPORT, *close])
    display = ParetoDisplay(report, cost="nfe", error="relative_l2").plot(ax=pyplot.subplots()[1])
    boxes = [text.get_window_extent() for text in display.texts_]
    axes = display.ax_.bbox
    assert not any(one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[:i])
    assert all(axes.x0 <= box.x0 and box.x1 <= axes.x1 for box in boxes)
