"""How rivals are trained."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from itertools import pairwise

import torch
from _solving import uniform_grid
from torch import Tensor, nn
from torch.nn import functional

from .loading import LoadedProblem
from .measuring import validation_error
from .stepping import SteppingModule

Trace = list[dict[str, float]]
"""Validation errors on the way, with the iterations and CPU seconds up to there."""


def train(
    model: nn.Module,
    loss: Callable[[Tensor], Tensor],
    loaded: LoadedProblem,
    *,
    seed: int,
    seconds: float = math.inf,
    iterations: float = math.inf,
    lr: float,
    final_lr: float = 0.0,
    batch: int = 256,
    clip: float = 1.0,
    weight_decay: float = 0.0,
    checks: int = 20,
) -> list[dict[str, float]]:
    """AdamW on a cosine, for so many CPU seconds or iterations; the weights that did best on validation rows stay.

    Returns the validation error at every check, with the iterations and CPU seconds up to there.
    """
    draw = torch.Generator().manual_seed(seed)
    n_rows = len(loaded.rows["fit"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)
    best, kept, trace = math.inf, copy.deepcopy(model.state_dict()), []
    start, checking, iteration, share = time.process_time(), 0.0, 0, 0.0
    while True:
        if share >= len(trace) / checks:
            began = time.process_time()
            error = validation_error(model, loaded)
            trace.append({"iteration": iteration, "seconds": began - start - checking, "error": error})
            if error < best:
                best, kept = error, copy.deepcopy(model.state_dict())
            checking += time.process_time() - began
        if share >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = final_lr + (lr - final_lr) * (1 + math.cos(math.pi * share)) / 2
        optimizer.zero_grad()
        value = loss(torch.randint(n_rows, (batch,), generator=draw))
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        iteration += 1
        share = max((time.process_time() - start - checking) / seconds, iteration / iterations)
    model.load_state_dict(kept)
    return trace


def train_steps(model: SteppingModule, loaded: LoadedProblem, seed: int, *, n_evaluations: int, lr: float) -> Trace:
    """Train as few-step samplers are: from where its own steps have come to, each learns where the reference is.

    The loss is the L1 distance at the end of every step; no gradient goes through earlier steps.
    """
    x, known = loaded.rows["fit"], loaded.states_at(model.n_steps)
    grid = uniform_grid(loaded.neural_ode.t_span, model.n_steps)
    starts = loaded.initial_states

    def loss(rows: Tensor) -> Tensor:
        f, z0, total = model.bind(x[rows]), starts[rows], 0.0
        z = z0
        for (s, after), exact in zip(pairwise(grid), known[1:], strict=True):
            z = model.step(f, s, after - s, z.detach(), z0)
            total = total + functional.l1_loss(z, exact[rows])
        return total

    return train(model, loss, loaded, seed=seed, seconds=loaded.seconds_for(n_evaluations), lr=lr)
