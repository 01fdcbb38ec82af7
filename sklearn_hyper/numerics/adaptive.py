"""Adaptive stepping: each row of a batch chooses its own steps, by an estimate of their errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.compiler import is_compiling, is_exporting

from .correction import Correction
from .methods.method import Field, Method, StepPlan
from .protection import NO_INPUTS, FieldInputs, ProtectedField
from .reference import check_tolerance, hold_up
from .row_errors import RowsError, list_rows
from .stepping import Stepping, check_state
from .tensors import flatten_samples, per_row
from .times import check_n_steps, check_t_span, time_dtype
from .units import absolute_tolerance

MAX_ATTEMPTS = 10_000
"""Steps, taken or repeated, after which a solve is given up. One that pays takes tens to hundreds."""
_SAFETY, _LEAST_FACTOR, _LARGEST_FACTOR = 0.9, 0.2, 5.0
"""Aim at nine tenths of the largest step that the tolerance allows; change a step by no more than these factors."""
_PROPORTIONAL, _INTEGRAL = 0.7, 0.4
"""Weights of the PI controller, Hairer and Wanner's, in units of one over the order of the estimate."""
_LEAST_ERROR = 1e-4
"""A smaller error of the last step counts as this, so that one lucky step does not hold back the next."""
_SHORTEST = 1e-12
"""Shortest step, as a share of the span."""
_TIMES = ("shared", "rows", "none")


class StepLimitError(RowsError, RuntimeError):
    """An adaptive solve needs too many steps, or too short ones, from some rows.

    Attributes
    ----------
    rows : tuple of int
        These rows.
    """

    @classmethod
    def _describe(cls, what: str, rows: Sequence[int], n_rows: int) -> str:
        return (
            f"{what} from {len(rows)} of {n_rows} rows ({list_rows(rows)}): the field is stiff there, or its solution "
            "grows without bound. Loosen the tolerance (step_rtol of an estimator), shorten t_span, or leave those "
            "rows out."
        )


