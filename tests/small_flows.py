"""Flows small enough to fit in a moment, and fitted ones that hold a flow with closed forms."""

import numpy as np
import torch

from sklearn_hyper import ContinuousNormalizingFlow, HypersolverDensity
from sklearn_hyper.modules import Flow, MLPVectorField


def make_flow(n_features=2, *, hidden=16, gain=1.0, dtype=torch.float64, **params):
    """With a large gain the field is curved from the start, and a few steps miss its flow without any training."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        field = MLPVectorField(n_features, hidden=hidden).to(dtype)
    for parameter in field.parameters():
        parameter.data *= gain
    return ContinuousNormalizingFlow(field, **{"max_epochs": 3, "random_state": 0} | params)


def holding(problem, **params):
    """A fitted estimator whose flow is a FlowProblem's."""
    flow = make_flow(problem.n_features, hidden=2, t_span=problem.t_span, **params | {"max_epochs": 1})
    flow.fit(problem.sample(20).numpy())
    flow.flow_ = Flow(problem.field, n_features=problem.n_features, t_span=problem.t_span)
    flow.neural_ode_ = flow.flow_.sampling()
    return flow


def correlated(n_samples=300, correlation=0.9, seed=0):
    """Two normal features, far from zero and of unequal scale, that a standardisation leaves correlated."""
    z = np.random.default_rng(seed).normal(size=(n_samples, 2))
    z[:, 1] = correlation * z[:, 0] + np.sqrt(1 - correlation**2) * z[:, 1]
    return z * [0.1, 40.0] + [5.0, -300.0]


def entropy_of_correlated(correlation=0.9):
    return 1 + np.log(2 * np.pi) + np.log(0.1 * 40.0) + np.log(1 - correlation**2) / 2


def two_blobs(n_samples=300, seed=0):
    """No single normal distribution: its log density at its own samples is about -2.0, a normal's -2.8."""
    rng = np.random.default_rng(seed)
    return rng.normal(scale=0.4, size=(n_samples, 2)) + rng.choice([-1.0, 1.0], size=(n_samples, 1)) * [1.5, 0.5]


def make_fast(flow, **params):
    """A hypersolver of a flow, fitted in a moment."""
    defaults = {"base_solver": "heun", "n_steps": 2, "max_epochs": 3, "max_samples": 40, "random_state": 0}
    return HypersolverDensity(flow, **defaults | params)


LIKELIHOOD = {"objective": "likelihood", "hidden": 8, "lr": 2e-2, "batch_size": 64}
"""Parameters of a flow that is trained by its likelihood."""
