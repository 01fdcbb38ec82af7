"""Fit hypersolvers: choose the base method, check before solving, learn coefficients, and fit the correction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ..modules.copies import frozen_copy
from ..modules.corrections import CorrectionSpec, resolve_spec
from ..modules.field_probes import PROBED_ROWS, check_start
from ..modules.neural_ode import NeuralODE, check_neural_ode
from ..modules.row_times import choose_times
from ..numerics.methods import Method
from ..numerics.row_errors import numbered_rows
from ..numerics.units import state_units
from ..training.correction_checks import check_correction
from ..training.correction_fit import CorrectionFit, FittedCorrection
from ..training.extra_rows import extra_share
from ..training.nets import draw_seed
from ..training.plan import StepSizes
from ..training.references import solve_ends
from ..training.settings import FitSettings
from ..training.splits import count_held_out
from ..training.targets import max_rows
from ..training.tasks import Task, row_digests
from .choose import BaseSolverChoice, choose_base_solver, choose_correction
from .fitted import FittedHypersolver
from .warm_start import base_of, resume

_MAX_SAMPLES = 2000


def fit_hypersolver(
    task: Task, settings: FitSettings, previous: FittedHypersolver | None = None, *, copy: bool = True
) -> FittedHypersolver:
    """Fit a hypersolver for one Neural ODE.

    Parameters
    ----------
    task : Task
        A Neural ODE in eval mode, on the device of the settings, and rows in its dtype.
    settings : FitSettings
        Settings of the fit.
    previous : FittedHypersolver, optional
        Fit to continue: start from its correction, and keep its method if ``base_solver`` is "auto".
    copy : bool, default True
        Fit a frozen copy of each Neural ODE. False works on the task's own, which must be frozen and in eval mode, and
        measures its states' size.

    Returns
    -------
    FittedHypersolver
        The result. After Ctrl-C in training it has the best weights so far, and ``interrupted`` is set.

    Raises
    ------
    ValueError, VectorFieldError, ReferenceSolveError, TrainingDivergedError, KeyboardInterrupt
        As :meth:`HypersolverRegressor.fit`.
    """
    return fit_hypersolvers([task], settings, None if previous is None else [previous], copy=copy)[0]


def fit_hypersolvers(
    tasks: Sequence[Task],
    settings: FitSettings,
    previous: Sequence[FittedHypersolver] | None = None,
    *,
    refit_units: bool = False,
    copy: bool = True,
) -> list[FittedHypersolver]:
    """Fit one correction over several Neural ODEs: a hypersolver for each, whose nets share their weights.

    Parameters
    ----------
    tasks : sequence of Task
        One task for each Neural ODE. Their states must have one shape and dtype.
    settings : FitSettings
        Settings of the fit.
    previous : sequence of FittedHypersolver, optional
        Fits to continue, one for each task: training starts from their corrections.
    refit_units : bool, default False
        Measure scales, caps and floors of previous corrections again, for fields that have changed since.
    copy : bool, default True
        Fit a frozen copy of each Neural ODE. False works on the task's own, which must be frozen and in eval mode, and
        measures its states' size.

    Returns
    -------
    list of FittedHypersolver
        One for each task. Learned coefficients are those of the first task. Pickle the list by
        ``modules.serialization.pack``: pickled or saved one by one, the values no longer share a net.

    Examples
    --------
    >>> import torch
    >>> from sklearn_hyper import NeuralODE
    >>> from sklearn_hyper.hypersolvers import FitSettings, Task, fit_hypersolvers
    >>> x = torch.linspace(0.5, 1, 40)[:, None]
    >>> tasks = [Task(NeuralODE(lambda t, z, rate=rate: -rate * z).eval(), x) for rate in (1.0, 2.0)]
    >>> one, other = fit_hypersolvers(tasks, FitSettings(n_steps=2, max_epochs=40, random_state=0))
    >>> one.correction.net.weights is other.correction.net.weights
    True
    """
    if copy:
        tasks = [replace(task, neural_ode=frozen_copy(task.neural_ode)) for task in tasks]
    starts = [_initial_states(task, settings) for task in tasks]
    _check_alike(tasks, starts)
    if previous is not None and any(one.correction is None for one in previous):
        previous = None  # there is nothing to start from
    settings = replace(settings, correction=_choose_correction(tasks, starts[0], settings, previous))
    choice = choose_base_solver(settings, starts[0][0].numel())
    if previous is not None:
        choice = resume(choice, previous, tasks, settings)
    _check_t_eval(settings, choice.method)
    sizes = StepSizes.of(settings)
    chosen = []
    for task, z in zip(tasks, starts, strict=True):
        _check_range(task.neural_ode, z, choice.method, sizes)
        chosen.append(_draw_rows(task, z, choice.method, settings))
    n_rows = [len(task) for task in tasks]
    tasks = [
        _checked(task, z, rows, choice.method, settings) for task, z, rows in zip(tasks, starts, chosen, strict=True)
    ]
    # Errors name rows of x, not of the drawn rows. With several tasks they name drawn rows: it is not known whose.
    numbering = numbered_rows(chosen[0].tolist(), n_rows[0]) if len(tasks) == 1 else nullcontext()
    with numbering:
        times = [_choose_times(task, settings) for task in tasks]
        method, fitted = _fit(tasks, choice, settings, previous, refit_units)
    before: Sequence[FittedHypersolver | None] = previous or [None] * len(tasks)
    return [
        _product(task, method, one, settings, enters, seen)
        for task, one, enters, seen in zip(tasks, fitted, times, before, strict=True)
    ]


def _fit(
    tasks: Sequence[Task],
    choice: BaseSolverChoice,
    settings: FitSettings,
    previous: Sequence[FittedHypersolver] | None,
    refit_units: bool,
) -> tuple[Method, list[FittedCorrection]]:
    """Learn coefficients, if the base method has some to learn, and fit the corrections."""
    method, ends = choice.method, None
    if len(tasks) == 1 and not settings.needs_mesh(method):
        # One solve of the ends serves coefficients and correction. A whole mesh is known only after the coefficients.
        ends = solve_ends(tasks[0], settings)
    tunes_method = choice.coefficients is not None
    if choice.coefficients is not None:
        method = choice.coefficients.fit(tasks[0], ends)
    warm = None if previous is None else [one.correction for one in previous if one.correction is not None]
    # Coefficients that were trained on with a correction are no base solver without it.
    base = method if warm is None or previous is None else base_of(previous[0], method)
    fit = CorrectionFit(
        tasks, method, settings, warm=warm, refit_units=refit_units, ends=ends, tunes_method=tunes_method, base=base
    )
    return base, fit.prepare().run().product()


def _choose_correction(
    tasks: Sequence[Task], z: Tensor, settings: FitSettings, previous: Sequence[FittedHypersolver] | None
) -> CorrectionSpec:
    """Return the correction to fit. A warm start goes on with what "auto" stood for."""
    if previous is not None and isinstance(settings.correction, str):
        settings = replace(settings, correction=previous[0].settings.correction)
        if isinstance(settings.correction, str):  # saved by a version in which "auto" was always a net
            return resolve_spec(settings.correction, z)
    return choose_correction(settings, [task.rows(slice(0, len(z))).to(settings.device) for task in tasks], z)


# ---------------------------------------------------------------------- before any solve
def _initial_states(task: Task, settings: FitSettings) -> Tensor:
    """Return the initial states of two rows, on the device of the fit, or say what is wrong with the Neural ODE."""
    two_rows = task.rows(slice(0, 2)).to(settings.device)
    return check_neural_ode(task.neural_ode, two_rows.x, two_rows.condition)


def _check_alike(tasks: Sequence[Task], starts: Sequence[Tensor]) -> None:
    """Refuse tasks whose states and inputs a single net cannot serve."""
    kinds = sorted(
        {
            f"states of {tuple(z.shape[1:])}, {z.dtype}"
            + (f", inputs of {tuple(task.x.shape[1:])}" if task.neural_ode.data_controlled else "")
            for task, z in zip(tasks, starts, strict=True)
        }
    )
    if len(kinds) != 1:
        raise ValueError(
            f"tasks must be one or more, with states and inputs of one shape and dtype, got {len(starts)} with "
            f"{kinds}; fit the others apart."
        )


def _check_t_eval(settings: FitSettings, method: Method) -> None:
    """Refuse times to fit at that no loss reads, or that the method's states have nothing to do with."""
    if settings.t_eval is None:
        return
    if not settings.adapted_to(method).trains_on("trajectory"):
        advice = (
            "stepping='adaptive' has no such loss, and is fitted for all times alike: leave t_eval out"
            if settings.is_adaptive
            else "pass finetune='trajectory', or leave t_eval out"
        )
        raise ValueError(
            f"t_eval says at which times 'trajectory' losses compare states, and loss={settings.loss!r} with "
            f"finetune={settings.finetune!r} reads none of them: {advice}."
        )
    if not method.follows_trajectory:
        raise ValueError(
            f"t_eval with base_solver={method.name!r}, which approximates the state at the end of t_span alone: take "
            "base_solver='auto', or name one that follows the trajectory, such as 'ab2'."
        )


