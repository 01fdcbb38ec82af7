"""A nonstationary solver is what its coefficients say, on its own mesh, for its own K."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from problems import FORCED, LOGISTIC, largest, log_slope, named

from sklearn_hyper.numerics import CountedField, Nonstationary, compute_residuals, hypersolve, hypersolve_trajectory
from sklearn_hyper.numerics import resolve_base_solver as resolve
from sklearn_hyper.numerics.methods import compose_predictor_corrector, compose_tableaus
from sklearn_hyper.numerics.tableaus import TABLEAUS

ODD = Nonstationary([(1.0,), (-0.3, 1.3), (0.2, -0.4, 1.2)], (0.0, 0.2, 0.7, 1.0))
each_problem = pytest.mark.parametrize("problem", **named([LOGISTIC, FORCED]))


def uniform(n_steps, rows):
    return Nonstationary(rows, [k / n_steps for k in range(n_steps + 1)])


def rows_of(n_steps, *newest):
    """The same newest weights in every step that has so many stages; Euler's before."""
    rows = []
    for k in range(n_steps):
        tail = newest if k + 1 >= len(newest) else (1.0,)
        rows.append([0.0] * (k + 1 - len(tail)) + list(tail))
    return rows


@each_problem
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("newest", "base"), [((1.0,), "euler"), ((-0.5, 1.5), "ab2")])
def test_with_their_coefficients_it_is_the_classical_method(problem, reverse, newest, base):
    span = problem.t_span[::-1] if reverse else problem.t_span
    own = hypersolve_trajectory(problem.f, problem.z0, span, 5, uniform(5, rows_of(5, *newest)))
    assert largest(own - hypersolve_trajectory(problem.f, problem.z0, span, 5, base)) < 1e-12


@each_problem
@pytest.mark.parametrize("seed", range(3))
def test_solvers_that_combine_past_states_too_are_of_the_same_form(problem, seed):
    # z_{k+1} = sum_j a_kj z_j + sum_j b_kj f_j: past states are z_0 and sums of past stages.
    draw, n, (start, end) = np.random.default_rng(seed), 4, problem.t_span
    shares = np.array([0, 0.2, 0.5, 0.7, 1.0])
    stages_in_states, stages, states = np.zeros((n + 1, n)), [], [problem.z0]
    for k in range(n):
        times = start + (end - start) * shares
        stages.append(problem.f(torch.tensor(times[k]), states[-1]))
        a = draw.normal(size=k + 1)
        a[-1] += 1 - a.sum()
        b = draw.normal(size=k + 1)
        b[-1] += shares[k + 1] - a @ shares[: k + 1] - b.sum()  # a constant f is solved exactly
        stages_in_states[k + 1] = a @ stages_in_states[: k + 1]
        stages_in_states[k + 1, : k + 1] += b
        steps = [float(weight) * (end - start) * stage for weight, stage in zip(b, stages, strict=True)]
        states.append(sum(float(weight) * z for weight, z in zip(a, states, strict=True)) + sum(steps))
    weights = np.diff(stages_in_states, axis=0) / np.diff(shares)[:, None]
    same = Nonstationary([row[: k + 1] for k, row in enumerate(weights)], shares)
    own = hypersolve_trajectory(problem.f, problem.z0, problem.t_span, n, same)
    assert largest(own - torch.stack(states)) < 1e-9 * max(1.0, float(torch.stack(states).abs().max()))


@each_problem
@pytest.mark.parametrize("name", ["euler", "midpoint", "ralston"])
def test_a_composition_of_one_method_is_that_method(problem, name):
    composed = compose_tableaus([TABLEAUS[name]] * 3)
    own = hypersolve(problem.f, problem.z0, problem.t_span, composed.n_steps, composed)
    assert largest(own - hypersolve(problem.f, problem.z0, problem.t_span, 3, name)) < 1e-12


@each_problem
def test_a_composition_gives_every_method_a_span_by_its_stages(problem):
    start, end = problem.t_span
    middle = start + (end - start) / 3
    half_way = hypersolve(problem.f, problem.z0, (start, middle), 1, "euler")
    composed = compose_tableaus([TABLEAUS["euler"], TABLEAUS["ralston"]])
    own = hypersolve(problem.f, problem.z0, problem.t_span, 3, composed)
    assert largest(own - hypersolve(problem.f, half_way, (middle, end), 1, "ralston")) < 1e-12


def test_a_last_stage_at_the_end_of_the_step_is_moved_to_nine_tenths():
    composed = compose_tableaus([TABLEAUS["rk4_38"]] * 2)
    assert composed.shares == pytest.approx([k / 2 + c / 2 for k in (0, 1) for c in (0, 1 / 3, 2 / 3, 0.9)] + [1])


@each_problem
def test_weights_that_sum_to_one_have_order_one(problem):
    exact = problem.exact(*problem.t_span, problem.z0)
    steps = np.array([32, 64, 128])
    errors = [
        largest(hypersolve(problem.f, problem.z0, problem.t_span, k, uniform(k, rows_of(k, 0.3, 0.7))) - exact)
        for k in steps.tolist()
    ]
    assert abs(-log_slope(steps, errors) - 1) < 0.2


@each_problem
def test_an_exact_residual_reproduces_the_trajectory_on_its_own_mesh(problem):
    mesh = ODD.mesh(problem.t_span, 3)
    states = torch.stack([problem.exact(problem.t_span[0], s, problem.z0) for s in mesh])
    residuals = compute_residuals(problem.f, states, mesh, ODD)
    targets = iter(residuals)
    solved = hypersolve_trajectory(problem.f, problem.z0, problem.t_span, 3, ODD, lambda *_: next(targets).target)
    assert largest(solved - states) < 1e-12
    assert [(r.order, len(r.stages)) for r in residuals] == [(1, 1), (1, 2), (1, 2)]


