"""Say which solver to take for an error or a latency, and whether a hypersolver pays at all."""

from __future__ import annotations

import html
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn import clone
from sklearn.model_selection import train_test_split
from sklearn.utils import _safe_indexing, check_random_state
from sklearn.utils.validation import _num_samples

from ..estimators import HypersolverClassifier, HypersolverRegressor
from ..estimators._base import outside_inference_mode
from ..estimators._conditions import LearnedCondition
from ..estimators._fitted_neural_ode import resolve_neural_ode
from ..hypersolvers.fitted import UNDEFINED
from ..numerics.row_errors import numbered_rows, refuse_undefined
from ..reports import SolverReport, SolverRow
from ._candidates import (
    TIGHTEST,
    Candidate,
    default_steps,
    dopri5_name,
    find_candidates,
    fit_trials,
    measure_candidates,
    trial_epochs,
)  # fmt: skip
from ._rows import reference_states, task_of
from .budget import cheapest_within
from .pareto import pareto_front

_FEWEST_ROWS, _HELD_OUT, _MOST_HELD_OUT = 20, 0.25, 256

_METRICS = {
    "mape": "MAPE of the output",
    "relative_l2": "mean relative error of the state",
    "relative_l2_max": "largest relative error of the state",
    "disagreement": "share of labels that differ from dopri5's",
}
_COSTS = {"nfe": "evaluations of f", "macs": "multiply-accumulates", "ms": "milliseconds a batch"}
_BUDGETS = {"milliseconds": "ms", "evaluations": "nfe"}


@dataclass(frozen=True, eq=False)
class Advice:
    """What :func:`advise` found: a table, a recommendation in words, and the solver that it names.

    It prints as text and displays as HTML.

    Parameters
    ----------
    report : SolverReport
        All solvers that were measured, on rows that no trial was fitted on.
    recommendation_ : str
        Which solver to take, and whether a hypersolver pays.
    best_solver_ : str
        Name of the solver to take, as in the report.
    best_params_ : dict
        Its settings. Of a hypersolver: parameters to fit one with. Of a classical method: arguments for
        ``without_correction().with_solver``. Of dopri5: its tolerance.
    best_estimator_ : fitted hypersolver or None
        It predicts as the solver to take does: the trial itself, or the classical method alone. None for dopri5, which
        is the Neural ODE's own solver.
    pays_ : bool
        Whether a hypersolver is the solver to take.
    reached_ : bool
        Whether the solver to take is within the target. If none is, it is the closest.
    trials_ : dict of str to fitted hypersolver
        The trials, by name.
    shown : tuple of str
        Names of the rows that are printed: hypersolvers, dopri5 at its tightest tolerance, the best without a fit, and
        what nothing beats in both cost and error.
    """

    report: SolverReport = field(repr=False)
    recommendation_: str
    best_solver_: str
    best_params_: dict[str, Any]
    best_estimator_: Any = field(repr=False)
    pays_: bool
    reached_: bool
    trials_: dict[str, Any] = field(repr=False)
    shown: tuple[str, ...] = field(repr=False)

    @property
    def table(self) -> SolverReport:
        """The rows of the report that are printed."""
        return SolverReport([row for row in self.report if row.solver in self.shown], self.report.notes)

    def __str__(self) -> str:
        return f"{self.table}\n\n{self.recommendation_}"

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        words = "".join(f"<p>{html.escape(line)}</p>" for line in self.recommendation_.splitlines())
        return f"<div>{words}{self.table._repr_html_()}</div>"