class Adaptive(Stepping):
    r"""Choose each step by an estimate of its error: long steps where the dynamics are slow, short ones where not.

    A step of size :math:`\epsilon` is taken if its estimated error e passes, and repeated with a smaller one if not:

    .. math::

        E = \mathrm{rms}_i\, \frac{|e_i|}{\mathrm{atol}_i + \mathrm{rtol} \max(|z_i|, |z'_i|)} \le 1, \qquad
        \epsilon' = \epsilon \cdot 0.9\, E^{-0.7 / q}\, E_{\mathrm{last}}^{\,0.4 / q}

    The second formula, a PI controller, gives the size of the next step. q is the order of the estimate.

    The estimate is that of the base step. With a correction it is :math:`e = \epsilon^{p+1} g`, which costs no
    evaluation of f; the state goes on with the correction added. Without one, it is that of the method: of a tableau
    with ``embedded`` weights, or Milne's of "abm2". So the tolerance bounds the error of steps without correction, and
    the solution is usually more accurate than it says.

    f at the start of a step that is repeated is not evaluated again, nor is the last stage of a tableau whose last
    stage is the next step's first.

    Parameters
    ----------
    method : Method
        Takes the steps. With ``times`` other than "shared", or with a correction, it must be a one-step method.
    t_span : pair of float
    rtol : float
        Tolerance of a step, relative to the state.
    atol : float or Tensor, optional
        Absolute tolerance of a step, or one of each feature. By default ``rtol`` times the size of the initial states: their RMS by feature
        over the batch. Pass ``atol`` or ``sizes`` if a row's steps must not depend on the batch that it is in.
    sizes : sequence of float, optional
        Sizes of the states by feature, from which the default of ``atol`` is taken instead.
    times : {"shared", "rows", "none"}, default "shared"
        What f takes as its time. "shared": one time, so all rows share their steps, which are as short as the worst
        row needs. "rows": a vector with one time a row; each row has its own steps, and rows that have arrived leave
        the batch. "none": f does not depend on time, so each row has its own steps, and f always gets the start of the
        span.
    max_step : float, optional
        Longest step. By default the span. A correction is not to be trusted at steps longer than it was fitted for.
    n_outputs : int, default 10
        :meth:`trajectory` gives states at this many equal distances, by cubic Hermite interpolation between the steps.
        That takes one more evaluation of f, at the end.
    adds_correction : bool, default True
        Whether the correction is added to the state. If False it only estimates the error.
    max_attempts : int, default 10000
        Steps, taken or repeated, after which the solve is given up.

    Raises
    ------
    StepLimitError
        From a solve, if rows need more than ``max_attempts`` steps, or steps below 1e-12 of the span. It names them.

    References
    ----------
    Hairer, Norsett, Wanner (1993), *Solving Ordinary Differential Equations I*, section II.4, and Hairer, Wanner
    (1996), *II*, section IV.2, for the controller. Poli et al. (2020), section 6, for adaptive hypersolvers.

    Examples
    --------
    A row that starts slowly takes longer steps than one that starts fast:

    >>> import torch
    >>> from sklearn_hyper.numerics import Adaptive, CountedField, resolve_base_solver
    >>> rk3 = resolve_base_solver("rk3")  # its embedded method is the midpoint method
    >>> f, stepping = CountedField(lambda t, z: -(z**3)), Adaptive(rk3, (0.0, 2.0), 1e-4, 1e-4, times="none")
    >>> z0 = torch.tensor([[0.1], [3.0]], dtype=torch.float64)
    >>> bool((stepping.solve(f, z0) - (z0**-2 + 4) ** -0.5).abs().max() < 1e-4)
    True
    >>> f.n_rows_evaluated < 2 * f.n_evaluations  # the first row arrives earlier
    True
    """

    def __init__(
        self,
        method: Method,
        t_span: Any,
        rtol: float,
        atol: float | Tensor | None = None,
        *,
        sizes: Sequence[float] | None = None,
        times: str = "shared",
        max_step: float | None = None,
        n_outputs: int = 10,
        adds_correction: bool = True,
        max_attempts: int = MAX_ATTEMPTS,
    ):
        if times not in _TIMES:
            raise ValueError(f"times must be one of {_TIMES}, got {times!r}.")
        if method.n_steps is not None:
            raise ValueError(
                f"method {method.name!r} is made for one mesh of {method.n_steps} steps, so no step of it can be "
                "chosen; take a Runge-Kutta method, such as 'rk4'."
            )
        if method.memory and times != "shared":
            raise ValueError(
                f"method {method.name!r} remembers earlier steps, which rows would have to share; pass "
                "times='shared', or take a Runge-Kutta method, such as 'rk4'."
            )
        self.method, self.t_span, self.times = method, check_t_span(t_span), times
        self.rtol = check_tolerance("rtol", rtol)
        self.atol = None if atol is None else check_tolerance("atol", atol)
        self.sizes = sizes
        span = abs(self.t_span[1] - self.t_span[0])
        self.max_step = span if max_step is None else min(check_tolerance("max_step", max_step), span)
        self.n_outputs = check_n_steps(n_outputs, "n_outputs")
        self.adds_correction = adds_correction
        self.max_attempts = check_n_steps(max_attempts, "max_attempts")

    n_evaluations = None
    """They depend on the state: :meth:`SolvedODE.count_evaluations` counts them in a solve."""

    def solve(
        self,
        f: Callable[..., Tensor],
        z0: Tensor,
        correction: Correction | None = None,
        inputs: FieldInputs = NO_INPUTS,
    ) -> Tensor:
        check_state(z0)
        return _Solve(self, f, z0, correction, inputs).run()

    def trajectory(
        self,
        f: Callable[..., Tensor],
        z0: Tensor,
        correction: Correction | None = None,
        inputs: FieldInputs = NO_INPUTS,
    ) -> Tensor:
        """Return the states at ``n_outputs`` + 1 equal times, time first; the first is z_0, the last that of solve."""
        check_state(z0)
        solve = _Solve(self, f, z0, correction, inputs, nodes=[])
        end = solve.run()
        start, stop = self.t_span
        shares = torch.linspace(0, 1, self.n_outputs + 1, dtype=torch.float64, device=z0.device)
        states = interpolate([*solve.nodes, solve.last_node(end)], start + (stop - start) * shares[1:])
        return torch.cat([z0[None], states[:-1], end[None]])

    def iterate(
        self,
        f: Callable[..., Tensor],
        z0: Tensor,
        correction: Correction | None = None,
        inputs: FieldInputs = NO_INPUTS,
    ) -> Iterator[Tensor]:
        """Yield the states of :meth:`trajectory` after the first. The steps themselves differ between rows."""
        yield from self.trajectory(f, z0, correction, inputs)[1:]


class Node(NamedTuple):
    """Where steps of some rows begin or end."""

    rows: Tensor
    s: Tensor
    z: Tensor
    slope: Tensor
    """f there."""


