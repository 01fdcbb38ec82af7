"""AMED: two evaluations a step, the second at a time that a net predicts from f's hidden layer in the first one.

Written from the published description (Zhou et al., 2024, *Fast ODE-based Sampling for Diffusion Models in Around 5
Steps*).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from .loading import LoadedProblem
from .stepping import Field, SteppingModule, bound_row_field
from .training import Trace, train_steps

_LAYERS = (nn.Linear, nn.Conv2d)
_WIDTH = 32


class Amed(SteppingModule):
    """z + c eps f(s + r eps, z + r eps f(s, z)), with r and c of every row from f's last hidden layer."""

    def __init__(self, loaded: LoadedProblem, n_steps: int):
        super().__init__(loaded, n_steps)
        self.last = [part for part in self.neural_ode.vector_field.modules() if isinstance(part, _LAYERS)][-1]
        with torch.no_grad():
            f, z = self.bind(loaded.rows["fit"][:2]), loaded.initial_states[:2]
            _, hidden = self._first(f, self.neural_ode.t_span[0], z)
        width = hidden.shape[1] + n_steps
        self.net = nn.Sequential(nn.Linear(width, _WIDTH), nn.SiLU(), nn.Linear(_WIDTH, 2))
        nn.init.zeros_(self.net[-1].weight)
        nn.init.zeros_(self.net[-1].bias)

    def bind(self, x: Tensor) -> Field:
        return bound_row_field(self.neural_ode, x)

    def step(self, f: Field, s: float, eps: float, z: Tensor, z0: Tensor) -> Tensor:
        k = round((s - self.neural_ode.t_span[0]) / eps)
        slope, hidden = self._first(f, s, z)
        step = functional.one_hot(torch.tensor(k), self.n_steps).to(z).expand(len(z), -1)
        raw = self.net(torch.cat([hidden, step], dim=1))
        r, c = torch.sigmoid(raw[:, 0]), 1 + raw[:, 1]
        columns = (-1, *[1] * (z.ndim - 1))
        inner = z + eps * r.view(columns) * slope
        return z + eps * c.view(columns) * f(s + eps * r, inner)

    def _first(self, f: Field, s: float, z: Tensor) -> tuple[Tensor, Tensor]:
        """f and the mean over pixels of what its last layer reads."""
        read: list[Tensor] = []
        handle = self.last.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
        try:
            slope = f(s, z)  # at one time: a hook cannot keep what vmap computes
        finally:
            handle.remove()
        hidden = read[0]
        return slope, hidden.flatten(2).mean(dim=2) if hidden.ndim > 2 else hidden


def fit_amed(model: Amed, loaded: LoadedProblem, seed: int) -> Trace:
    """AMED's training; its learning rate is the better of two on validation rows of moons and digits."""
    return train_steps(model, loaded, seed, n_evaluations=2 * model.n_steps, lr=1e-2)
