"""Which times a fit needs references at, which steps it learns from, and with which methods."""

import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from small_tasks import each_multistep, each_span, fit_settings

from sklearn_hyper import alpha_family
from sklearn_hyper.numerics import Nonstationary, resolve_base_solver
from sklearn_hyper.numerics.times import uniform_grid
from sklearn_hyper.training.plan import (
    MAX_STEPS,
    Run,
    StepSizes,
    TrainingStep,
    choose_steps,
    deal_methods,
    make_plan,
    mesh_indices,
    mesh_times,
    past_nodes,
    scattered_steps,
)

FAMILY = [resolve_base_solver(alpha_family(alpha)) for alpha in (0.1, 0.3, 0.5, 0.7, 1.0)]
PAIRS = [(i, i + 1) for i in range(6)]


def deal(pairs, family, room, seed=0):
    return deal_methods(pairs, family, room, np.random.default_rng(seed))


def test_one_method_takes_every_step_and_draws_no_random_number():
    rng = np.random.default_rng(0)
    steps = deal_methods(PAIRS, FAMILY[:1], 48, rng)
    assert [(i, j) for i, j, _ in steps] == PAIRS and {method for *_, method in steps} == {FAMILY[0]}
    assert rng.bit_generator.state == np.random.default_rng(0).bit_generator.state


@pytest.mark.parametrize("room", [30, 48])
def test_every_pair_has_every_method_where_there_is_room(room):
    steps = deal(PAIRS, FAMILY, room)
    assert Counter(steps) == Counter((i, j, method) for i, j in PAIRS for method in FAMILY)


@pytest.mark.parametrize("room", [1, 6, 13, 29])
def test_methods_come_equally_often_within_the_room(room):
    steps = deal(PAIRS, FAMILY, room)
    assert len(steps) == len(PAIRS) * max(1, room // len(PAIRS))
    counts = Counter(method for *_, method in steps)
    assert sum(counts.values()) == len(steps) and max(counts.values()) - min(counts.values()) <= 1
    assert {(i, j) for i, j, _ in steps} == set(PAIRS)


@pytest.mark.parametrize("n_steps", [4, 8, 12, 20, 50])
def test_full_steps_of_a_multistep_method_cover_the_fitted_range(n_steps):
    sizes = StepSizes.from_parameters(n_steps, None)
    plan = make_plan([resolve_base_solver("ab2")], (0.0, 1.0), n_steps, sizes, np.random.default_rng(0))
    full = np.log([plan.times[step.end] - plan.times[step.start] for step in plan.steps if step.past(plan.times)])
    reached = np.sort([math.log(sizes.low), *full, math.log(sizes.high)])
    assert np.diff(reached).max() < 0.3


def test_the_deal_follows_the_generator():
    assert deal(PAIRS, FAMILY, 20) == deal(PAIRS, FAMILY, 20) != deal(PAIRS, FAMILY, 20, seed=1)


# --- step sizes and meshes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_steps", "fit_n_steps", "low", "high", "steps"),
    [
        (10, None, 1 / 15, 0.15, (10,)),
        (1, None, 1 / 1.5, 1.0, (1,)),
        (10, 4, 1 / 4, 1 / 4, (4,)),
        (10, (1, 16), 1 / 16, 1.0, (1, 2, 4, 8, 16)),
        (10, (3, 4), 1 / 4, 1 / 3, (3, 4)),
    ],
)
def test_step_sizes_are_around_n_steps_or_what_is_asked_for(n_steps, fit_n_steps, low, high, steps):
    sizes = StepSizes.from_parameters(n_steps, fit_n_steps)
    assert (sizes.low, sizes.high) == pytest.approx((low, high)) and sizes.steps == steps


@pytest.mark.parametrize("t_span", [(0.0, 1.0), (2.0, -3.0), (1e6, 1e6 + 1)], ids=str)
@pytest.mark.parametrize("steps", [(3,), (10, 7), (12,), (5, 16)], ids=str)
def test_the_mesh_holds_every_uniform_grid_that_is_asked_for(t_span, steps):
    times = mesh_times(t_span, steps)
    assert (times[0], times[-1]) == t_span
    assert (np.diff(times) * (t_span[1] - t_span[0]) > 0).all()
    for k in steps:
        indices = mesh_indices(times, uniform_grid(t_span, k))
        np.testing.assert_allclose(np.array(times)[indices], uniform_grid(t_span, k), rtol=1e-9)


