"""The corrections that fits return: a net that is scaled to the residuals of one task, and bounded."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ...numerics.methods import Method, StepKind, StepPlan
from ...numerics.residuals import Residual
from ...numerics.tensors import in_own_units, per_row, sample_norm
from .contract import FoldedCorrection, ModuleCorrection, ScaleSample, as_net

_CAP_MARGIN, _FLOOR_SHARE = 2, 0.1
"""Factors of cap and floor; see :func:`fit_units`."""


class Units(nn.Module):
    """Sizes of one task's residuals and stages, by which its correction is scaled and bounded.

    Parameters
    ----------
    kinds : sequence of StepKind
        One kind of each family of steps that the task's method takes.
    scales : sequence of Tensor
        For each kind, the RMS of its targets by feature or channel, broadcastable to z. The net's output is multiplied
        by it, never shifted.
    cap : float
        c of :class:`BoundedCorrection`.
    floor : float
        rho of :class:`BoundedCorrection`. It keeps the bound positive where f vanishes but the residual does not.
    """

    def __init__(self, kinds: Sequence[StepKind], scales: Sequence[Tensor], *, cap: float, floor: float):
        super().__init__()
        if not cap > 0:
            raise ValueError(
                f"cap must be positive, got {cap!r}; without a correction a hypersolver is its base solver."
            )
        self.kinds, self.cap, self.floor = tuple(kinds), float(cap), float(floor)
        for i, scale in enumerate(scales):
            self.register_buffer(f"scale_{i}", scale)
        self._buffer_names = {kind.family: f"scale_{i}" for i, kind in enumerate(self.kinds)}

    def scale(self, kind: StepKind) -> Tensor:
        """Return the scale of the residuals of a kind of step."""
        name = self._buffer_names.get(kind.family)
        if name is None:
            raise self._foreign(f"of order {kind.order} with {kind.n_stages} stages")
        return self._buffers[name]  # type: ignore[return-value]

    def kind_of(self, n_stages: int) -> StepKind:
        """Return the fitted kind of step with this number of stages."""
        for kind in self.kinds:
            if kind.n_stages == n_stages:
                return kind
        raise self._foreign(f"with {n_stages} stages")

    def _foreign(self, step: str) -> ValueError:
        fitted = ", ".join(f"order {order} with {n} stages" for order, n in self._buffer_names)
        return ValueError(
            f"the correction is fitted for steps of {fitted}; it cannot run in a step {step}. Fit a hypersolver with "
            "that base solver."
        )


class BoundedCorrection(ModuleCorrection):
    r"""Scale a net to the targets' units, and cap its share of a step.

    The per-sample norm of the step's correction is capped:

    .. math::

        \|\epsilon^{p+1} g\| \le c\,|\epsilon| \max\big(\max_i \|r_i\|,\; \rho\big)

    The cap limits the harm in states unlike the fitted ones, where the net's output may be anything. For eps -> 0 the
    cap on g itself grows like :math:`|\epsilon|^{-p}`. So it is inactive there, and the order p is kept.

    Parameters
    ----------
    net : nn.Module
        A :class:`CorrectionNet`, or a module with the contract ``forward(eps, s, z, stages, x=None)``. Several
        corrections may share a net.
    units : Units
        c, rho and scales of the task that the correction is fitted for.

    Examples
    --------
    >>> import torch
    >>> from sklearn_hyper.modules import BoundedCorrection, Units
    >>> from sklearn_hyper.numerics import resolve_base_solver
    >>> class Wild(torch.nn.Module):
    ...     def forward(self, eps, s, z, stages, x=None):
    ...         return 1e6 * torch.ones_like(z)
    >>> units = Units(resolve_base_solver("euler").kinds, [torch.ones(2)], cap=0.5, floor=0.0)
    >>> g = BoundedCorrection(Wild(), units)
    >>> r = torch.tensor([[3.0, 4.0]])
    >>> step = 0.1**2 * g(0.1, torch.tensor(0.0), torch.zeros(1, 2), [r])
    >>> round(step.norm().item(), 4)  # 0.5 * 0.1 * ||r||
    0.25
    """

    def __init__(self, net: nn.Module, units: Units):
        super().__init__()
        self.net = as_net(net)
        self.units = units

    def covers(self, method: Method) -> bool:
        return self.net.covers(method)

    @property
    def takes_row_steps(self) -> bool:  # type: ignore[override]
        return self.net.takes_row_steps

    def refit(self, sample: ScaleSample) -> BoundedCorrection:
        return BoundedCorrection(self.net.with_scales(sample), fit_units(sample.residuals))

    def forward(
        self,
        eps: float | Tensor,
        s: Tensor,
        z: Tensor,
        stages: Sequence[Tensor],
        x: Tensor | None = None,
        kind: StepKind | None = None,
    ) -> Tensor:
        """Return g, scaled and capped. If ``kind`` is missing, the number of stages tells which fitted kind it is."""
        units = self.units
        kind = units.kind_of(len(stages)) if kind is None else kind
        cap = per_row(units.cap * abs(eps) ** -kind.order, z)  # type: ignore[operator]
        scale = units.scale(kind) / cap  # before the net, which would fail on a kind that this refuses by name
        return _bound(self.net(eps, s, z, stages, x, kind) * scale, stages, cap, units.floor)

    def term(self, plan: StepPlan, s: Tensor, z: Tensor, stages: Sequence[Tensor], x: Tensor | None) -> Tensor:
        return self(plan.eps, s, z, stages, x, plan.kind)

    def fold(self, plans: Sequence[StepPlan], f: Callable[..., Tensor] | None = None) -> FoldedCorrection:
        frozen = copy.deepcopy(self).requires_grad_(False).eval()
        return FoldedCorrection([frozen.fold_step(plan) for plan in plans])

    def fold_step(self, plan: StepPlan) -> BoundedStep:
        """Return the correction folded for one step. It may share this one's weights."""
        cap = self.units.cap * abs(plan.eps) ** -plan.kind.order
        return BoundedStep(self.net.fold(plan, self.units.scale(plan.kind) / cap), cap, self.units.floor)


