"""The contracts of a correction: what a family of nets has to offer, and how a module of the user's own enters."""

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
    """A correction with weights: what a fit trains and a :class:`~sklearn_hyper.modules.HypersolvedODE` runs.

    It starts at zero: untrained, the hypersolver is its base method.
    """

    def covers(self, method: Method) -> bool:
        """Whether it has been fitted for methods like this one. False: its errors with this one are unknown."""
        return True

    @abstractmethod
    def fold(self, plans: Sequence[StepPlan]) -> FoldedCorrection | None:
        """Compute once what is constant in each of these steps, for inference. The result is frozen and shares nothing."""


class FoldedCorrection(nn.Module, Correction):
    """Terms for the steps of one mesh: ``steps[k](eps, s, z, stages, x)`` is g in step k."""

    def __init__(self, steps: Sequence[nn.Module]):
        super().__init__()
        self.steps = nn.ModuleList(steps)
        # A ModuleList looks its entries up by name, which takes as long as a small product.
        self._in_order = list(steps)

    def term(self, plan: StepPlan, s: Tensor, z: Tensor, stages: Sequence[Tensor], x: Any) -> Tensor:
        return self._in_order[plan.k](plan.eps, s, z, stages, x)


class PlainCorrection(ModuleCorrection):
    """Adapts a module ``g(eps, s, z, stages, x=None)``, neither scaled nor bounded, to what a solve runs.

    Parameters
    ----------
    g : nn.Module
    """

    def __init__(self, g: nn.Module):
        super().__init__()
        self.g = g

    def term(self, plan: StepPlan, s: Tensor, z: Tensor, stages: Sequence[Tensor], x: Any) -> Tensor:
        return self.g(plan.eps, s, z, stages, x)

    def fold(self, plans: Sequence[StepPlan]) -> FoldedCorrection:
        return FoldedCorrection([copy.deepcopy(self.g).requires_grad_(False)] * len(plans))


def as_module_correction(correction: nn.Module | None) -> ModuleCorrection | None:
    """A correction as a solve runs it; a plain module is adapted."""
    return correction if correction is None or isinstance(correction, ModuleCorrection) else PlainCorrection(correction)


# ---------------------------------------------------------------------- what computes g
@dataclass(frozen=True)
class ScaleSample:
    """Steps of one task, from which a net takes the scales of its inputs.

    Parameters
    ----------
    residuals : sequence of Residual
        Of the same rows.
    x : Tensor or None
        Input of a data-controlled field, by row.
    t_span : pair of float
    """

    residuals: Sequence[Residual]
    x: Tensor | None
    t_span: tuple[float, float]


class CorrectionNet(nn.Module, ABC):
    """A net that computes g from a step: the base class of every family of nets, of your own too.

    Write :meth:`forward`, which has to stay O(1) as eps -> 0, or the method's order is lost. Let it start at zero. The
    wrapper around it, :class:`~sklearn_hyper.modules.BoundedCorrection`, scales its output to the units of the
    residuals and bounds it.
    """

    takes_row_steps = False
    """Whether eps and s may also hold one number a row. Training then mixes steps within a batch, which it does better."""

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
            In the dtype in which f gets its time.
        z : Tensor of shape (batch, ...)
        stages : list of Tensor like z
            f at ``kind.offsets``.
        x : Tensor or None
            Input of a data-controlled field.
        kind : StepKind
        """

    def with_scales(self, sample: ScaleSample) -> CorrectionNet:
        """This net for the task that a sample is of: with scales of its own and the *same* weights. Itself if it has none."""
        return self

    def covers(self, method: Method) -> bool:
        """Whether it has been fitted for methods like this one."""
        return True

    def fold(self, plan: StepPlan, scale: Tensor) -> nn.Module:
        """What is left of it in one step, as ``step(eps, s, z, stages, x)``, times ``scale``. May share its weights."""
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
    """Adapts a module ``g(eps, s, z, stages, x=None)``: the only place where one enters.

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


# ---------------------------------------------------------------------- what builds it
@dataclass(frozen=True)
class NetInputs:
    """What a net will read, and what it may cost: all that a spec needs to build one.

    Parameters
    ----------
    z : Tensor of shape (batch, ...)
        States of some rows.
    x : Tensor or None
        Input of a data-controlled field, by row.
    kinds : tuple of StepKind
        Kinds of the method's steps, each once. Every other step than the first few is of the last.
    max_macs : float
        Multiply-accumulates a sample that the net may take, by the budget of "auto"; nan where f has none to compare
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
    """What a user sets of a family of nets. Subclass it to bring a family of your own, and pass it as ``correction``.

    Attributes set in ``__init__`` under the names that :meth:`get_params` gives can be searched as
    ``correction__name``.

    Examples
    --------
    A net that weighs the first stage by one number:

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
        """The methods that a net is fitted over: the one it predicts with first."""
        return [method]


class OwnModule(CorrectionSpec):
    """The spec of a module that the user has built: a copy of it.

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
    net = spec.build(inputs).to(inputs.z).requires_grad_(True)
    return net if isinstance(net, CorrectionNet) else UserNet(net)


def is_own(net: Any) -> bool:
    """Whether a net is the user's, not of this package."""
    return isinstance(net, nn.Module) and not type(net).__module__.startswith("sklearn_hyper.")


@torch.no_grad()
def user_part(net: CorrectionNet) -> nn.Module | None:
    """The module of the user's own that a net is, or adapts; None where there is none."""
    part = net.module if isinstance(net, UserNet) else net
    return part if is_own(part) else None
