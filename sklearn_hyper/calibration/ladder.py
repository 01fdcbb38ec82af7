"""Keep a tolerance at the least cost: which level of a ladder a row needs, certified on calibration rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..hypersolvers import FittedHypersolver, SolveSettings
from .conformal import last_certified, last_passing
from .describing import Rows, norms
from .error_model import RouterNet
from .levels import LAST, Level, Starts, solve_exactly, undominated
from .measuring import Convert, Measured, distances, ends_as

_SAFETIES = 2.0 ** np.arange(6, -6.5, -0.5)
"""Factors on predicted errors and distances that are certified, safest first."""
_STRIDE = 1.5
"""Two levels that are compared differ in cost by this factor at least: neighbours agree where both are wrong."""
_HARD = (0.99, 0.95, 0.9, 0.5)
"""Levels are compared by the first of these quantiles of their relative errors that is finite for one of them."""


ONE, ROUTED, VERIFIED = "one", "routed", "verified"
"""Names of the policies: one solver for all rows, one chosen for each row, and the first that agrees with another."""

Violations = NDArray[np.bool_]
"""Rows over a tolerance."""


class Tolerance(NamedTuple):
    """What an error must not exceed: ``relative * size + absolute``."""

    relative: float
    absolute: float

    def limit(self, sizes: Rows) -> Rows:
        """Return the largest error allowed, from the sizes of the values: none where those overflowed."""
        finite = np.isfinite(sizes)
        return np.where(finite, self.relative * np.where(finite, sizes, 0.0) + self.absolute, -np.inf)


class Answer(NamedTuple):
    """Terminal states, and how they were computed, by row."""

    ends: Tensor
    n_evaluations: NDArray[np.int64]
    """Evaluations of f. dopri5's are those of the batch that it solved."""
    solver: NDArray[np.str_]
    """Name of the solver."""
    policy: str
    """How solvers were chosen."""


