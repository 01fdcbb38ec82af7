"""Train corrections: the module that computes the loss, the choice of its best weights, and the net around it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..modules.corrections import ModuleCorrection
from ..modules.neural_ode import NeuralODE
from ..modules.seeding import own_generator, seeded
from .batches import Batch, Curriculum, TaskBatches
from .errors import TerminalErrors, UnrolledSolves
from .losses import StateLoss, output_loss, terminal_loss, trajectory_loss
from .nets import BestWeights, FreshPhases, LossNet, build_net, cosine_schedule
from .plan import Run
from .settings import FINETUNE_LR, FitSettings, Phase
from .targets import TaskSet, stack_targets

_TINY = 1e-30
_VALID_STEPS, _VALID_RUNS = 8, 8
_PLAIN_LAYERS = ("torch.nn.modules.activation", "torch.nn.modules.container")


@dataclass(frozen=True)
class TaskLosses:
    """Losses of one task: its data, unrolled solves by the name of their loss, and the errors that guard the fit."""

    data: TaskSet
    unrolled: dict[str, UnrolledSolves]
    errors: TerminalErrors

    @classmethod
    def of(
        cls,
        data: TaskSet,
        errors: TerminalErrors,
        phases: Sequence[Phase],
        t_eval: Sequence[float] | None = None,
    ) -> TaskLosses:
        neural_ode = data.train.task.neural_ode
        unrolled = {
            phase.loss: UnrolledSolves(neural_ode, _state_loss(phase.loss, neural_ode), t_eval) for phase in phases
        }
        return cls(data, unrolled, errors)

    def of_batch(self, correction: ModuleCorrection, batch: Batch) -> Tensor:
        """Compute the loss of a batch, in units of the base solver's; two terms have equal weight."""
        losses = [part.loss(correction, self.data.train.inputs) for part in batch.parts]
        terms = [torch.stack(losses).mean()] if losses else []
        if batch.run is not None:
            terms.append(self.unrolled[batch.loss].share(self.data.train, batch.rows, batch.run, correction))
        return torch.stack(terms).sum()

    def held_out(self, correction: ModuleCorrection, loss: str) -> tuple[Tensor, float]:
        """Compute losses on held-out rows, one for each step or run, and the least loss that they count with.

        The latter is that of :meth:`TerminalErrors.guard`; infinite if the weights must not be kept.
        """
        share, least = self.errors.guard(correction)
        if math.isinf(least):
            return share[None], least
        valid = self.data.valid
        with torch.no_grad():
            if loss == "residual":
                targets = self.data.valid_targets[:: max(1, len(self.data.valid_targets) // _VALID_STEPS)]
                return torch.stack([target.loss(correction, valid.inputs, slice(None)) for target in targets]), least
            losses = [
                share
                if (loss, run) == ("terminal", self.errors.guarded)  # computed above
                else self.unrolled[loss].share(valid, slice(None), run, correction)
                for run in _spread(self.data.plan.runs, _VALID_RUNS)
            ]
            return torch.stack(losses), least


class Objective(nn.Module):
    """The training module: its parameters are those of the corrections, and its output is the loss.

    Parameters
    ----------
    corrections : sequence of ModuleCorrection
        One for each task. Their nets may share weights.
    losses : sequence of TaskLosses
        One for each task.
    method : nn.Module, optional
        The base method, where its coefficients learn too.
    """

    def __init__(
        self, corrections: Sequence[ModuleCorrection], losses: Sequence[TaskLosses], method: nn.Module | None = None
    ):
        super().__init__()
        self.corrections, self.method = nn.ModuleList(corrections), method
        # A tuple hides the frozen fields from parameters(), state_dict() and train().
        self._frozen: Any = (tuple(losses),)

    def forward(self, batch: Batch) -> Tensor:
        """Return the loss of a batch."""
        return self._frozen[0][batch.task].of_batch(self.corrections[batch.task], batch)

    def held_out_loss(self, loss: str) -> float:
        """Return the geometric mean of the losses over steps, runs and tasks; 1 is the base solver.

        With weights that bend a row too far, it is from their least loss to 1, or infinite, whatever the mean.
        """
        losses, least = zip(
            *(
                task_losses.held_out(correction, loss)
                for correction, task_losses in zip(self.corrections, self._frozen[0], strict=True)
            ),
            strict=True,
        )
        if math.isinf(max(least)):
            return math.inf
        mean = float((torch.cat(losses) + _TINY).log().mean().exp())
        return max(least) + (1 - max(least)) * mean

    def release(self) -> list[ModuleCorrection]:
        """Drop the training data, which must not be pickled with a fitted estimator; return the corrections."""
        self._frozen = None
        corrections: Any = self.corrections
        return [correction.eval().requires_grad_(False) for correction in corrections]


def train_corrections(
    corrections: Sequence[ModuleCorrection],
    tasks: Sequence[TaskSet],
    errors: Sequence[TerminalErrors],
    settings: FitSettings,
    seed: int,
    method: nn.Module | None = None,
) -> LossNet:
    """Train corrections, one for each task; return the net that trained them, with its best weights loaded.

    The targets of the tasks are emptied. ``method`` is the base method where its coefficients learn too.
    """
    phases = settings.phases
    losses = [
        TaskLosses.of(data, task_errors, phases, settings.t_eval)
        for data, task_errors in zip(tasks, errors, strict=True)
    ]
    generator = own_generator(seed)
    batches = []
    for correction, data in zip(corrections, tasks, strict=True):
        stacked = correction.takes_row_steps and data.targets
        targets = stack_targets(data.targets) if stacked else data.targets
        batches.append(TaskBatches(len(data.train), targets, data.plan.runs, data.train.task.epoch_rows))
    curriculum = Curriculum(batches, settings.batch_size, phases, generator)
    net = _build_net(Objective(corrections, losses, method), curriculum, settings)
    draws_nothing = all(_draws_nothing(correction, settings) for correction in corrections)
    with nullcontext() if draws_nothing else seeded(seed, settings.device):
        net.train(curriculum, None, generator)
    net.optimizer_.state.clear()  # nothing reads it again, and it is larger than what was learned
    return net


def _build_net(objective: Objective, curriculum: Curriculum, settings: FitSettings) -> LossNet:
    """Make a net around the training module; its learning rate starts anew with every phase."""
    phases = settings.phases
    ends = [phase.last_epoch for phase in phases]
    best = BestWeights(_validation(phases[-1].loss))
    return build_net(
        LossNet, objective, settings, best, "fitting correction",
        schedule=cosine_schedule(len(curriculum), ends, [1.0, FINETUNE_LR][: len(ends)]),
        first=[("fresh_phases", FreshPhases(ends))],
        iterator_train=DataLoader, iterator_train__batch_size=None,
    )  # fmt: skip


def _validation(loss: str) -> Callable[[Objective], float]:
    """Return the function that the best weights minimise: the last phase's loss on held-out rows."""
    return lambda objective: objective.held_out_loss(loss)


def _draws_nothing(correction: ModuleCorrection, settings: FitSettings) -> bool:
    """Return whether all code of the training is known to draw nothing from torch's global generators.

    Such a fit need not seed them, so that fits in other threads may train at the same time.
    """
    ours = ("sklearn_hyper.", "torch.nn.modules.linear", "torch.nn.modules.conv", *_PLAIN_LAYERS)
    modules = [type(module) for module in correction.modules()]
    return (
        not settings.callbacks
        and settings.optimizer.__module__.startswith(("torch.optim.", "sklearn_hyper."))
        and all(kind.__module__.startswith(ours) and kind is not nn.RReLU for kind in modules)
    )


def _state_loss(loss: str, neural_ode: NeuralODE) -> StateLoss:
    if loss == "output":
        return output_loss(neural_ode.output_map)
    return trajectory_loss if "trajectory" in loss else terminal_loss


def _spread(options: Sequence[Run], at_most: int) -> list[Run]:
    """Return at most ``at_most`` runs, evenly spread, with the first and the last among them."""
    chosen = np.linspace(0, len(options) - 1, min(len(options), at_most)).round().astype(int)
    return [options[i] for i in chosen]
