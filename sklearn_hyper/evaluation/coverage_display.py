"""Draw how often the bounds of a calibrated hypersolver hold."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ._plotting import import_pyplot, take_axes
from ._rows import reference_states, state_errors, task_of
from .scorers import resolve_hypersolver

_COVERAGES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


class CoverageDisplay:
    """Draw the share of rows whose bound holds against the coverage that was asked for.

    A point on the diagonal is as asked for. The band is one standard deviation of the share, of as many rows. Make a
    display with :meth:`from_estimator`, or from shares that are known.

    Parameters
    ----------
    coverages : array-like of shape (n,)
        Coverages asked for.
    shares : array-like of shape (n,)
        Shares of rows whose error was within the bound.
    n_samples : int
        Number of rows behind each share.

    Attributes
    ----------
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure
    line_ : matplotlib Line2D
    band_ : matplotlib PolyCollection

    See Also
    --------
    sklearn_hyper.HypersolverRegressor.conformalize : Calibrates.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_hyper import HypersolverRegressor
    >>> from sklearn_hyper.evaluation import CoverageDisplay
    >>> X = np.random.default_rng(0).uniform(0.5, 1.5, (600, 1))
    >>> fast = HypersolverRegressor(lambda t, z: -z * z, n_steps=2, max_epochs=20, random_state=0).fit(X[:100])
    >>> display = CoverageDisplay.from_estimator(fast.conformalize(X[100:400]), X[400:], coverages=[0.5, 0.9])
    >>> bool(abs(display.shares - display.coverages).max() < 0.15)
    True
    """

    def __init__(self, coverages: ArrayLike, shares: ArrayLike, n_samples: int):
        self.coverages = np.asarray(coverages, dtype=float)
        self.shares = np.asarray(shares, dtype=float)
        self.n_samples = n_samples
        if self.coverages.ndim != 1 or self.coverages.shape != self.shares.shape or not self.coverages.size:
            raise ValueError(
                "coverages and shares must be one-dimensional, of one length and not empty, got shapes "
                f"{self.coverages.shape} and {self.shares.shape}."
            )

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        *,
        coverages: ArrayLike = _COVERAGES,
        bound: str = "learned",
        ax: Any = None,
    ) -> CoverageDisplay:
        """Count on rows how often the bounds of the terminal states hold, and draw it.

        Parameters
        ----------
        estimator : fitted and calibrated hypersolver
            Or a Pipeline or search that ends in one.
        X : array-like of shape (n_samples, ...)
            Rows that neither the fit nor the calibration has seen. An infinite bound counts as one that holds.
        coverages : array-like of shape (n,), default .1, .2, ... .9, .95
            Coverages to ask for, each between 0 and 1.
        bound : {"learned", "verified"}, default "learned"
            As in :meth:`HypersolverRegressor.predict`.
        ax : matplotlib Axes, optional
            Axes to draw in. By default those of a new figure.

        Returns
        -------
        CoverageDisplay

        Raises
        ------
        TypeError
            If the estimator is no hypersolver.
        NotCalibratedError
            If it is not calibrated.
        CalibrationRowsError
            If its calibration has too few rows for a coverage.
        ReferenceSolveError
            If dopri5 cannot solve some rows; the error names them.
        ValueError
            If a value is out of its range.
        ImportError
            If matplotlib is missing.

        Warns
        -----
        UnusualRowsWarning
            If more than 2 % of rows are unlike those of the calibration.
        """
        import_pyplot("CoverageDisplay")  # measuring takes a while, so fail before it
        hypersolver, X = resolve_hypersolver(estimator, X)
        asked = np.atleast_1d(np.asarray(coverages, dtype=float))
        answers = [hypersolver.transform(X, return_bound=True, coverage=float(c), bound=bound) for c in asked]
        task = task_of(hypersolver, X)
        reference = reference_states(hypersolver, task)
        shares = []
        for states, limit in answers:
            errors = state_errors(reference, np.asarray(states, dtype=float).reshape(reference.shape))
            shares.append(float(np.mean(errors <= limit)))
        return cls(asked, shares, len(task)).plot(ax=ax)

    def plot(self, ax: Any = None) -> CoverageDisplay:
        """Draw the shares, the diagonal and the band.

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
        ax = take_axes("CoverageDisplay", ax)
        order = np.argsort(self.coverages)
        line = np.linspace(0, 1, 101)
        deviation = np.sqrt(line * (1 - line) / self.n_samples)
        ax.plot(line, line, color="0.6", linestyle="--", linewidth=1, label="as asked for")
        self.band_ = ax.fill_between(line, line - deviation, line + deviation, color="0.85", label="one deviation")
        (self.line_,) = ax.plot(self.coverages[order], self.shares[order], marker="o", label="measured")
        ax.set(xlabel="coverage asked for", ylabel="share of rows whose bound holds", xlim=(0, 1), ylim=(0, 1))
        ax.legend()
        self.ax_, self.figure_ = ax, ax.figure
        return self
