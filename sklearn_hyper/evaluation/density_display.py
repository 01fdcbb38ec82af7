"""Draw densities side by side: of the data, of flows and of their hypersolvers (paper, Fig. 7)."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.pipeline import Pipeline
from sklearn.utils import check_array, check_random_state

from ._plotting import import_pyplot

Array = NDArray[np.float64]
Limits = tuple[float, float, float, float]

_METHODS = {"samples": "sample", "density": "score_samples"}
_STRAYS = 0.005  # share of samples cut off on each side, so that a few far ones do not shrink the picture
_MARGIN = 0.1
_PANEL_INCHES = 2.6


class DensityDisplay:
    """Draw two-dimensional densities side by side, within the same limits and on the same colour scale.

    Make a display with :meth:`from_estimators`, or from densities on a grid.

    Parameters
    ----------
    densities : dict of str to ndarray of shape (n_grid, n_grid)
        Density in each cell, keyed by the panel's title. Columns follow the first feature, rows the second, upwards.
    limits : tuple of four floats
        (left, right, bottom, top), the outer edges of the grid.

    Attributes
    ----------
    axes_ : ndarray of matplotlib Axes
        One for each panel.
    figure_ : matplotlib Figure
    images_ : list of matplotlib AxesImage
        One for each panel. ``figure_.colorbar(images_[0], ax=axes_)`` shows the colour scale.

    See Also
    --------
    sklearn_hyper.metrics.sliced_wasserstein_distance : Measures how far two sets of samples are apart.

    Examples
    --------
    >>> from sklearn.mixture import GaussianMixture
    >>> from sklearn_hyper.datasets import make_density
    >>> from sklearn_hyper.evaluation import DensityDisplay
    >>> X = make_density("8gaussians", 1000, random_state=0)
    >>> two, eight = (GaussianMixture(n, random_state=0).fit(X) for n in (2, 8))
    >>> display = DensityDisplay.from_estimators({"2": two, "8": eight}, X, kind="density")
    >>> list(display.densities)
    ['data', '2', '8']
    """

    def __init__(self, densities: Mapping[str, Array], limits: Limits):
        self.densities = densities
        self.limits = limits

    @classmethod
    def from_estimators(
        cls,
        estimators: Mapping[str, Any],
        X: ArrayLike | None = None,
        *,
        kind: str = "samples",
        n_samples: int = 10_000,
        n_grid: int = 100,
        limits: Limits | None = None,
        random_state: Any = None,
        axes: Sequence[Any] | None = None,
    ) -> DensityDisplay:
        """Sample or score fitted two-dimensional density estimators and draw them.

        Parameters
        ----------
        estimators : dict of str to density estimator
            Fitted estimators, keyed by the panel's title: flows, their hypersolvers, scikit-learn's KernelDensity and
            GaussianMixture, or searches over these.
        X : array-like of shape (n, 2), optional
            Data, whose histogram is the first panel, "data".
        kind : {"samples", "density"}, default "samples"
            "samples" draws a histogram of ``sample``. "density" draws ``exp(score_samples)`` at the centre of each
            cell. Both are densities, so they share a scale with the data.
        n_samples : int, default 10,000
            Number of samples drawn from each estimator, for ``kind="samples"``.
        n_grid : int, default 100
            Number of cells along each axis.
        limits : tuple of four floats, optional
            (left, right, bottom, top). By default around the first panel's points, without the outermost 0.5 % on each
            side.
        random_state : int, RandomState or None
            Seeds every ``sample`` alike, so that flows start from the same base points. A GaussianMixture takes no seed
            and draws by its own ``random_state``.
        axes : sequence of matplotlib Axes, optional
            One for each panel. By default a new figure with the panels in a row.

        Returns
        -------
        DensityDisplay

        Raises
        ------
        ValueError
            If X or an estimator is not two-dimensional, or an argument is out of its range.
        TypeError
            If an estimator cannot sample or score, or is a Pipeline, whose density is that of its transformed data.
        ImportError
            If matplotlib is missing.

        Warns
        -----
        UserWarning
            If some samples or densities are not finite. They are left out.
        """
        import_pyplot("DensityDisplay")  # sampling takes a while, so fail before it
        _check_arguments(kind, n_samples, n_grid, limits, has_data=X is not None)
        resolved = _resolve_estimators(estimators, kind)
        points = {} if X is None else {"data": _check_data(X, resolved)}
        _check_axes(axes, len(points) + len(resolved))
        if kind == "samples":
            seed = check_random_state(random_state).randint(np.iinfo(np.int32).max)
            points |= {name: _draw_samples(name, estimator, n_samples, seed) for name, estimator in resolved.items()}
        if limits is None:
            limits = _limits_around(next(iter(points.values())))
        densities = {name: _histogram(samples, limits, n_grid) for name, samples in points.items()}
        if kind == "density":
            cells = _cell_centres(limits, n_grid)
            densities |= {name: _score_cells(name, estimator, cells) for name, estimator in resolved.items()}
        return cls(densities, limits).plot(axes)

    def plot(self, axes: Sequence[Any] | None = None, *, cmap: Any = "viridis") -> DensityDisplay:
        """Draw the panels on the colour scale of the first; others that peak higher saturate.

        Parameters
        ----------
        axes : sequence of matplotlib Axes, optional
            One for each panel. By default a new figure with the panels in a row.
        cmap : str or matplotlib Colormap, default "viridis"
            Colours of the densities.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If there are not as many axes as panels.
        ImportError
            If matplotlib is missing.
        """
        pyplot = import_pyplot("DensityDisplay")
        n_panels = len(self.densities)
        _check_axes(axes, n_panels)
        if axes is None:
            size = (_PANEL_INCHES * n_panels, 1.15 * _PANEL_INCHES)
            _, axes = pyplot.subplots(1, n_panels, sharex=True, sharey=True, figsize=size, layout="constrained")
        self.axes_ = np.ravel(np.asarray(axes, dtype=object))
        self.figure_ = self.axes_[0].figure
        highest = np.nanmax(next(iter(self.densities.values())))
        self.images_ = [
            ax.imshow(density, extent=self.limits, origin="lower", vmin=0, vmax=highest, cmap=cmap)
            for ax, density in zip(self.axes_, self.densities.values(), strict=True)
        ]
        for ax, title in zip(self.axes_, self.densities, strict=True):
            ax.set_title(title)
        return self


# --- checks -------------------------------------------------------------------------------------------------------


def _check_arguments(kind: str, n_samples: int, n_grid: int, limits: Limits | None, *, has_data: bool) -> None:
    if kind not in _METHODS:
        raise ValueError(f"kind must be one of {', '.join(map(repr, _METHODS))}, got {kind!r}.")
    for name, value in [("n_samples", n_samples), ("n_grid", n_grid)]:
        if not isinstance(value, (int, np.integer)) or value < 1:
            raise ValueError(f"{name} must be an integer of at least 1, got {value!r}.")
    if limits is None:
        if kind == "density" and not has_data:
            raise ValueError("kind='density' must know where to look: pass the data X, or limits.")
        return
    edges = np.asarray(limits, dtype=float)
    if edges.shape != (4,) or not np.isfinite(edges).all() or edges[0] >= edges[1] or edges[2] >= edges[3]:
        raise ValueError(f"limits must be finite (left, right, bottom, top), left < right, bottom < top, got {limits}.")


def _check_axes(axes: Sequence[Any] | None, n_panels: int) -> None:
    if axes is not None and np.size(axes) != n_panels:
        raise ValueError(f"axes must be one for each of the {n_panels} panels, got {np.size(axes)}.")


def _check_data(X: ArrayLike, estimators: Mapping[str, Any]) -> Array:
    if "data" in estimators:
        raise ValueError("'data' is the panel of X: give the estimator another name.")
    X = check_array(X, dtype=np.float64, input_name="X")
    _check_width("X", X.shape[1])
    return X


def _check_width(name: str, n_features: int) -> None:
    if n_features != 2:
        raise ValueError(f"DensityDisplay draws 2 features, but {name} has n_features={n_features}.")


def _resolve_estimators(estimators: Mapping[str, Any], kind: str) -> dict[str, Any]:
    if not isinstance(estimators, Mapping):
        raise TypeError(f"estimators must be a dict of titles to fitted estimators, got {type(estimators).__name__}.")
    if not estimators:
        raise ValueError("estimators is empty: pass at least one fitted density estimator.")
    if kind == "density":
        for name, estimator in estimators.items():
            if getattr(estimator, "preprocess_", None) is not None:
                raise TypeError(
                    f"{name}: fitted to a Pipeline, its score_samples is the density of the transformed data, not of "
                    "X. Fit one to the pipeline's last step, pipeline[-1], and pass pipeline[:-1].transform(X) as X."
                )
    return {str(name): _resolve(name, estimator, _METHODS[kind]) for name, estimator in estimators.items()}


def _resolve(name: str, estimator: Any, method: str) -> Any:
    """Return the estimator itself, or a search's best one; refuse it if it cannot be drawn."""
    estimator = getattr(estimator, "best_estimator_", estimator)
    if isinstance(estimator, Pipeline):
        raise TypeError(
            f"{name}: a Pipeline cannot sample, and its score_samples is the density of the transformed data. Pass its "
            "last step, pipeline[-1], and pipeline[:-1].transform(X) as X."
        )
    if not hasattr(estimator, method):
        raise TypeError(
            f"{name}: {type(estimator).__name__} has no {method}; pass a fitted flow or another density estimator "
            "that has it."
        )
    if hasattr(estimator, "n_features_in_"):
        _check_width(name, estimator.n_features_in_)
    return estimator


