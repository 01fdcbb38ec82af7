"""What a fit is given: a Neural ODE, and rows to fit on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..modules.divergence import without_noise
from ..modules.neural_ode import NeuralODE
from ..numerics.protection import FieldInputs


@dataclass(frozen=True)
class Task:
    """One frozen Neural ODE, and rows to fit on. It is independent of any solver.

    Parameters
    ----------
    neural_ode : NeuralODE
        In eval mode, with frozen parameters, on the device of the fit.
    x : Tensor of shape (n, ...)
        Inputs. A correction learns from the reference trajectories that start from them. A fit, which draws its rows
        first, also takes :class:`ArrayRows`.
    condition : mapping of str to Tensor, optional
        Keyword arguments of the field, with one entry for each row of x.
    epoch_rows : int, optional
        Rows in an epoch, drawn anew for each, where rows cost nothing and there are more than an epoch needs. By
        default an epoch takes all.
    n_given : int, optional
        How many rows were given, where others were drawn and stand after them.
    """

    neural_ode: NeuralODE
    x: Tensor
    condition: Mapping[str, Any] = field(default_factory=dict)
    epoch_rows: int | None = None
    n_given: int | None = None

    def __post_init__(self) -> None:
        for name, value in self.condition.items():
            if isinstance(value, Tensor) and value.ndim and len(value) != len(self.x):
                raise ValueError(
                    f"condition[{name!r}] has {len(value)} entries for {len(self.x)} rows of x; pass one a row, or one "
                    "number for all."
                )

    def __len__(self) -> int:
        return len(self.x)

    def rows(self, rows: Any) -> Task:
        """Return the task for some of the rows."""
        condition = FieldInputs(condition=self.condition).rows(rows).condition
        return replace(self, x=self.x[rows], condition=condition, n_given=None)

    def with_extra(self, extra: Task) -> Task:
        """Return the task with the rows of another one after its own, of the same field and kind of condition."""
        condition = dict(self.condition)
        for name, value in extra.condition.items():
            if isinstance(value, Tensor) and value.ndim:
                condition[name] = torch.cat([self.condition[name], value.to(self.condition[name])])
        x = torch.cat([self.x, extra.x.to(self.x)])
        return replace(self, x=x, condition=condition, n_given=len(self) if len(extra) else None)

    def to(self, device: Any = None, dtype: torch.dtype | None = None) -> Task:
        """Return the task with its rows on another device, or its floating-point rows in another dtype."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, dtype if tensor.is_floating_point() else None)

        return replace(self, x=move(self.x), condition=FieldInputs(condition=self.condition).each(move).condition)

    @property
    def inputs(self) -> FieldInputs:
        """The field's arguments beside t and z, for each row."""
        return self.neural_ode.inputs(self.x, self.condition)

    @property
    def span(self) -> float:
        """Return the length of the span."""
        start, end = self.neural_ode.t_span
        return abs(end - start)


def row_digests(neural_ode: NeuralODE, x: Tensor, condition: Mapping[str, Any] | None = None) -> NDArray[np.uint64]:
    """Return a hash of every row and what its condition holds for it, which tells later whether it was fitted on.

    Whatever noise a row got is not part of it.
    """
    beside = [value for value in (condition or {}).values() if isinstance(value, Tensor) and value.ndim]
    read = [np.ascontiguousarray(values.detach().cpu().numpy()) for values in (without_noise(neural_ode, x), *beside)]
    digests = (
        hashlib.blake2b(b"".join(values.tobytes() for values in row), digest_size=8).digest()
        for row in zip(*read, strict=True)
    )
    return np.frombuffer(b"".join(digests), dtype=np.uint64)
