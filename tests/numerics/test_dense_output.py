"""States between the steps of a solve: their order, the nodes they pass through, and what they cost."""

import itertools
import math
import pickle

import pytest
import torch
from problems import (
    ANY_MESH,
    DATA_CONTROLLED,
    DORMAND_PRINCE,
    FORCED,
    LEARNED,
    LOGISTIC,
    MATRIX,
    METHODS,
    largest,
    log_slope,
    mesh,
    named,
)

from sklearn_hyper.numerics import (
    Adaptive,
    Correction,
    CountedField,
    FieldInputs,
    FixedMesh,
    RungeKutta,
    Stepping,
    resolve_base_solver,
)
from sklearn_hyper.numerics.dense_output import MeshInterpolation

HEUN, RK3 = resolve_base_solver("heun"), resolve_base_solver("rk3")
GRIDS = [(0.0, 0.5, 1.0, 1.5), (2.0, 1.6, 1.0, 0.7), (0.0, 0.2, 0.6, 1.4)]


def doubles(values):
    return torch.tensor(values, dtype=torch.float64)


def on_mesh(f, slope, grid, times):
    """Interpolate a scalar function from its values and slopes at the nodes of a mesh."""
    dense = MeshInterpolation(grid, times)
    states = [doubles([[f(s)]]) for s in grid[: dense.n_steps + 1]]
    return dense.states(states, {node: doubles([[slope(grid[node])]]) for node in dense.nodes})[:, 0, 0]


def inner_times(t_span, n=23):
    """Irregular times, the ends among them, that hold no node of an ordinary mesh but those."""
    shares = torch.linspace(0, 1, n, dtype=torch.float64) ** 1.3
    times = t_span[0] + (t_span[1] - t_span[0]) * shares
    times[-1] = t_span[1]
    return times


# --- the formula -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", GRIDS)
def test_three_nodes_are_exact_for_degree_five(grid):
    times = inner_times((grid[0], grid[-1]))
    found = on_mesh(lambda s: s**5 - s**4 + 2, lambda s: 5 * s**4 - 4 * s**3, grid, times)
    assert largest(found - (times**5 - times**4 + 2)) < 1e-13


@pytest.mark.parametrize("grid", [(0.0, 1.0), (0.0, 0.1, 1.0), (1.0, 0.9, 0.0)])
def test_where_the_third_node_is_missing_or_near_two_are_exact_for_cubics(grid):
    """A node a tenth of a step away would multiply the errors of both by 70."""
    times = inner_times((grid[0], grid[-1]))
    assert largest(on_mesh(lambda s: s**3 - s, lambda s: 3 * s**2 - 1, grid, times) - (times**3 - times)) < 1e-14
    noisy = [doubles([[0.0]]) for _ in grid]
    noisy[-2] = doubles([[1.0]])
    dense = MeshInterpolation(grid, times)
    assert largest(dense.states(noisy, {node: doubles([[0.0]]) for node in dense.nodes})) <= 1 + 1e-12


@pytest.mark.parametrize(("n_nodes", "order"), [(9, 6), (2, 4)])
def test_the_error_of_exact_nodes_falls_with_the_sixth_power_of_a_step_and_the_fourth_of_a_single_one(n_nodes, order):
    sizes, errors = [0.4, 0.2, 0.1, 0.05], []
    for size in sizes:
        grid = [1 + size * k for k in range(n_nodes)]
        times = torch.linspace(1, grid[-1], 101, dtype=torch.float64)
        found = on_mesh(math.exp, math.exp, grid, times)
        errors.append(largest((found - times.exp()) / times.exp()))
    assert log_slope(sizes, errors) == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize("times", [[-0.1], [1.6], [0.5, float("nan")], [[0.5], [2.0]]])
def test_times_outside_and_nan_are_refused(times):
    with pytest.raises(ValueError, match=r"times must lie within the span from 0\.0 to 1\.5, got"):
        MeshInterpolation(GRIDS[0], times)
    with pytest.raises(ValueError, match=r"times must lie within the span from 0\.0 to 1\.5, got"):
        Adaptive(RK3, LOGISTIC.t_span, 1e-3).states_at(LOGISTIC.f, LOGISTIC.z0[:2], doubles(times))


