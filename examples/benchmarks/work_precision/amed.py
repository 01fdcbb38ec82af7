"""AMED: two evaluations a step, the second at a time that a net predicts from f's hidden layer in the first one.

Written from the published description (Zhou et al., 2024, *Fast ODE-based Sampling for Diffusion Models in Around 5
Steps*).
"""

from __future__ import annotations

from itertools import pairwise

import torch
from _solving import uniform_grid
from torch import Tensor, nn
from torch.nn import functional

from .loading import LoadedProblem
from .stepping import Field, SteppingModule, bound_row_field
from .training import Trace, train

_LAYERS = (nn.Linear, nn.Conv2d)
_WIDTH = 32


class Amed(SteppingModule):
    """z + c eps f(s + r eps, z + r eps f(s, z)), with r and c of every row from f's last hidden layer."""

    def __init__(self, loaded: LoadedProblem, n_steps: int):
        super().__init__(loaded, n_steps)
        self.last = [part for part in self.neural_ode.vector_field.modules() if isinstance(part, _LAYERS)][-1]
        x = loaded.rows["fit"][:2]
        with torch.no_grad():
            f, z = bound_row_field(self.neural_ode, x), self.neural_ode.input_map(x)
            _, hidden = self._first(f, torch.full((2,), float(self.neural_ode.t_span[0])), z)
        width = hidden.shape[1] + n_steps
        self.net = nn.Sequential(nn.Linear(width, _WIDTH), nn.SiLU(), nn.Linear(_WIDTH, 2))
        nn.init.zeros_(self.net[-1].weight)
        nn.init.zeros_(self.net[-1].bias)

    def solve(self, f: Field, z: Tensor) -> Tensor:
        raise NotImplementedError  # times of every row need the rows

    def forward(self, x: Tensor) -> Tensor:
        f, z = bound_row_field(self.neural_ode, x), self.neural_ode.input_map(x)
        for k, (s, after) in enumerate(pairwise(uniform_grid(self.neural_ode.t_span, self.n_steps))):
            z = self.row_step(f, k, s, after - s, z)
        return z

    def row_step(self, f: Field, k: int, s: float, eps: float, z: Tensor) -> Tensor:
        """Step k from z at s."""
        start = z.new_full((len(z),), s)
        slope, hidden = self._first(f, start, z)
        step = functional.one_hot(torch.tensor(k), self.n_steps).to(z).expand(len(z), -1)
        raw = self.net(torch.cat([hidden, step], dim=1))
        r, c = torch.sigmoid(raw[:, 0]), 1 + raw[:, 1]
        columns = (-1, *[1] * (z.ndim - 1))
        inner = z + eps * r.view(columns) * slope
        return z + eps * c.view(columns) * f(start + eps * r, inner)

    def _first(self, f: Field, s: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """f and the mean over pixels of what its last layer reads."""
        read: list[Tensor] = []
        handle = self.last.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
        try:
            slope = f(s[0], z)  # at one time: a hook cannot keep what vmap computes
        finally:
            handle.remove()
        hidden = read[0]
        return slope, hidden.flatten(2).mean(dim=2) if hidden.ndim > 2 else hidden


def fit_amed(model: Amed, loaded: LoadedProblem, seed: int) -> Trace:
    """AMED's loss: from where its own steps have come to, the L1 distance to the reference at the end of each step."""
    x, known = loaded.rows["fit"], loaded.states_at(model.n_steps)
    grid = uniform_grid(loaded.neural_ode.t_span, model.n_steps)
    with torch.no_grad():
        starts = loaded.neural_ode.input_map(x)

    def loss(rows: Tensor) -> Tensor:
        f, z, total = bound_row_field(model.neural_ode, x[rows]), starts[rows], 0.0
        for k, (s, after) in enumerate(pairwise(grid)):
            z = model.row_step(f, k, s, after - s, z.detach())
            total = total + functional.l1_loss(z, known[k + 1][rows])
        return total

    return train(model, loss, loaded, seed=seed, seconds=loaded.seconds_for(2 * model.n_steps), lr=1e-2)
