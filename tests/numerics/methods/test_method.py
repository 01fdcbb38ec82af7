"""The contract of a method: what it says of its steps is what its steps do, and a method of one's own runs everywhere."""

import dataclasses
import pickle
from itertools import pairwise

import pytest
import torch
from problems import (
    ANY_MESH,
    FORCED,
    LEARNED,
    LOGISTIC,
    MATRIX,
    METHODS,
    MULTISTEP,
    OwnTwoStep,
    Recorder,
    largest,
    log_slope,
    mesh,
    named,
)

from sklearn_hyper.numerics import (
    AdamsBashforth,
    Correction,
    FixedMesh,
    Method,
    Nonstationary,
    Step,
    StepKind,
    alpha_family,
    compute_residuals,
    count_nfe,
    hypersolve,
    hypersolve_trajectory,
    resolve_base_solver,
)

DOUBLE = torch.float64
EQUAL_LEARNED = Nonstationary(LEARNED.weights, (0.0, 1 / 3, 2 / 3, 1.0))
ALPHAS = (-1.0, 0.05, 0.3, 0.5, 1.0, 2.0)

each_method = pytest.mark.parametrize("method", **named(METHODS))


# --- kinds are values -----------------------------------------------------------------------------------------------


def test_kinds_are_values():
    """Frozen, hashable and equal by what they say: fit to be a key."""
    kind, twin = StepKind(2, (0.0, 1.0), (0.0, 1.0)), StepKind(2, (0.0, 1.0), (0.0, 1.0))
    assert kind == twin and len({kind, twin, StepKind(2, (0.0, 0.5), (0.0, 0.5))}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        kind.order = 3


def test_a_family_is_an_order_and_a_number_of_stages():
    """Wherever the stages lie, and however the method errs."""
    families = {resolve_base_solver(alpha_family(alpha)).main_kind.family for alpha in ALPHAS}
    assert families == {(2, 2)} == {resolve_base_solver("ab2").main_kind.family}
    assert StepKind(1, (0.0,), (0.0, -1.0)).family == (1, 2)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_spacings_are_the_nodes_of_the_later_stages(alpha):
    assert resolve_base_solver(alpha_family(alpha)).main_kind.spacings == (alpha,)


@pytest.mark.parametrize(
    ("solver", "spacings"), [("euler", ()), ("rk4", (0.5, 0.5, 1.0)), ("rk4_38", (1 / 3, 2 / 3, 1.0))]
)
def test_spacings_of_named_methods(solver, spacings):
    assert resolve_base_solver(solver).main_kind.spacings == spacings


@pytest.mark.parametrize(
    ("solver", "full", "startup"),
    [("ab2", (-1.0,), ()), ("ab3", (-1.0, -2.0), (0.5,)), ("ab4", (-1.0, -2.0, -3.0), (0.5, 1.0))],
)
def test_remembered_stages_lie_before_the_step_and_start_up_stages_in_it(solver, full, startup):
    kinds = resolve_base_solver(solver).kinds
    assert [kind.spacings for kind in kinds] == [startup, full]


def test_a_stage_that_lies_at_the_start_too_has_spacing_one():
    assert StepKind(2, (0.0,), (0.0, 0.0)).spacings == (1.0,)
    again = type(alpha_family(1))("again", 1, ((0, 0, 0), (0, 0, 0), (0, 0.5, 0)), (0, 0.5, 0.5), (0, 0, 0.5))
    assert resolve_base_solver(again).main_kind.spacings == (1.0, 0.5)


# --- what a method says of its steps, and what they do --------------------------------------------------------------


class Watch(Correction):
    """Keeps, for every step, its plan, when it evaluates f, and the stages that it hands out. It corrects nothing."""

    def __init__(self):
        self.plans, self.times, self.stages = [], [], []

    def field(self, f, plan):
        self.plans.append(plan)
        self.times.append([])

        def recorded(t, z):
            self.times[-1].append(t.item())
            return f(t, z)

        return recorded

    def term(self, plan, s, z, stages, x):
        self.stages.append(stages)


def watch(method, f, grid):
    watched = Watch()
    FixedMesh(method, grid).solve(f, torch.zeros(2, 1, dtype=DOUBLE), watched)
    return watched


@pytest.mark.parametrize("kind", ["uniform", "reverse", "graded"])
@pytest.mark.parametrize("method", **named(ANY_MESH))
def test_every_step_evaluates_f_at_the_nodes_of_its_kind_and_nowhere_else(method, kind):
    grid = mesh((0.25, 1.5), 6, kind)
    watched = watch(method, lambda t, z: torch.cos(t) - z, grid)
    for plan, times, (s, after) in zip(watched.plans, watched.times, pairwise(grid), strict=True):
        assert plan.kind == method.kind(plan.k) and (plan.s, plan.eps) == (s, after - s)
        assert times == pytest.approx([s + node * (after - s) for node in plan.kind.nodes], rel=1e-14)


@pytest.mark.parametrize("direction", [1, -1])
@pytest.mark.parametrize("method", **named((*ANY_MESH, OwnTwoStep(), EQUAL_LEARNED)))
def test_every_step_hands_out_f_at_the_offsets_of_its_kind(method, direction):
    """On equal steps. f = t makes a stage its own time."""
    grid = mesh((1.0, 2.0), method.n_steps or 6)[::direction]
    watched = watch(method, lambda t, z: t + 0 * z, grid)
    assert len(watched.stages) == len(grid) - 1
    for plan, stages in zip(watched.plans, watched.stages, strict=True):
        offsets = [(stage[0].item() - plan.s) / plan.eps for stage in stages]
        assert offsets == pytest.approx(plan.kind.offsets, abs=1e-12) and offsets[0] == 0
        assert len(stages) == plan.kind.n_stages


@each_method
def test_kinds_come_once_in_their_order_and_the_last_is_that_of_all_later_steps(method):
    n_steps = method.n_steps or 9
    kinds = [method.kind(k) for k in range(n_steps)]
    assert method.kinds == tuple(dict.fromkeys(kinds))
    assert method.main_kind == method.kinds[-1] == kinds[-1]
    assert method.n_stages == len(kinds[-1].offsets)
    assert set(kinds[method.memory :]) == {method.main_kind}
    assert kinds.index(method.main_kind) == method.n_startup
    assert all(kind.order <= method.main_kind.order for kind in kinds)


def test_a_multistep_method_has_as_many_start_up_steps_as_it_remembers():
    assert [method.n_startup for method in MULTISTEP] == [method.memory for method in MULTISTEP] == [1, 2, 3]
    assert OwnTwoStep().n_startup == 1
    assert (LEARNED.memory, LEARNED.n_startup) == (2, 1)  # of its second step on, all have two stages
    assert Nonstationary([(1.0,)], (0.0, 1.0)).n_startup == 0


@each_method
def test_evaluations_are_counted_from_the_kinds(method):
    for n_steps in [method.n_steps] if method.n_steps else range(1, 7):
        calls = count_nfe(lambda f, n=n_steps: hypersolve(f, FORCED.z0, FORCED.t_span, n, method), FORCED.f)
        assert calls == method.count_evaluations(n_steps)
        assert calls == sum(len(method.kind(k).nodes) for k in range(n_steps))


@each_method
def test_methods_are_hashable_values(method):
    twin = pickle.loads(pickle.dumps(method))
    assert twin == method and twin is not method and len({method, twin}) == 1
    assert resolve_base_solver(method) is method


# --- a method of one's own ------------------------------------------------------------------------------------------


class Halves(Method):
    """Euler's method in two half steps, with an estimate of its error: the distance from one whole step."""

    name, order = "halves", 1

    def kind(self, index):
        return StepKind(1, (0.0, 0.5), (0.0, 0.5))

    def step(self, f, times, z, eps, state):
        first = f(times[0], z)
        second = f(times[1], z + eps / 2 * first)
        direction = (first + second) / 2
        return Step(direction, [first, second], state, error=eps * (direction - first))


def test_a_method_of_one_s_own_needs_a_name_an_order_a_kind_and_a_step():
    class Nameless(Method):
        def kind(self, index):
            return StepKind(1, (0.0,), (0.0,))

    with pytest.raises(TypeError, match=r"abstract method '?step'?"):
        Nameless()
    own = Halves()
    assert (own.memory, own.n_steps, own.follows_trajectory, own.n_startup) == (0, None, True, 0)
    assert own.kinds == (own.main_kind,) and own.count_evaluations(5) == 10
    assert own.mesh((0.0, 1.0), 2) == (0.0, 0.5, 1.0) and own.remember((), 0.1, torch.ones(1)) == ()


def test_a_method_of_one_s_own_steps_as_it_says():
    """Two half steps of Euler's are twice as many steps of Euler's; an error estimate is none of the loop's business."""
    own = hypersolve(FORCED.f, FORCED.z0, FORCED.t_span, 4, Halves())
    assert largest(own - hypersolve(FORCED.f, FORCED.z0, FORCED.t_span, 8, "euler")) < 1e-14


@pytest.mark.parametrize("problem", **named([LOGISTIC, MATRIX]))
def test_an_own_multistep_method_has_its_order_and_count(problem):
    n_steps, errors = (16, 23, 32, 45), []
    for n in n_steps:
        z = hypersolve(problem.f, problem.z0, problem.t_span, n, OwnTwoStep())
        errors.append(largest(z - problem.exact(*problem.t_span, problem.z0)))
    assert abs(-log_slope(n_steps, errors) - 2) < 0.2
    assert count_nfe(lambda f: hypersolve(f, problem.z0, problem.t_span, 6, OwnTwoStep()), problem.f) == 6


def test_an_own_multistep_method_is_the_library_s_on_equal_steps():
    own, ours = (
        hypersolve_trajectory(FORCED.f, FORCED.z0, FORCED.t_span, 6, method)
        for method in (OwnTwoStep(), AdamsBashforth(2))
    )
    assert largest(own - ours) < 1e-14


def test_a_step_of_lower_order_scales_its_own_correction():
    """Exact residuals repair the Euler start-up step (eps^2) and the later ones (eps^3) alike."""
    grid = mesh(FORCED.t_span, 5)
    exact = FORCED.states(grid)
    residuals = compute_residuals(FORCED.f, exact, grid, OwnTwoStep())
    assert [residual.order for residual in residuals] == [1, 2, 2, 2, 2]
    assert [residual.kind for residual in residuals] == [OwnTwoStep().kind(k) for k in range(5)]
    targets = iter(residual.target for residual in residuals)
    states = hypersolve_trajectory(FORCED.f, FORCED.z0, None, None, OwnTwoStep(), lambda *_: next(targets), grid=grid)
    assert largest(states - exact) < 1e-13


def test_the_past_of_an_own_method_is_rebuilt_by_what_it_remembers():
    grid, f = mesh(FORCED.t_span, 5), Recorder(FORCED.f)
    exact = FORCED.states(grid)
    alone = compute_residuals(f, exact, grid, OwnTwoStep(), n_past=1)
    along = compute_residuals(FORCED.f, exact, grid, OwnTwoStep())[1:]
    assert [t.item() for t in f.times] == list(grid[:-1])
    assert all(torch.equal(one.target, other.target) for one, other in zip(alone, along, strict=True))
