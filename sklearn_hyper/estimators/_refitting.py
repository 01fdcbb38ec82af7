"""What refits of all hypersolvers share: their settings, what they refuse, and what they say afterwards."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

from ..hypersolvers import FittedHypersolver

_EPOCHS, _MOST_EPOCHS, _LR = 1 / 4, 1 / 3, 1 / 2
"""Epochs and learning rate of a refit, as shares of those of a fit: record 21 has what others reach."""
_FEWEST_UPDATES = 100
"""Where a quarter of the epochs makes fewer, for lack of rows, a refit takes more, at most a third of a fit's."""


def refit_changes(estimator: Any, max_epochs: Any, lr: Any, n_rows: int) -> dict[str, Any]:
    """Return the settings in which a refit differs from a fit of the estimator; refuse wrong ones."""
    if max_epochs is not None and (isinstance(max_epochs, bool) or not isinstance(max_epochs, Integral)):
        raise ValueError(f"max_epochs must be None or an integer >= 1, got {max_epochs!r}.")
    if max_epochs is not None and max_epochs < 1:
        raise ValueError(f"max_epochs must be None or an integer >= 1, got {max_epochs!r}.")
    if lr is not None and not (isinstance(lr, Real) and 0 < lr < math.inf):
        raise ValueError(f"lr must be None or a positive number, got {lr!r}.")
    epochs = _enough_epochs(estimator, n_rows) if max_epochs is None else int(max_epochs)
    return {"max_epochs": epochs, "lr": _LR * estimator.lr if lr is None else float(lr)}


def _enough_epochs(estimator: Any, n_rows: int) -> int:
    most = n_rows if estimator.max_samples == "auto" else min(n_rows, estimator.max_samples)
    n_batches = max(1, math.ceil((1 - estimator.validation_fraction) * most / estimator.batch_size))
    fewest, largest = (math.ceil(share * estimator.max_epochs) for share in (_EPOCHS, _MOST_EPOCHS))
    return min(largest, max(fewest, math.ceil(_FEWEST_UPDATES / n_batches)))


def require_correction(has_correction: bool, name: str) -> None:
    """Refuse to refit what has no correction."""
    if not has_correction:
        raise ValueError(
            f"this {name} has no correction to refit: it is a copy of without_correction(), or its fit fell back to "
            "the base solver. Call fit."
        )


def errors_of_refit(fitted: FittedHypersolver) -> dict[str, dict[int, dict[str, float]]]:
    """Return the errors on held-out rows before and after the last refit, each as ``errors_`` has them."""
    if fitted.errors_before is None:
        raise AttributeError("refit_ is there after refit, or a fit with warm_start=True; this fit started anew.")
    return {"before": fitted.errors_before, "after": fitted.errors}


def describe_refit(fitted: FittedHypersolver, what: str) -> str:
    """Say the errors of a refit in a line."""
    before, after = (errors[fitted.n_steps] for errors in errors_of_refit(fitted).values())
    return (
        f"refit of {what} in {len(fitted.history)} epochs: mean error {before['mean']:.3g} before, "
        f"{after['mean']:.3g} after, {after['base_mean']:.3g} of the base solver; largest {before['max']:.3g}, "
        f"{after['max']:.3g}, {after['base_max']:.3g}"
    )
