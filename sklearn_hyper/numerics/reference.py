"""Dormand-Prince reference solutions. The only file that imports torchdiffeq."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchdiffeq import odeint, odeint_adjoint

from .protection import NO_INPUTS, FieldInputs, ProtectedField
from .row_errors import RowsError, list_rows
from .stepping import check_state
from .times import check_grid, check_resolution, time_dtype
from .units import absolute_tolerance

DEFAULT_TOLERANCE = 1e-6
"""rtol of references: at this value float32 solutions no longer depend on the batch they share."""

_ORDINARY = 1e3
"""torchdiffeq's first step has constants of its own, which suit spans up to so long, or so short."""

_HOLDS_UP = 0.1
"""Rows whose error is at least this share of what stopped the solver need steps all but as small: errors go with the fifth
power of a step, so a tenth is a step 1.6 times as long."""

MAX_EVALUATIONS = 30_000
"""Evaluations of f after which a solve is given up. A non-stiff field needs tens to thousands."""


class ReferenceSolveError(RowsError, RuntimeError):
    """The adaptive solver could not reach the end of the time span.

    Attributes
    ----------
    rows : tuple of int
        The rows that it cannot solve. From :func:`reference_solution`, those that held it up when it gave up; from an
        estimator, all that cannot be solved, as row numbers of the X that was passed.
    """

    row_errors: Tensor | None = None
    """Errors of the last step by row, in units of the tolerance."""
    n_evaluations: int = 0

    @classmethod
    def _describe(cls, what: str, rows: Sequence[int], n_rows: int) -> str:
        stiff = "the field is stiff or its solution grows without bound on this time span"
        if len(rows) in (0, n_rows):
            start = f"{what}: {stiff}{', from every row' if rows else ''}. Loosen"
        else:
            start = f"{what}: from {len(rows)} of {n_rows} rows ({list_rows(rows)}) {stiff}. Leave those rows out, or loosen"
        return (
            f"{start} rtol and atol, scale the inputs, shorten t_span, or retrain the field with weight decay or a "
            "kinetic "
            "penalty."
        )


class _Clock(NamedTuple):
    """Where dopri5 solves in shares of the span: what they mean to f, and the dtype in which it gets its time."""

    start: float
    span: float
    dtype: torch.dtype

    @classmethod
    def of(cls, dtype: torch.dtype, times: Sequence[float]) -> _Clock | None:
        """A clock for times far from zero, which torchdiffeq casts to the states' dtype, or of unusual units."""
        start, span = times[0], times[-1] - times[0]
        exact = time_dtype(dtype, times)
        # Float64 states too: torchdiffeq's first step may be shorter than what float64 resolves far from zero.
        is_near = exact == dtype and time_dtype(torch.float32, times) == torch.float32
        is_ordinary = is_near and 1 / _ORDINARY <= abs(span) <= _ORDINARY
        return None if is_ordinary else cls(start, span, exact)

    def shares(self, times: Sequence[float]) -> list[float]:
        """Times as shares of the span, both ends exact."""
        return [0.0, *((time - self.start) / self.span for time in times[1:-1]), 1.0]


