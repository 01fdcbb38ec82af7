"""What a fit of a correction learns from: reference states of its rows, residual blocks, and how many rows fit in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..modules.neural_ode import NeuralODE
from ..modules.solver_binding import solver_family
from ..numerics.base_solvers import BaseSolver
from ..numerics.residuals import Residual
from ..numerics.row_errors import numbered_rows
from .fit_settings import FitSettings
from .objectives import Block, ReferenceRows, check_overflow, span_units
from .references import solve_references
from .residual_sets import (
    MAX_BLOCKS,
    Exact,
    Step,
    StepSizes,
    conditioned_blocks,
    deal_solvers,
    plan_steps,
    residual_blocks,
)

_MEMORY_BUDGET = 3 * 2**28
"""Bytes that a training set may take at its largest; with what comes and goes in solves and batches, about one GiB."""
_SCALE_ROWS, _SCALE_SHARE = 256, 0.2
"""Rows whose residuals tell the scales of a correction that is not trained on residuals, and their share of the memory."""


def max_rows(neural_ode: NeuralODE, x: Tensor, z: Tensor, solver: BaseSolver, settings: FitSettings) -> int:
    """Rows whose reference states, residual blocks, and what is made of them on the way, stay under one GiB.

    Parameters
    ----------
    x, z : Tensor
        A few rows and their states, for their size.
    """
    rng, sizes = np.random.default_rng(0), StepSizes.from_parameters(settings.n_steps, settings.fit_n_steps)
    times, pairs = plan_steps(solver, neural_ode.t_span, settings.n_steps, sizes, rng)
    n_blocks = len(deal_solvers(pairs, solver_family(settings.correction, solver), MAX_BLOCKS, rng))
    state, one_x, double = z[0].numel() * z.element_size(), x[0].numel() * x.element_size(), 8 / z.element_size()
    block, n_times = solver.n_stages + 2, len(times)
    if settings.over(solver).trains_on("residual"):
        # States beside float64 ones and the blocks made of these; then states, their shuffled copy and blocks; last blocks
        # beside a stack of a kind of their tensors.
        most = max(n_times * (1 + double) + 2 * block * double, 2 * n_times, n_times + n_blocks)
        return max(2, int(_MEMORY_BUDGET / (state * (most + n_blocks * block) + one_x * (2 + double))))
    n_all = n_times if settings.needs_mesh(solver) else 2
    per_row = state * (2 * n_all + settings.validation_fraction * n_times) + 2 * one_x
    return max(2, int((1 - _SCALE_SHARE) * _MEMORY_BUDGET / per_row))


def solve_ends(neural_ode: NeuralODE, x: Tensor, settings: FitSettings) -> Tensor:
    """Reference states of all rows at both ends of the span, in shape (2, n, ...)."""
    return solver_of(neural_ode, settings)(x, neural_ode.t_span)


def solver_of(neural_ode: NeuralODE, settings: FitSettings) -> Callable[..., Tensor]:
    own = {name: getattr(settings, name) for name in ("rtol", "atol", "memory", "n_jobs", "device", "verbose")}

    def solve(x: Tensor, times: Sequence[float], **how: Any) -> Tensor:
        return solve_references(neural_ode, x, times, **own | how)

    return solve


@dataclass
class FitSets:
    """What a fit learns from, is validated on, takes its scales from, and what ``delta_`` is measured on (held out)."""

    train: ReferenceRows
    valid: ReferenceRows
    scales: ReferenceRows
    exact: Exact


def residual_sets(
    neural_ode: NeuralODE,
    x: Tensor,
    times: tuple[float, ...],
    steps: Sequence[Step],
    held_out: Tensor,
    fitted: Tensor,
    settings: FitSettings,
) -> FitSets:
    """Sets for a fit on residuals: blocks of all rows, solved for as tightly as they need."""
    x_device, solve = x.to(settings.device), solver_of(neural_ode, settings)
    states, blocks, exact = conditioned_blocks(
        neural_ode, times, x_device, steps, lambda **how: solve(x, times, **how), rtol=settings.rtol, atol=settings.atol
    )
    exact = exact.rows(held_out)  # the float64 states of all rows have done their work
    _check_blocks(blocks, steps, settings)
    solvers = [step.solver for step in steps]
    unit = span_units(neural_ode, states)
    held_out_blocks = [Block.of(b, s, held_out, unit) for b, s in zip(blocks, solvers, strict=True)]
    valid = ReferenceRows(x_device[held_out], times, states[:, held_out], held_out_blocks, unit)
    # Popped one by one, since a block and its copy need not both stay in memory.
    own = [Block.of(blocks.pop(0), s, fitted, unit) for s in solvers]
    train = ReferenceRows(x_device[fitted], times, states[:, fitted], own, unit)
    return FitSets(train, valid, train, exact)


def state_sets(
    neural_ode: NeuralODE,
    x: Tensor,
    times: tuple[float, ...],
    steps: Sequence[Step],
    held_out: Tensor,
    fitted: Tensor,
    settings: FitSettings,
    ends: Tensor | None,
) -> FitSets:
    """Sets for a fit through the solver alone: residuals of a few rows tell the scales, at the references' noise.

    With ``ends`` these are what all rows are fitted to, and only those few and the held-out ones are solved on the mesh.
    """
    solve, device = solver_of(neural_ode, settings), settings.device
    per_row = x.element_size() * _state_numel(neural_ode, x, device) * (len(times) + len(steps) * _block_size(steps))
    n_scale = min(_SCALE_ROWS, max(2, int(_SCALE_SHARE * _MEMORY_BUDGET / per_row)))
    few = torch.cat([held_out, fitted[:n_scale]])
    if ends is None:
        every = solve(x, times).to(device)
        states, train_times, train_states = every[:, few], times, every[:, fitted]
        del every
    else:
        with numbered_rows(few.tolist(), len(x)):
            states = solve(x[few.cpu()], times).to(device)
        train_times, train_states = neural_ode.t_span, ends.to(device)[:, fitted]
    x = x.to(device)
    n_valid = len(held_out)
    # A copy, which does not keep the states that are for the scales alone.
    unit = span_units(neural_ode, train_states)
    valid = ReferenceRows(x[held_out], times, states[:, :n_valid].clone(), [], unit)
    train = ReferenceRows(x[fitted], train_times, train_states, [], unit)
    rows = few[n_valid:]
    blocks = residual_blocks(neural_ode, times, states[:, n_valid:], x[rows], steps)
    with numbered_rows(rows.tolist(), len(x)):
        _check_blocks(blocks, steps, settings)
    own = [Block(block, step.solver, unit) for block, step in zip(blocks, steps, strict=True)]
    scales = ReferenceRows(x[rows], times, states[:, n_valid:], own, unit)
    return FitSets(train, valid, scales, Exact(neural_ode, valid.states, valid.x))


def _state_numel(neural_ode: NeuralODE, x: Tensor, device: str) -> int:
    with torch.no_grad():
        return neural_ode.input_map(x[:1].to(device)).numel()


def _block_size(steps: Sequence[Step]) -> int:
    return max(step.solver.n_stages for step in steps) + 1


def _check_blocks(blocks: Sequence[Residual], steps: Sequence[Step], settings: FitSettings) -> None:
    for block, step in zip(blocks, steps, strict=True):
        check_overflow(block.target, step.solver.name, settings.n_steps)