def test_one_evaluation_a_step_at_the_meshs_own_times():
    times = []

    def f(t, z):
        times.append(float(t))
        return -z

    hypersolve(f, torch.ones(2, 1), (1.0, 3.0), 3, ODD)
    assert times == pytest.approx([1.0, 1.4, 2.4]) and ODD.count_evaluations(3) == 3
    counted = CountedField(lambda t, z: -z)
    hypersolve(counted, torch.ones(2, 1), (0.0, 1.0), 3, ODD)
    assert counted.n_evaluations == 3


def test_it_is_differentiable_and_hashable():
    z0 = torch.ones(2, 1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: hypersolve(lambda t, z: torch.sin(z) + t, z, (0.0, 1.0), 3, ODD), z0)
    assert len({ODD, Nonstationary(ODD.weights, ODD.shares)}) == 1 and resolve(ODD) is ODD


def test_it_is_refused_on_another_mesh():
    message = "is not the mesh that base_solver='nonstationary' is made for"
    with pytest.raises(ValueError, match=message):
        hypersolve(lambda t, z: -z, torch.ones(1, 1), None, None, ODD, grid=(0.0, 0.3, 0.7, 1.0))
    for mesh in [(0.0, 0.5, 1.0), (0.0, 0.2, 0.7, 1.0, 1.5)]:  # no start of its own mesh, and more than that
        with pytest.raises(ValueError, match=message):
            compute_residuals(lambda t, z: -z, torch.ones(len(mesh), 1, 1), mesh, ODD)
    with pytest.raises(ValueError, match="made for n_steps=3 alone, got n_steps=1"):
        hypersolve(lambda t, z: -z, torch.ones(1, 1), None, None, ODD, grid=(0.0, 1.0))
    moved = hypersolve(lambda t, z: -z, torch.ones(1, 1), None, None, ODD, grid=(1.0, 1.4, 2.4, 3.0))
    assert torch.equal(moved, hypersolve(lambda t, z: -z, torch.ones(1, 1), (1.0, 3.0), 3, ODD))


def test_it_is_refused_for_another_number_of_steps():
    message = "'nonstationary' is made for n_steps=3 alone, got n_steps=2"
    with pytest.raises(ValueError, match=message):
        hypersolve(lambda t, z: -z, torch.ones(1, 1), (0.0, 1.0), 2, ODD)
    with pytest.raises(ValueError, match=message):
        ODD.mesh((0.0, 1.0), 2)


def test_it_has_a_mesh_of_its_own_and_a_kind_for_its_first_step():
    """It need not follow the trajectory between the ends."""
    assert ODD.mesh((1.0, 3.0), 3) == pytest.approx((1.0, 1.4, 2.4, 3.0)) and ODD.mesh((3.0, 1.0), 3)[::3] == (3.0, 1.0)
    assert [kind.offsets for kind in ODD.kinds] == [(0.0,), (0.0, -1.0)]
    assert {kind.order for kind in ODD.kinds} == {ODD.order} == {1}
    assert (ODD.n_steps, ODD.memory, ODD.follows_trajectory) == (3, 2, False)
    assert all(name.follows_trajectory for name in map(resolve, ("euler", "ab4")))


@pytest.mark.parametrize(
    ("weights", "shares", "message"),
    [
        ([(1.0,), (0.5, 0.6)], (0, 0.5, 1), r"weights\[1\] must hold 2 numbers that sum to 1, got \(0.5, 0.6\)"),
        ([(1.0,), (1.0,)], (0, 0.5, 1), r"weights\[1\] must hold 2 numbers"),
        ([(1.0,)], (0, 0.5, 1), "shares must be 2 numbers that rise from 0 to 1"),
        ([(1.0,), (0.0, 1.0)], (0, 1.5, 1), "shares must be 3 numbers that rise from 0 to 1"),
        ([], (0, 1), "shares must be 1 numbers"),
    ],
)
def test_wrong_tables_are_refused(weights, shares, message):
    with pytest.raises(ValueError, match=message):
        Nonstationary(weights, shares)


@each_problem
def test_predictor_corrector_steps_visit_the_predicted_states(problem):
    """Up to its last evaluation, the method is PEC written out: predict by ab2, correct by the trapezoid."""
    n, (start, end) = 5, problem.t_span
    h = (end - start) / (n - 1)
    z, past = problem.z0, None
    here = problem.f(torch.tensor(start), z)
    predicted = [z]
    for k in range(n - 2):
        ahead = here if past is None else 1.5 * here - 0.5 * past
        predicted.append(z + h * ahead)
        new = problem.f(torch.tensor(start + (k + 1) * h), predicted[-1])
        z, past, here = z + h / 2 * (here + new), here, new
    own = hypersolve_trajectory(problem.f, problem.z0, problem.t_span, n, compose_predictor_corrector(n))
    assert largest(own[: n - 1] - torch.stack(predicted)) < 1e-12


@each_problem
def test_predictor_corrector_steps_have_order_two(problem):
    numbers = [9, 17, 33, 65]
    exact = problem.states(list(problem.t_span))[-1]
    errors = [
        largest(hypersolve(problem.f, problem.z0, problem.t_span, n, compose_predictor_corrector(n)) - exact)
        for n in numbers
    ]
    ratios = [before / after for before, after in pairwise(errors)]
    assert min(ratios) > 3