class _EvaluationLimit:
    """Counts calls of f and gives up past a limit, so that a stiff field cannot hang a fit."""

    def __init__(self, f: Callable[[Tensor, Tensor], Tensor], limit: int, clock: _Clock | None = None):
        self.f, self.limit, self.n_evaluations, self.clock = f, limit, 0, clock
        self.state: Tensor | None = None
        self.row_errors: Tensor | None = None

    def __call__(self, t: Tensor, z: Tensor) -> Tensor:
        self.n_evaluations += 1
        if self.n_evaluations > self.limit:
            raise self.failure(f"dopri5 needed more than {self.limit} evaluations of the vector field")
        self.state = z
        if self.clock is None:
            # torchdiffeq keeps time in float64; the field sees z's dtype, as in our own loop.
            return self.f(t.to(z.dtype), z)
        start, span, dtype = self.clock
        return span * self.f((start + span * t.double()).to(dtype), z)

    def largest_row_rms(self, error: Tensor) -> Tensor:
        """RMS of the worst row: every row meets the tolerance, whatever batch it shares."""
        self.row_errors = error.reshape(error.shape[0], -1).pow(2).mean(dim=1).sqrt()
        return self.row_errors.max()

    def failure(self, what: str) -> ReferenceSolveError:
        """The error, with the rows that held up the last step: none, where the solver's norm is not by row."""
        errors, rows = self.row_errors, []
        if self.state is not None and errors is not None:
            # An error relative to an infinite state is zero.
            lost = ~self.state.reshape(len(errors), -1).isfinite().all(dim=1)
            errors = errors.masked_fill(lost | errors.isnan(), torch.inf).cpu()
            rows = hold_up(errors).nonzero()[:, 0].tolist()
        error: ReferenceSolveError = ReferenceSolveError.of(what, rows, len(rows) if errors is None else len(errors))
        error.row_errors, error.n_evaluations = errors, self.n_evaluations
        return error


def hold_up(errors: Tensor) -> Tensor:
    """Mask of the rows that need steps all but as small as the one that stopped the solver."""
    worst = errors.max()
    # Next to what is not finite, a row with an error at the tolerance is none that stops a step.
    return errors >= (worst if worst.isinf() else _HOLDS_UP * worst.clamp(max=1))


def check_tolerance(name: str, value: Any) -> Any:
    """Return a tolerance as a positive finite float; atol may be a tensor of them."""
    if isinstance(value, Tensor) and value.ndim and bool(((value > 0) & value.isfinite()).all()):
        return value
    if isinstance(value, (bool, str)) or not hasattr(value, "__float__") or not 0 < float(value) < float("inf"):
        raise ValueError(f"{name} must be a positive finite number, got {value!r}.")
    return float(value)


def reference_solution(
    f: Callable[..., Tensor],
    z0: Tensor,
    times: Sequence[float] | Tensor,
    *,
    rtol: float = DEFAULT_TOLERANCE,
    atol: float | Tensor | None = None,
    x: Any = None,
    condition: Mapping[str, Any] | None = None,
    max_evaluations: int = MAX_EVALUATIONS,
) -> Tensor:
    """Dopri5 states at given times, each as accurate as the tolerance.

    The solver steps *onto* every time instead of interpolating, and holds the tolerance for the worst
    row instead of the batch's mean, so a row's solution does not depend on its neighbours beyond the tolerance.

    Parameters
    ----------
    f : callable
        ``f(t, z)`` or, with ``x``, ``f(t, z, x)``; t as in :func:`hypersolve`.
    z0 : Tensor of shape (batch, ...)
        State at ``times[0]``.
    times : sequence of T floats
        Strictly monotone, in either direction.
    rtol : float, default 1e-6
        Relative tolerance of the local error.
    atol : float or Tensor, optional
        Absolute tolerance, in the units of the states; a tensor broadcasts to them. Missing: ``rtol`` times the size of
        z0, its RMS over the batch by feature or channel.
    x : Tensor, optional
        Input of a data-controlled field.
    condition : mapping of str to Tensor, optional
        Keyword arguments of the field.
    max_evaluations : int, default 30,000
        The solve is given up after this many evaluations of f.

    Returns
    -------
    Tensor of shape (T, batch, ...)
        In z0's dtype and on its device, detached from the graph.

    Raises
    ------
    ReferenceSolveError
        If the step size underflows, a value is not finite, or ``max_evaluations`` is exceeded; its ``rows`` are those
        that held the solver up.

    Examples
    --------
    >>> import math, torch
    >>> from sklearn_hyper.numerics import reference_solution
    >>> z = reference_solution(lambda t, z: -z, torch.ones(1, 1).double(), [0.0, 0.5, 1.0])
    >>> abs(z[-1].item() - math.exp(-1)) < 1e-6
    True
    """
    check_state(z0)
    mesh = check_grid(times)
    check_resolution("times", mesh)
    with torch.no_grad():
        inputs = FieldInputs(x, condition or {})
        return _solve(odeint, f, z0, mesh, rtol, atol, inputs, max_evaluations, by_row=True)


