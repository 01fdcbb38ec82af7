"""The contract of a correction: zero at the start, O(1) as eps -> 0, bounded, within its budget, searchable."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import BASE_SOLVERS, FORCED, LOGISTIC, largest, log_slope, named
from sklearn.base import clone
from torch import nn

from sklearn_hyper import ConvCorrection, HypersolverRegressor, MLPCorrection, alpha_family
from sklearn_hyper.modules import BoundedCorrection, MLPVectorField
from sklearn_hyper.modules.correction_specs import auto_correction
from sklearn_hyper.modules.corrections import fit_bounded_correction
from sklearn_hyper.modules.solver_binding import bind_solver, make_view
from sklearn_hyper.numerics import (
    Residual,
    compute_residuals,
    count_macs,
    hypersolve,
    reference_solution,
    resolve_base_solver,
)

DOUBLE = torch.float64
SPAN = (0.0, 1.0)


def field(t, z):
    """Smooth, coupled along the last axis, dependent on time; any shape."""
    return torch.sin(z.roll(1, dims=-1)) * torch.cos(t) - 0.5 * z + 0.3


def controlled_field(t, z, x):
    return field(t, z) + x.mean()


def make_blocks(shape, base_solver="heun", x=None, n_steps=4):
    """True residuals of a batch of six."""
    f = field if x is None else controlled_field
    z0 = torch.randn(6, *shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))
    grid = np.linspace(*SPAN, n_steps + 1).tolist()
    states = reference_solution(f, z0, grid, rtol=1e-10, atol=1e-10, x=x)
    return compute_residuals(f, states, grid, base_solver, x=x)


def make_correction(spec, blocks, x=None, random=False):
    """What a fit makes of a spec, before training or with random weights."""
    net = spec.build(blocks[0], x).to(blocks[0].z)
    net.set_scales(blocks, x, SPAN)
    if random:
        for parameter in net.parameters():
            nn.init.normal_(parameter, std=0.5)
    return fit_bounded_correction(net, blocks).requires_grad_(False)


def apply(g, block, x=None):
    return g(block.eps, block.z.new_tensor(block.s), block.z, block.stages, x)


CASES = {
    "vector": (MLPCorrection(hidden=8), (3,), None),
    "vector-wide": (MLPCorrection(hidden=8, depth=1, activation="tanh"), (7,), None),
    "vector-ungated": (MLPCorrection(hidden=8, activation="softplus", gate=False), (3,), None),
    "vector-controlled": (MLPCorrection(hidden=8, activation="prelu"), (3,), (2,)),
    "scalar": (MLPCorrection(hidden=8), (1,), None),
    "vector-family": (MLPCorrection(hidden=8, tableaus=["heun"]), (3,), None),
    "matrix": (MLPCorrection(hidden=8), (2, 3), None),
    "matrix-controlled": (MLPCorrection(hidden=8), (2, 3), (2, 2)),
    "image-flat": (MLPCorrection(hidden=8), (2, 4, 5), None),
    "image": (ConvCorrection(hidden=6), (2, 4, 5), None),
    "image-deep": (ConvCorrection(hidden=6, depth=2, kernel_size=1), (2, 4, 5), None),
    "image-ungated": (ConvCorrection(hidden=6, gate=False), (2, 4, 5), None),
    "image-family": (ConvCorrection(hidden=6, tableaus=["heun"]), (2, 4, 5), None),
    "image-controlled": (ConvCorrection(hidden=6), (2, 4, 5), (1, 4, 5)),
}


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request):
    spec, shape, x_shape = request.param
    x = None if x_shape is None else torch.randn(6, *x_shape, dtype=DOUBLE)
    return spec, shape, x


# --- the nets -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("base_solver", ["euler", "rk4"])
def test_a_correction_starts_at_exactly_zero(case, base_solver):
    spec, shape, x = case
    blocks = make_blocks(shape, base_solver, x)
    g = make_correction(spec, blocks, x)
    f, z0 = (field if x is None else controlled_field), blocks[0].z
    assert all(torch.equal(apply(g, block, x), torch.zeros_like(block.z)) for block in blocks)
    base = hypersolve(f, z0, SPAN, 3, base_solver, x=x)
    assert torch.equal(hypersolve(f, z0, SPAN, 3, base_solver, g, x=x), base)
    assert torch.equal(
        hypersolve(f, z0, SPAN[::-1], 3, base_solver, g, x=x), hypersolve(f, z0, SPAN[::-1], 3, base_solver, x=x)
    )


def test_a_random_correction_is_a_tensor_like_z(case):
    spec, shape, x = case
    blocks = make_blocks(shape, x=x)
    out = apply(make_correction(spec, blocks, x, random=True), blocks[1], x)
    assert (out.shape, out.dtype) == (blocks[1].z.shape, DOUBLE)
    assert out.abs().min() > 0


def test_a_correction_reads_every_input(case):
    spec, shape, x = case
    block = make_blocks(shape, x=x)[1]
    g = make_correction(spec, [block], x, random=True).net
    s, z, stages = block.z.new_tensor(block.s), block.z, block.stages
    changed = {
        "eps": (0.5 * block.eps, s, z, stages, x),
        "s": (block.eps, s + 0.3, z, stages, x),
        "z": (block.eps, s, z + 0.1, stages, x),
        "first stage": (block.eps, s, z, [stages[0] + 0.1, stages[1]], x),
        "last stage": (block.eps, s, z, [stages[0], stages[1] + 0.1], x),
    }
    if x is not None:
        changed["x"] = (block.eps, s, z, stages, x + 0.1)
    out = g(block.eps, s, z, stages, x)
    assert [name for name, arguments in changed.items() if largest(g(*arguments) - out) < 1e-6] == []


@pytest.mark.parametrize("base_solver", ["euler", "midpoint", "heun", "rk4"])
def test_g_stays_of_order_one_as_eps_goes_to_zero(case, base_solver):
    spec, shape, x = case
    blocks = make_blocks(shape, base_solver, x)
    g, z0 = make_correction(spec, blocks, x, random=True), blocks[0].z
    f = field if x is None else controlled_field

    def g_at(eps):
        (block,) = compute_residuals(f, torch.stack([z0, z0]), (0.2, 0.2 + eps), base_solver, x=x)
        return apply(g, block, x)

    limit = g_at(1e-5)
    assert largest(limit) < 100 * max(largest(block.target) for block in blocks)
    for sign in (1, -1):  # one limit from both sides, approached linearly
        far, near = largest(g_at(sign * 1e-2) - limit), largest(g_at(sign * 1e-3) - limit)
        assert near < 0.2 * far + 1e-9 and far < 0.5 * largest(limit)


# --- the base solver that a net runs with ---------------------------------------------------------------------------

ALPHAS = (-1.0, 0.05, 0.5, 1.0, 2.0)
SPECS = {"vector": (MLPCorrection(hidden=8), (3,)), "image": (ConvCorrection(hidden=6), (2, 4, 5))}
each_spec = pytest.mark.parametrize(("spec", "shape"), SPECS.values(), ids=SPECS)


def linear_field(t, z):
    return z.roll(1, dims=-1) - 0.5 * z


def make_family_correction(spec, shape, alphas):
    """A correction with random weights for the midpoint method, fitted over an alpha family; and a step of it."""
    solvers = [resolve_base_solver(alpha_family(alpha)) for alpha in alphas]
    blocks = [make_blocks(shape, solver)[1] for solver in solvers]
    net = clone(spec).set_params(tableaus=["heun"]).build(blocks[0]).to(blocks[0].z)
    net.set_scales(blocks, None, SPAN, solvers)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    bound = bind_solver(net, resolve_base_solver("midpoint"))
    return fit_bounded_correction(bound, blocks).requires_grad_(False), blocks


@each_spec
def test_on_a_linear_field_a_bound_net_reads_the_same_whatever_alpha(spec, shape):
    """There (r_2 - r_1) / (alpha eps) = J f exactly, and all two-stage methods of order 2 make the same step."""
    net = make_correction(spec, make_blocks(shape, "midpoint"), random=True).net
    z = torch.randn(6, *shape, dtype=DOUBLE)

    def g_at(alpha, bound):
        (block,) = compute_residuals(linear_field, torch.stack([z, z]), (0.0, 0.2), alpha_family(alpha))
        return apply(net.for_solver(resolve_base_solver(alpha_family(alpha))) if bound else net, block)

    assert all(largest(g_at(alpha, True) - g_at(0.5, True)) < 1e-10 for alpha in ALPHAS)
    assert all(largest(g_at(alpha, False) - g_at(0.5, False)) > 1e-3 for alpha in ALPHAS if alpha != 0.5)


@each_spec
def test_features_of_a_bound_net_stay_of_order_one_over_the_family(spec, shape):
    net = make_correction(spec, make_blocks(shape, "midpoint"))
    blocks = {alpha: make_blocks(shape, alpha_family(alpha))[1] for alpha in (0.01, 0.5, 1.0)}
    quotients = {
        alpha: net.net.for_solver(resolve_base_solver(alpha_family(alpha)))._features(b.eps, b.z, b.stages, None)[-1]
        for alpha, b in blocks.items()
    }
    assert all(largest(q - quotients[0.5]) < 0.5 * largest(quotients[0.5]) for q in quotients.values())


@each_spec
def test_a_net_that_is_bound_already_is_not_copied(spec, shape):
    midpoint, heun = resolve_base_solver("midpoint"), resolve_base_solver("heun")
    for g in (make_correction(spec, make_blocks(shape)), make_family_correction(spec, shape, (0.1, 1.0))[0]):
        bound = g.for_solver(midpoint)
        assert bound.for_solver(midpoint) is bound.for_solver(resolve_base_solver(alpha_family(0.5))) is bound
        assert bound.for_solver(heun) is not bound
        assert [id(p) for p in bound.for_solver(heun).parameters()] == [id(p) for p in g.parameters()]


@each_spec
def test_a_family_net_reads_which_member_it_runs_with(spec, shape):
    g, blocks = make_family_correction(spec, shape, (0.1, 0.55, 1.0))
    other = make_view(g.net)
    other.leading_error = (0.5, 0.0)  # and the same quotients
    assert largest(apply(other, blocks[0]) - apply(g.net, blocks[0])) > 1e-3
    middle = g.for_solver(resolve_base_solver(alpha_family(0.55))).net
    assert middle.leading_error == pytest.approx((0.0, 0.0), abs=1e-12)
    ends = [g.for_solver(resolve_base_solver(alpha_family(alpha))).net.leading_error[0] for alpha in (0.1, 1.0)]
    assert ends == pytest.approx([-1.0, 1.0])


@each_spec
def test_a_family_net_covers_what_lies_between_its_members(spec, shape):
    g, blocks = make_family_correction(spec, shape, (0.1, 1.0))
    covered = [alpha for alpha in ALPHAS if g.covers(resolve_base_solver(alpha_family(alpha)))]
    assert covered == [0.5, 1.0]
    anything = make_correction(spec, blocks)
    assert all(anything.covers(resolve_base_solver(alpha_family(alpha))) for alpha in ALPHAS)
    assert BoundedCorrection(Emit(), order=2, output_scale=torch.ones(1), cap=1, floor=1).covers(
        resolve_base_solver("heun")
    )


@each_spec
def test_the_bound_lets_the_residuals_of_all_members_through(spec, shape):
    g, blocks = make_family_correction(spec, shape, (0.05, 0.5, 1.0))
    g.net = Emit()
    for block in blocks:
        out = g(block.eps, torch.tensor(block.s), block.target / g.output_scale, block.stages)
        assert largest(out - block.target) < 1e-12 * largest(block.target)


def test_reading_the_tableau_costs_no_product():
    for spec, shape in SPECS.values():
        alone = make_correction(spec, make_blocks(shape))
        family, blocks = make_family_correction(spec, shape, (0.1, 1.0))
        assert count_macs(apply, family, blocks[0]) == count_macs(apply, alone, blocks[0])


def test_gate_costs_macs_and_is_optional():
    for spec, shape in ((MLPCorrection(hidden=8), (6,)), (ConvCorrection(hidden=8), (2, 4, 4))):
        blocks = make_blocks(shape)
        macs = {
            gate: count_macs(apply, make_correction(clone(spec).set_params(gate=gate), blocks), blocks[0])
            for gate in (True, False)
        }
        assert macs[True] > macs[False] > 0


def test_auto_chooses_by_the_shape_of_the_state():
    assert auto_correction(torch.zeros(2, 3, 4, 4)) == ConvCorrection()
    assert auto_correction(torch.zeros(2, 3)) == auto_correction(torch.zeros(2, 3, 4)) == MLPCorrection()


# --- the bound ------------------------------------------------------------------------------------------------------


class Emit(nn.Module):
    """A user's correction whose output is its state, times a factor."""

    def __init__(self, factor=1.0):
        super().__init__()
        self.factor = factor

    def forward(self, eps, s, z, stages, x=None):
        return self.factor * z


