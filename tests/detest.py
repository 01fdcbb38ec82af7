"""Non-stiff problems of the DETEST collection, the Pleiades and a periodic orbit of three bodies, as fields of torch.

References
----------
Hull, Enright, Fellen, Sedgwick (1972), *Comparing numerical methods for ordinary differential equations*, SIAM J. Numer.
Anal. 9, classes A to E without C5; Hairer, Norsett, Wanner (1993), *Solving Ordinary Differential Equations I*, II.0
and II.10.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from scipy.integrate import solve_ivp


@dataclass(frozen=True)
class Nonstiff:
    """z' = f(t, z) from z0; ``exact(t)`` is its closed form, if it has one."""

    f: Callable[..., Any]
    z0: tuple[float, ...]
    end: float = 20.0
    exact: Callable[[float], Any] | None = None

    @property
    def state(self):
        return torch.tensor([self.z0], dtype=torch.float64)

    def solve_tightly(self, times):
        """States at times, of shape (T, n): the closed form, or DOP853 from time to time at its tightest."""
        if self.exact is not None:
            return np.array([np.atleast_1d(self.exact(t)) for t in times])
        states = [np.array(self.z0)]
        for start, end in pairwise(times):
            solved = solve_ivp(self._by_numpy, (start, end), states[-1], method="DOP853", rtol=2.3e-14, atol=1e-15)
            assert solved.success
            states.append(solved.y[:, -1])
        return np.array(states)

    def _by_numpy(self, t, y):
        return self.f(torch.tensor(t, dtype=torch.float64), torch.from_numpy(y)[None])[0].numpy()


def columns(*values):
    return torch.stack(torch.broadcast_tensors(*values), dim=1)


def _b4(t, z):
    a, b, c = z.unbind(1)
    r = torch.hypot(a, b)
    return columns(-b - a * c / r, a - b * c / r, a / r)


def _c2(t, z):
    rates = torch.arange(1.0, 10.0, dtype=z.dtype)
    left = rates * z[:, :9]
    zero = z.new_zeros(len(z), 1)
    return torch.cat([zero, left], dim=1) - torch.cat([left, zero], dim=1)


def _c1(t, z):
    left, zero = z[:, :-1], z.new_zeros(len(z), 1)
    return torch.cat([zero, left], dim=1) - torch.cat([left, zero], dim=1)


def _diffusion(t, z):
    zero = z.new_zeros(len(z), 1)
    return torch.cat([z[:, 1:], zero], dim=1) + torch.cat([zero, z[:, :-1]], dim=1) - 2 * z


def _orbit(t, z):
    x, y, u, v = z.unbind(1)
    cubed = torch.hypot(x, y) ** 3
    return columns(u, v, -x / cubed, -y / cubed)


def _kepler(eccentricity):
    """The orbit by Kepler's equation."""

    def exact(t):
        e, root = eccentricity, math.sqrt(1 - eccentricity**2)
        angle = t
        for _ in range(50):
            angle -= (angle - e * math.sin(angle) - t) / (1 - e * math.cos(angle))
        c, s = math.cos(angle), math.sin(angle)
        return c - e, root * s, -s / (1 - e * c), root * c / (1 - e * c)

    return Nonstiff(_orbit, exact(0.0), exact=exact)


def _e1(t, z):
    y, v = z.unbind(1)
    return columns(v, -(v / (t + 1) + (1 - 0.25 / (t + 1) ** 2) * y))


def _e1_exact(t):
    """The Bessel function of order one half, and its derivative, at t + 1."""
    x = t + 1
    scale = math.sqrt(2 / (math.pi * x))
    return scale * math.sin(x), scale * (math.cos(x) - math.sin(x) / (2 * x))


def _e5_exact(t):
    # sqrt(1 + v^2) = v' (25 - x): asinh(v) = log(25 / (25 - x)).
    v = 0.5 * (25 / (25 - t) - (25 - t) / 25)
    return 12.5 * math.log(25 / (25 - t)) - (25**2 - (25 - t) ** 2) / 100, v


_MASSES = torch.arange(1.0, 8.0, dtype=torch.float64)


