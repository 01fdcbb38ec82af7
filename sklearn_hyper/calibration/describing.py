"""Describe rows by what a solve has computed anyway, and tell rows that are unlike those of the calibration."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

_COORDINATES = 32
"""Initial states of up to this many numbers describe their rows themselves."""
_PARTS = 8
"""Steps of a longer solve are described in this many groups."""
_PROJECTED = 64
"""Distances between larger states are those of their projections onto as many random directions."""
_NEIGHBOURS = 5
_USUAL = 0.995
"""Share of calibration rows that count as usual."""
_OVERFLOWED = 1e3
"""Logarithm of a norm that is not finite, above all that are."""
_ROUNDING = 16
"""Numbers that are computed in another batch differ by as many units of rounding."""
_FAR = 1e100
"""Distance of a row that is not finite."""

Rows = NDArray[np.float64]


def describe_run(states: Rows, beside: Rows | None = None) -> Rows:
    """Return numbers that tell how hard each row was, of shape (n, m).

    Norms of the steps, of the differences between successive directions and of the ends, and the coordinates of small
    initial states. They cost no evaluation of f.

    Parameters
    ----------
    states : array of shape (K + 1, n, ...)
        A trajectory.
    beside : array of shape (n, m), optional
        What the field reads beside the state.
    """
    flat = states.reshape(len(states), states.shape[1], -1)
    with np.errstate(invalid="ignore"):
        steps = np.diff(flat, axis=0)
        turns = np.diff(steps, axis=0)
    columns = [_log_norms(flat[:1]), _log_norms(flat[-1:]), _in_parts(_log_norms(steps))]
    if len(steps) > 1:
        columns.append(_in_parts(_log_norms(turns)))
    if flat.shape[2] <= _COORDINATES:
        columns.append(flat[0].T)
    if beside is not None:
        columns.append(beside.T if beside.shape[1] <= _COORDINATES else _log_norms(beside[None]))
    described = np.concatenate(columns).T
    return np.nan_to_num(described, nan=_OVERFLOWED, posinf=_OVERFLOWED, neginf=-_OVERFLOWED)


def norms(values: Rows) -> Rows:
    """Return 2-norms along the last axis, without warnings of solves that overflowed."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(np.linalg.norm(values, axis=-1))


def _log_norms(values: Rows) -> Rows:
    return np.asarray(np.log(norms(values) + np.finfo(float).tiny))


def _in_parts(values: Rows) -> Rows:
    """Return the largest values of at most eight groups of steps."""
    return np.stack([part.max(axis=0) for part in np.array_split(values, min(_PARTS, len(values)))])


class UsualRows:
    """What initial states of the calibration look like.

    A row is unusual where its mean distance to the five nearest calibration rows exceeds that of 99.5 % of those rows
    from each other. Columns are in units of their standard deviations. So is a row that differs in a column where all
    calibration rows agree, and one that is not finite.

    Parameters
    ----------
    flat : array of shape (n, n_state)
        Initial states of the calibration rows.
    by_chance : bool, default False
        Whether columns may agree by chance, as pixels do at the borders of images. Those are in units of the others'
        mean deviation.
    eps : float, optional
        Unit of rounding of the states. By default that of float64.
    """

    def __init__(self, flat: Rows, *, by_chance: bool = False, eps: float = float(np.finfo(float).eps)):
        self._centre, self._spread = flat.mean(axis=0), flat.std(axis=0)
        n_state = flat.shape[1]
        rounding = _ROUNDING * eps * (np.abs(self._centre) + self._spread)
        constant = self._spread <= rounding
        self._agreed = np.zeros_like(constant) if by_chance else constant
        self._rounding = np.maximum(rounding, np.finfo(float).tiny)
        varied = self._spread[~constant]
        self._spread[constant] = np.sqrt(np.mean(varied**2)) if len(varied) else 1.0
        self._directions = None
        if n_state > _PROJECTED:
            self._directions = np.random.default_rng(0).normal(size=(n_state, _PROJECTED)) / np.sqrt(n_state)
        known = self._project(flat)
        self._index = KDTree(known)
        others = np.arange(2, min(_NEIGHBOURS + 1, len(flat)) + 1)  # the first neighbour of a row is the row itself
        own, _ = self._index.query(known, others)
        size = float(np.max(np.abs(self._centre) / self._spread, initial=1.0, where=~self._agreed))
        noise = _ROUNDING * eps * size * np.sqrt(n_state)  # values on a grid have no distance from each other
        self._limit = max(noise, float(np.quantile(own.mean(axis=1), _USUAL, method="higher")))

    def _project(self, flat: Rows) -> Rows:
        scaled = np.where(self._agreed, 0.0, (flat - self._centre) / self._spread)
        return scaled if self._directions is None else scaled @ self._directions

    def are_unusual(self, flat: Rows) -> NDArray[np.bool_]:
        """Return which rows are unlike the calibration's, from their initial states."""
        finite = np.asarray(np.isfinite(flat).all(axis=1))[:, None]
        with np.errstate(over="ignore"):
            scaled = np.clip(self._project(np.where(finite, flat, self._centre)), -_FAR, _FAR)
        distances, _ = self._index.query(scaled, np.arange(1, min(_NEIGHBOURS, self._index.n) + 1))
        differs = (self._agreed & (np.abs(flat - self._centre) > self._rounding)).any(axis=1)
        return np.asarray((distances.mean(axis=1) > self._limit) | differs | ~finite[:, 0])
