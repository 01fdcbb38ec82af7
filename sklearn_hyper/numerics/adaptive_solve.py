"""One adaptive solve: the rows under way, their steps, and what is known of each."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from .correction import Correction
from .dense_output import Node
from .methods.method import Field, Method, StepPlan
from .protection import FieldInputs, ProtectedField
from .reference import hold_up
from .row_errors import RowsError, list_rows
from .step_control import PIController, ProposedSteps, StepController, StepProposer
from .tensors import flatten_samples, per_row
from .times import time_dtype
from .units import absolute_tolerance

MAX_ATTEMPTS = 10_000
"""Steps, taken or repeated, after which a solve is given up. One that pays takes tens to hundreds."""
_SHORTEST = 1e-12
"""Shortest step, as a share of the span."""


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


class AdaptivePolicy(Protocol):
    """What a solve reads of :class:`Adaptive`, which documents it."""

    method: Method
    t_span: tuple[float, float]
    rtol: float
    atol: float | Tensor | None
    sizes: Sequence[float] | None
    times: str
    max_step: float
    adds_correction: bool
    max_attempts: int
    proposer: StepProposer | None


class AdaptiveSolve:
    """One solve: the rows under way, and what the controller knows of each.

    Times and sizes are kept in float64, as one number a lane: a lane is a row, or the whole batch where rows share
    their steps.
    """

    def __init__(
        self,
        policy: AdaptivePolicy,
        f: Callable[..., Tensor],
        z0: Tensor,
        correction: Correction | None,
        inputs: FieldInputs,
        nodes: list[Node] | None = None,
    ):
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
        self.control: StepController | None = None
        self.lacks_slope = torch.ones_like(self.s, dtype=torch.bool)
        self.slopes, self.n_taken = torch.empty_like(z0), 0
        self.state: tuple[Any, ...] = ()

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
        if self.control is None:
            self.control = self._first_control(knows_slope=kind.nodes[0] == 0)
        left = self.end - self.s
        eps = self.control.even(left)
        is_last = eps == left
        proposed, error, slope, ahead, state = self._step(StepPlan(self.n_taken, self.s, eps, kind))
        errors, row_errors = self._measure(error, proposed)
        passes = self.control.accepts(errors)
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
        self.control.update(eps, errors)
        self._refuse_short_steps(self.control.sizes, passes, row_errors)
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
    def _first_control(self, *, knows_slope: bool) -> StepController:
        """Guess first steps at which a state that changes by its own size in a time T has an error of the tolerance."""
        assert self.power is not None
        longest = self.policy.max_step
        if self.policy.proposer is not None:
            # The tolerance times 1 / rtol is the size of the state: no correction is larger.
            limit = min(float(self.policy.proposer.limit), 1 / self.policy.rtol)
            return ProposedSteps(self._propose, torch.full_like(self.s, longest), limit)
        if not knows_slope:
            return PIController(torch.full_like(self.s, longest), self.power, longest)
        size = self.atol / self.policy.rtol + self.z.abs()
        rates = flatten_samples(self.slopes / size).double().square().mean(dim=1).sqrt()
        rates = rates.nan_to_num(nan=0.0, posinf=0.0)  # f is not finite there: the first step shows it
        rates = rates if self.by_row else rates.max()[None]
        return PIController(self.policy.rtol ** (1 / self.power) / rates, self.power, longest)

    def _propose(self) -> Tensor:
        """Return the proposed sizes of the lanes; rows that share their steps take the shortest of theirs."""
        assert self.policy.proposer is not None
        sizes = self.policy.proposer.propose(self.s, self.z, self.slopes, self.policy.rtol).double()
        return sizes if self.by_row else sizes.min()[None]

    def _refuse_short_steps(self, sizes: Tensor, passes: Tensor, row_errors: Tensor) -> None:
        least = _SHORTEST * abs(self.end - self.start) + 4 * math.ulp(max(abs(self.start), abs(self.end)))
        lost = (sizes < least) & ~passes
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
        self.rows, self.z, self.slopes = self.rows[rows], self.z[rows], self.slopes[rows]
        if self.by_row:
            assert self.control is not None
            self.s, self.lacks_slope = self.s[rows], self.lacks_slope[rows]
            self.control.keep(rows)
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


def _known_start(f: Field, known: list[Tensor]) -> Field:
    """Return the field, with its first value known, if there is one."""
    waiting = list(known)

    def field(t: Tensor, z: Tensor) -> Tensor:
        return waiting.pop() if waiting else f(t, z)

    return field
