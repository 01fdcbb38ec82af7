"""Refuse skorch callbacks that a training cannot serve, before it begins."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator
from typing import Any

from skorch.callbacks import Callback, Checkpoint, EarlyStopping, LoadInitState, LRScheduler, PassthroughScoring
from skorch.callbacks.scoring import ScoringBase

LOSS_NET_RECORDS = ("train_loss", "valid_loss", "dur", "epoch")
"""Names that every epoch of a net with held-out rows records."""


def each_callback(callbacks: Any) -> Iterator[Callback]:
    """Yield the user's callbacks without their names; classes, which skorch also accepts, as instances."""
    for entry in callbacks or []:
        callback = entry[1] if isinstance(entry, tuple) else entry
        yield callback() if isinstance(callback, type) else callback


def refuse_checkpoints(callbacks: Any, why: str) -> None:
    """Refuse callbacks that write or read weights in files, which several nets would overwrite for each other."""
    for callback in each_callback(callbacks):
        if isinstance(callback, (Checkpoint, LoadInitState)):
            raise ValueError(f"callbacks holds a {type(callback).__name__}: {why}")


def refuse_scoring(callbacks: Any, estimator: str) -> None:
    """Refuse callbacks that score predictions, for a net that computes a loss and predicts nothing."""
    for callback in each_callback(callbacks):
        if isinstance(callback, ScoringBase):
            raise ValueError(
                f"callbacks holds a {type(callback).__name__}({callback.scoring!r}), which scores predictions, but "
                f"what {estimator} trains computes its loss and predicts nothing. Drop it: valid_loss is recorded "
                "every epoch, for EarlyStopping and the like to monitor, and score(X) tells of the fitted estimator. "
                "NeuralODEClassifier and NeuralODERegressor take such callbacks."
            )


def check_monitors(callbacks: Any, recorded: Collection[str], remedy: str) -> None:
    """Refuse callbacks that monitor a value no epoch records; do nothing if a user's callback may record it."""
    listed = list(each_callback(callbacks))
    if not all(type(callback).__module__.startswith("skorch.") for callback in listed):
        return
    scoring = [scorer for scorer in listed if isinstance(scorer, (ScoringBase, PassthroughScoring))]
    scores = [_score_name(scorer) for scorer in scoring if scorer.on_train or "valid_loss" in recorded]
    names = sorted({*recorded, *scores})
    for callback in listed:
        monitor = callback.monitor if _watches(callback) else None
        if isinstance(monitor, str) and monitor.removesuffix("_best") not in names:
            raise ValueError(
                f"callbacks holds a {type(callback).__name__} with monitor={monitor!r}, which no epoch records; "
                f"recorded are {', '.join(names)}. {remedy}"
            )


def _score_name(callback: Any) -> str:
    return callback.name if isinstance(callback, PassthroughScoring) else copy.copy(callback).initialize().name_


def _watches(callback: Any) -> bool:
    """Return whether a callback reads its ``monitor``; a schedule does so only on plateaus."""
    if isinstance(callback, LRScheduler):
        return "ReduceLROnPlateau" in (callback.policy, getattr(callback.policy, "__name__", None))
    return isinstance(callback, (EarlyStopping, Checkpoint))
