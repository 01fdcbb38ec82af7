"""Losses of a training: of batches, of tasks, and on held-out rows, where a larger largest error is infinitely bad."""

import math

import pytest
import torch
from small_tasks import (
    Scaled,
    fit_settings,
    logistic_targets,
    scaled_correction,
)
from torch import nn

from sklearn_hyper.modules import BoundedCorrection
from sklearn_hyper.modules.corrections import ScaleSample, fit_units
from sklearn_hyper.training.batches import Batch, TargetPart
from sklearn_hyper.training.errors import TerminalErrors
from sklearn_hyper.training.learn import Objective, TaskLosses, _draws_nothing, train_corrections
from sklearn_hyper.training.losses import residual_loss
from sklearn_hyper.training.nets import best_loss
from sklearn_hyper.training.settings import Phase
from sklearn_hyper.training.targets import TargetSource, TaskSet


def logistic_set(base_solver="euler"):
    """Everything that a fit knows of the logistic equation; trained on and held out are the same rows."""
    plan, references, targets = logistic_targets(base_solver)
    ode = references.task.neural_ode
    sample = ScaleSample([target.residual for target in targets], None, ode.t_span)
    source = TargetSource(ode, references.states, references.inputs)
    return TaskSet(plan, references, references, list(targets), list(targets), sample, source)


def losses_of(data, *phases):
    return TaskLosses.of(
        data, TerminalErrors(data.valid, data.plan.runs[0]), phases or [Phase(1, "residual"), Phase(2, "terminal")]
    )


def all_rows(data):
    return torch.arange(len(data.train))


# ---------------------------------------------------------------------- of a batch
@pytest.mark.parametrize("loss", ["residual", "terminal", "trajectory", "output"])
def test_every_loss_of_no_correction_is_one(loss):
    data = logistic_set()
    losses, zero = losses_of(data, Phase(1, loss)), scaled_correction(data.targets)
    rows = all_rows(data)
    parts = [TargetPart(target, rows) for target in data.targets[:3]] if loss == "residual" else ()
    run = None if loss == "residual" else data.plan.runs[0]
    assert float(losses.of_batch(zero, Batch(loss, 0, rows, parts, run))) == pytest.approx(1, rel=1e-9)
    held_out, least = losses.held_out(zero, loss)
    assert held_out.tolist() == pytest.approx([1.0] * len(held_out), rel=1e-9) and least == 0


def test_two_losses_add_up():
    data = logistic_set()
    losses, g, rows = (
        losses_of(data, Phase(1, "residual+trajectory")),
        scaled_correction(data.targets, 0.3),
        all_rows(data),
    )
    parts, run = [TargetPart(data.targets[0], rows), TargetPart(data.targets[4], rows)], data.plan.runs[0]
    one = losses.of_batch(g, Batch("residual", 0, rows, parts, None))
    other = losses.of_batch(g, Batch("residual+trajectory", 0, rows, (), run))
    both = losses.of_batch(g, Batch("residual+trajectory", 0, rows, parts, run))
    assert float(both) == pytest.approx(float(one + other), rel=1e-9)
    assert float(one) == pytest.approx(
        sum(float(part.targets.loss(g, data.train.inputs, rows)) for part in parts) / 2, rel=1e-9
    )


def test_a_residual_loss_is_the_mean_norm_of_what_is_missed_in_a_unit():
    data = logistic_set()
    r = data.targets[0].residual
    unit = torch.full((1, 1), 4.0, dtype=torch.float64)
    missed = r.target - scaled_correction(data.targets, 0.3)(r.eps, r.time(), r.z, r.stages)
    assert float(residual_loss(scaled_correction(data.targets, 0.3), r, None, unit)) == pytest.approx(
        float(missed.abs().mean() / 4)
    )


# ---------------------------------------------------------------------- on held-out rows
class Overshoots(Scaled):
    """Better than the base solver for most rows, and off by ``by`` where the state is small."""

    def __init__(self, size, by=-100.0):
        super().__init__(size)
        self.by = by

    def forward(self, eps, s, z, stages, x, kind):
        g = super().forward(eps, s, z, stages, x, kind)
        return torch.where(z < 0.16, self.by * torch.ones_like(g), g)