# --- solves on a mesh ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", [1, -1])
@pytest.mark.parametrize("problem", **named([LOGISTIC, FORCED]))
@pytest.mark.parametrize(
    "method",
    **named([*map(resolve_base_solver, ("euler", "heun", "rk3", "rk4", "ab2", "ab4", "abm2_pec")),
             RungeKutta(DORMAND_PRINCE)]),
)  # fmt: skip
def test_states_on_the_way_have_the_order_of_the_solver(method, problem, direction):
    span = problem.t_span[::direction]
    z0 = problem.exact(problem.t_span[0], span[0], problem.z0)
    times = inner_times(span)
    exact = torch.stack([problem.exact(span[0], time, z0) for time in times.tolist()])
    sizes = [16, 24, 32, 48]
    errors = [largest(FixedMesh.of(method, span, k).states_at(problem.f, z0, times) - exact) for k in sizes]
    assert -log_slope(sizes, errors) > method.order - 0.3


@pytest.mark.parametrize("method", **named(METHODS))
def test_states_at_the_nodes_are_those_of_the_trajectory(method):
    """Bit for bit, with a correction as well, and however the node's time was computed."""
    stepping = FixedMesh.of(method, FORCED.t_span, method.n_steps or 4)
    off = doubles(stepping.grid) * (1 + 2e-16)
    off[-1] = stepping.grid[-1]
    for correction in (None, Push()):
        expected = stepping.trajectory(FORCED.f, FORCED.z0, correction)
        for times in (doubles(stepping.grid), off):
            assert torch.equal(stepping.states_at(FORCED.f, FORCED.z0, times, correction), expected)
        near = stepping.states_at(FORCED.f, FORCED.z0, doubles(stepping.grid[1:]) - 1e-7, correction)
        assert largest(near - expected[1:]) < 1e-5


class Push(Correction):
    """Adds a term that depends on when the step is."""

    def term(self, plan, s, z, stages, x):
        return 0.1 * s + stages[-1]


class Bends(Correction):
    """Changes f in every second step."""

    def field(self, f, plan):
        return (lambda t, z: 1.1 * f(t, z)) if plan.k % 2 else f


class Repairs(Correction):
    """The exact residual: the trajectory is that of the problem."""

    def __init__(self, problem, method):
        self.problem, self.method = problem, method

    def term(self, plan, s, z, stages, x):
        direction = self.method.step(self.problem.f, [s + node * plan.eps for node in plan.kind.nodes], z, plan.eps, ())
        exact = self.problem.exact(plan.s, plan.s + plan.eps, z)
        return (exact - z - plan.eps * direction[0]) / plan.eps ** (plan.kind.order + 1)


def test_between_exactly_corrected_steps_the_error_falls_with_the_sixth_power():
    """So that what a correction gains at the nodes is not lost between them."""
    times, sizes = inner_times(FORCED.t_span), [8, 12, 16, 24]
    exact = torch.stack([FORCED.exact(FORCED.t_span[0], time, FORCED.z0) for time in times.tolist()])
    errors = []
    for n_steps in sizes:
        stepping = FixedMesh.of(HEUN, FORCED.t_span, n_steps)
        errors.append(largest(stepping.states_at(FORCED.f, FORCED.z0, times, Repairs(FORCED, HEUN)) - exact))
    assert -log_slope(sizes, errors) > 5.5 and errors[0] < 1e-3


