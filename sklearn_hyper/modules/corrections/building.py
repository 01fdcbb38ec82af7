"""What builds corrections: the contract of a spec, and the spec of a module of the user's own."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from torch import Tensor, nn

from ...numerics.methods import Method, StepKind, StepPlan
from ..neural_ode import NeuralODE
from .bounded import BoundedCorrection, fit_units
from .contract import CorrectionNet, ModuleCorrection, ScaleSample, as_net


@dataclass(frozen=True)
class NetInputs:
    """What a net will read and may cost: all that a spec needs to build it.

    Parameters
    ----------
    z : Tensor of shape (batch, ...)
        States of some rows.
    x : Tensor or None
        Input of a data-controlled field, by row.
    kinds : tuple of StepKind
        Kinds of the method's steps, each once. The last is the main kind, that of all steps after the first few.
    max_macs : float
        Multiply-accumulates per sample that the net may take, by the budget of "auto". nan if f has none to compare
        with.
    plans : tuple of StepPlan
        The steps of the solve that predictions take.
    largest_step : float, optional
        Size of the largest step of a fit over several numbers of steps. None: the fit is for ``plans`` alone.
    base_error : float
        Mean error of the base method on held-out rows, as a share of the states' size.
    recomputes : bool
        Whether the graph of a solve is too large to be kept, so that f has to be evaluated again for its gradients.
    """

    z: Tensor
    x: Tensor | None
    kinds: tuple[StepKind, ...]
    max_macs: float
    plans: tuple[StepPlan, ...] = ()
    largest_step: float | None = None
    base_error: float = 1.0
    recomputes: bool = False

    @property
    def main_kind(self) -> StepKind:
        return self.kinds[-1]


class CorrectionSpec(ABC):
    """Settings of a family of nets. Subclass it to add your own family, and pass an instance as ``correction``.

    Parameters that :meth:`get_params` returns must be attributes of the same name. A search can set them as
    ``correction__name``.

    Examples
    --------
    A net that multiplies the first stage by one number:

    >>> import torch
    >>> from sklearn_hyper import HypersolverRegressor
    >>> from sklearn_hyper.modules import CorrectionNet, CorrectionSpec
    >>> class Weight(CorrectionNet):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.weight = torch.nn.Parameter(torch.zeros(()))
    ...     def forward(self, eps, s, z, stages, x, kind):
    ...         return self.weight * stages[0]
    >>> class WeightSpec(CorrectionSpec):
    ...     def build(self, inputs):
    ...         return Weight()
    ...     def get_params(self, deep=True):
    ...         return {}
    >>> x = torch.linspace(0.5, 1, 50, dtype=torch.float64)[:, None]
    >>> field = lambda t, z: -z  # Euler's residual is z / 2 to leading order
    >>> fast = HypersolverRegressor(
    ...     field, base_solver="euler", n_steps=2, correction=WeightSpec(), lr=0.1, random_state=0
    ... )
    >>> fast.fit(x.numpy()).score(x.numpy()) > -0.02
    True
    """

    @abstractmethod
    def build(self, inputs: NetInputs) -> nn.Module:
        """Build a net: a :class:`CorrectionNet`, or a module ``g(eps, s, z, stages, x=None)``."""

    @abstractmethod
    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Parameters by name."""

    def set_params(self, **params: Any) -> CorrectionSpec:
        """Set parameters by name."""
        valid = self.get_params()
        for name, value in params.items():
            if name not in valid:
                raise ValueError(f"{type(self).__name__} has no parameter {name!r}; valid ones are {sorted(valid)}.")
            setattr(self, name, value)
        return self

    learns_residuals = True
    """Whether its corrections add a term to a step, which residuals can train. False: only solves train them."""

    tunes_method = False
    """Whether the coefficients of a method that the fit has learned are trained on, together with its corrections."""

    def corrections(
        self, neural_odes: Sequence[NeuralODE], inputs: NetInputs, samples: Sequence[ScaleSample]
    ) -> list[ModuleCorrection]:
        """Build the corrections of a fit, one per task: here bounded nets that share the weights of one new net.

        Override it for corrections that are no nets, such as changes of the field's own weights.

        Parameters
        ----------
        neural_odes : sequence of NeuralODE
            The frozen Neural ODEs of the tasks.
        inputs : NetInputs
            What a net will read of the first task, and the cost that it may have.
        samples : sequence of ScaleSample
            Steps from which units and scales are measured, one sample for each task.
        """
        net = build_net(self, inputs)
        return [BoundedCorrection(net.with_scales(sample), fit_units(sample.residuals)) for sample in samples]

    def optimizer_for(self, z: Tensor, n_steps: int) -> str:
        """Return what ``optimizer="auto"`` stands for, "adam" or "soap", for states like ``z`` and so many steps."""
        return "adam"

    def method_family(self, method: Method) -> list[Method]:
        """Return the methods that a net is fitted over. The first is the one that it predicts with."""
        return [method]


class OwnModule(CorrectionSpec):
    """The spec of a module that the user has built. It builds a copy of the module.

    Parameters
    ----------
    module : nn.Module
    """

    def __init__(self, module: nn.Module):
        self.module = module

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        return {"module": self.module}

    def build(self, inputs: NetInputs) -> nn.Module:
        return copy.deepcopy(self.module)

    def __repr__(self) -> str:
        return repr(self.module)


def is_positive_integer(value: Any) -> bool:
    """Return whether a parameter is an integer of at least 1."""
    return isinstance(value, Integral) and int(value) >= 1


def build_net(spec: CorrectionSpec, inputs: NetInputs) -> CorrectionNet:
    """Build a spec's net in the dtype and on the device of the states, ready to be trained."""
    return as_net(spec.build(inputs).to(inputs.z).requires_grad_(True))
