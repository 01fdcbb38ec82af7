"""The bound around every net: a task's units, a cap on its share of a step, and the order that survives it."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import ANY_MESH, BASE_SOLVERS, FORCED, LOGISTIC, kind_of, largest, log_slope, named
from small_corrections import (
    DOUBLE,
    Emit,
    apply,
    kinds_of,
    make_correction,
    make_steps,
    plan_of,
    randomize,
)

from sklearn_hyper import MLPCorrection, alpha_family
from sklearn_hyper.modules import BoundedCorrection, NetInputs, Units
from sklearn_hyper.modules.corrections import build_net, fit_units
from sklearn_hyper.modules.corrections.bounded import largest_stage_norm
from sklearn_hyper.modules.corrections.contract import UserNet
from sklearn_hyper.numerics import compute_residuals, hypersolve, resolve_base_solver

SCALE = (1.0, 2.0)


def bounded(factor=1.0, order=2, cap=0.5, floor=0.1):
    """Fitted for steps of one and of two stages."""
    kinds = [kind_of(order, 1), kind_of(order, 2)]
    units = Units(kinds, [torch.tensor(SCALE, dtype=DOUBLE)] * 2, cap=cap, floor=floor)
    return BoundedCorrection(Emit(factor), units)


# --- the bound ------------------------------------------------------------------------------------------------------


states = st.lists(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=2), min_size=1, max_size=4)


@given(states, st.floats(1e-3, 10), st.sampled_from([-1, 1]), st.integers(1, 5))
def test_no_state_takes_a_correction_past_its_share_of_the_step(rows, eps, sign, order):
    z = torch.tensor(rows, dtype=DOUBLE)
    stages = [torch.sin(z), 1e-3 * z]
    g = bounded(1e3, order=order)
    step = (eps ** (order + 1) * g(sign * eps, torch.tensor(0.0), z, stages)).norm(dim=1)
    size = torch.stack(stages).norm(dim=2).amax(dim=0).clamp(min=0.1)
    assert (step <= 0.5 * eps * size * (1 + 1e-9)).all() and step.isfinite().all()


def test_a_wild_sample_changes_no_other(case):
    spec, shape, x = case
    steps = make_steps(shape, x=x)
    g, step = make_correction(spec, steps, x, std=0.5), steps[1]
    before = apply(g, step, x)
    z, stages = step.z.clone(), [stage.clone() for stage in step.stages]
    z[2] = 1e8
    stages[1][2] = -1e8
    after = apply(g, step._replace(z=z, stages=stages), x)
    others = [0, 1, 3, 4, 5]
    assert largest(after[others] - before[others]) < 1e-12
    assert after.isfinite().all()
    limit = g.units.cap * abs(step.eps) ** -step.order * max(stage[2].norm().item() for stage in stages)
    assert after[2].norm() <= limit * (1 + 1e-9)


def test_an_inactive_bound_is_the_identity(case):
    spec, shape, x = case
    steps = make_steps(shape, x=x)
    g = make_correction(spec, steps, x, std=0.5)
    g.units.cap = 1e9
    for step in steps:
        raw = apply(g.net, step, x) * g.units.scale(step.kind)
        assert largest(apply(g, step, x) - raw) < 1e-14 * largest(raw)


def test_the_bound_lets_the_true_residual_of_the_fitted_data_through(case):
    _, shape, x = case
    steps = make_steps(shape, x=x)
    for step in steps:
        g = BoundedCorrection(Emit(), fit_units(steps))
        out = apply(g, step._replace(z=step.target / g.units.scale(step.kind)), x)
        assert largest(out - step.target) < 1e-12 * largest(step.target)


def test_the_floor_lets_g_act_where_f_vanishes():
    z, stages = torch.ones(1, 2, dtype=DOUBLE), [torch.zeros(1, 2, dtype=DOUBLE)]
    step = 0.1**3 * bounded(1e3, floor=0.1)(0.1, torch.tensor(0.0), z, stages).norm()
    assert step.item() == pytest.approx(0.5 * 0.1 * 0.1)
    assert largest(bounded(1e3, floor=0.0)(0.1, torch.tensor(0.0), z, stages)) == 0


def test_a_field_that_needs_no_correction_still_gets_a_usable_bound():
    step = make_steps((3,), n_steps=1)[0]._replace(target=torch.zeros(6, 3, dtype=DOUBLE))
    still = step._replace(stages=[torch.zeros_like(stage) for stage in step.stages])
    for sample in (step, still):
        g = BoundedCorrection(Emit(), fit_units([sample]))
        assert torch.equal(apply(g, sample), torch.zeros_like(step.z))
        assert 0 < g.units.cap < math.inf and 0 < g.units.floor < math.inf


@pytest.mark.parametrize("eps", [0.1, -0.3])
def test_bounded_correction_is_differentiable_also_at_zero(eps):
    z = torch.tensor([[0.3, -0.2], [0.0, 0.0], [50.0, 20.0]], dtype=DOUBLE)  # inactive, zero output, active
    stages = [torch.tensor([[1.0, 2.0], [0.5, -1.0], [0.3, 0.4]], dtype=DOUBLE), torch.ones(3, 2, dtype=DOUBLE) / 7]
    g = bounded(order=1)
    inactive = torch.isclose(
        g(eps, torch.tensor(0.0), z, stages), z * torch.tensor(SCALE, dtype=DOUBLE), rtol=1e-14, atol=0
    )
    assert inactive.all(dim=1).tolist() == [True, True, False]

    def run(z, *stages):
        return g(eps, torch.tensor(0.0), z, stages)

    arguments = [tensor.clone().requires_grad_() for tensor in (z, *stages)]
    assert torch.autograd.gradcheck(run, arguments)


@pytest.mark.parametrize("cap", [0.0, -1.0, float("nan")])
def test_a_cap_that_lets_nothing_through_is_refused(cap):
    with pytest.raises(ValueError, match="cap must be positive"):
        bounded(cap=cap)


@pytest.mark.parametrize("floor", [0.1, 0.0])
def test_output_and_gradients_are_finite_where_all_is_zero(floor):
    z, stage = (torch.zeros(2, 2, dtype=DOUBLE, requires_grad=True) for _ in range(2))
    out = bounded(floor=floor)(0.1, torch.tensor(0.0), z, [stage])
    out.sum().backward()
    assert torch.equal(out, torch.zeros_like(out))
    assert z.grad.isfinite().all() and stage.grad.isfinite().all()


def test_a_cap_by_row_is_that_of_the_row_s_step():
    """With a step a row, as training mixes them."""
    z = torch.tensor([[3.0, -1.0], [0.2, 0.1], [-5.0, 2.0]], dtype=DOUBLE)
    stages, eps = [torch.sin(z), torch.cos(z)], torch.tensor([0.1, -0.2, 0.5], dtype=DOUBLE)
    g, s = bounded(10.0), torch.zeros(3, dtype=DOUBLE)
    together = g(eps, s, z, stages)
    apart = [g(e.item(), torch.tensor(0.0), z[[i]], [r[[i]] for r in stages]) for i, e in enumerate(eps)]
    torch.testing.assert_close(together, torch.cat(apart), rtol=1e-14, atol=0)


def test_the_largest_stage_of_every_sample_counts():
    stages = [torch.tensor([[3.0, 4.0], [0.0, 1.0]]), torch.tensor([[0.0, 1.0], [6.0, 8.0]])]
    assert largest_stage_norm(stages).tolist() == [[5.0], [10.0]]
    assert largest_stage_norm(stages[:1]).tolist() == [[5.0], [1.0]]


# --- units ----------------------------------------------------------------------------------------------------------


def test_scales_are_the_rms_of_the_targets_of_each_kind():
    """By feature; steps of one family share a scale, those of another have their own."""
    steps = make_steps((3,), "ab3", n_steps=5)
    units = fit_units(steps)
    assert units.kinds == kinds_of(steps) and len(units.kinds) == 2
    for kind in units.kinds:
        targets = torch.cat([step.target for step in steps if step.kind == kind])
        torch.testing.assert_close(units.scale(kind), targets.pow(2).mean(dim=0).sqrt(), rtol=1e-12, atol=0)
    assert largest(units.scale(units.kinds[0]) - units.scale(units.kinds[1])) > 1e-3


def test_scales_of_images_are_by_channel():
    steps = make_steps((2, 4, 5))
    expected = torch.cat([step.target for step in steps]).pow(2).mean(dim=(0, 2, 3)).sqrt()
    scale = fit_units(steps).scale(steps[0].kind)
    assert scale.shape == (2, 1, 1)
    torch.testing.assert_close(scale.flatten(), expected, rtol=1e-12, atol=0)


def test_cap_and_floor_are_those_of_the_steps():
    """Twice the largest share that a true residual takes of its step; a tenth of the RMS of the stages."""
    steps = make_steps((3,), "ab2")
    units = fit_units(steps)
    norms = torch.cat([torch.stack(step.stages).norm(dim=2).amax(dim=0) for step in steps])
    assert units.floor == pytest.approx(0.1 * norms.pow(2).mean().sqrt().item(), rel=1e-12)
    shares = [
        (step.target.norm(dim=1) / largest_stage_norm(step.stages)[:, 0].clamp(min=units.floor)).max().item()
        * abs(step.eps) ** step.order
        for step in steps
    ]
    assert units.cap == pytest.approx(2 * max(shares), rel=1e-12)


@pytest.mark.parametrize("size", [1e-15, 1e15])
def test_units_follow_the_units_of_the_states(size):
    steps = make_steps((3,))
    ours, theirs = (fit_units([step.each(lambda t, k=k: (k * t).float()) for step in steps]) for k in (1.0, size))
    torch.testing.assert_close(theirs.scale(steps[0].kind), ours.scale(steps[0].kind) * size, rtol=1e-4, atol=0)
    assert theirs.floor == pytest.approx(size * ours.floor, rel=1e-4) and theirs.cap == pytest.approx(
        ours.cap, rel=1e-4
    )


def test_a_kind_runs_with_the_scale_of_its_family():
    """Whatever the nodes: that is what swapping one base solver for another needs."""
    kinds = resolve_base_solver("ab2").kinds
    units = Units(kinds, [torch.tensor([3.0]), torch.tensor([5.0])], cap=0.5, floor=0.1)
    assert [units.scale(kind).item() for kind in kinds] == [3.0, 5.0]
    assert units.scale(resolve_base_solver("heun").main_kind).item() == 5.0
    assert units.scale(resolve_base_solver("euler").main_kind).item() == 3.0


def test_a_foreign_kind_is_refused_with_those_that_are_known():
    g = BoundedCorrection(Emit(), Units(resolve_base_solver("ab2").kinds, [torch.ones(2)] * 2, cap=0.5, floor=0.1))
    message = (
        r"the correction is fitted for steps of order 1 with 1 stages, order 2 with 2 stages; "
        r"it cannot run in a step of order 4 with 4 stages"
    )
    foreign = resolve_base_solver("rk4").main_kind
    with pytest.raises(ValueError, match=message):
        g.units.scale(foreign)
    with pytest.raises(ValueError, match=message):
        hypersolve(LOGISTIC.f, LOGISTIC.z0, (0.0, 1.0), 2, "rk4", g)
    with pytest.raises(ValueError, match=message):
        g.fold([plan_of(make_steps((2,), "rk4")[0])])


def test_a_missing_kind_is_the_fitted_one_with_so_many_stages():
    steps = make_steps((3,), "ab2")
    g = make_correction(MLPCorrection(hidden=6), steps, std=0.3)
    for step in (steps[0], steps[-1]):
        bare = g(step.eps, step.z.new_tensor(step.s), step.z, step.stages)
        assert torch.equal(bare, apply(g, step))
    with pytest.raises(ValueError, match=r"fitted for steps of order 1 .*cannot run in a step with 3 stages"):
        g(0.1, torch.tensor(0.0), steps[0].z, [steps[0].z] * 3)


def test_units_are_buffers_of_the_correction():
    g = bounded()
    assert list(g.units.state_dict()) == ["scale_0", "scale_1"] and not list(g.units.parameters())
    assert g.float().units.scale(kind_of(2, 1)).dtype == torch.float32


def test_a_plain_module_is_taken_for_a_user_s_net():
    g = bounded()
    assert isinstance(g.net, UserNet) and isinstance(g.net.module, Emit)
    assert all(g.covers(method) for method in ANY_MESH)  # no one knows better


@pytest.mark.parametrize("alphas", [(0.05, 0.5, 1.0), (1.0,)])
def test_the_bound_lets_the_residuals_of_all_members_of_a_family_through(alphas):
    for shape in ((3,), (2, 4, 5)):
        steps = [make_steps(shape, alpha_family(alpha))[1] for alpha in alphas]
        g = BoundedCorrection(Emit(), fit_units(steps))
        assert len(g.units.kinds) == 1  # one family
        for step in steps:
            out = apply(g, step._replace(z=step.target / g.units.scale(step.kind)))
            assert largest(out - step.target) < 1e-12 * largest(step.target)


# --- the order survives ---------------------------------------------------------------------------------------------


def bounded_random_g(problem, solver, active_from):
    """A correction with random weights, as large as the solution, whose bound is active from a number of steps down."""
    z0, span = problem.z0, problem.t_span[1] - problem.t_span[0]
    eps = span / active_from
    grid = (problem.t_span[0], problem.t_span[0] + eps)
    steps = compute_residuals(problem.f, torch.stack([z0, z0]), grid, solver)
    net = build_net(MLPCorrection(hidden=6, depth=1), NetInputs(z0, None, kinds_of(steps), math.nan))
    raw = apply(randomize(net, 0.2), steps[0])
    share = raw.norm(dim=1) / torch.stack(steps[0].stages).norm(dim=2).amax(dim=0)
    return net, kinds_of(steps), share.max().item() * eps**solver.order


@pytest.mark.parametrize("problem", **named([LOGISTIC, FORCED]))
@pytest.mark.parametrize("solver", **named(BASE_SOLVERS))
def test_order_survives_a_bounded_random_correction(solver, problem):
    net, kinds, cap = bounded_random_g(problem, solver, active_from=6)
    one = [torch.ones(1, dtype=DOUBLE)]
    g, unbounded = (BoundedCorrection(net, Units(kinds, one, cap=c, floor=0.0)) for c in (cap, 1e30))
    exact = problem.exact(*problem.t_span, problem.z0)

    def solve(n_steps, correction):
        return hypersolve(problem.f, problem.z0, problem.t_span, n_steps, solver, correction)

    # At large steps the bound is active; at small ones g is all there, and is what the order has to survive.
    assert not torch.equal(solve(2, g), solve(2, unbounded))
    assert torch.equal(solve(40, g), solve(40, unbounded))
    base = solve(40, None)
    assert largest(solve(40, g) - base) > 0.5 * largest(base - exact)
    steps = np.array([40, 60, 90])
    errors = [largest(solve(k, g) - exact) for k in steps]
    assert abs(-log_slope(steps, errors) - solver.order) < 0.2