@pytest.mark.parametrize("policy", ["mesh", "backwards", "adaptive", "adaptive rows"])
def test_a_state_depends_on_neither_other_times_nor_other_rows(policy):
    span = LOGISTIC.t_span[:: -1 if policy == "backwards" else 1]
    if policy.startswith("adaptive"):
        stepping = Adaptive(RK3, span, 1e-3, 1e-3, times="none")
    else:
        stepping = FixedMesh.of(RK3, span, 4)
    times, z0 = inner_times(span), LOGISTIC.z0
    together = stepping.states_at(LOGISTIC.f, z0, times)
    own = times.expand(len(z0), -1)
    assert torch.equal(stepping.states_at(LOGISTIC.f, z0, own), together)
    for k, time in enumerate(times):
        assert torch.equal(stepping.states_at(LOGISTIC.f, z0, time[None])[0], together[k])
    picked = torch.tensor([[3], [20], [11]])
    rows = stepping.states_at(LOGISTIC.f, z0, own.gather(1, picked))
    assert torch.equal(rows[0], together[picked[:, 0], torch.arange(3)])
    for i in range(len(z0)):
        alone = stepping.states_at(LOGISTIC.f, z0[i : i + 1], times)
        assert largest(alone[:, 0] - together[:, i]) < 1e-14


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_states_keep_their_dtype_and_may_have_any_shape(dtype):
    z0, times = MATRIX.z0.to(dtype), inner_times(MATRIX.t_span, 7)
    exact = torch.stack([MATRIX.exact(MATRIX.t_span[0], time, MATRIX.z0) for time in times.tolist()])
    for at in (times, times.expand(len(z0), -1)):
        states = FixedMesh.of(resolve_base_solver("rk4"), MATRIX.t_span, 20).states_at(MATRIX.f, z0, at)
        assert states.dtype == dtype and states.shape == (7, *z0.shape)
        assert largest(states - exact) < (1e-5 if dtype == torch.float64 else 1e-4)


def test_inputs_of_the_field_reach_the_evaluation_at_the_end():
    problem, times = DATA_CONTROLLED, doubles([0.3, 0.9])
    states = FixedMesh.of(RK3, problem.t_span, 10).states_at(problem.f, problem.z0, times, None, FieldInputs(problem.x))
    exact = torch.stack([problem.exact(0.0, time, problem.z0) for time in times.tolist()])
    assert largest(states - exact) < 1e-4


def test_gradients_flow_through_the_interpolation():
    stepping, times = FixedMesh.of(HEUN, LOGISTIC.t_span, 3), doubles([0.2, 0.5, 1.3])
    z0 = LOGISTIC.z0.clone().requires_grad_(True)
    assert torch.autograd.gradcheck(lambda z: stepping.states_at(LOGISTIC.f, z, times), z0)


# --- what they cost --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("times", "n_steps", "more"),
    [
        ([0.0], 0, 0),  # the start is known
        ([0.0, 1.0, 2.0], 2, 0),  # nodes
        ([4.0], 4, 0),
        ([0.4], 2, 1),  # from nodes 0, 1 and 2
        ([1.4], 2, 1),  # from nodes 0, 1 and 2
        ([0.4, 2.2], 3, 1),
        ([0.4, 2.0], 2, 1),
        ([0.4, 4.0], 4, 0),  # f at node 2 is the third step's first stage
        ([3.9], 4, 1),
    ],
)
@pytest.mark.parametrize("method", **named([HEUN, RK3, resolve_base_solver("ab2")]))
def test_the_solve_ends_with_the_last_step_needed_and_f_is_read_from_the_steps(method, times, n_steps, more):
    f = CountedField(FORCED.f)
    stepping = FixedMesh.of(method, (0.0, 4.0), 4)
    for correction in (None, Push()):
        f.n_evaluations = 0
        stepping.states_at(f, FORCED.z0, doubles(times), correction)
        assert f.n_evaluations == method.count_evaluations(n_steps) + more


def test_steps_that_evaluate_something_else_at_their_start_take_an_evaluation_a_node():
    f, times = CountedField(FORCED.f), doubles([0.5, 1.5, 2.5, 3.5])
    FixedMesh.of(HEUN, (0.0, 4.0), 4).states_at(f, FORCED.z0, times, Bends())
    assert f.n_evaluations == 8 + 3  # nodes 1 and 3 under changed weights, and the last
    f = CountedField(FORCED.f)
    pec = resolve_base_solver("abm2_pec")
    FixedMesh.of(pec, (0.0, 4.0), 4).states_at(f, FORCED.z0, times)
    assert f.n_evaluations == pec.count_evaluations(4) + 4  # all nodes but the first


