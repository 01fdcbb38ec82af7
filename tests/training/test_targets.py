"""From reference states to targets: residuals of planned steps, in units of the base solver's error, one by one and stacked."""

import copy
import warnings
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from problems import DATA_CONTROLLED, FORCED, LOGISTIC
from small_tasks import (
    each_multistep,
    each_span,
    fit_settings,
    logistic_plan,
    logistic_targets,
    scaled_correction,
    turn_task,
)

from sklearn_hyper import NeuralODE
from sklearn_hyper.hypersolvers import Task
from sklearn_hyper.numerics import ConditioningWarning, compute_residuals, resolve_base_solver
from sklearn_hyper.numerics.protection import NO_INPUTS
from sklearn_hyper.numerics.residuals import target_noise
from sklearn_hyper.numerics.times import uniform_grid
from sklearn_hyper.training import targets
from sklearn_hyper.training.errors import BaseSolverOverflowError
from sklearn_hyper.training.plan import StepSizes, TrainingStep, make_plan, mesh_times
from sklearn_hyper.training.references import solve_ends, solve_references
from sklearn_hyper.training.targets import (
    Target,
    TargetStack,
    residual_set,
    solve_precisely,
    span_units,
    stack_targets,
    state_set,
    task_residuals,
)


# ---------------------------------------------------------------------- a target, and a stack of them
@pytest.mark.parametrize("base_solver", ["euler", "heun", "ab3"])
def test_the_loss_of_no_correction_is_one(base_solver):
    _, references, made = logistic_targets(base_solver)
    zero = scaled_correction(made)
    for target in made:
        assert float(target.loss(zero, references.inputs, slice(None))) == pytest.approx(1, rel=1e-12)


def test_the_loss_is_the_mean_share_of_the_residual_that_is_missed():
    _, references, made = logistic_targets()
    g = scaled_correction(made, 0.3)
    for target in made[:5]:
        r = target.residual
        missed = (r.target - g(r.eps, r.time(), r.z, r.stages, None, r.kind)).norm(dim=1).mean()
        expected = float(missed / r.target.norm(dim=1).mean())
        assert float(target.loss(g, references.inputs, slice(None))) == pytest.approx(expected, rel=1e-12)


def test_a_step_that_the_base_solver_takes_exactly_has_a_unit_all_the_same():
    """Euler's step of z' = 0: the residual is zero, and so is the loss of no correction."""
    z = torch.ones(3, 2, dtype=torch.float64)
    (residual,) = compute_residuals(lambda t, z: 0 * z, torch.stack([z, z]), (0.0, 0.5), "euler")
    target = Target.of(residual, torch.full((1, 2), 2.0, dtype=torch.float64))
    assert torch.equal(target.unit, torch.full((1, 2), 2.0, dtype=torch.float64))
    assert float(target.loss(scaled_correction([target]), NO_INPUTS, slice(None))) == 0


@pytest.mark.parametrize("size", [0.0, 0.3])
@pytest.mark.parametrize("base_solver", ["euler", "heun", "ab3"])
def test_a_stack_gives_the_losses_of_its_targets(base_solver, size):
    _, references, made = logistic_targets(base_solver, fit_n_steps=(2, 6))
    g, rows = scaled_correction(made, size), torch.arange(len(references))
    kinds = list(dict.fromkeys(target.residual.kind for target in made))
    expected = {
        kind: [float(t.loss(g, references.inputs, rows)) for t in made if t.residual.kind == kind] for kind in kinds
    }
    stacks = stack_targets(made)
    assert made == [] and [stack.kind for stack in stacks] == kinds
    for stack in stacks:
        alone = [float(stack.loss(g, references.inputs, rows, torch.full_like(rows, k))) for k in range(stack.n_steps)]
        assert alone == pytest.approx(expected[stack.kind], rel=1e-9)


def test_every_row_of_a_stack_may_take_another_step():
    _, references, made = logistic_targets()
    g, pairs = scaled_correction(made, 0.3), [(3, 1), (0, 4), (7, 1), (3, 0)]
    one_by_one = [float(made[k].loss(g, references.inputs, torch.tensor([row]))) for row, k in pairs]
    (stack,) = stack_targets(made)
    rows, steps = torch.tensor(pairs).T
    assert float(stack.loss(g, references.inputs, rows, steps)) == pytest.approx(np.mean(one_by_one), rel=1e-9)


