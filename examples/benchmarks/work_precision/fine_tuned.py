"""Copies of f that are trained on, as few-step samplers have them: SFD, and at one step a flow map from f's weights.

Written from the published description (Zhou et al., 2024, *Simple and Fast Distillation of Diffusion Models*).
"""

from __future__ import annotations

import copy

from torch import Tensor

from .loading import LoadedProblem
from .stepping import Field, SteppingModule
from .training import Trace, train_steps


class FineTunedCopy(SteppingModule):
    """Euler steps of a copy of f, whose weights all steps share."""

    def __init__(self, loaded: LoadedProblem, n_steps: int):
        super().__init__(loaded, n_steps)
        self.neural_ode = copy.deepcopy(loaded.neural_ode)  # its vector field is what learns
        self.neural_ode.vector_field.requires_grad_(True)

    def step(self, f: Field, s: float, eps: float, z: Tensor, z0: Tensor) -> Tensor:
        return z + eps * f(s, z)


def fit_copy(model: FineTunedCopy, loaded: LoadedProblem, seed: int) -> Trace:
    """SFD's training; its learning rate is the best of three on validation rows of moons and digits."""
    return train_steps(model, loaded, seed, n_evaluations=model.n_steps, lr=3e-3)
