"""Rows with times of their own, at which a training asks for outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import Dataset

__all__ = ["Rows", "TimedDataset", "TimedRows", "rows_and_times"]


@dataclass(frozen=True)
class TimedRows:
    """Inputs, and the times at which their outputs are asked for; indexed as a tensor is.

    Parameters
    ----------
    x : Tensor of shape (n, ...)
    times : Tensor of shape (n, n_times)
        In float64, whatever the dtype of x; nan where a row has no further time.
    """

    x: Tensor
    times: Tensor

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: Any) -> TimedRows:
        return TimedRows(self.x[rows], self.times[rows])

    def split(self, size: int) -> list[TimedRows]:
        """Return parts of at most ``size`` rows."""
        return [TimedRows(*part) for part in zip(self.x.split(size), self.times.split(size), strict=True)]

    @property
    def device(self) -> torch.device:
        """Where the rows are."""
        return self.x.device


Rows: TypeAlias = Tensor | TimedRows
"""Rows to train on: their outputs are asked for at the end of the span, or at times of their own."""


def rows_and_times(rows: Rows) -> tuple[Tensor, Tensor | None]:
    """Return the inputs, and their times if they have any."""
    return (rows.x, rows.times) if isinstance(rows, TimedRows) else (rows, None)


class TimedDataset(Dataset[Any]):
    """Rows and targets, fetched a batch at a time; skorch hands x and times to the module by name."""

    def __init__(self, X: Rows, y: Tensor | None = None):
        self.X, self.y = X, y

    def __len__(self) -> int:
        return len(self.X)

    def __getitems__(self, indices: Sequence[int]) -> tuple[dict[str, Tensor], Tensor]:
        index = torch.as_tensor(indices, device=self.X.device)
        x, times = rows_and_times(self.X[index])
        named = {"x": x} if times is None else {"x": x, "times": times}
        return named, torch.zeros(len(index)) if self.y is None else self.y[index]
