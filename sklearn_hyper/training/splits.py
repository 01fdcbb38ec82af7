"""Holding rows out."""

from __future__ import annotations

import numpy as np
from sklearn.model_selection import train_test_split


def count_held_out(validation_fraction: float | None, n_samples: int, *, at_least: int = 0) -> int:
    """Rows to hold out: a share of them, or ``at_least`` so many; none for a fraction of None.

    Raises
    ------
    ValueError
        If no row is left to train on.
    """
    n_valid = 0 if validation_fraction is None else max(at_least, round(validation_fraction * n_samples))
    if n_samples - n_valid < 1:
        advice = "lower it" if at_least else "lower it, set it to None"
        raise ValueError(
            f"validation_fraction={validation_fraction} of n_samples={n_samples} leaves no row to train on, with "
            f"{n_valid} held "
            f"out; {advice}, or give more rows. At least {1 + at_least} samples are needed (got n_samples={n_samples})."
        )
    return n_valid


def split_rows(validation_fraction: float | None, n_samples: int, seed: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Row indices (train, valid), drawn at random; None where nothing is held out."""
    n_valid = count_held_out(validation_fraction, n_samples)
    if n_valid == 0:
        return np.arange(n_samples), None
    train, valid = train_test_split(np.arange(n_samples), test_size=n_valid, random_state=seed)
    return train, valid
