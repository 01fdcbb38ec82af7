"""The library's own nets: zero at the start, O(1) as eps -> 0, told what kind of step they are in."""

import dataclasses

import pytest
import torch
from problems import LEARNED, largest
from sklearn.base import clone
from small_corrections import (
    DOUBLE,
    SPAN,
    SPECS,
    apply,
    controlled_field,
    field,
    kinds_of,
    linear_field,
    make_correction,
    make_net,
    make_steps,
)

from sklearn_hyper import ConvCorrection, MLPCorrection, alpha_family
from sklearn_hyper.modules import BoundedCorrection
from sklearn_hyper.modules.corrections import fit_units
from sklearn_hyper.numerics import compute_residuals, count_macs, hypersolve, resolve_base_solver

ALPHAS = (-1.0, 0.05, 0.5, 1.0, 2.0)
each_spec = pytest.mark.parametrize(("spec", "shape"), SPECS.values(), ids=SPECS)


def kind_at(alpha):
    return resolve_base_solver(alpha_family(alpha)).main_kind


@pytest.mark.parametrize("base_solver", ["euler", "rk4"])
def test_a_correction_starts_at_exactly_zero(case, base_solver):
    spec, shape, x = case
    steps = make_steps(shape, base_solver, x)
    g = make_correction(spec, steps, x)
    f, z0 = (field if x is None else controlled_field), steps[0].z
    assert all(torch.equal(apply(g, step, x), torch.zeros_like(step.z)) for step in steps)
    base = hypersolve(f, z0, SPAN, 3, base_solver, x=x)
    assert torch.equal(hypersolve(f, z0, SPAN, 3, base_solver, g, x=x), base)
    assert torch.equal(
        hypersolve(f, z0, SPAN[::-1], 3, base_solver, g, x=x), hypersolve(f, z0, SPAN[::-1], 3, base_solver, x=x)
    )


def test_a_random_correction_is_a_tensor_like_z(case):
    spec, shape, x = case
    steps = make_steps(shape, x=x)
    out = apply(make_correction(spec, steps, x, std=0.5), steps[1], x)
    assert (out.shape, out.dtype) == (steps[1].z.shape, DOUBLE)
    assert out.abs().min() > 0


def test_a_correction_reads_every_input(case):
    spec, shape, x = case
    step = make_steps(shape, x=x)[1]
    g = make_net(spec, [step], x, std=0.5)
    s, z, stages, kind = step.z.new_tensor(step.s), step.z, step.stages, step.kind
    changed = {
        "eps": (0.5 * step.eps, s, z, stages, x, kind),
        "s": (step.eps, s + 0.3, z, stages, x, kind),
        "z": (step.eps, s, z + 0.1, stages, x, kind),
        "first stage": (step.eps, s, z, [stages[0] + 0.1, stages[1]], x, kind),
        "last stage": (step.eps, s, z, [stages[0], stages[1] + 0.1], x, kind),
        "kind": (step.eps, s, z, stages, x, dataclasses.replace(kind, offsets=(0.0, 0.5))),
    }
    if x is not None:
        changed["x"] = (step.eps, s, z, stages, x + 0.1, kind)
    out = g(step.eps, s, z, stages, x, kind)
    assert [name for name, arguments in changed.items() if largest(g(*arguments) - out) < 1e-6] == []


@pytest.mark.parametrize("base_solver", ["euler", "midpoint", "heun", "rk4"])
def test_g_stays_of_order_one_as_eps_goes_to_zero(case, base_solver):
    spec, shape, x = case
    steps = make_steps(shape, base_solver, x)
    g, z0 = make_correction(spec, steps, x, std=0.5), steps[0].z
    f = field if x is None else controlled_field

    def g_at(eps):
        (step,) = compute_residuals(f, torch.stack([z0, z0]), (0.2, 0.2 + eps), base_solver, x=x)
        return apply(g, step, x)

    limit = g_at(1e-5)
    assert largest(limit) < 100 * max(largest(step.target) for step in steps)
    for sign in (1, -1):  # one limit from both sides, approached linearly
        far, near = largest(g_at(sign * 1e-2) - limit), largest(g_at(sign * 1e-3) - limit)
        assert near < 0.2 * far + 1e-9 and far < 0.5 * largest(limit)


@each_spec
def test_a_step_a_row_is_as_good_as_a_step_a_batch(spec, shape):
    steps = make_steps(shape)
    g = make_correction(spec, steps, std=0.5)
    rows = steps[1]._replace(
        z=torch.cat([step.z for step in steps]),
        stages=[torch.cat(stage) for stage in zip(*(step.stages for step in steps), strict=True)],
    )
    n = len(steps[0].z)
    eps = torch.tensor([step.eps for step in steps], dtype=DOUBLE).repeat_interleave(n)
    s = torch.tensor([step.s for step in steps], dtype=DOUBLE).repeat_interleave(n)
    expected = torch.cat([apply(g, step) for step in steps])
    assert largest(g(eps, s, rows.z, rows.stages, None, rows.kind) - expected) < 1e-12


def test_gate_costs_macs_and_is_optional():
    for spec, shape in ((MLPCorrection(hidden=8), (6,)), (ConvCorrection(hidden=8), (2, 4, 4))):
        steps = make_steps(shape)
        macs = {
            gate: count_macs(apply, make_correction(clone(spec).set_params(gate=gate), steps), steps[0])
            for gate in (True, False)
        }
        assert macs[True] > macs[False] > 0


