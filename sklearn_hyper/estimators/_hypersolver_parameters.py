"""Constraints of the parameters that all hypersolvers share, and their translation to settings of a fit."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

import torch
from joblib import Memory
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from torch import nn

from ..hypersolvers import FitSettings
from ..modules.corrections import CorrectionSpec
from ..numerics.times import check_n_steps
from ._base import TRAINING_CONSTRAINTS, TorchEstimator

HYPERSOLVER_CONSTRAINTS: dict = {
    **TRAINING_CONSTRAINTS,
    "neural_ode": "no_validation",
    "base_solver": "no_validation",
    "optimizer": [StrOptions({"auto"}), type],
    "order": [None, Interval(Integral, 1, 5, closed="both")],
    "fit_n_steps": [None, Interval(Integral, 1, None, closed="left"), tuple, list],
    "correction": [StrOptions({"auto"}), CorrectionSpec, nn.Module],
    "loss": [StrOptions({"residual", "trajectory", "residual+trajectory"})],
    "finetune": [None, StrOptions({"terminal", "trajectory", "output"})],
    "max_samples": [StrOptions({"auto"}), Interval(Integral, 2, None, closed="left")],
    "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
    "mape_floor": [Interval(Real, 0, None, closed="neither")],
    "memory": [None, str, Memory, HasMethods(["cache"])],
    "n_jobs": [None, Integral],
    "extra_rows": [None, StrOptions({"box", "worst", "between"}), callable],
}
"""Constraints of the parameters that all hypersolvers share."""

STEPPING_CONSTRAINTS: dict = {
    "stepping": [StrOptions({"fixed", "adaptive"})],
    "step_rtol": [Interval(Real, 0, None, closed="neither")],
    "step_controller": [StrOptions({"pi", "learned"})],
    "row_times": [None, "boolean"],
}
"""Constraints of the parameters that flows do not have: of adaptive steps."""


def fit_settings(estimator: TorchEstimator, device: torch.device) -> FitSettings:
    """Return the settings of a fit from an estimator's parameters; refuse wrong numbers of steps."""
    params = estimator.get_params(deep=False)
    n_steps = check_n_steps(params["n_steps"])
    return FitSettings.of(
        params | {"n_steps": n_steps, "fit_n_steps": _fit_range(params["fit_n_steps"]), "device": str(device)}
    )


def _fit_range(fit_n_steps: Any) -> int | tuple[int, int] | None:
    if fit_n_steps is None or isinstance(fit_n_steps, Integral):
        return fit_n_steps
    pair = tuple(fit_n_steps)
    if len(pair) != 2:
        raise ValueError(f"fit_n_steps must be None, an integer or a pair (a, b), got {fit_n_steps!r}.")
    fewest, most = (check_n_steps(value, "fit_n_steps") for value in pair)
    if fewest >= most:
        raise ValueError(f"fit_n_steps=(a, b) needs a < b, got {fit_n_steps!r}; pass an integer for one step size.")
    return fewest, most