class Ladder:
    """Levels of rising cost and accuracy, with dopri5 at the end, and three policies that choose among them.

    Parameters
    ----------
    kind : {"state", "output"}
        What its errors are of. Each kind has a ladder of its own: a level may be exact in the output alone.
    """

    def __init__(self, measured: Measured, kind: str, convert: Convert, solving: SolveSettings):
        self.kind, self._solving = kind, solving
        learns, certifies = measured.learns, measured.certifies
        sizes, errors = norms(measured.true[kind]), measured.errors[kind]
        shares = errors[:, learns] / np.maximum(sizes[learns], np.finfo(float).tiny)
        kept = undominated(measured.levels, _hard_errors(shares))
        self.levels = [measured.levels[index] for index in kept]
        self._sizes, self._errors = sizes[certifies], errors[kept][:, certifies]
        first = measured.runs[kept[0]].described
        self._router = RouterNet(first[learns], errors[kept][:, learns])
        self._predicted = self._router.predict(first[certifies])
        self._learned_sizes, self._learned_errors = sizes[learns], errors[kept][:, learns]
        self._last_cost = measured.last_cost
        self._certified: dict[tuple[Any, ...], int | None] = {}
        self._climbed = _spread(self.levels)
        values = [measured.values(kind, kept[index], convert)[certifies] for index in self._climbed]
        # A policy at work knows the size of what a level gave, not of the truth.
        self._seen_sizes: Rows = np.stack([norms(value) for value in values])
        self._gaps = np.array([distances(b, a) for a, b in pairwise(values)])

    @property
    def _end(self) -> int:
        return len(self.levels)

    @property
    def _names(self) -> NDArray[np.str_]:
        return np.array([*(level.name for level in self.levels), LAST])

    @property
    def typical_size(self) -> float:
        """The median size of values."""
        return float(np.median(self._sizes))

    def _last_certified(
        self, policy: str, tolerance: Tolerance, alpha: float, violations: Callable[[], Sequence[Violations]]
    ) -> int | None:
        """Return the last policy that is certified. It is computed once: calls tend to ask for the same again."""
        key = (policy, tolerance, alpha)
        if key not in self._certified:
            self._certified[key] = last_certified(violations(), alpha)
        return self._certified[key]

    # ------------------------------------------------------------------ one level for all
    def fixed_level(self, tolerance: Tolerance, alpha: float) -> int:
        """Return the cheapest level that is certified to keep a tolerance; the number of levels stands for dopri5.

        Levels are tested from the last one down, until one fails.
        """

        found = self._last_certified(
            "fixed", tolerance, alpha, lambda: _over_by_level(self._errors, self._sizes, tolerance)
        )
        return self._end if found is None else self._end - 1 - found

    def solve_fixed(
        self, fitted: FittedHypersolver, starts: Starts, unusual: NDArray[np.bool_], level: int, convert: Convert
    ) -> Answer:
        """Solve every row by one level, and unusual rows by dopri5."""
        chosen = np.where(unusual, self._end, level)
        return self._solve(fitted, starts, chosen, np.zeros(len(starts), dtype=int), {}, convert, ONE)

    # ------------------------------------------------------------------ a level for each row
    def safety(self, tolerance: Tolerance, alpha: float) -> float | None:
        """Return the smallest certified factor on predicted errors; None if there is none."""

        def violations() -> Sequence[Violations]:
            limit, seen = tolerance.limit(self._sizes), tolerance.limit(self._seen_sizes[0])
            return [_over(self._errors, _first(self._predicted * safety <= seen), limit) for safety in _SAFETIES]

        found = self._last_certified(ROUTED, tolerance, alpha, violations)
        return None if found is None else float(_SAFETIES[found])

    def level_instead(self, tolerance: Tolerance, alpha: float) -> int | None:
        """Return the level that serves all rows for fewer evaluations than routing; None where routing is cheaper.

        The better of two certificates is worth less than one. So the level has to pass on either half: with a
        confidence of 90 %, routing keeps the tolerance, and with one of 99 %, the level does.
        """
        passes = last_passing(_over_by_level(self._learned_errors, self._learned_sizes, tolerance), alpha)
        level = self.fixed_level(tolerance, alpha)
        level = self._end if passes is None else max(level, self._end - 1 - passes)
        return level if self._costs[level] <= self._routed_cost(tolerance, alpha) else None

    @property
    def _costs(self) -> Rows:
        return np.array([*(level.n_evaluations for level in self.levels), self._last_cost], dtype=float)

    def _routed_cost(self, tolerance: Tolerance, alpha: float) -> float:
        """Return the mean evaluations of routing, on rows that the router has not learned from."""
        safety = self.safety(tolerance, alpha)
        if safety is None:
            return float(self._costs[self._end])
        chosen = _first(safety * self._predicted <= tolerance.limit(self._seen_sizes[0]))
        return float(np.mean(self._costs[chosen] + np.where(chosen == 0, 0, self._costs[0])))

    def solve_routed(
        self, fitted: FittedHypersolver, starts: Starts, unusual: NDArray[np.bool_], tolerance: Tolerance, alpha: float,
        convert: Convert,
    ) -> Answer:  # fmt: skip
        """Run the cheapest level; its run tells which level a row needs."""
        safety = self.safety(tolerance, alpha)
        if safety is None:
            return self.solve_fixed(fitted, starts, unusual, self._end, convert)._replace(policy=ROUTED)
        run = self.levels[0].run(starts)
        limit = tolerance.limit(norms(ends_as(self.kind, run.ends, convert)))
        chosen = np.where(unusual, self._end, _first(safety * self._router.predict(run.described) <= limit))
        spent = np.where(chosen == 0, 0, self.levels[0].n_evaluations)
        return self._solve(fitted, starts, chosen, spent, {0: run.ends}, convert, ROUTED)

    # ------------------------------------------------------------------ accepted where two levels agree
    def agreement(self, tolerance: Tolerance, alpha: float) -> float | None:
        """Return the smallest certified factor on the distance between two levels; None if there is none."""
        if len(self._climbed) < 2:
            return None  # one level has no neighbour to agree with

        def violations() -> Sequence[Violations]:
            limit, seen = tolerance.limit(self._sizes), tolerance.limit(self._seen_sizes)
            errors, predicted = self._errors[self._climbed][1:], self._predicted[self._climbed]
            pairs = np.arange(len(errors))[:, None]
            policies = []
            for safety in _SAFETIES:
                asked = pairs >= _pair_to_start(safety * predicted, seen[0])
                policies.append(_over(errors, _first(asked & (safety * self._gaps <= seen[1:])), limit))
            return policies

        found = self._last_certified(VERIFIED, tolerance, alpha, violations)
        return None if found is None else float(_SAFETIES[found])

    def solve_verified(
        self, fitted: FittedHypersolver, starts: Starts, unusual: NDArray[np.bool_], tolerance: Tolerance, alpha: float,
        convert: Convert,
    ) -> Answer:  # fmt: skip
        """Climb the ladder until two neighbouring levels agree. It starts where the cheapest level's run suggests.

        Unusual rows go to dopri5: learned levels may agree where all are wrong.
        """
        safety = self.agreement(tolerance, alpha)
        if safety is None:
            return self.solve_fixed(fitted, starts, unusual, self._end, convert)._replace(policy=VERIFIED)
        run = self.levels[0].run(starts)
        limit = tolerance.limit(norms(ends_as(self.kind, run.ends, convert)))
        chosen = np.full(len(starts), self._end)
        spent = np.full(len(starts), self.levels[0].n_evaluations)
        lower = _pair_to_start(safety * self._router.predict(run.described)[self._climbed], limit)
        ends = run.ends.clone()
        has_lower = lower == 0
        for place, index in enumerate(self._climbed[1:], 1):
            # Rows that begin here, and those that go on because their last pair did not agree.
            rows = np.flatnonzero((chosen == self._end) & (lower <= place) & ~unusual)
            if not len(rows):
                continue
            at, level = torch.from_numpy(rows), self.levels[index]
            reached = level.solve(starts.rows(at))
            spent[rows] += level.n_evaluations
            before, after = ends_as(self.kind, ends[at], convert), ends_as(self.kind, reached, convert)
            agrees = has_lower[rows] & (safety * distances(after, before) <= tolerance.limit(norms(after)))
            chosen[rows[agrees]] = index
            ends[at], has_lower[rows] = reached, True
        rest = np.flatnonzero(chosen == self._end)
        if len(rest):
            at = torch.from_numpy(rest)
            ends[at], n_evaluations = solve_exactly(fitted, starts.rows(at), self._solving)
            spent[rest] += n_evaluations
        return Answer(ends, spent, self._names[chosen], VERIFIED)

    # ------------------------------------------------------------------ shared
    def _solve(
        self, fitted: FittedHypersolver, starts: Starts, chosen: NDArray[np.int64], spent: NDArray[np.int64],
        known: dict[int, Tensor], convert: Convert, policy: str,
    ) -> Answer:  # fmt: skip
        """Solve each row by the level that is chosen for it, rows of one level together; by dopri5 what overflows."""
        chosen, n_evaluations = chosen.copy(), spent.copy()
        parts: list[tuple[Tensor, Tensor]] = []
        for level in np.unique(chosen[chosen < self._end]):
            index = np.flatnonzero(chosen == level)
            rows = torch.from_numpy(index)
            solved = known[level][rows] if level in known else self.levels[level].solve(starts.rows(rows))
            parts.append((rows, solved))
            n_evaluations[index] += self.levels[level].n_evaluations
            chosen[index[~np.isfinite(ends_as(self.kind, solved, convert)).all(axis=1)]] = self._end
        rest = np.flatnonzero(chosen == self._end)
        if len(rest):
            rows = torch.from_numpy(rest)
            solved, cost = solve_exactly(fitted, starts.rows(rows), self._solving)
            parts.append((rows, solved))
            n_evaluations[rest] += cost
        ends = parts[0][1].new_empty((len(starts), *parts[0][1].shape[1:]))
        for rows, solved in parts:
            ends[rows] = solved
        return Answer(ends, n_evaluations, self._names[chosen], policy)


