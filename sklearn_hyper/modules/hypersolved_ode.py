"""The module that a fit returns: a Neural ODE with its solver, either live (trainable) or folded (fast)."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..numerics.correction import Correction
from ..numerics.cost import CountedField, count_macs
from ..numerics.dense_output import MeshInterpolation
from ..numerics.methods import Method
from ..numerics.stepping import FixedMesh, Stepping, check_method_grid
from .corrections.contract import FoldedCorrection, ModuleCorrection, as_module_correction
from .neural_ode import NeuralODE
from .serialization import DeviceFreeModule


class SolvedODE(DeviceFreeModule):
    """Run the input map, K steps and the output map. Subclasses supply the correction of a step."""

    def __init__(self, neural_ode: NeuralODE, stepping: Stepping):
        super().__init__()
        self.neural_ode = neural_ode
        self.stepping = stepping
        proposer = getattr(stepping, "proposer", None)
        # Registered, so that it moves along to another device or dtype.
        self.proposer = proposer if isinstance(proposer, nn.Module) else None

    @property
    @abstractmethod
    def _correction(self) -> Correction | None:
        """The correction that the stepping loop runs."""

    @abstractmethod
    def fold(self) -> FoldedODE:
        """Return the module for inference."""

    @property
    def base_solver(self) -> Method:
        """The method that takes the steps."""
        return self.stepping.method

    @property
    def grid(self) -> tuple[float, ...]:
        """The mesh s_0, ..., s_K."""
        return tuple(self._mesh.grid)

    @property
    def n_steps(self) -> int:
        """K."""
        return self._mesh.n_steps

    @property
    def _mesh(self) -> FixedMesh:
        if not isinstance(self.stepping, FixedMesh):
            raise TypeError(
                f"a {type(self.stepping).__name__} chooses its steps as it goes: it has no mesh of K steps."
            )
        return self.stepping

    @property
    def has_correction(self) -> bool:
        """Whether there is a correction. False for a base solver alone."""
        return self._correction is not None

    def forward(self, x: Tensor, condition: Mapping[str, Any] | None = None) -> Tensor:
        """Return the output of the hypersolved Neural ODE, h_y(z_K)."""
        return self.neural_ode.output_map(self.terminal_state(x, condition))

    def terminal_state(self, x: Tensor, condition: Mapping[str, Any] | None = None, z0: Tensor | None = None) -> Tensor:
        """Return z_K (eq. 5). The input map does not run where z0, its output for x, is given."""
        ode = self.neural_ode
        z0 = ode.input_map(x) if z0 is None else z0
        return self.stepping.solve(ode.vector_field, z0, self._correction, ode.inputs(x, condition))

    def trajectory(self, x: Tensor, condition: Mapping[str, Any] | None = None, z0: Tensor | None = None) -> Tensor:
        """Return z_0, ..., z_K, time first. ``z0`` is as in :meth:`terminal_state`."""
        ode = self.neural_ode
        z0 = ode.input_map(x) if z0 is None else z0
        return self.stepping.trajectory(ode.vector_field, z0, self._correction, ode.inputs(x, condition))

    def states_at(self, x: Tensor, times: Tensor, condition: Mapping[str, Any] | None = None) -> Tensor:
        """Return the states at given times, time first: see :meth:`~sklearn_hyper.numerics.FixedMesh.states_at`.

        Parameters
        ----------
        x : Tensor of shape (batch, ...)
        times : Tensor of shape (n_times,) or (batch, n_times)
            In float64, within the span and without nan: for all rows, or for each its own.
        condition : mapping of str to Tensor, optional
            Keyword arguments of the field.
        """
        ode = self.neural_ode
        return self.stepping.states_at(
            ode.vector_field, ode.input_map(x), times, self._correction, ode.inputs(x, condition)
        )

    def count_evaluations(
        self, x: Tensor, condition: Mapping[str, Any] | None = None, times: Tensor | None = None
    ) -> float:
        """Count the evaluations of f in a solve: those known beforehand, or else the mean over the rows of x.

        With ``times``, those of :meth:`states_at`, for all rows of x in one batch.
        """
        if times is None and self.stepping.n_evaluations is not None:
            return self.stepping.n_evaluations
        ode, counted = self.neural_ode, CountedField(self.neural_ode.vector_field)
        with torch.no_grad():
            z, beside = ode.input_map(x), (self._correction, ode.inputs(x, condition))
            if times is None:
                self.stepping.solve(counted, z, *beside)
            elif isinstance(self.stepping, FixedMesh):
                # A wrapper around f does not see evaluations with other weights.
                return self.stepping.count_evaluations_at(ode.vector_field, z, times, *beside)
            else:
                self.stepping.states_at(counted, z, times, *beside)
        return counted.n_rows_evaluated / len(x)

    def count_macs(self, x: Tensor, condition: Mapping[str, Any] | None = None) -> float:
        """Count the multiply-accumulates of the solve from x, without the maps. nan if f has none."""
        ode = self.neural_ode
        if math.isnan(ode.count_field_macs(x, condition)):
            return math.nan
        with torch.no_grad():
            z, inputs = ode.input_map(x), ode.inputs(x, condition)
        return count_macs(self.stepping.solve, ode.vector_field, z, self._correction, inputs)


class HypersolvedODE(SolvedODE):
    """Run the input map, K corrected steps and the output map, with live weights, so that it can be trained.

    Parameters
    ----------
    neural_ode : NeuralODE
        Supplies the field and the maps.
    base_solver : Method
        Supplies psi.
    correction : nn.Module, optional
        g: a :class:`BoundedCorrection`, or any module ``g(eps, s, z, stages, x=None)``. If missing, the base solver
        runs alone.
    grid : sequence of float or Stepping
        The mesh s_0, ..., s_K, or a policy that takes the steps of the base solver.

    See Also
    --------
    FoldedODE : The module for inference, returned by :meth:`fold`.

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
        self,
        neural_ode: NeuralODE,
        base_solver: Method,
        correction: nn.Module | None,
        grid: Sequence[float] | Stepping,
    ):
        if not isinstance(grid, Stepping):
            grid = FixedMesh(base_solver, check_method_grid(base_solver, grid))
        elif grid.method != base_solver:
            raise ValueError(f"grid steps with {grid.method.name!r}, which is not base_solver={base_solver.name!r}.")
        super().__init__(neural_ode, grid)
        self.correction = correction
        if self._correction is not None:
            self._correction.check_steps(grid.plans)

    @property
    def _correction(self) -> ModuleCorrection | None:
        return as_module_correction(self.correction)

    def fold(self) -> FoldedODE:
        """Return the fast module for inference, deployment and ``torch.export``, with the correction as it is now.

        Returns
        -------
        FoldedODE
            Agrees with this module to rounding. It copies the correction, so later changes of this module's correction
            do not affect it. It shares the Neural ODE (field and maps). If those will change too, fold a
            ``copy.deepcopy`` of this module.
        """
        return FoldedODE(self)


