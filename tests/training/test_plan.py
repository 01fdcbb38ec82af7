"""Which steps a correction learns from, and with which base solvers."""

import copy
import math
import warnings
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from problems import FORCED, LOGISTIC, MULTISTEP, named

from sklearn_hyper import NeuralODE, alpha_family
from sklearn_hyper.numerics import ConditioningWarning, compute_residuals, resolve_base_solver
from sklearn_hyper.numerics.residuals import target_noise
from sklearn_hyper.numerics.times import uniform_grid
from sklearn_hyper.training.plan import mesh_times
from sklearn_hyper.training.plan import (
    Step,
    StepSizes,
    choose_steps,
    conditioned_blocks,
    deal_solvers,
    past_nodes,
    plan_steps,
    residual_blocks,
)

FAMILY = [resolve_base_solver(alpha_family(alpha)) for alpha in (0.1, 0.3, 0.5, 0.7, 1.0)]
PAIRS = [(i, i + 1) for i in range(6)]


def deal(pairs, family, n_blocks, seed=0):
    return deal_solvers(pairs, family, n_blocks, np.random.default_rng(seed))


def test_one_base_solver_takes_every_step_and_draws_no_random_number():
    rng = np.random.default_rng(0)
    steps = deal_solvers(PAIRS, FAMILY[:1], 48, rng)
    assert [(i, j) for i, j, _ in steps] == PAIRS and {solver for *_, solver in steps} == {FAMILY[0]}
    assert rng.bit_generator.state == np.random.default_rng(0).bit_generator.state


@pytest.mark.parametrize("n_blocks", [30, 48])
def test_every_pair_has_every_base_solver_where_there_is_room(n_blocks):
    steps = deal(PAIRS, FAMILY, n_blocks)
    assert Counter(steps) == Counter((i, j, solver) for i, j in PAIRS for solver in FAMILY)


