"""The stepping loop: fixed-step solves with or without a correction (paper, eqs. 2, 4 and 5)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import islice, pairwise
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from .base_solvers import BaseSolver, Field, mesh_nodes, owns_mesh, resolve_base_solver
from .protection import ProtectedField

Correction: TypeAlias = Callable[..., Tensor]
"""g(eps, s, z, stages, x) -> tensor like z."""

_FINE, _FINEST = 1e-5, 1e-6
"""Share of a span that the rounding of its times may reach: in the states' dtype, and in float64."""
# Half precision resolves no span so well; where a few of its steps do not cover a span, the states' own dtype will do.
_REACH = {
    dtype: max(_FINE / torch.finfo(dtype).eps, 4.0)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
}
"""How many times its length a span may lie from zero, for its times to be of the states' dtype."""
_EPS = torch.finfo(torch.float64).eps


def check_t_span(t_span: Any) -> tuple[float, float]:
    """Return ``t_span`` as two Python floats, or say what is wrong with it."""
    try:
        start, end = (float(value) for value in t_span)
    except (TypeError, ValueError) as error:
        raise ValueError(f"t_span must be a pair of numbers (start, end), got {t_span!r}.") from error
    if not (math.isfinite(start) and math.isfinite(end)):
        raise ValueError(f"t_span must be finite, got {t_span!r}.")
    if start == end:
        raise ValueError(f"t_span must have two different ends, got {t_span!r}.")
    check_resolution("t_span", (start, end))
    return start, end


def check_resolution(name: str, times: Sequence[float]) -> None:
    """Refuse times so far from zero that not even float64 tells the points of a solve between them apart."""
    far = max(abs(times[0]), abs(times[-1]))
    if not _EPS * far <= _FINEST * abs(times[-1] - times[0]) < math.inf:
        raise ValueError(
            f"{name} from {times[0]!r} to {times[-1]!r} lies so far from zero that float64 does not resolve it (its numbers are "
            f"{_EPS * far:.1g} apart there): measure time from the start of the span."
        )


def time_dtype(dtype: torch.dtype, times: Sequence[float]) -> torch.dtype:
    """The dtype in which f gets the time of a solve from the first to the last of ``times``.

    It is the states' own where that resolves the span to 1e-5 of it, else float64 (Unix times in float32 are 128 seconds
    apart). A 0-d tensor of float64 leaves a float32 state's dtype as it is in arithmetic.
    """
    start, end = times[0], times[-1]
    return dtype if max(abs(start), abs(end)) <= _REACH[dtype] * abs(end - start) else torch.float64


def time_tensor(values: Any, like: Tensor, times: Sequence[float]) -> Tensor:
    """Times as f gets them, on the device of ``like``: a number as a 0-d tensor; of a solve as in :func:`time_dtype`."""
    dtype = time_dtype(like.dtype, times)
    return like.new_tensor(values) if dtype == like.dtype else like.new_tensor(values, dtype=dtype)


def check_n_steps(n_steps: Any, name: str = "n_steps") -> int:
    """Return ``n_steps`` as an int of at least 1 (NumPy integers pass, 2.0 and True do not)."""
    try:
        value = n_steps.__index__()
    except (AttributeError, TypeError):  # arrays have an __index__ that refuses
        value = 0
    if isinstance(n_steps, bool) or value < 1:
        raise ValueError(f"{name} must be an integer >= 1, got {n_steps!r}.")
    return int(value)


def uniform_grid(t_span: Any, n_steps: int) -> tuple[float, ...]:
    """The mesh s_0, ..., s_K of K equal steps; both ends are hit exactly."""
    start, end = check_t_span(t_span)
    n_steps = check_n_steps(n_steps)
    inner = (start + (end - start) * (k / n_steps) for k in range(1, n_steps))
    return (start, *inner, end)


def solver_mesh(solver: BaseSolver, t_span: Any, n_steps: int) -> tuple[float, ...]:
    """The mesh of a solve in K steps: the solver's own where it has one, and then for its K alone; else a uniform one."""
    if not owns_mesh(solver):
        return uniform_grid(t_span, n_steps)
    if solver.n_steps != check_n_steps(n_steps):
        raise ValueError(
            f"base_solver={solver.name!r} is made for n_steps={solver.n_steps} alone, got n_steps={n_steps}; "
            "fit it anew, or fit a base solver that takes any number of steps (base_solver='ab2', or 'auto' with "
            "fit_n_steps=(a, b))."
        )
    return tuple(solver.mesh(t_span))


