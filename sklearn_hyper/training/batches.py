"""Draw the rows that an optimizer step learns from, and refuse layers that cannot learn from a single row."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from ..modules.corrections import ModuleCorrection
from ..numerics.protection import FieldInputs
from .plan import Run
from .settings import Phase
from .targets import Target, TargetStack

_MIXED_STEPS = 4
"""Number of parts of a batch, each with its own step, where targets are not stacked."""
_STEPS_A_ROW = 4
"""Number of steps that each row of a batch draws, where targets are stacked."""


class Batches:
    """Batches of shuffled rows, of one size but for a row: a small last batch would be a noisy step of full length.

    None is a single row, which layers like BatchNorm cannot learn from, unless ``batch_size`` is 1 or there is one row.

    Parameters
    ----------
    n_rows, batch_size : int
    generator : torch.Generator, optional
    at_most : int, optional
        Rows in all batches together: so many are drawn anew each time. None takes all.
    """

    def __init__(
        self, n_rows: int, batch_size: int, generator: torch.Generator | None = None, at_most: int | None = None
    ):
        self.n_rows, self.generator = n_rows, generator
        self._n_drawn = n_rows if at_most is None else min(at_most, n_rows)
        n_batches = math.ceil(self._n_drawn / batch_size)
        self._n_batches = n_batches if batch_size == 1 else max(1, min(n_batches, self._n_drawn // 2))

    def __len__(self) -> int:
        return self._n_batches

    def __iter__(self) -> Iterator[list[int]]:
        drawn = torch.randperm(self.n_rows, generator=self.generator)[: self._n_drawn]
        yield from (part.tolist() for part in drawn.tensor_split(len(self)))


class TargetPart(NamedTuple):
    """Some rows of a batch, and the targets that they learn from."""

    targets: Target | TargetStack
    rows: Tensor
    steps: Tensor | None = None
    """Step of every row in a stack; None for a single target."""

    def loss(self, correction: ModuleCorrection, inputs: FieldInputs) -> Tensor:
        """Compute the rows' residual loss, as a share of the base solver's."""
        arguments = () if self.steps is None else (self.steps,)
        return self.targets.loss(correction, inputs, self.rows, *arguments)


@dataclass(frozen=True)
class Batch:
    """What one optimizer step learns from: residuals, a whole solve, or both, for rows of one task."""

    loss: str
    task: int
    rows: Tensor
    parts: Sequence[TargetPart]
    run: Run | None

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class TaskBatches:
    """What the batches of one task are drawn from.

    Parameters
    ----------
    n_rows : int
        Number of rows trained on.
    targets : list of Target or of TargetStack
        Targets of all rows. From stacks, every row draws some steps of its own. Otherwise a batch is split into a few
        parts with one step each.
    runs : list of Run
        Runs that the unrolled solve of a batch is drawn from.
    epoch_rows : int, optional
        Rows in an epoch; None takes all.
    """

    n_rows: int
    targets: Sequence[Target] | Sequence[TargetStack]
    runs: Sequence[Run]
    epoch_rows: int | None = None

    def draw(self, task: int, rows: Tensor, loss: str, generator: torch.Generator) -> Batch:
        """Draw a batch for these rows."""
        parts = self._parts(rows, generator) if "residual" in loss else ()
        return Batch(loss, task, rows, parts, None if loss == "residual" else _draw(self.runs, generator))

    def _parts(self, rows: Tensor, generator: torch.Generator) -> list[TargetPart]:
        stacks = [targets for targets in self.targets if isinstance(targets, TargetStack)]
        if not stacks:
            n_parts = max(1, min(_MIXED_STEPS, len(self.targets), len(rows) // 8))
            return [TargetPart(_draw(self.targets, generator), part) for part in rows.chunk(n_parts)]
        *ends, n_steps = accumulate(stack.n_steps for stack in stacks)
        repeated = rows.repeat(min(_STEPS_A_ROW, n_steps))
        shares = repeated.tensor_split([round(len(repeated) * end / n_steps) for end in ends])
        return [
            TargetPart(stack, stack_rows, torch.randint(stack.n_steps, (len(stack_rows),), generator=generator))
            for stack, stack_rows in zip(stacks, shares, strict=True)
            if len(stack_rows)
        ]


def _draw(options: Sequence[Any], generator: torch.Generator) -> Any:
    return options[int(torch.randint(len(options), (), generator=generator))]


class Curriculum(IterableDataset[tuple[Batch, int]]):
    """Batches of one epoch after another. An epoch is one pass over the training rows of all tasks, which take turns.
    Where rows abound it takes ``epoch_rows`` of them, drawn anew.

    A residual batch mixes step sizes, which makes gradients less noisy than one step size a batch. A solve has one
    method and one number of steps.

    Parameters
    ----------
    tasks : sequence of TaskBatches
    batch_size : int
    phases : sequence of Phase
    generator : torch.Generator
        Generator of every draw.
    """

    def __init__(
        self, tasks: Sequence[TaskBatches], batch_size: int, phases: Sequence[Phase], generator: torch.Generator
    ):
        self.tasks, self.phases, self.generator = tasks, phases, generator
        self.batches = [Batches(task.n_rows, batch_size, generator, task.epoch_rows) for task in tasks]
        self.epoch = 0

    def __len__(self) -> int:
        return sum(len(batches) for batches in self.batches)

    def __iter__(self) -> Iterator[tuple[Batch, int]]:
        loss = next((phase.loss for phase in self.phases if self.epoch < phase.last_epoch), self.phases[-1].loss)
        self.epoch += 1
        waiting = {i: iter(batches) for i, batches in enumerate(self.batches)}
        while waiting:
            for i, batches in list(waiting.items()):
                rows = next(batches, None)
                if rows is None:
                    del waiting[i]
                else:
                    yield self.tasks[i].draw(i, torch.tensor(rows), loss, self.generator), 0


def check_lone_rows(
    module: nn.Module, forward: Callable[[nn.Module], Any], n_rows: int, batch_size: int, parts: str
) -> None:
    """Refuse batches of a single row where a layer, such as BatchNorm, cannot learn from one.

    Parameters
    ----------
    module : nn.Module
    forward : callable
        ``forward(module)`` calls a module on one row. It is given a copy of the module.
    n_rows, batch_size : int
        Number of rows trained on, and in a batch.
    parts : str
        Names of the parameters that the module is made of, for the error.
    """
    if min(n_rows, batch_size) > 1 or not any(_may_need_rows(part) for part in module.modules()):
        return
    try:
        with torch.no_grad():
            forward(copy.deepcopy(module).train())
    except Exception as error:
        what, remedy = f"batch_size={batch_size}", "set batch_size to 2 or more"
        if n_rows == 1:
            what, remedy = "one row to train on", "give more rows"
        raise ValueError(
            f"{what}: a layer of {parts} cannot be trained on a batch of a single row ({error}), as none can that "
            f"takes statistics over a batch (BatchNorm does); {remedy}, or use a layer that takes them over each row "
            "(LayerNorm, GroupNorm)."
        ) from error


def _may_need_rows(part: nn.Module) -> bool:
    """Return whether a module may fail on one row in training: a normalisation over the batch, or a user's class."""
    is_users = not type(part).__module__.startswith(("torch.nn.", "sklearn_hyper."))
    return is_users or isinstance(part, nn.modules.batchnorm._BatchNorm)
