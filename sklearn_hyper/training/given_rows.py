"""Rows with what goes beside them, a condition and times of their own: one value that is cut and moved as a whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

__all__ = ["ArrayRows", "GivenRows", "Inputs", "apart", "given", "named", "rows_of_array", "times_of", "unnamed"]


@dataclass(frozen=True, eq=False)
class GivenRows:
    """Rows of inputs, and for each of them an entry of a condition, and times at which outputs are asked for.

    It may stand where plain rows do: it has a length, is indexed by rows, and moves to devices. What solves it takes it
    apart by :func:`apart` and :func:`times_of`.

    Parameters
    ----------
    x : Tensor or array of shape (n, ...)
    condition : mapping of str to Tensor or array of shape (n, ...)
    times : Tensor or array of shape (n, n_times), optional
        In float64, whatever the dtype of x; nan where a row has no further time.

    Examples
    --------
    >>> import torch
    >>> rows = GivenRows(torch.zeros(3, 2), {"label": torch.tensor([0, 1, 2])})
    >>> len(rows), rows[1:].condition
    (3, {'label': tensor([1, 2])})
    """

    x: Any
    condition: Mapping[str, Any] = field(default_factory=dict)
    times: Any = None

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: Any) -> GivenRows:
        return self._each(lambda value: value[rows])

    def _each(self, change: Callable[[Any], Any]) -> GivenRows:
        condition = {name: change(value) for name, value in self.condition.items()}
        return GivenRows(change(self.x), condition, None if self.times is None else change(self.times))

    def split(self, size: int) -> list[GivenRows]:
        """Return parts of at most ``size`` rows."""
        return [self[start : start + size] for start in range(0, len(self), size)]

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

    @property
    def device(self) -> torch.device:
        """Where the rows are."""
        return torch.device(self.x.device)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None, *, copy: bool = False) -> GivenRows:
        """Return the rows as tensors on a device, floating-point ones in a dtype; times stay in float64."""

        def move(value: Any, dtype: torch.dtype | None) -> Tensor:
            # Arrays are copied: torch warns of read-only memory and refuses negative strides.
            tensor = value if isinstance(value, Tensor) else torch.from_numpy(value.copy())
            return tensor.to(device, dtype if tensor.is_floating_point() else None, copy=copy)

        condition = {name: move(value, dtype) for name, value in self.condition.items()}
        times = None if self.times is None else move(self.times, torch.float64)
        return GivenRows(move(self.x, dtype), condition, times)

    def cpu(self) -> GivenRows:
        """Return the rows on the CPU."""
        return self.to("cpu")


Inputs: TypeAlias = Tensor | GivenRows
"""Rows with or without something beside them."""


def given(x: Any, condition: Mapping[str, Any], times: Any = None) -> Any:
    """Return rows with what goes beside them; rows alone where nothing does."""
    return GivenRows(x, condition, times) if condition or times is not None else x


def apart(rows: Inputs) -> tuple[Tensor, dict[str, Any]]:
    """Return rows and their condition, which is empty for rows alone."""
    return (rows.x, dict(rows.condition)) if isinstance(rows, GivenRows) else (rows, {})


def times_of(rows: Inputs) -> Tensor | None:
    """Return the times of rows, if they have any."""
    return rows.times if isinstance(rows, GivenRows) else None


def named(rows: Inputs) -> dict[str, Any]:
    """Return x by name, and the condition and the times that there are: arguments of a training's forward pass."""
    x, condition = apart(rows)
    beside = {"condition": condition or None, "times": times_of(rows)}
    return {"x": x} | {name: value for name, value in beside.items() if value is not None}


def unnamed(values: Mapping[str, Any]) -> Inputs:
    """Return the rows whose parts :func:`named` gave."""
    rows: Inputs = given(values["x"], values.get("condition", {}), values.get("times"))
    return rows


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