def advise(
    neural_ode: Any,
    X: Any,
    *,
    condition: Any = None,
    error: float | None = None,
    milliseconds: float | None = None,
    evaluations: int | None = None,
    metric: str = "mape",
    cost: str | None = None,
    n_steps: Sequence[int] | None = None,
    max_epochs: int | None = None,
    batch_size: int = 256,
    random_state: Any = None,
) -> Advice:
    """Try cheap solvers of a Neural ODE, and say which to take for a target, and whether a hypersolver pays.

    It fits a few short trials of hypersolvers, and measures them beside classical methods and dopri5 at loose
    tolerances, on rows that no trial was fitted on. Of the classical methods, those that another beats in evaluations
    and error are left out.

    Parameters
    ----------
    neural_ode : Neural ODE or hypersolver
        A fitted Neural ODE in any form that :class:`HypersolverRegressor` takes. Or a HypersolverRegressor or
        HypersolverClassifier, fitted or not, whose parameters the trials take; it is left as it is.
    X : array-like of shape (n_samples, ...)
        At least 20 rows like those of later predictions. A quarter of them, at most 256, is held out to measure on.
    condition : optional
        Where the field takes one: as in :meth:`HypersolverRegressor.fit`, one entry a row or one for all. Of a fitted
        estimator it is the condition of its fit.
    error : float, optional
        Target: the largest error, in terms of ``metric``. The cheapest solver within it is recommended; of equally
        cheap ones, one that needs no fit.
    milliseconds : float, optional
        Target: the most milliseconds a batch of ``batch_size`` rows may take. The most accurate solver within it is
        recommended. Give exactly one of the three targets.
    evaluations : int, optional
        Target: the most evaluations of f.
    metric : {"mape", "relative_l2", "relative_l2_max", "disagreement"}, default "mape"
        What the error is: the MAPE of the output, the mean or largest relative L2 error of the terminal state, or the
        share of labels that differ from dopri5's, which needs a classifier.
    cost : {"macs", "ms", "nfe"}, optional
        Cost by which solvers within ``error`` are compared: multiply-accumulates of f and correction, milliseconds, or
        evaluations of f. By default MACs where f has some, and else milliseconds. A budget is its own cost.
    n_steps : sequence of int, optional
        Numbers of steps of the trials. By default 2, 4 and 8; with ``evaluations``, the most steps that it allows, and
        half of them.
    max_epochs : int, optional
        Epochs of a trial. By default 20, or as many as make 200 updates where rows are few, but no more than a full fit
        has: 120, or those of the hypersolver that was passed. A full fit is more accurate.
    batch_size : int, default 256
        Rows of the batch that is timed; fewer where fewer are held out.
    random_state : int, RandomState or None
        Seeds the choice of rows and the trials. Errors, evaluations and MACs are the same for the same int;
        milliseconds are measured.

    Returns
    -------
    Advice
        Print it. Its ``best_params_`` and ``best_estimator_`` are what it recommends.

    Raises
    ------
    TypeError
        If ``neural_ode`` is none of the accepted forms, or a parameter is of another type.
    ValueError
        If not exactly one target is given, a parameter is out of its range or has no effect, or X has too few rows. If
        ``error`` is below the tolerance of the reference. If ``metric="disagreement"`` and there are no labels, or
        ``cost="macs"`` and f has no MACs. If ``condition`` has another length than X, values that are missing, or
        differs from that of a fitted estimator.
    ReferenceSolveError, VectorFieldError, TrainingDivergedError
        As :meth:`HypersolverRegressor.fit`. Rows are numbered as in X.

    See Also
    --------
    cheapest_within : The same choice in a search over full fits.
    ParetoDisplay : Draws ``advice.report``.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_hyper.datasets import VanDerPol
    >>> from sklearn_hyper.evaluation import advise
    >>> X = np.random.default_rng(0).uniform(-1, 1, (200, 2))
    >>> advice = advise(VanDerPol(), X, error=1e-3, cost="nfe", n_steps=[2, 4], random_state=0)
    >>> advice.best_solver_, advice.best_params_  # a mere formula: a classical method does
    ('rk4 K=4', {'base_solver': 'rk4', 'n_steps': 4})
    >>> advice.pays_
    False
    >>> advice.best_estimator_.predict(X).shape
    (200, 2)
    """
    target = _Target.of(error, milliseconds, evaluations, metric, cost)
    _check_settings(n_steps, max_epochs, batch_size)
    template = _as_hypersolver(neural_ode, metric)
    _check_measurable(error, metric, template.rtol)
    learned = _learn_condition(template, condition, _num_samples(X))
    fit_rows, held_out, seed = _split(X, random_state)
    full_epochs = template.max_epochs
    template.set_params(max_epochs=max_epochs or trial_epochs(template, len(fit_rows)), random_state=seed)
    steps = default_steps(template, evaluations) if n_steps is None else sorted({int(k) for k in n_steps})
    n_rows = _num_samples(X)
    with numbered_rows(fit_rows, n_rows):
        trials, seconds = fit_trials(template, _safe_indexing(X, fit_rows), learned.rows(fit_rows), steps)
    any_trial = trials[steps[0]]
    task = task_of(any_trial, _safe_indexing(X, held_out), learned.rows(held_out))
    with numbered_rows(held_out, n_rows):
        reference = reference_states(any_trial, task)
        refuse_undefined(torch.from_numpy(any_trial.fitted_.map_output(reference)), UNDEFINED)
    with outside_inference_mode():
        candidates, notes = find_candidates(trials, task, reference, evaluations)
        report = measure_candidates(candidates, any_trial, task, reference, batch_size)
    report = SolverReport(report.rows, [*report.notes, *notes])
    is_short = template.max_epochs < full_epochs
    return _Choice(report, candidates, target.for_report(report), seconds, template.max_epochs, is_short).advice()