@pytest.mark.parametrize("n_blocks", [1, 6, 13, 29])
def test_base_solvers_come_equally_often_within_the_room(n_blocks):
    steps = deal(PAIRS, FAMILY, n_blocks)
    assert len(steps) == len(PAIRS) * max(1, n_blocks // len(PAIRS))
    counts = Counter(solver for *_, solver in steps)
    assert sum(counts.values()) == len(steps) and max(counts.values()) - min(counts.values()) <= 1
    assert {(i, j) for i, j, _ in steps} == set(PAIRS)


@pytest.mark.parametrize("n_steps", [4, 8, 12, 20, 50])
def test_full_steps_of_a_multistep_method_cover_the_fitted_range(n_steps):
    sizes = StepSizes.from_parameters(n_steps, None)
    times, pairs = plan_steps(resolve_base_solver("ab2"), (0.0, 1.0), n_steps, sizes, np.random.default_rng(0))
    full = np.log([times[j] - times[i] for i, j in pairs if past_nodes(times, i, j, 1)])
    reached = np.sort([math.log(sizes.low), *full, math.log(sizes.high)])
    assert np.diff(reached).max() < 0.3


def test_the_deal_follows_the_generator():
    assert deal(PAIRS, FAMILY, 20) == deal(PAIRS, FAMILY, 20) != deal(PAIRS, FAMILY, 20, seed=1)


# --- methods with a history -------------------------------------------------------------------------------------------

each_multistep = pytest.mark.parametrize("solver", **named(MULTISTEP))
each_span = pytest.mark.parametrize("t_span", [(0.5, 2.5), (2.5, 0.5)], ids=["forward", "reverse"])


def choose(solver, t_span, n_steps, fit_n_steps, n_blocks=48):
    sizes = StepSizes.from_parameters(n_steps, fit_n_steps)
    times = mesh_times(t_span, sizes.steps)
    rng = np.random.default_rng(0)
    return times, sizes, choose_steps(times, sizes, n_blocks, rng, n_past=solver.order - 1)


def is_full(times, pair, n_past):
    return len(past_nodes(times, *pair, n_past)) == n_past


@each_span
@each_multistep
@pytest.mark.parametrize(("n_steps", "fit_n_steps"), [(4, None), (10, None), (5, 5), (10, (2, 16))])
def test_steps_are_start_up_steps_or_have_their_past_on_the_mesh(solver, t_span, n_steps, fit_n_steps):
    times, sizes, pairs = choose(solver, t_span, n_steps, fit_n_steps)
    n_past, span = solver.order - 1, times[-1] - times[0]
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


@pytest.mark.parametrize("n_blocks", [12, 48])
@each_multistep
def test_start_up_steps_take_about_a_third_of_the_room(solver, n_blocks):
    times, _, pairs = choose(solver, (0.0, 1.0), 10, (2, 16), n_blocks)
    start = sum(not is_full(times, pair, solver.order - 1) for pair in pairs)
    assert 0 < start <= n_blocks // 3 * 5 / 4 + 1
    assert start < len(pairs) <= n_blocks * 5 / 4 + 2


@each_multistep
def test_the_steps_of_the_one_fitted_grid_are_all_there(solver):
    times, _, pairs = choose(solver, (0.0, 1.0), 5, 5)
    grid = uniform_grid((0.0, 1.0), 5)
    indices = [int(np.abs(np.array(times) - s).argmin()) for s in grid]
    assert set(pairwise(indices)) <= set(pairs)


def test_with_fewer_steps_than_the_history_there_are_start_up_steps_alone():
    times, _, pairs = choose(resolve_base_solver("ab4"), (0.0, 1.0), 2, 2)
    assert len(pairs) == 2 and not any(is_full(times, pair, 3) for pair in pairs)


def test_one_step_methods_have_no_past():
    assert past_nodes((0.0, 0.5, 1.0), 1, 2, 0) == []


@each_span
@each_multistep
def test_blocks_are_the_residuals_along_the_grid(solver, t_span):
    """Each block, on its own, is the step of compute_residuals along the whole grid, start-up or not; many rows too."""
    times = mesh_times(t_span, (6,))
    z0 = torch.linspace(0.1, 0.9, 2050, dtype=torch.float64)[:, None]
    states = torch.stack([FORCED.exact(times[0], s, z0) for s in times])
    grid = uniform_grid(t_span, 6)
    indices = [int(np.abs(np.array(times) - s).argmin()) for s in grid]
    steps = [Step(i, j, solver) for i, j in pairwise(indices)]
    blocks = residual_blocks(NeuralODE(FORCED.f, t_span=t_span), times, states, z0, steps)
    expected = compute_residuals(FORCED.f, states[indices], grid, solver)
    assert [block.order for block in blocks] == [solver.order - 1] * (solver.order - 1) + [solver.order] * (
        7 - solver.order
    )
    for block, other in zip(blocks, expected, strict=True):
        assert (block.s, block.eps) == pytest.approx((other.s, other.eps), abs=1e-12)
        assert torch.equal(block.z, other.z) and len(block.stages) == len(other.stages)
        for stage, exact in zip([*block.stages, block.target], [*other.stages, other.target], strict=True):
            torch.testing.assert_close(stage, exact, rtol=1e-9, atol=1e-9)


class _Logistic(torch.nn.Module):
    def forward(self, t, z):
        return LOGISTIC.f(t, z)


@each_multistep
def test_targets_that_noise_would_drown_are_solved_for_again(solver):
    """The noise is that of the kind of steps, start-up or full, that suffers most: of another order, and another residual."""
    times, _, pairs = choose(solver, LOGISTIC.t_span, 10, None)
    p, steps = solver.order, [Step(i, j, solver) for i, j in pairs]
    calls = []

    def solve(rtol, atol, double):
        calls.append((rtol, double))
        return LOGISTIC.states(times).to(torch.float64 if double else torch.float32)

    field = NeuralODE(_Logistic(), t_span=LOGISTIC.t_span)
    with pytest.warns(ConditioningWarning, match=r"order \d; rtol=0.0001") as warned:
        states, blocks, _ = conditioned_blocks(field, times, LOGISTIC.z0.float(), steps, solve, rtol=1e-4, atol=1e-4)
    assert [double for _, double in calls] == [False, True] and calls[1][0] < 1e-4
    assert states.dtype == torch.float32 and {block.target.dtype for block in blocks} == {torch.float32}
    orders = {int(str(w.message).split("order ")[1][0]) for w in warned}
    smallest = {order: min((b for b in blocks if b.order == order), key=lambda b: abs(b.eps)) for order in (p - 1, p)}
    assert orders == {max(smallest, key=lambda order: target_noise(smallest[order], 1e-4, 1e-4))}
    exact = residual_blocks(copy.deepcopy(field), times, LOGISTIC.states(times), LOGISTIC.z0, steps)
    for block, other in zip(blocks, exact, strict=True):
        assert torch.equal(block.target, other.target.float())


def test_targets_above_the_noise_stay():
    solver = resolve_base_solver("ab2")
    times, _, pairs = choose(solver, LOGISTIC.t_span, 4, None)
    steps = [Step(i, j, solver) for i, j in pairs]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        conditioned_blocks(
            NeuralODE(_Logistic(), t_span=LOGISTIC.t_span), times, LOGISTIC.z0, steps,
            lambda **how: LOGISTIC.states(times), rtol=1e-9, atol=1e-9,
        )  # fmt: skip
