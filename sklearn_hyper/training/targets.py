"""From reference states to what a fit learns from: residuals of planned steps, in units of the base solver's error."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..modules.corrections import BoundedCorrection, ScaleSample, resolve_spec
from ..modules.neural_ode import NeuralODE, VectorFieldError, check_neural_ode
from ..numerics.methods import Method, StepKind
from ..numerics.protection import FieldInputs
from ..numerics.residuals import CONDITIONING_LIMIT, ConditioningWarning, Residual, compute_residuals, target_noise
from ..numerics.row_errors import numbered_rows
from ..numerics.tensors import mean_norm, mean_size
from ..numerics.units import state_units
from .errors import References, check_overflow
from .losses import residual_loss
from .plan import Plan, PlannedStep, StepSizes, make_plan
from .references import solve_references
from .settings import FitSettings
from .tasks import Task

_ROWS_AT_ONCE = 2048
_MEMORY_BUDGET = 3 * 2**28
"""Bytes that a training set may take at its largest; with what comes and goes in solves and batches, about one GiB."""
_SCALE_ROWS, _SCALE_SHARE = 256, 0.2
"""Rows whose residuals tell the units of a correction that is not trained on residuals, and their share of the memory."""


# ---------------------------------------------------------------------- targets of a batch
@dataclass(frozen=True)
class Target:
    """A step's residual for all rows, and its unit: the mean norm of R, which is the base solver's loss.

    The unit is shaped as that of the states is, which it is a multiple of.
    """

    residual: Residual
    unit: Tensor

    @classmethod
    def of(cls, residual: Residual, unit: Tensor) -> Target:
        """The target of some rows, for states of that unit."""
        return cls(residual, unit * (mean_size(residual.target, unit) or 1.0))

    def loss(self, correction: BoundedCorrection, inputs: FieldInputs, rows: slice | Tensor) -> Tensor:
        """Residual loss of some of its rows as a share of the base solver's."""
        return residual_loss(correction, self.residual.rows(rows), inputs.rows(rows).x, self.unit)


class TargetStack:
    """Targets of one kind of step, stacked, so that every row of a batch may take another step.

    Parameters
    ----------
    targets : list of Target
        Emptied, so that targets and stack need not both be in memory.
    """

    def __init__(self, targets: list[Target]):
        residuals = [target.residual for target in targets]
        like = residuals[0].z
        self.kind, self.n_steps = residuals[0].kind, len(residuals)
        self.s = torch.stack([residual.time() for residual in residuals])
        self.eps = like.new_tensor([residual.eps for residual in residuals])
        self.unit = torch.stack([target.unit for target in targets])
        targets.clear()
        parts = [[r.target for r in residuals], [r.z for r in residuals]]
        parts += map(list, zip(*(r.stages for r in residuals), strict=True))
        del residuals
        stacks = []
        while parts:  # one at a time: its tensors are let go when they are stacked
            stacks.append(torch.stack(parts.pop(0)))
        self.target, self.z, *self.stages = stacks

    def loss(self, correction: BoundedCorrection, inputs: FieldInputs, rows: Tensor, steps: Tensor) -> Tensor:
        """Residual loss of some rows, each in a step of its own, as a share of the base solver's in that step."""
        at, x = (steps, rows), inputs.rows(rows).x
        stages = [stage[at] for stage in self.stages]
        g = correction(self.eps[steps], self.s[steps], self.z[at], stages, x, self.kind)
        return mean_norm((self.target[at] - g) / self.unit[steps].squeeze(1))


def stack_targets(targets: list[Target]) -> list[TargetStack]:
    """A stack for every kind of step; empties ``targets``."""
    by_kind: dict[StepKind, list[Target]] = {}
    while targets:
        target = targets.pop(0)
        by_kind.setdefault(target.residual.kind, []).append(target)
    return [TargetStack(some) for some in by_kind.values()]