# ---------------------------------------------------------------------- what is asked for
@dataclass(frozen=True)
class _Target:
    """An error that solvers have to reach, or a budget that they have to keep."""

    name: str
    limit: float
    metric: str
    cost: str | None

    @classmethod
    def of(cls, error: Any, milliseconds: Any, evaluations: Any, metric: Any, cost: Any) -> _Target:
        targets = {"error": error, "milliseconds": milliseconds, "evaluations": evaluations}
        given = {name: value for name, value in targets.items() if value is not None}
        if len(given) != 1:
            raise ValueError(
                f"give exactly one target, error=, milliseconds= or evaluations=, got {', '.join(given) or 'none'}."
            )
        ((name, limit),) = given.items()
        if not isinstance(limit, Real) or isinstance(limit, bool):
            raise TypeError(f"{name} must be a number, got {limit!r}.")
        if not 0 < limit < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {limit!r}.")
        if name == "evaluations" and limit < 1:
            raise ValueError(f"evaluations must be at least 1, got {limit!r}: every solver evaluates f once.")
        for parameter, value, valid in [("metric", metric, _METRICS), ("cost", cost, _COSTS)]:
            if value not in valid and not (parameter == "cost" and value is None):
                raise ValueError(f"{parameter} must be one of {', '.join(map(repr, valid))}, got {value!r}.")
        if name != "error" and cost is not None:
            raise ValueError(f"cost={cost!r} has no effect: with {name}= the budget is the cost. Leave cost out.")
        return cls(name, float(limit), metric, _BUDGETS.get(name, cost))

    def for_report(self, report: SolverReport) -> _Target:
        """Return the target with a cost that the report has."""
        is_formula = all(math.isnan(row.macs) for row in report)
        if self.cost == "macs" and is_formula:
            raise ValueError(
                "cost='macs' counts multiply-accumulates, and the vector field has none, for it holds no matrix "
                "product or convolution: use cost='ms' or cost='nfe'."
            )
        default = "ms" if is_formula else "macs"
        return _Target(self.name, self.limit, self.metric, self.cost or default)

    @property
    def is_budget(self) -> bool:
        return self.name in _BUDGETS

    def errors(self, rows: Sequence[SolverRow]) -> NDArray[np.float64]:
        if self.metric == "disagreement":
            return np.array([1 - row.accuracy for row in rows])
        column = {"mape": "mape", "relative_l2": "l2_mean", "relative_l2_max": "l2_max"}[self.metric]
        return np.array([getattr(row, column) for row in rows], dtype=float)

    def costs(self, rows: Sequence[SolverRow]) -> NDArray[np.float64]:
        return np.array([getattr(row, str(self.cost)) for row in rows], dtype=float)

    def choose(self, rows: Sequence[SolverRow]) -> tuple[SolverRow, bool]:
        """Return the solver to take, and whether it is within the target; the closest where none is."""
        errors, costs = self.errors(rows), self.costs(rows)
        within = (costs if self.is_budget else errors) <= self.limit * (1 + 1e-12)
        results = {
            "mean_test_neg_error": -errors,
            "mean_test_neg_cost": -costs,
            "params": [row.solver for row in rows],
        }
        # Under a budget the roles change: the least error among those whose cost is within it.
        metric, cost = ("neg_cost", "neg_error") if self.is_budget else ("neg_error", "neg_cost")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that none is within the target is said in words
            index = cheapest_within(self.limit, metric=metric, cost=cost, reference=0.0)(results)
        return rows[index], bool(within[index])


