"""A fit of corrections, call by call: new ones and warm ones, for one task and for several, with units of their own."""

import copy
import math

import numpy as np
import pytest
import torch
from small_tasks import Turn, fit_settings, rows, turn_task

from sklearn_hyper import MLPCorrection, NeuralODE, WeightCorrection, alpha_family
from sklearn_hyper.hypersolvers import Task
from sklearn_hyper.modules.corrections import NetInputs, ScaleSample
from sklearn_hyper.numerics import compute_residuals, resolve_base_solver
from sklearn_hyper.training import correction_fit
from sklearn_hyper.training.coefficients import classical_starts
from sklearn_hyper.training.correction_fit import CorrectionFit, net_inputs
from sklearn_hyper.training.references import solve_ends

EULER = resolve_base_solver("euler")


def fit(tasks, settings, method=EULER, **how):
    return CorrectionFit(tasks, method, settings, **how).prepare().run().product()


def weights(correction):
    return {name: value.clone() for name, value in correction.state_dict().items()}


def same(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


# ---------------------------------------------------------------------- three calls
def test_a_fit_is_better_than_its_base_method_on_held_out_rows():
    (fitted,) = fit([turn_task()], fit_settings())
    row = fitted.errors[2]
    assert fitted.valid_loss < 0.9 and row["mean"] < row["base_mean"] and row["max"] <= row["base_max"]
    assert [line["stage"] for line in fitted.history] == ["residual"] * 4 + ["terminal"] * 6
    assert fitted.fitted_range == pytest.approx((1 / 3, 0.75)) and not fitted.interrupted
    assert 0 < fitted.delta[2]["mean"] <= fitted.delta[2]["max"]
    assert list(fitted.relative_errors) == ["the states at the end of t_span"]


def test_before_it_runs_a_correction_is_the_base_method():
    fit = CorrectionFit([turn_task()], EULER, fit_settings()).prepare()
    assert float(fit.errors[0].guard(fit.corrections[0])[0]) == pytest.approx(1, rel=1e-12)
    assert len(fit.sets[0].train) == 54 and len(fit.sets[0].valid) == 6


def test_prepared_and_run_again_it_gives_the_same():
    fit = CorrectionFit([turn_task()], EULER, fit_settings(max_epochs=4))
    (first,) = fit.prepare().run().product()
    kept = weights(first.correction)
    (again,) = fit.product()
    assert again.correction is first.correction and again.errors == first.errors
    (second,) = fit.prepare().run().product()
    assert second.correction is not first.correction
    assert same(weights(second.correction), kept) and same(weights(first.correction), kept)
    assert second.errors == first.errors and second.delta == first.delta


def test_the_method_may_be_prepared_anew_with_what_it_has_made():
    """What refits a correction while its Neural ODE trains: units of the field as it is, weights as they were."""
    task = turn_task()
    fit = CorrectionFit([task], EULER, fit_settings())
    (first,) = fit.prepare().run().product()
    moved = Task(NeuralODE(Turn(1.1)).eval().requires_grad_(False), task.x)
    fit.tasks, fit.warm, fit.refit_units = [moved], fit.corrections, True
    fit.prepare()
    assert not same(weights(fit.corrections[0].units), weights(first.correction.units))
    assert float(fit.errors[0].guard(fit.corrections[0])[0]) < 0.9  # before any training
    (second,) = fit.run().product()
    assert second.errors[2]["mean"] < second.errors[2]["base_mean"]


def test_same_seed_same_correction():
    one, other, another = (fit([turn_task()], fit_settings(max_epochs=3, random_state=seed))[0] for seed in (0, 0, 1))
    assert same(weights(one.correction), weights(other.correction))
    assert not same(weights(one.correction), weights(another.correction))


# ---------------------------------------------------------------------- warm starts
def test_a_warm_start_leaves_the_earlier_correction_as_it_was():
    (first,) = fit([turn_task()], fit_settings())
    before = weights(first.correction)
    (second,) = fit([turn_task()], fit_settings(max_epochs=2), warm=[first.correction])
    assert same(weights(first.correction), before) and not same(weights(second.correction), before)
    assert second.valid_loss <= first.valid_loss * 1.05
    assert same(weights(second.correction.units), weights(first.correction.units))


def test_units_are_taken_anew_where_that_is_asked_for():
    (first,) = fit([turn_task()], fit_settings())
    (kept,) = fit([turn_task(speed=1.5)], fit_settings(max_epochs=1), warm=[first.correction])
    (anew,) = fit([turn_task(speed=1.5)], fit_settings(max_epochs=1), warm=[first.correction], refit_units=True)
    assert same(weights(kept.correction.units), weights(first.correction.units))
    (scale,), (old,) = (list(c.correction.units.buffers()) for c in (anew, first))
    # Euler's residual of z' = a f is a^2 as large.
    torch.testing.assert_close(scale, 1.5**2 * old, rtol=0.3, atol=0)
    assert anew.correction.units.floor > 1.3 * first.correction.units.floor


def test_as_many_warm_corrections_as_tasks():
    with pytest.raises(ValueError, match="warm holds 1 corrections for 2 tasks; pass one a task"):
        CorrectionFit([turn_task(), turn_task(speed=2.0)], EULER, fit_settings(), warm=[None])


# ---------------------------------------------------------------------- several tasks
def test_tasks_share_weights_and_have_units_of_their_own():
    slow, fast = fit([turn_task(speed=0.7), turn_task(speed=1.4, seed=1)], fit_settings())
    assert slow.correction.net is not fast.correction.net
    shared = {id(parameter) for parameter in slow.correction.parameters()}
    assert shared == {id(parameter) for parameter in fast.correction.parameters()} and shared
    assert slow.correction.units.floor < 0.7 * fast.correction.units.floor
    assert slow.net is fast.net and slow.history == fast.history
    for fitted in (slow, fast):
        assert fitted.errors[2]["mean"] < fitted.errors[2]["base_mean"]


def test_a_task_beside_itself_is_fitted_as_well_as_alone():
    (alone,) = fit([turn_task()], fit_settings())
    one, other = fit([turn_task(), turn_task()], fit_settings())
    assert max(one.errors[2]["mean"], other.errors[2]["mean"]) < 1.2 * alone.errors[2]["mean"]


# ---------------------------------------------------------------------- what is kept
def test_a_correction_that_helps_nowhere_is_not_kept():
    (fitted,) = fit([turn_task()], fit_settings(lr=1e-300, max_epochs=1, finetune=None))
    assert fitted.correction is None and fitted.valid_loss == pytest.approx(1, rel=1e-6)
    assert fitted.errors[2]["mean"] == fitted.errors[2]["base_mean"] and fitted.delta[2]["max"] > 0


def test_known_ends_are_not_solved_for_again(solves):
    task = turn_task()
    settings = fit_settings(base_solver="nonstationary", n_steps=2)
    ends = solve_ends(task, settings)
    CorrectionFit([task], classical_starts(2)[0], settings, ends=ends).prepare()
    assert [(solve.n_rows, solve.n_times) for solve in solves] == [(60, 2), (60, 3)]


def test_held_out_rows_are_at_most_256_and_at_least_one():
    fit = CorrectionFit([turn_task(5)], EULER, fit_settings(validation_fraction=0.01)).prepare()
    assert (len(fit.sets[0].train), len(fit.sets[0].valid)) == (4, 1)
    fit = CorrectionFit([turn_task(600)], EULER, fit_settings(validation_fraction=0.5)).prepare()
    assert (len(fit.sets[0].train), len(fit.sets[0].valid)) == (300, 256)


def test_delta_is_the_largest_miss_in_units_of_the_methods_order():
    """Without a correction it is the largest residual; start-up steps of lower order count for more by their order's eps."""
    task = turn_task()
    fit = CorrectionFit(
        [task],
        resolve_base_solver("ab2"),
        fit_settings(base_solver="ab2", n_steps=4, lr=1e-300, max_epochs=1, finetune=None),
    )
    (fitted,) = fit.prepare().run().product()
    assert fitted.correction is None
    valid, grid = fit.sets[0].valid, (0.0, 0.25, 0.5, 0.75, 1.0)
    with torch.no_grad():
        residuals = compute_residuals(task.neural_ode.vector_field, valid.on_grid(grid), grid, "ab2")
    sizes = [r.target.norm(dim=1) * r.eps ** (r.order - 2) for r in residuals]
    assert [r.order for r in residuals] == [1, 2, 2, 2]
    assert fitted.delta[4]["max"] == pytest.approx(float(torch.cat(sizes).max()), rel=1e-3)


# ---------------------------------------------------------------------- nets and their scales
def sample_of(task, base_solver, eps=0.5):
    z = task.x
    states = torch.stack([z, z + eps * task.neural_ode.vector_field(torch.tensor(0.0), z)])
    return ScaleSample(
        compute_residuals(task.neural_ode.vector_field, states, (0.0, eps), base_solver), None, (0.0, 1.0)
    )


def build(tasks, samples, method):
    """The corrections that a fit of these tasks starts from."""
    inputs = net_inputs(tasks[0], samples[0], method, fit_settings())
    return MLPCorrection(hidden=4).corrections([task.neural_ode for task in tasks], inputs, samples)


def test_new_corrections_start_at_zero_and_share_one_net():
    tasks = [turn_task(), turn_task(speed=2.0)]
    samples = [sample_of(task, "heun") for task in tasks]
    method = resolve_base_solver("heun")
    one, other = build(tasks, samples, method)
    for correction, sample in zip((one, other), samples, strict=True):
        (r,) = sample.residuals
        assert correction(r.eps, r.time(), r.z, r.stages, None, r.kind).abs().max() == 0
    assert {id(p) for p in one.parameters()} == {id(p) for p in other.parameters()}


def test_a_family_of_one_covers_itself_alone():
    midpoint, task = resolve_base_solver("midpoint"), turn_task()
    sample = sample_of(task, midpoint)
    spec = MLPCorrection(hidden=4, tableaus=["midpoint"])
    family = [sample.residuals[0]._replace(kind=member.main_kind) for member in spec.method_family(midpoint)]
    net = spec.build(NetInputs(rows(), None, midpoint.kinds, math.nan)).double()
    net = net.with_scales(ScaleSample(family, None, (0.0, 1.0)))
    assert net.covers(midpoint)
    assert not net.covers(resolve_base_solver(alpha_family(1.0)))


def test_scales_of_another_task_leave_the_net_as_it_was():
    one, other = sample_of(turn_task(), "euler"), sample_of(turn_task(speed=3.0), "euler")
    (correction,) = build([turn_task()], [one], EULER)
    before = copy.deepcopy(correction.net.state_dict())
    moved = correction.net.with_scales(other)
    assert same(weights(correction.net), before) and not same(weights(moved), before)
    assert {id(p) for p in moved.parameters()} == {id(p) for p in correction.net.parameters()}
    np.testing.assert_array_equal(list(before), list(moved.state_dict()))


def test_targets_are_used_up_by_a_run():
    fit = CorrectionFit([turn_task()], EULER, fit_settings(max_epochs=2))
    with pytest.raises(RuntimeError, match=r"call prepare\(\) before run\(\)"):
        fit.run()
    fit.prepare().run()
    with pytest.raises(RuntimeError, match=r"call prepare\(\) before run\(\)"):
        fit.run()


def test_a_large_graph_is_not_kept_and_the_fit_is_the_same(monkeypatch):
    settings = fit_settings(correction=WeightCorrection(), max_epochs=3)
    kept = fit([turn_task()], settings)[0].correction
    monkeypatch.setattr(correction_fit, "_LARGEST_GRAPH", 0)
    recomputed = fit([turn_task()], settings)[0].correction
    assert recomputed.recomputes and not kept.recomputes
    torch.testing.assert_close(weights(recomputed), weights(kept))
