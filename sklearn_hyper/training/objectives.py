"""What a correction is trained on: rows of residual blocks, unrolled solves, and the order in which they come."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from ..modules.correction_nets import flatten_samples
from ..modules.neural_ode import NeuralODE
from ..modules.solver_binding import bind_solver
from ..numerics.base_solvers import BaseSolver
from ..numerics.residuals import Residual
from ..numerics.row_errors import RowsError, list_rows
from ..numerics.solve import iterate_states, solver_mesh
from ..numerics.units import state_units
from .batches import Batches
from .losses import StateLoss, mean_norm, mean_size, residual_loss, terminal_loss, trajectory_loss
from .residual_sets import mesh_indices, select_rows

_TINY = 1e-20
"""No dtype tells an error of this share of the states from none."""
_UNIT_ROWS = 256
_MIXED_STEP_SIZES = 4
"""Parts of a batch of unstacked blocks, each with a step of its own."""
_STEPS_A_ROW = 4
"""Steps that a row of a batch of stacked blocks draws."""


@dataclass(frozen=True)
class Block:
    """A residual block, its base solver, and its unit: the mean norm of its targets, which is the base solver's loss.

    Shaped as the unit of the states is, which it is a multiple of.
    """

    residual: Residual
    solver: BaseSolver
    unit: Tensor

    @classmethod
    def of(cls, residual: Residual, solver: BaseSolver, rows: Any, unit: Tensor) -> Block:
        """The block of some rows, for states of that unit."""
        selected = select_rows(residual, rows)
        return cls(selected, solver, unit * (mean_size(selected.target, unit) or 1.0))

    def share(self, correction: nn.Module, rows: Any, control: Tensor | None) -> Tensor:
        """Residual loss of some of its rows as a share of the base solver's."""
        x = None if control is None else control[rows]
        return residual_loss(bind_solver(correction, self.solver), select_rows(self.residual, rows), x, self.unit)


@dataclass(frozen=True)
class BlockRows:
    """Some rows of one block: what a correction that takes one step at a time learns from."""

    block: Block
    rows: Tensor

    def loss(self, correction: nn.Module, control: Tensor | None) -> Tensor:
        """Their residual loss as a share of the base solver's."""
        return self.block.share(correction, self.rows, control)


class BlockStack:
    """Blocks of one base solver and kind of step, stacked, so that every row of a batch may take another step.

    Parameters
    ----------
    blocks : list of Block
        Emptied, so that blocks and stack need not both be in memory.
    """

    def __init__(self, blocks: list[Block]):
        one = blocks[0]
        like = one.residual.z
        self.solver, self.order, self.n_blocks = one.solver, one.residual.order, len(blocks)
        self.s = torch.stack([block.residual.time() for block in blocks])
        self.eps = like.new_tensor([block.residual.eps for block in blocks])
        self.unit = torch.stack([block.unit for block in blocks])
        residuals = [block.residual for block in blocks]
        blocks.clear()
        stages = zip(*(r.stages for r in residuals), strict=True)
        kinds = [[r.target for r in residuals], [r.z for r in residuals], *map(list, stages)]
        del residuals
        stacks = []
        while kinds:  # one kind at a time: each is let go when it is stacked
            stacks.append(torch.stack(kinds.pop(0)))
        self.target, self.z, *self.stages = stacks


@dataclass(frozen=True)
class StackRows:
    """Rows of a stack, each with a step of its own."""

    stack: BlockStack
    steps: Tensor
    rows: Tensor

    def loss(self, correction: nn.Module, control: Tensor | None) -> Tensor:
        """Their residual loss; every row's as a share of the base solver's at its step."""
        stack, at = self.stack, (self.steps, self.rows)
        x = None if control is None else control[self.rows]
        bound = bind_solver(correction, stack.solver)
        g = bound(stack.eps[self.steps], stack.s[self.steps], stack.z[at], [stage[at] for stage in stack.stages], x)
        return mean_norm((stack.target[at] - g) / stack.unit[self.steps].squeeze(1))


