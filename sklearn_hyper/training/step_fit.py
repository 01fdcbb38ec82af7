"""Learn how long a step may be: fit a net to the errors that corrected steps have on held-out rows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..modules.corrections import ModuleCorrection
from ..modules.learned_steps import LearnedSteps
from ..modules.seeding import own_generator, seeded
from ..numerics.methods import Method
from ..numerics.tensors import flatten_samples
from ..numerics.units import absolute_tolerance
from .targets import TaskSet

_UPDATES, _BATCH, _LR = 1000, 1024, 1e-2
_USUAL = 0.999
"""Share of steps whose corrections are usual for their errors. A larger one shows a state unlike those of the fit."""
_LEAST_SPREAD = 0.1
"""Spread of log errors that are all alike, as where a field is trivial."""


class StepErrors(NamedTuple):
    """Corrected steps of rows: where they start, their sizes, their corrections and errors as shares of the state."""

    s: Tensor
    z: Tensor
    slopes: Tensor
    eps: Tensor
    corrections: Tensor
    errors: Tensor


def fit_steps(data: TaskSet, correction: ModuleCorrection, method: Method, seed: int) -> LearnedSteps:
    """Fit what proposes steps, from the planned steps of the rows that g was not trained on.

    Parameters
    ----------
    data : TaskSet
        Its held-out targets are read.
    correction : ModuleCorrection
        g as it was fitted.
    method : Method
        The base method. Steps of others of its family are left out.
    seed : int
        Of the net's start and of its batches.

    Returns
    -------
    LearnedSteps
        In eval mode and frozen, in the dtype of the states and on their device.
    """
    task, z = data.valid.task, data.valid.states[0]
    ode = task.neural_ode
    sizes = torch.as_tensor(absolute_tolerance(None, 1.0, z, ode.state_size, ode.n_unitless)).to(z)
    parts = list(corrected_steps(data, correction, method, sizes))
    # The features are of the states' dtype, the rest in float64: u is a ratio of logarithms.
    found = StepErrors(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))
    with seeded(seed, z.device):
        steps = LearnedSteps(ode.t_span, (float(found.eps.min()), float(found.eps.max())), method.order + 1, sizes)
    return _train(steps.to(z), found, seed).eval().requires_grad_(False)


def corrected_steps(data: TaskSet, correction: ModuleCorrection, method: Method, sizes: Tensor) -> Iterator[StepErrors]:
    """Yield the planned steps of held-out rows, with the errors that are left after the correction."""
    valid = data.valid
    for step, target in zip(data.plan.steps, data.valid_targets, strict=True):
        if step.method != method:
            continue
        r = target.residual
        with torch.no_grad():
            g = correction(r.eps, r.time(), r.z, r.stages, valid.inputs.x, r.kind)
        # In float64: eps^(p + 1) may leave the range of the states' dtype, and the error does not.
        scale = sizes + torch.maximum(r.z.abs(), valid.states[step.end].abs())
        terms = (part.double() * abs(r.eps) ** (r.order + 1) / scale for part in (g, r.target - g))
        corrections, errors = (flatten_samples(term).square().mean(dim=1).sqrt() for term in terms)
        like = torch.ones_like(errors)
        yield StepErrors(r.s * like, r.z, r.stages[0], abs(r.eps) * like, corrections, errors)


def _train(steps: LearnedSteps, found: StepErrors, seed: int) -> LearnedSteps:
    """Regress log errors; then shift them, so that the mean error of steps is the one that is asked for."""
    features = steps.features(found.s, found.z, found.slopes)
    # Below the rounding of states, errors are noise.
    logs = found.errors.clamp(min=torch.finfo(found.z.dtype).eps).log().to(features)
    kept = logs.isfinite() & features.isfinite().all(dim=1)
    features, logs, eps, corrections = features[kept], logs[kept], found.eps[kept], found.corrections[kept]
    steps.shift.copy_(features.mean(dim=0))
    steps.scale.copy_(_spread(features).clamp(min=_LEAST_SPREAD))
    steps.unit.copy_(torch.stack([logs.mean(), _spread(logs).clamp(min=_LEAST_SPREAD)]))
    optimizer = torch.optim.Adam(steps.parameters(), _LR)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LR, total_steps=_UPDATES)
    generator = own_generator(seed)
    for _ in range(_UPDATES):
        rows = torch.randint(len(logs), (min(_BATCH, len(logs)),), generator=generator).to(logs.device)
        missed = (logs[rows] - steps.log_errors(features[rows], eps[rows])) / steps.unit[1]
        optimizer.zero_grad()
        missed.square().mean().backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        missed = logs - steps.log_errors(features, eps)
        steps.unit[0] += missed.exp().mean().log()
        usual = corrections / steps.log_errors(features, eps).exp()
        steps.limit.copy_(usual.sort().values[math.ceil(_USUAL * len(usual)) - 1])
    return steps


def _spread(values: Tensor) -> Tensor:
    return values.std(dim=0, correction=0)
