"""The contracts of corrections, and of the nets that compute them."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...numerics.correction import Correction
from ...numerics.methods import Method, StepKind, StepPlan
from ...numerics.residuals import Residual
from ..serialization import DeviceFreeModule


# ---------------------------------------------------------------------- what a solve runs
class ModuleCorrection(DeviceFreeModule, Correction, ABC):
    """A correction with weights, which a fit trains and a :class:`~sklearn_hyper.modules.HypersolvedODE` runs.

    It starts at zero, so an untrained hypersolver equals its base method. One that residuals train has a
    ``forward(eps, s, z, stages, x, kind)`` that returns g; here :meth:`term` calls it.
    """

    def covers(self, method: Method) -> bool:
        """Return whether the correction is fitted for methods like this one. If False, its errors are unknown."""
        return True

    def check_steps(self, plans: Sequence[StepPlan] | None) -> None:
        """Refuse steps that the correction cannot run in. None stands for steps that depend on the state."""

    def check_field(self, f: Callable[..., Tensor]) -> None:
        """Refuse a field that the correction is not made for."""

    def fold(self, plans: Sequence[StepPlan], f: Callable[..., Tensor] | None = None) -> ModuleCorrection:
        """Return a frozen copy for inference, with all that is constant in each of these steps computed once.

        Here nothing is: the copy runs the same weights.

        Parameters
        ----------
        plans : sequence of StepPlan
            The steps of every solve.
        f : callable, optional
            The vector field, for corrections that change it.
        """
        return copy.deepcopy(self).requires_grad_(False).eval()

    def term(self, plan: StepPlan, s: Tensor, z: Tensor, stages: Sequence[Tensor], x: Any) -> Tensor | None:
        """Return g as ``forward`` computes it. Without a ``forward`` nothing is added."""
        if type(self).forward is nn.Module.forward:
            return None
        return self(plan.eps, s, z, stages, x, plan.kind)

    def refit(self, sample: ScaleSample) -> ModuleCorrection:
        """Return this correction with units and scales of another sample, and the same weights. Itself without any."""
        return self


class FoldedCorrection(ModuleCorrection):
    """A correction for the steps of one mesh: ``steps[k](eps, s, z, stages, x)`` is g in step k."""

    def __init__(self, steps: Sequence[nn.Module]):
        super().__init__()
        self.steps = nn.ModuleList(steps)
        # A plain list, because a ModuleList looks entries up by name, which takes as long as a small matrix product.
        self._in_order = list(steps)

    def term(self, plan: StepPlan, s: Tensor, z: Tensor, stages: Sequence[Tensor], x: Any) -> Tensor:
        return self._in_order[plan.k](plan.eps, s, z, stages, x)


class PlainCorrection(ModuleCorrection):
    """Adapt a net, or a module ``g(eps, s, z, stages, x=None)``, to a correction. It is not scaled or bounded.

    Parameters
    ----------
    g : nn.Module
    """

    def __init__(self, g: nn.Module):
        super().__init__()
        self.net = as_net(g)

    def term(self, plan: StepPlan, s: Tensor, z: Tensor, stages: Sequence[Tensor], x: Any) -> Tensor:
        return self.net(plan.eps, s, z, stages, x, plan.kind)

    def fold(self, plans: Sequence[StepPlan], f: Callable[..., Tensor] | None = None) -> FoldedCorrection:
        net, unit = copy.deepcopy(self.net).requires_grad_(False).eval(), torch.ones(())
        if isinstance(net, UserNet):
            return FoldedCorrection([net.module] * len(plans))
        return FoldedCorrection([net.fold(plan, unit) for plan in plans])


def as_module_correction(correction: nn.Module | None) -> ModuleCorrection | None:
    """Return a correction as it is, and a plain module adapted to a correction."""
    return correction if correction is None or isinstance(correction, ModuleCorrection) else PlainCorrection(correction)


# ---------------------------------------------------------------------- what computes g
@dataclass(frozen=True)
class ScaleSample:
    """Steps of one task, from which a net computes the scales of its inputs.

    Parameters
    ----------
    residuals : sequence of Residual
        All of the same rows.
    x : Tensor or None
        Input of a data-controlled field, by row.
    t_span : pair of float
    """

    residuals: Sequence[Residual]
    x: Tensor | None
    t_span: tuple[float, float]


class CorrectionNet(nn.Module, ABC):
    """A net that computes g in a step. Subclass this to add your own family of nets.

    Write :meth:`forward`. Its output has to stay O(1) as eps -> 0, or the method's order is lost. It should start at
    zero. :class:`~sklearn_hyper.modules.BoundedCorrection` wraps the net, scales its output to the units of the
    residuals, and bounds it.
    """

    takes_row_steps = False
    """Whether eps and s may also hold one number per row. Then training mixes steps in a batch, which works better."""

    @abstractmethod
    def forward(
        self, eps: Any, s: Tensor, z: Tensor, stages: Sequence[Tensor], x: Tensor | None, kind: StepKind
    ) -> Tensor:
        """Return g, like z, in units of the residuals' RMS.

        Parameters
        ----------
        eps : float
            Signed step size.
        s : 0-d Tensor
            Start of the step, in the dtype in which f gets its time.
        z : Tensor of shape (batch, ...)
        stages : list of Tensor like z
            f at ``kind.offsets``.
        x : Tensor or None
            Input of a data-controlled field.
        kind : StepKind
        """

    def with_scales(self, sample: ScaleSample) -> CorrectionNet:
        """Return this net for the sample's task: the *same* weights with new scales. Without scales, the net itself."""
        return self

    def covers(self, method: Method) -> bool:
        """Return whether the net is fitted for methods like this one."""
        return True

    def fold(self, plan: StepPlan, scale: Tensor) -> nn.Module:
        """Return this net times ``scale`` for one step, as ``step(eps, s, z, stages, x)``. It may share weights."""
        return _ScaledStep(self, plan.kind, scale)


class _ScaledStep(nn.Module):
    scale: Tensor

    def __init__(self, net: CorrectionNet, kind: StepKind, scale: Tensor):
        super().__init__()
        self.net, self.kind = net, kind
        self.register_buffer("scale", scale)

    def forward(self, eps: float, s: Tensor, z: Tensor, stages: Sequence[Tensor], x: Tensor | None = None) -> Tensor:
        return self.net(eps, s, z, stages, x, self.kind) * self.scale


class UserNet(CorrectionNet):
    """Adapt a module ``g(eps, s, z, stages, x=None)`` to the contract of a net.

    Parameters
    ----------
    module : nn.Module
    """

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(
        self, eps: Any, s: Tensor, z: Tensor, stages: Sequence[Tensor], x: Tensor | None, kind: StepKind
    ) -> Tensor:
        return self.module(eps, s, z, stages, x)


def as_net(module: nn.Module) -> CorrectionNet:
    """Return a net as it is, and a plain module adapted to a net."""
    return module if isinstance(module, CorrectionNet) else UserNet(module)


def is_own(net: Any) -> bool:
    """Return whether a net is the user's own, not a class of this package."""
    return isinstance(net, nn.Module) and not type(net).__module__.startswith("sklearn_hyper.")


def user_part(net: nn.Module) -> nn.Module | None:
    """Return the user's own module that a net is or adapts, or None if there is none."""
    part = net.module if isinstance(net, UserNet) else net
    return part if is_own(part) else None
