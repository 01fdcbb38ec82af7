"""Batches: every row once an epoch and none alone, tasks in turn, losses by phase; and what cannot learn from a single row."""

from collections import Counter

import pytest
import torch
from small_tasks import logistic_targets, run_of
from torch import nn

from sklearn_hyper.training.batches import Batches, Curriculum, TaskBatches, check_lone_rows
from sklearn_hyper.training.settings import Phase
from sklearn_hyper.training.targets import Target, TargetStack, stack_targets


@pytest.mark.parametrize("n_rows", range(1, 15))
@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 100])
def test_batches_are_equal_hold_every_row_once_and_none_alone(n_rows, batch_size):
    batches = Batches(n_rows, batch_size, torch.Generator().manual_seed(0))
    rows = list(batches)
    assert len(batches) == len(rows) and sorted(row for batch in rows for row in batch) == [*range(n_rows)]
    sizes = [len(batch) for batch in rows]
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= batch_size + (batch_size == 2 and n_rows % 2 == 1)  # three rows make no two batches of two
    assert min(sizes) > 1 or 1 in (n_rows, batch_size)
    assert n_rows < 5 or list(batches) != rows  # shuffled anew


@pytest.mark.parametrize(("n_rows", "at_most"), [(40, 12), (40, 40), (9, 12), (3, 2)])
def test_of_many_rows_each_pass_takes_others(n_rows, at_most):
    batches = Batches(n_rows, 4, torch.Generator().manual_seed(0), at_most)
    passes = [[row for batch in batches for row in batch] for _ in range(60)]
    assert all(len(set(rows)) == len(rows) == min(n_rows, at_most) for rows in passes)
    assert set().union(*passes) == {*range(n_rows)}


# ---------------------------------------------------------------------- epochs
RUNS = [run_of("euler", k) for k in (1, 2, 3)]
BOTH = [Phase(2, "residual"), Phase(5, "terminal")]


def curriculum(n_rows, phases=BOTH, batch_size=4, seed=0):
    _, _, targets = logistic_targets()
    tasks = [TaskBatches(n, targets, RUNS) for n in n_rows]
    return Curriculum(tasks, batch_size, phases, torch.Generator().manual_seed(seed))


def epoch(batches):
    return [batch for batch, _ in batches]


@pytest.mark.parametrize("n_rows", [[12], [9, 9], [17, 5, 8]], ids=str)
def test_an_epoch_is_every_row_of_every_task_once(n_rows):
    batches = curriculum(n_rows)
    for _ in range(5):
        drawn = epoch(batches)
        assert len(drawn) == len(batches)
        for task, n in enumerate(n_rows):
            rows = torch.cat([batch.rows for batch in drawn if batch.task == task])
            assert sorted(rows.tolist()) == [*range(n)]


def test_two_tasks_take_turns_until_one_has_no_more():
    assert [batch.task for batch in epoch(curriculum([8, 16]))] == [0, 1, 0, 1, 1, 1]


def test_phases_split_the_epochs_and_the_last_loss_goes_on():
    batches = curriculum([8])
    losses = [{batch.loss for batch in epoch(batches)} for _ in range(7)]
    assert losses == [{"residual"}] * 2 + [{"terminal"}] * 5


def test_residuals_bring_parts_and_solves_a_run():
    batches = curriculum([64], batch_size=32)
    for batch in epoch(batches):
        assert batch.run is None and len(batch.parts) == 4  # steps of several sizes in one batch
        assert torch.equal(torch.cat([part.rows for part in batch.parts]), batch.rows)
        assert all(isinstance(part.targets, Target) for part in batch.parts)
    epoch(batches)
    for batch in epoch(batches):
        assert batch.parts == () and batch.run in RUNS


def test_a_sum_of_losses_brings_both():
    for batch in epoch(curriculum([32], [Phase(1, "residual+trajectory")], batch_size=16)):
        assert batch.parts and batch.run in RUNS


def test_every_target_and_every_run_comes_up():
    batches = curriculum([64], [Phase(200, "residual+trajectory")], batch_size=16)
    drawn = [batch for _ in range(200) for batch in epoch(batches)]
    runs = Counter(batch.run for batch in drawn)
    assert set(runs) == set(RUNS) and min(runs.values()) > len(drawn) / 6
    assert {id(part.targets) for batch in drawn for part in batch.parts} == {
        id(target) for target in batches.tasks[0].targets
    }


def test_rows_of_stacks_draw_several_steps_each():
    _, _, targets = logistic_targets("ab3", fit_n_steps=(2, 6))
    stacks = stack_targets(targets)
    rows = torch.tensor([4, 1, 9, 7, 12, 2])
    task = TaskBatches(24, stacks, RUNS)
    batch = task.draw(0, rows, "residual", torch.Generator().manual_seed(0))
    assert all(isinstance(part.targets, TargetStack) for part in batch.parts)
    assert Counter(torch.cat([part.rows for part in batch.parts]).tolist()) == dict.fromkeys(rows.tolist(), 4)
    for part in batch.parts:
        assert part.steps.shape == part.rows.shape and 0 <= part.steps.min() <= part.steps.max() < part.targets.n_steps
    shares = {part.targets.kind: len(part.rows) for part in batch.parts}
    n_steps = sum(stack.n_steps for stack in stacks)
    for stack in stacks:  # kinds of steps come as often as there are steps of theirs
        assert abs(shares.get(stack.kind, 0) - 24 * stack.n_steps / n_steps) <= 1


def test_the_order_follows_the_generator():
    def drawn(seed):
        return [batch.rows.tolist() for batch in epoch(curriculum([20], seed=seed))]

    assert drawn(0) == drawn(0) != drawn(1)


# ---------------------------------------------------------------------- what needs more than one row
class Own(nn.Module):
    def forward(self, z):
        if self.training and len(z) == 1:
            raise RuntimeError("one row is not enough")
        return z


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(2), Own()], ids=["BatchNorm", "own"])
@pytest.mark.parametrize(("n_rows", "batch_size", "remedy"), [(9, 1, "set batch_size to 2"), (1, 9, "give more rows")])
def test_a_layer_that_needs_rows_is_refused_where_one_would_be_alone(layer, n_rows, batch_size, remedy):
    def forward(module):
        return module(torch.ones(1, 2))

    check_lone_rows(layer, forward, 9, 4, "correction")
    with pytest.raises(
        ValueError, match=rf"a layer of correction cannot be trained on a batch of a single row.*{remedy}"
    ):
        check_lone_rows(layer, forward, n_rows, batch_size, "correction")


def test_layers_that_learn_from_one_row_are_not_called():
    def forward(module):
        raise AssertionError("called")

    check_lone_rows(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)), forward, 1, 1, "correction")


def test_the_check_leaves_statistics_alone():
    norm = nn.BatchNorm2d(2)
    check_lone_rows(norm, lambda module: module(torch.randn(1, 2, 4, 4)), 5, 1, "input_map")
    assert norm.num_batches_tracked == 0 and norm.running_mean.abs().max() == 0
