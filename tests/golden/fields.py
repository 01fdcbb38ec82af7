"""Data, fields and corrections of the golden configurations: small, and the same everywhere."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import nn

from sklearn_hyper.modules import ConvVectorField, CorrectionNet, MLPVectorField

N_ROWS, N_NEW, N_IMAGES, N_PATHS = 120, 16, 9, 4
"""Rows of a fit; rows that results are recorded for, images, and rows whose trajectories are."""


def draw(shape: Iterable[int], seed: int, dtype: Any = np.float32) -> np.ndarray:
    """Normal numbers."""
    return np.random.default_rng(seed).normal(size=tuple(shape)).astype(dtype)


def rows(*shape: int, dtype: Any = np.float32) -> tuple[np.ndarray, np.ndarray]:
    """Rows to fit on, and new ones."""
    return draw((N_ROWS, *shape), 0, dtype), draw((N_NEW, *shape), 1, dtype)


def labelled(n_features: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Rows of three classes to fit on, their labels, and new ones with theirs."""
    X, X_new = rows(n_features)
    directions = draw((n_features, 3), 2)
    names = np.array(["ant", "bee", "cat"])
    return X, names[np.argmax(X @ directions, axis=1)], X_new, names[np.argmax(X_new @ directions, axis=1)]


def crescents() -> tuple[np.ndarray, np.ndarray]:
    """Points of a bent density in the plane, in units far from one."""
    points = draw((N_ROWS + N_NEW, 2), 3)
    points[:, 1] = 0.3 * points[:, 1] + np.sin(2 * points[:, 0])
    points = (points * [3.0, 0.1] + [10.0, -1.0]).astype(np.float32)
    return points[:N_ROWS], points[N_ROWS:]


def enlarge(module: nn.Module, gain: float) -> nn.Module:
    """The module with larger weights: a field is then curved without any training."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(gain)
    return module


def mlp_field(n_features: int, hidden: int = 12, gain: float = 2.5, **params: Any) -> nn.Module:
    torch.manual_seed(0)
    field = enlarge(MLPVectorField(n_features, hidden=hidden, **params), gain)
    with torch.no_grad():
        field.time.normal_()  # the field depends on time
    return field


def conv_field(channels: int, gain: float = 3.0) -> nn.Module:
    torch.manual_seed(0)
    field = enlarge(ConvVectorField(channels, hidden=6), gain)
    with torch.no_grad():
        field.time.normal_()
    return field


class ControlledField(nn.Module):
    """f(t, z, x) for vector states: reads the input at every time."""

    def __init__(self, n_features: int, n_inputs: int):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(n_features + n_inputs, 12), nn.Tanh(), nn.Linear(12, n_features))
        enlarge(self, 2.0)

    def forward(self, t, z, x):
        return (1 + t) * self.net(torch.cat([z, x], dim=1))


class ControlledConvField(nn.Module):
    """f(t, z, x) for images: reads the input at every time."""

    def __init__(self, channels: int):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Conv2d(2 * channels, 6, 3, padding=1), nn.SiLU(), nn.Conv2d(6, channels, 3, padding=1)
        )
        enlarge(self, 2.0)

    def forward(self, t, z, x):
        return self.net(torch.cat([z, x], dim=1)) - t * z


class OwnCorrection(nn.Module):
    """A correction of a user's own: reads the time, the state and the first stage."""

    def __init__(self, n_features: int, hidden: int = 10):
        super().__init__()
        torch.manual_seed(1)
        self.first = nn.Linear(2 * n_features + 2, hidden)
        self.last = nn.Linear(hidden, n_features)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, eps, s, z, stages, x=None):
        step = torch.stack([s.to(z), torch.full_like(s.to(z), eps)]).expand(len(z), 2)
        return self.last(torch.tanh(self.first(torch.cat([z, stages[0], step], dim=1))))


class KindAwareCorrection(CorrectionNet):
    """One that reads which kind of step it is called in: where the last stage of the step lies."""

    def __init__(self, *sizes):
        super().__init__()
        self.own = OwnCorrection(*sizes)

    def forward(self, eps, s, z, stages, x, kind):
        return self.own(eps, s, z, [stages[0] * (0.5 + kind.nodes[-1])])


def pendulum(t, z):
    """A field without a matrix product, so without MACs."""
    return torch.stack([3 * z[:, 1], -3 * torch.sin(z[:, 0])], dim=1)