class _Solve:
    """One solve: the rows under way, and what the controller knows of each.

    Times and sizes are kept in float64, as one number a lane: a lane is a row, or the whole batch where rows share
    their steps.
    """

    def __init__(
        self,
        policy: Adaptive,
        f: Callable[..., Tensor],
        z0: Tensor,
        correction: Correction | None,
        inputs: FieldInputs,
        nodes: list[Node] | None = None,
    ):
        _check(policy, correction)
        self.policy, self.correction, self.inputs, self.nodes = policy, correction, inputs, nodes
        self.field = ProtectedField(f, inputs)
        self.by_row, self.n_rows = policy.times != "shared", len(z0)
        self.start, self.end = policy.t_span
        self.power = policy.method.error_order if correction is None else policy.method.main_kind.order + 1
        self.atol = torch.as_tensor(absolute_tolerance(policy.atol, policy.rtol, z0, policy.sizes)).to(z0)
        self.time_dtype = time_dtype(z0.dtype, policy.t_span)
        self.rows, self.z = torch.arange(self.n_rows, device=z0.device), z0
        lanes = self.n_rows if self.by_row else 1
        self.s = torch.full((lanes,), self.start, dtype=torch.float64, device=z0.device)
        self.sizes: Tensor | None = None
        self.last_errors = torch.ones_like(self.s)
        self.has_failed = torch.zeros_like(self.s, dtype=torch.bool)
        self.lacks_slope = ~self.has_failed
        self.slopes, self.state, self.n_taken = torch.empty_like(z0), (), 0

    def run(self) -> Tensor:
        """Return the states at the end of the span."""
        arrived = self.z.clone()
        for _ in range(self.policy.max_attempts):
            if not len(self.rows):
                return arrived
            finished = self._attempt()
            if bool(finished.any()):
                done = self._of_rows(finished)
                arrived = arrived.index_put((self.rows[done],), self.z[done])
                self._keep(~done)
        if len(self.rows):
            raise self._failure(
                f"the adaptive solve needs more than {self.policy.max_attempts} steps", torch.ones_like(self.rows) > 0
            )
        return arrived

    # ------------------------------------------------------------------ a step
    def _attempt(self) -> Tensor:
        """Try one step of every lane; return which have arrived."""
        kind = self.policy.method.kind(self.n_taken)
        if kind.nodes[0] == 0:
            self._evaluate_slopes()
        if self.sizes is None:
            knows_slope = kind.nodes[0] == 0
            self.sizes = self._first_sizes() if knows_slope else torch.full_like(self.s, self.policy.max_step)
        # Steps that divide what is left evenly: no short last step, and an end that is exact.
        left = self.end - self.s
        eps = left / (left.abs() / self.sizes * (1 - 1e-9)).ceil().clamp(min=1)
        is_last = eps == left
        proposed, error, slope, ahead, state = self._step(StepPlan(self.n_taken, self.s, eps, kind))
        errors, row_errors = self._measure(error, proposed)
        passes = errors <= 1
        taken = self._of_rows(passes)
        if self.nodes is not None:
            self.nodes.append(Node(self.rows[taken], self._of_rows(self.s)[taken], self.z[taken], slope[taken]))
        # Not torch.where, whose gradient would be nan where a step that failed is not finite.
        self.z = self.z.index_put((taken,), proposed[taken])
        self.s = torch.where(passes, torch.where(is_last, self.end, self.s + eps), self.s)
        self.lacks_slope = passes
        if ahead is not None:
            self.slopes = self.slopes.index_put((taken,), ahead[taken])
            self.lacks_slope = torch.zeros_like(passes)
        if bool(passes.any()):
            self.state, self.n_taken = state, self.n_taken + (0 if self.by_row else 1)
        self._control(eps.abs(), errors, passes)
        self._refuse_short_steps(passes, row_errors)
        return passes & is_last

    def _evaluate_slopes(self) -> None:
        """Evaluate f at the starts of steps where it is not known from a step that failed."""
        lacking = self._of_rows(self.lacks_slope)
        if bool(lacking.all()):
            self.slopes = self.field(self._field_times(self.s), self.z)
        elif bool(lacking.any()):  # only where each row has a lane
            self._use_inputs(self.rows[lacking])
            found = self.field(self._field_times(self.s[lacking]), self.z[lacking])
            self.slopes = self.slopes.index_put((lacking,), found)
            self._use_inputs(self.rows)
        self.lacks_slope = torch.zeros_like(self.lacks_slope)

    def _step(self, plan: StepPlan) -> tuple[Tensor, Tensor, Tensor, Tensor | None, tuple[Any, ...]]:
        """Take a step; return the state after it, its estimated error, f at its start, and f at its end if known."""
        method, z = self.policy.method, self.z
        times = [self._field_times(time) for time in plan.times()]
        start = [self.slopes] if plan.evaluates_start else []
        if self.by_row:
            # In units of a row's own step, time runs from 0 to 1 and the field is eps f. So methods need not know of
            # steps that differ between rows.
            unit, size = per_row(plan.eps.to(z.dtype), z), 1.0
            step = method.step(_known_start(lambda t, z: unit * self.field(t, z), [unit * r for r in start]), times,
                               z, size, self.state)  # fmt: skip
            stages = [stage / unit for stage in step.stages]
        else:
            size = float(plan.eps)
            step = method.step(_known_start(self.field, start), times, z, size, self.state)
            stages = step.stages
        proposed = z.add(step.direction, alpha=size)
        adds = self.correction is not None and self.policy.adds_correction
        if self.correction is None:
            error = method.estimate_error(step, size)
        else:
            error = self._corrections(plan, stages)
            proposed = proposed + error if adds else proposed
        ahead = stages[-1] if method.ends_at_next_start and not adds else None
        assert error is not None  # checked beforehand
        return proposed, error, stages[0], ahead, step.state

    def _corrections(self, plan: StepPlan, stages: Sequence[Tensor]) -> Tensor:
        """Return eps^(p+1) g, which is the correction of the step and the estimate of its error."""
        assert self.correction is not None
        z, s = self.z, plan.s.to(self.time_dtype)
        if not self.by_row:
            plan, s = plan._replace(s=float(plan.s), eps=float(plan.eps)), s[0]
            scale = plan.eps ** (plan.kind.order + 1)
        else:
            scale = per_row((plan.eps ** (plan.kind.order + 1)).to(z.dtype), z)
            plan = plan._replace(eps=plan.eps.to(z.dtype))
        g = self.correction.term(plan, s, z, stages, self.field.inputs.x)
        return torch.zeros_like(z) if g is None else scale * g

    # ------------------------------------------------------------------ control
    @torch.no_grad()
    def _measure(self, error: Tensor, proposed: Tensor) -> tuple[Tensor, Tensor]:
        """Return the errors of the lanes and of the rows, in units of the tolerance; inf where they are not finite."""
        scale = self.atol + self.policy.rtol * torch.maximum(self.z.abs(), proposed.abs())
        errors = flatten_samples(error / scale).double().square().mean(dim=1).sqrt()
        lost = ~(errors.isfinite() & flatten_samples(proposed).isfinite().all(dim=1))
        errors = errors.masked_fill(lost, math.inf)
        return (errors if self.by_row else errors.max()[None]), errors

    @torch.no_grad()
    def _first_sizes(self) -> Tensor:
        """Guess sizes at which a state that changes by its own size in a time T has an error of the tolerance."""
        size = self.atol / self.policy.rtol + self.z.abs()
        rates = flatten_samples(self.slopes / size).double().square().mean(dim=1).sqrt()
        rates = rates.nan_to_num(nan=0.0, posinf=0.0)  # f is not finite there: the first step shows it
        rates = rates if self.by_row else rates.max()[None]
        assert self.power is not None
        return (self.policy.rtol ** (1 / self.power) / rates).clamp(max=self.policy.max_step)

    @torch.no_grad()
    def _control(self, sizes: Tensor, errors: Tensor, passes: Tensor) -> None:
        """Choose the sizes of the next steps."""
        assert self.power is not None
        positive = errors.clamp(min=1e-30)
        grown = _SAFETY * positive ** (-_PROPORTIONAL / self.power) * self.last_errors ** (_INTEGRAL / self.power)
        shrunk = _SAFETY * positive ** (-1 / self.power)
        # After a failure a step does not grow: it has just been found to be as long as the tolerance allows.
        most = torch.where(passes & ~self.has_failed, _LARGEST_FACTOR, 1.0)
        factors = torch.minimum(torch.where(passes, grown, shrunk).clamp(min=_LEAST_FACTOR), most)
        self.sizes = (sizes * factors).clamp(max=self.policy.max_step)
        self.last_errors = torch.where(passes, errors.clamp(min=_LEAST_ERROR), self.last_errors)
        self.has_failed = ~passes

    def _refuse_short_steps(self, passes: Tensor, row_errors: Tensor) -> None:
        assert self.sizes is not None
        least = _SHORTEST * abs(self.end - self.start) + 4 * math.ulp(max(abs(self.start), abs(self.end)))
        lost = (self.sizes < least) & ~passes
        if bool(lost.any()):
            at_fault = lost if self.by_row else hold_up(row_errors)
            raise self._failure(f"the adaptive solve needs steps shorter than {least:.1g}", at_fault)

    def _failure(self, what: str, rows: Tensor) -> StepLimitError:
        return StepLimitError.of(what, self.rows[rows].tolist(), self.n_rows)

    # ------------------------------------------------------------------ rows
    def _of_rows(self, lanes: Tensor) -> Tensor:
        return lanes if self.by_row else lanes.expand(len(self.rows))

    def _field_times(self, s: Tensor) -> Tensor:
        """Return times as f takes them."""
        if self.policy.times == "none":
            return self.z.new_tensor(self.start, dtype=self.time_dtype)
        times = s.to(self.time_dtype)
        return times if self.by_row else times[0]

    def _keep(self, rows: Tensor) -> None:
        """Go on with some of the rows: those that have not arrived."""
        assert self.sizes is not None
        self.rows, self.z, self.slopes = self.rows[rows], self.z[rows], self.slopes[rows]
        if self.by_row:
            self.s, self.sizes, self.last_errors = self.s[rows], self.sizes[rows], self.last_errors[rows]
            self.has_failed, self.lacks_slope = self.has_failed[rows], self.lacks_slope[rows]
        self._use_inputs(self.rows)

    def _use_inputs(self, rows: Tensor) -> None:
        self.field.inputs = self.inputs if len(rows) == self.n_rows else self.inputs.rows(rows)

    def last_node(self, end: Tensor) -> Node:
        """Return where all steps end; that takes an evaluation of f."""
        rows = torch.arange(self.n_rows, device=end.device)
        self.rows, self.z = rows, end
        self._use_inputs(rows)
        s = torch.full((self.n_rows,), self.end, dtype=torch.float64, device=end.device)
        return Node(rows, s, end, self.field(self._field_times(s), end))