def test_small_numbers_of_steps_share_one_mesh_and_so_one_cached_solve():
    assert mesh_times((0.0, 1.0), (2,)) == mesh_times((0.0, 1.0), (10, 3)) != mesh_times((0.0, 1.0), (11,))


def test_a_time_between_those_of_the_mesh_is_none_of_it():
    assert mesh_indices((0.0, 0.5, 1.0), [0.5, 1.0]) == [1, 2]
    assert mesh_indices((0.0, 0.5, 1.0), [0.5, 0.75]) == []


# --- plans ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fit_n_steps", [None, 4, (2, 16)], ids=str)
@pytest.mark.parametrize("name", ["euler", "rk4", "ab3"])
@pytest.mark.parametrize("t_span", [(0.0, 1.0), (2.0, -3.0)], ids=str)
def test_the_steps_of_a_plan_lie_on_its_mesh_and_in_range(t_span, name, fit_n_steps):
    sizes = StepSizes.from_parameters(5, fit_n_steps)
    plan = make_plan([resolve_base_solver(name)], t_span, 5, sizes, np.random.default_rng(0))
    assert 0 < len(plan.steps) <= MAX_STEPS * 5 / 4 + 2
    for step in plan.steps:
        assert 0 <= step.start < step.end < len(plan.times)
        share = (plan.times[step.end] - plan.times[step.start]) / (t_span[1] - t_span[0])
        assert sizes.low * (1 - 1e-6) <= share <= sizes.high * (1 + 1e-6)
        past = [*step.past(plan.times), step.start]
        assert past == sorted(past) and len(past) in (1, step.method.memory + 1)
    assert plan.runs == [Run(plan.steps[0].method, k) for k in sizes.steps]


def test_steps_from_the_start_are_among_those_chosen():
    plan = make_plan([FAMILY[0]], (0.0, 1.0), 10, StepSizes.from_parameters(10, (2, 16)), np.random.default_rng(0))
    assert sum(step.start == 0 for step in plan.steps) >= MAX_STEPS // 4


def test_a_plan_over_a_family_takes_all_methods_along_one_mesh():
    sizes = StepSizes.from_parameters(4, None)
    plan = make_plan(FAMILY, (0.0, 1.0), 4, sizes, np.random.default_rng(0))
    assert {step.method for step in plan.steps} == set(FAMILY)
    assert plan.runs == [Run(method, 4) for method in FAMILY]
    assert plan.times == make_plan(FAMILY[:1], (0.0, 1.0), 4, sizes, np.random.default_rng(1)).times


@pytest.mark.parametrize("t_span", [(0.0, 1.0), (2.0, -3.0)], ids=str)
def test_times_to_fit_at_join_the_mesh_and_move_no_step(t_span):
    """Those that are there up to rounding do not join: dopri5 would have to step from one to the other."""
    start, span = t_span[0], t_span[1] - t_span[0]
    times = [start + span * share for share in (0.0, 0.1 + 0.2, 0.123, 0.123 + 1e-14, 1.0)]
    sizes = StepSizes.from_parameters(5, None)
    plain, plan = (
        make_plan([resolve_base_solver("ab2")], t_span, 5, sizes, np.random.default_rng(0), t_eval=t_eval)
        for t_eval in (None, times)
    )
    assert len(plan.times) == len(plain.times) + 1 and len(mesh_indices(plan.times, times)) == 5
    assert (np.diff(plan.times) * span > 0).all() and np.abs(np.diff(plan.times)).min() > 1e-6
    places = [[(one.times[step.start], one.times[step.end]) for step in one.steps] for one in (plain, plan)]
    assert places[0] == places[1] and plan.runs == plain.runs
    assert all(
        len(step.past(plan.times)) == len(other.past(plain.times))
        for step, other in zip(plan.steps, plain.steps, strict=True)
    )


def test_a_method_made_for_one_mesh_takes_its_own_steps_in_order():
    method = Nonstationary([[1.0], [0.5, 0.5], [0.2, 0.3, 0.5]], [0.0, 0.2, 0.5, 1.0])
    plan = make_plan([method], (1.0, 3.0), 3, StepSizes.from_parameters(3, None), np.random.default_rng(0))
    assert plan.times == pytest.approx((1.0, 1.4, 2.0, 3.0))
    assert plan.steps == [TrainingStep(0, 1, method), TrainingStep(1, 2, method), TrainingStep(2, 3, method)]
    assert [step.past(plan.times) for step in plan.steps] == [[], [0], [0, 1]]


# --- methods with a history -------------------------------------------------------------------------------------------


