"""Fit corrections: plan, solve references, make targets, train, and decide what to keep."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..modules.corrections import ModuleCorrection, NetInputs, ScaleSample, resolve_spec
from ..modules.corrections.changes import learning_unit
from ..modules.corrections.field_module import graph_bytes
from ..modules.learned_steps import LearnedSteps
from ..modules.seeding import seeded
from ..numerics.methods import Method, Nonstationary
from ..numerics.row_errors import numbered_rows
from ..numerics.stepping import FixedMesh
from ..numerics.tensors import flatten_samples, in_own_units
from .coefficients import TrainableCoefficients
from .errors import TerminalErrors, check_runs
from .extra_rows import ExtraRows, draw_extra_rows, named_extra_rows
from .learn import train_corrections
from .nets import TrainingNet, best_loss, draw_seed
from .plan import Run, StepSizes, TrainingStep, make_plan
from .references import solve_ends
from .settings import FitSettings, Phase
from .splits import count_held_out
from .step_fit import fit_steps
from .targets import TaskSet, residual_set, state_set
from .tasks import Task, row_digests

_VALID_ROWS = 256
MAC_SHARE = 0.1
"""Largest MACs of the net of "auto", as a share of those of f."""
_LARGEST_GRAPH = 2**31
"""Bytes of a batch's solve that autograd may keep. Beyond, evaluations of f are repeated for their gradients."""
_METHOD_SHARE = 0.3
"""Unit of changes of coefficients, as a share of that of weights."""
_ROUNDING = 1e-6
"""A correction must be better than its base solver by more than this share, or it is not kept."""


@dataclass(frozen=True)
class FittedCorrection:
    """The result of a fit for one task."""

    correction: ModuleCorrection | None
    """None if the base solver alone is better on held-out rows, in the mean or by far in the largest error."""
    net: TrainingNet
    history: list[dict[str, Any]]
    delta: dict[int, dict[str, float]]
    errors: dict[int, dict[str, float]]
    valid_loss: float
    """The lowest, including that of the weights that training started from; 1 is the base solver."""
    raises_largest: bool
    """Whether the correction is a last choice: a few rows are worse with it than the base solver's worst."""
    relative_errors: dict[str, float]
    """Mean errors of states and outputs on held-out rows, each as a share of its mean norm."""
    fitted_range: tuple[float, float]
    """Smallest and largest step size of the fit, as shares of the span."""
    interrupted: bool
    method: Method
    """The base method under the correction: the given one, or its coefficients as they were trained on."""
    steps: LearnedSteps | None = None
    """What chooses adaptive steps, where ``step_controller`` asks for it and there is a correction."""
    errors_before: dict[int, dict[str, float]] | None = None
    """What ``errors`` would be of the correction that training went on from; None if it started anew."""
    extra_rows: NDArray[np.uint64] | None = None
    """Hashes of the rows that a function as ``settings.extra_rows`` added."""


