"""Two-dimensional densities to compare normalizing flows on; three have a closed form of their log density."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.random import RandomState
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_array, check_random_state

Points = NDArray[np.float64]


def make_density(name: str, n_samples: int = 2000, random_state: Any = None) -> Points:
    r"""Draw independent samples of a two-dimensional density, as used for FFJORD and for hypersolvers.

    All densities lie around the origin, with coordinates up to about 4.

    - "8gaussians": normal distributions of standard deviation :math:`1 / \sqrt 8`, evenly on the circle of radius
      :math:`\sqrt 8`
    - "checkerboard": uniform on the eight dark squares, each two wide, of :math:`[-4, 4]^2`
    - "pinwheel": five twisted blades
    - "rings": circles of radius 3/4, 3/2, 9/4 and 3, equally likely, with normal noise of standard deviation 0.08
    - "moons": two interleaved half circles of radius 2, with normal noise of standard deviation 0.2
    - "spirals": two arms of one and a half turns

    Parameters
    ----------
    name : str
        One of ``DENSITIES``.
    n_samples : int, default 2000
        Number of samples. The component of each is drawn at random, so any number will do.
    random_state : int, RandomState or None
        Seeds the draws.

    Returns
    -------
    X : ndarray of shape (n_samples, 2)

    Raises
    ------
    ValueError
        If the name is unknown or ``n_samples`` is no positive integer.

    See Also
    --------
    density_log_prob : The true log density, for those that have a closed form.

    References
    ----------
    Grathwohl et al. (2019), *FFJORD: Free-form Continuous Dynamics for Scalable Reversible Generative Models*; Poli et
    al. (2020), *Hypersolvers*, section 4.2.

    Examples
    --------
    >>> from sklearn_hyper.datasets import DENSITIES, make_density
    >>> DENSITIES
    ('8gaussians', 'checkerboard', 'pinwheel', 'rings', 'moons', 'spirals')
    >>> make_density("rings", 500, random_state=0).shape
    (500, 2)
    """
    draw = _look_up(name, _DRAW, "name")
    if not isinstance(n_samples, (int, np.integer)) or n_samples < 1:
        raise ValueError(f"n_samples must be an integer of at least 1, got {n_samples!r}.")
    return draw(int(n_samples), check_random_state(random_state))


def density_log_prob(name: str, X: ArrayLike) -> NDArray[np.float64]:
    r"""Compute the true log density of samples of :func:`make_density`, where it has a closed form.

    A circle of radius r with normal noise :math:`\sigma` has, at distance :math:`\rho` from its centre, the density

    .. math:: \frac{1}{2 \pi \sigma^2} \exp\left(-\frac{\rho^2 + r^2}{2 \sigma^2}\right)
              I_0\left(\frac{\rho r}{\sigma^2}\right)

    with the modified Bessel function :math:`I_0`.

    Parameters
    ----------
    name : {"8gaussians", "checkerboard", "rings"}
        Name of the density. The others have no closed form.
    X : array-like of shape (n_samples, 2)

    Returns
    -------
    ndarray of shape (n_samples,)
        Log densities in nats, as ``score_samples`` of a density estimator. They are -inf on the light squares of the
        checkerboard and outside it.

    Raises
    ------
    ValueError
        If the density is unknown or has no closed form, or X is not finite with two columns.

    Examples
    --------
    >>> from sklearn_hyper.datasets import density_log_prob
    >>> density_log_prob("checkerboard", [[1.0, 1.0], [-1.0, 1.0]])
    array([-3.4657359,       -inf])
    """
    log_prob = _look_up(name, _LOG_PROB, "name of a density with a closed form")
    X = check_array(X, dtype=np.float64, input_name="X")
    if X.shape[1] != 2:
        raise ValueError(f"X must have 2 features, as the densities have, got {X.shape[1]}.")
    return log_prob(X)


def _look_up(name: str, table: dict[str, Any], what: str) -> Callable[..., Any]:
    if not isinstance(name, str) or name not in table:
        raise ValueError(f"{what} must be one of {', '.join(map(repr, table))}, got {name!r}.")
    return table[name]


# --- closed forms on both sides -----------------------------------------------------------------------------------

_GAUSSIAN_STD = 8**-0.5
_GAUSSIAN_ANGLES = 2 * np.pi * np.arange(8) / 8
_GAUSSIAN_CENTRES = 8**0.5 * np.column_stack([np.cos(_GAUSSIAN_ANGLES), np.sin(_GAUSSIAN_ANGLES)])
_SQUARE = 2.0
_RING_RADII = np.array([0.75, 1.5, 2.25, 3.0])
_RING_STD = 0.08


def _draw_8gaussians(n: int, rng: RandomState) -> Points:
    return _GAUSSIAN_CENTRES[rng.randint(8, size=n)] + _GAUSSIAN_STD * rng.randn(n, 2)


def _log_prob_8gaussians(X: Points) -> NDArray[np.float64]:
    distances = ((X[:, None] - _GAUSSIAN_CENTRES) ** 2).sum(axis=2)
    return _log_mean_exp(-distances / (2 * _GAUSSIAN_STD**2)) - np.log(2 * np.pi * _GAUSSIAN_STD**2)


def _draw_checkerboard(n: int, rng: RandomState) -> Points:
    column = rng.randint(-2, 2, size=n)
    row = column % 2 - 2 * rng.randint(2, size=n)  # a dark square's row and column are both even or both odd
    return _SQUARE * (np.column_stack([column, row]) + rng.rand(n, 2))


def _log_prob_checkerboard(X: Points) -> NDArray[np.float64]:
    squares = np.floor(X / _SQUARE)
    dark = (squares.sum(axis=1) % 2 == 0) & (squares >= -2).all(axis=1) & (squares < 2).all(axis=1)
    return np.where(dark, -np.log(8 * _SQUARE**2), -np.inf)


def _draw_rings(n: int, rng: RandomState) -> Points:
    circle = _on_circle(rng.uniform(0, 2 * np.pi, size=n))
    return _RING_RADII[rng.randint(4, size=n), None] * circle + _RING_STD * rng.randn(n, 2)


def _log_prob_rings(X: Points) -> NDArray[np.float64]:
    distance = np.linalg.norm(X, axis=1)[:, None]
    variance = _RING_STD**2
    # I_0 itself overflows here, so take the scaled i0e(u) = exp(-u) I_0(u).
    bessel = torch.special.i0e(torch.from_numpy(distance * _RING_RADII / variance)).numpy()
    return _log_mean_exp(np.log(bessel) - (distance - _RING_RADII) ** 2 / (2 * variance)) - np.log(2 * np.pi * variance)


def _log_mean_exp(values: Points) -> NDArray[np.float64]:
    return np.logaddexp.reduce(values, axis=1) - np.log(values.shape[1])


# --- samples only -------------------------------------------------------------------------------------------------


def _draw_pinwheel(n: int, rng: RandomState) -> Points:
    radial, tangential = 1 + 0.3 * rng.randn(n), 0.1 * rng.randn(n)
    angle = -2 * np.pi * rng.randint(5, size=n) / 5 - 0.25 * np.exp(radial)  # the farther out, the more twisted
    along, across = _on_circle(angle), _on_circle(angle + np.pi / 2)
    return 2 * (radial[:, None] * along + tangential[:, None] * across)


def _draw_moons(n: int, rng: RandomState) -> Points:
    upper = _on_circle(rng.uniform(0, np.pi, size=n))
    lower = np.array([1.0, 0.5]) - upper
    moons = np.where(rng.rand(n, 1) < 0.5, upper, lower) + 0.1 * rng.randn(n, 2)
    return 2 * moons - [1.0, 0.2]


def _draw_spirals(n: int, rng: RandomState) -> Points:
    angle = 3 * np.pi * np.sqrt(rng.rand(n))  # the root spreads the points evenly over the length of an arm
    arm = angle[:, None] * _on_circle(np.pi - angle) + 0.5 * rng.rand(n, 2)
    sign = rng.choice([-1.0, 1.0], size=(n, 1))
    return sign * arm / 3 + 0.1 * rng.randn(n, 2)


def _on_circle(angle: NDArray[np.float64]) -> Points:
    return np.column_stack([np.cos(angle), np.sin(angle)])


_DRAW: dict[str, Callable[[int, RandomState], Points]] = {
    "8gaussians": _draw_8gaussians,
    "checkerboard": _draw_checkerboard,
    "pinwheel": _draw_pinwheel,
    "rings": _draw_rings,
    "moons": _draw_moons,
    "spirals": _draw_spirals,
}
_LOG_PROB: dict[str, Callable[[Points], NDArray[np.float64]]] = {
    "8gaussians": _log_prob_8gaussians,
    "checkerboard": _log_prob_checkerboard,
    "rings": _log_prob_rings,
}

#: Names of the densities that :func:`make_density` draws from.
DENSITIES = tuple(_DRAW)