# --- densities on the grid ----------------------------------------------------------------------------------------


def _draw_samples(name: str, estimator: Any, n_samples: int, seed: int) -> Array:
    takes_seed = "random_state" in inspect.signature(estimator.sample).parameters
    drawn = estimator.sample(n_samples, **({"random_state": seed} if takes_seed else {}))
    # A GaussianMixture returns the components as well.
    samples = np.asarray(drawn[0] if isinstance(drawn, tuple) else drawn, dtype=float)
    _check_width(name, samples.shape[1])
    _warn_of_missing(name, "samples", np.isfinite(samples).all(axis=1))
    return samples


def _limits_around(points: Array) -> Limits:
    finite = points[np.isfinite(points).all(axis=1)]
    if len(finite) == 0:
        raise ValueError("no sample of the first panel is finite, so there are no limits to draw within: pass limits.")
    low, high = np.quantile(finite, [_STRAYS, 1 - _STRAYS], axis=0)
    margin = np.where(high > low, _MARGIN * (high - low), 1.0)
    (left, bottom), (right, top) = (low - margin).tolist(), (high + margin).tolist()
    return left, right, bottom, top


def _histogram(points: Array, limits: Limits, n_grid: int) -> Array:
    """Return the density in each cell: its share of all points, also those outside the limits, over its area."""
    left, right, bottom, top = limits
    counts, *_ = np.histogram2d(*points.T, bins=n_grid, range=[[left, right], [bottom, top]])
    cell_area = (right - left) * (top - bottom) / n_grid**2
    return counts.T / (len(points) * cell_area)


def _cell_centres(limits: Limits, n_grid: int) -> Array:
    left, right, bottom, top = limits
    middles = (np.arange(n_grid) + 0.5) / n_grid
    x, y = np.meshgrid(left + (right - left) * middles, bottom + (top - bottom) * middles)
    return np.stack([x, y], axis=-1)


def _score_cells(name: str, estimator: Any, cells: Array) -> Array:
    density = np.exp(np.asarray(estimator.score_samples(cells.reshape(-1, 2)), dtype=float)).reshape(cells.shape[:2])
    finite = np.isfinite(density)
    _warn_of_missing(name, "densities", finite)
    return np.where(finite, density, np.nan)


def _warn_of_missing(name: str, what: str, finite: NDArray[np.bool_]) -> None:
    if not finite.all():
        warnings.warn(
            f"{name}: {finite.size - finite.sum():,} of {finite.size:,} {what} are not finite and left out.",
            stacklevel=4,
        )
