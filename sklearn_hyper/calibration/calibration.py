"""A calibration: what rows that were neither fitted nor chosen on tell of a hypersolver's errors."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..hypersolvers import FittedHypersolver, SolveSettings
from ..hypersolvers.fitted import move_all
from ..training.given_rows import Inputs, apart
from ..training.tasks import row_digests
from .bounds import LEARNED, Bounds
from .conformal import CalibrationRowsError
from .describing import Rows, UsualRows, norms
from .ladder import ONE, ROUTED, VERIFIED, Answer, Ladder, Tolerance
from .levels import Level, Starts, solve_exactly
from .measuring import ENDS, OUTPUT, STATE, Convert, distances, ends_as, measure

FEWEST = 40
"""Rows below which a calibration says nothing."""
_KNOWN = 0.05
"""Share of calibration rows that may equal fitted ones, as values on a grid do by chance."""
_SLACK = 4.0
"""Two solves by dopri5, in batches of their own, differ by as many tolerances, or by as much noise."""
_ROUNDING = 1e-9


class Bounded(NamedTuple):
    """Terminal states, and bounds on their errors, by row."""

    ends: Tensor
    bound: Rows
    n_evaluations: NDArray[np.int64]
    """Evaluations of f, those of the verifier included."""
    solver: str
    unusual: NDArray[np.bool_]


class NotCalibratedError(ValueError):
    """A bound or a tolerance was asked of a solver that has no calibration."""


class UnusualRowsWarning(UserWarning):
    """Some rows are unlike those of the calibration, which does not hold for them."""


class Calibration:
    """Bounds on the errors of one fitted solver, and ways to keep a tolerance.

    All rows calibrate the bounds, with models that did not see their row. One half chooses the ladder, the other half
    certifies it: for one tolerance and one policy at a time, not for the best of several.

    Parameters
    ----------
    fitted : FittedHypersolver
        The solver. The calibration holds for it alone: not for another number of steps, span or field.
    x : Tensor of shape (n, ...), or GivenRows
        Rows that were not fitted on, on the CPU, with their condition if the field takes one.
    convert : callable
        Maps terminal states to outputs.
    others : sequence of FittedHypersolver
        Further solvers of the same Neural ODE, for the ladder.
    solving : SolveSettings, optional
        How references are solved; by default as in the fit.

    Raises
    ------
    CalibrationRowsError
        If there are fewer than forty rows, or rows were fitted on.
    ReferenceSolveError
        If dopri5 cannot solve some rows.

    References
    ----------
    Papadopoulos et al. (2002), *Inductive confidence machines for regression*; Lei et al. (2018), *Distribution-free
    predictive inference for regression*.
    """

    def __init__(
        self,
        fitted: FittedHypersolver,
        x: Inputs,
        convert: Convert,
        others: Sequence[FittedHypersolver] = (),
        solving: SolveSettings | None = None,
    ):
        _check_rows([fitted, *others], x)
        _check_steps([fitted, *others])
        self.n_rows = len(x)
        self._solving = solving or fitted.settings
        measured = measure(fitted, x, convert, others, self._solving)
        self.bounds = Bounds(measured, convert)
        self.ladders = {kind: Ladder(measured, kind, convert, self._solving) for kind in ENDS}
        self._own = measured.levels[measured.own]
        self._noise = measured.noise
        ends = measured.runs[measured.own].ends
        is_image = ends.ndim > 2 or (fitted.neural_ode.data_controlled and x.ndim > 2)
        eps = float(torch.finfo(ends.dtype).eps)
        self._labels = {name: values.unique() for name, values in _labels_of(x).items()}
        self._usual = UsualRows(measured.starts.look(fitted.neural_ode), by_chance=is_image, eps=eps)

    def to(self, device: torch.device | str) -> Calibration:
        """Return the calibration with its solvers on another device, where they share their Neural ODE as here."""
        levels = [self._own, *(level for ladder in self.ladders.values() for level in ladder.levels)]
        levels += [level for level in self.bounds.verifiers.values() if level is not None]
        solvers = {id(level.solver): level.solver for level in levels}
        there = dict(zip(solvers, move_all(list(solvers.values()), device), strict=True))

        def move(level: Level) -> Level:
            return replace(level, solver=there[id(level.solver)])

        moved = copy.copy(self)
        moved._own = move(self._own)
        moved.bounds, moved.ladders = copy.copy(self.bounds), {}
        moved.bounds.verifiers = {
            kind: None if level is None else move(level) for kind, level in self.bounds.verifiers.items()
        }
        for kind, ladder in self.ladders.items():
            moved.ladders[kind] = copy.copy(ladder)
            moved.ladders[kind].levels = [move(level) for level in ladder.levels]
        return moved

    def bound(
        self, fitted: FittedHypersolver, x: Inputs, convert: Convert, kind: str, coverage: float, how: str,
        watch: Callable[[Tensor], None] | None = None,
    ) -> Bounded:  # fmt: skip
        """Solve the rows, and bound each row's error. ``watch`` sees their trajectories, some rows at a time.

        A learned bound of an unusual row is infinite, because the model was never shown such a row. A verified one is
        the distance to dopri5, since learned verifiers may be wrong there too. The bound of a solve that overflows is
        infinite.
        """
        own = self._own
        starts = Starts.of(fitted, x)
        run = own.run(starts, watch)
        unusual = self._are_unusual(starts, fitted)
        n_evaluations = np.full(len(x), own.n_evaluations)
        if how == LEARNED:
            bound = self.bounds.learned(kind, run, coverage)
            # Bounds of trajectories are about states, as all but those of outputs are.
            overflows = ~np.isfinite(ends_as(kind if kind == OUTPUT else STATE, run.ends, convert)).all(axis=1)
            bound[unusual | overflows] = np.inf
            return Bounded(run.ends, bound, n_evaluations, own.name, unusual)
        bound, by_dopri5 = np.empty(len(x)), np.ones(len(x), dtype=bool)
        verifier = self.bounds.verifiers[kind]
        if verifier is not None:
            bound, by_dopri5 = self.bounds.verified(kind, run, verifier.solve(starts), coverage, convert), unusual
            n_evaluations += verifier.n_evaluations
        if by_dopri5.any():
            rows = torch.from_numpy(np.flatnonzero(by_dopri5))
            exact, cost = solve_exactly(fitted, starts.rows(rows), self._solving)
            true = ends_as(kind, exact, convert)
            size = np.fmax(norms(true), self.ladders[kind].typical_size)
            slack = _SLACK * np.maximum(self._solving.rtol * size, self._noise[kind].max())
            bound[by_dopri5] = distances(true, ends_as(kind, run.ends[rows], convert)) + slack
            n_evaluations[by_dopri5] += cost
        return Bounded(run.ends, bound, n_evaluations, own.name, unusual)

    def keep(
        self, fitted: FittedHypersolver, x: Inputs, convert: Convert, kind: str, tolerance: Tolerance, alpha: float,
        *, route: bool, how: str,
    ) -> tuple[Answer, NDArray[np.bool_]]:  # fmt: skip
        """Solve every row by what is certified to keep a tolerance; return answers and which rows are unusual.

        Raises
        ------
        CalibrationRowsError
            If there are too few rows to certify anything.
        ValueError
            If the tolerance is tighter than that of the references, which tell errors from nothing beyond it.
        """
        policy = self.policy(kind, tolerance, alpha, route=route, how=how)
        starts, ladder = Starts.of(fitted, x), self.ladders[kind]
        unusual = self._are_unusual(starts, fitted)
        if policy == ONE:
            level = ladder.level_instead(tolerance, alpha) if route else ladder.fixed_level(tolerance, alpha)
            assert level is not None  # else the policy would be routing
            return ladder.solve_fixed(fitted, starts, unusual, level, convert), unusual
        solve = ladder.solve_routed if policy == ROUTED else ladder.solve_verified
        return solve(fitted, starts, unusual, tolerance, alpha, convert), unusual

    def policy(self, kind: str, tolerance: Tolerance, alpha: float, *, route: bool, how: str) -> str:
        """Return how :meth:`keep` chooses solvers: "one", "routed" or "verified". Raises its errors.

        Routing gives way to one solver for all rows where that is cheaper.
        """
        self._check_tolerance(kind, tolerance)
        if how != LEARNED:
            return VERIFIED
        return ROUTED if route and self.ladders[kind].level_instead(tolerance, alpha) is None else ONE

    def _are_unusual(self, starts: Starts, fitted: FittedHypersolver) -> NDArray[np.bool_]:
        """Return which rows are unlike the calibration's, or have a label that no calibration row has."""
        unusual = self._usual.are_unusual(starts.look(fitted.neural_ode))
        for name, values in _labels_of(starts.x).items():
            unknown = ~torch.isin(values, self._labels[name])
            unusual |= unknown.reshape(len(values), -1).any(dim=1).numpy()
        return unusual

    def _check_tolerance(self, kind: str, tolerance: Tolerance) -> None:
        size = self.ladders[kind].typical_size
        asked = float(tolerance.limit(np.array(size)))
        known = max(self._solving.rtol * size, float(np.median(self._noise[kind])))
        if asked < known * (1 - _ROUNDING):
            raise ValueError(
                f"tol={tolerance.relative:g} and atol={tolerance.absolute:g} ask for errors of {asked:.3g} at the "
                f"median size of values. That is below rtol={self._solving.rtol:g}, or what dopri5 is off itself at "
                f"rtol and atol={self._solving.atol}, {known:.3g}: errors are measured against it. Ask for a looser "
                "tolerance, or set_params(rtol=...) and call conformalize again."
            )