class CorrectionFit:
    """Fits corrections for frozen Neural ODEs and a base method, in three calls.

    :meth:`prepare` plans the fit, solves references and makes targets; :meth:`run` trains; :meth:`product` measures the
    result. To refit while a Neural ODE is trained, make another fit with this one's corrections as ``warm``.

    Parameters
    ----------
    tasks : sequence of Task
        One or more tasks. Each gets a correction with units of its own. All nets share their weights, so states and
        inputs must have one shape.
    method : Method
        The base method.
    settings : FitSettings
        Settings of the fit.
    warm : sequence of ModuleCorrection, optional
        Corrections to start from, one for each task, instead of new ones.
    refit_units : bool, default False
        Measure scales, caps and floors of ``warm`` again, for a field that has changed since.
    ends : Tensor, optional
        Result of :func:`solve_ends` for a single task, where it is known already.
    tunes_method : bool, default False
        Train the coefficients of the method on, together with the correction, if they are learned ones and the
        correction is one that does (``CorrectionSpec.tunes_method``).
    base : Method, optional
        The method without a correction, which a fit must beat, where it is another than ``method``.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        method: Method,
        settings: FitSettings,
        *,
        warm: Sequence[ModuleCorrection] | None = None,
        refit_units: bool = False,
        ends: Tensor | None = None,
        tunes_method: bool = False,
        base: Method | None = None,
    ):
        if warm is not None and len(warm) != len(tasks):
            raise ValueError(f"warm holds {len(warm)} corrections for {len(tasks)} tasks; pass one a task, or None.")
        self.tasks, self.method, self.warm, self.refit_units = list(tasks), method, warm, refit_units
        z = _initial_states(self.tasks[0], settings)
        self.spec = resolve_spec(settings.correction, z)
        self.base = base or method
        if not self.spec.learns_residuals:
            settings = settings.through_solves()
        self.settings = settings.adapted_to(method).with_optimizer_of(self.spec, z)
        self._needs_mesh = settings.needs_mesh(method)
        self._ends = ends
        self.extra_digests: list[NDArray[np.uint64]] = []
        self.sizes = StepSizes.of(settings)
        self._tunes_method = tunes_method and self.spec.tunes_method and not self._needs_mesh
        self._learning: TrainableCoefficients | None = None
        self.corrections: list[ModuleCorrection] = []
        self.net: TrainingNet | None = None
        self._is_prepared = False

    # ------------------------------------------------------------------ before training
    def prepare(self) -> CorrectionFit:
        """Plan, solve references, make targets, and build the corrections that training starts from.

        Raises
        ------
        ReferenceSolveError
            If dopri5 cannot solve some rows.
        BaseSolverOverflowError
            If the method overflows from some rows.
        """
        self.seed = draw_seed(self.settings.random_state)
        rng = np.random.default_rng(self.seed)
        self.extra_digests.clear()
        self.sets = [self._make_set(task, rng) for task in self.tasks]
        base = Run(self.base, self.settings.n_steps)
        guarded = base._replace(method=self.method)
        self.errors = [TerminalErrors(data.valid, guarded, base) for data in self.sets]
        self.base_error = max(errors.relative_state_error(None, self.settings.rtol) for errors in self.errors)
        self.corrections = self._start_corrections()
        if self._tunes_method and isinstance(self.method, Nonstationary):
            self._learning = TrainableCoefficients(self.method, unit=_METHOD_SHARE * learning_unit(self.base_error))
            self._learning.to(self.sets[0].train.states)
            for data in self.sets:
                data.plan = replace(data.plan, runs=[Run(self._learning, run.n_steps) for run in data.plan.runs])
            learned = base._replace(method=self._learning)
            self.errors = [TerminalErrors(data.valid, learned, base) for data in self.sets]
        self._is_prepared = True
        return self

    def _make_set(self, task: Task, rng: np.random.Generator) -> TaskSet:
        settings, family = self.settings, self.spec.method_family(self.method)
        span, adaptive = task.neural_ode.t_span, settings.is_adaptive
        plan = make_plan(family, span, settings.n_steps, self.sizes, rng, is_adaptive=adaptive, t_eval=settings.t_eval)
        # All rows are solved in their own order and shuffled afterwards, so that a cached solve serves every
        # random_state.
        shuffled = torch.from_numpy(rng.permutation(len(task))).to(settings.device)
        n_valid = count_held_out(settings.validation_fraction, len(task), at_least=1)
        held_out, fitted = shuffled[: min(n_valid, _VALID_ROWS)], shuffled[n_valid:]
        through_ends = not settings.trains_on("residual") and not self._needs_mesh
        ends, n_given = self._known_ends(task) if through_ends else None, len(task)
        if settings.extra_rows is not None:
            extra = draw_extra_rows(task.rows(fitted.cpu()), plan.runs, settings, rng)
            if callable(settings.extra_rows):  # other rows are drawn at random, and nobody has them
                self.extra_digests.append(row_digests(extra.task.neural_ode, extra.task.x))
            task, ends, fitted = _with_extra(task, ends, fitted, extra)
        with named_extra_rows(settings.extra_rows, n_given):
            if settings.trains_on("residual"):
                data = residual_set(task, plan, held_out, fitted, settings)
            else:
                data = state_set(task, plan, held_out, fitted, settings, ends)
            with numbered_rows(torch.cat([fitted, held_out]).tolist(), len(task)):
                both = (data.train, data.valid)
                check_runs(task.neural_ode, both, plan.runs, settings.batch_size, settings.trains_on("output"))
        return data

    def _known_ends(self, task: Task) -> Tensor:
        return solve_ends(task, self.settings) if self._ends is None else self._ends

    def _start_corrections(self) -> list[ModuleCorrection]:
        """Return new corrections that share a net, or copies of earlier ones; drop the samples of units."""
        samples = [data.take_sample() for data in self.sets]
        if self.warm is None:
            with seeded(self.seed, self.settings.device):  # layers initialise themselves from the global generator
                return self._build_corrections(samples)
        warm = copy.deepcopy(list(self.warm))
        if self.refit_units:
            warm = [correction.refit(sample) for correction, sample in zip(warm, samples, strict=True)]
        like = self.sets[0].train.states
        return [correction.to(like).requires_grad_(True) for correction in warm]

    def _build_corrections(self, samples: Sequence[ScaleSample]) -> list[ModuleCorrection]:
        inputs = net_inputs(self.tasks[0], samples[0], self.method, self.settings, self.base_error)
        if not self.spec.learns_residuals:
            inputs = replace(inputs, recomputes=self._graph_bytes() > _LARGEST_GRAPH)
        corrections = self.spec.corrections([task.neural_ode for task in self.tasks], inputs, samples)
        return [correction.to(inputs.z).requires_grad_(True) for correction in corrections]

    def _graph_bytes(self) -> int:
        """Return the bytes that autograd keeps of f in the longest solve of a batch."""
        row = self.tasks[0].rows(slice(0, 1)).to(self.settings.device)
        ode, z = row.neural_ode, _initial_states(self.tasks[0], self.settings)
        evaluations = max(
            self.method.count_evaluations(n_steps) for n_steps in {self.settings.n_steps, *self.sizes.steps}
        )
        a_row = graph_bytes(ode.vector_field, ode.t_span, z, row.inputs)
        return a_row * min(self.settings.batch_size, len(self.tasks[0])) * evaluations

    # ------------------------------------------------------------------ training
    def run(self) -> CorrectionFit:
        """Train the corrections. After Ctrl-C they hold the best weights so far, and ``net.interrupted_`` is set.

        Raises
        ------
        TrainingDivergedError
            If the loss is no longer finite.
        KeyboardInterrupt
            If Ctrl-C came before the first epoch was finished.
        """
        if not self._is_prepared:
            raise RuntimeError("call prepare() before run(), which uses up the targets that it makes.")
        self._is_prepared = False
        self.net = train_corrections(self.corrections, self.sets, self.errors, self.settings, self.seed, self._learning)
        self.corrections = self.net.module_.release()
        return self

    # ------------------------------------------------------------------ after training
    def product(self) -> list[FittedCorrection]:
        """Return the result for each task; its correction is None unless it beats the base method on held-out rows."""
        if self.net is None:
            raise RuntimeError("call prepare() and run() before product().")
        earlier: Sequence[ModuleCorrection | None] = self.warm or [None] * len(self.tasks)
        parts = zip(self.corrections, self.sets, self.errors, earlier, strict=True)
        return [self._product_of(*part) for part in parts]

    def _product_of(
        self, trained: ModuleCorrection, data: TaskSet, errors: TerminalErrors, earlier: ModuleCorrection | None
    ) -> FittedCorrection:
        assert self.net is not None  # run has been called
        valid_loss, sizes = best_loss(self.net), self.sizes
        least = errors.guard(trained)[1]
        keeps = not math.isinf(least) and (valid_loss < 1 - _ROUNDING or self.warm is not None)
        correction = trained if keeps else None
        method = self.method if self._learning is None else self._learning.freeze()
        learns_steps = self.settings.is_adaptive and self.settings.step_controller == "learned"
        return FittedCorrection(
            correction=correction,
            net=self.net,
            history=_history(self.net, self.settings.phases),
            delta=_delta(correction, self.method, data, sizes.steps) if self.spec.learns_residuals else {},
            errors=errors.table(correction, sizes.steps),
            valid_loss=valid_loss,
            raises_largest=keeps and least > 0,
            relative_errors=errors.relative(correction, self.settings.rtol),
            fitted_range=(sizes.low, sizes.high),
            interrupted=self.net.interrupted_,
            method=method if keeps else self.base,
            steps=None if correction is None or not learns_steps else fit_steps(data, correction, method, self.seed),
            extra_rows=np.concatenate(self.extra_digests) if self.extra_digests else None,
            errors_before=None if earlier is None else errors.table(_like(earlier, data.valid.states), sizes.steps),
        )


def _like(correction: ModuleCorrection, states: Tensor) -> ModuleCorrection:
    """Return a copy of a correction in the dtype and on the device of states."""
    return copy.deepcopy(correction).to(states)


def _with_extra(
    task: Task, ends: Tensor | None, fitted: Tensor, extra: ExtraRows
) -> tuple[Task, Tensor | None, Tensor]:
    """Append rows to a task, to its states at the ends and to the rows that are trained on."""
    added = torch.arange(len(task), len(task) + len(extra.task), device=fitted.device)
    ends = ends if ends is None else torch.cat([ends, extra.ends.to(ends)], dim=1)
    # An epoch takes as many rows as without them, so that a training costs no more.
    epoch_rows = min(task.epoch_rows or len(fitted), len(fitted))
    return replace(task.with_extra(extra.task), epoch_rows=epoch_rows), ends, torch.cat([fitted, added])


def _initial_states(task: Task, settings: FitSettings) -> Tensor:
    with torch.no_grad():
        return task.neural_ode.input_map(task.x[:1].to(settings.device))


def net_inputs(
    task: Task, sample: ScaleSample, method: Method, settings: FitSettings, base_error: float = 1.0
) -> NetInputs:
    """Return what a correction is built from: the inputs that it reads, its steps, and the MACs that it may take."""
    z = sample.residuals[0].z
    first_row = task.rows(slice(0, 1)).to(z.device)
    macs = task.neural_ode.count_field_macs(first_row.x, first_row.condition)
    mesh = FixedMesh.of(method, task.neural_ode.t_span, settings.n_steps)
    sizes = StepSizes.of(settings)
    largest = None if sizes.steps == (settings.n_steps,) else task.span / min(*sizes.steps, settings.n_steps)
    return NetInputs(z, sample.x, method.kinds, MAC_SHARE * macs, tuple(mesh.plans), largest, base_error)


def _delta(
    correction: ModuleCorrection | None, method: Method, data: TaskSet, fitted_steps: Sequence[int]
) -> dict[int, dict[str, float]]:
    """Return the largest and mean ||g - R|| on held-out states, by fitted K.

    Those of start-up steps, of order q, are multiplied by eps^(q - p). Then the local truncation error of every step is
    at most delta * eps^(p + 1), with p the order of the method.
    """
    valid, source = data.valid, data.source
    t_span, delta = source.neural_ode.t_span, {}
    for k in fitted_steps:
        indices = valid.indices(method.mesh(t_span, k))
        steps = [TrainingStep(i, j, method) for i, j in pairwise(indices)]
        errors = []
        for r in source.residuals(valid.times, steps, valid.states.dtype):
            missing = r.target
            if correction is not None:
                with torch.no_grad():
                    missing = missing - correction(r.eps, r.time(), r.z, r.stages, valid.inputs.x, r.kind)
            missing, unit = in_own_units(flatten_samples(missing))
            norms = torch.linalg.vector_norm(missing, dim=1) * unit
            errors.append(norms * abs(r.eps) ** (r.order - method.order))
        norms_of_all = torch.cat(errors)
        delta[k] = {"max": float(norms_of_all.max()), "mean": float(norms_of_all.mean())}
    return delta


def _history(net: TrainingNet, phases: Sequence[Phase]) -> list[dict[str, Any]]:
    """Return one row for each epoch; the public key "stage" holds the loss of its phase."""
    keys = ("epoch", "train_loss", "valid_loss", "dur")
    rows = []
    for row in net.history:
        loss = next((phase.loss for phase in phases if row["epoch"] <= phase.last_epoch), phases[-1].loss)
        rows.append({"stage": loss, **{key: float(row[key]) for key in keys if key in row}, "epoch": row["epoch"]})
    return rows
