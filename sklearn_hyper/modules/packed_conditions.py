"""Conditions as columns behind those of the inputs, for trainings that take rows of one matrix."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..numerics.protection import FieldInputs
from .neural_ode import NeuralODE


@dataclass(frozen=True)
class Columns:
    """Where each part of a condition lies behind the columns of the inputs.

    Parameters
    ----------
    shapes : mapping of str to tuple of int
        Shape of a row's entry, by name, in the order of the columns.
    dtypes : mapping of str to torch.dtype

    Examples
    --------
    >>> import torch
    >>> condition = {"label": torch.tensor([3, 1])}
    >>> columns = Columns.of(condition)
    >>> rows = columns.pack(torch.zeros(2, 2), condition)
    >>> rows.shape, columns.apart(rows)[1]
    (torch.Size([2, 3]), {'label': tensor([3, 1])})
    """

    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, torch.dtype]

    @classmethod
    def of(cls, condition: Mapping[str, Tensor]) -> Columns:
        """Return the columns of a condition that has one entry a row."""
        return cls(
            {name: tuple(value.shape[1:]) for name, value in condition.items()},
            {name: value.dtype for name, value in condition.items()},
        )

    @property
    def width(self) -> int:
        """The number of columns."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def pack(self, x: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        """Return a matrix of inputs, in x's dtype, with the condition behind them.

        Raises
        ------
        ValueError
            If an integer is too large for the dtype.
        """
        parts = [x]
        for name in self.shapes:
            value = condition[name]
            column = value.to(x).reshape(len(x), -1)
            if not torch.equal(column.reshape(value.shape).to(value), value):
                raise ValueError(
                    f"condition[{name!r}] holds integers that {x.dtype} does not resolve; pass X in float64, or "
                    "strings, which become small numbers."
                )
            parts.append(column)
        return torch.cat(parts, dim=1)

    def apart(self, rows: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the inputs, and the condition."""
        condition, start = {}, rows.shape[1] - self.width
        x = rows[:, :start]
        for name, shape in self.shapes.items():
            end = start + math.prod(shape)
            condition[name] = rows[:, start:end].reshape(len(rows), *shape).to(self.dtypes[name])
            start = end
        return x, condition


NO_COLUMNS = Columns({}, {})
"""Those of rows without a condition."""


class PackedODE(NeuralODE):
    """A Neural ODE whose inputs carry its condition as columns. It shares the field and maps.

    Parameters
    ----------
    ode : NeuralODE
    columns : Columns
    """

    def __init__(self, ode: NeuralODE, columns: Columns):
        super().__init__(
            ode.vector_field, input_map=_OwnColumns(ode.input_map, columns), output_map=ode.output_map,
            t_span=ode.t_span, data_controlled=ode.data_controlled, state_size=ode.state_size,
        )  # fmt: skip
        self.n_unitless, self.columns = ode.n_unitless, columns

    def inputs(self, x: Tensor, condition: Mapping[str, Any] | None = None) -> FieldInputs:
        own, packed = self.columns.apart(x)
        return super().inputs(own, packed)

    def unpacked(self) -> NeuralODE:
        """Return the Neural ODE that takes its condition beside the inputs. It shares the field and maps."""
        packed_map: Any = self.input_map
        ode = NeuralODE(
            self.vector_field, input_map=packed_map.inner, output_map=self.output_map, t_span=self.t_span,
            data_controlled=self.data_controlled, state_size=self.state_size,
        )  # fmt: skip
        ode.n_unitless = self.n_unitless
        return ode.train(self.training)


class _OwnColumns(nn.Module):
    """Apply a map to the columns that are no condition."""

    def __init__(self, inner: Any, columns: Columns):
        super().__init__()
        self.inner, self.columns = inner, columns

    def forward(self, rows: Tensor) -> Tensor:
        return self.inner(rows[:, : rows.shape[1] - self.columns.width])


def packed(ode: NeuralODE, columns: Columns) -> NeuralODE:
    """Return the Neural ODE for rows with these columns behind them: itself, where there are none."""
    return PackedODE(ode, columns) if columns.shapes else ode
