"""Targets at several times a row: their shape, what was observed of them, and how well predictions fit them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.metrics import r2_score
from sklearn.utils.validation import _check_sample_weight, check_array

from ..modules.vector_fields import Standardize


def check_observations(y: Any, times: np.ndarray) -> tuple[np.ndarray, bool]:
    """Return targets of shape (n_rows, n_times, n_outputs), nan where not observed, and whether y had no output axis.

    Parameters
    ----------
    y : array-like of shape (n_rows, n_times) or (n_rows, n_times, n_outputs)
        nan where nothing was observed. Where no time is given, y is ignored.
    times : ndarray of shape (n_rows, n_times)
        Times of the rows, nan where there are no further ones.

    Raises
    ------
    ValueError
        If the shape is another, or a value is infinite.
    """
    y = check_array(
        y, ensure_2d=False, allow_nd=True, dtype=np.float64, ensure_all_finite="allow-nan", input_name="y"
    )  # fmt: skip
    if y.ndim not in (2, 3) or y.shape[:2] != times.shape or not y.size:
        n_rows, n_times = times.shape
        raise ValueError(
            f"beside t_eval of {n_times} times a row, y must have shape ({n_rows}, {n_times}) for one output, or "
            f"({n_rows}, {n_times}, n_outputs), got {y.shape}. In cross validation, pass times of their own for each "
            "row: np.tile(t_eval, (len(X), 1))."
        )
    squeeze = y.ndim == 2
    return np.where(np.isnan(times)[:, :, None], np.nan, y[:, :, None] if squeeze else y), squeeze


def check_held_out(train: np.ndarray, valid: np.ndarray, validation_fraction: Any) -> None:
    """Refuse a split one part of which was never observed: its loss is 0 in every epoch, and tells none apart.

    Raises
    ------
    ValueError
    """
    for y, what in ((train, "trained on"), (valid, "held out")):
        if np.isnan(y).all():
            raise ValueError(
                f"validation_fraction={validation_fraction}: y holds nothing but nan of the {len(y)} rows that would "
                f"be {what}. Leave out rows of which nothing was observed, or set validation_fraction=None."
            )


def standardize(y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return means and deviations of each output, over the values that were observed.

    Raises
    ------
    ValueError
        If an output was never observed.
    """
    columns = np.moveaxis(y, -1, 0).reshape(y.shape[-1], -1)
    never = np.isnan(columns).all(axis=1)
    if never.any():
        what = "y is" if never.all() else f"output {int(np.flatnonzero(never)[0])} of y is"
        raise ValueError(f"{what} nan at all times of t_eval, so that there is nothing to fit.")
    scalers = [Standardize.from_data(torch.tensor(column[~np.isnan(column)])[:, None]) for column in columns]
    return np.concatenate([s.shift.numpy() for s in scalers]), np.concatenate([s.scale.numpy() for s in scalers])


def observed_r2(y: np.ndarray, prediction: np.ndarray, sample_weight: Any = None) -> float:
    """Return the mean over outputs of R2, over the values that were observed; each has the weight of its row.

    Outputs with fewer than two values have no R2, and do not count. If none has two, the result is nan.

    Parameters
    ----------
    y, prediction : ndarray of shape (n_rows, n_times, n_outputs)
        y is nan where nothing was observed.
    sample_weight : array-like of shape (n_rows,), optional
    """
    weight = _check_sample_weight(sample_weight, y)[:, None].repeat(y.shape[1], axis=1)
    scores = []
    for j in range(y.shape[-1]):
        seen = ~np.isnan(y[:, :, j])
        if seen.sum() > 1:
            scores.append(r2_score(y[seen][:, j], prediction[seen][:, j], sample_weight=weight[seen]))
    return float(np.mean(scores)) if scores else float("nan")
