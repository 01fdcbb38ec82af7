"""Fit's product is one plain module: what it computes, what it costs, and that it exports."""

import copy
import pickle

import pytest
import torch
from problems import BASE_SOLVERS, FORCED, LOGISTIC, largest, named
from torch import nn

from sklearn_hyper import ConvCorrection, MLPCorrection, alpha_family
from sklearn_hyper.modules import BoundedCorrection, ConvVectorField, HypersolvedODE, MLPVectorField, NeuralODE
from sklearn_hyper.numerics import (
    CountedField,
    Residual,
    compute_residuals,
    hypersolve,
    hypersolve_trajectory,
    resolve_base_solver,
)

GRID = (0.0, 0.3, 1.0)


class Controlled(nn.Module):
    """f(t, z, x) for two states and three inputs."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(5, 2)

    def forward(self, t, z, x):
        return torch.tanh(self.linear(torch.cat([z, x], dim=1))) + t


def make_correction(spec, z, n_stages, order, x=None):
    """A correction with random weights, as a fit would leave it."""
    net = spec.build(Residual(0.0, 0.1, z, [z] * n_stages, order, z), x)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    scale = torch.full((z.shape[1], *[1] * (z.ndim - 2)), 0.5)
    return BoundedCorrection(net, order=order, output_scale=scale, cap=0.2, floor=0.1)


def make_module(kind, base_solver="heun", tableaus=None):
    """A hypersolved ODE with maps and a random correction, and an input for it."""
    solver = resolve_base_solver(base_solver)
    x, spec, control = torch.randn(5, 3), MLPCorrection(hidden=6, tableaus=tableaus), None
    if kind == "vector":
        ode = NeuralODE(MLPVectorField(4, hidden=8), input_map=nn.Linear(3, 4), output_map=nn.Linear(4, 2))
    elif kind == "controlled":
        ode = NeuralODE(Controlled(), input_map=nn.Linear(3, 2), output_map=nn.Linear(2, 2), data_controlled=True)
        control = x
    else:
        x, spec = torch.randn(5, 1, 6, 6), ConvCorrection(hidden=4, tableaus=tableaus)
        head = nn.Sequential(nn.Flatten(), nn.Linear(72, 2))
        ode = NeuralODE(ConvVectorField(2, hidden=4), input_map=nn.Conv2d(1, 2, 1), output_map=head)
    correction = make_correction(spec, ode.input_map(x).detach(), solver.n_stages, solver.order, control)
    return HypersolvedODE(ode, solver, correction, GRID).eval().requires_grad_(False), x


each_kind = pytest.mark.parametrize("kind", ["vector", "controlled", "image"])


@each_kind
def test_it_is_input_map_corrected_steps_and_output_map(kind):
    module, x = make_module(kind)
    ode = module.neural_ode
    arguments = (ode.vector_field, ode.input_map(x), None, None, "heun", module.correction)
    options = {"x": ode.control(x), "grid": GRID}
    assert torch.equal(module.terminal_state(x), hypersolve(*arguments, **options))
    assert torch.equal(module.trajectory(x), hypersolve_trajectory(*arguments, **options))
    assert torch.equal(module(x), ode.output_map(module.trajectory(x)[-1]))
    assert module.n_steps == 2 and module.grid == GRID


@each_kind
def test_without_correction_it_is_the_base_solver(kind):
    module, x = make_module(kind)
    ode = module.neural_ode
    base = HypersolvedODE(ode, module.base_solver, None, GRID)
    z = hypersolve(ode.vector_field, ode.input_map(x), None, None, "heun", x=ode.control(x), grid=GRID)
    assert torch.equal(base(x), ode.output_map(z))
    assert not torch.allclose(base(x), module(x))


@pytest.mark.parametrize("solver", **named(BASE_SOLVERS))
def test_it_evaluates_the_field_stages_times_steps(solver):
    field = CountedField(lambda t, z: -z)
    z = torch.ones(2, 3)
    correction = make_correction(MLPCorrection(hidden=4), z, solver.n_stages, solver.order)
    HypersolvedODE(NeuralODE(field), resolve_base_solver(solver), correction, GRID)(z)
    assert field.n_evaluations == 2 * solver.n_stages


def swapped(module, base_solver):
    """The same correction with another base solver, as ``with_solver`` makes it."""
    return HypersolvedODE(module.neural_ode, resolve_base_solver(base_solver), module.correction, module.grid).eval()


each_family = pytest.mark.parametrize("tableaus", [None, ["midpoint"]], ids=["one", "family"])


@each_kind
@each_family
def test_the_correction_is_bound_to_the_base_solver(kind, tableaus):
    module, x = make_module(kind, tableaus=tableaus)
    midpoint = swapped(module, "midpoint")
    assert midpoint.correction.net.spacings == (0.5,) and module.correction.net.spacings == (1.0,)
    back = swapped(midpoint, "heun")
    torch.testing.assert_close(back(x), module(x))
    assert not torch.allclose(midpoint(x), module(x), rtol=1e-3)
    assert torch.equal(swapped(module, alpha_family(0.5))(x), midpoint(x))


@pytest.mark.parametrize("alpha", [-1.0, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("problem", **named([LOGISTIC, FORCED]))
def test_an_exact_correction_reaches_the_solution_with_any_base_solver(problem, alpha):
    """R is what eq. 6 says of the base solver at hand: one that knows it steps from solution to solution."""

    class Exact(nn.Module):
        solver = None

        def for_solver(self, solver):
            bound = Exact()
            bound.solver = solver
            return bound

        def forward(self, eps, s, z, stages, x=None):
            s = float(s)
            states = torch.stack([z, problem.exact(s, s + eps, z)])
            return compute_residuals(problem.f, states, (s, s + eps), self.solver)[0].target

    grid = [problem.t_span[0] + share * (problem.t_span[1] - problem.t_span[0]) for share in (0, 0.2, 0.6, 1)]
    module = HypersolvedODE(NeuralODE(problem.f), resolve_base_solver(alpha_family(alpha)), Exact(), grid)
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
    both = copy.deepcopy(nn.ModuleList([module, other])).double()
    expected = swapped(both[0], alpha_family(0.3))(x.double())
    torch.testing.assert_close(both[1](x.double()), expected, rtol=1e-5, atol=1e-6)  # folded in float32
    assert both[1].correction.output_scale is both[0].correction.output_scale


@each_kind
def test_export_is_exact_for_any_batch(kind):
    module, x = make_module(kind)
    exported = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2, max=512)},))
    for rows in (x, torch.randn(17, *x.shape[1:])):
        assert torch.equal(exported.module()(rows), module(rows))


@each_kind
def test_pickles_and_copies_compute_the_same(kind):
    module, x = make_module(kind)
    for other in (pickle.loads(pickle.dumps(module)), copy.deepcopy(module)):
        assert torch.equal(other(x), module(x))
        assert other.base_solver == module.base_solver and not other.training
    assert {"correction.output_scale"} < set(module.state_dict())


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