def solve_dopri5(
    f: Callable[..., Tensor],
    z0: Tensor,
    t_span: tuple[float, float],
    *,
    rtol: float,
    atol: float | Tensor | None = None,
    inputs: FieldInputs = NO_INPUTS,
    adjoint_params: Iterable[Tensor] | None = None,
    max_evaluations: int = MAX_EVALUATIONS,
) -> Tensor:
    """Terminal state by torchdiffeq's dopri5 as it comes, differentiable: for training and for timing.

    Parameters are those of :func:`reference_solution`, ``inputs`` being x and the condition; with ``adjoint_params``
    gradients are computed by the adjoint method with respect to those tensors (constant memory), otherwise by
    backpropagation through the solver.
    """
    if adjoint_params is None:
        return _solve(odeint, f, z0, t_span, rtol, atol, inputs, max_evaluations)[-1]
    params = tuple(adjoint_params)

    def adjoint(field: Any, start: Tensor, mesh: Tensor, *, rtol: float, atol: Any, **how: Any) -> Tensor:
        if not isinstance(atol, Tensor):
            return odeint_adjoint(field, start, mesh, rtol=rtol, atol=atol, adjoint_params=params, **how)
        # In units of the states: the adjoint's gradients, which have the tolerances of the states, have their
        # inverse's.
        unit = (atol / rtol).to(start)
        # What is an error of the adjoint is told by the gradient that it starts from: it may be of any size.
        adjoint_atol = torch.full((), rtol, dtype=torch.float64, device=start.device)

        def in_units(t: Tensor, u: Tensor) -> Tensor:
            return field(t, u * unit) / unit

        def measure(gradient: Tensor) -> None:
            adjoint_atol.fill_(rtol * float(gradient.abs().amax().clamp(min=torch.finfo(gradient.dtype).tiny)))

        solution = odeint_adjoint(
            in_units, start / unit, mesh, rtol=rtol, atol=rtol, adjoint_atol=adjoint_atol, adjoint_params=params, **how
        )  # fmt: skip
        if solution.requires_grad:
            solution.register_hook(measure)
        return unit * solution

    return _solve(adjoint, f, z0, t_span, rtol, atol, inputs, max_evaluations)[-1]


def gave_up(error: AssertionError) -> bool:
    """Whether this is torchdiffeq's way to say that the step size underflowed or a state is not finite."""
    return str(error).startswith(("underflow in dt", "non-finite values"))


def _solve(
    solver: Callable[..., Tensor],
    f: Callable[..., Tensor],
    z0: Tensor,
    times: Sequence[float],
    rtol: float,
    atol: float | Tensor | None,
    inputs: FieldInputs,
    max_evaluations: int,
    by_row: bool = False,
) -> Tensor:
    rtol = check_tolerance("rtol", rtol)
    atol = check_tolerance("atol", absolute_tolerance(atol, rtol, z0))
    clock = _Clock.of(z0.dtype, times)
    # Times stay in float64 whatever z's dtype: rounding them to float32 would move the mesh.
    mesh = torch.tensor(times if clock is None else clock.shares(times), dtype=torch.float64, device=z0.device)
    limited = _EvaluationLimit(ProtectedField(f, inputs), max_evaluations, clock)
    options: dict[str, Any] = {"dtype": torch.float64}
    if by_row:
        # The last time too: left out, the solver steps past it, evaluates f out there and interpolates back.
        options |= {"norm": limited.largest_row_rms, "step_t": mesh[1:]}
    try:
        solution = solver(limited, z0, mesh, rtol=rtol, atol=atol, method="dopri5", options=options)
    except AssertionError as error:
        if not gave_up(error):
            raise  # an assertion in the user's field
        raise limited.failure(f"dopri5 failed ({str(error).split(':')[0].splitlines()[0]})") from error
    if not torch.isfinite(solution).all():
        raise limited.failure("dopri5 returned values that are not finite")
    return solution
