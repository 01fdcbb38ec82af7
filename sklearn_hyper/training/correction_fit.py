"""Fit corrections: plan, references, targets, training, and what is kept of it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..modules.corrections import (
    BoundedCorrection,
    NetInputs,
    ScaleSample,
    build_net,
    fit_units,
    resolve_spec,
)
from ..modules.seeding import seeded
from ..numerics.methods import Method, StepKind
from ..numerics.row_errors import numbered_rows
from ..numerics.tensors import flatten_samples, in_own_units
from .errors import TerminalErrors, check_runs
from .learn import train_corrections
from .nets import TrainingNet, best_loss, draw_seed
from .plan import PlannedStep, Run, StepSizes, make_plan
from .references import solve_ends
from .settings import FitSettings, Phase
from .splits import count_held_out
from .targets import TaskSet, residual_set, state_set
from .tasks import Task

_VALID_ROWS = 256
_MAC_SHARE = 0.1
"""MACs of "auto"'s net, as a share of f's."""
_ROUNDING = 1e-6
"""By less than this no correction is better than its base solver."""


@dataclass(frozen=True)
class FittedCorrection:
    """What a fit makes for one task."""

    correction: BoundedCorrection | None
    """None where the base solver alone is better on held-out rows, or its largest error there is smaller."""
    net: TrainingNet
    history: list[dict[str, Any]]
    delta: dict[int, dict[str, float]]
    errors: dict[int, dict[str, float]]
    valid_loss: float
    """The best, of the weights that training started from, too; 1 is the base solver."""
    relative_errors: dict[str, float]
    """Mean error on held-out rows as a share of the mean norm: of what, and how much."""
    fitted_range: tuple[float, float]
    """Smallest and largest step size that it was fitted at, as shares of the span."""
    interrupted: bool


class CorrectionFit:
    """Fits corrections for frozen Neural ODEs and a base method, in three calls that may be made one by one.

    :meth:`prepare` plans the fit, solves references and makes targets; :meth:`run` trains; :meth:`product` measures
    what came of it. Whoever trains a Neural ODE meanwhile prepares and runs anew with the same object's corrections as
    ``warm``.

    Parameters
    ----------
    tasks : sequence of Task
        One or more. Each gets a correction with units of its own; the weights of all nets are shared, so states and
        inputs must be of one shape.
    method : Method
    settings : FitSettings
    warm : sequence of BoundedCorrection, optional
        Start from these, one a task, instead of new ones.
    refit_units : bool, default False
        Take scales, caps and floors of ``warm`` anew: for a field that has changed since.
    ends : Tensor, optional
        Of a single task: what :func:`solve_ends` gives, where that is known.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        method: Method,
        settings: FitSettings,
        *,
        warm: Sequence[BoundedCorrection] | None = None,
        refit_units: bool = False,
        ends: Tensor | None = None,
    ):
        if warm is not None and len(warm) != len(tasks):
            raise ValueError(f"warm holds {len(warm)} corrections for {len(tasks)} tasks; pass one a task, or None.")
        self.tasks, self.method, self.warm, self.refit_units = list(tasks), method, warm, refit_units
        self.settings = settings.over(method)
        self._needs_mesh = settings.needs_mesh(method)
        self._ends = ends
        self.sizes = StepSizes.from_parameters(settings.n_steps, settings.fit_n_steps)
        self.corrections: list[BoundedCorrection] = []
        self.net: TrainingNet | None = None

    # ------------------------------------------------------------------ before training
    def prepare(self) -> CorrectionFit:
        """Plan, solve references, make targets, and build the corrections that training starts from.

        Raises
        ------
        ReferenceSolveError
            If dopri5 cannot solve some rows.
        BaseSolverOverflowError
            If the method leaves the range of numbers from some rows.
        """
        self.seed = draw_seed(self.settings.random_state)
        rng = np.random.default_rng(self.seed)
        self.sets = [self._make_set(task, rng) for task in self.tasks]
        guarded = Run(self.method, self.settings.n_steps)
        self.errors = [TerminalErrors(data.valid, guarded) for data in self.sets]
        self.corrections = self._start_corrections()
        return self

    def _make_set(self, task: Task, rng: np.random.Generator) -> TaskSet:
        settings = self.settings
        with torch.no_grad():
            z = task.neural_ode.input_map(task.x[:1].to(settings.device))
        family = resolve_spec(settings.correction, z).method_family(self.method)
        plan = make_plan(family, task.neural_ode.t_span, settings.n_steps, self.sizes, rng)
        # Rows are shuffled for the solve of all, so that a cached one serves every random_state.
        shuffled = torch.from_numpy(rng.permutation(len(task))).to(settings.device)
        n_valid = count_held_out(settings.validation_fraction, len(task), at_least=1)
        held_out, fitted = shuffled[: min(n_valid, _VALID_ROWS)], shuffled[n_valid:]
        if settings.trains_on("residual"):
            data = residual_set(task, plan, held_out, fitted, settings)
        else:
            ends = None if self._needs_mesh else self._known_ends(task)
            data = state_set(task, plan, held_out, fitted, settings, ends)
        with numbered_rows(torch.cat([fitted, held_out]).tolist(), len(task)):
            both = (data.train, data.valid)
            check_runs(task.neural_ode, both, plan.runs, settings.batch_size, settings.trains_on("output"))
        return data

    def _known_ends(self, task: Task) -> Tensor:
        return solve_ends(task, self.settings) if self._ends is None else self._ends

    def _start_corrections(self) -> list[BoundedCorrection]:
        """New corrections that share a net, or copies of earlier ones; lets go of the samples of units."""
        samples = [data.take_sample() for data in self.sets]
        if self.warm is None:
            with seeded(self.seed, self.settings.device):  # layers initialise themselves by the global generator
                return build_corrections(self.tasks, samples, self.method, self.settings.correction)
        warm = copy.deepcopy(list(self.warm))
        if self.refit_units:
            warm = [
                BoundedCorrection(one.net.with_scales(sample), fit_units(sample.residuals))
                for one, sample in zip(warm, samples, strict=True)
            ]
        like = self.sets[0].train.states
        return [correction.to(like).requires_grad_(True) for correction in warm]

    # ------------------------------------------------------------------ training
    def run(self) -> CorrectionFit:
        """Train. After Ctrl-C the best weights so far are in place, and ``net.interrupted_`` is set.

        Raises
        ------
        TrainingDivergedError
            If the loss is no longer finite.
        KeyboardInterrupt
            If Ctrl-C came before an epoch was finished.
        """
        self.net = train_corrections(self.corrections, self.sets, self.errors, self.settings, self.seed)
        self.corrections = self.net.module_.release()
        return self

    # ------------------------------------------------------------------ after training
    def product(self) -> list[FittedCorrection]:
        """What is kept, task by task: a correction only where it is better than the base method on held-out rows."""
        return [self._product_of(*parts) for parts in zip(self.corrections, self.sets, self.errors, strict=True)]

    def _product_of(self, trained: BoundedCorrection, data: TaskSet, errors: TerminalErrors) -> FittedCorrection:
        assert self.net is not None  # run has been called
        valid_loss, sizes = best_loss(self.net), self.sizes
        keeps = not errors.guarded_share(trained).isinf() and (valid_loss < 1 - _ROUNDING or self.warm is not None)
        correction = trained if keeps else None
        return FittedCorrection(
            correction=correction,
            net=self.net,
            history=_history(self.net, self.settings.phases),
            delta=_delta(correction, self.method, data, sizes.steps),
            errors=errors.table(correction, sizes.steps),
            valid_loss=valid_loss,
            relative_errors=errors.relative(correction, self.settings.rtol),
            fitted_range=(sizes.low, sizes.high),
            interrupted=self.net.interrupted_,
        )