def stack_blocks(blocks: list[Block]) -> list[BlockStack]:
    """A stack for every base solver and kind of step (start-up steps have fewer stages); empties ``blocks``."""
    kinds: dict[tuple[BaseSolver, int], list[Block]] = {}
    while blocks:
        block = blocks.pop(0)
        kinds.setdefault((block.solver, len(block.residual.stages)), []).append(block)
    return [BlockStack(kind) for kind in kinds.values()]


@dataclass
class ReferenceRows:
    """Reference states of some rows, on the mesh shared by all, and their residual blocks, stacked or not."""

    x: Tensor
    times: tuple[float, ...]
    states: Tensor
    blocks: list[Block]
    unit: Tensor
    """Of the states, by feature: see :func:`sklearn_hyper.numerics.units.state_units`."""
    stacks: list[BlockStack] = field(default_factory=list)

    def indices(self, grid: Sequence[float]) -> list[int]:
        """Where the mesh holds the times of a grid."""
        found = mesh_indices(self.times, grid)
        if not found:
            raise KeyError(f"references are on {self.times}, which lacks times of {grid}")
        return found

    def on_grid(self, grid: Sequence[float], rows: Any = slice(None)) -> Tensor:
        """States at the times of a grid that the mesh contains."""
        return torch.stack([self.states[i][rows] for i in self.indices(grid)])


def span_units(neural_ode: NeuralODE, states: Tensor) -> Tensor:
    """Units of states from the start and the end of a span: their squares may leave the range of numbers, but not in these."""
    if neural_ode.n_unitless and neural_ode.state_size is not None:  # 1 for a flow that scales its data
        return state_units(states.new_tensor([neural_ode.state_size]), neural_ode.n_unitless)
    return state_units(torch.cat([states[0], states[-1]]), neural_ode.n_unitless)


class Solve(NamedTuple):
    """A way through the span: a base solver in K steps."""

    solver: BaseSolver
    steps: int


class UnrolledSolves:
    """Solves of a fixed Neural ODE, and their errors as shares of the base solver's."""

    def __init__(self, neural_ode: NeuralODE, loss: StateLoss):
        self.neural_ode, self.loss = neural_ode, loss
        self._units: dict[Solve, Tensor] = {}

    def solve(
        self, data: ReferenceRows, rows: Any, solve: Solve, correction: nn.Module | None
    ) -> tuple[Tensor, Tensor]:
        """States that the loss looks at, and the reference's."""
        grid = solver_mesh(solve.solver, self.neural_ode.t_span, solve.steps)
        every_step = self.loss is trajectory_loss
        reference = data.on_grid(grid if every_step else (grid[0], grid[-1]), rows)
        x = data.x[rows] if self.neural_ode.data_controlled else None
        z0 = reference[0]
        states = [z0, *iterate_states(self.neural_ode.vector_field, z0, grid, solve.solver, correction, x)]
        return torch.stack(states if every_step else [z0, states[-1]]), reference

    def share(self, data: ReferenceRows, rows: Any, solve: Solve, correction: nn.Module) -> Tensor:
        """Error of some rows as a share of the base solver's on the first rows of ``data``."""
        if solve not in self._units:
            with torch.no_grad():
                states, reference = self.solve(data, slice(0, _UNIT_ROWS), solve, None)
                difference = self.loss(states, reference)
                is_of_states = self.loss in (terminal_loss, trajectory_loss)
                unit = data.unit if is_of_states else state_units(self.neural_ode.output_map(reference[-1]))
                self._units[solve] = unit * max(mean_size(difference, unit), _TINY)
        found = self.solve(data, rows, solve, bind_solver(correction, solve.solver))
        return mean_norm(self.loss(*found) / self._units[solve])


