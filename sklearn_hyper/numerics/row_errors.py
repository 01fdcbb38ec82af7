"""Errors about some rows of X, which name them; callers translate the numbers, for they know which rows they passed."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Self

from torch import Tensor

_NAMED = 10


def list_rows(rows: Sequence[int]) -> str:
    """The first ten of some rows, in words, and how many more there are."""
    named = ", ".join(str(row) for row in rows[:_NAMED])
    more = f" and {len(rows) - _NAMED} more" if len(rows) > _NAMED else ""
    return f"row{'s' if len(rows) > 1 else ''} {named}{more}"


class RowsError(Exception):
    """An error that some rows are to blame for.

    Attributes
    ----------
    rows : tuple of int
        Which; empty where that is not known.
    n_rows : int
        Of how many.
    what : str
        What failed, without the rows.
    """

    rows: tuple[int, ...] = ()
    n_rows: int = 0
    what: str = ""

    @classmethod
    def of(cls, what: str, rows: Sequence[int], n_rows: int) -> Self:
        """The error, with its rows in the message."""
        error = cls(cls._describe(what, rows, n_rows))
        error.what, error.rows, error.n_rows = what, tuple(rows), n_rows
        return error

    @classmethod
    @abstractmethod
    def _describe(cls, what: str, rows: Sequence[int], n_rows: int) -> str:
        """The message about what failed, and for which rows."""


class UndefinedOutputError(RowsError, ValueError):
    """Outputs of some rows are not numbers: no label or error can be made of them."""

    @classmethod
    def _describe(cls, what: str, rows: Sequence[int], n_rows: int) -> str:
        return (
            f"{what} for {len(rows)} of {n_rows} rows of X ({list_rows(rows)}). Leave those rows out, scale the "
            "inputs, or mend "
            "the output map, which may be undefined there (the logarithm or root of a negative number)."
        )


def refuse_undefined(values: Tensor, what: str) -> None:
    """Raise an :class:`UndefinedOutputError` where a row of ``values`` is not finite."""
    if not values.isfinite().all():
        lost = (~values.reshape(len(values), -1).isfinite()).any(dim=1).nonzero()[:, 0].tolist()
        raise UndefinedOutputError.of(what, lost, len(values))


@contextmanager
def numbered_rows(numbers: Sequence[int], n_rows: int) -> Iterator[None]:
    """Translate an error about rows of a part: its row i is row ``numbers[i]`` of ``n_rows`` outside."""
    try:
        yield
    except RowsError as error:
        if not error.rows:
            raise
        # What fails for every row of a part may leave others: then these are named.
        raise type(error).of(error.what, sorted(int(numbers[row]) for row in error.rows), n_rows) from error
