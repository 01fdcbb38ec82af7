"""Check ``t_eval``: the times at which states or outputs are asked for, one grid for all rows or one a row."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils.validation import check_array

_ULPS = 16
"""A time that is so many roundings outside of the span is its end."""
_SHOWN, _LONGEST = 6, 80
"""Most times, and most letters of a value, that an error shows."""


def check_t_eval(t_eval: Any, n_rows: int, t_span: tuple[float, float]) -> np.ndarray:
    """Return the times in float64, padded with nan where rows have fewer than others.

    Parameters
    ----------
    t_eval : array-like of shape (n_times,) or (n_rows, n_times)
        In the order of ``t_span``, without repetitions, and within it; its ends may be among them. A time beyond an
        end by rounding alone becomes that end. A row with fewer times than others is padded with nan at its end.
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
    times = _as_numbers(t_eval)
    if times.ndim not in (1, 2) or not times.shape[-1] or (times.ndim == 2 and len(times) != n_rows):
        raise ValueError(
            f"t_eval must have shape (n_times,), the same times for all rows, or ({n_rows}, n_times), times of their "
            f"own for each of the {n_rows} rows of X, got {times.shape}."
        )
    of_rows = np.atleast_2d(times)
    given = ~np.isnan(of_rows)
    if times.ndim == 1 and not given.all():
        raise ValueError("t_eval holds nan, which pads rows that have fewer times than others; leave it out here.")
    _refuse(
        ~given[:, :1], of_rows, "t_eval needs a time for every row, and nan only after a row's last time; it begins"
    )
    _refuse(
        ~given[:, :-1] & given[:, 1:], of_rows,
        "t_eval may hold nan only after a row's last time; nan stands between times",
    )  # fmt: skip
    forward, low, high = t_span[1] > t_span[0], min(t_span), max(t_span)
    # 0.1 * 3 is one rounding above 0.3, and means the end of a span that ends there.
    slack = _ULPS * np.finfo(np.float64).eps * max(abs(low), abs(high), high - low)
    of_rows = np.where((of_rows >= low - slack) & (of_rows <= high + slack), of_rows.clip(low, high), of_rows)
    steps = np.diff(of_rows, axis=1) * (1 if forward else -1)
    _refuse(
        steps <= 0, of_rows,
        f"t_eval must {'increase' if forward else 'decrease'}, as t_span={t_span} does, without repetitions; it does "
        "not",
    )  # fmt: skip
    _refuse((of_rows < low) | (of_rows > high), of_rows, f"t_eval must lie within t_span={t_span}; a time is outside")
    return of_rows.reshape(times.shape)


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
    shape = _as_numbers(t_eval).shape
    if len(shape) == 2:
        raise ValueError(
            f"t_eval of shape {shape} gives rows times of their own, and here all rows share one grid, of shape "
            f"(n_times,): {instead}."
        )
    if len(shape) != 1 or not shape[0]:
        raise ValueError(f"t_eval must have shape (n_times,), the same times for all rows, got {shape}.")
    return tuple(check_t_eval(t_eval, 1, t_span).tolist())


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


def _as_numbers(t_eval: Any) -> np.ndarray:
    try:
        return check_array(
            t_eval, ensure_2d=False, allow_nd=True, dtype=np.float64, ensure_all_finite="allow-nan",
            ensure_min_samples=0, ensure_min_features=0, input_name="t_eval",
        )  # fmt: skip
    except (TypeError, ValueError) as error:
        if "t_eval" in str(error):
            raise
        raise type(error)(
            "t_eval must be an array of numbers, of shape (n_times,) or (n_samples, n_times), whose rows are padded "
            f"with nan at their end where they have fewer times than others, got {_shorten(t_eval)}: {error}"
        ) from error


def _shorten(value: Any) -> str:
    """Return how a value reads, cut where it is long."""
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _refuse(wrong: np.ndarray, times: np.ndarray, what: str) -> None:
    """Raise an error that names the first entry that is wrong, and shows the times about it."""
    rows = np.flatnonzero(wrong.any(axis=1))
    if len(rows):
        others = f" and {len(rows) - 1} more" if len(rows) > 1 else ""
        where = "" if len(times) == 1 else f" in row {rows[0]}{others}"
        row, first = times[rows[0]].tolist(), int(wrong[rows[0]].argmax())
        start = max(0, min(first - _SHOWN // 2, len(row) - _SHOWN))
        shown = ", ".join(map(repr, row[start : start + _SHOWN]))
        before, after = "..., " if start else "", ", ..." if start + _SHOWN < len(row) else ""
        raise ValueError(f"{what}{where}: [{before}{shown}{after}].")