def _hard_errors(shares: Rows) -> Rows:
    for quantile in _HARD:
        errors = np.quantile(shares, quantile, axis=1, method="higher")
        if np.isfinite(errors).any():
            break
    return np.asarray(errors)


def _first(suffices: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the first level that suffices for each row; their number if none does."""
    return np.where(suffices.any(axis=0), suffices.argmax(axis=0), len(suffices))


def _spread(levels: Sequence[Level]) -> list[int]:
    """Return the indices of levels that cost half as much again as the one before; two at least, if there are two."""
    chosen = [0]
    for index, level in enumerate(levels):
        if level.n_evaluations >= _STRIDE * levels[chosen[-1]].n_evaluations:
            chosen.append(index)
    return chosen if len(chosen) > 1 else list(range(min(2, len(levels))))


def _pair_to_start(predicted: Rows, limit: Rows) -> NDArray[np.int64]:
    """Return the first pair of neighbours that is expected to agree: their distance is about the lower one's error."""
    return np.asarray(np.clip(_first(predicted <= limit), 0, len(predicted) - 2))


def _over_by_level(errors: Rows, sizes: Rows, tolerance: Tolerance) -> list[Violations]:
    """Return the rows over a tolerance if one level serves all, the last level first. Overflows are over it."""
    return list((errors > tolerance.limit(sizes))[::-1])


def _over(errors: Rows, chosen: NDArray[np.int64], limit: Rows) -> Violations:
    """Return the rows over the tolerance under a choice of levels. dopri5 is never over it."""
    with_last = np.concatenate([errors, np.zeros((1, errors.shape[1]))])
    return np.asarray(with_last[chosen, np.arange(errors.shape[1])] > limit)
