"""Find the rows of a batch that dopri5 cannot solve, and solve the others."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .reference import MAX_EVALUATIONS, ReferenceSolveError, hold_up

_BUDGET = 20 * MAX_EVALUATIONS
"""Evaluations in failed solves after which the search is given up."""
_FEWEST = 100
"""Evaluations that a failed solve counts for at least, because each solve also has a fixed cost."""
_GROUP_LIMIT = MAX_EVALUATIONS // 10
"""Evaluations after which a group of rows is given up and split. A single row may take ``MAX_EVALUATIONS``."""


class _GivenUpError(Exception):
    """The search for failing rows takes too long."""


class _Search:
    """Solve groups of rows. A group that fails sets its worst rows apart as a new group and is tried again.

    Suspicion alone never costs a row its solution: a row counts as failed only after it has failed by itself.
    """

    def __init__(self, solve: Callable[[Tensor, int], Tensor]):
        self.solve, self.spent, self.group_limit = solve, 0, _GROUP_LIMIT
        self.solved: list[tuple[Tensor, Tensor]] = []

    def attempt(self, rows: Tensor, limit: int | None = None) -> ReferenceSolveError | None:
        """Solve a group and keep its solution, or return the error."""
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
        """Return whether one row can be solved: try the one with the least error, then, if there is time, two more."""
        ranks = _errors(error).argsort()
        for i in sorted({0, len(ranks) // 4, len(ranks) // 2}):
            row = ranks[i : i + 1]
            if self.attempt(row, self.group_limit) is None:
                return True
            if self.attempt(row) is None:
                self.group_limit = MAX_EVALUATIONS  # good rows need many evaluations too
                return True
            if self.spent >= MAX_EVALUATIONS:
                break
        return False

    def part(self, rows: Tensor, error: ReferenceSolveError | None) -> None:
        """Split rows that fail together into groups, and solve those that can be solved."""
        groups, n_out = [], 1
        while error is not None and len(rows) > 1:
            worst = _worst(_errors(error), n_out)
            groups.append(rows[worst])
            rows = rows[~worst]
            n_out *= 2  # otherwise many bad rows could take one round each
            error = self.attempt(rows)
        for group in groups:
            self.part(group, self.attempt(group))


def _errors(error: ReferenceSolveError) -> Tensor:
    assert error.row_errors is not None
    return error.row_errors


def _worst(errors: Tensor, at_least: int) -> Tensor:
    """Return the mask of the rows that stopped the solver, at least ``at_least``, but never all rows."""
    at_least = min(at_least, len(errors) // 2)
    mask = hold_up(errors)
    mask[errors.topk(at_least).indices] = True
    if mask.all():
        mask[: len(mask) // 2] = False
    return mask


def solve_by_row(solve: Callable[[Tensor, int], Tensor], n_rows: int) -> tuple[Tensor, str]:
    """Solve all rows. Rows that dopri5 cannot solve are nan.

    Parameters
    ----------
    solve : callable
        Takes row indices and a limit of evaluations. Returns the states of those rows in shape (T, len(rows), ...), as
        :func:`reference_solution` does.
    n_rows : int

    Returns
    -------
    states : Tensor of shape (T, n_rows, ...)
    what : str
        What failed in the rows that are nan, "" if all rows are solved.

    Raises
    ------
    ReferenceSolveError
        If all rows fail, or the rows that should be easiest do. Then the field itself cannot be solved.
    """
    all_rows = torch.arange(n_rows)
    try:
        return solve(all_rows, MAX_EVALUATIONS), ""
    except ReferenceSolveError as error:
        failed = error
    search, what = _Search(solve), failed.what
    if n_rows == 1 or failed.row_errors is None or not search.finds_a_good_row(failed):
        raise ReferenceSolveError.of(what, range(n_rows), n_rows) from failed
    try:
        search.part(all_rows, failed)
    except _GivenUpError:
        what += "; the search for the rows to blame was given up, and may name some that are not"
    states = torch.full_like(search.solved[0][1][:, :1], torch.nan).repeat_interleave(n_rows, dim=1)
    for rows, solution in search.solved:
        states[:, rows] = solution
    return states, what
