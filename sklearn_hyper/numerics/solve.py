"""Fixed-step solves of an initial value problem, with or without a correction (paper, eqs. 2, 4 and 5)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from .correction import as_correction
from .methods import resolve_base_solver
from .protection import FieldInputs
from .stepping import FixedMesh, check_method_grid, check_state


def _prepare(z0: Tensor, t_span: Any, n_steps: Any, base_solver: Any, grid: Any) -> FixedMesh:
    check_state(z0)
    method = resolve_base_solver(base_solver)
    if grid is None:
        return FixedMesh.of(method, t_span, n_steps)
    return FixedMesh(method, check_method_grid(method, grid, t_span, n_steps))


def hypersolve(
    f: Callable[..., Tensor],
    z0: Tensor,
    t_span: Any,
    n_steps: int | None,
    base_solver: Any,
    g: Any = None,
    *,
    x: Any = None,
    condition: Mapping[str, Any] | None = None,
    grid: Sequence[float] | None = None,
) -> Tensor:
    r"""Return the terminal state of a fixed-step solve, corrected by g if one is given.

    .. math::

        z_{k+1} = z_k + \epsilon_k \psi(s_k, x, z_k)
                + \epsilon_k^{p+1} g(\epsilon_k, s_k, z_k, \mathrm{stages}, x)
        \qquad \text{(eq. 5)}

    f is called exactly ``count_evaluations(K)`` times, which is stages x K for a Runge-Kutta method. g reads the stages
    that the method has computed, and costs no evaluation of f. p is the order of the step, which is lower in the first
    steps of a multistep method.

    Parameters
    ----------
    f : callable
        ``f(t, z)`` or, with ``x``, ``f(t, z, x)``; ``condition`` is passed as keywords. t is a 0-d tensor on z's device
        and in z's dtype, or in float64 if z's dtype does not resolve the span (see :func:`time_dtype`).
    z0 : Tensor of shape (batch, ...)
        Initial state. The result has its dtype and device.
    t_span : pair of float
        (start, end); end < start solves in reverse time with a negative step. May be None with ``grid``.
    n_steps : int
        K, at least 1. May be None with ``grid``.
    base_solver : str, ButcherTableau or Method
        See :func:`resolve_base_solver`.
    g : callable, sequence of callables or Correction, optional
        The correction ``g(eps, s, z, stages, x)``, which returns a tensor like z. eps is a Python float, s a 0-d
        tensor. A sequence (or ``nn.ModuleList``) holds one callable per step.
    x : Tensor, optional
        Input of a data-controlled field (eq. 1), passed to f and g.
    condition : mapping of str to Tensor, optional
        Keyword arguments of f. They are not part of the state.
    grid : sequence of float, optional
        The mesh s_0, ..., s_K, uniform or not. It must agree with t_span and n_steps where those are given.

    Returns
    -------
    Tensor like z0
        z_K. Differentiable in z0, and in the parameters of f and g.

    Raises
    ------
    ValueError
        If t_span, n_steps, grid or the name of the base solver is invalid, or a sequence g does not hold K corrections.
    TypeError
        If z0 is not a floating-point tensor with a batch axis, or base_solver is of a wrong kind.

    References
    ----------
    Poli et al. (2020), *Hypersolvers: Toward Fast Continuous-Depth Models*, section 3.1.

    Examples
    --------
    >>> import torch
    >>> from sklearn_hyper.numerics import hypersolve
    >>> hypersolve(lambda t, z: -z, torch.ones(1, 1), (0.0, 1.0), 10, "euler")  # 0.9 ** 10
    tensor([[0.3487]])
    """
    mesh = _prepare(z0, t_span, n_steps, base_solver, grid)
    return mesh.solve(f, z0, as_correction(g, mesh.n_steps), FieldInputs(x, condition or {}))


def hypersolve_trajectory(
    f: Callable[..., Tensor],
    z0: Tensor,
    t_span: Any,
    n_steps: int | None,
    base_solver: Any,
    g: Any = None,
    *,
    x: Any = None,
    condition: Mapping[str, Any] | None = None,
    grid: Sequence[float] | None = None,
) -> Tensor:
    """Return all states z_0, ..., z_K of a fixed-step solve.

    Parameters and errors are those of :func:`hypersolve`.

    Returns
    -------
    Tensor of shape (K + 1, batch, ...)
        Time first, as in torchdiffeq; entry 0 is z0.

    Examples
    --------
    >>> import torch
    >>> from sklearn_hyper.numerics import hypersolve_trajectory
    >>> hypersolve_trajectory(lambda t, z: -z, torch.ones(1, 1), (0.0, 1.0), 2, "euler").ravel()
    tensor([1.0000, 0.5000, 0.2500])
    """
    mesh = _prepare(z0, t_span, n_steps, base_solver, grid)
    return mesh.trajectory(f, z0, as_correction(g, mesh.n_steps), FieldInputs(x, condition or {}))
