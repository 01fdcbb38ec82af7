"""Dormand-Prince reference solutions. The only file that imports torchdiffeq."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchdiffeq import odeint, odeint_adjoint

from .dense_output import Piece, quartic_piece, states_at
from .protection import NO_INPUTS, FieldInputs, ProtectedField
from .row_errors import RowsError, list_rows
from .stepping import check_state
from .times import check_grid, check_resolution, time_dtype, time_tensor
from .units import absolute_tolerance

DEFAULT_TOLERANCE = 1e-6
"""rtol of references: at this value float32 solutions no longer depend on the batch they share."""

_ORDINARY = 1e3
"""Longest span, and inverse of the shortest, that suit the constants by which torchdiffeq chooses its first step."""

_HOLDS_UP = 0.1
"""Share of the largest error from which on a row counts as one of those that stopped the solver.

Errors go with the fifth power of a step. A row with a tenth of the largest error could take a step only 1.6 times as
long.
"""

MAX_EVALUATIONS = 30_000
"""Evaluations of f after which a solve is given up. A non-stiff field needs tens to thousands."""

_MIDDLE = (
    6025192743 / 30085553152 / 2, 0.0, 51252292925 / 65400821598 / 2, -2691868925 / 45128329728 / 2,
    187940372067 / 1594534317056 / 2, -1776094331 / 19743644256 / 2, 11237099 / 235043384 / 2,
)  # fmt: skip
"""Weights of dopri5's stages that give the state in the middle of a step (Shampine, 1986)."""


class ReferenceSolveError(RowsError, RuntimeError):
    """The adaptive solver could not reach the end of the time span.

    Attributes
    ----------
    rows : tuple of int
        The rows that cannot be solved. From :func:`reference_solution`: the rows that held the solver up when it gave
        up. From an estimator: all such rows, as row numbers of the X that was passed.
    """

    row_errors: Tensor | None = None
    """Error of the last step for each row, in units of the tolerance."""
    n_evaluations: int = 0

    @classmethod
    def _describe(cls, what: str, rows: Sequence[int], n_rows: int) -> str:
        stiff = "the field is stiff or its solution grows without bound on this time span"
        if len(rows) in (0, n_rows):
            start = f"{what}: {stiff}{', from every row' if rows else ''}. Loosen"
        else:
            origin = f"from {len(rows)} of {n_rows} rows ({list_rows(rows)})"
            start = f"{what}: {origin} {stiff}. Leave those rows out, or loosen"
        return (
            f"{start} rtol and atol, scale the inputs, shorten t_span, or retrain the field with weight decay or a "
            "kinetic penalty."
        )


class _Clock(NamedTuple):
    """A change of the time variable: dopri5 solves from 0 to 1, in shares of the span.

    torchdiffeq casts times to the dtype of the states, and chooses its first step by absolute constants. The first
    fails far from zero, the second on very long or very short spans. So dopri5 sees shares of the span, and f still
    gets its own time, ``start + span * share`` in ``dtype``.
    """

    start: float
    span: float
    dtype: torch.dtype

    @classmethod
    def of(cls, dtype: torch.dtype, times: Sequence[float], t_span: tuple[float, float] | None = None) -> _Clock | None:
        """Return a clock for times that torchdiffeq does not handle well, and None for all others.

        ``t_span`` is the whole span, where a solve ends before it: it sets the dtype of the times that f gets.
        """
        start, span = times[0], times[-1] - times[0]
        exact = time_dtype(dtype, times if t_span is None else t_span)
        # Float64 states need one too: far from zero, torchdiffeq's first step may be too short for float64 to resolve.
        is_near = exact == dtype and time_dtype(torch.float32, times) == torch.float32
        is_ordinary = is_near and 1 / _ORDINARY <= abs(span) <= _ORDINARY
        return None if is_ordinary else cls(start, span, exact)

    def shares(self, times: Sequence[float]) -> list[float]:
        """Return times as shares of the span; the ends are exactly 0 and 1."""
        return [0.0, *((time - self.start) / self.span for time in times[1:-1]), 1.0]

    def in_time(self, piece: Piece) -> Piece:
        """Return a step that was taken in shares of the span as one in time."""
        return piece._replace(start=self.start + self.span * piece.start, size=self.span * piece.size)