def check_grid(grid: Sequence[float] | Tensor, t_span: Any = None, n_steps: int | None = None) -> tuple[float, ...]:
    """Validate a mesh of the user's own: finite, strictly monotone, in line with t_span and n_steps."""
    mesh = tuple(float(s) for s in grid)
    steps = [after - before for before, after in pairwise(mesh)]
    if not steps or not all(math.isfinite(s) for s in mesh) or not (min(steps) > 0 or max(steps) < 0):
        raise ValueError(f"grid must hold at least two finite, strictly monotone times, got {grid!r}.")
    if t_span is not None and check_t_span(t_span) != (mesh[0], mesh[-1]):
        raise ValueError(f"grid runs from {mesh[0]} to {mesh[-1]}, which contradicts t_span={t_span!r}.")
    if n_steps is not None and check_n_steps(n_steps) != len(steps):
        raise ValueError(f"grid has {len(steps)} steps, which contradicts n_steps={n_steps}.")
    return mesh


def bind_input(f: Callable[..., Tensor], x: Any) -> Field:
    """Bind the input of a data-controlled field, so that the solvers see f(t, z), and keep its writing its own."""
    return ProtectedField(f, x)


class Itinerary(NamedTuple):
    """What a solver does along a mesh, whatever the state."""

    steps: list[Any]
    """Step sizes."""
    n_nodes: list[int]
    """Times at which every step evaluates f: how many."""
    times: list[Any]
    """All of them."""

    @classmethod
    def of(cls, solver: BaseSolver, grid: Sequence[float] | Tensor) -> Itinerary:
        """Computed once where many solves follow: it takes as long as evaluating a small field."""
        nodes = mesh_nodes(solver, grid)  # type: ignore[arg-type]
        steps = [after - before for before, after in pairwise(grid)]
        return cls(steps, [len(step) for step in nodes], [time for step in nodes for time in step])


def iterate_states(
    f: Callable[..., Tensor],
    z0: Tensor,
    grid: Sequence[float] | Tensor,
    solver: BaseSolver,
    g: Correction | Sequence[Correction] | None = None,
    x: Any = None,
    itinerary: Itinerary | None = None,
) -> Iterator[Tensor]:
    """Yield z_1, ..., z_K (eq. 5); g is one for all steps, or a sequence of them, one a step.

    Every fixed-step solve of the library runs through this loop.
    """
    field = bind_input(f, x)
    steps, n_nodes, flat = itinerary or Itinerary.of(solver, grid)
    # One tensor for all node times, made before the loop: no transfer to the device in it. A mesh that is being learned
    # consists of tensors already.
    times: Iterator[Any] = iter(flat if isinstance(grid, Tensor) else time_tensor(flat, z0, grid).unbind())
    corrections: Any = g if _is_one_a_step(g) else [g] * len(steps)
    z, history = z0, ()
    for eps, n_times, correction in zip(steps, n_nodes, corrections, strict=True):
        step_times = list(islice(times, n_times))
        psi, stages, order, history = solver.step(field, step_times, z, eps, history)
        z_next = _add(z, psi, eps)
        if correction is not None:
            z_next = _add(z_next, correction(eps, step_times[0], z, stages, x), eps ** (order + 1))
        z = z_next
        yield z


def _add(z: Tensor, direction: Tensor, scale: float | Tensor) -> Tensor:
    # alpha takes numbers only, and is one operation where they are.
    return z + scale * direction if isinstance(scale, Tensor) else z.add(direction, alpha=scale)


def _is_one_a_step(g: Any) -> bool:
    return isinstance(g, (Sequence, nn.ModuleList))


def _prepare(
    z0: Tensor, t_span: Any, n_steps: Any, base_solver: Any, g: Any, grid: Any
) -> tuple[tuple[float, ...], BaseSolver]:
    _check_state(z0)
    solver = resolve_base_solver(base_solver)
    mesh = solver_mesh(solver, t_span, n_steps) if grid is None else check_solver_grid(solver, grid, t_span, n_steps)
    if _is_one_a_step(g) and len(g) != len(mesh) - 1:
        raise ValueError(
            f"g holds {len(g)} corrections for {len(mesh) - 1} steps; pass one a step, or a single one for all."
        )
    return mesh, solver


def _check_state(z0: Any) -> None:
    if not isinstance(z0, Tensor) or not z0.is_floating_point() or z0.ndim < 1:
        raise TypeError(f"z0 must be a floating-point tensor of shape (batch, ...), got {z0!r}.")


def check_solver_grid(
    solver: BaseSolver, grid: Sequence[float] | Tensor, t_span: Any = None, n_steps: int | None = None
) -> tuple[float, ...]:
    """A mesh of the user's own, checked by itself and against a solver that is made for one mesh alone."""
    mesh = check_grid(grid, t_span, n_steps)
    check_resolution("grid", mesh)
    if owns_mesh(solver):
        solver_mesh(solver, (mesh[0], mesh[-1]), len(mesh) - 1)  # refuses another number of steps
        check_own_mesh(mesh, solver)
    return mesh