def _check_settings(n_steps: Any, max_epochs: Any, batch_size: Any) -> None:
    for name, value in [("max_epochs", 1 if max_epochs is None else max_epochs), ("batch_size", batch_size)]:
        if not _is_count(value):
            raise ValueError(f"{name} must be an integer of at least 1, got {value!r}.")
    if n_steps is None:
        return
    is_sequence = isinstance(n_steps, (Sequence, np.ndarray)) and not isinstance(n_steps, str)
    if not is_sequence or not len(n_steps) or not all(_is_count(k) for k in n_steps):
        raise ValueError(f"n_steps must be a list of integers of at least 1, such as [2, 4], got {n_steps!r}.")


def _is_count(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and value >= 1


def _as_hypersolver(neural_ode: Any, metric: str) -> Any:
    """Return an unfitted hypersolver, whose parameters the trials take."""
    if isinstance(neural_ode, (HypersolverRegressor, HypersolverClassifier)):
        template = clone(neural_ode)
        if template.stepping != "fixed":
            raise ValueError(
                f"neural_ode has stepping={template.stepping!r}, and advise compares numbers of fixed steps: pass one "
                "with stepping='fixed', or the Neural ODE itself."
            )
    else:
        resolved = resolve_neural_ode(neural_ode)
        kind = HypersolverRegressor if resolved.classes is None else HypersolverClassifier
        template = kind(neural_ode)
    if metric == "disagreement" and not isinstance(template, HypersolverClassifier):
        raise ValueError(
            "metric='disagreement' compares labels, and there are none: pass a fitted NeuralODEClassifier, or a "
            "HypersolverClassifier, or take metric='mape'."
        )
    return template


def _learn_condition(template: Any, condition: Any, n_rows: int) -> LearnedCondition:
    """Return the condition of all rows, so that a category of held-out rows alone is known to the trials."""
    return LearnedCondition.of(condition, n_rows, clone(template), resolve_neural_ode(template.neural_ode).estimator)


def _check_measurable(error: float | None, metric: str, rtol: float) -> None:
    if error is not None and metric != "disagreement" and error <= rtol:
        raise ValueError(
            f"error={error!r} is not larger than rtol={rtol:g} of the dopri5 that errors are measured against: pass a "
            "hypersolver with a smaller rtol, or raise error."
        )


def _split(X: Any, random_state: Any) -> tuple[NDArray[np.intp], NDArray[np.intp], int]:
    """Return row numbers to fit the trials on, row numbers to measure on, and a seed for the trials."""
    n_rows = _num_samples(X)
    if n_rows < _FEWEST_ROWS:
        raise ValueError(f"X has {n_rows} rows, and advise needs at least {_FEWEST_ROWS} to fit and to measure on.")
    generator = check_random_state(random_state)
    n_held_out = min(math.ceil(_HELD_OUT * n_rows), _MOST_HELD_OUT)
    fit_rows, held_out = train_test_split(np.arange(n_rows), test_size=n_held_out, random_state=generator)
    return np.sort(fit_rows), np.sort(held_out), int(generator.randint(2**31 - 1))


# ---------------------------------------------------------------------- in words
@dataclass(frozen=True)
class _Choice:
    """The measured solvers, and what is said of them."""

    report: SolverReport
    candidates: Mapping[str, Candidate]
    target: _Target
    seconds: float
    epochs: int
    is_short: bool

    def advice(self) -> Advice:
        rows = list(self.report)
        row, reached = self._choose(rows)
        best = self.candidates[row.solver]
        on_front = pareto_front(self.target.costs(rows), self.target.errors(rows))
        plain, _ = self.target.choose(self._without_fit)  # the words name it
        asked_for = {row.solver, plain.solver, dopri5_name(TIGHTEST)}
        shown = [
            one.solver
            for one, keep in zip(rows, on_front, strict=True)
            if keep or one.solver in asked_for or self.candidates[one.solver].is_hypersolver
        ]
        return Advice(
            report=self.report, recommendation_="\n".join(self._lines(row, reached)), best_solver_=row.solver,
            best_params_=best.params, best_estimator_=best.estimator, pays_=best.is_hypersolver and reached,
            reached_=reached, trials_={n: c.estimator for n, c in self.candidates.items() if c.is_hypersolver},
            shown=tuple(shown),
        )  # fmt: skip

    @property
    def _without_fit(self) -> list[SolverRow]:
        return [one for one in self.report if not self.candidates[one.solver].is_hypersolver]

    def _choose(self, rows: Sequence[SolverRow]) -> tuple[SolverRow, bool]:
        """Return the solver to take, and whether it is within the target.

        Where an error is asked for, a tie in cost goes to a solver without a fit: more accuracy was not asked for.
        """
        row, reached = self.target.choose(rows)
        plain, plain_reaches = self.target.choose(self._without_fit)
        costs = self.target.costs([row, plain])
        if reached and plain_reaches and not self.target.is_budget and costs[1] <= costs[0]:
            return plain, True
        return row, reached

    def _lines(self, row: SolverRow, reached: bool) -> Iterator[str]:
        if reached:
            yield f"Take {self._name(row)}: {self._describe(row)}."
        else:
            yield f"Nothing tried is within {self._limit}. Closest is {self._name(row)}: {self._describe(row)}."
            yield "Allow more." if self.target.is_budget else "Try more steps (n_steps=), or lower dopri5's tolerance."
        yield from self._verdict(row, reached)
        if self.is_short and any(one.is_hypersolver for one in self.candidates.values()):
            yield f"Hypersolvers were fitted for {self.epochs} epochs; full fits have smaller errors."

    def _verdict(self, row: SolverRow, reached: bool) -> Iterator[str]:
        """Say whether a hypersolver pays, beside the best without one."""
        hypersolvers = [one for one in self.report if self.candidates[one.solver].is_hypersolver]
        if not hypersolvers:
            yield "A hypersolver does not pay here: no trial beat its base solver."
            return
        learned, learned_reaches = self.target.choose(hypersolvers)
        plain, plain_reaches = self.target.choose(self._without_fit)
        if row is learned and reached:
            if plain_reaches:
                yield f"A hypersolver pays: the best without one is {self._name(plain)}, {self._describe(plain)}."
            else:
                yield f"A hypersolver pays: without one, nothing tried is within {self._limit}."
            yield from self._break_even(learned, plain)
        elif learned_reaches:
            yield (
                f"A hypersolver does not pay here: the best of them is {self._name(learned)}, "
                f"{self._describe(learned)}."
            )
        else:
            yield (
                f"A hypersolver does not pay here: none of those tried is within {self._limit}. The closest is "
                f"{self._name(learned)}, {self._describe(learned)}."
            )

    def _break_even(self, learned: SolverRow, plain: SolverRow) -> Iterator[str]:
        """Say what the fit costs beside what it saves; milliseconds are what both are measured in."""
        saved = plain.ms - learned.ms
        if saved > 0:
            batches = max(math.ceil(1e3 * self.seconds / saved), 1)
            yield f"Its trial took {self.seconds:.2g} s to fit, what {_say_count(batches)} batches save."
        elif self.target.cost != "ms":
            yield (
                f"In milliseconds it is the other way round: {plain.ms:.2g} without and {learned.ms:.2g} with one a "
                "batch. Take cost='ms' or milliseconds= where time counts."
            )

    def _name(self, row: SolverRow) -> str:
        return self.candidates[row.solver].words

    def _describe(self, row: SolverRow) -> str:
        (error,), (cost,) = self.target.errors([row]), self.target.costs([row])
        text = (
            f"error {error:.2g} ({_METRICS[self.target.metric]}) at {_say_count(cost)} {_COSTS[str(self.target.cost)]}"
        )
        return text if self.target.cost == "ms" else f"{text} and {row.ms:.2g} ms a batch"

    @property
    def _limit(self) -> str:
        if self.target.is_budget:
            return f"{self.target.limit:g} {_COSTS[str(self.target.cost)]}"
        return f"an error of {self.target.limit:g}"


def _say_count(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