def build_corrections(
    tasks: Sequence[Task], samples: Sequence[ScaleSample], method: Method, correction: Any
) -> list[BoundedCorrection]:
    """Corrections with the weights of one new net, and with scales and bounds of each task's own.

    Parameters
    ----------
    tasks : sequence of Task
    samples : sequence of ScaleSample
        One a task.
    method : Method
    correction : "auto", CorrectionSpec or nn.Module
    """
    first = samples[0]
    spec = resolve_spec(correction, first.residuals[0].z)
    net = build_net(spec, net_inputs(tasks[0], first, method.kinds))
    return [BoundedCorrection(net.with_scales(sample), fit_units(sample.residuals)) for sample in samples]


def net_inputs(task: Task, sample: ScaleSample, kinds: tuple[StepKind, ...]) -> NetInputs:
    """What a net will read of a task, and the MACs that it may take."""
    z = sample.residuals[0].z
    one = task.rows(slice(0, 1)).to(z.device)
    macs = task.neural_ode.count_field_macs(one.x, one.condition)
    return NetInputs(z, sample.x, kinds, _MAC_SHARE * macs)


def _delta(
    correction: BoundedCorrection | None, method: Method, data: TaskSet, fitted_steps: Sequence[int]
) -> dict[int, dict[str, float]]:
    """Largest and mean ||g - R|| on held-out states, for every fitted K; start-up steps' in units of the others' order."""
    valid, source = data.valid, data.source
    t_span, delta = source.neural_ode.t_span, {}
    for k in fitted_steps:
        indices = valid.indices(method.mesh(t_span, k))
        steps = [PlannedStep(i, j, method) for i, j in pairwise(indices)]
        errors = []
        for r in source.residuals(valid.times, steps, valid.states.dtype):
            missing = r.target
            if correction is not None:
                with torch.no_grad():
                    missing = missing - correction(r.eps, r.time(), r.z, r.stages, valid.inputs.x, r.kind)
            missing, unit = in_own_units(flatten_samples(missing))
            norms = torch.linalg.vector_norm(missing, dim=1) * unit
            errors.append(norms * abs(r.eps) ** (r.order - method.order))
        every = torch.cat(errors)
        delta[k] = {"max": float(every.max()), "mean": float(every.mean())}
    return delta


def _history(net: TrainingNet, phases: Sequence[Phase]) -> list[dict[str, Any]]:
    """One row an epoch, with the phase it belongs to (under the public key "stage")."""
    keys = ("epoch", "train_loss", "valid_loss", "dur")
    rows = []
    for row in net.history:
        loss = next((phase.loss for phase in phases if row["epoch"] <= phase.last_epoch), phases[-1].loss)
        rows.append({"stage": loss, **{key: float(row[key]) for key in keys if key in row}, "epoch": row["epoch"]})
    return rows