def bounded(factor=1.0, order=2, cap=0.5, floor=0.1, scale=(1.0, 2.0)):
    return BoundedCorrection(
        Emit(factor), order=order, output_scale=torch.tensor(scale, dtype=DOUBLE), cap=cap, floor=floor
    )


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
    blocks = make_blocks(shape, x=x)
    g, block = make_correction(spec, blocks, x, random=True), blocks[1]
    before = apply(g, block, x)
    z, stages = block.z.clone(), [stage.clone() for stage in block.stages]
    z[2] = 1e8
    stages[1][2] = -1e8
    after = g(block.eps, z.new_tensor(block.s), z, stages, x)
    others = [0, 1, 3, 4, 5]
    assert largest(after[others] - before[others]) < 1e-12
    assert after.isfinite().all()
    limit = g.cap * abs(block.eps) ** -g.order * max(stage[2].norm().item() for stage in stages)
    assert after[2].norm() <= limit * (1 + 1e-9)


def test_an_inactive_bound_is_the_identity(case):
    spec, shape, x = case
    blocks = make_blocks(shape, x=x)
    g = make_correction(spec, blocks, x, random=True)
    g.cap = 1e9
    for block in blocks:
        raw = g.net(block.eps, block.z.new_tensor(block.s), block.z, block.stages, x) * g.output_scale
        assert largest(apply(g, block, x) - raw) < 1e-14 * largest(raw)


