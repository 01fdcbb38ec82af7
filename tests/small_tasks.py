"""Tasks and settings small enough to fit in a moment, for tests of training and of fitted hypersolvers on tensors."""

import numpy as np
import pytest
import torch
from problems import LOGISTIC, MULTISTEP, named
from small_hypersolvers import Swirl
from torch import nn

from sklearn_hyper import NeuralODE
from sklearn_hyper.hypersolvers import FitSettings, Task
from sklearn_hyper.modules import BoundedCorrection, CorrectionNet
from sklearn_hyper.modules.corrections import fit_units
from sklearn_hyper.numerics import resolve_base_solver
from sklearn_hyper.training.errors import References
from sklearn_hyper.training.plan import FitPlan, Run, StepSizes, make_plan
from sklearn_hyper.training.targets import Target, span_units, task_residuals

each_multistep = pytest.mark.parametrize("method", **named(MULTISTEP))
each_span = pytest.mark.parametrize("t_span", [(0.5, 2.5), (2.5, 0.5)], ids=["forward", "reverse"])


def rows(n=60, seed=0, dtype=torch.float64):
    """Initial states in the unit square."""
    return torch.rand(n, 2, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 2 - 1


class Turn(Swirl):
    """The swirl at another speed."""

    def __init__(self, speed=1.0):
        super().__init__()
        self.speed = speed

    def forward(self, t, z):
        return self.speed * super().forward(t, z)


def turn_task(n=60, speed=1.0, seed=0):
    return Task(NeuralODE(Turn(speed)).eval().requires_grad_(False), rows(n, seed))


def fit_settings(**changes):
    return FitSettings(
        **{
            "base_solver": "euler",
            "n_steps": 2,
            "max_epochs": 10,
            "lr": 1e-2,
            "batch_size": 16,
            "random_state": 0,
            "optimizer": torch.optim.Adam,
        }
        | changes
    )


# ---------------------------------------------------------------------- with a closed form, and so without dopri5
def logistic_references(plan: FitPlan, n=24):
    """Exact references on the mesh of a plan."""
    z0 = torch.linspace(0.1, 0.9, n, dtype=torch.float64)[:, None]
    ode = NeuralODE(LOGISTIC.f, t_span=LOGISTIC.t_span)
    states = torch.stack([LOGISTIC.exact(plan.times[0], s, z0) for s in plan.times])
    return References(Task(ode, z0), plan.times, states, span_units(ode, states))


def logistic_plan(base_solver="euler", n_steps=3, fit_n_steps=None):
    sizes = StepSizes.from_parameters(n_steps, fit_n_steps)
    method = resolve_base_solver(base_solver)
    return make_plan([method], LOGISTIC.t_span, n_steps, sizes, np.random.default_rng(0))


def logistic_targets(base_solver="euler", **how):
    """A plan, exact references along it, and the targets of its steps."""
    plan = logistic_plan(base_solver, **how)
    references = logistic_references(plan)
    residuals = task_residuals(references.task.neural_ode, plan.times, references.states, references.inputs, plan.steps)
    return plan, references, [Target.of(residual, references.unit) for residual in residuals]


def run_of(base_solver, n_steps):
    return Run(resolve_base_solver(base_solver), n_steps)


class Scaled(CorrectionNet):
    """The leading term of Euler's residual of the logistic equation, f f', times one number; zero is the base solver."""

    takes_row_steps = True

    def __init__(self, size=0.0):
        super().__init__()
        self.size = nn.Parameter(torch.tensor(size, dtype=torch.float64))

    def forward(self, eps, s, z, stages, x, kind):
        return self.size * stages[0] * (1 - 2 * z)


def scaled_correction(targets, size=0.0):
    """A correction in the units of some targets, not to be trained unless gradients are asked for."""
    correction = BoundedCorrection(Scaled(size), fit_units([target.residual for target in targets]))
    return correction.requires_grad_(False)