class BoundedStep(nn.Module):
    """A bounded correction folded for one step.

    Parameters
    ----------
    net : nn.Module
        The folded net. It returns g in units of ``cap``.
    cap : float
        The bound on g at this step size, in units of the largest stage's norm.
    floor : float
        rho.
    """

    def __init__(self, net: nn.Module, cap: float, floor: float):
        super().__init__()
        self.net, self.cap, self.floor = net, cap, floor

    def forward(self, eps: float, s: Tensor, z: Tensor, stages: Sequence[Tensor], x: Tensor | None = None) -> Tensor:
        """Return g, scaled and capped."""
        return _bound(self.net(eps, s, z, stages, x), stages, self.cap, self.floor)


def _bound(share: Tensor, stages: Sequence[Tensor], cap: float | Tensor, floor: float) -> Tensor:
    # share is g / cap, so that its norm is of the size of a stage's. g itself scales like span^(-p-1), and its square
    # may leave float32's range. Clamping to tiny instead of zero avoids 0 / 0 where g and all stages vanish.
    excess = sample_norm(share) / largest_stage_norm(stages).clamp(min=max(floor, torch.finfo(share.dtype).tiny))
    # Not share * (cap / excess): dividing a number by a tensor takes two operations.
    return share / (excess.clamp(min=1) * (1 / cap))


def largest_stage_norm(stages: Sequence[Tensor]) -> Tensor:
    """Return max_i ||r_i|| of every sample, in shape (batch, 1, ..., 1)."""
    norms = [sample_norm(stage) for stage in stages]
    largest = norms[0]
    for norm in norms[1:]:
        largest = torch.maximum(largest, norm)
    return largest


def fit_units(residuals: Sequence[Residual]) -> Units:
    """Compute scales, cap and floor from a sample of one task's residuals.

    The cap is twice the largest share that the true residual has in a step of the sample. The floor is a tenth of the
    RMS of the stages' norms.
    """
    # In float64, where the squares of small values do not underflow.
    norms = torch.cat([largest_stage_norm([stage.double() for stage in r.stages]).flatten() for r in residuals])
    floor = float(_FLOOR_SHARE * norms.pow(2).mean().sqrt())
    cap = _CAP_MARGIN * max(_largest_share(r, floor or 1.0) for r in residuals)
    families: dict[tuple[int, int], list[Residual]] = {}
    for residual in residuals:
        families.setdefault(residual.kind.family, []).append(residual)
    # Cap and floor are zero only if all residuals or all stages are. Then 1 does no harm: there is nothing to correct.
    return Units(
        [members[0].kind for members in families.values()],
        [_target_scale(members) for members in families.values()],
        cap=cap or 1.0,
        floor=floor or 1.0,
    )


def _largest_share(residual: Residual, floor: float) -> float:
    """Return the largest share that the true residual has in a step."""
    target, unit = in_own_units(residual.target)
    share = sample_norm(target) / largest_stage_norm(residual.stages).clamp(min=floor)
    return float(share.max()) * (float(unit) * abs(residual.eps) ** residual.order)


def _target_scale(residuals: Sequence[Residual]) -> Tensor:
    """Return the RMS of the targets, by feature or channel."""
    targets, unit = in_own_units(torch.cat([r.target for r in residuals]))
    return targets.pow(2).mean(dim=[0, *range(2, targets.ndim)], keepdim=True).sqrt()[0] * unit