@pytest.mark.parametrize("loss", ["residual", "terminal"])
def test_the_held_out_loss_is_infinite_where_the_largest_error_far_exceeds_the_base_solvers(loss):
    data = logistic_set()
    losses, units = losses_of(data), fit_units([target.residual for target in data.targets])
    bad, good = (BoundedCorrection(net(2.0), units) for net in (Overshoots, Scaled))
    table = losses.errors.table(bad, [])[3]
    assert table["max"] > table["base_max"]
    objective = Objective([bad], [losses])
    assert losses.held_out(bad, loss)[1] == math.inf and objective.held_out_loss(loss) == math.inf
    assert Objective([good], [losses]).held_out_loss(loss) < 1


def test_one_task_that_is_worse_is_enough():
    one, other = logistic_set(), logistic_set("heun")
    losses = [losses_of(one), losses_of(other)]
    fine = [scaled_correction(data.targets) for data in (one, other)]
    assert Objective(fine, losses).held_out_loss("terminal") == pytest.approx(1, rel=1e-9)
    bad = [fine[0], scaled_correction(other.targets, 500.0)]
    assert Objective(bad, losses).held_out_loss("terminal") == math.inf


def test_the_held_out_loss_is_a_geometric_mean():
    data = logistic_set()
    losses, g = losses_of(data), scaled_correction(data.targets, 0.05)
    each, least = losses.held_out(g, "residual")
    assert least == 0 and 1 < len(each) <= 16 and each.isfinite().all()
    expected = math.exp(float(each.log().mean()))
    assert Objective([g], [losses]).held_out_loss("residual") == pytest.approx(expected, rel=1e-9)


# ---------------------------------------------------------------------- the training module
def test_only_the_corrections_are_trained_and_shared_weights_once():
    data = logistic_set()
    net = Scaled(0.1)
    units = fit_units([target.residual for target in data.targets])
    objective = Objective([BoundedCorrection(net, units), BoundedCorrection(net, units)], [losses_of(data)] * 2)
    assert [id(parameter) for parameter in objective.parameters()] == [id(net.size)]
    released = objective.release()
    assert [correction.training for correction in released] == [False, False]
    assert not net.size.requires_grad and objective._frozen is None


@pytest.mark.parametrize("finetune", ["terminal", None])
@pytest.mark.parametrize("base_solver", ["euler", "ab2"])
def test_training_makes_corrections_better_than_the_base_solver(base_solver, finetune):
    data = logistic_set(base_solver)
    correction = scaled_correction(data.targets).requires_grad_(True)
    errors = TerminalErrors(data.valid, data.plan.runs[0])
    settings = fit_settings(base_solver=base_solver, n_steps=3, max_epochs=30, lr=3e-2, finetune=finetune)
    net = train_corrections([correction], [data], [errors], settings, seed=0)
    assert data.targets == []  # stacked, and so not twice in memory
    assert best_loss(net) < 0.99 and len(net.history) == 30
    share, least = errors.guard(correction)
    assert share < 1 and least == 0


def test_the_same_seed_gives_the_same_weights():
    def trained(seed):
        data = logistic_set()
        correction = scaled_correction(data.targets).requires_grad_(True)
        errors = TerminalErrors(data.valid, data.plan.runs[0])
        train_corrections([correction], [data], [errors], fit_settings(n_steps=3, max_epochs=3), seed)
        return float(correction.net.size.detach())

    assert trained(0) == trained(0) != trained(1)


@pytest.mark.parametrize(
    ("net", "draws"),
    [(nn.Linear(1, 1), False), (nn.Sequential(nn.Linear(1, 1), nn.SiLU()), False), (nn.Dropout(), True),
     (nn.RReLU(), True), (Scaled(), True)],
    ids=["linear", "activations", "dropout", "random activation", "own"],
)  # fmt: skip
def test_trainings_that_may_draw_hold_the_global_generators(net, draws):
    holder = nn.Sequential(net)
    assert _draws_nothing(holder, fit_settings()) is not draws
    assert not _draws_nothing(holder, fit_settings(callbacks=[object()]))
