"""Find the solvers worth having: those that no other beats in both cost and error."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def pareto_front(costs: ArrayLike, errors: ArrayLike) -> NDArray[np.bool_]:
    """Mark the points that no other point dominates.

    A point dominates another if it is no worse in cost and in error and better in at least one of them. Equal points
    do not dominate each other: both are on the front, or neither is.

    Parameters
    ----------
    costs, errors : array-like of shape (n_points,)
        Cost and error of every point; less is better. A point with a nan is never on the front and dominates nothing.

    Returns
    -------
    ndarray of bool of shape (n_points,)
        True for the points on the front.

    Raises
    ------
    ValueError
        If the two are not one-dimensional or differ in length.

    Examples
    --------
    >>> from sklearn_hyper.evaluation import pareto_front
    >>> pareto_front(costs=[1, 2, 2, 4], errors=[0.5, 0.1, 0.2, 0.1])
    array([ True,  True, False, False])
    """
    cost, error = np.asarray(costs, dtype=float), np.asarray(errors, dtype=float)
    if cost.ndim != 1 or cost.shape != error.shape:
        raise ValueError(
            f"costs and errors must be one-dimensional and of one length, got shapes {cost.shape} and {error.shape}."
        )
    no_worse = (cost[:, None] <= cost) & (error[:, None] <= error)
    better = (cost[:, None] < cost) | (error[:, None] < error)
    dominated = np.any(no_worse & better, axis=0)
    front: NDArray[np.bool_] = ~(dominated | np.isnan(cost) | np.isnan(error))
    return front