# --- kinds of steps -------------------------------------------------------------------------------------------------


@each_spec
@pytest.mark.parametrize("base_solver", ["ab2", "ab3", "abm2", LEARNED], ids=str)
def test_start_up_steps_have_weights_of_their_own(spec, shape, base_solver):
    """So one net is trained on all kinds of a method's steps, and changing what it does in one leaves the others."""
    n_steps = 3 if base_solver is LEARNED else 4
    if base_solver is LEARNED:
        z = make_steps(shape)[0].z
        mesh = LEARNED.mesh(SPAN, 3)
        steps = compute_residuals(field, torch.stack([z + s for s in mesh]), mesh, LEARNED)
    else:
        steps = make_steps(shape, base_solver, n_steps=n_steps)
    assert len(kinds_of(steps)) == 2
    net = make_net(spec, steps, std=0.3).requires_grad_(False)
    assert net.layout.other_families == (steps[0].kind.family,) and net.layout.n_stages == steps[-1].kind.n_stages
    before = [apply(net, step) for step in steps]
    net.weights.values[-1] += 0.1  # the row that multiplies "this is a start-up step"
    for step, out in zip(steps, before, strict=True):
        is_main = step.kind == steps[-1].kind
        assert torch.equal(apply(net, step), out) == is_main
        assert out.abs().min() > 0


@each_spec
def test_on_a_linear_field_a_net_reads_the_same_whatever_alpha(spec, shape):
    """There (r_2 - r_1) / (alpha eps) = J f exactly, and all two-stage methods of order 2 make the same step.

    Only if it is told the kind: taken for the midpoint method's, the stages of another one say something else.
    """
    net = make_net(spec, make_steps(shape, "midpoint"), std=0.5).requires_grad_(False)
    z = torch.randn(6, *shape, dtype=DOUBLE)

    def g_at(alpha, kind):
        (step,) = compute_residuals(linear_field, torch.stack([z, z]), (0.0, 0.2), alpha_family(alpha))
        return apply(net, step._replace(kind=kind))

    own = {alpha: g_at(alpha, kind_at(alpha)) for alpha in ALPHAS}
    assert all(largest(out - own[0.5]) < 1e-10 for out in own.values())
    mistaken = {alpha: g_at(alpha, kind_at(0.5)) for alpha in ALPHAS if alpha != 0.5}
    assert all(largest(out - own[0.5]) > 1e-3 for out in mistaken.values())


@each_spec
def test_features_stay_of_order_one_over_the_family(spec, shape):
    net = make_net(spec, make_steps(shape, "midpoint"))
    steps = {alpha: make_steps(shape, alpha_family(alpha))[1] for alpha in (0.01, 0.5, 1.0)}
    quotients = {
        alpha: net._features(step.eps, step.z, step.stages, None, step.kind)[-1] for alpha, step in steps.items()
    }
    assert all(largest(q - quotients[0.5]) < 0.5 * largest(quotients[0.5]) for q in quotients.values())


# --- families of methods --------------------------------------------------------------------------------------------


def make_family_net(spec, shape, alphas):
    """A net with random weights fitted over an alpha family; and a step of each member."""
    steps = [make_steps(shape, alpha_family(alpha))[1] for alpha in alphas]
    return make_net(clone(spec).set_params(tableaus=["heun"]), steps, std=0.3).requires_grad_(False), steps


@each_spec
def test_a_family_net_reads_which_member_it_runs_with(spec, shape):
    net, steps = make_family_net(spec, shape, (0.1, 0.55, 1.0))
    other = dataclasses.replace(steps[0].kind, leading_error=(0.5, 0.0))  # and the same stages
    assert largest(apply(net, steps[0]._replace(kind=other)) - apply(net, steps[0])) > 1e-3
    assert net.scales.errors.scale(kind_at(0.55)) == pytest.approx((0.0, 0.0), abs=1e-12)
    assert [net.scales.errors.scale(kind_at(alpha))[0] for alpha in (0.1, 1.0)] == pytest.approx([-1.0, 1.0])


@each_spec
def test_other_nets_do_not_read_the_leading_error(spec, shape):
    steps = make_steps(shape, "midpoint")
    net = make_net(spec, steps, std=0.3)
    other = dataclasses.replace(steps[0].kind, leading_error=(0.5, 0.0))
    assert torch.equal(apply(net, steps[0]._replace(kind=other)), apply(net, steps[0]))


@each_spec
def test_a_family_net_covers_what_lies_between_its_members(spec, shape):
    net, steps = make_family_net(spec, shape, (0.1, 1.0))
    g = BoundedCorrection(net, fit_units(steps))
    for one in (net, g):
        assert [alpha for alpha in ALPHAS if one.covers(resolve_base_solver(alpha_family(alpha)))] == [0.5, 1.0]
        assert not one.covers(resolve_base_solver("ab2"))  # which has no tableau
    anything = make_correction(spec, steps)
    assert all(anything.covers(resolve_base_solver(alpha_family(alpha))) for alpha in ALPHAS)


def test_reading_the_tableau_costs_no_product():
    for spec, shape in SPECS.values():
        alone = make_net(spec, make_steps(shape))
        family, steps = make_family_net(spec, shape, (0.1, 1.0))
        assert count_macs(apply, family, steps[0]) == count_macs(apply, alone, steps[0])
