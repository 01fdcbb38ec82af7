"""Make targets from reference states: residuals of planned steps, in units of the base solver's error."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..modules.corrections import ModuleCorrection, ScaleSample, resolve_spec
from ..modules.neural_ode import NeuralODE, VectorFieldError, check_neural_ode
from ..numerics.methods import Method, StepKind
from ..numerics.protection import FieldInputs
from ..numerics.residuals import CONDITIONING_LIMIT, ConditioningWarning, Residual, compute_residuals, target_noise
from ..numerics.row_errors import numbered_rows
from ..numerics.tensors import mean_norm, mean_size
from ..numerics.units import state_units
from .errors import References, check_overflow
from .losses import residual_loss
from .plan import FitPlan, StepSizes, TrainingStep, make_plan
from .references import solve_references
from .settings import FitSettings
from .tasks import Task

_ROWS_AT_ONCE = 2048
_MEMORY_BUDGET = 3 * 2**28
"""Bytes that a training set may take at its peak. Together with the memory of solves and batches: about one GiB."""
_SCALE_ROWS, _SCALE_SHARE = 256, 0.2
"""If no phase trains on residuals: rows whose residuals give the correction's units, and their share of memory."""


# ---------------------------------------------------------------------- targets of a batch
@dataclass(frozen=True)
class Target:
    """A step's residual for all rows, and its unit: the mean norm of R, which is the base solver's loss.

    The unit is a multiple of the states' unit, and has its shape.
    """

    residual: Residual
    unit: Tensor

    @classmethod
    def of(cls, residual: Residual, unit: Tensor) -> Target:
        """Make the target of a residual, for states of the given unit."""
        return cls(residual, unit * (mean_size(residual.target, unit) or 1.0))

    def loss(self, correction: ModuleCorrection, inputs: FieldInputs, rows: slice | Tensor) -> Tensor:
        """Compute the residual loss of some rows, as a share of the base solver's."""
        return residual_loss(correction, self.residual.rows(rows), inputs.rows(rows).x, self.unit)


class TargetStack:
    """Targets of one kind of step, stacked so that the rows of a batch may take different steps.

    Parameters
    ----------
    targets : list of Target
        Emptied, so that memory does not hold both the targets and the stack.
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
        while parts:  # pop, so that the tensors of each part are freed once stacked
            stacks.append(torch.stack(parts.pop(0)))
        self.target, self.z, *self.stages = stacks

    def loss(self, correction: ModuleCorrection, inputs: FieldInputs, rows: Tensor, steps: Tensor) -> Tensor:
        """Compute the residual loss of rows, each at its own step, as a share of the base solver's at that step."""
        at, x = (steps, rows), inputs.rows(rows).x
        stages = [stage[at] for stage in self.stages]
        g = correction(self.eps[steps], self.s[steps], self.z[at], stages, x, self.kind)
        return mean_norm((self.target[at] - g) / self.unit[steps].squeeze(1))


def stack_targets(targets: list[Target]) -> list[TargetStack]:
    """Make a stack for every kind of step, and empty ``targets``."""
    by_kind: dict[StepKind, list[Target]] = {}
    while targets:
        target = targets.pop(0)
        by_kind.setdefault(target.residual.kind, []).append(target)
    return [TargetStack(group) for group in by_kind.values()]


# ---------------------------------------------------------------------- residuals of a task
def task_residuals(
    neural_ode: NeuralODE, times: Sequence[float], states: Tensor, inputs: FieldInputs, steps: Sequence[TrainingStep]
) -> Iterator[Residual]:
    """Yield residuals (eq. 6) of all rows for every planned step, computed in the dtype of ``states``.

    What the method remembers is computed from the reference states at the previous nodes.
    """
    for step in steps:
        nodes = [*step.past(times), step.start, step.end]
        grid = tuple(times[k] for k in nodes)
        residual = _last_residual(neural_ode, step.method, grid, states[nodes], inputs)
        # A view of the reference states. A view of the copy states[nodes] would keep every step's past in memory.
        yield residual._replace(z=states[step.start])


