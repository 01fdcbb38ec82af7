"""Solves along whole spans, and their errors: what a fit trains through, and what guards it."""

import copy
import math

import numpy as np
import pytest
import torch
from problems import LOGISTIC
from small_tasks import logistic_plan, logistic_references, logistic_targets, run_of, scaled_correction
from torch import nn

from sklearn_hyper import NeuralODE
from sklearn_hyper.hypersolvers import Task
from sklearn_hyper.modules.corrections.contract import PlainCorrection
from sklearn_hyper.numerics import hypersolve_trajectory
from sklearn_hyper.numerics.row_errors import UndefinedOutputError
from sklearn_hyper.training.errors import (
    BaseSolverOverflowError,
    References,
    TerminalErrors,
    UnrolledSolves,
    check_overflow,
    check_runs,
)
from sklearn_hyper.training.losses import output_loss, terminal_loss, trajectory_loss


@pytest.fixture(scope="module")
def references():
    return logistic_references(logistic_plan())


@pytest.fixture(scope="module")
def correction():
    """One that is better than Euler's method alone."""
    _, references, targets = logistic_targets()
    correction = scaled_correction(targets, 4.0).requires_grad_(False)
    assert targets[0].loss(correction, references.inputs, slice(None)) < 0.9
    return correction


# ---------------------------------------------------------------------- references
def test_references_are_found_by_their_times(references):
    grid = (0.0, 0.75, 1.5)
    torch.testing.assert_close(references.on_grid(grid), LOGISTIC.exact(0.0, 1.0, references.states[0]).new_tensor(
        np.stack([LOGISTIC.exact(0.0, s, references.states[0]).numpy() for s in grid])
    ))  # fmt: skip
    assert torch.equal(references.on_grid(grid, [3, 5]), references.on_grid(grid)[:, [3, 5]])
    with pytest.raises(KeyError, match=r"lacks times of \(0\.0, 0\.7\)"):
        references.indices((0.0, 0.7))


# ---------------------------------------------------------------------- solves
@pytest.mark.parametrize("base_solver", ["euler", "heun", "ab3"])
@pytest.mark.parametrize("loss", [terminal_loss, trajectory_loss])
def test_solves_are_the_libraries_own(references, base_solver, loss):
    run = run_of(base_solver, 3)
    states, reference = UnrolledSolves(references.task.neural_ode, loss).solve(references, slice(2, 9), run, None)
    expected = hypersolve_trajectory(LOGISTIC.f, references.states[0][2:9], LOGISTIC.t_span, 3, base_solver)
    expected = expected if loss is trajectory_loss else expected[[0, -1]]
    torch.testing.assert_close(states, expected, rtol=1e-13, atol=1e-13)
    grid = run.method.mesh(LOGISTIC.t_span, 3)
    assert torch.equal(
        reference, references.on_grid(grid if loss is trajectory_loss else grid[:: len(grid) - 1], slice(2, 9))
    )


def test_states_at_given_times_are_compared_instead_of_those_of_the_steps(references):
    """The start among them is not asked for again, and losses of the end do not read them."""
    run, grid = run_of("heun", 4), (0.0, 0.5, 0.75)
    unrolled = UnrolledSolves(references.task.neural_ode, trajectory_loss, grid)
    states, reference = unrolled.solve(references, slice(2, 9), run, None)
    assert torch.equal(reference, references.on_grid(grid, slice(2, 9)))
    expected = unrolled.mesh(run).states_at(LOGISTIC.f, reference[0], torch.tensor(grid, dtype=torch.float64))
    torch.testing.assert_close(states, expected, rtol=1e-13, atol=1e-13)
    assert float(unrolled.share(references, slice(None), run, None)) == pytest.approx(1, rel=1e-12)
    ends = [UnrolledSolves(references.task.neural_ode, terminal_loss, times) for times in (None, grid)]
    solved = [one.solve(references, slice(2, 9), run, None)[0] for one in ends]
    assert torch.equal(*solved)


