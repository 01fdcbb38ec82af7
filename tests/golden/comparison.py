"""Reads golden files, and says how far values are from them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

Arrays = dict[str, np.ndarray]


def read_golden(path: Path) -> dict[str, Arrays]:
    """The recorded values by configuration, then by name."""
    golden: dict[str, Arrays] = {}
    with np.load(path) as file:
        for member in file.files:
            configuration, _, name = member.partition("/")
            golden.setdefault(configuration, {})[name] = file[member]
    return golden


def deviation(value: np.ndarray, recorded: np.ndarray) -> float:
    """Largest difference, as a share of the largest recorded number; infinite where more than rounding has changed.

    That is another shape, other labels or counts, or infinities and nans at other places.
    """
    if value.shape != recorded.shape or value.dtype.kind != recorded.dtype.kind:
        return math.inf
    if recorded.dtype.kind != "f":
        return 0.0 if np.array_equal(value, recorded) else math.inf
    value, recorded = value.astype(float), recorded.astype(float)
    finite = np.isfinite(recorded)
    if not np.array_equal(value[~finite], recorded[~finite], equal_nan=True) or not np.isfinite(value[finite]).all():
        return math.inf
    if not finite.any():
        return 0.0
    difference = np.abs(value[finite] - recorded[finite]).max()
    return float(difference / (np.abs(recorded[finite]).max() or 1.0))