def choose(method, t_span, n_steps, fit_n_steps, room=48):
    sizes = StepSizes.from_parameters(n_steps, fit_n_steps)
    times = mesh_times(t_span, sizes.steps)
    rng = np.random.default_rng(0)
    return times, sizes, choose_steps(times, sizes, room, rng, n_past=method.order - 1)


def is_full(times, pair, n_past):
    return len(past_nodes(times, *pair, n_past)) == n_past


@each_span
@each_multistep
@pytest.mark.parametrize(("n_steps", "fit_n_steps"), [(4, None), (10, None), (5, 5), (10, (2, 16))])
def test_steps_are_start_up_steps_or_have_their_past_on_the_mesh(method, t_span, n_steps, fit_n_steps):
    times, sizes, pairs = choose(method, t_span, n_steps, fit_n_steps)
    n_past, span = method.order - 1, times[-1] - times[0]
    kinds = Counter()
    for i, j in pairs:
        eps, past = times[j] - times[i], past_nodes(times, i, j, n_past)
        assert sizes.low * (1 - 1e-6) <= eps / span <= sizes.high * (1 + 1e-6)
        if past:
            steps = [after - before for before, after in pairwise([*(times[k] for k in past), times[i], times[j]])]
            assert steps == pytest.approx([eps] * (n_past + 1))
        else:
            n_before = (times[i] - times[0]) / eps
            assert n_before == pytest.approx(round(n_before), abs=1e-6) and round(n_before) < n_past
        kinds[bool(past)] += 1
    assert kinds[True] >= 1 and kinds[False] >= n_past
    assert len(set(pairs)) == len(pairs)


@pytest.mark.parametrize("room", [12, 48])
@each_multistep
def test_start_up_steps_take_about_a_third_of_the_room(method, room):
    times, _, pairs = choose(method, (0.0, 1.0), 10, (2, 16), room)
    start = sum(not is_full(times, pair, method.order - 1) for pair in pairs)
    assert 0 < start <= room // 3 * 5 / 4 + 1
    assert start < len(pairs) <= room * 5 / 4 + 2


@each_multistep
def test_the_steps_of_the_one_fitted_grid_are_all_there(method):
    times, _, pairs = choose(method, (0.0, 1.0), 5, 5)
    grid = uniform_grid((0.0, 1.0), 5)
    indices = [int(np.abs(np.array(times) - s).argmin()) for s in grid]
    assert set(pairwise(indices)) <= set(pairs)


def test_with_fewer_steps_than_the_history_there_are_start_up_steps_alone():
    times, _, pairs = choose(resolve_base_solver("ab4"), (0.0, 1.0), 2, 2)
    assert len(pairs) == 2 and not any(is_full(times, pair, 3) for pair in pairs)


def test_one_step_methods_have_no_past():
    assert past_nodes((0.0, 0.5, 1.0), 1, 2, 0) == []


# --- adaptive steps ---------------------------------------------------------------------------------------------------


@each_span
@pytest.mark.parametrize(("n_steps", "fit_n_steps"), [(10, (2, 40)), (1, (1, 4)), (200, (50, 1000))])
def test_steps_to_learn_adaptive_ones_from_start_anywhere_and_have_all_sizes(t_span, n_steps, fit_n_steps):
    settings = fit_settings(stepping="adaptive", n_steps=n_steps, fit_n_steps=fit_n_steps)
    sizes = StepSizes.of(settings)
    assert (sizes.low, sizes.high, sizes.steps) == (1 / fit_n_steps[1], 1 / fit_n_steps[0], (n_steps,))
    times, pairs = scattered_steps(t_span, n_steps, sizes)
    assert (times[0], times[-1]) == t_span and len(pairs) == MAX_STEPS
    assert mesh_indices(times, uniform_grid(t_span, n_steps))  # which errors are measured on
    shares = (np.array(times) - times[0]) / (times[-1] - times[0])
    start, length = np.array([(shares[i], shares[j] - shares[i]) for i, j in pairs]).T
    np.testing.assert_allclose(np.sort(length), np.geomspace(sizes.low, sizes.high, MAX_STEPS), rtol=0.03)
    assert np.diff(shares).min() > 0.004 * sizes.low
    assert sum(start == 0) >= MAX_STEPS // 4
    assert fit_n_steps[0] == 1 or np.histogram(start, 4, (0, 1))[0].min() >= 3
    plan = make_plan([FAMILY[0]], t_span, n_steps, sizes, np.random.default_rng(0), is_adaptive=True)
    assert plan.times == times and [step[:2] for step in plan.steps] == pairs
    assert plan.runs == [Run(FAMILY[0], n_steps)]