@pytest.mark.parametrize(
    "loss", [terminal_loss, trajectory_loss, output_loss(torch.exp)], ids=["end", "path", "output"]
)
def test_the_share_of_the_base_solver_is_one(references, loss):
    unrolled = UnrolledSolves(NeuralODE(LOGISTIC.f, output_map=torch.exp, t_span=LOGISTIC.t_span), loss)
    for run in (run_of("euler", 2), run_of("midpoint", 3)):
        assert float(unrolled.share(references, slice(None), run, None)) == pytest.approx(1, rel=1e-12)


def test_shares_are_of_the_loss_without_a_correction(references, correction):
    unrolled, run = UnrolledSolves(references.task.neural_ode, terminal_loss), run_of("euler", 3)
    norms = [
        float(terminal_loss(*unrolled.solve(references, slice(None), run, g)).norm(dim=1).mean())
        for g in (correction, None)
    ]
    share = float(unrolled.share(references, slice(None), run, correction))
    assert share == pytest.approx(norms[0] / norms[1], rel=1e-12) and share < 1


def test_gradients_reach_the_correction_through_all_steps(references, correction):
    correction = copy.deepcopy(correction).requires_grad_(True)
    share = UnrolledSolves(references.task.neural_ode, terminal_loss).share(
        references, slice(None), run_of("euler", 3), correction
    )
    (slope,) = torch.autograd.grad(share, correction.net.size)
    assert slope.abs() > 1e-3


# ---------------------------------------------------------------------- guards
def test_the_guarded_share_is_the_mean_error_beside_the_base_solvers(references, correction):
    run = run_of("euler", 3)
    errors = TerminalErrors(references, run)
    expected = UnrolledSolves(references.task.neural_ode, terminal_loss).share(references, slice(None), run, correction)
    share, least = errors.guard(correction)
    assert float(share) == pytest.approx(float(expected), rel=1e-9) and least == 0


class BadInOneRow(nn.Module):
    """Right, up to a share, in all rows but the last, where it is off."""

    def __init__(self, off, share=1.0):
        super().__init__()
        self.off, self.share = off, share

    def forward(self, eps, s, z, stages, x=None):
        g = self.share * 0.5 * stages[0] * (1 - 2 * z)  # the leading term of Euler's residual for z' = z (1 - z)
        g[-1] = self.off
        return g


@pytest.mark.parametrize(("off", "share", "expected"), [
    pytest.param(-0.5, 1.0, math.inf, id="far"),
    pytest.param(-0.16, 1.0, 0.999, id="not far, and half the mean"),
    pytest.param(-0.16, 0.3, math.inf, id="not far, and more of the mean"),
    pytest.param(math.nan, 1.0, math.inf, id="nan"),
])  # fmt: skip
def test_a_larger_largest_error_is_a_last_choice_or_none(references, off, share, expected):
    """Though the mean error of all rows is smaller."""
    bad = PlainCorrection(BadInOneRow(off, share))
    errors = TerminalErrors(references, run_of("euler", 3))
    row = errors.table(bad, [])[3]
    assert not row["max"] <= row["base_max"]
    assert errors.guard(bad)[1] == expected


def test_the_table_holds_mean_and_largest_errors_by_steps(references, correction):
    table = TerminalErrors(references, run_of("euler", 3)).table(correction, [2, 5])
    assert sorted(table) == [2, 3, 5]
    z0, exact = references.states[0], references.states[-1]
    for k, row in table.items():
        end = hypersolve_trajectory(LOGISTIC.f, z0, LOGISTIC.t_span, k, "euler")[-1]
        norms = (end - exact).norm(dim=1)
        assert (row["base_mean"], row["base_max"]) == pytest.approx((float(norms.mean()), float(norms.max())))
        assert row["mean"] < row["base_mean"]


def test_without_a_correction_the_table_is_the_base_solvers(references):
    (row,) = TerminalErrors(references, run_of("heun", 2)).table(None, [2]).values()
    assert (row["mean"], row["max"]) == (row["base_mean"], row["base_max"])