def test_stacking_lets_targets_go():
    _, _, made = logistic_targets()
    kept = [target.residual for target in made]
    stack = TargetStack(made)
    assert made == [] and stack.n_steps == len(kept)
    for i, residual in enumerate(kept):
        assert torch.equal(stack.z[i], residual.z) and torch.equal(stack.target[i], residual.target)
        assert torch.equal(stack.stages[0][i], residual.stages[0])
        assert (float(stack.eps[i]), float(stack.s[i])) == (residual.eps, residual.s)


# ---------------------------------------------------------------------- residuals along a mesh
@each_span
@each_multistep
def test_residuals_are_those_along_the_grid(method, t_span):
    """Each, computed on its own, is the step of compute_residuals along the whole grid, start-up or not; many rows too."""
    times = mesh_times(t_span, (6,))
    z0 = torch.linspace(0.1, 0.9, 2050, dtype=torch.float64)[:, None]
    states = torch.stack([FORCED.exact(times[0], s, z0) for s in times])
    grid = uniform_grid(t_span, 6)
    indices = [int(np.abs(np.array(times) - s).argmin()) for s in grid]
    steps = [TrainingStep(i, j, method) for i, j in pairwise(indices)]
    residuals = list(task_residuals(NeuralODE(FORCED.f, t_span=t_span), times, states, NO_INPUTS, steps))
    expected = compute_residuals(FORCED.f, states[indices], grid, method)
    assert [residual.order for residual in residuals] == [method.order - 1] * (method.order - 1) + [method.order] * (
        7 - method.order
    )
    for residual, other in zip(residuals, expected, strict=True):
        assert (residual.s, residual.eps) == pytest.approx((other.s, other.eps), abs=1e-12)
        assert residual.kind == other.kind
        assert torch.equal(residual.z, other.z) and len(residual.stages) == len(other.stages)
        for stage, exact in zip([*residual.stages, residual.target], [*other.stages, other.target], strict=True):
            torch.testing.assert_close(stage, exact, rtol=1e-9, atol=1e-9)


def test_inputs_of_a_field_go_with_their_rows():
    problem = DATA_CONTROLLED
    times = (0.0, 0.25, 1.0)
    states, ode = problem.states(times), NeuralODE(problem.f, data_controlled=True)
    steps = [TrainingStep(0, 2, resolve_base_solver("heun"))]
    (residual,) = task_residuals(ode, times, states, ode.inputs(problem.x), steps)
    (expected,) = compute_residuals(problem.f, states[[0, 2]], (0.0, 1.0), "heun", x=problem.x)
    assert torch.equal(residual.target, expected.target)


def test_units_of_states_are_those_of_both_ends_of_the_span():
    ode = NeuralODE(lambda t, z: z)
    states = torch.zeros(3, 4, 2, dtype=torch.float64)
    states[0, :, 0], states[1], states[2, :, 1] = 2.0, 1e9, 6.0
    np.testing.assert_allclose(span_units(ode, states).squeeze(), np.sqrt(10))


# ---------------------------------------------------------------------- sets of a task
def euler_plan(n_steps=2):
    sizes = StepSizes.from_parameters(n_steps, None)
    return make_plan([resolve_base_solver("euler")], (0.0, 1.0), n_steps, sizes, np.random.default_rng(0))


def split(task, n_valid=10):
    shuffled = torch.randperm(len(task), generator=torch.Generator().manual_seed(1))
    return shuffled[:n_valid], shuffled[n_valid:]


def test_a_set_of_residuals_is_that_of_its_rows():
    task, settings = turn_task(), fit_settings(rtol=1e-8, atol=1e-8)
    plan, (held_out, fitted) = euler_plan(), split(task)
    data = residual_set(task, plan, held_out, fitted, settings)
    assert (len(data.train), len(data.valid)) == (50, 10)
    assert len(data.targets) == len(data.valid_targets) == len(plan.steps)
    states = solve_references(task, plan.times, settings)
    torch.testing.assert_close(data.train.states, states[:, fitted])
    torch.testing.assert_close(data.valid.states, states[:, held_out])
    for target, step in zip(data.targets, plan.steps, strict=True):
        grid = (plan.times[step.start], plan.times[step.end])
        (expected,) = compute_residuals(task.neural_ode.vector_field, states[[step.start, step.end]], grid, "euler")
        torch.testing.assert_close(target.residual.target, expected.target[fitted])
    assert len(data.take_sample().residuals) == len(plan.steps) and data.sample is None


def test_a_set_of_states_alone_has_no_targets_but_a_sample_for_units():
    task, settings = turn_task(), fit_settings(loss="trajectory", finetune=None)
    plan, (held_out, fitted) = euler_plan(), split(task)
    data = state_set(task, plan, held_out, fitted, settings, None)
    assert data.targets == data.valid_targets == []
    assert data.train.times == data.valid.times == plan.times
    assert len(data.take_sample().residuals) == len(plan.steps)


