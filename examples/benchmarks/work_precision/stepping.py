"""What rivals are: modules that step from the rows of a problem to its terminal states."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import TypeAlias

import torch
from _solving import uniform_grid
from torch import Tensor, nn

from sklearn_hyper import NeuralODE

from .loading import LoadedProblem

Field: TypeAlias = Callable[[float | Tensor, Tensor], Tensor]
"""f(s, z), with the input of a controlled field bound."""


def bound_field(ode: NeuralODE, x: Tensor) -> Field:
    """The field of a Neural ODE for these rows."""
    control = ode.inputs(x).x

    def f(s: float | Tensor, z: Tensor) -> Tensor:
        t = torch.as_tensor(s, dtype=z.dtype)  # learned nodes keep their gradient
        return ode.vector_field(t, z) if control is None else ode.vector_field(t, z, control)

    return f


def bound_row_field(ode: NeuralODE, x: Tensor) -> Field:
    """The field of a Neural ODE for these rows, which takes one time, or a time for every row."""
    control, f = ode.inputs(x).x, bound_field(ode, x)

    def one(s: Tensor, z: Tensor, *own: Tensor) -> Tensor:
        return ode.vector_field(s, z[None], *(part[None] for part in own))[0]

    def by_row(s: float | Tensor, z: Tensor) -> Tensor:
        if torch.as_tensor(s).ndim == 0:
            return f(s, z)
        return torch.func.vmap(one)(s, z, *([] if control is None else [control]))

    return by_row


class SteppingModule(nn.Module):
    """Steps of a Neural ODE; subclasses say what a step is, or the whole solve.

    Parameters
    ----------
    loaded : LoadedProblem
        It is not kept: a module is its weights and the Neural ODE.
    n_steps : int
    """

    def __init__(self, loaded: LoadedProblem, n_steps: int):
        super().__init__()
        self.neural_ode = loaded.neural_ode
        self.n_steps = n_steps

    def forward(self, x: Tensor) -> Tensor:
        return self.solve(self.bind(x), self.neural_ode.input_map(x))

    def bind(self, x: Tensor) -> Field:
        """f for these rows."""
        return bound_field(self.neural_ode, x)

    def solve(self, f: Field, z: Tensor) -> Tensor:
        """Terminal state from z."""
        grid = uniform_grid(self.neural_ode.t_span, self.n_steps)
        z0 = z
        for s, after in pairwise(grid):
            z = self.step(f, s, after - s, z, z0)
        return z

    def step(self, f: Field, s: float, eps: float, z: Tensor, z0: Tensor) -> Tensor:
        """The state after a step of size eps from z at time s; the solve started at z0."""
        raise NotImplementedError