def test_adaptive_steps_take_one_evaluation_more_at_the_end():
    stepping = Adaptive(RK3, LOGISTIC.t_span, 1e-1, 1e-1, max_step=0.1, times="none")
    for times, expected in [([0.0], 0), ([1.5], 15 * 3), ([0.0, 1.5], 15 * 3), ([0.3, 1.5], 15 * 3 + 1)]:
        f = CountedField(LOGISTIC.f)
        stepping.states_at(f, LOGISTIC.z0, doubles(times))
        assert f.n_rows_evaluated == 3 * expected


def test_adaptive_states_on_the_way_are_as_accurate_as_the_tolerance():
    times, errors = inner_times(LOGISTIC.t_span), []
    exact = torch.stack([LOGISTIC.exact(0.0, time, LOGISTIC.z0) for time in times.tolist()])
    for rtol in (1e-4, 1e-6, 1e-8):
        states = Adaptive(RK3, LOGISTIC.t_span, rtol, rtol, times="none").states_at(LOGISTIC.f, LOGISTIC.z0, times)
        errors.append(largest(states - exact))
    assert all(after < 0.05 * before for before, after in itertools.pairwise(errors)) and errors[-1] < 1e-7


# --- refusals, and what is kept --------------------------------------------------------------------------------------


def test_a_policy_of_one_s_own_has_to_say_how():
    class Own(Stepping):
        n_evaluations = None

        def iterate(self, f, z0, correction=None, inputs=None):
            yield z0

    with pytest.raises(TypeError, match="Own gives states at its own steps alone: write its method states_at"):
        Own().states_at(LOGISTIC.f, LOGISTIC.z0, doubles([0.0]))


@pytest.mark.parametrize("policy", ["fixed", "adaptive"])
@pytest.mark.parametrize("shape", [(), (len(LOGISTIC.z0) + 1, 2), (len(LOGISTIC.z0), 2, 1)])
def test_times_of_another_shape_are_refused_by_it(policy, shape):
    span = LOGISTIC.t_span
    stepping = FixedMesh.of(RK3, span, 3) if policy == "fixed" else Adaptive(RK3, span, 1e-4, 1e-4, times="none")
    with pytest.raises(ValueError, match=r"times must have shape \(n_times,\), the same for all rows, or"):
        stepping.states_at(LOGISTIC.f, LOGISTIC.z0, torch.full(shape, sum(span) / 2))


@pytest.mark.parametrize("method", **named([*ANY_MESH[:3], LEARNED]))
def test_nothing_is_kept_of_it(method):
    stepping = FixedMesh.of(method, FORCED.t_span, 3)
    before = pickle.dumps(stepping)
    first = stepping.states_at(FORCED.f, FORCED.z0, inner_times(FORCED.t_span))
    assert pickle.dumps(stepping) == before
    assert torch.equal(stepping.states_at(FORCED.f, FORCED.z0, inner_times(FORCED.t_span)), first)


@pytest.mark.parametrize("kind", ["uniform", "graded", "reverse"])
def test_any_mesh_serves(kind):
    span = FORCED.t_span if kind != "reverse" else FORCED.t_span[::-1]
    z0 = FORCED.exact(FORCED.t_span[0], span[0], FORCED.z0)
    times = inner_times(span)
    exact = torch.stack([FORCED.exact(span[0], time, z0) for time in times.tolist()])
    stepping = FixedMesh(resolve_base_solver("rk4"), mesh(FORCED.t_span, 12, kind))
    at_nodes = largest(stepping.trajectory(FORCED.f, z0)[-1] - exact[-1])
    assert largest(stepping.states_at(FORCED.f, z0, times) - exact) < max(20 * at_nodes, 1e-4)