def test_with_known_ends_all_rows_are_fitted_to_these(solves):
    task, settings = turn_task(400), fit_settings(base_solver="nonstationary", n_steps=2)
    plan, (held_out, fitted), ends = euler_plan(), split(task), solve_ends(task, settings)
    data = state_set(task, plan, held_out, fitted, settings, ends)
    assert [solve.n_rows for solve in solves] == [400, 10 + 256]  # held-out ones, and those that tell the scales
    assert data.train.times == (0.0, 1.0) and torch.equal(data.train.states, ends[:, fitted])
    assert data.valid.times == plan.times


def test_a_base_solver_that_overflows_is_named_with_its_rows():
    ode = NeuralODE(lambda t, z: -(z**3))
    x = torch.full((5, 1), 0.5, dtype=torch.float64)
    x[3] = 1e200  # its cube is out of the range of numbers
    states = torch.stack([x, x])
    steps = [TrainingStep(0, 1, resolve_base_solver("euler"))]
    residuals = list(task_residuals(ode, (0.0, 1.0), states, NO_INPUTS, steps))
    with pytest.raises(BaseSolverOverflowError, match=r"base_solver='euler' with n_steps=2 overflows .* \(row 3\)"):
        targets._check_residuals(residuals, steps, fit_settings())


# ---------------------------------------------------------------------- noise
class Logistic(torch.nn.Module):
    def forward(self, t, z):
        return LOGISTIC.f(t, z)


def logistic_solves(monkeypatch):
    """Exact states in place of dopri5's, and what was asked for."""
    calls = []

    def solve(task, times, settings, *, rtol=None, atol=None, double=False, keep_lost=False):
        calls.append((settings.rtol if rtol is None else rtol, double))
        return LOGISTIC.states(times).to(torch.float64 if double else torch.float32)

    monkeypatch.setattr(targets, "solve_references", solve)
    return calls


@each_multistep
def test_targets_that_noise_would_drown_are_solved_for_again(method, monkeypatch):
    """The noise is that of the kind of steps, start-up or full, that suffers most: of another order, and another residual."""
    plan, p, calls = logistic_plan(method, n_steps=10), method.order, logistic_solves(monkeypatch)
    task = Task(NeuralODE(Logistic(), t_span=LOGISTIC.t_span), LOGISTIC.z0.float())
    with pytest.warns(ConditioningWarning, match=r"order \d; rtol=0.0001") as warned:
        states, source = solve_precisely(task, plan, fit_settings(rtol=1e-4, atol=1e-4))
    residuals = list(source.residuals(plan.times, plan.steps, states.dtype))
    assert [double for _, double in calls] == [False, True] and calls[1][0] < 1e-4
    assert states.dtype == torch.float32 and {residual.target.dtype for residual in residuals} == {torch.float32}
    orders = {int(str(w.message).split("order ")[1][0]) for w in warned}
    smallest = {
        order: min((r for r in residuals if r.order == order), key=lambda r: abs(r.eps)) for order in (p - 1, p)
    }
    assert orders == {max(smallest, key=lambda order: target_noise(smallest[order], 1e-4, 1e-4))}
    exact = task_residuals(
        copy.deepcopy(task.neural_ode), plan.times, LOGISTIC.states(plan.times), NO_INPUTS, plan.steps
    )
    for residual, other in zip(residuals, exact, strict=True):
        assert torch.equal(residual.target, other.target.float())


def test_targets_above_the_noise_stay(monkeypatch):
    plan, calls = logistic_plan("ab2", n_steps=4), logistic_solves(monkeypatch)
    task = Task(NeuralODE(Logistic(), t_span=LOGISTIC.t_span), LOGISTIC.z0)
    monkeypatch.setattr(
        targets, "solve_references", lambda *args, **how: calls.append(how) or LOGISTIC.states(plan.times)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        states, source = solve_precisely(task, plan, fit_settings(rtol=1e-9, atol=1e-9))
    assert len(calls) == 1 and source.states is states and source.neural_ode is task.neural_ode


def test_the_noise_is_looked_for_in_the_smallest_step_of_every_sort():
    plan = logistic_plan("ab3", n_steps=5)
    smallest = targets._smallest_steps(plan)
    sorts = Counter(len(step.past(plan.times)) for step in plan.steps)
    assert len(smallest) == len(sorts) > 1

    def size(step):
        return abs(plan.times[step.end] - plan.times[step.start])

    for step in smallest:
        alike = [other for other in plan.steps if len(other.past(plan.times)) == len(step.past(plan.times))]
        assert size(step) == min(map(size, alike))