class _EvaluationLimit:
    """Count calls of f and give up past a limit, so that a stiff field cannot hang a fit."""

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
            # torchdiffeq keeps time in float64; the field gets it in z's dtype, as in our own stepping loop.
            return self.f(t.to(z.dtype), z)
        start, span, dtype = self.clock
        return span * self.f((start + span * t.double()).to(dtype), z)

    def largest_row_rms(self, error: Tensor) -> Tensor:
        """Return the RMS error of the worst row. As the solver's norm, it makes every row meet the tolerance."""
        self.row_errors = error.reshape(error.shape[0], -1).pow(2).mean(dim=1).sqrt()
        return self.row_errors.max()

    def failure(self, what: str) -> ReferenceSolveError:
        """Return the error to raise. It names the rows that held up the last step, if errors are known by row."""
        errors, rows = self.row_errors, []
        if self.state is not None and errors is not None:
            # Errors are relative to the state. Relative to an infinite one they are zero, so such rows are marked here.
            lost = ~self.state.reshape(len(errors), -1).isfinite().all(dim=1)
            errors = errors.masked_fill(lost | errors.isnan(), torch.inf).cpu()
            rows = hold_up(errors).nonzero()[:, 0].tolist()
        error: ReferenceSolveError = ReferenceSolveError.of(what, rows, len(rows) if errors is None else len(errors))
        error.row_errors, error.n_evaluations = errors, self.n_evaluations
        return error


class _Recorder(_EvaluationLimit):
    """Keep the steps that dopri5 accepts, as polynomials between which states at any times can be had.

    torchdiffeq calls ``callback_accept_step``, where an object has it. dopri5's last stage lies where its step ends,
    and is the first one of the next step.
    """

    def __init__(self, f: Callable[[Tensor, Tensor], Tensor], limit: int, clock: _Clock | None, forward: bool):
        super().__init__(f, limit, clock)
        self.forward, self.pieces = forward, list[Piece]()
        self._first: Tensor | None = None
        self._recent: tuple[Tensor, ...] = ()

    def __call__(self, t: Tensor, z: Tensor) -> Tensor:
        slope = super().__call__(t, z)
        self._first = slope if self._first is None else self._first
        self._recent = (*self._recent[-5:], slope)
        return slope

    def callback_accept_step(self, t0: Tensor, z: Tensor, dt: Tensor) -> None:
        assert self._first is not None and self.state is not None
        size = dt if self.forward else -dt  # torchdiffeq turns reversed time round
        middle = z
        for weight, stage in zip(_MIDDLE, (self._first, *self._recent), strict=True):
            middle = middle + (size * weight) * stage
        slopes = self._first, self._recent[-1]
        self.pieces.append(quartic_piece(t0, size, (z, self.state), middle, slopes))
        self._first = self._recent[-1]


def hold_up(errors: Tensor) -> Tensor:
    """Return the mask of the rows that need steps about as small as the one that stopped the solver."""
    worst = errors.max()
    # If some errors are infinite, those rows alone stopped the solver.
    return errors >= (worst if worst.isinf() else _HOLDS_UP * worst.clamp(max=1))


def check_tolerance(name: str, value: Any) -> Any:
    """Return a tolerance as a positive finite float. A tensor of such numbers, for atol, is returned as it is."""
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
    """Solve with dopri5 and return the states at given times, each as accurate as the tolerance.

    The solver steps *onto* every time instead of interpolating. It keeps the tolerance for the worst row instead of the
    batch's mean. So a row's solution depends on the other rows by no more than the tolerance.

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
        Absolute tolerance in the units of the states; a tensor broadcasts to them. If missing, it is ``rtol`` times the
        RMS of z0 over the batch, by feature or channel.
    x : Tensor, optional
        Input of a data-controlled field.
    condition : mapping of str to Tensor, optional
        Keyword arguments of the field.
    max_evaluations : int, default 30,000
        Evaluations of f after which the solve is given up.

    Returns
    -------
    Tensor of shape (T, batch, ...)
        In z0's dtype and on its device, detached from the graph.

    Raises
    ------
    ReferenceSolveError
        If the step size underflows, a value is not finite, or ``max_evaluations`` is exceeded. Its ``rows`` are the
        rows that held the solver up.

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
    """Return the terminal state by torchdiffeq's plain dopri5, differentiable: for training and for timing.

    Parameters are those of :func:`reference_solution`; ``inputs`` holds x and the condition. With ``adjoint_params``,
    gradients with respect to those tensors come from the adjoint method, in constant memory. Otherwise they come from
    backpropagation through the solver.
    """
    solver = odeint if adjoint_params is None else _adjoint(adjoint_params)
    return _solve(solver, f, z0, t_span, rtol, atol, inputs, max_evaluations)[-1]


def _adjoint(adjoint_params: Iterable[Tensor]) -> Callable[..., Tensor]:
    """Return torchdiffeq's solver whose gradients with respect to these tensors come from the adjoint method."""
    params = tuple(adjoint_params)

    def adjoint(field: Any, start: Tensor, mesh: Tensor, *, rtol: float, atol: Any, **how: Any) -> Tensor:
        if not isinstance(atol, Tensor):
            return odeint_adjoint(field, start, mesh, rtol=rtol, atol=atol, adjoint_params=params, **how)
        # torchdiffeq uses one tolerance for the states and for the gradients by them, which have inverse units. So
        # solve in units of the states, where both are plain numbers.
        unit = (atol / rtol).to(start)
        # The gradient that the adjoint starts from may have any size, so its tolerance is set from that size below.
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

    return adjoint


