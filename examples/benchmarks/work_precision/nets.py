"""The nets that rivals are made of, as wide as a share of f's multiply-accumulates allows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import pairwise

import torch
from torch import Tensor, nn

from .loading import LoadedProblem

G_SHARE = 0.1
"""MACs of a rival's g over those of f: what our default g may have."""


def widest(macs: Callable[[int], float], limit: float, default: int, at_most: int = 512) -> int:
    """The widest hidden layer within a limit of MACs; the default where f has none."""
    if math.isnan(limit):
        return default
    return max((h for h in range(1, at_most + 1) if macs(h) <= limit), default=1)


def mlp(n_in: int, hidden: Iterable[int], n_out: int, activation: type[nn.Module]) -> nn.Sequential:
    """Linear layers with an activation between them."""
    sizes = [n_in, *hidden, n_out]
    layers = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), activation())]
    return nn.Sequential(*layers[:-1])


def conv(n_in: int, hidden: Iterable[int], n_out: int, activation: type[nn.Module]) -> nn.Sequential:
    """3x3 convolutions that keep the shape, with an activation between them."""
    sizes = [n_in, *hidden, n_out]
    layers = [part for a, b in pairwise(sizes) for part in (nn.Conv2d(a, b, 3, padding=1), activation())]
    return nn.Sequential(*layers[:-1])


def recipe_net(loaded: LoadedProblem, n_states: int, published: int | None, share: float = G_SHARE) -> nn.Sequential:
    """A net that reads n_states states and eps: of the published width, or as wide as a share of f's MACs allows.

    PReLU, as published for fields that are nets; on the analytic ones SiLU does better by half (on validation rows).
    """
    z, limit = loaded.initial_states[0], share * loaded.macs_f
    d = z.shape[0]
    activation = nn.SiLU if math.isnan(limit) else nn.PReLU
    n_in = n_states * d + 1
    if z.ndim == 1:
        hidden = published or widest(
            lambda h: n_in * h + h * h + h * d, limit, 32, at_most=64 if share == G_SHARE else 512
        )
        return mlp(n_in, [hidden, hidden], d, activation)
    if published:
        return conv(n_in, [published, published], d, activation)
    area = 9 * z[0].numel()
    return conv(n_in, [widest(lambda h: area * (n_in + d) * h, limit, 16)], d, activation)


def with_eps(parts: list[Tensor], eps: float) -> Tensor:
    """States side by side, and eps as a feature or channel."""
    return torch.cat([*parts, torch.full_like(parts[0][:, :1], eps)], dim=1)
