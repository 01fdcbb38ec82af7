"""A class-conditional image flow: a small U-Net that carries Gaussian noise to 8 x 8 digits of a given class.

It is trained by flow matching here, with plain torch: how a user of another library comes by such a field.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from _results import fitted
from images import load_digit_images
from torch import Tensor, nn
from torch.nn import functional

from sklearn_hyper import NeuralODE

N_CLASSES, SIDE = 10, 8
_ITERATIONS, _BATCH, _LR = 4000, 128, 2e-3


class ResBlock(nn.Module):
    """Two normalised convolutions around a shift by time and class, with a skip connection."""

    def __init__(self, n_in: int, n_out: int, n_embedded: int):
        super().__init__()
        self.first = nn.Sequential(nn.GroupNorm(4, n_in), nn.SiLU(), nn.Conv2d(n_in, n_out, 3, padding=1))
        self.shift = nn.Linear(n_embedded, n_out)
        self.second = nn.Sequential(nn.GroupNorm(4, n_out), nn.SiLU(), nn.Conv2d(n_out, n_out, 3, padding=1))
        self.skip = nn.Conv2d(n_in, n_out, 1) if n_in != n_out else nn.Identity()

    def forward(self, z: Tensor, embedded: Tensor) -> Tensor:
        h = self.first(z) + self.shift(embedded)[:, :, None, None]
        return self.skip(z) + self.second(h)


class UNetField(nn.Module):
    """f(t, z, x) for images z; x holds the base draw, which it ignores, and the class as ten indicators."""

    def __init__(self, width: int = 24, n_embedded: int = 48):
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(N_CLASSES + 16, n_embedded), nn.SiLU(), nn.Linear(n_embedded, n_embedded))
        self.enter = nn.Conv2d(1, width, 3, padding=1)
        self.down = ResBlock(width, width, n_embedded)
        self.pool = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.middle = nn.ModuleList(ResBlock(2 * width, 2 * width, n_embedded) for _ in range(2))
        self.expand = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.up = ResBlock(2 * width, width, n_embedded)
        self.leave = nn.Sequential(nn.GroupNorm(4, width), nn.SiLU(), nn.Conv2d(width, 1, 3, padding=1))
        self.register_buffer("frequencies", torch.pi * torch.arange(1, 9) / 2)

    def forward(self, t: Tensor, z: Tensor, x: Tensor) -> Tensor:
        angles = torch.as_tensor(t).to(z).reshape(-1, 1) * self.frequencies  # one time, or one for every row
        time = torch.cat([angles.sin(), angles.cos()], dim=1).expand(len(z), -1)
        embedded = self.embed(torch.cat([x[:, -N_CLASSES:], time], dim=1))
        high = self.down(self.enter(z), embedded)
        low = self.pool(high)
        for block in self.middle:
            low = block(low, embedded)
        return self.leave(self.up(torch.cat([self.expand(low), high], dim=1), embedded))


class BaseImage(nn.Module):
    """The base draw in a row, as an image."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :-N_CLASSES].reshape(-1, 1, SIDE, SIDE)


def base_rows(n: int, draw: torch.Generator, scale: float = 1.0) -> Tensor:
    """Rows of the Neural ODE: base draws, and a class for each."""
    classes = functional.one_hot(torch.randint(N_CLASSES, (n,), generator=draw), N_CLASSES)
    return torch.cat([scale * torch.randn(n, SIDE**2, generator=draw), classes.float()], dim=1)


def load_digits_flow(cache: str) -> tuple[NeuralODE, Callable[..., Tensor]]:
    """The flow from the cache, or trained first (some minutes); and what draws its rows."""
    field = fitted(cache, "digits_flow", _train)
    return NeuralODE(field, input_map=BaseImage(), data_controlled=True), base_rows


def _train() -> UNetField:
    """Conditional flow matching: regress z_1 - z_0 on the straight line between noise and digit."""
    torch.manual_seed(0)
    images = load_digit_images(seed=0)
    data, labels = torch.from_numpy(images.X_train) / 8 - 1, torch.from_numpy(images.y_train).long()
    draw, field = torch.Generator().manual_seed(0), UNetField()
    optimizer = torch.optim.Adam(field.parameters(), lr=_LR)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _ITERATIONS)
    for _ in range(_ITERATIONS):
        rows = torch.randint(len(data), (_BATCH,), generator=draw)
        x = base_rows(_BATCH, draw)
        x[:, -N_CLASSES:] = functional.one_hot(labels[rows], N_CLASSES)
        start, end = BaseImage()(x), data[rows]
        t = torch.rand(_BATCH, 1, 1, 1, generator=draw)
        loss = (field(t, start + t * (end - start), x) - (end - start)).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return field.eval()