def test_the_bound_lets_the_true_residual_of_the_fitted_data_through(case):
    _, shape, x = case
    blocks = make_blocks(shape, x=x)
    for block in blocks:
        g = fit_bounded_correction(Emit(), blocks)
        out = g(block.eps, torch.tensor(block.s), block.target / g.output_scale, block.stages, x)
        assert largest(out - block.target) < 1e-12 * largest(block.target)


def test_the_floor_lets_g_act_where_f_vanishes():
    z, stages = torch.ones(1, 2, dtype=DOUBLE), [torch.zeros(1, 2, dtype=DOUBLE)]
    step = 0.1**3 * bounded(1e3, floor=0.1)(0.1, torch.tensor(0.0), z, stages).norm()
    assert step.item() == pytest.approx(0.5 * 0.1 * 0.1)
    assert largest(bounded(1e3, floor=0.0)(0.1, torch.tensor(0.0), z, stages)) == 0


@pytest.mark.parametrize("block", [make_blocks((3,), n_steps=1)[0]._replace(target=torch.zeros(6, 3, dtype=DOUBLE))])
def test_a_field_that_needs_no_correction_still_gets_a_usable_bound(block):
    still = block._replace(stages=[torch.zeros_like(stage) for stage in block.stages])
    for sample in (block, still):
        g = fit_bounded_correction(Emit(), [sample])
        assert torch.equal(apply(g, sample), torch.zeros_like(block.z))
        assert 0 < g.cap < math.inf and 0 < g.floor < math.inf


