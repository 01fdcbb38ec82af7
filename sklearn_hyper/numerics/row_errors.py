"""Errors that name the rows they are about. Callers translate row numbers of a part to those of the whole X."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Self

from torch import Tensor

_NAMED = 10


def list_rows(rows: Sequence[int]) -> str:
    """Return the first ten row numbers as text, and the number of further ones."""
    named = ", ".join(str(row) for row in rows[:_NAMED])
    more = f" and {len(rows) - _NAMED} more" if len(rows) > _NAMED else ""
    return f"row{'s' if len(rows) > 1 else ''} {named}{more}"


class RowsError(Exception):
    """An error that some rows cause.

    Attributes
    ----------
    rows : tuple of int
        The rows that cause it; empty if unknown.
    n_rows : int
        Number of rows in the batch.
    what : str
        What failed, without the rows.
    """

    rows: tuple[int, ...] = ()
    n_rows: int = 0
    what: str = ""

    @classmethod
    def of(cls, what: str, rows: Sequence[int], n_rows: int) -> Self:
        """Return the error, with its rows in the message."""
        error = cls(cls._describe(what, rows, n_rows))
        error.what, error.rows, error.n_rows = what, tuple(rows), n_rows
        return error

    @classmethod
    @abstractmethod
    def _describe(cls, what: str, rows: Sequence[int], n_rows: int) -> str:
        """Return the message that says what failed, and for which rows."""


class UndefinedOutputError(RowsError, ValueError):
    """Outputs of some rows are not finite, so that they have no label or error."""

    @classmethod
    def _describe(cls, what: str, rows: Sequence[int], n_rows: int) -> str:
        return (
            f"{what} for {len(rows)} of {n_rows} rows of X ({list_rows(rows)}). Leave those rows out, scale the "
            "inputs, or mend the output map, which may be undefined there (the logarithm or root of a negative number)."
        )


def refuse_undefined(values: Tensor, what: str) -> None:
    """Raise an :class:`UndefinedOutputError` if a row of ``values`` is not finite."""
    if not values.isfinite().all():
        lost = (~values.reshape(len(values), -1).isfinite()).any(dim=1).nonzero()[:, 0].tolist()
        raise UndefinedOutputError.of(what, lost, len(values))


@contextmanager
def numbered_rows(numbers: Sequence[int], n_rows: int) -> Iterator[None]:
    """Translate an error about rows of a part: row i of the part is row ``numbers[i]`` of ``n_rows``."""
    try:
        yield
    except RowsError as error:
        if not error.rows:
            raise
        # Even if all rows of the part fail, they may be only some of the whole, so the message names them anew.
        raise type(error).of(error.what, sorted(int(numbers[row]) for row in error.rows), n_rows) from error
