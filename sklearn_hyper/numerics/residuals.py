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
"""Share of RMS(R) that the reference's noise may reach before targets are solved for more tightly."""


class ConditioningWarning(UserWarning):
    """Residual targets were dominated by the reference's noise and have been recomputed more tightly."""


class Residual(NamedTuple):
    """One step's target and everything a correction may read to hit it."""

    s: float
    eps: float
    z: Tensor
    stages: list[Tensor]
    kind: StepKind
    target: Tensor
    t_span: tuple[float, float] | None = None
    """Of the solve that the step is one of, where that is known."""

    @property
    def order(self) -> int:
        """p of the step."""
        return self.kind.order

    def rows(self, rows: Any) -> Residual:
        """The same step for some of the rows."""
        return self.each(lambda tensor: tensor[rows])

    def each(self, change: Callable[[Tensor], Tensor]) -> Residual:
        """The same with every tensor changed."""
        stages = [change(stage) for stage in self.stages]
        return self._replace(z=change(self.z), stages=stages, target=change(self.target))

    def time(self) -> Tensor:
        """s as f and g get it: a 0-d tensor, in the dtype that resolves the span."""
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
    r"""Residuals of a base solver along reference states.

    .. math::

        R(s_k, z(s_k), z(s_{k+1})) = \frac{1}{\epsilon_k^{p+1}}
            \big[z(s_{k+1}) - z(s_k) - \epsilon_k \psi(s_k, x, z(s_k))\big]
        \qquad \text{(eq. 6)}

    A multistep method takes its history from the reference states too, and starts up at the first.

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
        So many steps at the front of the grid are only a multistep method's history, at one evaluation of f each; at
        most as many as it remembers. The step after n_past = p - 1 of them is a full one of order p.
    t_span : pair of float, optional
        Span of the solve that the grid is a part of, which says in which dtype f gets t. Missing: the grid's own.

    Returns
    -------
    list of K - n_past :class:`Residual`
        Each with s, eps (Python floats), the state z, the stages, the kind of the step and the target R.

    Raises
    ------
    ValueError
        If the grid is not monotone or does not match ``states``, is not the (start of the) mesh that the base solver is
        made for, or n_past is more than the method remembers.

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
            "steps), "
            f"got {n_past!r}."
        )


def _recall(
    field: Field, method: Method, grid: Sequence[float], states: Tensor, span: tuple[float, float]
) -> tuple[Any, ...]:
    """What a method remembers that has come along the grid."""
    remembered: tuple[Any, ...] = ()
    for (s, after), z in zip(pairwise(grid), states, strict=False):
        remembered = method.remember(remembered, after - s, field(time_tensor(s, states, span), z))
    n_past = len(grid) - 1
    if n_past and method.kind(n_past).nodes[0] != 0:
        remembered = method.arrive(remembered, field(time_tensor(grid[-1], states, span), states[n_past]))
    return remembered


def target_noise(residual: Residual, rtol: float, atol: float | None) -> float:
    r"""Noise of a residual's target as a share of its RMS.

    The reference is right to ``atol + rtol |z|`` (atol is ``rtol |z|`` where it is None), and never to better than its
    dtype's rounding; eq. 6 divides that by :math:`|\epsilon|^{p+1}`.
    """
    scale = residual.z.double().square().mean().sqrt().item()
    atol = rtol * scale if atol is None else atol
    # torchdiffeq evaluates its quartic interpolant at the end of a step too; its coefficients, up to 16 z, cancel
    # there.
    rounding = 16 * torch.finfo(residual.z.dtype).eps * scale
    noise = (atol + rtol * scale + rounding) / abs(residual.eps) ** (residual.order + 1)
    target, unit = in_own_units(residual.target)
    signal = (target.pow(2).mean().sqrt() * unit).item()
    return noise / signal if signal > 0 else 0.0