@pytest.mark.parametrize("eps", [0.1, -0.3])
def test_bounded_correction_is_differentiable_also_at_zero(eps):
    z = torch.tensor([[0.3, -0.2], [0.0, 0.0], [50.0, 20.0]], dtype=DOUBLE)  # inactive, zero output, active
    stages = [torch.tensor([[1.0, 2.0], [0.5, -1.0], [0.3, 0.4]], dtype=DOUBLE), torch.ones(3, 2, dtype=DOUBLE) / 7]
    g = bounded(order=1)
    inactive = torch.isclose(g(eps, torch.tensor(0.0), z, stages), z * g.output_scale, rtol=1e-14, atol=0)
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


# --- the order survives ---------------------------------------------------------------------------------------------


def bounded_random_g(problem, solver, active_from):
    """A correction with random weights, as large as the solution, whose bound is active from a number of steps down."""
    z0, span = problem.z0, problem.t_span[1] - problem.t_span[0]
    eps = span / active_from
    blocks = compute_residuals(problem.f, torch.stack([z0, z0]), (problem.t_span[0], problem.t_span[0] + eps), solver)
    net = MLPCorrection(hidden=6, depth=1).build(blocks[0]).to(z0)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2)
    raw = apply(net, blocks[0])
    share = raw.norm(dim=1) / torch.stack(blocks[0].stages).norm(dim=2).amax(dim=0)
    cap = share.max().item() * eps**solver.order
    return BoundedCorrection(net, order=solver.order, output_scale=torch.ones(1, dtype=DOUBLE), cap=cap, floor=0.0)


