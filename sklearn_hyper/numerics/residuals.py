"""Residuals: what a correction has to learn (paper, eq. 6), and how much noise their targets carry."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .methods import Field, Method, StepKind, resolve_base_solver
from .protection import FieldInputs, ProtectedField
from .stepping import FixedMesh
from .tensors import in_own_units
from .times import check_grid, check_resolution, time_tensor

CONDITIONING_LIMIT = 0.01
"""Share of RMS(R) that the reference's noise may reach before targets are recomputed with a smaller tolerance."""


class ConditioningWarning(UserWarning):
    """Residual targets were dominated by the reference's noise and have been recomputed with a smaller tolerance."""


class Residual(NamedTuple):
    """The target of one step, and all that a correction may read in that step."""

    s: float
    eps: float
    z: Tensor
    stages: list[Tensor]
    kind: StepKind
    target: Tensor
    t_span: tuple[float, float] | None = None
    """Span of the solve that the step belongs to, if known."""

    @property
    def order(self) -> int:
        """p of the step."""
        return self.kind.order

    def rows(self, rows: Any) -> Residual:
        """Return the same step for some of the rows."""
        return self.each(lambda tensor: tensor[rows])

    def each(self, change: Callable[[Tensor], Tensor]) -> Residual:
        """Return the same step with every tensor changed."""
        stages = [change(stage) for stage in self.stages]
        return self._replace(z=change(self.z), stages=stages, target=change(self.target))

    def time(self) -> Tensor:
        """Return s as f and g get it: a 0-d tensor, in the dtype that resolves the span."""
        return time_tensor(self.s, self.z, self.t_span or (self.s, self.s + self.eps))


def compute_residuals(
    f: Callable[..., Tensor],
    states: Tensor,
    grid: Sequence[float],
    base_solver: Any,
    *,
    x: Any = None,
    condition: Mapping[str, Any] | None = None,
    n_past: int = 0,
    t_span: tuple[float, float] | None = None,
) -> list[Residual]:
    r"""Compute the residuals of a base solver along reference states.

    .. math::

        R(s_k, z(s_k), z(s_{k+1})) = \frac{1}{\epsilon_k^{p+1}}
            \big[z(s_{k+1}) - z(s_k) - \epsilon_k \psi(s_k, x, z(s_k))\big]
        \qquad \text{(eq. 6)}

    A multistep method takes its history from the reference states too. It starts up at the first of them.

    Parameters
    ----------
    f : callable
        ``f(t, z)`` or, with ``x``, ``f(t, z, x)``.
    states : Tensor of shape (K + 1, batch, ...)
        Reference states on the grid, as :func:`reference_solution` returns them.
    grid : sequence of K + 1 floats
        The mesh, uniform or not, in either direction.
    base_solver : str, ButcherTableau or Method
    x : Tensor, optional
        Input of a data-controlled field.
    condition : mapping of str to Tensor, optional
        Keyword arguments of the field.
    n_past : int, default 0
        Number of steps at the front of the grid that only serve as a multistep method's history. Each costs one
        evaluation of f and gives no residual. At most the method's ``memory``; after n_past = p - 1 of them,
        Adams-Bashforth takes a full step of order p.
    t_span : pair of float, optional
        Span of the solve that the grid is a part of. It decides in which dtype f gets t. If missing: the grid's ends.

    Returns
    -------
    list of K - n_past :class:`Residual`
        Each holds s and eps (Python floats), the state z, the stages, the kind of the step and the target R.

    Raises
    ------
    ValueError
        If the grid is not monotone, does not match ``states``, or is not the mesh (or its first steps) that the base
        solver is made for. Also if n_past is larger than the method's memory.

    Examples
    --------
    For z' = z and Euler, R = z (e^eps - 1 - eps) / eps^2:

    >>> import math, torch
    >>> from sklearn_hyper.numerics import compute_residuals
    >>> states = torch.tensor([[[1.0]], [[math.e]]], dtype=torch.float64)
    >>> residual, = compute_residuals(lambda t, z: z, states, (0.0, 1.0), "euler")
    >>> round(residual.target.item(), 12) == round(math.e - 2, 12)
    True
    """
    mesh = check_grid(grid)
    if len(states) != len(mesh):
        raise ValueError(f"states must hold one entry a grid time, got {len(states)} for {len(mesh)} times.")
    method = resolve_base_solver(base_solver)
    method.check_mesh(mesh)
    _check_n_past(n_past, method, len(mesh) - 1)
    span = (mesh[0], mesh[-1]) if t_span is None else t_span
    check_resolution("grid", span)
    field = ProtectedField(f, FieldInputs(x, condition or {}))
    residuals = []
    with torch.no_grad():
        state = _recall(field, method, mesh[: n_past + 1], states, span)
        for plan in FixedMesh(method, mesh).plans[n_past:]:
            z, z_next, eps = states[plan.k], states[plan.k + 1], plan.eps
            times = time_tensor(plan.times(), states, span).unbind()
            direction, stages, state, _ = method.step(field, times, z, eps, state)
            target = (z_next - z - eps * direction) / eps ** (plan.kind.order + 1)
            residuals.append(Residual(plan.s, eps, z, stages, plan.kind, target, span))
    return residuals


def _check_n_past(n_past: int, method: Method, n_steps: int) -> None:
    most = min(method.memory, n_steps - 1)
    if n_past not in range(most + 1):
        raise ValueError(
            f"n_past must be an integer from 0 to {most} (for base_solver={method.name!r} and a grid of {n_steps} "
            f"steps), got {n_past!r}."
        )


def _recall(
    field: Field, method: Method, grid: Sequence[float], states: Tensor, span: tuple[float, float]
) -> tuple[Any, ...]:
    """Return what a method remembers after it has come along this part of the grid."""
    remembered: tuple[Any, ...] = ()
    for (s, after), z in zip(pairwise(grid), states, strict=False):
        remembered = method.remember(remembered, after - s, field(time_tensor(s, states, span), z))
    n_past = len(grid) - 1
    if n_past and method.kind(n_past).nodes[0] != 0:
        remembered = method.arrive(remembered, field(time_tensor(grid[-1], states, span), states[n_past]))
    return remembered


def target_noise(residual: Residual, rtol: float, atol: float | None) -> float:
    r"""Estimate the noise of a residual's target, as a share of its RMS.

    The reference is accurate to ``atol + rtol |z|``, where a missing atol is ``rtol |z|``, and to the rounding of its
    dtype. Eq. 6 divides that error by :math:`|\epsilon|^{p+1}`.
    """
    scale = residual.z.double().square().mean().sqrt().item()
    atol = rtol * scale if atol is None else atol
    # torchdiffeq evaluates a quartic interpolant at the end of a step too. Its coefficients, of up to 16 z, cancel
    # there, which leaves 16 times the rounding of z.
    rounding = 16 * torch.finfo(residual.z.dtype).eps * scale
    noise = (atol + rtol * scale + rounding) / abs(residual.eps) ** (residual.order + 1)
    target, unit = in_own_units(residual.target)
    signal = (target.pow(2).mean().sqrt() * unit).item()
    return noise / signal if signal > 0 else 0.0
