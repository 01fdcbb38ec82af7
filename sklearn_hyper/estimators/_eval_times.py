"""Check ``t_eval``: the times at which states or outputs are asked for, one grid for all rows or one a row."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils.validation import check_array


def check_t_eval(t_eval: Any, n_rows: int, t_span: tuple[float, float]) -> np.ndarray:
    """Return the times in float64, padded with nan where rows have fewer than others.

    Parameters
    ----------
    t_eval : array-like of shape (n_times,) or (n_rows, n_times)
        In the order of ``t_span``, without repetitions, and within it; its ends may be among them. A row with fewer
        times than others is padded with nan at its end.
    n_rows : int
    t_span : pair of float

    Returns
    -------
    ndarray of shape (n_times,) or (n_rows, n_times)

    Raises
    ------
    ValueError
        If the shape is another, a row has no time, a nan comes before a time, times are out of order or repeated, or
        one lies outside of ``t_span``.
    """
    times = check_array(
        t_eval, ensure_2d=False, allow_nd=True, dtype=np.float64, ensure_all_finite="allow-nan", ensure_min_samples=0,
        ensure_min_features=0, input_name="t_eval",
    )  # fmt: skip
    if times.ndim not in (1, 2) or not times.shape[-1] or (times.ndim == 2 and len(times) != n_rows):
        raise ValueError(
            f"t_eval must have shape (n_times,), the same times for all rows, or ({n_rows}, n_times), times of their "
            f"own for each of the {n_rows} rows of X, got {times.shape}."
        )
    of_rows = np.atleast_2d(times)
    given = ~np.isnan(of_rows)
    if times.ndim == 1 and not given.all():
        raise ValueError("t_eval holds nan, which pads rows that have fewer times than others; leave it out here.")
    _refuse(~given[:, 0], of_rows, "t_eval needs a time for every row, and nan only after a row's last time; it begins")
    _refuse(
        (~given[:, :-1] & given[:, 1:]).any(axis=1), of_rows,
        "t_eval may hold nan only after a row's last time; nan stands between times",
    )  # fmt: skip
    forward = t_span[1] > t_span[0]
    steps = np.diff(of_rows, axis=1) * (1 if forward else -1)
    _refuse(
        (steps <= 0).any(axis=1), of_rows,
        f"t_eval must {'increase' if forward else 'decrease'}, as t_span={t_span} does, without repetitions; it does "
        "not",
    )  # fmt: skip
    low, high = min(t_span), max(t_span)
    _refuse(
        ((of_rows < low) | (of_rows > high)).any(axis=1), of_rows,
        f"t_eval must lie within t_span={t_span}; a time is outside",
    )  # fmt: skip
    return times


def check_row_times(t_eval: Any, n_rows: int, t_span: tuple[float, float]) -> np.ndarray:
    """Return times of their own for each row, of shape (n_rows, n_times), from either form of ``t_eval``."""
    times = check_t_eval(t_eval, n_rows, t_span)
    return times if times.ndim == 2 else np.tile(times, (n_rows, 1))


def check_one_grid(t_eval: Any, t_span: tuple[float, float], instead: str) -> tuple[float, ...]:
    """Return times for all rows; refuse times for each row, and say what to do instead.

    Raises
    ------
    ValueError
        If rows have times of their own, and where :func:`check_t_eval` raises one.
    """
    times = check_t_eval(t_eval, np.shape(t_eval)[0] if np.ndim(t_eval) == 2 else 1, t_span)
    if times.ndim == 2:
        raise ValueError(
            f"t_eval of shape {times.shape} gives rows times of their own, and here all rows share one grid, of shape "
            f"(n_times,): {instead}."
        )
    return tuple(times.tolist())


def times_to_fit(t_eval: Any, t_span: tuple[float, float]) -> tuple[float, ...] | None:
    """Return the times at which a fit compares states, the same for all rows; None stays None.

    Raises
    ------
    ValueError
        If there is no time after the start of ``t_span``, and where :func:`check_one_grid` raises one.
    """
    if t_eval is None:
        return None
    times = check_one_grid(
        t_eval, t_span, "pass times spread like theirs, such as np.nanquantile(t_eval, np.linspace(0, 1, 20))"
    )
    if times[-1] == t_span[0]:
        raise ValueError(
            f"t_eval={list(times)} holds the start of t_span={t_span} alone, where states are known; add a time after "
            "it."
        )
    return times


def _refuse(wrong: np.ndarray, times: np.ndarray, what: str) -> None:
    rows = np.flatnonzero(wrong)
    if len(rows):
        others = f" and {len(rows) - 1} more" if len(rows) > 1 else ""
        where = "" if len(times) == 1 else f" in row {rows[0]}{others}"
        raise ValueError(f"{what}{where}: {times[rows[0]].tolist()}.")
