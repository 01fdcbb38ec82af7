"""Solve calibration rows by every candidate of a ladder and by dopri5, and record errors by row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..hypersolvers import FittedHypersolver, SolveSettings, Task
from ..training.references import solve_references
from .describing import Rows
from .levels import Level, Run, as_rows, list_levels

STATE, OUTPUT, TRAJECTORY = "state", "output", "trajectory"
ENDS = (STATE, OUTPUT)

Convert = Callable[[Tensor], NDArray[Any]]
"""Maps terminal states to outputs."""


class Measured(NamedTuple):
    """What a calibration is computed from."""

    levels: list[Level]
    """Candidates, in order of cost."""
    own: int
    """Which of them is the fitted solver."""
    runs: list[Run]
    true: dict[str, Rows]
    """The references: terminal states and their outputs."""
    errors: dict[str, Rows]
    """2-norms of errors, by level and row."""
    path_errors: Rows
    """Largest error of the fitted solver's states over its mesh, by row."""
    order: NDArray[np.int64]
    """The rows in random order."""

    @property
    def learns(self) -> NDArray[np.int64]:
        """The half of the rows that chooses a ladder, and that its routers learn from."""
        return self.order[: len(self.order) // 2]

    @property
    def certifies(self) -> NDArray[np.int64]:
        """The other half, which certifies it."""
        return self.order[len(self.order) // 2 :]

    def values(self, kind: str, level: int, convert: Convert) -> Rows:
        """Return what a level gave."""
        return ends_as(kind, self.runs[level].ends, convert)


def ends_as(kind: str, ends: Tensor, convert: Convert) -> Rows:
    """Return terminal states, or their outputs, as flat rows."""
    return as_rows(ends if kind == STATE else convert(ends))


def measure(
    fitted: FittedHypersolver,
    x: Tensor,
    convert: Convert,
    others: Sequence[FittedHypersolver],
    solving: SolveSettings,
) -> Measured:
    """Solve the rows by all candidates and by dopri5.

    Raises
    ------
    ReferenceSolveError
        If dopri5 cannot solve some rows.
    """
    states = solve_references(Task(fitted.neural_ode, x), fitted.times_of_trajectory, solving)
    levels = list_levels(fitted, others, x)
    runs = [level.run(x) for level in levels]
    true = {kind: ends_as(kind, states[-1], convert) for kind in ENDS}
    errors = {
        kind: np.stack([np.linalg.norm(ends_as(kind, run.ends, convert) - true[kind], axis=1) for run in runs])
        for kind in ENDS
    }
    path = np.zeros(len(x))
    for given, reached in zip(states, fitted.trajectory(x.to(fitted.device)), strict=True):
        path = np.maximum(path, np.linalg.norm(as_rows(given) - as_rows(reached), axis=1))
    order = np.random.default_rng(0).permutation(len(x))
    own = next(index for index, level in enumerate(levels) if level.solver is fitted)
    return Measured(levels, own, runs, true, errors, path, order)
