"""What a correction is trained on: rows of residual blocks, unrolled solves, and the order in which they come."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from ..modules.neural_ode import NeuralODE
from ..modules.solver_binding import bind_solver
from ..numerics.base_solvers import BaseSolver
from ..numerics.residuals import Residual
from ..numerics.solve import iterate_states, uniform_grid
from .losses import StateLoss, mean_norm, residual_loss, trajectory_loss
from .residual_sets import select_rows

_TINY = 1e-30
_UNIT_ROWS = 256
_MIXED_STEP_SIZES = 4


@dataclass(frozen=True)
class Block:
    """A residual block, its base solver, and its unit: the mean norm of its targets, which is the base solver's loss."""

    residual: Residual
    solver: BaseSolver
    unit: float

    @classmethod
    def of(cls, residual: Residual, solver: BaseSolver, rows: Any) -> Block:
        """The block of some rows."""
        selected = select_rows(residual, rows)
        return cls(selected, solver, max(float(mean_norm(selected.target)), _TINY))

    def share(self, correction: nn.Module, rows: Any, control: Tensor | None) -> Tensor:
        """Residual loss of some of its rows as a share of the base solver's."""
        x = None if control is None else control[rows]
        return residual_loss(bind_solver(correction, self.solver), select_rows(self.residual, rows), x) / self.unit


@dataclass
class ReferenceRows:
    """Reference states of some rows, on the mesh shared by all, and their residual blocks."""

    x: Tensor
    times: tuple[float, ...]
    states: Tensor
    blocks: list[Block]
    _index: dict[float, int] = field(init=False)

    def __post_init__(self) -> None:
        self._index = {round(time, 12): i for i, time in enumerate(self.times)}

    def indices(self, grid: Sequence[float]) -> list[int]:
        """Where the mesh holds the times of a uniform grid."""
        return [self._index[round(s, 12)] for s in grid]

    def on_grid(self, grid: Sequence[float], rows: Any = slice(None)) -> Tensor:
        """States at the times of a uniform grid that the mesh contains."""
        return torch.stack([self.states[i][rows] for i in self.indices(grid)])


class Solve(NamedTuple):
    """A way through the span: a base solver in K steps."""

    solver: BaseSolver
    steps: int


class UnrolledSolves:
    """Solves of a fixed Neural ODE, and their errors as shares of the base solver's."""

    def __init__(self, neural_ode: NeuralODE, loss: StateLoss):
        self.neural_ode, self.loss = neural_ode, loss
        self._units: dict[Solve, float] = {}

    def _error(self, data: ReferenceRows, rows: Any, solve: Solve, correction: nn.Module | None) -> Tensor:
        grid = uniform_grid(self.neural_ode.t_span, solve.steps)
        every_step = self.loss is trajectory_loss
        reference = data.on_grid(grid if every_step else (grid[0], grid[-1]), rows)
        x = data.x[rows] if self.neural_ode.data_controlled else None
        z0 = reference[0]
        states = [z0, *iterate_states(self.neural_ode.vector_field, z0, grid, solve.solver, correction, x)]
        return self.loss(torch.stack(states if every_step else [z0, states[-1]]), reference)

    def share(self, data: ReferenceRows, rows: Any, solve: Solve, correction: nn.Module) -> Tensor:
        """Error of some rows as a share of the base solver's on the first rows of ``data``."""
        if solve not in self._units:
            with torch.no_grad():
                unit = self._error(data, slice(0, _UNIT_ROWS), solve, None)
            self._units[solve] = max(float(unit), _TINY)
        return self._error(data, rows, solve, bind_solver(correction, solve.solver)) / self._units[solve]


@dataclass(frozen=True)
class Batch:
    """What one optimizer step learns from: rows of residual blocks, a solve, or both."""

    kind: str
    rows: Tensor
    parts: list[tuple[Tensor, Block]]
    solve: Solve | None

    def __len__(self) -> int:
        return len(self.rows)


class Curriculum(IterableDataset[tuple[Batch, int]]):
    """Batches, epoch by epoch; an epoch is one pass over the training rows.

    A residual batch mixes a few step sizes, one a part of its rows: with one alone the gradient is noisier from
    batch to batch. A solve has one base solver and one number of steps.

    Parameters
    ----------
    data : ReferenceRows
    batch_size : int
    stages : sequence of (int, str)
        Last epoch and kind of each stage.
    solves : sequence of Solve
        What unrolled solves are drawn from.
    """

    def __init__(
        self, data: ReferenceRows, batch_size: int, stages: Sequence[tuple[int, str]], solves: Sequence[Solve]
    ):
        self.data, self.batch_size, self.stages, self.solves = data, batch_size, stages, solves
        self.epoch = 0

    def __len__(self) -> int:
        return -(-len(self.data.x) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Batch, int]]:
        kind = next((kind for end, kind in self.stages if self.epoch < end), self.stages[-1][1])
        self.epoch += 1
        for rows in torch.randperm(len(self.data.x)).split(self.batch_size):
            mixed = _split(rows, len(self.data.blocks)) if "residual" in kind else ()
            parts = [(part, _draw(self.data.blocks)) for part in mixed]
            yield Batch(kind, rows, parts, None if kind == "residual" else _draw(self.solves)), 0


def _split(rows: Tensor, n_blocks: int) -> Sequence[Tensor]:
    return rows.chunk(max(1, min(_MIXED_STEP_SIZES, n_blocks, len(rows) // 8)))


def _draw(options: Sequence[Any]) -> Any:
    return options[int(torch.randint(len(options), ()))]


class Objective(nn.Module):
    """The training module: its parameters are the correction's alone, its output is the loss.

    Parameters
    ----------
    correction : nn.Module
    data : ReferenceRows
    control : Tensor or None
        Input of a data-controlled field, by row.
    solves : mapping of str to UnrolledSolves
        By kind of stage.
    """

    correction: nn.Module

    def __init__(
        self,
        correction: nn.Module,
        data: ReferenceRows,
        control: Tensor | None,
        solves: Mapping[str, UnrolledSolves],
    ):
        super().__init__()
        self.correction = correction
        # In a tuple, the frozen field stays out of parameters(), state_dict() and train().
        self._frozen: Any = (data, control, solves)

    def forward(self, batch: Batch) -> Tensor:
        """The batch's loss, in units of the base solver's; two terms add up with equal weight."""
        data, control, solves = self._frozen
        losses = [block.share(self.correction, rows, control) for rows, block in batch.parts]
        terms = [torch.stack(losses).mean()] if losses else []
        if batch.solve is not None:
            terms.append(solves[batch.kind].share(data, batch.rows, batch.solve, self.correction))
        return torch.stack(terms).sum()

    def release(self) -> nn.Module:
        """Let go of the training data, which must not travel with a fitted estimator; return the correction."""
        self._frozen = None
        return self.correction