def _last_residual(
    neural_ode: NeuralODE, method: Method, grid: tuple[float, ...], states: Tensor, inputs: FieldInputs
) -> Residual:
    """Compute the residual of the last step of a grid; the steps before are the method's past."""
    parts = []
    for start in range(0, states.shape[1], _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        part_inputs = inputs.rows(rows)
        (part,) = compute_residuals(
            neural_ode.vector_field, states[:, rows], grid, method,
            x=part_inputs.x, condition=part_inputs.condition, n_past=len(grid) - 2, t_span=neural_ode.t_span,
        )  # fmt: skip
        parts.append(part)
    if len(parts) == 1:
        return parts[0]
    stages = [torch.cat(stage) for stage in zip(*(part.stages for part in parts), strict=True)]
    return parts[0]._replace(stages=stages, target=torch.cat([part.target for part in parts]))


@dataclass(frozen=True)
class TargetSource:
    """What residuals are computed from: a Neural ODE, its reference states and its inputs, all of one dtype."""

    neural_ode: NeuralODE
    states: Tensor
    inputs: FieldInputs

    def rows(self, rows: Tensor) -> TargetSource:
        """Return the source for some of the rows."""
        return TargetSource(self.neural_ode, self.states[:, rows], self.inputs.rows(rows))

    def residuals(
        self, times: Sequence[float], steps: Sequence[TrainingStep], dtype: torch.dtype
    ) -> Iterator[Residual]:
        """Yield residuals of the planned steps, cast to the dtype of the fit."""
        for residual in task_residuals(self.neural_ode, times, self.states, self.inputs, steps):
            yield residual.each(lambda tensor: tensor.to(dtype))


# ---------------------------------------------------------------------- sets of a task
@dataclass
class TaskSet:
    """What a fit learns from for one task, once its references are solved.

    Parameters
    ----------
    plan : FitPlan
    train, valid : References
        References of the rows that are trained on, and of those that are held out.
    targets, valid_targets : list of Target
        Their residuals; empty where no phase trains on residuals.
    sample : ScaleSample
        Residuals that the correction's units and scales are taken from.
    source : TargetSource
        Held-out rows that ``delta_`` is measured on.
    """

    plan: FitPlan
    train: References
    valid: References
    targets: list[Target]
    valid_targets: list[Target]
    sample: ScaleSample | None
    source: TargetSource

    def take_sample(self) -> ScaleSample:
        """Return the sample and drop it here, so that it does not stay in memory during training."""
        sample, self.sample = self.sample, None
        assert sample is not None
        return sample


def residual_set(task: Task, plan: FitPlan, held_out: Tensor, fitted: Tensor, settings: FitSettings) -> TaskSet:
    """Make the set of a fit on residuals: targets of all rows, from references as tight as they need."""
    states, source = solve_precisely(task, plan, settings)
    # The source yields one step at a time, so that only one step's float64 residuals are in memory.
    residuals = list(source.residuals(plan.times, plan.steps, states.dtype))
    source = source.rows(held_out)  # frees the float64 states of the other rows
    _check_residuals(residuals, plan.steps, settings)
    on_device = task.to(settings.device)
    unit = span_units(task.neural_ode, states)
    valid_targets = [Target.of(residual.rows(held_out), unit) for residual in residuals]
    valid = References(on_device.rows(held_out), plan.times, states[:, held_out], unit)
    # Pop one by one, so that memory does not hold both the residuals and their copies.
    targets = [Target.of(residuals.pop(0).rows(fitted), unit) for _ in plan.steps]
    train = References(on_device.rows(fitted), plan.times, states[:, fitted], unit)
    sample = ScaleSample([target.residual for target in targets], train.inputs.x, task.neural_ode.t_span)
    return TaskSet(plan, train, valid, targets, valid_targets, sample, source)


def state_set(
    task: Task, plan: FitPlan, held_out: Tensor, fitted: Tensor, settings: FitSettings, ends: Tensor | None
) -> TaskSet:
    """Make the set of a fit through the solver alone, where residuals of a few rows give the correction's units.

    With ``ends``, all rows are fitted to these terminal states. Only the few rows and the held-out ones are then solved
    on the mesh.
    """
    device, neural_ode = settings.device, task.neural_ode
    mesh_rows = torch.cat([held_out, fitted[: _n_scale_rows(task, plan, device)]])
    if ends is None:
        all_states = solve_references(task, plan.times, settings).to(device)
        states, train_times, train_states = all_states[:, mesh_rows], plan.times, all_states[:, fitted]
        del all_states
    else:
        with numbered_rows(mesh_rows.tolist(), len(task)):
            states = solve_references(task.rows(mesh_rows.cpu()), plan.times, settings).to(device)
        train_times, train_states = neural_ode.t_span, ends.to(device)[:, fitted]
    on_device, n_valid = task.to(device), len(held_out)
    unit = span_units(neural_ode, train_states)
    # Cloned: a view would keep the states that only the scales need in memory.
    valid = References(on_device.rows(held_out), plan.times, states[:, :n_valid].clone(), unit)
    train = References(on_device.rows(fitted), train_times, train_states, unit)
    rows = mesh_rows[n_valid:]
    inputs = on_device.rows(rows).inputs
    residuals = list(task_residuals(neural_ode, plan.times, states[:, n_valid:], inputs, plan.steps))
    with numbered_rows(rows.tolist(), len(task)):
        _check_residuals(residuals, plan.steps, settings)
    sample = ScaleSample(residuals, inputs.x, neural_ode.t_span)
    source = TargetSource(neural_ode, valid.states, valid.inputs)
    return TaskSet(plan, train, valid, [], [], sample, source)


def _n_scale_rows(task: Task, plan: FitPlan, device: str) -> int:
    with torch.no_grad():
        state = task.neural_ode.input_map(task.x[:1].to(device)).numel()
    tensors = len(plan.times) + len(plan.steps) * (max(step.method.n_stages for step in plan.steps) + 1)
    per_row = task.x.element_size() * state * tensors
    return min(_SCALE_ROWS, max(2, int(_SCALE_SHARE * _MEMORY_BUDGET / per_row)))


def _check_residuals(residuals: Sequence[Residual], steps: Sequence[TrainingStep], settings: FitSettings) -> None:
    for residual, step in zip(residuals, steps, strict=True):
        check_overflow(residual.target, step.method.name, settings.n_steps)


def span_units(neural_ode: NeuralODE, states: Tensor) -> Tensor:
    """Return the units of states, measured at both ends of the span.

    Squares of states may overflow or underflow; in these units they do not.
    """
    if neural_ode.n_unitless and neural_ode.state_size is not None:
        # The size is known, such as 1 for a flow that scales its data.
        return state_units(states.new_tensor([neural_ode.state_size]), neural_ode.n_unitless)
    return state_units(torch.cat([states[0], states[-1]]), neural_ode.n_unitless)


# ---------------------------------------------------------------------- noise
def solve_precisely(task: Task, plan: FitPlan, settings: FitSettings) -> tuple[Tensor, TargetSource]:
    """Solve references; return their states, and the source that residuals are to be computed from.

    Where the states' noise would dominate the residuals, the source holds tighter float64 states instead. Scores and
    solves are still compared with the first states.
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
    if not settings.is_adaptive:  # whose range of steps is there to reach small ones
        _warn(
            f"{what}: targets are solved for again in float64 at a tolerance of {tight:.2g}. Scores keep their "
            "tolerance. A lower order or fewer steps avoid this."
        )
    tight_atol = None if atol is None else atol * tight / rtol
    exact = solve_references(task, plan.times, settings, rtol=tight, atol=tight_atol, double=True).to(device)
    return states, TargetSource(double.neural_ode, exact, double.to(device).inputs)


def _smallest_steps(plan: FitPlan) -> list[TrainingStep]:
    """Return the smallest step for each number of past nodes: start-up steps differ in order, and so in noise."""
    sorts: dict[int, list[TrainingStep]] = {}
    for step in plan.steps:
        sorts.setdefault(len(step.past(plan.times)), []).append(step)
    return [min(steps, key=lambda step: abs(plan.times[step.end] - plan.times[step.start])) for steps in sorts.values()]


def _warn(message: str) -> None:
    warnings.warn(message, ConditioningWarning, stacklevel=3)


# ---------------------------------------------------------------------- memory
def max_rows(task: Task, z: Tensor, method: Method, settings: FitSettings) -> int:
    """Return how many rows fit in one GiB, with their reference states, targets and all intermediate tensors.

    Parameters
    ----------
    task, z : Task, Tensor
        A few rows and their states, of which only the sizes matter.
    """
    sizes = StepSizes.of(settings)
    family = resolve_spec(settings.correction, z).method_family(method)
    plan = make_plan(
        family,
        task.neural_ode.t_span,
        settings.n_steps,
        sizes,
        np.random.default_rng(0),
        is_adaptive=settings.is_adaptive,
        t_eval=settings.t_eval,
    )
    n_steps, n_times, block = len(plan.steps), len(plan.times), method.n_stages + 2
    state, one_x = z[0].numel() * z.element_size(), task.x[0].numel() * task.x.element_size()
    double = 8 / z.element_size()
    if settings.adapted_to(method).trains_on("residual"):
        # Peaks: states beside float64 states and residuals; then states, their shuffled copy and targets; then targets
        # beside a stack of one of their tensors.
        most = max(n_times * (1 + double) + 2 * block * double, 2 * n_times, n_times + n_steps)
        return max(2, int(_MEMORY_BUDGET / (state * (most + n_steps * block) + one_x * (2 + double))))
    n_all = n_times if settings.needs_mesh(method) else 2
    per_row = state * (2 * n_all + settings.validation_fraction * n_times) + 2 * one_x
    return max(2, int((1 - _SCALE_SHARE) * _MEMORY_BUDGET / per_row))
