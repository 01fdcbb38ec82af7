"""Errors against a reference, truncation errors (paper, sections 2 and 4), and a distance between samples."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_array, check_random_state

from .numerics.cost import CountedField, count_macs, count_nfe, relative_overhead
from .numerics.units import feature_sizes
from .reports import SolverReport, SolverRow

__all__ = [
    "CountedField",
    "SolverReport",
    "SolverRow",
    "count_macs",
    "count_nfe",
    "global_truncation_error",
    "local_truncation_error",
    "mean_absolute_percentage_error",
    "relative_l2",
    "relative_overhead",
    "sliced_wasserstein_distance",
]

_PROJECTED_VALUES = 2_000_000  # projections in memory at a time: 16 MB an array


def _pair(y_true: ArrayLike, y_pred: ArrayLike) -> tuple[NDArray[Any], NDArray[Any]]:
    true, pred = np.asarray(y_true, dtype=float), np.asarray(y_pred, dtype=float)
    if true.shape != pred.shape:
        raise ValueError(f"y_true and y_pred must have the same shape, got {true.shape} and {pred.shape}.")
    if true.size == 0:
        raise ValueError("y_true and y_pred are empty.")
    return true, pred


def mean_absolute_percentage_error(
    y_true: ArrayLike, y_pred: ArrayLike, *, floor: ArrayLike = 1e-2, sample_weight: ArrayLike | None = None
) -> float:
    r"""Compute the mean absolute percentage error (MAPE) with a floored denominator.

    .. math:: \mathrm{mean}\; \frac{|\hat y - y|}{\max(|y|, \mathrm{floor})}

    The mean is over samples and coordinates. Without a floor, one coordinate near zero would dominate it.

    Parameters
    ----------
    y_true, y_pred : array-like of shape (n_samples, ...)
        The reference y and its approximation.
    floor : float or array, default 1e-2
        Smallest denominator, in the units of y. An array is broadcast to y. The estimators' own scores use a share of
        the outputs' size.
    sample_weight : array-like of shape (n_samples,), optional
        Weights of the samples in the mean.

    Returns
    -------
    float
        A share, not per cent; 0 is perfect.

    Examples
    --------
    >>> from sklearn_hyper.metrics import mean_absolute_percentage_error
    >>> mean_absolute_percentage_error([[1.0, 0.0]], [[1.1, 0.001]])
    0.1...
    """
    true, pred = _pair(y_true, y_pred)
    floor = np.asarray(floor, dtype=float)
    if not (floor > 0).all():
        raise ValueError(f"floor must be positive, got {floor}.")
    shares = np.abs(pred - true) / np.maximum(np.abs(true), floor)
    per_sample = shares.reshape(len(shares), -1).mean(axis=1)
    return float(np.average(per_sample, weights=None if sample_weight is None else np.asarray(sample_weight)))


def mape_floor(share: float, y_true: NDArray[Any], sample_weight: ArrayLike | None = None) -> NDArray[np.float64]:
    """Return a floor for :func:`mean_absolute_percentage_error`: a share of the RMS of every column or channel."""
    y = np.asarray(y_true, dtype=float)
    if sample_weight is not None and np.any(sample_weight):
        weight = np.asarray(sample_weight, dtype=float)
        y = y * np.sqrt(weight / weight.mean()).reshape(-1, *[1] * (y.ndim - 1))
    return np.asarray(share * feature_sizes(torch.tensor(y)).numpy())


def relative_l2(z_true: ArrayLike, z_pred: ArrayLike) -> NDArray[np.float64]:
    r"""Compute the relative error of every sample, :math:`\|\hat z - z\|_2 / \|z\|_2`.

    Parameters
    ----------
    z_true, z_pred : array-like of shape (n_samples, ...)
        The reference z and its approximation.

    Returns
    -------
    ndarray of shape (n_samples,)
        Errors, which are inf where only the reference is zero and 0 where both are.

    Examples
    --------
    >>> from sklearn_hyper.metrics import relative_l2
    >>> relative_l2([[3.0, 4.0]], [[3.0, 4.5]])
    array([0.1])
    """
    true, pred = _pair(z_true, z_pred)
    error = np.linalg.norm((pred - true).reshape(len(true), -1), axis=1)
    size = np.linalg.norm(true.reshape(len(true), -1), axis=1)
    return np.divide(error, size, out=np.where(error > 0, np.inf, 0.0), where=size > 0)


def local_truncation_error(z: ArrayLike, z_next: ArrayLike, increment: ArrayLike) -> NDArray[np.float64]:
    r"""Compute the local truncation error of every sample (paper, section 2).

    .. math:: e_k = \|z(s_{k+1}) - z(s_k) - \epsilon \psi(s_k, x, z(s_k))\|_2

    Parameters
    ----------
    z, z_next : array-like of shape (n_samples, ...)
        Reference states at s_k and s_{k+1}.
    increment : array-like of shape (n_samples, ...)
        What the solver adds in a step from z(s_k): eps * psi, plus eps^(p+1) * g for a hypersolver.

    Returns
    -------
    ndarray of shape (n_samples,)

    Examples
    --------
    >>> from sklearn_hyper.metrics import local_truncation_error
    >>> local_truncation_error([[0.0]], [[1.0]], [[0.75]])
    array([0.25])
    """
    z_true, z_pred = _pair(z_next, np.asarray(z, dtype=float) + np.asarray(increment, dtype=float))
    return np.linalg.norm((z_true - z_pred).reshape(len(z_true), -1), axis=1)


def global_truncation_error(reference: ArrayLike, trajectory: ArrayLike) -> NDArray[np.float64]:
    r"""Compute the global truncation error :math:`E_k = \|z(s_k) - z_k\|_2` of every sample and step.

    It is defined in section 2 of the paper.

    Parameters
    ----------
    reference, trajectory : array-like of shape (n_samples, K + 1, ...)
        States in the shape that :meth:`HypersolverRegressor.trajectory` returns.

    Returns
    -------
    ndarray of shape (n_samples, K + 1)

    Examples
    --------
    >>> from sklearn_hyper.metrics import global_truncation_error
    >>> global_truncation_error([[[0.0], [1.0]]], [[[0.0], [0.5]]])
    array([[0. , 0.5]])
    """
    true, pred = _pair(reference, trajectory)
    return np.linalg.norm((true - pred).reshape(*true.shape[:2], -1), axis=2)


def sliced_wasserstein_distance(
    X: ArrayLike, Y: ArrayLike, *, n_projections: int = 500, random_state: Any = None
) -> float:
    r"""Compute the sliced Wasserstein-1 distance between two sets of samples.

    .. math:: \frac{1}{L} \sum_{l=1}^{L} W_1(\theta_l \cdot X, \theta_l \cdot Y),
              \qquad W_1(u, v) = \int_0^1 |F_u^{-1}(q) - F_v^{-1}(q)| \, dq

    The directions :math:`\theta_l` are drawn uniformly from the unit sphere, and :math:`F^{-1}` are the samples'
    quantile functions. For sets of one size, :math:`W_1` is the mean distance between the sorted projections.

    The distance between two draws from one distribution is not zero. Compare other distances with it.

    Parameters
    ----------
    X : array-like of shape (n_samples_X, n_features)
        One set of samples.
    Y : array-like of shape (n_samples_Y, n_features)
        The other set, which may have another size.
    n_projections : int, default 500
        L, the number of directions. Memory does not grow with it.
    random_state : int, RandomState or None
        Seeds the directions. Pass the same int to distances that you compare.

    Returns
    -------
    float
        The distance, in the units of X.

    Raises
    ------
    ValueError
        If X and Y differ in width, are empty or not finite, or ``n_projections`` is no positive integer.

    References
    ----------
    Rabin et al. (2011), *Wasserstein barycenter and its application to texture mixing*; Bonneel et al. (2015), *Sliced
    and Radon Wasserstein barycenters of measures*. They use the 2-distance; the 1-distance depends less on a few far
    samples.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_hyper.metrics import sliced_wasserstein_distance
    >>> X = np.random.default_rng(0).normal(size=(1000, 2))
    >>> sliced_wasserstein_distance(X, X + [1.0, 0.0], random_state=0)  # 2 / pi, but for the choice of directions
    0.64...
    """
    X = check_array(X, dtype=np.float64, input_name="X")
    Y = check_array(Y, dtype=np.float64, input_name="Y")
    if X.shape[1] != Y.shape[1]:
        raise ValueError(f"X and Y must have the same number of features, got {X.shape[1]} and {Y.shape[1]}.")
    if not isinstance(n_projections, (int, np.integer)) or n_projections < 1:
        raise ValueError(f"n_projections must be an integer of at least 1, got {n_projections!r}.")
    directions = check_random_state(random_state).normal(size=(int(n_projections), X.shape[1]))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    chunk = max(1, _PROJECTED_VALUES // (len(X) + len(Y)))
    distances = [
        _wasserstein(directions[i : i + chunk] @ X.T, directions[i : i + chunk] @ Y.T)
        for i in range(0, len(directions), chunk)
    ]
    return float(np.concatenate(distances).mean())


def _wasserstein(u: NDArray[np.float64], v: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the Wasserstein-1 distance between the samples in each row of u and v."""
    n, m = u.shape[1], v.shape[1]
    # The quantile functions step at i / n and j / m. In units of 1 / (n m) these are integers, so rounding loses none.
    levels = np.union1d(np.arange(n) * m, np.arange(m) * n)
    widths = np.diff(levels, append=n * m) / (n * m)
    steps = np.sort(u, axis=1)[:, levels // m] - np.sort(v, axis=1)[:, levels // n]
    return np.asarray(np.abs(steps) @ widths)
