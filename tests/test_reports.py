"""A report says in every format what its rows hold."""

import json
import math
from dataclasses import replace

import numpy as np
from small_hypersolvers import make_classifier

from sklearn_hyper import HypersolverRegressor, metrics
from sklearn_hyper.datasets import VanDerPol
from sklearn_hyper.reports import SolverReport, SolverRow

EULER = SolverRow("euler K=2", 0.5, 0.2, 0.1, 0.1, 0.3, 0.4, 2, 2.5e6, 1.5, 8.0, 1.0, 1000, 4000)
HYPER = replace(EULER, solver="hyper-euler K=2", accuracy=0.961, mape=0.0123, macs=2.75e6, ms=12.3, speed_up=41.6)
BENT = replace(HYPER, solver="bent", parameters=3000, bytes=12000)


def test_report_prints_one_aligned_line_a_solver_then_its_notes():
    head, euler, hyper, note = str(SolverReport([EULER, HYPER], ["a note"])).split("\n")
    assert " ".join(head.split()) == "solver accuracy MAPE rel. L2 p50 p99 max NFE MACs ms/batch speed-up O_r"
    assert len(head) == len(euler) == len(hyper)
    assert " ".join(hyper.split()) == "hyper-euler K=2 0.961 0.012 0.10 0.10 0.30 0.40 2 2.75M 12 42x 1.00"
    assert note == "a note"
    assert repr(SolverReport([EULER])) == str(SolverReport([EULER]))


def test_report_without_accuracies_has_no_such_column():
    report = SolverReport([replace(EULER, accuracy=math.nan)])
    assert "accuracy" not in str(report) and "accuracy" not in report._repr_html_()
    mixed = SolverReport([replace(EULER, accuracy=math.nan), HYPER])
    assert "accuracy" in str(mixed) and "nan" in str(mixed)


def test_report_shows_parameters_and_bytes_where_they_differ():
    assert "parameters" not in str(SolverReport([EULER, HYPER]))
    head, _, bent, *_ = str(SolverReport([EULER, BENT])).split("\n")
    assert head.split()[-2:] == ["parameters", "bytes"] and bent.split()[-2:] == ["3.00k", "12.00k"]


def test_report_is_safe_html():
    text = SolverReport([replace(EULER, solver="<b>")], ["a < b"])._repr_html_()
    assert "<td>&lt;b&gt;</td>" in text and "<p>a &lt; b</p>" in text
    assert text.count("<tr>") == 2 and text.count("<th>") == text.count("<td>") == 12


def test_report_converts_to_dict_and_frame():
    report = SolverReport([EULER, HYPER])
    values = report.to_dict()
    assert list(values) == ["euler K=2", "hyper-euler K=2"]
    assert values["hyper-euler K=2"]["mape"] == 0.0123 and "solver" not in values["euler K=2"]
    assert json.loads(json.dumps(values)) == values
    frame = report.to_frame()
    assert frame.index.name == "solver" and frame.loc["euler K=2", "nfe"] == 2
    assert frame.to_dict("index") == values


def test_reports_add_up_keeping_the_first_of_equal_names():
    later = replace(EULER, ms=99.0)
    total = SolverReport([EULER], ["a", "b"]) + SolverReport([later, HYPER], ["b", "c"])
    assert list(total) == [EULER, HYPER] and total.notes == ["a", "b", "c"]
    assert len(total) == 2 and total[1] == HYPER and total[-1] is total.rows[-1]


def test_reports_add_up_in_the_order_of_first_appearance():
    names = [row.solver for row in SolverReport([EULER, HYPER]) + SolverReport([EULER])]
    assert names == ["euler K=2", "hyper-euler K=2"]


def test_report_of_a_field_without_macs_says_why_they_are_nan():
    X = np.random.default_rng(0).uniform(-1, 1, (40, 2))
    analytic = (
        HypersolverRegressor(VanDerPol(), base_solver="euler", n_steps=2, max_epochs=1, random_state=0)
        .fit(X)
        .solver_report(X)
    )
    assert all(math.isnan(row.macs) for row in analytic)
    assert any("MACs are nan: the field holds no matrix product" in note for note in analytic.notes)
    learned = make_classifier(max_epochs=1).fit(X).solver_report(X)
    assert all(row.macs > 0 for row in learned) and not any("nan" in note for note in learned.notes)


def test_reports_are_found_among_the_metrics_too():
    assert (metrics.SolverReport, metrics.SolverRow) == (SolverReport, SolverRow)
