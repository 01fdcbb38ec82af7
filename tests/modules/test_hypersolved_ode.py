"""Fit's product is one plain module that runs the weights it holds: what it computes, and that it exports and trains."""

import copy
import math
import pickle

import pytest
import torch
from problems import BASE_SOLVERS, FORCED, LOGISTIC, METHODS, OwnTwoStep, largest, named
from small_corrections import bound_to, make_hypersolved, randomize
from torch import nn

from sklearn_hyper import ConvCorrection, MLPCorrection, NeuralODE, alpha_family
from sklearn_hyper.modules import HypersolvedODE, MLPVectorField, NetInputs, Rescale, Standardize
from sklearn_hyper.modules.corrections import ModuleCorrection, build_net
from sklearn_hyper.numerics import (
    CountedField,
    FixedMesh,
    compute_residuals,
    hypersolve,
    hypersolve_trajectory,
    resolve_base_solver,
)

GRID = (0.0, 0.3, 1.0)


def make_module(kind, base_solver="heun", tableaus=None):
    """A hypersolved ODE with maps and a random correction, and an input for it."""
    spec = (
        ConvCorrection(hidden=4, tableaus=tableaus) if kind == "image" else MLPCorrection(hidden=6, tableaus=tableaus)
    )
    return make_hypersolved(kind, base_solver, spec, GRID)


each_kind = pytest.mark.parametrize("kind", ["vector", "controlled", "image"])


@each_kind
def test_it_is_input_map_corrected_steps_and_output_map(kind):
    module, x = make_module(kind)
    ode = module.neural_ode
    arguments = (ode.vector_field, ode.input_map(x), None, None, "heun", module.correction)
    options = {"x": ode.inputs(x).x, "grid": GRID}
    assert torch.equal(module.terminal_state(x), hypersolve(*arguments, **options))
    assert torch.equal(module.trajectory(x), hypersolve_trajectory(*arguments, **options))
    assert torch.equal(module(x), ode.output_map(module.trajectory(x)[-1]))
    assert module.n_steps == 2 and module.grid == GRID


@each_kind
def test_without_correction_it_is_the_base_solver(kind):
    module, x = make_module(kind)
    ode = module.neural_ode
    base = HypersolvedODE(ode, module.base_solver, None, GRID)
    z = hypersolve(ode.vector_field, ode.input_map(x), None, None, "heun", x=ode.inputs(x).x, grid=GRID)
    assert torch.equal(base(x), ode.output_map(z))
    assert not torch.allclose(base(x), module(x))


@pytest.mark.parametrize("solver", **named(BASE_SOLVERS))
def test_it_evaluates_the_field_stages_times_steps(solver):
    field = CountedField(lambda t, z: -z)
    z, method = torch.ones(2, 3), resolve_base_solver(solver)
    net = build_net(MLPCorrection(hidden=4), NetInputs(z, None, method.kinds, math.nan))
    HypersolvedODE(NeuralODE(field), method, bound_to(randomize(net, 0.3), z, method), GRID)(z)
    assert field.n_evaluations == 2 * solver.n_stages


# --- another base solver --------------------------------------------------------------------------------------------


def swapped(module, base_solver):
    """The same correction with another base solver, as ``with_solver`` makes it."""
    return HypersolvedODE(module.neural_ode, resolve_base_solver(base_solver), module.correction, module.grid).eval()


each_family = pytest.mark.parametrize("tableaus", [None, ["midpoint"]], ids=["one", "family"])


@each_kind
@each_family
def test_the_correction_is_told_the_base_solver_at_hand(kind, tableaus):
    """By the kind of every step; the correction itself is one and the same."""
    module, x = make_module(kind, tableaus=tableaus)
    midpoint = swapped(module, "midpoint")
    assert midpoint.correction is module.correction
    assert [plan.kind.spacings for one in (midpoint, module) for plan in one.stepping.plans] == [(0.5,)] * 2 + [
        (1.0,)
    ] * 2
    back = swapped(midpoint, "heun")
    assert torch.equal(back(x), module(x))
    assert not torch.allclose(midpoint(x), module(x), rtol=1e-3)
    assert torch.equal(swapped(module, alpha_family(0.5))(x), midpoint(x))


def test_a_base_solver_that_the_correction_does_not_know_is_refused_when_it_runs():
    module, x = make_module("vector")
    with pytest.raises(
        ValueError, match=r"fitted for steps of order 2 with 2 stages; it cannot run in a step of order 4"
    ):
        swapped(module, "rk4")(x)


