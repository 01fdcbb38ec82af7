"""The contracts of corrections, of the nets that compute them, and of the specs that build the nets."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
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

    It starts at zero, so an untrained hypersolver equals its base method.
    """

    def covers(self, method: Method) -> bool:
        """Return whether the correction is fitted for methods like this one. If False, its errors are unknown."""
        return True

    def fold(self, plans: Sequence[StepPlan]) -> ModuleCorrection:
        """Return a frozen copy for inference, with all that is constant in each of these steps computed once.

        Here nothing is: the copy runs the same weights.
        """
        return copy.deepcopy(self).requires_grad_(False).eval()


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
        self.g = g

    def term(self, plan: StepPlan, s: Tensor, z: Tensor, stages: Sequence[Tensor], x: Any) -> Tensor:
        return as_net(self.g)(plan.eps, s, z, stages, x, plan.kind)

    def fold(self, plans: Sequence[StepPlan]) -> FoldedCorrection:
        net, unit = as_net(copy.deepcopy(self.g).requires_grad_(False).eval()), torch.ones(())
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


# ---------------------------------------------------------------------- what builds it
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
    """

    z: Tensor
    x: Tensor | None
    kinds: tuple[StepKind, ...]
    max_macs: float

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


def build_net(spec: CorrectionSpec, inputs: NetInputs) -> CorrectionNet:
    """Build a spec's net in the dtype and on the device of the states, ready to be trained."""
    return as_net(spec.build(inputs).to(inputs.z).requires_grad_(True))


def is_own(net: Any) -> bool:
    """Return whether a net is the user's own, not a class of this package."""
    return isinstance(net, nn.Module) and not type(net).__module__.startswith("sklearn_hyper.")


def user_part(net: CorrectionNet) -> nn.Module | None:
    """Return the user's own module that a net is or adapts, or None if there is none."""
    part = net.module if isinstance(net, UserNet) else net
    return part if is_own(part) else None
