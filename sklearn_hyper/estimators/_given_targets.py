"""Check that y, from which a hypersolver learns nothing, is what the Neural ODE predicts."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from sklearn.metrics import r2_score
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _num_samples, assert_all_finite, check_array, column_or_1d

_RECODED = (
    "Its labels are those of the fitted Neural ODE: meta-estimators that recode labels for their members "
    "(VotingClassifier, StackingClassifier, BaggingClassifier, OneVsRestClassifier, OneVsOneClassifier, "
    "ClassifierChain and others) cannot fit one. Fit it first, without them: VotingClassifier(voting='soft') and "
    "StackingClassifier take FrozenEstimator(hypersolver). Those that train a classifier for each label, or pair, take "
    "the Neural ODE's own classifier, for whose members hypersolvers are fitted then. Or leave out y."
)


def spread(n_samples: int, most: int = 256) -> np.ndarray:
    """Return indices of at most ``most`` rows, evenly spread because data may be sorted by label."""
    return np.linspace(0, n_samples - 1, min(n_samples, most)).astype(int)


def check_consistent_rows(y: Any, n_samples: int) -> None:
    """Refuse a y whose length is not that of X."""
    if _num_samples(y) != n_samples:
        raise ValueError(f"y has {_num_samples(y)} rows, X has {n_samples}: pass one a row, or leave out y.")


def check_given_labels(y: Any, classes: np.ndarray, n_samples: int) -> np.ndarray:
    """Return y if it holds one of the classes for every row; refuse it otherwise.

    Raises
    ------
    ValueError
        If y has another length than X, or other labels.
    """
    y = column_or_1d(y, warn=True)
    assert_all_finite(y, input_name="y")
    check_classification_targets(y)
    check_consistent_rows(y, n_samples)
    unknown = sorted(set(y.tolist()) - set(classes.tolist()), key=str)
    if unknown:
        raise ValueError(
            f"y holds labels {_few(unknown)} that are not among classes_ {_few(classes.tolist())} of the hypersolver. "
            f"{_RECODED}"
        )
    return y


def check_agreement(y: np.ndarray, predicted: np.ndarray, classes: np.ndarray, *, lacks_some: bool) -> None:
    """Refuse labels that belong to another problem than the Neural ODE's.

    Labels that lack some of the classes may be recoded, as one-vs-rest does. The predictions must agree with them at
    least as often as the most frequent label would. Labels of all classes may belong to a badly trained model. They are
    refused only if the predictions agree less than half as often as chance, as with the second output of a
    MultiOutputClassifier. A single label tells too little to refuse.

    Raises
    ------
    ValueError
        If the predictions agree with y less often than that.
    """
    labels, counts = np.unique(y, return_counts=True)
    agreement, most = float(np.mean(predicted == y)), float(counts.max() / len(y))
    if len(labels) > 1 and agreement < (most if lacks_some else 0.5 / len(classes)):
        raise ValueError(
            f"y holds {_few(labels.tolist())} of classes_ {_few(classes.tolist())}, and the Neural ODE's own "
            f"predictions agree with {agreement:.0%} of it, always predicting {labels.tolist()[counts.argmax()]!r} "
            f"with {most:.0%}: these seem to be other labels of the same names. {_RECODED}"
        )


def check_given_targets(y: Any, n_samples: int) -> np.ndarray | None:
    """Return y as finite numbers of shape (n_samples, n_outputs); None for text, the labels of a later step.

    Raises
    ------
    ValueError
        If y has another length than X, or numbers that are not finite.
    """
    check_consistent_rows(y, n_samples)
    values = np.asarray(y)
    if values.dtype.kind in "US" or (values.dtype == object and any(isinstance(value, str) for value in values.flat)):
        return None
    y = check_array(y, ensure_2d=False, allow_nd=True, dtype="numeric", input_name="y")
    return y.reshape(len(y), -1)


def warn_of_targets(y: np.ndarray, outputs: np.ndarray) -> None:
    """Warn of targets that the Neural ODE does not predict, since a hypersolver does not learn them.

    Warns
    -----
    UserWarning
        If the outputs predict y worse than a constant, that is, with a negative R2.
    """
    if len(y) < 2 or not np.isfinite(outputs).all():
        return
    score = r2_score(y, outputs)
    if score < 0:
        warnings.warn(
            f"nothing is learned from y, and the Neural ODE's own outputs have R2 = {score:.3g} against it. If a "
            "TransformedTargetRegressor transforms y here, it will transform predictions back that never were "
            "transformed: wrap the Neural ODE in it instead, and pass its regressor_ to the hypersolver. Or leave out "
            "y.",
            UserWarning,
            stacklevel=7,
        )


def _few(labels: list[Any]) -> str:
    return str(labels) if len(labels) <= 10 else f"{labels[:10]!r} and {len(labels) - 10} more"
