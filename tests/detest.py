"""Non-stiff test problems with known solutions: classes A to E of DETEST, the Pleiades and Arenstorf's orbit.

Hull, Enright, Fellen, Sedgwick (1972), *Comparing numerical methods for ordinary differential equations*; Hairer,
Norsett, Wanner (1993), *Solving Ordinary Differential Equations I*. Truth is SciPy's DOP853 at its tightest tolerance.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from scipy.integrate import solve_ivp


class Problem(NamedTuple):
    """dy/dt = f(t, y) from t = 0. f takes and returns a list of columns."""

    columns: Callable
    start: tuple[float, ...]
    end: float = 20.0

    def field(self, t, z):
        """f as the library calls it, on rows."""
        return torch.stack(self.columns(t, list(z.unbind(dim=1))), dim=1)

    def z0(self):
        return torch.tensor([self.start], dtype=torch.float64)


def _chain(t, y):
    return [-y[0], *(y[i - 1] - y[i] for i in range(1, 9)), y[8]]


def _faster_chain(t, y):
    return [-y[0], *(i * y[i - 1] - (i + 1) * y[i] for i in range(1, 9)), 9 * y[8]]


def _diffusion(t, y):
    zero = 0 * y[0]
    wide = [zero, *y, zero]
    return [wide[i] - 2 * wide[i + 1] + wide[i + 2] for i in range(len(y))]


def _on_torus(t, y):
    r = (y[0] ** 2 + y[1] ** 2) ** 0.5
    return [-y[1] - y[0] * y[2] / r, y[0] - y[1] * y[2] / r, y[0] / r]


def _orbit(t, y):
    r3 = (y[0] ** 2 + y[1] ** 2) ** 1.5
    return [y[2], y[3], -y[0] / r3, -y[1] / r3]


def _eccentric(e):
    return Problem(_orbit, (1 - e, 0.0, 0.0, ((1 + e) / (1 - e)) ** 0.5))


def _sin(t):
    return torch.sin(torch.as_tensor(t)) if isinstance(t, torch.Tensor) else np.sin(t)


def _cos(t):
    return torch.cos(torch.as_tensor(t)) if isinstance(t, torch.Tensor) else np.cos(t)


def _bessel(t, y):
    return [y[1], -(y[1] / (t + 1) + (1 - 0.25 / (t + 1) ** 2) * y[0])]


def _pleiades(t, y):
    x, v, speeds = y[:7], y[7:14], y[14:]
    ax, av = [], []
    for i in range(7):
        sums = [0.0, 0.0]
        for j in range(7):
            if j != i:
                r3 = ((x[i] - x[j]) ** 2 + (v[i] - v[j]) ** 2) ** 1.5
                sums = [sums[0] + (j + 1) * (x[j] - x[i]) / r3, sums[1] + (j + 1) * (v[j] - v[i]) / r3]
        ax.append(sums[0])
        av.append(sums[1])
    return [*speeds, *ax, *av]


_MOON = 0.012277471


def _arenstorf(t, y):
    d1 = ((y[0] + _MOON) ** 2 + y[1] ** 2) ** 1.5
    d2 = ((y[0] - (1 - _MOON)) ** 2 + y[1] ** 2) ** 1.5
    return [
        y[2], y[3],
        y[0] + 2 * y[3] - (1 - _MOON) * (y[0] + _MOON) / d1 - _MOON * (y[0] - (1 - _MOON)) / d2,
        y[1] - 2 * y[2] - (1 - _MOON) * y[1] / d1 - _MOON * y[1] / d2,
    ]  # fmt: skip


PROBLEMS = {
    "A1": Problem(lambda t, y: [-y[0]], (1.0,)),
    "A2": Problem(lambda t, y: [-(y[0] ** 3) / 2], (1.0,)),
    "A3": Problem(lambda t, y: [y[0] * _cos(t)], (1.0,)),
    "A4": Problem(lambda t, y: [y[0] / 4 * (1 - y[0] / 20)], (1.0,)),
    "A5": Problem(lambda t, y: [(y[0] - t) / (y[0] + t)], (4.0,)),
    "B1": Problem(lambda t, y: [2 * (y[0] - y[0] * y[1]), -(y[1] - y[0] * y[1])], (1.0, 3.0)),
    "B2": Problem(lambda t, y: [-y[0] + y[1], y[0] - 2 * y[1] + y[2], y[1] - y[2]], (2.0, 0.0, 1.0)),
    "B3": Problem(lambda t, y: [-y[0], y[0] - y[1] ** 2, y[1] ** 2], (1.0, 0.0, 0.0)),
    "B4": Problem(_on_torus, (3.0, 0.0, 0.0)),
    "B5": Problem(lambda t, y: [y[1] * y[2], -y[0] * y[2], -0.51 * y[0] * y[1]], (0.0, 1.0, 1.0)),
    "C1": Problem(_chain, (1.0, *[0.0] * 9)),
    "C2": Problem(_faster_chain, (1.0, *[0.0] * 9)),
    "C3": Problem(_diffusion, (1.0, *[0.0] * 9)),
    "C4": Problem(_diffusion, (1.0, *[0.0] * 50)),
    "D1": _eccentric(0.1),
    "D2": _eccentric(0.3),
    "D3": _eccentric(0.5),
    "D4": _eccentric(0.7),
    "D5": _eccentric(0.9),
    "E1": Problem(_bessel, (0.6713967071418030, 0.09540051444747446)),
    "E2": Problem(lambda t, y: [y[1], (1 - y[0] ** 2) * y[1] - y[0]], (2.0, 0.0)),
    "E3": Problem(lambda t, y: [y[1], y[0] ** 3 / 6 - y[0] + 2 * _sin(2.78535 * t)], (0.0, 0.0)),
    "E4": Problem(lambda t, y: [y[1], 0.032 - 0.4 * y[1] ** 2], (30.0, 0.0)),
    "E5": Problem(lambda t, y: [y[1], (1 + y[1] ** 2) ** 0.5 / (25 - t)], (0.0, 0.0)),
    "Pleiades": Problem(
        _pleiades,
        (3, 3, -1, -3, 2, -2, 2, 3, -3, 2, 0, 0, -4, 4, 0, 0, 0, 0, 0, 1.75, -1.5, 0, 0, 0, -1.25, 1, 0, 0),
        3.0,
    ),
    "Arenstorf": Problem(_arenstorf, (0.994, 0.0, 0.0, -2.00158510637908252240537862224), 17.0652165601579625588917206249),
}  # fmt: skip


def solve_with_scipy(name, method, rtol, end=None):
    """The state at the end by one of SciPy's solvers."""
    problem = PROBLEMS[name]
    solved = solve_ivp(
        lambda t, y: np.array(problem.columns(t, list(y))), (0, end or problem.end), problem.start,
        method=method, rtol=rtol, atol=rtol,
    )  # fmt: skip
    return torch.from_numpy(solved.y[:, -1][None])


@functools.cache
def truth(name, end=None):
    """The state at the end, by DOP853."""
    return solve_with_scipy(name, "DOP853", 1e-13, end)
