"""Copies of f that are trained on, as few-step samplers have them: SFD, and at one step a flow map from f's weights.

Written from the published description (Zhou et al., 2024, *Simple and Fast Distillation of Diffusion Models*).
"""

from __future__ import annotations

import copy
from itertools import pairwise

import torch
from _solving import uniform_grid
from torch import Tensor
from torch.nn import functional

from .loading import LoadedProblem
from .stepping import SteppingModule, bound_field
from .training import Trace, train


class FineTunedCopy(SteppingModule):
    """Euler steps of a copy of f, whose weights all steps share."""

    def __init__(self, loaded: LoadedProblem, n_steps: int):
        super().__init__(loaded, n_steps)
        self.neural_ode = copy.deepcopy(loaded.neural_ode)  # its vector field is what learns
        self.neural_ode.vector_field.requires_grad_(True)

    def step(self, f: object, s: float, eps: float, z: Tensor, z0: Tensor) -> Tensor:
        return z + eps * f(s, z)


def fit_copy(model: FineTunedCopy, loaded: LoadedProblem, seed: int) -> Trace:
    """SFD's loss: from where its own steps have come to, the L1 distance to the reference at the end of each step."""
    x, known = loaded.rows["fit"], loaded.states_at(model.n_steps)
    grid = uniform_grid(loaded.neural_ode.t_span, model.n_steps)
    with torch.no_grad():
        starts = loaded.neural_ode.input_map(x)

    def loss(rows: Tensor) -> Tensor:
        f, z, total = bound_field(model.neural_ode, x[rows]), starts[rows], 0.0
        for i, (s, after) in enumerate(pairwise(grid)):
            z = model.step(f, s, after - s, z.detach(), z)
            total = total + functional.l1_loss(z, known[i + 1][rows])
        return total

    return train(model, loss, loaded, seed=seed, seconds=loaded.seconds_for(model.n_steps), lr=3e-3)