def _labels_of(x: Inputs) -> dict[str, Tensor]:
    """Return the parts of a condition that are labels, of which neighbours are nothing alike: integers."""
    return {name: values for name, values in apart(x)[1].items() if not values.is_floating_point()}


def _check_steps(solvers: Sequence[FittedHypersolver]) -> None:
    if any(solver.is_adaptive and solver.times == "shared" for solver in solvers):
        raise ValueError(
            "a solver with stepping='adaptive' takes steps that all rows of a batch share, since the field depends on "
            "time: a row's result depends on its batch, and no bound holds for another one. Fit with row_times=True if "
            "the field takes a vector of times, or with stepping='fixed'."
        )


def _check_rows(solvers: Sequence[FittedHypersolver], x: Inputs) -> None:
    n = len(x)
    if n < FEWEST:
        raise CalibrationRowsError(f"X has {n} rows; a calibration needs {FEWEST}, and 1,000 are advised.")
    known = [solver.fitted_rows for solver in solvers if solver.fitted_rows is not None]
    digests = row_digests(solvers[0].neural_ode, *apart(x))
    n_fitted = int(np.isin(digests, np.concatenate(known)).sum()) if known else 0
    if n_fitted > _KNOWN * n:
        raise CalibrationRowsError(
            f"{n_fitted} of {n} rows of X were fitted on, by this hypersolver or one of levels. Errors are smaller "
            "there than elsewhere; pass rows that no fit has seen, such as half of a held-out set."
        )
