"""Solve calibration rows by every candidate of a ladder and by dopri5, and record errors by row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..hypersolvers import FittedHypersolver, SolveSettings, Task
from ..hypersolvers.fitted import UNDEFINED
from ..numerics.row_errors import refuse_undefined
from ..training.given_rows import Inputs, apart
from ..training.references import solve_references
from .describing import Rows, norms
from .levels import Level, Run, Starts, as_rows, list_levels, solve_exactly

STATE, OUTPUT, TRAJECTORY = "state", "output", "trajectory"
ENDS = (STATE, OUTPUT)
_NOISE_ROWS = 32
"""Rows that are solved again to tell how far references are off."""
_COUNTED = 256
"""Rows on which dopri5's evaluations are counted."""

Convert = Callable[[Tensor], NDArray[Any]]
"""Maps terminal states to outputs."""


class Measured(NamedTuple):
    """What a calibration is computed from."""

    levels: list[Level]
    """Candidates, in order of cost."""
    own: int
    """Which of them is the fitted solver."""
    starts: Starts
    runs: list[Run]
    true: dict[str, Rows]
    """The references: terminal states and their outputs."""
    errors: dict[str, Rows]
    """2-norms of errors, by level and row; infinite where a solve overflowed."""
    path_errors: Rows
    """Largest error of the fitted solver's states over its mesh, by row."""
    order: NDArray[np.int64]
    """The rows in random order."""
    noise: dict[str, Rows]
    """How far the references themselves are off, for some rows."""
    last_cost: float
    """dopri5's evaluations a row, for some rows."""

    @property
    def learns(self) -> NDArray[np.int64]:
        """The half of the rows that chooses a ladder, and that its routers learn from."""
        return self.order[: len(self.order) // 2]

    @property
    def certifies(self) -> NDArray[np.int64]:
        """The other half, which certifies it."""
        return self.order[len(self.order) // 2 :]

    @property
    def dearer(self) -> list[int]:
        """The levels that cost more than the fitted solver."""
        cost = self.levels[self.own].n_evaluations
        return [index for index, level in enumerate(self.levels) if level.n_evaluations > cost]

    def values(self, kind: str, level: int, convert: Convert) -> Rows:
        """Return what a level gave."""
        return ends_as(kind, self.runs[level].ends, convert)


def ends_as(kind: str, ends: Tensor, convert: Convert) -> Rows:
    """Return terminal states, or their outputs, as flat rows."""
    return as_rows(ends if kind == STATE else outputs_of(ends, convert))


def outputs_of(ends: Tensor, convert: Convert) -> NDArray[Any]:
    """Return the outputs of terminal states: nan for states that are not finite, which the map never sees."""
    finite = ends.reshape(len(ends), -1).isfinite().all(dim=1)
    if finite.all():
        return convert(ends)
    good = finite.nonzero()[:, 0]
    stand_in = ends[good[0]] if len(good) else torch.zeros_like(ends[0])
    outputs = convert(torch.where(finite.reshape(-1, *[1] * (ends.ndim - 1)), ends, stand_in))
    outputs[~finite.numpy()] = np.nan
    return outputs


def distances(one: Rows, other: Rows) -> Rows:
    """Return the 2-norm of each row's difference; infinite where a solve overflowed."""
    with np.errstate(invalid="ignore"):
        return np.nan_to_num(norms(one - other), nan=np.inf, posinf=np.inf)


def measure(
    fitted: FittedHypersolver,
    x: Inputs,
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
    states = solve_references(Task(fitted.neural_ode, *apart(x)), fitted.times_of_trajectory, solving)
    levels = list_levels(fitted, others, x)
    own = next(index for index, level in enumerate(levels) if level.solver is fitted)
    path_errors: list[Rows] = []

    def compare(reached: Tensor) -> None:
        start = sum(map(len, path_errors))
        given = states[:, start : start + reached.shape[1]]
        path_errors.append(
            np.max([distances(as_rows(a), as_rows(b)) for a, b in zip(given, reached, strict=True)], axis=0)
        )

    starts = Starts.of(fitted, x)
    runs = [level.run(starts, compare if index == own else None) for index, level in enumerate(levels)]
    true = {kind: ends_as(kind, states[-1], convert) for kind in ENDS}
    refuse_undefined(torch.from_numpy(true[OUTPUT]), UNDEFINED)
    errors = {
        kind: np.stack([distances(ends_as(kind, run.ends, convert), true[kind]) for run in runs]) for kind in ENDS
    }
    order = np.random.default_rng(0).permutation(len(x))
    few = order[:_NOISE_ROWS]
    noise = _noise(fitted, x[few], {kind: true[kind][few] for kind in ENDS}, convert, solving)
    _, costs = solve_exactly(fitted, starts.rows(torch.from_numpy(order[:_COUNTED])), solving)
    return Measured(
        levels, own, starts, runs, true, errors, np.concatenate(path_errors), order, noise, float(costs.mean())
    )


def _noise(
    fitted: FittedHypersolver, x: Inputs, true: Mapping[str, Rows], convert: Convert, solving: SolveSettings
) -> dict[str, Rows]:
    """Return how far references are off: a ninth of their distance to solves at ten times the tolerance."""
    atol = None if solving.atol is None else 10 * solving.atol
    loose = solve_references(
        Task(fitted.neural_ode, *apart(x)),
        fitted.neural_ode.t_span,
        solving,
        rtol=10 * solving.rtol,
        atol=atol,
        keep_lost=True,
    )[-1]
    return {kind: np.nan_to_num(norms(ends_as(kind, loose, convert) - true[kind])) / 9 for kind in ENDS}
