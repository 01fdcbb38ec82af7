"""The parts of a Neural ODE that an estimator makes where the user passes none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..modules.conditioned_fields import ConditionedMLPField
from ..modules.vector_fields import AugmentedInput, ConvVectorField, MLPVectorField, Standardize

_ADDED_CHANNELS, _ADDED_FEATURES = 7, 8


def no_field(t: Tensor, z: Tensor) -> Tensor:
    """Stand in for a field that has not been made yet."""
    return torch.zeros_like(z)


def default_input_map(x: Tensor) -> nn.Module:
    """Make a map that standardises x and adds learned features or channels (input-layer augmentation)."""
    scaler = Standardize.from_data(x)
    if x.ndim == 4:
        return AugmentedInput(nn.Conv2d(x.shape[1], _ADDED_CHANNELS, 3, padding=1), scaler)
    if x.ndim == 2:
        return AugmentedInput(nn.Linear(x.shape[1], _ADDED_FEATURES), scaler)
    raise ValueError(
        f"there is no default input_map for samples of shape {tuple(x.shape[1:])}; pass vector_field and output_map, "
        "and an input_map of your own (nn.Identity() for none)."
    )


def default_field(z: Tensor, t_span: Any, condition: Mapping[str, Tensor], n_labels: Mapping[str, int]) -> nn.Module:
    """Make a field for states like z, which embeds as many labels as there are and appends other conditions."""
    if condition:
        if z.ndim == 2:
            return ConditionedMLPField(z.shape[1], condition, n_labels, t_span=t_span)
        raise ValueError(
            f"there is no default vector_field that takes a condition ({', '.join(map(repr, condition))}) for states "
            f"of shape {tuple(z.shape[1:])}; pass one, called as f(t, z, {next(iter(condition))}=...)."
        )
    if z.ndim == 4:
        return ConvVectorField(z.shape[1], t_span=t_span)
    if z.ndim == 2:
        return MLPVectorField(z.shape[1], t_span=t_span)
    raise ValueError(f"there is no default vector_field for states of shape {tuple(z.shape[1:])}; pass one.")


def default_output_map(z: Tensor, n_outputs: int) -> nn.Module:
    """Make a linear map from states like z."""
    return nn.Sequential(nn.Flatten(), nn.Linear(z[0].numel(), n_outputs))