def solve_dopri5_at(
    f: Callable[..., Tensor],
    z0: Tensor,
    t_span: tuple[float, float],
    times: Tensor,
    *,
    rtol: float,
    atol: float | Tensor | None = None,
    inputs: FieldInputs = NO_INPUTS,
    adjoint_params: Iterable[Tensor] | None = None,
    max_evaluations: int = MAX_EVALUATIONS,
    by_row: bool = False,
) -> Tensor:
    """Return states at times of their own for each row, differentiable: those between steps by interpolation.

    A solve ends at the last time that is asked for. With the adjoint method, memory grows by one evaluation of f for
    each step.

    Parameters
    ----------
    f, z0, t_span, rtol, atol, inputs, adjoint_params, max_evaluations
        As those of :func:`solve_dopri5`.
    times : Tensor of shape (batch, n_times)
        In float64, within ``t_span``; nan where a row has no further time.
    by_row : bool, default False
        Keep the tolerance for the worst row, as :func:`reference_solution` does, instead of the batch's mean.

    Returns
    -------
    Tensor of shape (batch, n_times, ...)
        Zero where the time is nan.
    """
    start, known = t_span[0], times[~times.isnan()]
    last = float(known.max() if t_span[1] > start else known.min())
    if last == start:
        return states_at([], z0, times)
    how: dict[str, Any] = {
        "rtol": rtol, "atol": atol, "inputs": inputs, "max_evaluations": max_evaluations, "by_row": by_row,
        "t_span": t_span,
    }  # fmt: skip
    pieces: list[Piece] = []
    if adjoint_params is None or not torch.is_grad_enabled():
        _solve(odeint, f, z0, (start, last), **how, pieces=pieces)
        return states_at(pieces, z0, times)
    # Each time at which the adjoint has a state costs it a solve back, and a batch of irregular times has many. So ask
    # it for the states that dopri5's own interpolation needs, which are fewer.
    with torch.no_grad():
        _solve(odeint, f, z0, (start, last), **how, pieces=pieces, onto_end=True)
    nodes = [*(float(piece.start) for piece in pieces), last]
    middles = [(before + after) / 2 for before, after in pairwise(nodes)]
    mesh = [time for pair in zip(nodes, middles, strict=False) for time in pair] + [last]
    states = _solve(_adjoint(adjoint_params), f, z0, mesh, **how)
    field = ProtectedField(f, inputs)
    slopes = [field(time_tensor(time, z0, t_span), z) for time, z in zip(nodes, states[::2], strict=True)]
    found = [
        quartic_piece(piece.start, piece.size, ends, middle, ahead)
        for piece, ends, middle, ahead in zip(
            pieces, pairwise(states[::2]), states[1::2], pairwise(slopes), strict=True
        )
    ]
    return states_at(found, z0, times)


def gave_up(error: AssertionError) -> bool:
    """Return whether this error is torchdiffeq's for a step size that underflowed or a state that is not finite."""
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
    t_span: tuple[float, float] | None = None,
    pieces: list[Piece] | None = None,
    onto_end: bool = False,
) -> Tensor:
    """Solve, and add the steps to ``pieces`` where a list is given; ``t_span`` as for :meth:`_Clock.of`."""
    rtol = check_tolerance("rtol", rtol)
    atol = check_tolerance("atol", absolute_tolerance(atol, rtol, z0))
    clock = _Clock.of(z0.dtype, times, t_span)
    # Times stay in float64 for states of any dtype: rounding them to float32 would move the mesh.
    mesh = torch.tensor(times if clock is None else clock.shares(times), dtype=torch.float64, device=z0.device)
    field = ProtectedField(f, inputs)
    limited = _EvaluationLimit(field, max_evaluations, clock)
    if pieces is not None:
        limited = _Recorder(field, max_evaluations, clock, forward=bool(mesh[-1] > mesh[0]))
    options: dict[str, Any] = {"dtype": torch.float64}
    if by_row or onto_end:
        # Name the last time too. Otherwise the solver steps past it, evaluates f there and interpolates back.
        options["step_t"] = mesh[1:]
    if by_row:
        options["norm"] = limited.largest_row_rms
    try:
        solution = solver(limited, z0, mesh, rtol=rtol, atol=atol, method="dopri5", options=options)
    except AssertionError as error:
        if not gave_up(error):
            raise  # it comes from the user's field
        raise limited.failure(f"dopri5 failed ({str(error).split(':')[0].splitlines()[0]})") from error
    if not torch.isfinite(solution).all():
        raise limited.failure("dopri5 returned values that are not finite")
    if isinstance(limited, _Recorder) and pieces is not None:
        pieces += limited.pieces if clock is None else [clock.in_time(piece) for piece in limited.pieces]
    return solution