class FoldedODE(SolvedODE):
    """A hypersolved ODE for inference, with s, eps and scales folded into the correction's weights for each step.

    Made by :meth:`HypersolvedODE.fold`. It holds the folded steps instead of the correction, so training it does not
    train g. A user's own correction is not folded, but kept as a frozen copy in eval mode.

    Parameters
    ----------
    live : HypersolvedODE
        The module to fold. Its Neural ODE is shared.
    """

    folded: ModuleCorrection | None

    def __init__(self, live: HypersolvedODE):
        super().__init__(live.neural_ode, live.stepping)
        self.training = live.training  # train() would also change the modes of the shared Neural ODE
        correction = live._correction
        self.folded = None if correction is None else _fold(correction, live).eval()

    @property
    def steps(self) -> nn.ModuleList:
        """The folded correction of each step; empty for a base solver alone, and where nothing can be folded."""
        return self.folded.steps if isinstance(self.folded, FoldedCorrection) else nn.ModuleList()

    @property
    def _correction(self) -> Correction | None:
        return self.folded

    def fold(self) -> FoldedODE:
        """Return this module, which is folded already."""
        return self


class OutputsAt(nn.Module):
    """Return the outputs of a hypersolved ODE at fixed times, of shape (batch, n_times, ...): a module for export.

    Parameters
    ----------
    module : SolvedODE
        With steps that are known beforehand.
    times : sequence of float
        Within the span.
    """

    def __init__(self, module: SolvedODE, times: Sequence[float]):
        super().__init__()
        self.module = module
        self.interpolation = MeshInterpolation(module.grid, times)

    def forward(self, x: Tensor, condition: Mapping[str, Any] | None = None) -> Tensor:
        """Return h_y of the states, which are those of :meth:`SolvedODE.states_at`."""
        module, ode = self.module, self.module.neural_ode
        states = module._mesh.states_at(
            ode.vector_field, ode.input_map(x), self.interpolation, module._correction, ode.inputs(x, condition)
        )
        return torch.stack([ode.output_map(z) for z in states.unbind()], dim=1)


def _fold(correction: ModuleCorrection, live: HypersolvedODE) -> ModuleCorrection:
    """Fold a correction for the steps of a mesh. Steps that are not known beforehand run a frozen copy."""
    if live.stepping.plans is None:
        return ModuleCorrection.fold(correction, (), live.neural_ode.vector_field)
    return correction.fold(live.stepping.plans, live.neural_ode.vector_field)