def _check(policy: Adaptive, correction: Correction | None) -> None:
    """Refuse what cannot estimate an error, or cannot run in steps that are not known beforehand."""
    method = policy.method
    if is_compiling() or is_exporting():
        raise RuntimeError(
            "the steps of an adaptive solve depend on the data, so it cannot be traced by torch.compile, torch.export "
            "or ONNX. Export a solver with equal steps (stepping='fixed')."
        )
    if correction is None:
        if method.error_order is None:
            raise ValueError(
                f"method {method.name!r} does not estimate its error: pass a correction, which does, or a method that "
                "does ('heun', 'midpoint', 'ralston', 'rk3', 'abm2', or a ButcherTableau with embedded weights)."
            )
        return
    if method.memory:
        raise ValueError(
            f"method {method.name!r} remembers earlier steps, and a correction of it is made for equal ones; take a "
            "Runge-Kutta method, such as 'rk4'."
        )
    if type(correction).field is not Correction.field:
        raise ValueError(
            f"a {type(correction).__name__} changes the weights of f for steps that are known beforehand. An adaptive "
            "solve takes a net beside f: correction=MLPCorrection()."
        )
    if policy.times != "shared" and not correction.takes_row_steps:
        raise ValueError(
            f"a {type(correction).__name__} takes one step size for all rows; pass times='shared', or a correction "
            "with takes_row_steps."
        )


