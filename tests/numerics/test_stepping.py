"""How a method is driven over a span: plans of steps, a fixed mesh, and a policy of one's own."""

import copy
import pickle
from itertools import islice, pairwise

import pytest
import torch
from problems import ANY_MESH, FORCED, LEARNED, LOGISTIC, METHODS, OwnTwoStep, Recorder, largest, mesh, named

from sklearn_hyper.modules import HypersolvedODE, NeuralODE
from sklearn_hyper.modules.corrections import ModuleCorrection
from sklearn_hyper.numerics import (
    Correction,
    CountedField,
    FieldInputs,
    FixedMesh,
    StepKind,
    Stepping,
    StepPlan,
    hypersolve,
    hypersolve_trajectory,
    resolve_base_solver,
)
from sklearn_hyper.numerics.protection import NO_INPUTS, ProtectedField
from sklearn_hyper.numerics.stepping import check_method_grid, check_state
from sklearn_hyper.numerics.times import time_tensor

HEUN = resolve_base_solver("heun")
GRID = (0.0, 0.25, 0.75, 1.0)

each_method = pytest.mark.parametrize("method", **named(METHODS))


def steps_of(method):
    return method.n_steps or 4


# --- plans ----------------------------------------------------------------------------------------------------------


def test_a_plan_says_when_its_step_evaluates_f():
    ahead = StepPlan(3, 1.0, -0.5, StepKind(2, (0.0, 0.5, 1.0), (0.0,)))
    assert ahead.times() == [1.0, 0.75, 0.5] and ahead.evaluates_start
    late = StepPlan(3, 1.0, -0.5, StepKind(2, (1.0,), (0.0, 1.0, -1.0)))
    assert late.times() == [0.5] and not late.evaluates_start


@pytest.mark.parametrize("direction", [1, -1])
@pytest.mark.parametrize("method", **named((*ANY_MESH, OwnTwoStep())))
def test_a_mesh_plans_its_steps_before_it_takes_them(method, direction):
    grid = GRID[::direction]
    stepping = FixedMesh(method, grid)
    assert [plan.k for plan in stepping.plans] == [0, 1, 2]
    assert [(plan.s, plan.eps) for plan in stepping.plans] == [(s, after - s) for s, after in pairwise(grid)]
    assert [plan.kind for plan in stepping.plans] == [method.kind(k) for k in range(3)]
    assert (stepping.n_steps, stepping.method, stepping.grid) == (3, method, grid)


@each_method
def test_a_mesh_of_steps_is_the_method_s_own(method):
    """Equal steps, but for one that is made for another mesh."""
    n = steps_of(method)
    stepping = FixedMesh.of(method, FORCED.t_span, n)
    assert tuple(stepping.grid) == method.mesh(FORCED.t_span, n)
    equal = [after - s for s, after in pairwise(stepping.grid)] == pytest.approx([2.0 / n] * n)
    assert equal == (method is not LEARNED)


# --- solves ---------------------------------------------------------------------------------------------------------


@each_method
def test_states_come_one_a_step_and_the_last_is_the_solution(method):
    stepping = FixedMesh.of(method, FORCED.t_span, steps_of(method))
    states = list(stepping.iterate(FORCED.f, FORCED.z0))
    assert len(states) == stepping.n_steps
    assert torch.equal(stepping.trajectory(FORCED.f, FORCED.z0), torch.stack([FORCED.z0, *states]))
    assert torch.equal(stepping.solve(FORCED.f, FORCED.z0), states[-1])
    assert torch.equal(states[-1], hypersolve(FORCED.f, FORCED.z0, FORCED.t_span, stepping.n_steps, method))


@each_method
def test_evaluations_are_counted_before_a_solve(method):
    stepping, f = FixedMesh.of(method, FORCED.t_span, steps_of(method)), CountedField(FORCED.f)
    expected = stepping.n_evaluations
    stepping.solve(f, FORCED.z0)
    assert f.n_evaluations == expected == method.count_evaluations(stepping.n_steps)


def test_a_step_is_taken_when_its_state_is_asked_for():
    f = CountedField(FORCED.f)
    states = FixedMesh(HEUN, GRID).iterate(f, FORCED.z0)
    assert f.n_evaluations == 0
    for taken, _ in enumerate(islice(states, 3), start=1):
        assert f.n_evaluations == 2 * taken


