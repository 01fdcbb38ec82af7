"""From reference states to training sets: which steps to learn from, and their targets."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..modules.neural_ode import NeuralODE, VectorFieldError, check_neural_ode
from ..numerics.base_solvers import BaseSolver, owns_mesh, startup_methods
from ..numerics.residuals import CONDITIONING_LIMIT, ConditioningWarning, Residual, compute_residuals, target_noise
from ..numerics.solve import solver_mesh
from .references import SHARED_STEPS, mesh_times

_CHUNK = 2048
MAX_BLOCKS = 48
"""Steps that a fit learns from."""
_SLACK = 1e-9


@dataclass(frozen=True)
class StepSizes:
    """Which step sizes a fit covers, as shares of the span: [low, high], and the K that stand for them."""

    low: float
    high: float
    steps: tuple[int, ...]

    @classmethod
    def from_parameters(cls, n_steps: int, fit_n_steps: int | tuple[int, int] | None) -> StepSizes:
        """None: around n_steps (half to one and a half steps); an int: exactly one; a pair: log-uniform between."""
        if fit_n_steps is None:
            return cls(1 / (1.5 * n_steps), min(1.0, 1.5 / n_steps), (n_steps,))
        if isinstance(fit_n_steps, tuple):
            fewest, most = fit_n_steps
            spread = np.geomspace(fewest, most, 5)
            return cls(1 / most, 1 / fewest, tuple(sorted({round(float(k)) for k in spread})))
        return cls(1 / fit_n_steps, 1 / fit_n_steps, (fit_n_steps,))

    def grids(self, solver: BaseSolver) -> tuple[int, ...]:
        """K of the uniform grids that the mesh of references has to hold.

        A multistep method takes a full step where its previous nodes are on the mesh. Where :func:`mesh_times` does not hold
        all small grids, some more are needed, or the fitted range would be one of ``steps`` alone.
        """
        if not startup_methods(solver) or max(self.steps) <= SHARED_STEPS:
            return self.steps
        between = np.geomspace(1 / self.high, 1 / self.low, 5)
        return tuple(sorted({*self.steps, *(round(float(k)) for k in between)}))


class Step(NamedTuple):
    """A step to learn from: mesh indices of its ends, and the base solver that takes it.

    A multistep method takes it with its full order where the mesh holds the previous nodes, else as a start-up step.
    """

    start: int
    end: int
    solver: BaseSolver


def mesh_indices(times: Sequence[float], wanted: Sequence[float] | np.ndarray) -> list[int]:
    """Where the mesh holds these times, to rounding and whatever their units; empty where it lacks one."""
    mesh, wanted = np.asarray(times), np.asarray(wanted)
    nearest = np.abs(mesh[:, None] - wanted).argmin(axis=0)
    off = np.abs(mesh[nearest] - wanted)
    return nearest.tolist() if np.all(off <= _slack(mesh) * abs(mesh[-1] - mesh[0])) else []


def _slack(times: np.ndarray) -> float:
    """By how much of the span times may differ by rounding: more, the farther from zero it lies."""
    return float(_SLACK + 16 * np.finfo(float).eps * np.abs(times).max() / abs(times[-1] - times[0]))


def past_nodes(times: Sequence[float], start: int, end: int, n_past: int) -> list[int]:
    """Mesh indices of the ``n_past`` nodes that equal steps would have come by, oldest first; none where one is missing.

    None is missing but to start-up steps: the previous nodes of these would lie before the span.
    """
    mesh = np.asarray(times)
    return mesh_indices(times, mesh[start] - (mesh[end] - mesh[start]) * np.arange(n_past, 0, -1))


def choose_steps(
    times: Sequence[float], sizes: StepSizes, n_blocks: int, rng: np.random.Generator, n_past: int = 0
) -> list[tuple[int, int]]:
    """Pairs (i, j) of mesh indices whose distance lies in the fitted range, spread evenly over log eps.

    For a method with ``n_past`` start-up steps these are, first, up to a third: its start-up steps, the first
    ``n_past`` of a solve; then steps whose previous nodes lie on the mesh.
    """
    slack = _slack(np.asarray(times))
    mesh = (np.asarray(times) - times[0]) / (times[-1] - times[0])
    i, j = np.triu_indices(len(mesh), k=1)
    share = mesh[j] - mesh[i]
    inside = (share >= sizes.low - slack) & (share <= sizes.high + slack)
    i, j, share = i[inside], j[inside], share[inside]
    if not n_past:
        return _spread_sizes(i, j, share, sizes, n_blocks, rng)
    n_before = mesh[i] / share
    startup = (n_before < n_past - 0.5) & (np.abs(n_before - n_before.round()) * share < slack)
    full = np.array(
        [bool(past_nodes(times, a, b, n_past)) for a, b in zip(i.tolist(), j.tolist(), strict=True)], dtype=np.bool_
    )
    n_startup = n_blocks // 3
    return [
        pair
        for kind, n in ((startup, n_startup), (full, n_blocks - n_startup))
        for pair in _spread_sizes(i[kind], j[kind], share[kind], sizes, n, rng)
    ]


def _spread_sizes(
    i: np.ndarray, j: np.ndarray, share: np.ndarray, sizes: StepSizes, n_blocks: int, rng: np.random.Generator
) -> list[tuple[int, int]]:
    if len(i) <= n_blocks:
        return list(zip(i.tolist(), j.tolist(), strict=True))
    # One step of each slice of log eps; slices that the mesh leaves empty take their nearest.
    edges = np.linspace(math.log(sizes.low), math.log(sizes.high), n_blocks)
    distance = np.abs(np.log(share)[None, :] - edges[:, None]) + rng.uniform(0, 0.15, (n_blocks, len(share)))
    chosen = np.unique(distance.argmin(axis=1))
    # Steps from the start are the ones every solve takes.
    first = np.flatnonzero(i == 0)
    chosen = np.union1d(chosen, first[np.linspace(0, len(first) - 1, min(len(first), n_blocks // 4 + 1)).astype(int)])
    return [(int(i[k]), int(j[k])) for k in chosen]


def deal_solvers(
    pairs: Sequence[tuple[int, int]], family: Sequence[BaseSolver], n_blocks: int, rng: np.random.Generator
) -> list[Step]:
    """Steps of a family of base solvers: each pair with all of them, or with as many as ``n_blocks`` allow."""
    if len(family) == 1:
        return [Step(*pair, family[0]) for pair in pairs]
    hand = min(len(family), max(1, n_blocks // len(pairs)))
    # Dealt from shuffled decks, all solvers come equally often, and with steps of all sizes.
    n_decks = -(-hand * len(pairs) // len(family))
    cards = iter(np.concatenate([rng.permutation(len(family)) for _ in range(n_decks)]))
    return [Step(*pair, family[next(cards)]) for pair in pairs for _ in range(hand)]


def plan_steps(
    solver: BaseSolver, t_span: tuple[float, float], n_steps: int, sizes: StepSizes, rng: np.random.Generator
) -> tuple[tuple[float, ...], list[tuple[int, int]]]:
    """The mesh that a fit needs references on, and the steps along it to learn from, as pairs of its indices."""
    if owns_mesh(solver):  # made for one mesh, it takes no other steps
        times = solver_mesh(solver, t_span, n_steps)
        return times, list(pairwise(range(len(times))))
    times = mesh_times(t_span, sizes.grids(solver))
    return times, choose_steps(times, sizes, MAX_BLOCKS, rng, len(startup_methods(solver)))


def _history_of(times: Sequence[float], step: Step) -> list[int]:
    """Mesh indices of the nodes that a solve has come by before it takes a step."""
    if owns_mesh(step.solver):
        return list(range(step.start))
    return past_nodes(times, step.start, step.end, len(startup_methods(step.solver)))


def residual_blocks(
    neural_ode: NeuralODE, times: Sequence[float], states: Tensor, x: Tensor, steps: Sequence[Step]
) -> list[Residual]:
    """Residuals (eq. 6) of all rows for every chosen step, computed in the dtype of ``states``.

    History, where the base solver has one, is that of the reference states on the previous nodes.
    """
    blocks = []
    for step in steps:
        nodes = [*_history_of(times, step), step.start, step.end]
        grid = tuple(times[k] for k in nodes)
        block = _residual_of_rows(neural_ode, step.solver, grid, states[nodes], neural_ode.control(x))
        # A view of the reference states: one of states[nodes] would keep the history of every block in memory.
        blocks.append(block._replace(z=states[step.start]))
    return blocks


def _residual_of_rows(
    neural_ode: NeuralODE, solver: BaseSolver, grid: tuple[float, ...], states: Tensor, x: Tensor | None
) -> Residual:
    """Residual of the last step of the grid; those before are history."""
    parts = []
    for start in range(0, states.shape[1], _CHUNK):
        rows = slice(start, start + _CHUNK)
        (part,) = compute_residuals(
            neural_ode.vector_field, states[:, rows], grid, solver,
            x=None if x is None else x[rows], n_past=len(grid) - 2, t_span=neural_ode.t_span,
        )  # fmt: skip
        parts.append(part)
    if len(parts) == 1:
        return parts[0]
    stages = [torch.cat(stage) for stage in zip(*(part.stages for part in parts), strict=True)]
    return parts[0]._replace(stages=stages, target=torch.cat([part.target for part in parts]))


@dataclass(frozen=True)
class Exact:
    """What residual targets are made of: a Neural ODE, its reference states and inputs, all of one dtype."""

    neural_ode: NeuralODE
    states: Tensor
    x: Tensor

    def rows(self, rows: Tensor) -> Exact:
        """The same for some of the rows."""
        return Exact(self.neural_ode, self.states[:, rows], self.x[rows])

    def blocks(self, times: Sequence[float], steps: Sequence[Step], dtype: torch.dtype) -> list[Residual]:
        """Residuals of the chosen steps, cast to the dtype of the fit."""
        blocks = residual_blocks(self.neural_ode, times, self.states, self.x, steps)
        return [_cast(block, dtype) for block in blocks]


def conditioned_blocks(
    neural_ode: NeuralODE,
    times: Sequence[float],
    x: Tensor,
    steps: Sequence[Step],
    solve: Callable[..., Tensor],
    *,
    rtol: float,
    atol: float | None,
) -> tuple[Tensor, list[Residual], Exact]:
    """Reference states, residual blocks, and what the targets were made of.

    ``solve(rtol=, atol=, double=)`` returns the reference states. Where their noise would drown the targets, these are
    made of tighter float64 states instead; the first states stay what scores and solves are compared with.
    """
    states = solve(rtol=rtol, atol=atol, double=False).to(x.device)
    exact = Exact(neural_ode, states, x)
    probes = residual_blocks(neural_ode, times, states[:, :_CHUNK], x[:_CHUNK], _smallest_steps(times, steps))
    noise, probe = max(((target_noise(probe, rtol, atol), probe) for probe in probes), key=lambda pair: pair[0])
    if noise > CONDITIONING_LIMIT:
        tight = max(1e-13, 0.1 * CONDITIONING_LIMIT / noise * rtol)
        tight_atol = None if atol is None else atol * tight / rtol
        absolute = "" if atol is None else f" atol={atol:g},"
        what = (
            f"The reference's noise is {100 * noise:.2g} % of the residual at step size {abs(probe.eps):.3g} "
            f"(order {probe.order}; rtol={rtol:g},{absolute} {probe.z.dtype})"
        )
        try:
            double = copy.deepcopy(neural_ode).double()
            check_neural_ode(double, x[:2].double())
        except (VectorFieldError, TypeError, RuntimeError) as error:
            _warn(f"{what}, and the field does not run in float64, so the targets keep that noise: {error}")
        else:
            _warn(
                f"{what}: targets are solved for again in float64 at a tolerance of {tight:.2g}. Scores keep their "
                "tolerance. A lower order or fewer steps avoid this."
            )
            exact = Exact(double, solve(rtol=tight, atol=tight_atol, double=True).to(x.device), x.double())
    # One step at a time: the float64 blocks of all need not be alive together.
    blocks = [exact.blocks(times, [step], states.dtype)[0] for step in steps]
    return states, blocks, exact


def _smallest_steps(times: Sequence[float], steps: Sequence[Step]) -> list[Step]:
    """The smallest step, of start-up steps and of others: these have another order, and so another noise."""
    kinds: dict[int, list[Step]] = {}
    for step in steps:
        kinds.setdefault(len(_history_of(times, step)), []).append(step)
    return [min(kind, key=lambda step: abs(times[step.end] - times[step.start])) for kind in kinds.values()]


def _warn(message: str) -> None:
    warnings.warn(message, ConditioningWarning, stacklevel=3)


def _cast(block: Residual, dtype: torch.dtype) -> Residual:
    return block._replace(
        z=block.z.to(dtype), stages=[stage.to(dtype) for stage in block.stages], target=block.target.to(dtype)
    )


def select_rows(block: Residual, rows: Any) -> Residual:
    """The same step for some of the rows."""
    return block._replace(z=block.z[rows], stages=[stage[rows] for stage in block.stages], target=block.target[rows])