@pytest.mark.parametrize("problem", **named([LOGISTIC, FORCED]))
@pytest.mark.parametrize("solver", **named(BASE_SOLVERS))
def test_order_survives_a_bounded_random_correction(solver, problem):
    g = bounded_random_g(problem, solver, active_from=6)
    unbounded = BoundedCorrection(g.net, order=g.order, output_scale=g.output_scale, cap=1e30, floor=0.0)
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


# --- the budget -----------------------------------------------------------------------------------------------------


def build_macs(spec, shape, max_macs, n_stages=2):
    z = torch.zeros(1, *shape)
    block = Residual(0.0, 0.1, z, [z] * n_stages, 2, z)
    return count_macs(apply, spec.build(block, None, max_macs), block)


BUDGETED = {
    "mlp": (MLPCorrection(), (6,)),
    "mlp-3": (MLPCorrection(depth=3), (10,)),
    "mlp-ungated": (MLPCorrection(gate=False), (3,)),
    "conv": (ConvCorrection(), (8, 8, 8)),
    "conv-2": (ConvCorrection(depth=2), (4, 6, 6)),
}
each_budgeted = pytest.mark.parametrize(("spec", "shape"), BUDGETED.values(), ids=BUDGETED)


@each_budgeted
def test_an_automatic_width_uses_the_budget_and_stays_within(spec, shape):
    narrow, wide, widest = (build_macs(clone(spec).set_params(hidden=h), shape, math.nan) for h in (23, 24, 64))
    assert build_macs(spec, shape, wide) == build_macs(spec, shape, wide + 1) == wide
    assert build_macs(spec, shape, wide - 1) == narrow
    assert build_macs(spec, shape, 1e12) == widest


def test_an_automatic_width_counts_the_matrix_gate():
    assert build_macs(MLPCorrection(depth=1), (4,), 500.0) <= 500
    assert build_macs(MLPCorrection(depth=1), (3,), 737.0) <= 737


@each_budgeted
def test_a_budget_out_of_reach_gives_the_narrowest_net_and_none_a_default(spec, shape):
    narrowest = build_macs(spec, shape, 1.0)
    assert 1 < narrowest <= build_macs(clone(spec).set_params(hidden=4), shape, 1.0)
    default = 16 if isinstance(spec, ConvCorrection) else 32
    assert build_macs(spec, shape, math.nan) == build_macs(clone(spec).set_params(hidden=default), shape, math.nan)


def test_a_fitted_automatic_correction_costs_a_tenth_of_the_field():
    f = MLPVectorField(2, hidden=64, depth=2).double()
    for parameter in f.parameters():  # a new field is so smooth that its residuals drown in the reference's noise
        parameter.data *= 3
    X = np.random.default_rng(0).uniform(-1, 1, (40, 2))
    hypersolver = HypersolverRegressor(f, base_solver="heun", n_steps=1, fit_n_steps=1, max_epochs=1, random_state=0)
    fitted = hypersolver.fit(X)
    z, t = torch.zeros(1, 2, dtype=DOUBLE), torch.tensor(0.0, dtype=DOUBLE)
    macs_f = count_macs(fitted.neural_ode_.vector_field, t, z)
    for g in (fitted.correction_, fitted.module_.steps[0]):  # as it is trained, and folded as it runs
        macs_g = count_macs(g, 0.1, t, z, [z, z])
        assert 0.05 * macs_f < macs_g <= 0.1 * macs_f


# --- specs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec",
    [
        MLPCorrection(hidden=7, depth=3),
        MLPCorrection(tableaus=[alpha_family(0.3), "heun"]),
        ConvCorrection(hidden=5, kernel_size=1),
    ],
    ids=["mlp", "family", "conv"],
)
def test_specs_follow_the_parameter_protocol(spec):
    cloned = clone(spec)
    assert cloned == spec and cloned is not spec and type(spec)(**spec.get_params()) == spec
    assert cloned.set_params(hidden=9, gate=False) is cloned
    assert (cloned.hidden, cloned.gate) == (9, False) and spec.hidden != 9
    assert spec.set_params() is spec


