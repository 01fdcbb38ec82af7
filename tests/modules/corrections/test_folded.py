"""What is left of a correction in a single step is the correction in that step."""

import pytest
import torch
from problems import largest
from small_corrections import (
    CASES,
    DOUBLE,
    Emit,
    apply,
    apply_folded,
    bound_to,
    kinds_of,
    make_correction,
    make_net,
    make_steps,
    plan_of,
)

from sklearn_hyper import ConvCorrection, MLPCorrection
from sklearn_hyper.modules.corrections import FoldedCorrection
from sklearn_hyper.modules.corrections.folded import FoldedNet
from sklearn_hyper.numerics import FixedMesh, count_macs, hypersolve_trajectory, resolve_base_solver

FOLDED = {
    f"{name}-{base_solver}": (case, base_solver)
    for name, case in CASES.items()
    for base_solver in (["heun"] if case[0].tableaus else ["euler", "heun", "ab3"])  # families are of two stages here
}


@pytest.mark.parametrize(("folded_case", "base_solver"), FOLDED.values(), ids=FOLDED)
def test_a_folded_correction_is_the_correction_at_its_step(folded_case, base_solver):
    """Also in a start-up step, and in reverse time."""
    spec, shape, x_shape = folded_case
    x = None if x_shape is None else torch.randn(6, *x_shape, dtype=DOUBLE)
    steps = make_steps(shape, base_solver, x)
    g = make_correction(spec, steps, x, std=0.5)
    assert len(kinds_of(steps)) == 1 + (base_solver == "ab3")
    for step in (steps[0], steps[-1]):
        for sign in (1, -1):
            step = step._replace(eps=sign * step.eps)
            expected, out = apply(g, step, x), apply_folded(g.fold_step(plan_of(step)), step, x)
            assert largest(out - expected) < 1e-9 * largest(expected) and largest(expected) > 1e-6


@pytest.mark.parametrize(("folded_case", "base_solver"), FOLDED.values(), ids=FOLDED)
def test_a_folded_net_reads_neither_time_nor_step_size(folded_case, base_solver):
    """Both are in its weights."""
    spec, shape, x_shape = folded_case
    x = None if x_shape is None else torch.randn(6, *x_shape, dtype=DOUBLE)
    steps = make_steps(shape, base_solver, x)
    net, step = make_net(spec, steps, x, std=0.5).requires_grad_(False), steps[-1]
    folded = net.fold(plan_of(step), torch.ones(1, dtype=DOUBLE))
    assert isinstance(folded, FoldedNet) and largest(apply_folded(folded, step, x) - apply(net, step, x)) < 1e-9
    moved = step._replace(eps=2 * step.eps, s=step.s + 0.1)
    assert torch.equal(apply_folded(folded, moved, x), apply_folded(folded, step, x))
    assert largest(apply(net, moved, x) - apply(net, step, x)) > 1e-6


@pytest.mark.parametrize("scale", [(3.0, 3.0, 3.0), (0.1, 2.0, 5.0)])
def test_the_scale_is_folded_in(scale):
    steps, scale = make_steps((3,)), torch.tensor(scale, dtype=DOUBLE)
    net = make_net(MLPCorrection(hidden=6), steps, std=0.5)
    folded = net.fold(plan_of(steps[1]), scale)
    torch.testing.assert_close(apply_folded(folded, steps[1]), scale * apply(net, steps[1]).detach())


def test_a_correction_folds_all_steps_of_a_mesh():
    """The fold is frozen, shares nothing, and stays as it is when the correction goes on training."""
    steps = make_steps((3,), "ab3")
    g = make_correction(MLPCorrection(hidden=6), steps, std=0.3).requires_grad_(True).train()
    stepping = FixedMesh.of(resolve_base_solver("ab3"), (0.0, 1.0), 4)
    folded = g.fold(stepping.plans)
    assert isinstance(folded, FoldedCorrection) and len(folded.steps) == 4
    assert not any(p.requires_grad for p in folded.parameters())
    assert not {p.data_ptr() for p in folded.parameters()} & {p.data_ptr() for p in g.parameters()}
    solve = (lambda t, z: torch.sin(z) - t * z, steps[0].z, (0.0, 1.0), 4, "ab3")
    live, expected = (hypersolve_trajectory(*solve, one) for one in (g, folded))
    torch.testing.assert_close(live.detach(), expected, rtol=1e-10, atol=1e-12)
    with torch.no_grad():
        for parameter in g.parameters():
            parameter.mul_(1.5)
    assert torch.equal(hypersolve_trajectory(*solve, folded), expected)
    assert largest(hypersolve_trajectory(*solve, g) - expected) > 1e-6


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("hidden", [1, 2])
def test_a_narrow_convolution_is_the_same_for_few_images_and_many(kernel_size, hidden):
    """Where it runs as a product whose entries then move: same values, same multiply-accumulates."""
    steps = make_steps((26, 4, 5))  # times three inputs: more channels than 2 * 5^2 columns
    g = make_correction(ConvCorrection(hidden=hidden, kernel_size=kernel_size), steps, std=0.5)
    step = steps[1]
    folded = g.fold_step(plan_of(step))
    assert len(folded.net.columns) == 1
    many = step._replace(z=step.z.repeat(3, 1, 1, 1), stages=[s.repeat(3, 1, 1, 1) for s in step.stages])
    few, out, expected = apply_folded(folded, step), apply_folded(folded, many), apply(g, many)
    assert largest(out - expected) < 1e-9 * largest(expected)
    assert largest(out - few.repeat(3, 1, 1, 1)) < 1e-9 * largest(expected)
    assert count_macs(apply_folded, folded, many) == 3 * count_macs(apply_folded, folded, step)


def test_folding_adds_no_product_but_that_of_a_matrix_gate(case):
    spec, shape, x = case
    steps = make_steps(shape, x=x)
    net = make_net(spec, steps, x).requires_grad_(False)
    live = count_macs(apply, net, steps[0], x)
    folded = count_macs(apply_folded, net.fold(plan_of(steps[0]), torch.ones(1, dtype=DOUBLE)), steps[0], x)
    n, n_stages = net.layout.n_state, net.layout.n_stages
    gate = 6 * n**3 * n_stages * (1 + n_stages) if net.layout.has_matrix_gate else 0
    assert folded <= live + gate


def test_a_users_net_is_kept_and_not_folded():
    """Scaled and bounded as it is; its own module is the one that runs."""
    step = make_steps((2,))[1]
    g = bound_to(Emit(3.0), step.z, resolve_base_solver("heun")).double()
    folded = g.fold_step(plan_of(step))
    assert torch.equal(apply_folded(folded, step), apply(g, step))
    assert [module for module in folded.modules() if isinstance(module, Emit)] == [g.net.module]
