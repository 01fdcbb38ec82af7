"""The product of a fit: a Neural ODE with its solver inside."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain, pairwise, repeat
from typing import Any

import torch
from torch import Tensor, nn

from ..numerics.base_solvers import BaseSolver, startup_methods
from ..numerics.cost import count_macs
from ..numerics.solve import check_grid, hypersolve, hypersolve_trajectory
from .neural_ode import NeuralODE
from .serialization import DeviceFreeModule
from .solver_binding import bind_solver


class HypersolvedODE(DeviceFreeModule):
    """Input map, K corrected steps, output map: a plain module, which ``torch.export`` unrolls.

    Parameters
    ----------
    neural_ode : NeuralODE
        Supplies the field and the maps.
    base_solver : BaseSolver
        psi and its order.
    correction : nn.Module, optional
        g, held as its ``for_solver(base_solver)`` where it has that; without one this is the base solver. One of ours
        whose weights are frozen runs folded: s, eps and scales are moved into its weights, once for every step.
    grid : sequence of float
        The mesh s_0, ..., s_K.

    Examples
    --------
    >>> import torch
    >>> from sklearn_hyper import NeuralODE
    >>> from sklearn_hyper.modules import HypersolvedODE
    >>> from sklearn_hyper.numerics import resolve_base_solver
    >>> euler = HypersolvedODE(NeuralODE(lambda t, z: -z), resolve_base_solver("euler"), None, (0.0, 0.5, 1.0))
    >>> euler(torch.ones(1, 1))
    tensor([[0.2500]])
    """

    def __init__(
        self, neural_ode: NeuralODE, base_solver: BaseSolver, correction: nn.Module | None, grid: Sequence[float]
    ):
        super().__init__()
        self.neural_ode = neural_ode
        self.base_solver = base_solver
        self.correction = None if correction is None else bind_solver(correction, base_solver)
        self.grid = check_grid(grid)
        self.steps = nn.ModuleList(self._fold_steps())

    def _fold_steps(self) -> list[nn.Module]:
        g = self.correction
        if not hasattr(g, "fold") or any(parameter.requires_grad for parameter in g.parameters()):  # type: ignore[union-attr]
            return []
        methods = chain(startup_methods(self.base_solver), repeat(self.base_solver))
        return [
            g.fold(after - s, s, method.n_stages)  # type: ignore[union-attr, operator]
            for (s, after), method in zip(pairwise(self.grid), methods, strict=False)
        ]

    @property
    def n_steps(self) -> int:
        """K."""
        return len(self.grid) - 1

    @property
    def _g(self) -> Any:
        return list(self.steps) or self.correction

    def forward(self, x: Tensor) -> Tensor:
        """Output of the hypersolved Neural ODE, h_y(z_K)."""
        return self.neural_ode.output_map(self.terminal_state(x))

    def terminal_state(self, x: Tensor) -> Tensor:
        """z_K (eq. 5)."""
        ode = self.neural_ode
        return hypersolve(
            ode.vector_field, ode.input_map(x), None, None, self.base_solver, self._g,
            x=ode.control(x), grid=self.grid,
        )  # fmt: skip

    def trajectory(self, x: Tensor) -> Tensor:
        """z_0, ..., z_K, time first."""
        ode = self.neural_ode
        return hypersolve_trajectory(
            ode.vector_field, ode.input_map(x), None, None, self.base_solver, self._g,
            x=ode.control(x), grid=self.grid,
        )  # fmt: skip

    def count_macs(self, x: Tensor) -> float:
        """Multiply-accumulates of the solve from x, as it runs and without the maps; nan where f has none."""
        ode = self.neural_ode
        if math.isnan(ode.count_field_macs(x)):
            return math.nan
        with torch.no_grad():
            z, control = ode.input_map(x), ode.control(x)
        return count_macs(
            hypersolve, ode.vector_field, z, None, None, self.base_solver, self._g, x=control, grid=self.grid
        )