class Exact(ModuleCorrection):
    """R is what eq. 6 says of the base solver at hand, which the kind of a step tells: one of the alpha family."""

    def __init__(self, problem):
        super().__init__()
        self.problem = problem

    def term(self, plan, s, z, stages, x):
        end = plan.s + plan.eps
        states = torch.stack([z, self.problem.exact(plan.s, end, z)])
        solver = alpha_family(plan.kind.nodes[1])
        return compute_residuals(self.problem.f, states, (plan.s, end), solver)[0].target


@pytest.mark.parametrize("alpha", [-1.0, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("problem", **named([LOGISTIC, FORCED]))
def test_an_exact_correction_reaches_the_solution_with_any_base_solver(problem, alpha):
    """One that knows the base solver steps from solution to solution."""
    grid = [problem.t_span[0] + share * (problem.t_span[1] - problem.t_span[0]) for share in (0, 0.2, 0.6, 1)]
    module = HypersolvedODE(NeuralODE(problem.f), resolve_base_solver(alpha_family(alpha)), Exact(problem), grid)
    assert largest(module.trajectory(problem.z0) - problem.states(grid)) < 1e-12


@each_kind
@each_family
def test_swapped_modules_copy_pickle_and_export(kind, tableaus):
    module, x = make_module(kind, tableaus=tableaus)
    other = swapped(module, alpha_family(0.3))
    for copied in (pickle.loads(pickle.dumps(other)), copy.deepcopy(other)):
        assert torch.equal(copied(x), other(x))
        assert not {id(p) for p in copied.parameters()} & {id(p) for p in module.parameters()}
    exported = torch.export.export(other, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2, max=512)},))
    torch.testing.assert_close(exported.module()(x[:3]), other(x[:3]))
    both = copy.deepcopy(nn.ModuleList([module, other])).float()
    expected = swapped(both[0], alpha_family(0.3))(x.float())
    assert torch.equal(both[1](x.float()), expected)
    assert both[1].correction is both[0].correction


@pytest.mark.parametrize("method", **named(METHODS))
def test_every_method_runs_in_it_with_a_net_for_all_its_kinds(method):
    """Methods of one's own, too; with zero weights it is the base solver, with others it is the loop with g."""
    span, z = (0.5, 2.5), FORCED.z0
    grid = method.mesh(span, method.n_steps or 4)
    net = build_net(MLPCorrection(hidden=4), NetInputs(z, None, method.kinds, math.nan))
    g = bound_to(net, z, method).double()
    module = HypersolvedODE(NeuralODE(FORCED.f, t_span=span), method, g, grid).requires_grad_(False)
    bare = hypersolve_trajectory(FORCED.f, z, None, None, method, grid=grid)
    assert torch.equal(module.trajectory(z), bare)
    randomize(net, 0.5)
    found = module.trajectory(z)
    assert all(largest(one - other) > 1e-4 for one, other in zip(found[1:], bare[1:], strict=True))
    assert torch.equal(found, hypersolve_trajectory(FORCED.f, z, None, None, method, g, grid=grid))
    torch.testing.assert_close(module.fold().trajectory(z), found, rtol=1e-10, atol=1e-12)


def test_an_own_method_copies_pickles_and_exports():
    method, z = OwnTwoStep(), torch.randn(5, 3)
    net = randomize(build_net(MLPCorrection(hidden=4), NetInputs(z, None, method.kinds, math.nan)), 0.3)
    module = HypersolvedODE(NeuralODE(lambda t, z: torch.sin(z) * t), method, bound_to(net, z, method), (0.0, 0.5, 1.0))
    module.eval().requires_grad_(False)
    for one in (module, module.fold()):
        for copied in (copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
            assert torch.equal(copied(z), one(z)) and copied.base_solver == method
        exported = torch.export.export(one, (z,), dynamic_shapes=({0: torch.export.Dim("batch", min=2, max=64)},))
        torch.testing.assert_close(exported.module()(z[:3]), one(z[:3]))


# --- a module -------------------------------------------------------------------------------------------------------


@each_kind
def test_export_is_exact_for_any_batch(kind):
    module, x = make_module(kind)
    exported = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2, max=512)},))
    for rows in (x, torch.randn(17, *x.shape[1:], dtype=x.dtype)):
        assert torch.equal(exported.module()(rows), module(rows))


@each_kind
def test_pickles_and_copies_compute_the_same(kind):
    module, x = make_module(kind)
    for other in (pickle.loads(pickle.dumps(module)), copy.deepcopy(module)):
        assert torch.equal(other(x), module(x))
        assert other.base_solver == module.base_solver and not other.training
    assert {"correction.units.scale_0"} < set(module.state_dict())