def test_one_mesh_serves_many_solves():
    """It keeps nothing of a solve, also of a multistep method."""
    stepping = FixedMesh(resolve_base_solver("ab3"), GRID)
    first = stepping.solve(FORCED.f, FORCED.z0)
    stepping.solve(LOGISTIC.f, LOGISTIC.z0.float())
    assert torch.equal(stepping.solve(FORCED.f, FORCED.z0), first)


def test_states_are_checked_and_meshes_belong_to_their_methods():
    with pytest.raises(TypeError, match=r"z0 must be a floating-point tensor of shape \(batch, ...\), got 1"):
        check_state(1)
    for solve in (FixedMesh(HEUN, GRID).solve, FixedMesh(HEUN, GRID).trajectory):
        with pytest.raises(TypeError, match="z0 must be a floating-point tensor"):
            solve(FORCED.f, torch.ones(2, 1, dtype=torch.int64))
    assert check_method_grid(HEUN, torch.tensor(GRID, dtype=torch.float64)) == GRID
    with pytest.raises(ValueError, match="is not the mesh that base_solver='nonstationary' is made for"):
        check_method_grid(LEARNED, GRID)
    with pytest.raises(ValueError, match="made for n_steps=3 alone, got n_steps=2"):
        check_method_grid(LEARNED, GRID[1:])


# --- a mesh that is being learned -----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", **named([HEUN, *map(resolve_base_solver, ("rk4", "ab3", "abm2"))]))
def test_a_mesh_of_tensors_gives_the_states_of_the_numbers_it_holds(method):
    f, grid = Recorder(FORCED.f), torch.tensor(GRID, dtype=torch.float64)
    states = FixedMesh(method, grid).trajectory(f, FORCED.z0)
    expected = FixedMesh(method, GRID).trajectory(FORCED.f, FORCED.z0)
    assert largest(states - expected) < 1e-14
    assert {(t.shape, t.dtype) for t in f.times} == {(torch.Size(), torch.float64)}