def _pleiades(t, z):
    x, y, u, v = z.split(7, dim=1)
    dx, dy = x[:, None, :] - x[:, :, None], y[:, None, :] - y[:, :, None]
    cubed = (dx**2 + dy**2) ** 1.5 + torch.eye(7, dtype=z.dtype)
    return torch.cat([u, v, (_MASSES * dx / cubed).sum(dim=2), (_MASSES * dy / cubed).sum(dim=2)], dim=1)


_MOON = 0.012277471


def _three_bodies(t, z):
    x, y, u, v = z.unbind(1)
    earth, moon = torch.hypot(x + _MOON, y) ** 3, torch.hypot(x - 1 + _MOON, y) ** 3
    return columns(
        u,
        v,
        x + 2 * v - (1 - _MOON) * (x + _MOON) / earth - _MOON * (x - 1 + _MOON) / moon,
        y - 2 * u - (1 - _MOON) * y / earth - _MOON * y / moon,
    )


NONSTIFF = {
    "A1": Nonstiff(lambda t, z: -z, (1.0,), exact=lambda t: math.exp(-t)),
    "A2": Nonstiff(lambda t, z: -(z**3) / 2, (1.0,), exact=lambda t: 1 / math.sqrt(1 + t)),
    "A3": Nonstiff(lambda t, z: z * torch.cos(t), (1.0,), exact=lambda t: math.exp(math.sin(t))),
    "A4": Nonstiff(lambda t, z: z / 4 * (1 - z / 20), (1.0,), exact=lambda t: 20 / (1 + 19 * math.exp(-t / 4))),
    "A5": Nonstiff(lambda t, z: (z - t) / (z + t), (4.0,)),
    "B1": Nonstiff(lambda t, z: columns(2 * (z[:, 0] - z[:, 0] * z[:, 1]), z[:, 0] * z[:, 1] - z[:, 1]), (1.0, 3.0)),
    "B2": Nonstiff(
        lambda t, z: columns(z[:, 1] - z[:, 0], z[:, 0] - 2 * z[:, 1] + z[:, 2], z[:, 1] - z[:, 2]), (2.0, 0.0, 1.0)
    ),
    "B3": Nonstiff(lambda t, z: columns(-z[:, 0], z[:, 0] - z[:, 1] ** 2, z[:, 1] ** 2), (1.0, 0.0, 0.0)),
    "B4": Nonstiff(_b4, (3.0, 0.0, 0.0)),
    "B5": Nonstiff(
        lambda t, z: columns(z[:, 1] * z[:, 2], -z[:, 0] * z[:, 2], -0.51 * z[:, 0] * z[:, 1]), (0.0, 1.0, 1.0)
    ),
    "C1": Nonstiff(_c1, (1.0, *[0.0] * 9)),
    "C2": Nonstiff(_c2, (1.0, *[0.0] * 9)),
    "C3": Nonstiff(_diffusion, (1.0, *[0.0] * 9)),
    "C4": Nonstiff(_diffusion, (1.0, *[0.0] * 50)),
    **{f"D{i}": _kepler(e) for i, e in enumerate((0.1, 0.3, 0.5, 0.7, 0.9), start=1)},
    "E1": Nonstiff(_e1, _e1_exact(0.0), exact=_e1_exact),
    "E2": Nonstiff(lambda t, z: columns(z[:, 1], (1 - z[:, 0] ** 2) * z[:, 1] - z[:, 0]), (2.0, 0.0)),
    "E3": Nonstiff(lambda t, z: columns(z[:, 1], z[:, 0] ** 3 / 6 - z[:, 0] + 2 * torch.sin(2.78535 * t)), (0.0, 0.0)),
    "E4": Nonstiff(lambda t, z: columns(z[:, 1], 0.032 - 0.4 * z[:, 1] ** 2), (30.0, 0.0)),
    "E5": Nonstiff(lambda t, z: columns(z[:, 1], torch.sqrt(1 + z[:, 1] ** 2) / (25 - t)), (0.0, 0.0), exact=_e5_exact),
    "Pleiades": Nonstiff(
        _pleiades,
        (3, 3, -1, -3, 2, -2, 2, 3, -3, 2, 0, 0, -4, 4, 0, 0, 0, 0, 0, 1.75, -1.5, 0, 0, 0, -1.25, 1, 0, 0),
        end=3.0,
    ),
    "three bodies": Nonstiff(_three_bodies, (0.994, 0.0, 0.0, -2.00158510637908252240537862224), end=17.0652165601579625588917206249),
}  # fmt: skip
