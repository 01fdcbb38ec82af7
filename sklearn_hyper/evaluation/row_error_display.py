"""Draw how errors spread over rows: which share of them is how wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..metrics import relative_l2
from ._plotting import import_pyplot, take_axes
from ._rows import reference_states, task_of
from .scorers import resolve_hypersolver


class RowErrorDisplay:
    """Draw the error of every row, sorted: at a share of .99 stands the error that 1 % of rows exceed.

    Make a display with :meth:`from_estimator`, or from errors that are known.

    Parameters
    ----------
    errors : dict of str to ndarray of shape (n_samples,)
        Error of each row, keyed by solver.

    Attributes
    ----------
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure
    lines_ : dict of str to matplotlib Line2D

    See Also
    --------
    ParetoDisplay : Draws mean errors against cost.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_hyper import HypersolverRegressor
    >>> from sklearn_hyper.datasets import VanDerPol
    >>> from sklearn_hyper.evaluation import RowErrorDisplay
    >>> X = np.random.default_rng(0).uniform(-1, 1, (60, 2))
    >>> fast = HypersolverRegressor(VanDerPol(), base_solver="euler", n_steps=2, max_epochs=5, random_state=0).fit(X)
    >>> display = RowErrorDisplay.from_estimator(fast, X)
    >>> {name: errors.shape for name, errors in display.errors.items()}
    {'euler K=2': (60,), 'hyper-euler K=2': (60,)}
    >>> worst = display.worst_rows("hyper-euler K=2")[:3]
    >>> bool(display.errors["hyper-euler K=2"][worst[0]] == display.errors["hyper-euler K=2"].max())
    True
    """

    def __init__(self, errors: Mapping[str, NDArray[np.float64]]):
        self.errors = errors

    @classmethod
    def from_estimator(cls, estimator: Any, X: Any, *, ax: Any = None) -> RowErrorDisplay:
        """Measure and draw the relative L2 errors of the terminal states, with and without the correction.

        Parameters
        ----------
        estimator : fitted hypersolver
            Or a Pipeline or search that ends in one.
        X : array-like of shape (n_samples, ...)
            Rows that the fit has not seen.
        ax : matplotlib Axes, optional
            Axes to draw in. By default those of a new figure.

        Returns
        -------
        RowErrorDisplay

        Raises
        ------
        TypeError
            If the estimator is no hypersolver.
        ReferenceSolveError
            If dopri5 cannot solve some rows; the error names them.
        ImportError
            If matplotlib is missing.
        """
        import_pyplot("RowErrorDisplay")  # measuring takes a while, so fail before it
        hypersolver, X = resolve_hypersolver(estimator, X)
        fitted = hypersolver._require_product()
        task = task_of(hypersolver, X)
        reference = reference_states(hypersolver, task)
        base = hypersolver.without_correction()
        solvers = {base.fitted_.solver_name: base}
        if fitted.correction is not None:
            solvers[f"hyper-{fitted.solver_name}"] = hypersolver
        errors = {
            name: relative_l2(reference.cpu().numpy(), np.asarray(solver.transform(X)).reshape(reference.shape))
            for name, solver in solvers.items()
        }
        return cls(errors).plot(ax=ax)

    def worst_rows(self, solver: str) -> NDArray[np.intp]:
        """Return row numbers by falling error of a solver; rows whose error is nan come first.

        Parameters
        ----------
        solver : str
            A key of ``errors``.

        Returns
        -------
        ndarray of int of shape (n_samples,)
        """
        if solver not in self.errors:
            raise ValueError(f"solver must be one of {', '.join(map(repr, self.errors))}, got {solver!r}.")
        return np.argsort(np.asarray(self.errors[solver], dtype=float), kind="stable")[::-1]

    def plot(self, ax: Any = None) -> RowErrorDisplay:
        """Draw a line for each solver.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Axes to draw in. By default those of a new figure.

        Returns
        -------
        self

        Raises
        ------
        ImportError
            If matplotlib is missing.
        """
        ax = take_axes("RowErrorDisplay", ax)
        self.lines_ = {}
        for name, errors in self.errors.items():
            ordered = np.sort(np.asarray(errors, dtype=float))
            shares = np.arange(1, len(ordered) + 1) / len(ordered)
            # Errors that are zero or not finite have no place on a log axis; their share of rows shows as a gap.
            drawn = np.where(np.isfinite(ordered) & (ordered > 0), ordered, np.nan)
            (self.lines_[name],) = ax.plot(shares, drawn, label=name)
        ax.set(xlabel="share of rows", ylabel="relative L2 error of the terminal state", xlim=(0, 1), yscale="log")
        ax.legend()
        self.ax_, self.figure_ = ax, ax.figure
        return self