def _check_range(neural_ode: NeuralODE, z: Tensor, method: Method, sizes: StepSizes) -> None:
    """Refuse units of time in which residuals overflow or underflow in the states' dtype."""
    span = abs(neural_ode.t_span[1] - neural_ode.t_span[0])
    size = float(state_units(z, neural_ode.n_unitless).max())
    power = method.order + 1
    largest = math.log10(torch.finfo(z.dtype).max) - 2
    powers = [power * math.log10(share * span) for share in (sizes.low, sizes.high)]
    if max(abs(log - offset) for log in powers for offset in (0, math.log10(size))) > largest:
        raise ValueError(
            f"neural_ode.t_span={neural_ode.t_span} with base_solver={method.name!r}: eq. 6 divides by eps^{power}, "
            f"with eps from {sizes.low * span:.3g} to {sizes.high * span:.3g} and states of size {size:.3g}, which "
            f"leaves the range of {z.dtype}. Measure time in units that make t_span about one long, take a base solver "
            "of lower order, or fit in float64."
        )


def _draw_rows(task: Task, z: Tensor, method: Method, settings: FitSettings) -> np.ndarray:
    """Return the indices of the rows to fit on: all, or ``max_samples`` of them, drawn at random."""
    n_samples = len(task)
    limit = settings.max_samples
    if isinstance(limit, str):
        limit = max_rows(task.rows(slice(0, 2)), z, method, settings)
        if settings.extra_rows is not None:
            limit = max(2, int(limit / (1 + extra_share(settings.extra_rows))))
        if task.epoch_rows is None:
            limit = min(_MAX_SAMPLES, limit)
    if n_samples <= limit:
        return np.arange(n_samples)
    seed = None if settings.random_state is None else draw_seed(settings.random_state)
    return np.sort(np.random.default_rng(seed).choice(n_samples, limit, replace=False))


