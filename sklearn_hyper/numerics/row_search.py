"""Which rows of a batch dopri5 cannot solve, and the solution of the others."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .reference import MAX_EVALUATIONS, ReferenceSolveError, hold_up

_BUDGET = 20 * MAX_EVALUATIONS
_FEWEST = 100
"""Evaluations that a failed solve counts at least, for it costs time besides."""
_GROUP_LIMIT = MAX_EVALUATIONS // 10
"""Of a group, which is split where it needs more; a row alone may take all that a solve may."""


class _GivenUpError(Exception):
    """Telling rows apart takes too long."""


class _Search:
    """Solves groups of rows; a group that fails gives up its worst rows, which form a group of their own.

    So a row is lost only where it fails alone, whatever was suspected on the way.
    """

    def __init__(self, solve: Callable[[Tensor, int], Tensor]):
        self.solve, self.spent, self.group_limit = solve, 0, _GROUP_LIMIT
        self.solved: list[tuple[Tensor, Tensor]] = []

    def attempt(self, rows: Tensor, limit: int | None = None) -> ReferenceSolveError | None:
        limit = limit or (MAX_EVALUATIONS if len(rows) == 1 else self.group_limit)
        try:
            self.solved.append((rows, self.solve(rows, limit)))
        except ReferenceSolveError as error:
            self.spent += max(error.n_evaluations, _FEWEST)
            if self.spent > _BUDGET:
                raise _GivenUpError from error
            return error
        return None

    def finds_a_good_row(self, error: ReferenceSolveError) -> bool:
        """Try the row that hindered the solver least, and, if that takes no time, two more."""
        ranks = _errors(error).argsort()
        for i in sorted({0, len(ranks) // 4, len(ranks) // 2}):
            row = ranks[i : i + 1]
            if self.attempt(row, self.group_limit) is None:
                return True
            if self.attempt(row) is None:
                self.group_limit = MAX_EVALUATIONS  # good rows need many, too
                return True
            if self.spent >= MAX_EVALUATIONS:
                break
        return False

    def part(self, rows: Tensor, error: ReferenceSolveError | None) -> None:
        """Solve some rows that fail together."""
        groups, n_out = [], 1
        while error is not None and len(rows) > 1:
            worst = _worst(_errors(error), n_out)
            groups.append(rows[worst])
            rows = rows[~worst]
            n_out *= 2  # many bad rows would take a round each
            error = self.attempt(rows)
        for group in groups:
            self.part(group, self.attempt(group))


def _errors(error: ReferenceSolveError) -> Tensor:
    assert error.row_errors is not None
    return error.row_errors


def _worst(errors: Tensor, at_least: int) -> Tensor:
    """Mask of the rows that stopped the solver; never of all."""
    at_least = min(at_least, len(errors) // 2)
    mask = hold_up(errors)
    mask[errors.topk(at_least).indices] = True
    if mask.all():
        mask[: len(mask) // 2] = False
    return mask


def solve_by_row(solve: Callable[[Tensor, int], Tensor], n_rows: int) -> tuple[Tensor, str]:
    """Solutions of all rows, nan where dopri5 cannot solve one, and what failed there ("" where nothing did).

    Parameters
    ----------
    solve : callable
        Takes indices of rows and a limit of evaluations, and returns their states in shape (T, len(rows), ...), as
        :func:`reference_solution` does.
    n_rows : int

    Raises
    ------
    ReferenceSolveError
        If all rows fail, or those that should be easiest: then it is the field that cannot be solved.
    """
    every = torch.arange(n_rows)
    try:
        return solve(every, MAX_EVALUATIONS), ""
    except ReferenceSolveError as error:
        failed = error
    search, what = _Search(solve), failed.what
    if n_rows == 1 or failed.row_errors is None or not search.finds_a_good_row(failed):
        raise ReferenceSolveError.of(what, range(n_rows), n_rows) from failed
    try:
        search.part(every, failed)
    except _GivenUpError:
        what += "; the search for the rows to blame was given up, and may name some that are not"
    states = torch.full_like(search.solved[0][1][:, :1], torch.nan).repeat_interleave(n_rows, dim=1)
    for rows, solution in search.solved:
        states[:, rows] = solution
    return states, what