def base_errors(
    neural_ode: NeuralODE, data: ReferenceRows, solve: Solve, outputs: list[Tensor] | None = None
) -> Tensor:
    """Norm of the base solver's terminal error by row: not finite where it leaves the range of numbers.

    The outputs at its states are added to ``outputs``, where that is given.
    """
    unrolled = UnrolledSolves(neural_ode, terminal_loss)
    errors = []
    with torch.no_grad():
        for start in range(0, len(data.x), _UNIT_ROWS):
            states, reference = unrolled.solve(data, slice(start, start + _UNIT_ROWS), solve, None)
            errors.append(torch.linalg.vector_norm(flatten_samples((states[-1] - reference[-1]) / data.unit), dim=1))
            if outputs is not None:
                outputs.append(neural_ode.output_map(states[-1]))
    return torch.cat(errors)


class BaseSolverOverflowError(RowsError, ValueError):
    """A base solver leaves the range of numbers from some rows, where dopri5 does not."""

    @classmethod
    def _describe(cls, what: str, rows: Sequence[int], n_rows: int) -> str:
        return (
            f"{what} overflows from {len(rows)} of {n_rows} rows of X ({list_rows(rows)}), where dopri5 does not: its steps are "
            "too long for this field. Raise n_steps (or the lower end of fit_n_steps), take a base solver of higher order, "
            "or leave those rows out."
        )


def check_overflow(values: Tensor, name: str, n_steps: int) -> None:
    """Raise a ValueError where what a base solver made of a row is not finite: no correction can be trained through that."""
    lost = (~flatten_samples(values).isfinite()).any(dim=1).nonzero()[:, 0].tolist()
    if lost:
        raise BaseSolverOverflowError.of(f"base_solver={name!r} with n_steps={n_steps}", lost, len(values))


class TerminalErrors:
    r"""Errors :math:`\|z(S) - z_K\|_2` on held-out rows, beside the base solver's: what guards a fit.

    Parameters
    ----------
    neural_ode : NeuralODE
    data : ReferenceRows
    guarded : Solve
        The one that predictions will take.
    """

    def __init__(self, neural_ode: NeuralODE, data: ReferenceRows, guarded: Solve):
        self._unrolled, self._data = UnrolledSolves(neural_ode, terminal_loss), data
        self.guarded = guarded
        self._base = self._norms(*self._ends(guarded, None))

    def _ends(self, solve: Solve, correction: nn.Module | None) -> tuple[Tensor, Tensor]:
        """Terminal states, and the reference's."""
        bound = None if correction is None else bind_solver(correction, solve.solver)
        with torch.no_grad():
            states, reference = self._unrolled.solve(self._data, slice(None), solve, bound)
        return states[-1], reference[-1]

    def _norms(self, end: Tensor, reference: Tensor) -> Tensor:
        """Errors in the units of the states, and as they are, in two columns."""
        scaled = torch.linalg.vector_norm(flatten_samples((end - reference) / self._data.unit), dim=1)
        return torch.stack([scaled.double(), _plain_norms(end, reference)], dim=1)

    def relative(self, correction: nn.Module | None, rtol: float) -> dict[str, float]:
        """Mean error of what, as a share of its own mean norm: of the states at the end of the span, and of the outputs.

        Sizes that the reference's tolerance, a share of the states at the start, does not tell from zero are that large.
        """
        ode, unit = self._unrolled.neural_ode, self._data.unit
        end, reference = self._ends(self.guarded, correction)
        start = mean_norm(self._data.states[0] / unit)
        size = mean_norm(reference / unit).clamp(min=float(rtol * start) + _TINY)
        shares = {"the states at the end of t_span": float(self._norms(end, reference)[:, 0].mean() / size)}
        if not isinstance(ode.output_map, nn.Identity):
            with torch.no_grad():
                output, expected = ode.output_map(end), ode.output_map(reference)
            unit = state_units(expected)
            error, size = mean_norm((output - expected) / unit), mean_norm(expected / unit)
            shares["the outputs"] = float(error / size.clamp(min=_TINY))
        return shares

    def guarded_share(self, correction: nn.Module) -> Tensor:
        """Mean error as a share of the base solver's; infinite where the largest one exceeds the base solver's."""
        own = self._norms(*self._ends(self.guarded, correction))
        if not (own.amax(dim=0) <= self._base.amax(dim=0)).all():
            return own.new_tensor(math.inf)
        return (own[:, 0].mean() / self._base[:, 0].mean().clamp(min=_TINY)).to(self._data.states.dtype)

    def table(self, correction: nn.Module | None, steps: Sequence[int]) -> dict[int, dict[str, float]]:
        """By number of steps, mean and largest error, of the hypersolver and of its base solver."""
        rows = {}
        for k in sorted({*steps, self.guarded.steps}):
            solve = self.guarded._replace(steps=k)
            own, base = (_plain_norms(*self._ends(solve, g)) for g in (correction, None))
            rows[k] = {
                "mean": float(own.mean()),
                "max": float(own.max()),
                "base_mean": float(base.mean()),
                "base_max": float(base.max()),
            }
        return rows