def check_own_mesh(mesh: tuple[float, ...], solver: BaseSolver) -> None:
    """Refuse a mesh that a solver made for a mesh of its own is not made for; the first steps of it may stand alone."""
    if not owns_mesh(solver):
        return
    own = solver.mesh((0.0, 1.0))
    n = min(len(mesh), len(own))
    span = (mesh[n - 1] - mesh[0]) / own[n - 1]
    off = [abs(s - mesh[0] - span * share) for s, share in zip(mesh, own, strict=False)]
    if len(mesh) > len(own) or max(off) > 1e-6 * max(abs(span), abs(mesh[0]), abs(mesh[-1])):
        raise ValueError(
            f"grid={mesh} is not the mesh that base_solver={solver.name!r} is made for, {own} as shares of the span; leave "
            "grid=None, or take another base solver, such as 'ab2'."
        )


def hypersolve(
    f: Callable[..., Tensor],
    z0: Tensor,
    t_span: Any,
    n_steps: int | None,
    base_solver: Any,
    g: Correction | Sequence[Correction] | None = None,
    *,
    x: Any = None,
    grid: Sequence[float] | None = None,
) -> Tensor:
    r"""Terminal state of a fixed-step solve, corrected by g where one is given.

    .. math::

        z_{k+1} = z_k + \epsilon_k \psi(s_k, x, z_k)
                + \epsilon_k^{p+1} g(\epsilon_k, s_k, z_k, \mathrm{stages}, x)
        \qquad \text{(eq. 5)}

    f is called exactly as often as the base solver's ``count_evaluations(K)`` says (stages x K times for a Runge-Kutta
    method); g reads the stages that are there and costs no f. p is the order of the step: start-up steps of a multistep
    method have a lower one.

    Parameters
    ----------
    f : callable
        ``f(t, z)`` or, with ``x``, ``f(t, z, x)``; t is a 0-d tensor on z's device and of its dtype, or of float64 where that
        does not resolve the span (see :func:`time_dtype`).
    z0 : Tensor of shape (batch, ...)
        Initial state. The result has its dtype and device.
    t_span : pair of float
        (start, end); end < start solves in reverse time with a negative step. May be None with ``grid``.
    n_steps : int
        K, at least 1. May be None with ``grid``.
    base_solver : str, ButcherTableau or base solver
        See :func:`resolve_base_solver`.
    g : callable or sequence of callables, optional
        The correction, ``g(eps, s, z, stages, x)`` -> tensor like z; eps is a Python float, s a 0-d tensor. A sequence
        (or ``nn.ModuleList``) holds one a step.
    x : Tensor, optional
        Input of a data-controlled field (eq. 1), handed to f and g.
    grid : sequence of float, optional
        The mesh s_0, ..., s_K itself, uniform or not; it must agree with t_span and n_steps where those are given.

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
    mesh, solver = _prepare(z0, t_span, n_steps, base_solver, g, grid)
    return last_state(f, z0, mesh, solver, g, x)


def last_state(
    f: Callable[..., Tensor],
    z0: Tensor,
    mesh: tuple[float, ...],
    solver: BaseSolver,
    g: Correction | Sequence[Correction] | None = None,
    x: Any = None,
    itinerary: Itinerary | None = None,
) -> Tensor:
    """z_K of a solve whose solver, mesh and corrections have been checked before: once, where many solves follow."""
    _check_state(z0)
    z = z0
    for z in iterate_states(f, z0, mesh, solver, g, x, itinerary):  # noqa: B007 - the last state is the result
        pass
    return z


def all_states(
    f: Callable[..., Tensor],
    z0: Tensor,
    mesh: tuple[float, ...],
    solver: BaseSolver,
    g: Correction | Sequence[Correction] | None = None,
    x: Any = None,
    itinerary: Itinerary | None = None,
) -> Tensor:
    """z_0, ..., z_K, time first, as :func:`last_state` gives the last of them."""
    _check_state(z0)
    return torch.stack([z0, *iterate_states(f, z0, mesh, solver, g, x, itinerary)])


def hypersolve_trajectory(
    f: Callable[..., Tensor],
    z0: Tensor,
    t_span: Any,
    n_steps: int | None,
    base_solver: Any,
    g: Correction | Sequence[Correction] | None = None,
    *,
    x: Any = None,
    grid: Sequence[float] | None = None,
) -> Tensor:
    """All states z_0, ..., z_K of the solve that :func:`hypersolve` makes.

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
    mesh, solver = _prepare(z0, t_span, n_steps, base_solver, g, grid)
    return all_states(f, z0, mesh, solver, g, x)
