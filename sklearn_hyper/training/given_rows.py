"""Rows with what the field takes beside them: one value that is cut, moved and hashed as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class GivenRows:
    """Rows of inputs, and a condition with one entry for each of them.

    It may stand where plain rows do: it has a length, is indexed by rows, and moves to devices. What solves it takes it
    apart by :func:`apart`.

    Parameters
    ----------
    x : Tensor or array of shape (n, ...)
    condition : mapping of str to Tensor or array of shape (n, ...)

    Examples
    --------
    >>> import torch
    >>> rows = GivenRows(torch.zeros(3, 2), {"label": torch.tensor([0, 1, 2])})
    >>> len(rows), rows[1:].condition
    (3, {'label': tensor([1, 2])})
    """

    x: Any
    condition: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: Any) -> GivenRows:
        return GivenRows(self.x[rows], {name: value[rows] for name, value in self.condition.items()})

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of x."""
        return tuple(self.x.shape)

    @property
    def ndim(self) -> int:
        """The number of x's axes."""
        return int(self.x.ndim)

    @property
    def dtype(self) -> Any:
        """The dtype of x."""
        return self.x.dtype

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None, *, copy: bool = False) -> GivenRows:
        """Return the rows as tensors on a device, floating-point ones in a dtype."""

        def move(value: Any) -> Tensor:
            # Arrays are copied: torch warns of read-only memory and refuses negative strides.
            tensor = value if isinstance(value, Tensor) else torch.from_numpy(value.copy())
            return tensor.to(device, dtype if tensor.is_floating_point() else None, copy=copy)

        return GivenRows(move(self.x), {name: move(value) for name, value in self.condition.items()})

    def cpu(self) -> GivenRows:
        """Return the rows on the CPU."""
        return self.to("cpu")


Inputs: TypeAlias = Tensor | GivenRows
"""Rows with or without a condition."""


def given(x: Any, condition: Mapping[str, Any]) -> Any:
    """Return rows with their condition; rows alone where there is none."""
    return GivenRows(x, condition) if condition else x


def apart(rows: Inputs) -> tuple[Tensor, dict[str, Any]]:
    """Return rows and their condition, which is empty for rows alone."""
    return (rows.x, dict(rows.condition)) if isinstance(rows, GivenRows) else (rows, {})


class ArrayRows:
    """Rows of an array, which may be larger than memory: rows become a tensor as they are taken, and no others.

    Parameters
    ----------
    array : array of shape (n, ...)
    dtype : torch.dtype
        Dtype of the tensors.

    Examples
    --------
    >>> import numpy as np, torch
    >>> rows = ArrayRows(np.arange(6.0).reshape(3, 2), torch.float32)
    >>> len(rows), rows[1:]
    (3, tensor([[2., 3.],
            [4., 5.]]))
    """

    def __init__(self, array: Any, dtype: torch.dtype):
        self.array, self.dtype = array, dtype

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        index = rows.numpy() if isinstance(rows, Tensor) else rows
        # Copied: torch warns of read-only memory, and a map may change its input in place.
        return torch.from_numpy(np.array(self.array[index], order="C")).to(self.dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array."""
        return tuple(self.array.shape)


def rows_of_array(rows: Any, dtype: torch.dtype) -> tuple[ArrayRows, dict[str, Any]]:
    """Return rows of an array with their condition, as :func:`apart` does: the condition in tensors, x where it is."""
    x, condition = apart(rows)
    return ArrayRows(x, dtype), {name: GivenRows(value).to("cpu", dtype).x for name, value in condition.items()}
