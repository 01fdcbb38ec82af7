"""Corrections g as hypersolvers run them: any net, scaled to the units of the residuals and bounded.

Contract of a correction: ``forward(eps, s, z, stages, x=None) -> tensor like z`` with eps a signed Python float, s a 0-d
tensor (in the dtype in which f gets its time) and stages a list of tensors like z, fewer in start-up steps of a multistep method. It must stay O(1) as eps -> 0, or the base solver's order is lost.
One that has to know which base solver the stages come from also offers ``for_solver(solver) -> correction``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..numerics.base_solvers import BaseSolver
from ..numerics.residuals import Residual, in_own_units
from .correction_nets import CorrectionNet, row_column
from .folded_nets import FoldedNet
from .serialization import DeviceFreeModule
from .solver_binding import bind_solver, make_view


class BoundedCorrection(DeviceFreeModule):
    r"""Scales a correction to the targets' units and caps its share of a step.

    The per-sample norm of the step's correction is capped:

    .. math::

        \|\epsilon^{p+1} g\| \le c\,|\epsilon| \max\big(\max_i \|r_i\|,\; \rho\big)

    so that a few states unlike the fitted ones cannot throw a whole batch off. For eps -> 0 the cap on g itself grows
    like :math:`|\epsilon|^{-p}`: it is inactive there and the order p survives.

    Parameters
    ----------
    net : nn.Module
        A correction of the contract ``forward(eps, s, z, stages, x=None)``.
    order : int
        p of the base solver.
    output_scale : Tensor
        RMS of the targets per feature or channel, broadcastable to z; the net's output is multiplied by it, never shifted.
    cap : float
        c, from the fitted data.
    floor : float
        rho, for f may vanish where the residual does not.
    startup : tuple of (int, int, Tensor), optional
        Of a multistep method: number of stages from which on a step is a full one, order and output scale of those before.

    Examples
    --------
    >>> import torch
    >>> from sklearn_hyper.modules import BoundedCorrection
    >>> class Wild(torch.nn.Module):
    ...     def forward(self, eps, s, z, stages, x=None):
    ...         return 1e6 * torch.ones_like(z)
    >>> g = BoundedCorrection(Wild(), order=1, output_scale=torch.ones(2), cap=0.5, floor=0.0)
    >>> r = torch.tensor([[3.0, 4.0]])
    >>> step = 0.1**2 * g(0.1, torch.tensor(0.0), torch.zeros(1, 2), [r])
    >>> round(step.norm().item(), 4)  # 0.5 * 0.1 * ||r||
    0.25
    """

    output_scale: Tensor
    startup_scale: Tensor | None

    def __init__(
        self,
        net: nn.Module,
        *,
        order: int,
        output_scale: Tensor,
        cap: float,
        floor: float,
        startup: tuple[int, int, Tensor] | None = None,
    ):
        super().__init__()
        if not cap > 0:
            raise ValueError(
                f"cap must be positive, got {cap!r}; without a correction a hypersolver is its base solver."
            )
        self.net = net
        self.order = order
        self.cap = float(cap)
        self.floor = float(floor)
        self.full_stages = startup[0] if startup else 0
        self.startup_order = startup[1] if startup else order
        self.register_buffer("output_scale", output_scale)
        self.register_buffer("startup_scale", startup[2] if startup else None)

    def for_solver(self, solver: BaseSolver) -> BoundedCorrection:
        """This correction as it runs with a base solver: itself, or a view that shares all weights."""
        net = bind_solver(self.net, solver)
        if net is self.net:
            return self
        view = make_view(self)
        view._modules = {**self._modules, "net": net}
        return view

    def covers(self, solver: BaseSolver) -> bool:
        """False where the net has been fitted over a family of base solvers and this one lies outside it."""
        return not hasattr(self.net, "covers") or self.net.covers(solver)  # type: ignore[operator]

    def _units(self, n_stages: int) -> tuple[int, Tensor]:
        """Order of a step with so many stages, and the scale of its residuals."""
        if n_stages < self.full_stages and self.startup_scale is not None:
            return self.startup_order, self.startup_scale
        return self.order, self.output_scale

    def forward(
        self, eps: float | Tensor, s: Tensor, z: Tensor, stages: Sequence[Tensor], x: Tensor | None = None
    ) -> Tensor:
        """g, scaled and capped."""
        order, scale = self._units(len(stages))
        cap = row_column(self.cap * abs(eps) ** -order, z)  # type: ignore[operator]
        return _bound(self.net(eps, s, z, stages, x) * (scale / cap), stages, cap, self.floor)

    def fold(self, eps: float, s: float, n_stages: int) -> nn.Module:
        """This correction at one step, for inference: what is constant there is computed once.

        A user's net stays as it is.
        """
        if not isinstance(self.net, CorrectionNet):
            return self
        order, scale = self._units(n_stages)
        cap = self.cap * abs(eps) ** -order
        return BoundedStep(FoldedNet(self.net, eps, s, n_stages, scale / cap), cap, self.floor)


class BoundedStep(nn.Module):
    """What :meth:`BoundedCorrection.fold` makes: the folded net, in units of the cap on g at its step size, and that cap."""

    def __init__(self, net: nn.Module, cap: float, floor: float):
        super().__init__()
        self.net, self.cap, self.floor = net, cap, floor

    def forward(self, eps: float, s: Tensor, z: Tensor, stages: Sequence[Tensor], x: Tensor | None = None) -> Tensor:
        """g, scaled and capped."""
        return _bound(self.net(eps, s, z, stages, x), stages, self.cap, self.floor)


def _bound(share: Tensor, stages: Sequence[Tensor], cap: float | Tensor, floor: float) -> Tensor:
    # g comes in units of cap, which makes its norm that of a stage: g itself is of the size of span^-p-1, and its square may
    # be out of float32's range. Tiny, not zero, keeps 0 / 0 out where g and all stages vanish.
    excess = sample_norm(share) / largest_stage_norm(stages).clamp(min=max(floor, torch.finfo(share.dtype).tiny))
    return share / (excess.clamp(min=1) * (1 / cap))  # a number over a tensor would be two operations


def largest_stage_norm(stages: Sequence[Tensor]) -> Tensor:
    """max_i ||r_i|| of every sample, over axes of length one."""
    norms = [sample_norm(stage) for stage in stages]
    largest = norms[0]
    for norm in norms[1:]:
        largest = torch.maximum(largest, norm)
    return largest


def sample_norm(t: Tensor) -> Tensor:
    """The 2-norm of every sample, over axes of length one."""
    axes = list(range(1, t.ndim))
    return torch.linalg.vector_norm(t, dim=axes, keepdim=True) if axes else t.abs()


def fit_bounded_correction(net: nn.Module, residuals: Sequence[Residual]) -> BoundedCorrection:
    """Wrap a net with the scale, cap and floor that a sample of residuals asks for.

    The cap is twice the largest share that the true residual takes of a step on the fitted data; the floor a tenth
    of the training RMS of the stages' norms.
    """
    full_stages = max(len(r.stages) for r in residuals)
    startup = [r for r in residuals if len(r.stages) < full_stages]
    full = [r for r in residuals if len(r.stages) == full_stages]
    # In float64, where the squares of small units do not underflow.
    norms = torch.cat([largest_stage_norm([stage.double() for stage in r.stages]).flatten() for r in residuals])
    floor = 0.1 * norms.pow(2).mean().sqrt()
    cap = 2 * max(_largest_share(r, float(floor) or 1.0) for r in residuals)
    # Both are zero only where f is: then the correction has nothing to correct and stays at zero.
    return BoundedCorrection(
        net,
        order=full[0].order,
        output_scale=_target_scale(full),
        cap=cap or 1.0,
        floor=float(floor) or 1.0,
        startup=(full_stages, startup[0].order, _target_scale(startup)) if startup else None,
    )


def _largest_share(residual: Residual, floor: float) -> float:
    """What the true residual takes of a step, at most."""
    target, unit = in_own_units(residual.target)
    share = sample_norm(target) / largest_stage_norm(residual.stages).clamp(min=floor)
    return float(share.max()) * (float(unit) * abs(residual.eps) ** residual.order)


def _target_scale(residuals: Sequence[Residual]) -> Tensor:
    """RMS of the targets, per feature or channel."""
    targets, unit = in_own_units(torch.cat([r.target for r in residuals]))
    return targets.pow(2).mean(dim=[0, *range(2, targets.ndim)], keepdim=True).sqrt()[0] * unit