# ---------------------------------------------------------------------- residuals of a task
def task_residuals(
    neural_ode: NeuralODE, times: Sequence[float], states: Tensor, inputs: FieldInputs, steps: Sequence[PlannedStep]
) -> Iterator[Residual]:
    """Yield residuals (eq. 6) of all rows for every planned step, computed in the dtype of ``states``.

    What the method remembers is taken from the reference states on the previous nodes.
    """
    for step in steps:
        nodes = [*step.past(times), step.start, step.end]
        grid = tuple(times[k] for k in nodes)
        residual = _last_residual(neural_ode, step.method, grid, states[nodes], inputs)
        # A view of the reference states: one of states[nodes] would keep the past of every step in memory.
        yield residual._replace(z=states[step.start])


def _last_residual(
    neural_ode: NeuralODE, method: Method, grid: tuple[float, ...], states: Tensor, inputs: FieldInputs
) -> Residual:
    """Residual of the last step of the grid; those before are the method's past."""
    parts = []
    for start in range(0, states.shape[1], _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        some = inputs.rows(rows)
        (part,) = compute_residuals(
            neural_ode.vector_field, states[:, rows], grid, method,
            x=some.x, condition=some.condition, n_past=len(grid) - 2, t_span=neural_ode.t_span,
        )  # fmt: skip
        parts.append(part)
    if len(parts) == 1:
        return parts[0]
    stages = [torch.cat(stage) for stage in zip(*(part.stages for part in parts), strict=True)]
    return parts[0]._replace(stages=stages, target=torch.cat([part.target for part in parts]))


@dataclass(frozen=True)
class TargetSource:
    """What residual targets are made of: a Neural ODE, its reference states and inputs, all of one dtype."""

    neural_ode: NeuralODE
    states: Tensor
    inputs: FieldInputs

    def rows(self, rows: Tensor) -> TargetSource:
        """The same for some of the rows."""
        return TargetSource(self.neural_ode, self.states[:, rows], self.inputs.rows(rows))

    def residuals(self, times: Sequence[float], steps: Sequence[PlannedStep], dtype: torch.dtype) -> Iterator[Residual]:
        """Yield residuals of the planned steps, cast to the dtype of the fit."""
        for residual in task_residuals(self.neural_ode, times, self.states, self.inputs, steps):
            yield residual.each(lambda tensor: tensor.to(dtype))


# ---------------------------------------------------------------------- sets of a task
@dataclass
class TaskSet:
    """What a fit knows of one task, once its references are solved.

    Parameters
    ----------
    plan : Plan
    train, valid : References
        Of the rows that are trained on, and of those that are held out.
    targets, valid_targets : list of Target
        Their residuals; empty where no phase trains on residuals.
    sample : ScaleSample
        Residuals from which units and scales are taken.
    source : TargetSource
        What ``delta_`` is measured on, of held-out rows.
    """

    plan: Plan
    train: References
    valid: References
    targets: list[Target]
    valid_targets: list[Target]
    sample: ScaleSample | None
    source: TargetSource

    def take_sample(self) -> ScaleSample:
        """The sample, which is let go of: it need not stay in memory with what is trained on."""
        sample, self.sample = self.sample, None
        assert sample is not None
        return sample


def residual_set(task: Task, plan: Plan, held_out: Tensor, fitted: Tensor, settings: FitSettings) -> TaskSet:
    """What a fit on residuals learns from: targets of all rows, solved for as tightly as they need."""
    states, source = solve_conditioned(task, plan, settings)
    # One step at a time: the float64 residuals of all need not be alive together.
    residuals = list(source.residuals(plan.times, plan.steps, states.dtype))
    source = source.rows(held_out)  # the float64 states of all rows have done their work
    _check_residuals(residuals, plan.steps, settings)
    on_device = task.to(settings.device)
    unit = span_units(task.neural_ode, states)
    valid_targets = [Target.of(residual.rows(held_out), unit) for residual in residuals]
    valid = References(on_device.rows(held_out), plan.times, states[:, held_out], unit)
    # Popped one by one, since a residual and its copy need not both stay in memory.
    targets = [Target.of(residuals.pop(0).rows(fitted), unit) for _ in plan.steps]
    train = References(on_device.rows(fitted), plan.times, states[:, fitted], unit)
    sample = ScaleSample([target.residual for target in targets], train.inputs.x, task.neural_ode.t_span)
    return TaskSet(plan, train, valid, targets, valid_targets, sample, source)


def state_set(
    task: Task, plan: Plan, held_out: Tensor, fitted: Tensor, settings: FitSettings, ends: Tensor | None
) -> TaskSet:
    """What a fit through the solver alone learns from: residuals of a few rows tell the units, at the references' noise.

    With ``ends`` these are what all rows are fitted to, and only those few and the held-out ones are solved on the
    mesh.
    """
    device, neural_ode = settings.device, task.neural_ode
    few = torch.cat([held_out, fitted[: _n_scale_rows(task, plan, device)]])
    if ends is None:
        every = solve_references(task, plan.times, settings).to(device)
        states, train_times, train_states = every[:, few], plan.times, every[:, fitted]
        del every
    else:
        with numbered_rows(few.tolist(), len(task)):
            states = solve_references(task.rows(few.cpu()), plan.times, settings).to(device)
        train_times, train_states = neural_ode.t_span, ends.to(device)[:, fitted]
    on_device, n_valid = task.to(device), len(held_out)
    unit = span_units(neural_ode, train_states)
    # A copy, which does not keep the states that are for the scales alone.
    valid = References(on_device.rows(held_out), plan.times, states[:, :n_valid].clone(), unit)
    train = References(on_device.rows(fitted), train_times, train_states, unit)
    rows = few[n_valid:]
    inputs = on_device.rows(rows).inputs
    residuals = list(task_residuals(neural_ode, plan.times, states[:, n_valid:], inputs, plan.steps))
    with numbered_rows(rows.tolist(), len(task)):
        _check_residuals(residuals, plan.steps, settings)
    sample = ScaleSample(residuals, inputs.x, neural_ode.t_span)
    source = TargetSource(neural_ode, valid.states, valid.inputs)
    return TaskSet(plan, train, valid, [], [], sample, source)


def _n_scale_rows(task: Task, plan: Plan, device: str) -> int:
    with torch.no_grad():
        state = task.neural_ode.input_map(task.x[:1].to(device)).numel()
    tensors = len(plan.times) + len(plan.steps) * (max(step.method.n_stages for step in plan.steps) + 1)
    per_row = task.x.element_size() * state * tensors
    return min(_SCALE_ROWS, max(2, int(_SCALE_SHARE * _MEMORY_BUDGET / per_row)))


def _check_residuals(residuals: Sequence[Residual], steps: Sequence[PlannedStep], settings: FitSettings) -> None:
    for residual, step in zip(residuals, steps, strict=True):
        check_overflow(residual.target, step.method.name, settings.n_steps)


def span_units(neural_ode: NeuralODE, states: Tensor) -> Tensor:
    """Units of states from the start and the end of a span: their squares may leave the range of numbers, but not in these."""
    if neural_ode.n_unitless and neural_ode.state_size is not None:  # 1 for a flow that scales its data
        return state_units(states.new_tensor([neural_ode.state_size]), neural_ode.n_unitless)
    return state_units(torch.cat([states[0], states[-1]]), neural_ode.n_unitless)


# ---------------------------------------------------------------------- noise
def solve_conditioned(task: Task, plan: Plan, settings: FitSettings) -> tuple[Tensor, TargetSource]:
    """Solve references; return their states, and what residual targets are to be made of.

    Where the states' noise would drown the targets, these are made of tighter float64 states instead; the first states
    stay what scores and solves are compared with.
    """
    device, rtol, atol = settings.device, settings.rtol, settings.atol
    states = solve_references(task, plan.times, settings).to(device)
    source = TargetSource(task.neural_ode, states, task.to(device).inputs)
    first = slice(0, _ROWS_AT_ONCE)
    probes = task_residuals(
        task.neural_ode, plan.times, states[:, first], source.inputs.rows(first), _smallest_steps(plan)
    )
    noise, probe = max(((target_noise(probe, rtol, atol), probe) for probe in probes), key=lambda pair: pair[0])
    if noise <= CONDITIONING_LIMIT:
        return states, source
    tight = max(1e-13, 0.1 * CONDITIONING_LIMIT / noise * rtol)
    absolute = "" if atol is None else f" atol={atol:g},"
    what = (
        f"The reference's noise is {100 * noise:.2g} % of the residual at step size {abs(probe.eps):.3g} "
        f"(order {probe.order}; rtol={rtol:g},{absolute} {probe.z.dtype})"
    )
    double = Task(copy.deepcopy(task.neural_ode).double(), task.x, task.condition).to(dtype=torch.float64)
    two_rows = double.rows(slice(0, 2)).to(device)
    try:
        check_neural_ode(double.neural_ode, two_rows.x, two_rows.condition)
    except (VectorFieldError, TypeError, RuntimeError) as error:
        _warn(f"{what}, and the field does not run in float64, so the targets keep that noise: {error}")
        return states, source
    _warn(
        f"{what}: targets are solved for again in float64 at a tolerance of {tight:.2g}. Scores keep their "
        "tolerance. A lower order or fewer steps avoid this."
    )
    tight_atol = None if atol is None else atol * tight / rtol
    exact = solve_references(task, plan.times, settings, rtol=tight, atol=tight_atol, double=True).to(device)
    return states, TargetSource(double.neural_ode, exact, double.to(device).inputs)


def _smallest_steps(plan: Plan) -> list[PlannedStep]:
    """The smallest step of every sort: start-up steps have another order than the others, and so another noise."""
    sorts: dict[int, list[PlannedStep]] = {}
    for step in plan.steps:
        sorts.setdefault(len(step.past(plan.times)), []).append(step)
    return [min(some, key=lambda step: abs(plan.times[step.end] - plan.times[step.start])) for some in sorts.values()]


def _warn(message: str) -> None:
    warnings.warn(message, ConditioningWarning, stacklevel=3)


# ---------------------------------------------------------------------- memory
def max_rows(task: Task, z: Tensor, method: Method, settings: FitSettings) -> int:
    """Rows whose reference states, targets, and what is made of them on the way, stay under one GiB.

    Parameters
    ----------
    task, z : Task, Tensor
        A few rows and their states, for their size.
    """
    sizes = StepSizes.from_parameters(settings.n_steps, settings.fit_n_steps)
    family = resolve_spec(settings.correction, z).method_family(method)
    plan = make_plan(family, task.neural_ode.t_span, settings.n_steps, sizes, np.random.default_rng(0))
    n_steps, n_times, block = len(plan.steps), len(plan.times), method.n_stages + 2
    state, one_x = z[0].numel() * z.element_size(), task.x[0].numel() * task.x.element_size()
    double = 8 / z.element_size()
    if settings.over(method).trains_on("residual"):
        # States beside float64 ones and the residuals made of these; then states, their shuffled copy and targets; last
        # targets beside a stack of one sort of their tensors.
        most = max(n_times * (1 + double) + 2 * block * double, 2 * n_times, n_times + n_steps)
        return max(2, int(_MEMORY_BUDGET / (state * (most + n_steps * block) + one_x * (2 + double))))
    n_all = n_times if settings.needs_mesh(method) else 2
    per_row = state * (2 * n_all + settings.validation_fraction * n_times) + 2 * one_x
    return max(2, int((1 - _SCALE_SHARE) * _MEMORY_BUDGET / per_row))