def _checked(task: Task, z: Tensor, chosen: np.ndarray, method: Method, settings: FitSettings) -> Task:
    """Check the task of the chosen rows with the field and the correction, measure its states' size, and return it."""
    n_rows = len(task)
    n_fitted = len(chosen) - count_held_out(settings.validation_fraction, len(chosen), at_least=1)
    first_rows = task.rows(slice(0, len(z))).to(settings.device)
    task = task.rows(torch.from_numpy(chosen))
    check_start(task.neural_ode, task.x, chosen, task.condition)
    with numbered_rows(range(len(z)), n_rows):
        check_correction(first_rows, method, settings, n_fitted)
    if task.neural_ode.state_size is None:
        task.neural_ode.measure_size(task.x.to(settings.device))
    return task


def _choose_times(task: Task, settings: FitSettings) -> str:
    """Return what the field gets as its time, see :func:`choose_times`; "shared" where steps are fixed."""
    if not settings.is_adaptive:
        return "shared"
    few_rows = task.rows(slice(0, PROBED_ROWS)).to(settings.device)
    return choose_times(few_rows.neural_ode, few_rows.x, few_rows.condition, row_times=settings.row_times)


# ---------------------------------------------------------------------- afterwards
def _product(
    task: Task,
    method: Method,
    fitted: FittedCorrection,
    settings: FitSettings,
    times: str,
    previous: FittedHypersolver | None,
) -> FittedHypersolver:
    low, high = fitted.fitted_range
    fitted_rows = row_digests(task.neural_ode, task.x, task.condition)
    if fitted.extra_rows is not None:
        fitted_rows = np.union1d(fitted_rows, fitted.extra_rows)
    if previous is not None and previous.fitted_rows is not None:
        fitted_rows = np.union1d(previous.fitted_rows, fitted_rows)  # a warm start has seen both
    takes_row_steps = fitted.correction is None or fitted.correction.takes_row_steps
    return FittedHypersolver(
        neural_ode=task.neural_ode,
        method=fitted.method,
        base_method=method,
        correction=fitted.correction,
        n_steps=settings.n_steps,
        settings=settings,
        times=times if takes_row_steps else "shared",
        steps=fitted.steps,
        fitted_eps=(low * task.span, high * task.span),
        errors=fitted.errors,
        errors_before=fitted.errors_before,
        delta=fitted.delta,
        history=fitted.history,
        net=fitted.net,
        n_samples=len(task),
        problems=tuple(_problems(fitted, method, settings)),
        interrupted=fitted.interrupted,
        fitted_rows=fitted_rows,
    )


def _problems(fitted: FittedCorrection, method: Method, settings: FitSettings) -> list[str]:
    """Describe the problems of a fit to its user, one sentence or two each."""
    found = []
    if fitted.correction is None:
        found.append(
            "no epoch was better than the base solver on held-out rows, in the mean and in the largest error (best "
            f"valid_loss {fitted.valid_loss:.3g}; 1 is the base solver), so this fit falls back to it: correction_ is "
            "None. Lower lr, raise max_epochs, or give more rows."
        )
        if settings.is_adaptive and fitted.method.error_order is None:
            found.append(
                f"base_solver={method.name!r} estimates no error without a correction, so this fit takes "
                f"n_steps={settings.n_steps} equal steps instead of adaptive ones."
            )
    if fitted.raises_largest:
        row = fitted.errors[settings.n_steps]
        found.append(
            f"the largest error on held-out rows is above the base solver's ({row['max']:.3g} for "
            f"{row['base_max']:.3g}), though the mean is below half of it ({row['mean']:.3g} for "
            f"{row['base_mean']:.3g}): no epoch was better that keeps it below. A few rows are worse than without a "
            "correction. Give more rows, or raise n_steps."
        )
    large = [
        f"{share:.3g} times the size of {what}" for what, share in fitted.relative_errors.items() if not share <= 1
    ]
    if large:
        found.append(
            f"the fit ends with errors of {' and '.join(large)} on held-out rows: steps of base_solver={method.name!r} "
            f"with n_steps={settings.n_steps} are too long for this field. Raise n_steps, or take a base solver of "
            "higher order."
        )
    return found