@pytest.mark.parametrize("spec", [MLPCorrection(), ConvCorrection()], ids=str)
def test_unknown_parameters_are_refused_with_the_known_ones(spec):
    with pytest.raises(ValueError, match=rf"{type(spec).__name__} has no parameter 'width'; .*'hidden'"):
        spec.set_params(width=3)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (MLPCorrection(hidden=0), r"MLPCorrection.hidden must be an integer >= 1, got 0"),
        (MLPCorrection(hidden=2.5), r"MLPCorrection.hidden must be .* got 2.5"),
        (MLPCorrection(depth=0), r"MLPCorrection.depth must be an integer >= 1, got 0"),
        (MLPCorrection(depth=None), r"MLPCorrection.depth must be .* got None"),
        (MLPCorrection(activation="relu6"), r"MLPCorrection.activation must be one of .*'tanh'.* got 'relu6'"),
        (ConvCorrection(kernel_size=2), r"ConvCorrection.kernel_size must be odd, got 2"),
        (ConvCorrection(hidden=-1), r"ConvCorrection.hidden must be"),
    ],
)
def test_bad_specs_are_refused_when_built(spec, message):
    with pytest.raises(ValueError, match=message):
        spec.build(make_blocks((2, 3, 3))[0])


def test_numpy_integers_are_integers():
    make_correction(MLPCorrection(hidden=np.int64(8)), make_blocks((3,)))


def test_convolutions_need_image_states_and_inputs_of_their_size():
    with pytest.raises(ValueError, match=r"needs states of shape \(c, h, w\), got \(3,\)"):
        ConvCorrection().build(make_blocks((3,))[0])
    with pytest.raises(ValueError, match=r"x must be an image of .* \(4, 5\), got x of shape \(3,\)"):
        ConvCorrection().build(make_blocks((2, 4, 5))[0], torch.zeros(6, 3))


# --- one step -------------------------------------------------------------------------------------------------------


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
    blocks = make_blocks(shape, base_solver, x)
    full = max(len(block.stages) for block in blocks)
    net = spec.build(blocks[-1], x, reads_startup=base_solver == "ab3").to(blocks[0].z)
    net.set_scales(blocks, x, SPAN)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.5)
    g = fit_bounded_correction(bind_solver(net, resolve_base_solver(base_solver)), blocks).requires_grad_(False)
    assert full == net.layout.n_stages
    for block in (blocks[0], blocks[-1]):
        for sign in (1, -1):
            block = block._replace(eps=sign * block.eps)
            folded = g.fold(block.eps, block.s, len(block.stages))
            expected, out = apply(g, block, x), apply(folded, block, x)
            assert largest(out - expected) < 1e-9 * largest(expected) and largest(expected) > 1e-6


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("hidden", [1, 2])
def test_a_narrow_convolution_is_the_same_for_few_images_and_many(kernel_size, hidden):
    """Where it runs as a product whose entries then move: same values, same multiply-accumulates."""
    blocks = make_blocks((26, 4, 5))  # times three inputs: more channels than 2 * 5^2 columns
    g = make_correction(ConvCorrection(hidden=hidden, kernel_size=kernel_size), blocks, random=True)
    folded, block = g.fold(blocks[1].eps, blocks[1].s, len(blocks[1].stages)), blocks[1]
    assert len(folded.net.columns) == 1
    many = block._replace(z=block.z.repeat(3, 1, 1, 1), stages=[s.repeat(3, 1, 1, 1) for s in block.stages])
    few, out, expected = apply(folded, block), apply(folded, many), apply(g, many)
    assert largest(out - expected) < 1e-9 * largest(expected)
    assert largest(out - few.repeat(3, 1, 1, 1)) < 1e-9 * largest(expected)
    assert count_macs(apply, folded, many) == 3 * count_macs(apply, folded, block)


def test_folding_leaves_a_users_net_alone():
    g = bounded()
    assert g.fold(0.1, 0.0, 1) is g


@each_spec
def test_a_step_a_row_is_as_good_as_a_step_a_batch(spec, shape):
    blocks = make_blocks(shape)
    g = make_correction(spec, blocks, random=True)
    rows = blocks[1]._replace(
        z=torch.cat([b.z for b in blocks]),
        stages=[torch.cat(stage) for stage in zip(*(b.stages for b in blocks), strict=True)],
    )
    n = len(blocks[0].z)
    eps = torch.tensor([b.eps for b in blocks], dtype=DOUBLE).repeat_interleave(n)
    s = torch.tensor([b.s for b in blocks], dtype=DOUBLE).repeat_interleave(n)
    expected = torch.cat([apply(g, block) for block in blocks])
    assert largest(g(eps, s, rows.z, rows.stages) - expected) < 1e-12