def test_weights_load_into_another_module_of_the_same_make():
    module, x = make_module("vector")
    other, _ = make_module("vector")
    assert not torch.equal(other(x), module(x))
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(x), module(x))


@pytest.mark.parametrize("grid", [(0.0,), (0.0, 1.0, 1.0), (0.0, float("nan"))])
def test_a_grid_is_strictly_monotone_and_finite(grid):
    with pytest.raises(ValueError, match="grid must hold at least two finite, strictly monotone times"):
        HypersolvedODE(NeuralODE(torch.sin), resolve_base_solver("euler"), None, grid)


def test_a_hypersolved_ode_has_what_it_needs_for_maps_of_scales():
    ode = NeuralODE(
        MLPVectorField(2, hidden=4),
        input_map=Standardize(torch.ones(2), torch.full((2,), 2.0)),
        output_map=Rescale(nn.Identity(), torch.full((2,), 2.0), torch.ones(2)),
    )
    module = HypersolvedODE(ode, resolve_base_solver("euler"), None, GRID)
    x = torch.randn(4, 2)
    z = hypersolve(ode.vector_field, ode.input_map(x), None, None, "euler", grid=GRID)
    assert torch.equal(module.fold()(x), ode.output_map(z))


# --- conditions -----------------------------------------------------------------------------------------------------


def conditioned(t, z, *, rate, shift=0.0):
    return rate * torch.sin(z) + shift * t


def doubly_conditioned(t, z, x, *, rate, shift=0.0):
    return conditioned(t, z, rate=rate, shift=shift) + x


@pytest.mark.parametrize("data_controlled", [False, True])
@pytest.mark.parametrize("base_solver", ["heun", "ab2"])
def test_a_condition_is_bound_to_the_field(base_solver, data_controlled):
    """Live and folded; the correction does not read it."""
    method, x = resolve_base_solver(base_solver), torch.randn(4, 3, dtype=torch.float64)
    condition = {"rate": torch.randn(4, 1, dtype=torch.float64), "shift": 0.5}
    f = doubly_conditioned if data_controlled else conditioned
    net = build_net(MLPCorrection(hidden=4), NetInputs(x, x if data_controlled else None, method.kinds, math.nan))
    g = bound_to(randomize(net, 0.3), x, method).double()

    def make(field):
        ode = NeuralODE(field, data_controlled=data_controlled)
        return HypersolvedODE(ode, method, g, GRID).requires_grad_(False)

    live, bound = make(f), make(lambda t, z, *x: f(t, z, *x, **condition))
    for one, other in ((live, bound), (live.fold(), bound.fold())):
        for call in ("forward", "terminal_state", "trajectory"):
            assert torch.equal(getattr(one, call)(x, condition), getattr(other, call)(x))
        by_row = [one(x[i : i + 1], {"rate": condition["rate"][i : i + 1], "shift": 0.5}) for i in range(4)]
        torch.testing.assert_close(torch.cat(by_row), one(x, condition), rtol=1e-13, atol=1e-13)


def test_macs_are_counted_of_a_field_with_a_condition():
    weight, x = torch.randn(3, 3), torch.randn(1, 3)
    ode = NeuralODE(lambda t, z, rate: rate * (z @ weight))
    module = HypersolvedODE(ode, resolve_base_solver("heun"), None, GRID)
    assert module.count_macs(x, {"rate": torch.ones(1, 1)}) == 2 * 2 * 9
    assert module.fold().count_macs(x, {"rate": torch.ones(1, 1)}) == 2 * 2 * 9


class PlainTerm(nn.Module):
    """A correction as a user writes it."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.25))

    def forward(self, eps, s, z, stages, x=None):
        return self.weight * z


def test_a_plain_module_is_held_as_it_was_given():
    """Adapted only where the loop calls it: its names in the state dict, and what it is called with, stay its own."""
    plain, z = PlainTerm(), torch.ones(2, 1)
    module = HypersolvedODE(NeuralODE(lambda t, z: -z), resolve_base_solver("euler"), plain, (0.0, 0.5, 1.0))
    assert module.correction is plain and set(module.state_dict()) == {"correction.weight"}
    assert module(z).tolist() == [[(0.5 + 0.0625) ** 2]] * 2 == module.fold()(z).tolist()


def test_a_policy_of_another_method_is_refused():
    euler, rk4 = resolve_base_solver("euler"), resolve_base_solver("rk4")
    with pytest.raises(ValueError, match="grid steps with 'euler', which is not base_solver='rk4'"):
        HypersolvedODE(NeuralODE(lambda t, z: -z), rk4, None, FixedMesh.of(euler, (0.0, 1.0), 2))