def test_a_mesh_can_be_learned():
    """By methods that do arithmetic with the step's size, as those do whose coefficients are learned."""

    def solve(inner):
        grid = torch.cat([inner.new_zeros(1), inner, inner.new_ones(1)])
        return FixedMesh(OwnTwoStep(), grid).solve(FORCED.f, FORCED.z0, Push())

    inner = torch.tensor([0.3, 0.7], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(solve, inner)
    assert torch.autograd.grad(solve(inner).sum(), inner)[0].abs().min() > 1e-4


class Push(Correction):
    """A correction that depends on when and how long the step is."""

    def term(self, plan, s, z, stages, x):
        return plan.eps * s + stages[-1]


# --- a policy of one's own ------------------------------------------------------------------------------------------


class Adaptive(Stepping):
    """Halves a step until the method's estimate of its error is within a tolerance, and tries twice as long a next one."""

    def __init__(self, method, t_span, tolerance):
        self.method, self.t_span, self.tolerance, self.sizes = method, t_span, tolerance, []

    def iterate(self, f, z0, correction=None, inputs=NO_INPUTS):
        field, (s, end), z, eps, kind = ProtectedField(f, inputs), self.t_span, z0, 1.0, self.method.main_kind
        self.sizes = []
        while s < end:
            eps = min(eps, end - s)
            times = time_tensor([s + node * eps for node in kind.nodes], z0, self.t_span).unbind()
            step = self.method.step(field, times, z, eps, ())
            if step.error.abs().max() > self.tolerance:
                eps /= 2
                continue
            s, z = s + eps, z + eps * step.direction
            self.sizes.append(eps)
            eps *= 2
            yield z

    n_evaluations = None  # it is not known before a solve


@pytest.mark.parametrize("problem", **named([LOGISTIC, FORCED]))
def test_a_policy_of_one_s_own_reads_the_error_and_chooses_its_steps(problem):
    """It writes the loop; what a solve and a trajectory are comes from the base class."""
    method = resolve_base_solver("abm2")  # whose first step is Heun's, with an estimate
    n_steps, errors = [], []
    for tolerance in (1e-3, 1e-5):
        stepping = Adaptive(method, problem.t_span, tolerance)
        states = stepping.trajectory(problem.f, problem.z0)
        n_steps.append(len(stepping.sizes))
        assert len(states) == n_steps[-1] + 1
        assert torch.equal(stepping.solve(problem.f, problem.z0), states[-1])
        errors.append(largest(states[-1] - problem.exact(*problem.t_span, problem.z0)))
    assert n_steps[1] > 2 * n_steps[0] and errors[1] < 0.1 * errors[0] < 0.01


def test_a_module_runs_a_policy_with_live_and_with_folded_weights():
    """Steps that are not known beforehand cannot be folded: the fold is a frozen copy, and its cost is counted."""
    method, problem = resolve_base_solver("abm2"), LOGISTIC
    module = HypersolvedODE(NeuralODE(problem.f), method, None, Adaptive(method, problem.t_span, 1e-4))
    corrected = HypersolvedODE(NeuralODE(problem.f), method, Nothing(), Adaptive(method, problem.t_span, 1e-4))
    expected = Adaptive(method, problem.t_span, 1e-4).solve(problem.f, problem.z0)
    for one in (module, module.fold(), corrected, corrected.fold()):
        assert torch.equal(one(problem.z0), expected)
        assert one.count_evaluations(problem.z0) >= 2 * len(one.stepping.sizes)
        with pytest.raises(TypeError, match="chooses its steps as it goes"):
            _ = one.n_steps


class Nothing(ModuleCorrection):
    """A correction that changes nothing."""


def test_a_policy_has_to_say_how_it_iterates_and_counts():
    with pytest.raises(TypeError, match=r"abstract methods '?iterate'?, '?n_evaluations'?"):
        Stepping()


# --- inputs of the field ---------------------------------------------------------------------------------------------


def test_inputs_reach_the_field_and_x_the_correction():
    seen = []

    class Look(Correction):
        def term(self, plan, s, z, stages, x):
            seen.append(x)

    x, rate = torch.tensor([[2.0], [3.0], [4.0]]).double(), torch.tensor([[0.5], [1.0], [-1.0]]).double()
    f = lambda t, z, x, rate: rate * z * (1 - z) + 0.1 * x * t  # noqa: E731
    inputs = FieldInputs(x, {"rate": rate})
    states = FixedMesh(HEUN, GRID).trajectory(f, FORCED.z0, Look(), inputs)
    bound = hypersolve_trajectory(lambda t, z: f(t, z, x, rate), FORCED.z0, None, None, "heun", grid=GRID)
    assert torch.equal(states, bound)
    assert len(seen) == 3 and all(value is x for value in seen)


@pytest.mark.parametrize("kind", ["uniform", "graded"])
def test_the_correction_gets_the_start_of_a_step_that_evaluates_f_elsewhere(kind):
    """The second and later steps of a PEC method evaluate f at their ends alone."""
    method, starts, f = resolve_base_solver("abm2_pec"), [], Recorder(FORCED.f)

    class Look(Correction):
        def term(self, plan, s, z, stages, x):
            starts.append(s.item())

    grid = mesh((0.0, 1.0), 4, kind)
    FixedMesh(method, grid).solve(f, FORCED.z0, Look())
    assert starts == list(grid[:-1])
    assert [t.item() for t in f.times] == pytest.approx(list(grid))


# ---------------------------------------------------------------------- times that are kept
def decays(t, z):
    return -t * z


def test_times_are_kept_for_states_of_one_kind():
    mesh = FixedMesh(resolve_base_solver("heun"), (0.0, 0.5, 1.0))
    z = torch.ones(3, 1, dtype=torch.float64)
    first = mesh.solve(decays, z)
    kept = mesh._kept
    assert torch.equal(mesh.solve(decays, z), first) and mesh._kept is kept
    assert mesh.solve(decays, z.float()).dtype == torch.float32 and mesh._kept.dtype == torch.float32
    assert torch.equal(mesh.solve(decays, z), first)


def test_a_field_that_writes_into_its_time_harms_no_later_solve():
    def writes(t, z):
        return -t.mul_(2) * z

    mesh = FixedMesh(resolve_base_solver("euler"), (0.5, 1.0))
    z = torch.ones(3, 1, dtype=torch.float64)
    first = mesh.solve(writes, z)
    assert torch.equal(mesh.solve(writes, z), first)


def test_kept_times_serve_no_other_mode_and_no_copy():
    mesh = FixedMesh(resolve_base_solver("heun"), (0.0, 0.5, 1.0))
    z = torch.ones(3, 1, dtype=torch.float64)
    with torch.inference_mode():
        expected = mesh.solve(decays, z).clone()
    gradient = torch.func.grad(lambda state: mesh.solve(decays, state).sum())(z)
    assert mesh._kept is None
    z.requires_grad_(True)
    end = mesh.solve(decays, z)
    end.sum().backward()
    torch.testing.assert_close((end, z.grad), (expected, gradient))
    assert mesh._kept is not None and copy.deepcopy(mesh)._kept is None
    assert pickle.loads(pickle.dumps(mesh))._kept is None