def _known_start(f: Field, known: list[Tensor]) -> Field:
    """Return the field, with its first value known, if there is one."""
    waiting = list(known)

    def field(t: Tensor, z: Tensor) -> Tensor:
        return waiting.pop() if waiting else f(t, z)

    return field


def interpolate(nodes: Sequence[Node], times: Tensor) -> Tensor:
    """Return states at these times by cubic Hermite interpolation between nodes, time first.

    Parameters
    ----------
    nodes : sequence of Node
        Of each row in the order of its steps. The last holds all rows.
    times : Tensor of shape (n,)
        After the start, up to the end.
    """
    z, slope = torch.zeros_like(nodes[-1].z), torch.zeros_like(nodes[-1].z)
    s = torch.full_like(nodes[-1].s, torch.nan)  # no time is within a step from there
    states = z.expand(len(times), *z.shape).clone()
    for node in nodes:
        length = node.s - s[node.rows]
        shares = (times - s[node.rows, None]) / length[:, None]
        i, k = ((shares > 0) & (shares <= 1)).nonzero(as_tuple=True)
        rows, share = node.rows[i], per_row(shares[i, k].to(z.dtype), z)
        unit = per_row(length[i].to(z.dtype), z)
        rest = 1 - share
        values = (
            rest**2 * ((1 + 2 * share) * z[rows] + share * unit * slope[rows])
            + share**2 * ((1 + 2 * rest) * node.z[i] - rest * unit * node.slope[i])
        )  # fmt: skip
        states = states.index_put((k, rows), values)
        s = s.index_put((node.rows,), node.s)
        z, slope = z.index_put((node.rows,), node.z), slope.index_put((node.rows,), node.slope)
    return states
