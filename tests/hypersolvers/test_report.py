"""Solvers measured side by side: errors, evaluations and multiply-accumulates; what is counted is exact."""

import math

import numpy as np
import pytest
import torch
from small_hypersolvers import ToLogits
from small_tasks import fit_settings, rows, turn_task

from sklearn_hyper import MLPCorrection, NeuralODE, WeightCorrection
from sklearn_hyper.hypersolvers import Task, fit_hypersolver
from sklearn_hyper.metrics import relative_l2
from sklearn_hyper.numerics import count_macs
from sklearn_hyper.numerics.row_errors import UndefinedOutputError


@pytest.fixture(scope="module")
def fast():
    return fit_hypersolver(turn_task(), fit_settings(max_epochs=20))


@pytest.fixture(scope="module")
def x():
    return rows(40, seed=3)


def test_rows_are_dopri5_the_base_method_and_the_hypersolver(fast, x):
    report = fast.report(x, tolerance=1e-5)
    assert [row.solver for row in report] == ["dopri5 1e-05", "euler K=2", "hyper-euler K=2"]
    assert [row.nfe for row in report.rows[1:]] == [2, 2] and report[0].nfe > 10
    assert report[2].l2_mean < report[1].l2_mean and report[0].speed_up == 1
    assert all(row.ms > 0 for row in report)


def test_errors_are_those_of_terminal_states_against_the_reference(fast, x):
    reference = fast.reference(x)
    errors = relative_l2(reference.numpy(), fast.solve(x).numpy())
    row = fast.report(x, reference)[-1]
    assert (row.l2_mean, row.l2_max) == pytest.approx((errors.mean(), errors.max()))
    assert (row.l2_p50, row.l2_p99) == pytest.approx(tuple(np.quantile(errors, [0.5, 0.99])))
    assert fast.report(x)[-1].l2_mean == row.l2_mean


@pytest.mark.parametrize("base_solver", ["euler", "ab2", "heun"])
def test_macs_are_those_of_the_solve_as_it_runs(x, base_solver):
    fast = fit_hypersolver(turn_task(), fit_settings(base_solver=base_solver, n_steps=3, max_epochs=2))
    _, base, own = fast.report(x)
    assert own.macs == count_macs(fast.module.terminal_state, x[:1])
    assert base.macs == base.nfe * 4 and math.isnan(base.relative_overhead)  # a matrix of 2 x 2
    assert own.relative_overhead == pytest.approx(own.macs / base.macs)


def test_a_field_without_products_has_no_macs():
    fast = fit_hypersolver(Task(NeuralODE(lambda t, z: -(z**3)).eval(), rows(40)), fit_settings(max_epochs=2))
    report = fast.report(rows(10))
    assert all(math.isnan(row.macs) for row in report)
    assert any("MACs are nan: the field holds no matrix product" in note for note in report.notes)


def test_batches_change_times_and_nothing_else(fast, x):
    whole, parts = fast.report(x, batch_size=40), fast.report(x, batch_size=7)
    for one, other in zip(whole.rows[1:], parts.rows[1:], strict=True):
        assert (one.nfe, one.macs) == (other.nfe, other.macs) and one.l2_mean == pytest.approx(other.l2_mean, rel=1e-9)
    assert "milliseconds for a batch of 7." in parts.notes[0]


def test_without_a_correction_there_is_no_third_row(fast, x):
    assert [row.solver for row in fast.without_correction().report(x)] == ["dopri5 0.0001", "euler K=2"]


def test_accuracies_are_of_labels_as_indices(x):
    ode = NeuralODE(turn_task().neural_ode.vector_field, output_map=ToLogits()).eval()
    fast = fit_hypersolver(Task(ode, rows(40)), fit_settings(max_epochs=2))
    labels = fast.predict(x).argmax(dim=1).numpy()
    report = fast.report(x, labels=labels)
    assert report[-1].accuracy == 1
    base = fast.without_correction().predict(x).argmax(dim=1).numpy()
    assert report[1].accuracy == np.mean(base == labels)
    flipped = fast.report(x, labels=labels, to_labels=lambda outputs: 2 - outputs.argmax(axis=1))
    assert flipped[-1].accuracy == np.mean(2 - labels == labels)
    assert all(math.isnan(row.accuracy) for row in fast.report(x))


def test_outputs_that_are_not_numbers_are_named(x):
    ode = NeuralODE(lambda t, z: z, output_map=lambda z: torch.log(20 - z)).eval()
    fast = fit_hypersolver(Task(ode, rows(40)), fit_settings(max_epochs=2))
    bad = x.clone()
    bad[[4, 31]] = 9.0
    with pytest.raises(UndefinedOutputError, match=r"not finite for 2 of 40 rows of X \(rows 4, 31\)"):
        fast.report(bad)


def test_what_a_solver_keeps_is_counted():
    """Merged weights are one more field for every evaluation, and a net is its own weights."""
    x, field = rows(20), 4  # the swirl has a matrix of two by two, in float64
    for correction, n_more in ((WeightCorrection(), 3 * field), (MLPCorrection(hidden=2, depth=1, gate=False), None)):
        settings = fit_settings(base_solver="euler", n_steps=3, correction=correction)
        dopri5, base, ours = fit_hypersolver(turn_task(), settings).report(x)
        assert (dopri5.parameters, dopri5.bytes) == (base.parameters, base.bytes) == (field, 8 * field)
        assert ours.bytes == 8 * ours.parameters and ours.parameters > field
        assert n_more is None or ours.parameters == field + n_more
