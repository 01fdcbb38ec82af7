"""The ladder of solvers that a tolerance may use, from cheap to dopri5."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..hypersolvers import FittedHypersolver, SolveSettings
from ..modules.divergence import without_noise
from ..modules.neural_ode import NeuralODE
from ..numerics.adaptive_solve import StepLimitError
from ..numerics.cost import CountedField
from ..numerics.reference import ReferenceSolveError
from ..training.given_rows import Inputs, apart
from ..training.references import chunk_rows, solve_rows
from .describing import Rows, describe_run

_STEPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
"""Numbers of steps that a generalist offers, if its fit covers them."""
_RK4_STEPS = (2, 3, 4, 5, 6, 8, 12, 16)
_COUNTED = 256
"""Rows on which adaptive steps are counted."""

LAST = "dopri5"
"""Name of the end of every ladder: dopri5 at the tolerance of the references, which keeps any looser tolerance."""


@dataclass(frozen=True, eq=False)
class Starts:
    """Where solves start: inputs, and the initial states that the input map makes of them, once for all solvers.

    Parameters
    ----------
    x : Tensor of shape (n, ...), or GivenRows
        With their condition, if the field takes one.
    z0 : Tensor of shape (n, ...)
    """

    x: Inputs
    z0: Tensor

    @classmethod
    def of(cls, fitted: FittedHypersolver, x: Inputs) -> Starts:
        """Run the input map on rows, as many at a time as fit into memory. The states are on the CPU, as the rows."""
        with torch.no_grad():
            inputs = apart(x)[0].split(_chunk(x))
            states = [fitted.neural_ode.input_map(some.to(fitted.device)).cpu() for some in inputs]
        return cls(x, torch.cat(states))

    def __len__(self) -> int:
        return len(self.x)

    def rows(self, index: Tensor) -> Starts:
        """Return some of the rows."""
        return Starts(self.x[index], self.z0[index])

    def to(self, device: torch.device) -> Starts:
        """Return the rows on another device."""
        return Starts(self.x.to(device), self.z0.to(device))

    def chunks(self) -> Iterator[Starts]:
        """Split the rows into as many as fit into memory at a time."""
        size = min(_chunk(self.x), _chunk(self.z0))
        parts = (slice(start, start + size) for start in range(0, len(self), size))
        return (Starts(self.x[part], self.z0[part]) for part in parts)

    def look(self, neural_ode: NeuralODE) -> Rows:
        """Return what tells rows apart: flat initial states, and inputs that the field reads beside them.

        Noise of a trace's estimate does not: it is as far from that of any other row.
        """
        x, condition = apart(self.x)
        beside = _beside(neural_ode, without_noise(neural_ode, x), condition)
        return np.concatenate([as_rows(self.z0), *beside], axis=1)


def _beside(neural_ode: NeuralODE, x: Tensor, condition: Mapping[str, Any]) -> list[Rows]:
    """Return what the field reads beside states as flat rows: x if it is data-controlled, and the condition."""
    return [as_rows(value) for value in ([x] if neural_ode.data_controlled else []) + [*condition.values()]]


def _chunk(rows: Inputs) -> int:
    return chunk_rows(apart(rows[:1])[0].numel())


@dataclass(frozen=True, eq=False)
class Level:
    """A solver of known cost. Its results are on the CPU, whatever its device.

    Parameters
    ----------
    solver : FittedHypersolver
    n_evaluations : int
        Evaluations of f for each row; their mean over calibration rows, if steps are adaptive.
    """

    solver: FittedHypersolver
    n_evaluations: int

    @classmethod
    def of(cls, solver: FittedHypersolver, x: Inputs) -> Level:
        """Return the level of a solver. Adaptive steps are counted on some of the rows."""
        known = solver.module.stepping.n_evaluations
        if known is not None:
            return cls(solver, known)
        return cls(solver, math.ceil(solver.module.count_evaluations(*apart(x[:_COUNTED].to(solver.device)))))

    @property
    def name(self) -> str:
        """The solver as reports name it."""
        return f"{'hyper-' * (self.solver.correction is not None)}{self.solver.solver_name}"

    def solve(self, starts: Starts) -> Tensor:
        """Return the terminal state of every row."""
        return torch.cat([self._trajectory(chunk, ends=True)[-1] for chunk in starts.chunks()])

    def run(self, starts: Starts, watch: Callable[[Tensor], None] | None = None) -> Run:
        """Solve from every row, a chunk at a time, and describe the runs. ``watch`` sees the trajectories."""
        ends, described = [], []
        for chunk in starts.chunks():
            states = self._trajectory(chunk)
            ends.append(states[-1])
            beside = _beside(self.solver.neural_ode, *apart(chunk.x))
            read = np.concatenate(beside, axis=1) if beside else None
            described.append(describe_run(states.double().numpy(), read))
            if watch is not None:
                watch(states)
        return Run(torch.cat(ends), np.concatenate(described))

    def _trajectory(self, starts: Starts, *, ends: bool = False) -> Tensor:
        """Return states (T, n, ...), or the terminal ones alone (1, n, ...), on the CPU.

        Rows that adaptive steps do not get through from are nan: what is wrong with them does not concern the others.
        """
        solver, kept, n = self.solver, torch.arange(len(starts)), len(starts)
        while len(kept):
            rows = starts.rows(kept).to(solver.device)
            try:
                given = *apart(rows.x), rows.z0
                states = solver.solve(*given)[None].cpu() if ends else solver.trajectory(*given).cpu()
            except StepLimitError as error:
                if not error.rows:
                    raise
                kept = kept[~torch.isin(torch.arange(len(kept)), torch.tensor(error.rows))]
                continue
            if len(kept) == n:
                return states
            return states.new_full((len(states), n, *states.shape[2:]), torch.nan).index_copy(1, kept, states)
        z0 = starts.z0
        return torch.full_like(z0, torch.nan).expand(1 if ends else solver.n_steps + 1, *z0.shape)


class Run(NamedTuple):
    """A solve of all rows."""

    ends: Tensor
    """Terminal states."""
    described: Rows
    """What the error models read."""


def as_rows(values: Tensor | NDArray[Any]) -> Rows:
    """Return one flat row of numbers in float64 for each sample."""
    array = values.detach().double().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values, dtype=float)
    return array.reshape(len(array), -1)


def list_levels(fitted: FittedHypersolver, others: Sequence[FittedHypersolver], x: Inputs) -> list[Level]:
    """Return the candidates of a ladder in order of cost, which is counted on rows x where it depends on them.

    They are the fitted solver, the numbers of steps that its fit covers, other fitted solvers that are given, and the
    classical fourth-order Runge-Kutta method with 2 to 16 steps.
    """
    solvers = [fitted, *others]
    start, end = fitted.neural_ode.t_span
    low, high = fitted.fitted_eps
    if not fitted.is_adaptive and fitted.correction is not None and fitted.method.n_steps is None and high > 1.5 * low:
        covered = (k for k in _STEPS if low * (1 - 1e-6) <= abs(end - start) / k <= high * (1 + 1e-6))
        fits = (k for k in covered if k > fitted.method.n_startup and k != fitted.n_steps)
        solvers += [fitted.with_solver(n_steps=k) for k in fits]
    plain = replace(fitted.without_correction(), settings=replace(fitted.settings, stepping="fixed"))
    solvers += [plain.with_solver("rk4", n_steps=k) for k in _RK4_STEPS]
    return sorted((Level.of(solver, x) for solver in solvers), key=lambda level: level.n_evaluations)


def undominated(levels: Sequence[Level], errors: NDArray[np.float64]) -> list[int]:
    """Return the indices of levels that are better than all cheaper ones, but the best one if none has a finite error.

    Parameters
    ----------
    levels : sequence of Level
        In order of cost.
    errors : array of shape (n_levels,)
        One number each that tells how wrong it is.
    """
    kept: list[int] = []
    for index in sorted(range(len(levels)), key=lambda i: (levels[i].n_evaluations, errors[i])):
        if np.isfinite(errors[index]) and (not kept or errors[index] < errors[kept[-1]]):
            kept.append(index)
    return kept or [int(np.argmin(errors))]


def solve_exactly(
    fitted: FittedHypersolver, starts: Starts, solving: SolveSettings
) -> tuple[Tensor, NDArray[np.int64]]:
    """Solve by dopri5 at the tolerance of the references; return terminal states, on the CPU, and evaluations of f.

    Rows that cannot be solved are nan.
    """
    parts = [_solve_chunk(fitted, chunk.to(fitted.device), solving) for chunk in starts.chunks()]
    return torch.cat([ends for ends, _ in parts]), np.concatenate([costs for _, costs in parts])


def _solve_chunk(fitted: FittedHypersolver, starts: Starts, solving: SolveSettings) -> tuple[Tensor, NDArray[np.int64]]:
    ode = fitted.neural_ode
    x, condition = apart(starts.x)
    counted = CountedField(ode.vector_field)
    counting = NeuralODE(
        counted, input_map=lambda _: starts.z0, output_map=ode.output_map, t_span=ode.t_span,
        data_controlled=ode.data_controlled,
    )  # fmt: skip
    counting.state_size = ode.state_size
    try:
        states, _ = solve_rows(counting, x, ode.t_span, solving.rtol, solving.atol, condition)
        ends = states[-1].cpu()
    except ReferenceSolveError:  # none of these rows, but a caller has others
        ends = torch.full_like(starts.z0, torch.nan).cpu()
    return ends, np.full(len(starts), counted.n_evaluations)
