"""The product of a fit: a Neural ODE with its solver inside, to train further (live weights) or to predict with (folded)."""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Sequence
from itertools import chain, pairwise, repeat
from typing import Any

import torch
from torch import Tensor, nn

from ..numerics.base_solvers import BaseSolver, startup_methods
from ..numerics.cost import count_macs
from ..numerics.solve import Itinerary, all_states, check_solver_grid, last_state
from .corrections import BoundedCorrection
from .neural_ode import NeuralODE
from .serialization import DeviceFreeModule
from .solver_binding import bind_solver


class SolvedODE(DeviceFreeModule):
    """Input map, K steps, output map; what is added to a step is for subclasses to say."""

    def __init__(self, neural_ode: NeuralODE, base_solver: BaseSolver, grid: Sequence[float]):
        super().__init__()
        self.neural_ode = neural_ode
        self.base_solver = base_solver
        # Once, since both take as long as a small step.
        self.grid = check_solver_grid(base_solver, grid)
        self._itinerary = Itinerary.of(base_solver, self.grid)

    @property
    @abstractmethod
    def _g(self) -> Any:
        """One correction for all steps, a list of one a step, or None."""

    @abstractmethod
    def fold(self) -> FoldedODE:
        """This solve for inference."""

    @property
    def has_correction(self) -> bool:
        """False where this is the base solver alone."""
        return self._g is not None

    @property
    def n_steps(self) -> int:
        """K."""
        return len(self.grid) - 1

    def forward(self, x: Tensor) -> Tensor:
        """Output of the hypersolved Neural ODE, h_y(z_K)."""
        return self.neural_ode.output_map(self.terminal_state(x))

    def terminal_state(self, x: Tensor) -> Tensor:
        """z_K (eq. 5)."""
        ode = self.neural_ode
        return last_state(
            ode.vector_field, ode.input_map(x), self.grid, self.base_solver, self._g, ode.control(x), self._itinerary
        )

    def trajectory(self, x: Tensor) -> Tensor:
        """z_0, ..., z_K, time first."""
        ode = self.neural_ode
        return all_states(
            ode.vector_field, ode.input_map(x), self.grid, self.base_solver, self._g, ode.control(x), self._itinerary
        )

    def count_macs(self, x: Tensor) -> float:
        """Multiply-accumulates of the solve from x, as it runs and without the maps; nan where f has none."""
        ode = self.neural_ode
        if math.isnan(ode.count_field_macs(x)):
            return math.nan
        with torch.no_grad():
            z, control = ode.input_map(x), ode.control(x)
        return count_macs(last_state, ode.vector_field, z, self.grid, self.base_solver, self._g, control)


class HypersolvedODE(SolvedODE):
    """Input map, K corrected steps, output map: a plain module that runs the weights it holds, so that it can be trained.

    Parameters
    ----------
    neural_ode : NeuralODE
        Supplies the field and the maps.
    base_solver : BaseSolver
        psi and its order.
    correction : nn.Module, optional
        g, held as its ``for_solver(base_solver)`` where it has that; without one this is the base solver.
    grid : sequence of float
        The mesh s_0, ..., s_K.

    See Also
    --------
    FoldedODE : What :meth:`fold` makes of it, for inference.

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
        super().__init__(neural_ode, base_solver, grid)
        self.correction = None if correction is None else bind_solver(correction, base_solver)

    @property
    def _g(self) -> nn.Module | None:
        return self.correction

    def fold(self) -> FoldedODE:
        """The fast module for inference, deployment and ``torch.export``, with the correction as it is now.

        Returns
        -------
        FoldedODE
            Agrees with this one to rounding. Later changes of this module's correction do not reach it; the Neural ODE (field and
            maps) is shared. Where that is to change too, fold a ``copy.deepcopy`` of this module.
        """
        return FoldedODE(self)


class FoldedODE(SolvedODE):
    """A hypersolved ODE for inference: s, eps and scales are moved into the correction's weights, once for every step.

    Made by :meth:`HypersolvedODE.fold`. It holds the folded steps and not the correction itself, so training it would not
    train g. A correction of the user's own is not folded but kept, as a frozen copy in eval mode.

    Parameters
    ----------
    live : HypersolvedODE
        Its Neural ODE is shared.
    """

    def __init__(self, live: HypersolvedODE):
        super().__init__(live.neural_ode, live.base_solver, live.grid)
        self.training = live.training  # of this module alone: the Neural ODE's own modes stay as they are
        self.steps = nn.ModuleList(_fold_steps(live.correction, live.base_solver, self.grid)).eval()

    @property
    def _g(self) -> list[Any] | None:
        return list(self.steps._modules.values()) or None

    def fold(self) -> FoldedODE:
        """Itself, which is folded already."""
        return self


def _fold_steps(correction: nn.Module | None, solver: BaseSolver, grid: tuple[float, ...]) -> list[nn.Module]:
    """The correction at every step."""
    if correction is None:
        return []
    g = copy.deepcopy(correction).requires_grad_(False)
    if not isinstance(g, BoundedCorrection):
        return [g] * (len(grid) - 1)
    methods = chain(startup_methods(solver), repeat(solver))
    return [g.fold(after - s, s, method.n_stages) for (s, after), method in zip(pairwise(grid), methods, strict=False)]
