"""Draw states over time: of a hypersolver, and of dopri5."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..estimators._base import outside_inference_mode
from ..numerics import Nonstationary
from ..numerics.times import uniform_grid
from ..training.references import solve_references
from ._plotting import import_pyplot
from ._rows import task_of
from .scorers import resolve_hypersolver

_PANEL_INCHES = (4.0, 2.2)


class TrajectoryDisplay:
    """Draw trajectories over time, a panel for each coordinate of the state: dopri5's as lines, others as points.

    Make a display with :meth:`from_estimator`, or from states that are known.

    Parameters
    ----------
    times : array-like of shape (n_times,)
        Times of ``states``.
    states : array-like of shape (n_samples, n_times, n_features)
        States of the hypersolver.
    reference_times : array-like of shape (n_reference_times,)
    reference : array-like of shape (n_samples, n_reference_times, n_features)
        States of dopri5.
    features : sequence of int
        Coordinates that the last axis holds: they name the panels.

    Attributes
    ----------
    axes_ : ndarray of matplotlib Axes
        One for each coordinate.
    figure_ : matplotlib Figure
    lines_, points_ : list of list of matplotlib Line2D
        For each coordinate: dopri5's lines, the hypersolver's points, one a row.

    See Also
    --------
    sklearn_hyper.HypersolverRegressor.trajectory : The states themselves.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_hyper import HypersolverRegressor
    >>> from sklearn_hyper.datasets import VanDerPol
    >>> from sklearn_hyper.evaluation import TrajectoryDisplay
    >>> X = np.random.default_rng(0).uniform(-1, 1, (60, 2))
    >>> fast = HypersolverRegressor(VanDerPol(), base_solver="heun", n_steps=4, max_epochs=5, random_state=0).fit(X)
    >>> display = TrajectoryDisplay.from_estimator(fast, X[:3])
    >>> display.states.shape, display.reference.shape
    ((3, 5, 2), (3, 101, 2))
    """

    def __init__(self, times: Any, states: Any, reference_times: Any, reference: Any, *, features: Sequence[int]):
        self.times = np.asarray(times, dtype=float)
        self.states = np.asarray(states, dtype=float)
        self.reference_times = np.asarray(reference_times, dtype=float)
        self.reference = np.asarray(reference, dtype=float)
        self.features = list(features)
        width = len(self.features)
        for name, values, at in (
            ("states", self.states, self.times),
            ("reference", self.reference, self.reference_times),
        ):
            if values.ndim != 3 or values.shape[1:] != (len(at), width) or len(values) != len(self.states):
                raise ValueError(
                    f"{name} must have shape (n_samples, {len(at)}, {width}): a state for each time, of the features "
                    f"{self.features}, got {values.shape}."
                )

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        *,
        features: Sequence[int] | None = None,
        n_times: int = 101,
        axes: Any = None,
    ) -> TrajectoryDisplay:
        """Solve rows by a hypersolver and by dopri5, and draw both over time.

        Parameters
        ----------
        estimator : fitted hypersolver
            Or a Pipeline or search that ends in one. With a "nonstationary" base solver only the first and the last
            state are drawn: those between approximate nothing.
        X : array-like of shape (n_samples, ...)
            A few rows; every one is drawn.
        features : sequence of int, optional
            Coordinates of the state to draw, counted in the flattened state. By default the first two.
        n_times : int, default 101
            Number of dopri5's states, at equal distances.
        axes : sequence of matplotlib Axes, optional
            One for each coordinate. By default those of a new figure.

        Returns
        -------
        TrajectoryDisplay

        Raises
        ------
        TypeError
            If the estimator is no hypersolver.
        ValueError
            If a coordinate is none of the state's, ``n_times`` is less than 2, or axes are too few or too many.
        ReferenceSolveError
            If dopri5 cannot solve some rows; the error names them.
        ImportError
            If matplotlib is missing.
        """
        import_pyplot("TrajectoryDisplay")  # solving takes a while, so fail before it
        if not isinstance(n_times, Integral) or n_times < 2:
            raise ValueError(f"n_times must be an integer of at least 2, got {n_times!r}.")
        hypersolver, X = resolve_hypersolver(estimator, X)
        fitted = hypersolver._require_product()
        states = _flat(np.asarray(hypersolver.trajectory(X)))
        features = _check_features(features, states.shape[-1])
        _check_axes(axes, len(features))
        times = np.asarray(fitted.times_of_trajectory)
        if isinstance(fitted.method, Nonstationary):
            times, states = times[[0, -1]], states[:, [0, -1]]
        task = task_of(hypersolver, X).to("cpu")
        at = uniform_grid(fitted.neural_ode.t_span, int(n_times) - 1)
        with outside_inference_mode():
            solved = solve_references(task, at, replace(fitted.settings, device=str(fitted.device)))
        reference = _flat(solved.cpu().numpy().swapaxes(0, 1))
        return cls(times, states[..., features], at, reference[..., features], features=features).plot(axes=axes)

    def plot(self, axes: Any = None) -> TrajectoryDisplay:
        """Draw a panel for each coordinate.

        Parameters
        ----------
        axes : sequence of matplotlib Axes, optional
            One for each coordinate. By default those of a new figure.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If axes are too few or too many.
        ImportError
            If matplotlib is missing.
        """
        pyplot = import_pyplot("TrajectoryDisplay")
        n_panels = len(self.features)
        _check_axes(axes, n_panels)
        if axes is None:
            width, height = _PANEL_INCHES
            size = (width, height * n_panels)
            _, axes = pyplot.subplots(n_panels, 1, sharex=True, squeeze=False, figsize=size, layout="constrained")
        self.axes_ = np.ravel(np.asarray(axes, dtype=object))
        self.lines_, self.points_ = [], []
        for panel, (feature, ax) in enumerate(zip(self.features, self.axes_, strict=True)):
            self.lines_.append(ax.plot(self.reference_times, self.reference[..., panel].T, linewidth=1))
            self.points_.append(ax.plot(self.times, self.states[..., panel].T, marker="o", markersize=4, linestyle=""))
            for points, line in zip(self.points_[-1], self.lines_[-1], strict=True):
                points.set_color(line.get_color())  # a row has one colour
            ax.set_ylabel(f"z[{feature}]")
        self.axes_[-1].set_xlabel("time")
        self.lines_[0][0].set_label("dopri5")
        self.points_[0][0].set_label("hypersolver")
        self.axes_[0].legend()
        self.figure_ = self.axes_[0].figure
        return self


def _flat(states: NDArray[Any]) -> NDArray[Any]:
    """Return states as vectors."""
    return states.reshape(*states.shape[:2], -1)


def _check_features(features: Any, width: int) -> list[int]:
    if features is None:
        return list(range(min(2, width)))
    chosen = list(np.atleast_1d(np.asarray(features)).tolist())
    if not chosen or not all(isinstance(i, int) and not isinstance(i, bool) and 0 <= i < width for i in chosen):
        raise ValueError(f"features must be integers between 0 and {width - 1}, got {features!r}.")
    return chosen


def _check_axes(axes: Any, n_panels: int) -> None:
    if axes is not None and np.size(np.asarray(axes, dtype=object)) != n_panels:
        raise ValueError(f"axes must hold one for each of the {n_panels} features, got {np.size(axes)}.")
