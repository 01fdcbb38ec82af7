"""Hold rows out for validation."""

from __future__ import annotations

import numpy as np
from sklearn.model_selection import train_test_split


def count_held_out(validation_fraction: float | None, n_samples: int, *, at_least: int = 0) -> int:
    """Return how many rows to hold out: a share of them, at least ``at_least``; 0 if the fraction is None.

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
            f"{n_valid} held out; {advice}, or give more rows. At least {1 + at_least} samples are needed (got "
            f"n_samples={n_samples})."
        )
    return n_valid


def split_rows(validation_fraction: float | None, n_samples: int, seed: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Draw the indices (train, valid) of rows at random; valid is None where nothing is held out."""
    n_valid = count_held_out(validation_fraction, n_samples)
    if n_valid == 0:
        return np.arange(n_samples), None
    train, valid = train_test_split(np.arange(n_samples), test_size=n_valid, random_state=seed)
    return train, valid
