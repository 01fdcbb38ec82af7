"""What a fitted estimator takes: names, number and shape of features, told in its own words."""

from __future__ import annotations

from ._base import TorchEstimator

_LEARNED = ("n_features_in_", "feature_names_in_", "_input_shape")


def contract_of(estimator: TorchEstimator) -> TorchEstimator:
    """An instance of the estimator's class that knows what X has to be, and nothing of the model."""
    contract = bare(type(estimator))
    take_over(contract, estimator)
    return contract


def bare(kind: type[TorchEstimator]) -> TorchEstimator:
    """An instance without parameters or weights: its ``_validate_X`` learns from X, or checks it, in the class's name."""
    empty = kind.__new__(kind)
    vars(empty).update(dict.fromkeys(kind._get_param_names()))  # for its repr
    return empty


def take_over(estimator: TorchEstimator, fitted: TorchEstimator | None) -> None:
    """Ask of X what ``fitted`` asks; nothing, if that is None."""
    for name in _LEARNED:
        vars(estimator).pop(name, None)
        if fitted is not None and name in vars(fitted):
            setattr(estimator, name, vars(fitted)[name])
