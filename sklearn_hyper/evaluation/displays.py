"""Draw error against cost of hypersolvers, their base solvers and dopri5."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..metrics import SolverReport, SolverRow
from ._plotting import import_pyplot, take_axes
from .pareto import pareto_front
from .scorers import resolve_hypersolver

_COSTS = {
    "nfe": ("nfe", "evaluations of the vector field (NFE)"),
    "macs": ("macs", "multiply-accumulates a sample (MACs)"),
    "ms": ("ms", "milliseconds a batch"),
}
_ERRORS = {
    "mape": ("mape", "MAPE of the output"),
    "relative_l2": ("l2_mean", "mean relative L2 error of the terminal state"),
    "accuracy_loss": ("accuracy", "accuracy lost against dopri5 (points)"),
}
# Shapes and fills differ, so that solvers can be told apart without colour.
_STYLES = {
    "dopri5": {"marker": "*", "s": 130, "color": "black", "zorder": 3},
    "base solver": {"marker": "o", "s": 40, "facecolors": "none", "edgecolors": "C0", "zorder": 3},
    "hypersolver": {"marker": "D", "s": 40, "color": "C1", "zorder": 4},
}
_CHECKED_ROWS = 4
_PLAIN_BELOW = 1000


class ParetoDisplay:
    """Draw error against cost of several solvers of one Neural ODE, with the Pareto front.

    Make a display with :meth:`from_estimators`, or from a report that has been measured already.

    Parameters
    ----------
    report : SolverReport
        Report that ``solver_report`` of a fitted hypersolver returned. Add reports to draw several hypersolvers.
    cost : {"nfe", "macs", "ms"}, default "nfe"
        Horizontal axis: evaluations of f, multiply-accumulates, or milliseconds.
    error : {"mape", "relative_l2", "accuracy_loss"}, default "mape"
        Vertical axis: MAPE of the outputs, relative L2 error of the terminal states, or accuracy lost against the
        report's first dopri5. The accuracy loss is in points and needs a report with labels.
    hypersolvers : iterable of str, optional
        Names of the rows that are hypersolvers. By default those that start with ``hyper-``.

    Attributes
    ----------
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure
    points_ : dict of str to matplotlib PathCollection
        Points of each kind of solver: "dopri5", "base solver", "hypersolver".
    front_ : matplotlib Line2D
        The staircase through the points on the front.
    texts_ : list of matplotlib Annotation

    See Also
    --------
    pareto_front : Computes the front alone.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_hyper import HypersolverRegressor
    >>> from sklearn_hyper.datasets import VanDerPol
    >>> from sklearn_hyper.evaluation import ParetoDisplay
    >>> X = np.random.default_rng(0).uniform(-1, 1, (60, 2))
    >>> fast = HypersolverRegressor(VanDerPol(), base_solver="euler", n_steps=2, max_epochs=5, random_state=0).fit(X)
    >>> display = ParetoDisplay(fast.solver_report(X), cost="nfe")
    >>> sorted(zip(display.costs.tolist(), display.solvers))[0]
    (2.0, 'euler K=2')
    >>> display.plot().ax_.get_xlabel()  # doctest: +SKIP
    'evaluations of the vector field (NFE)'
    """

    def __init__(
        self, report: SolverReport, *, cost: str = "nfe", error: str = "mape", hypersolvers: Iterable[str] | None = None
    ):
        _check_axes(cost, error)
        self.report = report
        self.cost = cost
        self.error = error
        self.hypersolvers = hypersolvers

    @classmethod
    def from_estimators(
        cls,
        estimators: Any,
        X: Any,
        y: Any = None,
        *,
        cost: str = "nfe",
        error: str = "mape",
        ax: Any = None,
        tolerance: float = 1e-4,
        annotate: bool = True,
    ) -> ParetoDisplay:
        """Measure and draw fitted hypersolvers of one Neural ODE, with their base solvers and dopri5.

        Parameters
        ----------
        estimators : list or dict of fitted hypersolvers
            The hypersolvers, or Pipelines and searches that end in one. A dict names them; those of a list are named
            after their base solver and K.
        X : array-like of shape (n_samples, ...)
            Rows that ``solver_report`` measures on.
        y : array-like of shape (n_samples,), optional
            Labels, needed for ``error="accuracy_loss"``.
        cost : {"nfe", "macs", "ms"}, default "nfe"
            Horizontal axis.
        error : {"mape", "relative_l2", "accuracy_loss"}, default "mape"
            Vertical axis.
        ax : matplotlib Axes, optional
            Axes to draw in. By default those of a new figure.
        tolerance : float, default 1e-4
            Tolerance of the dopri5 that is drawn, relative to the states' size. Errors are measured against the
            estimators' references.
        annotate : bool, default True
            Write each solver's name beside its point.

        Returns
        -------
        ParetoDisplay
            Its ``report`` is the table behind the picture.

        Raises
        ------
        ValueError
            If ``cost`` or ``error`` is unknown, or the estimators are of different Neural ODEs. If a base solver has
            the name of an estimator, or the accuracy loss is asked for without labels.
        TypeError
            If an estimator is no hypersolver.
        ImportError
            If matplotlib is missing.
        """
        _check_axes(cost, error)
        import_pyplot("ParetoDisplay")  # measuring takes a while, so fail before it
        named = _name_estimators(estimators)
        if error == "accuracy_loss" and y is None:
            raise ValueError("error='accuracy_loss' needs labels: pass y, or use error='mape', which needs none.")
        resolved = {name: resolve_hypersolver(estimator, X) for name, estimator in named}
        _check_same_neural_ode(resolved)
        report, names = _measure(resolved, y, tolerance, keep_names=not isinstance(estimators, Mapping))
        return cls(report, cost=cost, error=error, hypersolvers=names).plot(ax=ax, annotate=annotate)

    @property
    def solvers(self) -> list[str]:
        """Names of the solvers."""
        return [row.solver for row in self.report]

    @property
    def costs(self) -> NDArray[np.float64]:
        """Costs of the solvers."""
        return np.array([getattr(row, _COSTS[self.cost][0]) for row in self.report], dtype=float)

    @property
    def errors(self) -> NDArray[np.float64]:
        """Errors of the solvers."""
        values = np.array([getattr(row, _ERRORS[self.error][0]) for row in self.report], dtype=float)
        if self.error != "accuracy_loss":
            return values
        reference = [value for value, kind in zip(values, self.kinds, strict=True) if kind == "dopri5"]
        if not reference or np.isnan(values).any():
            raise ValueError(
                "error='accuracy_loss' needs a report with dopri5 and accuracies: make it by solver_report(X, y) of a "
                "HypersolverClassifier."
            )
        return np.asarray(100 * (reference[0] - values))

    @property
    def kinds(self) -> list[str]:
        """Kinds of the solvers: "dopri5", "base solver" or "hypersolver"."""
        known = None if self.hypersolvers is None else set(self.hypersolvers)
        return [_kind(name, known) for name in self.solvers]

    def plot(self, ax: Any = None, *, annotate: bool = True) -> ParetoDisplay:
        """Draw the solvers and the front.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Axes to draw in. By default those of a new figure.
        annotate : bool, default True
            Write each solver's name beside its point.

        Returns
        -------
        self

        Raises
        ------
        ImportError
            If matplotlib is missing.
        ValueError
            If no solver has a finite cost and error.

        Warns
        -----
        UserWarning
            If a solver's cost or error is not finite. It is not drawn.
        """
        costs, errors = self.costs, self.errors
        drawn = self._drawable(costs, errors)
        ax = take_axes("ParetoDisplay", ax)
        front = np.flatnonzero(drawn)[pareto_front(costs[drawn], errors[drawn])]
        front = front[np.argsort(costs[front], kind="stable")]
        (self.front_,) = ax.step(
            costs[front], errors[front], where="post", color="0.6", linestyle="--", linewidth=1, label="Pareto front"
        )
        kinds = np.array(self.kinds)
        self.points_ = {
            kind: ax.scatter(costs[drawn & (kinds == kind)], errors[drawn & (kinds == kind)], label=kind, **style)
            for kind, style in _STYLES.items()
            if (drawn & (kinds == kind)).any()
        }
        self.texts_ = [
            ax.annotate(
                self.solvers[i], (costs[i], errors[i]), xytext=(5, 4), textcoords="offset points", fontsize="x-small"
            )
            for i in np.flatnonzero(drawn)
            if annotate
        ]
        _scale_axes(ax, costs[drawn], errors[drawn], self.error)
        ax.set(xlabel=_COSTS[self.cost][1], ylabel=_ERRORS[self.error][1])
        ax.legend()
        _part_labels(ax, self.texts_)
        self.ax_, self.figure_ = ax, ax.figure
        return self

    def _drawable(self, costs: NDArray[np.float64], errors: NDArray[np.float64]) -> NDArray[np.bool_]:
        drawn = np.isfinite(costs) & np.isfinite(errors)
        if not drawn.any():
            raise ValueError(
                f"no solver has a finite {self.cost} and {self.error}, so there is nothing to draw; a field without "
                "matrix products has no MACs: use cost='nfe' or cost='ms' then."
            )
        if not drawn.all():
            missing = [name for name, there in zip(self.solvers, drawn, strict=True) if not there]
            warnings.warn(
                f"{', '.join(missing)}: not drawn, for {self.cost} or {self.error} is not finite.", stacklevel=3
            )
        return drawn


_PLACES = [((5, 4), "left"), ((5, -9), "left"), ((-5, 4), "right"), ((-5, -9), "right")]


def _part_labels(ax: Any, texts: Sequence[Any]) -> None:
    """Place labels inside the axes so that they do not overlap; a label that fits nowhere goes to the upper right."""
    taken: list[Any] = []
    for text in texts:
        for offset, side in [*_PLACES, _PLACES[0]]:
            text.set(position=offset, horizontalalignment=side)
            box = text.get_window_extent()
            inside = ax.bbox.x0 <= box.x0 and box.x1 <= ax.bbox.x1 and ax.bbox.y0 <= box.y0 and box.y1 <= ax.bbox.y1
            if inside and not any(box.overlaps(other) for other in taken):
                break
        taken.append(text.get_window_extent())


def _check_axes(cost: str, error: str) -> None:
    for name, value, valid in [("cost", cost, _COSTS), ("error", error, _ERRORS)]:
        if value not in valid:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, valid))}, got {value!r}.")


def _name_estimators(estimators: Any) -> list[tuple[str, Any]]:
    if isinstance(estimators, Mapping):
        named = [(str(name), estimator) for name, estimator in estimators.items()]
    elif isinstance(estimators, (list, tuple)):
        named = [(f"estimators[{i}]", estimator) for i, estimator in enumerate(estimators)]
    else:
        raise TypeError(f"estimators must be a list or dict of fitted hypersolvers, got {type(estimators).__name__}.")
    if not named:
        raise ValueError("estimators is empty: pass at least one fitted hypersolver.")
    return named


def _check_same_neural_ode(resolved: Mapping[str, tuple[Any, Any]]) -> None:
    """Refuse hypersolvers whose references differ: errors against different references do not compare."""
    references = {name: estimator.reference(X[:_CHECKED_ROWS]) for name, (estimator, X) in resolved.items()}
    (first, expected), *others = references.items()
    for name, reference in others:
        size = float(np.abs(expected).max())
        if reference.shape != expected.shape or not np.allclose(reference, expected, rtol=1e-3, atol=1e-3 * size):
            raise ValueError(
                f"{first} and {name} hypersolve different Neural ODEs, so their errors do not compare. Make a display "
                "for each; with ax= they can share a picture."
            )


def _measure(
    resolved: Mapping[str, tuple[Any, Any]], y: Any, tolerance: float, *, keep_names: bool
) -> tuple[SolverReport, list[str]]:
    """Return one report of all solvers, and the names of the hypersolvers in it."""
    compared_rows: dict[str, SolverRow] = {}
    hypersolvers: list[SolverRow] = []
    notes: list[str] = []
    for name, (estimator, X) in resolved.items():
        labels = y if hasattr(estimator, "predict_proba") else None
        report = estimator.solver_report(X, labels, tolerance=tolerance)
        *compared, hypersolver_row = report
        for row in compared:
            compared_rows.setdefault(row.solver, row)
        hypersolvers.append(
            replace(hypersolver_row, solver=_unused(hypersolver_row.solver, hypersolvers) if keep_names else name)
        )
        notes += report.notes
    names = [row.solver for row in hypersolvers]
    taken = sorted(compared_rows.keys() & set(names))
    if taken:
        raise ValueError(
            f"{', '.join(taken)}: the name of a hypersolver is that of a base solver or dopri5; choose another."
        )
    return SolverReport([*compared_rows.values(), *hypersolvers], notes), names


def _unused(name: str, rows: Iterable[SolverRow]) -> str:
    """Return ``name``, with a number appended if a row has that name already."""
    taken = {row.solver for row in rows}
    numbered = (name if n == 1 else f"{name} ({n})" for n in range(1, len(taken) + 2))
    return next(candidate for candidate in numbered if candidate not in taken)


def _kind(name: str, hypersolvers: set[str] | None) -> str:
    if name.startswith("hyper-") if hypersolvers is None else name in hypersolvers:
        return "hypersolver"
    return "dopri5" if name.startswith("dopri5") else "base solver"


def _scale_axes(ax: Any, costs: NDArray[np.float64], errors: NDArray[np.float64], error: str) -> None:
    """Set log scales, since costs and errors span decades. Accuracy losses stay linear: they may be negative."""
    from matplotlib.ticker import LogFormatter

    ax.margins(x=0.15)  # room for the names
    if (costs > 0).all():
        ax.set_xscale("log")
        if costs.max() < _PLAIN_BELOW:  # write 2 and 40, not 2 x 10^0 and 4 x 10^1
            ax.xaxis.set_major_formatter(LogFormatter())
            ax.xaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
    if error == "accuracy_loss":
        return
    positive = errors[errors > 0]
    if len(positive) == len(errors):
        ax.set_yscale("log")
    elif len(positive):  # a log axis would drop the exact zeros
        ax.set_yscale("symlog", linthresh=math.ldexp(float(positive.min()), -1))