def test_relative_errors_are_shares_of_states_and_outputs():
    plan = logistic_plan()
    plain = logistic_references(plan)
    scaled = NeuralODE(LOGISTIC.f, output_map=lambda z: 100 * z, t_span=LOGISTIC.t_span)
    with_outputs = References(Task(scaled, plain.task.x), plain.times, plain.states, plain.unit)
    (states,) = TerminalErrors(plain, run_of("euler", 3)).relative(None, 1e-6).values()
    both = TerminalErrors(with_outputs, run_of("euler", 3)).relative(None, 1e-6)
    end = hypersolve_trajectory(LOGISTIC.f, plain.states[0], LOGISTIC.t_span, 3, "euler")[-1]
    expected = float((end - plain.states[-1]).norm(dim=1).mean() / plain.states[-1].norm(dim=1).mean())
    assert states == pytest.approx(expected)
    assert both == {"the states at the end of t_span": pytest.approx(expected), "the outputs": pytest.approx(expected)}


# ---------------------------------------------------------------------- refusals
@pytest.mark.parametrize("lost", [math.nan, math.inf])
def test_values_that_are_not_finite_are_an_overflow_of_their_rows(lost):
    values = torch.ones(6, 2, 3)
    check_overflow(values, "heun", 4)
    values[2, 1, 1] = values[5, 0, 0] = lost
    with pytest.raises(
        BaseSolverOverflowError, match=r"base_solver='heun' with n_steps=4 overflows from 2 of 6 rows"
    ) as raised:
        check_overflow(values, "heun", 4)
    assert raised.value.rows == (2, 5)


def steep_references(output_map=None, start=0.5):
    """Of z' = -z^3 from some small states and a large one, which Euler's steps throw out."""
    ode = NeuralODE(lambda t, z: -(z**3), output_map=output_map)
    z0 = torch.full((8, 1), start, dtype=torch.float64)
    z0[6] = 1e40
    times = (0.0, 1.0)
    states = torch.stack([z0, z0 / torch.sqrt(1 + 2 * z0**2)])
    return References(Task(ode, z0), times, states, torch.ones(1, 1, dtype=torch.float64))


def test_runs_that_overflow_are_refused_and_their_rows_named():
    references = steep_references()
    halves = [
        References(references.task.rows(some), references.times, references.states[:, some], references.unit)
        for some in (slice(0, 5), slice(5, 8))
    ]
    check_runs(references.task.neural_ode, halves[:1], [run_of("euler", 3)], 4, False)
    with pytest.raises(BaseSolverOverflowError, match=r"'euler' with n_steps=6 overflows from 1 of 8") as raised:
        check_runs(references.task.neural_ode, halves, [run_of("euler", 6)], 4, False)
    assert raised.value.rows == (6,)


def test_outputs_that_are_not_numbers_matter_where_they_are_part_of_a_loss():
    ode = NeuralODE(lambda t, z: -3 * z, output_map=lambda z: (z + 3).sqrt())
    z0 = torch.tensor([[1.0], [2.0], [1.2]], dtype=torch.float64)  # one step of Euler's goes to -2 z
    references = References(Task(ode, z0), (0.0, 1.0), torch.stack([z0, z0 * math.exp(-3)]), torch.ones(1, 1).double())
    run = run_of("euler", 1)
    check_runs(ode, [references], [run], 2, False)
    with pytest.raises(UndefinedOutputError, match=r"that base_solver='euler' with n_steps=1 reaches .*\(row 1\)"):
        check_runs(ode, [references], [run], 2, True)
    shifted = NeuralODE(lambda t, z: -3 * z, output_map=lambda z: (z - 0.055).sqrt())
    with pytest.raises(UndefinedOutputError, match=r"that dopri5 reaches .*\(row 0\)"):
        check_runs(shifted, [references], [run], 2, True)