def _plain_norms(end: Tensor, reference: Tensor) -> Tensor:
    # In float64, where the squares of small units do not underflow.
    return torch.linalg.vector_norm(flatten_samples(end.double() - reference), dim=1)


@dataclass(frozen=True)
class Batch:
    """What one optimizer step learns from: rows of residuals, a solve, or both."""

    kind: str
    rows: Tensor
    parts: Sequence[BlockRows | StackRows]
    solve: Solve | None

    def __len__(self) -> int:
        return len(self.rows)


class Curriculum(IterableDataset[tuple[Batch, int]]):
    """Batches, epoch by epoch; an epoch is one pass over the training rows.

    A residual batch mixes step sizes: with one alone the gradient is noisier from batch to batch. From stacked blocks every
    row draws some of its own; otherwise a few parts of the rows have one each. A solve has one base solver and one number
    of steps.

    Parameters
    ----------
    data : ReferenceRows
    batch_size : int
    stages : sequence of (int, str)
        Last epoch and kind of each stage.
    solves : sequence of Solve
        What unrolled solves are drawn from.
    generator : torch.Generator
        What every draw comes from.
    """

    def __init__(
        self,
        data: ReferenceRows,
        batch_size: int,
        stages: Sequence[tuple[int, str]],
        solves: Sequence[Solve],
        generator: torch.Generator,
    ):
        self.data, self.stages, self.solves, self.generator = data, stages, solves, generator
        self.batches = Batches(len(data.x), batch_size, generator)
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Batch, int]]:
        kind = next((kind for end, kind in self.stages if self.epoch < end), self.stages[-1][1])
        self.epoch += 1
        for rows in map(torch.tensor, self.batches):
            parts = self._parts(rows) if "residual" in kind else ()
            yield Batch(kind, rows, parts, None if kind == "residual" else self._draw(self.solves)), 0

    def _parts(self, rows: Tensor) -> list[BlockRows | StackRows]:
        if not self.data.stacks:
            return [BlockRows(self._draw(self.data.blocks), part) for part in _split(rows, len(self.data.blocks))]
        *ends, n_blocks = accumulate(stack.n_blocks for stack in self.data.stacks)
        repeated = rows.repeat(min(_STEPS_A_ROW, n_blocks))
        shares = repeated.tensor_split([round(len(repeated) * end / n_blocks) for end in ends])
        return [
            StackRows(stack, torch.randint(stack.n_blocks, (len(own),), generator=self.generator), own)
            for stack, own in zip(self.data.stacks, shares, strict=True)
            if len(own)
        ]

    def _draw(self, options: Sequence[Any]) -> Any:
        return options[int(torch.randint(len(options), (), generator=self.generator))]


def _split(rows: Tensor, n_blocks: int) -> Sequence[Tensor]:
    return rows.chunk(max(1, min(_MIXED_STEP_SIZES, n_blocks, len(rows) // 8)))


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
        losses = [part.loss(self.correction, control) for part in batch.parts]
        terms = [torch.stack(losses).mean()] if losses else []
        if batch.solve is not None:
            terms.append(solves[batch.kind].share(data, batch.rows, batch.solve, self.correction))
        return torch.stack(terms).sum()

    def release(self) -> nn.Module:
        """Let go of the training data, which must not travel with a fitted estimator; return the correction."""
        self._frozen = None
        return self.correction
