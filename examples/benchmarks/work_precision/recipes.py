"""Hypersolvers as others have them: reference recipes (i) and (ii), and torchdyn's HyperEuler.

Written from their published descriptions. At our budget they get the rows that ours are fitted on, reference solutions
free of charge, the CPU seconds of the problem, and the weights that were best on validation rows.
"""

from __future__ import annotations

import copy
import math
from itertools import pairwise

import torch
from _solving import uniform_grid
from torch import Tensor, nn
from torch.nn import functional

from sklearn_hyper.numerics import reference_solution

from .loading import LoadedProblem
from .nets import G_SHARE, recipe_net, with_eps
from .stepping import Field, SteppingModule, bound_field
from .training import Trace, train


class ReferenceHyperEuler(SteppingModule):
    """Recipe (i): g reads [z, f(s, z), eps]; its code evaluates f once for the step and once for g.

    With ``shared=True`` both use one evaluation, which the reference does not do.
    """

    def __init__(self, loaded: LoadedProblem, n_steps: int, *, published: int | None = None, share: float = G_SHARE):
        super().__init__(loaded, n_steps)
        self.net = recipe_net(loaded, 2, published, share)
        self.shared = False

    def step(self, f: Field, s: float, eps: float, z: Tensor, z0: Tensor) -> Tensor:
        psi = f(s, z)
        stage = psi if self.shared else f(s, z)
        return z + eps * psi + eps**2 * self.net(with_eps([z, stage], eps))


class ReferenceHyperHeun(SteppingModule):
    """Recipe (ii): g reads [x, f(x), f(x + eps f(x)), x0, eps]; its code evaluates f twice more for g."""

    def __init__(self, loaded: LoadedProblem, n_steps: int, *, published: int | None = None):
        super().__init__(loaded, n_steps)
        self.net = recipe_net(loaded, 4, published)
        nn.init.zeros_(self.net[-1].weight)
        nn.init.zeros_(self.net[-1].bias)
        self.shared = False

    def step(self, f: Field, s: float, eps: float, z: Tensor, z0: Tensor) -> Tensor:
        def stages() -> tuple[Tensor, Tensor]:
            first = f(s, z)
            return first, f(s + eps, z + eps * first)

        own = stages()
        read = own if self.shared else stages()
        g = self.net(with_eps([z, *read, z0], eps))
        return z + eps * (own[0] + own[1]) / 2 + eps**3 * g


class TorchdynHyperEuler(SteppingModule):
    """The hypersolver that torchdyn has: g(t, z) only. Trained here, run by the package itself in peers."""

    def __init__(self, loaded: LoadedProblem, n_steps: int):
        super().__init__(loaded, n_steps)
        self.net = StateNet(recipe_net(loaded, 1, None))

    def step(self, f: Field, s: float, eps: float, z: Tensor, z0: Tensor) -> Tensor:
        return z + eps * f(s, z) + eps**2 * self.net(s, z)


class StateNet(nn.Module):
    """g(t, z) with t as a feature or channel."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, t: float | Tensor, z: Tensor) -> Tensor:
        return self.net(with_eps([z], float(t)))


# ---------------------------------------------------------------------- recipe (i)
def fit_residuals(model: SteppingModule, loaded: LoadedProblem, seed: int, **how: object) -> Trace:
    """Recipe (i)'s loss at one step size: the Frobenius norm of eps^2 (g - R), all steps of the mesh at once."""
    ode, n_steps = loaded.neural_ode, model.n_steps
    grid = uniform_grid(ode.t_span, n_steps)
    known = loaded.states_at(n_steps)
    f = bound_field(ode, loaded.rows["fit"])
    with torch.no_grad():
        slopes = [f(s, z) for s, z in zip(grid[:-1], known[:-1], strict=True)]

    def loss(rows: Tensor) -> Tensor:
        total = 0.0
        for i, (s, after) in enumerate(pairwise(grid)):
            eps, z, slope = after - s, known[i][rows], slopes[i][rows]
            step = model.step(lambda _s, _z, slope=slope: slope, s, eps, z, z)
            total = total + (known[i + 1][rows] - step).pow(2).sum()
        return total.sqrt()

    # In the same seconds the published lr of 1e-3 and batch of 16 go less far (validation rows of two problems).
    defaults = {
        "seconds": loaded.seconds_for(n_steps),
        "lr": 5e-3,
        "final_lr": 5e-4,
        "weight_decay": 1e-8,
        "batch": 256,
    }
    return train(model, loss, loaded, seed=seed, **(defaults | how))


def fit_published_hypereuler(
    loaded: LoadedProblem, seed: int, iterations: int = 15_000, seconds: float = math.inf, n_steps: int = 9
) -> tuple[ReferenceHyperEuler, Trace]:
    """Recipe (i) as published: eps = 1/9, batches of 16, dopri5 at 1e-4 solved anew at every iteration.

    It is trained at nine steps whatever ``n_steps`` it is to be used with.
    """
    model = ReferenceHyperEuler(loaded, 9, published=32)
    ode, x = loaded.neural_ode, loaded.rows["fit"]
    grid = uniform_grid(ode.t_span, 9)

    def loss(rows: Tensor) -> Tensor:
        some = x[rows]
        f = bound_field(ode, some)
        with torch.no_grad():
            z0, control = ode.input_map(some), ode.inputs(some).x
            known = reference_solution(ode.vector_field, z0, grid, rtol=1e-4, atol=1e-4, x=control)
        total = 0.0
        for i, (s, after) in enumerate(pairwise(grid)):
            step = model.step(lambda s, z: f(s, z).detach(), s, after - s, known[i], known[0])
            total = total + (known[i + 1] - step).pow(2).sum()
        return total.sqrt()

    model.n_steps = n_steps  # what the weights that are kept, and the trace, are judged at
    trace = train(
        model, loss, loaded, seed=seed, iterations=iterations, seconds=seconds, lr=1e-3, final_lr=5e-4,
        weight_decay=1e-8, batch=16,
    )  # fmt: skip
    return model, trace


# ---------------------------------------------------------------------- recipe (ii)
def fit_endpoint(model: ReferenceHyperHeun, loaded: LoadedProblem, seed: int) -> Trace:
    """Recipe (ii)'s loss: L1 distance of terminal states, through the unrolled solve."""
    x, exact = loaded.rows["fit"], loaded.fitted_ends

    def loss(rows: Tensor) -> Tensor:
        return functional.l1_loss(model(x[rows]), exact[rows])

    model.shared = True  # the second pair of evaluations gives the same, so the fit need not wait for it
    seconds = loaded.seconds_for(2 * model.n_steps)
    trace = train(model, loss, loaded, seed=seed, seconds=seconds, lr=5e-3, final_lr=5e-4, clip=0.5)
    model.shared = False
    return trace


def fit_published_hyperheun(
    loaded: LoadedProblem, seed: int, iterations: int = 3000
) -> tuple[ReferenceHyperHeun, Trace]:
    """Recipe (ii) as published: K = 1, fresh base draws and dopri5 at 1e-8 at every iteration (float64, to get there)."""
    model = ReferenceHyperHeun(loaded, 1, published=64)
    model.shared = True
    ode, exact = loaded.neural_ode, copy.deepcopy(loaded.neural_ode).double()
    shape = loaded.rows["fit"].shape[1:]
    draw = torch.Generator().manual_seed(seed)

    def loss(rows: Tensor) -> Tensor:
        x = torch.randn(len(rows), *shape, generator=draw)
        with torch.no_grad():
            known = reference_solution(exact.vector_field, x.double(), ode.t_span, rtol=1e-8, atol=1e-8)[-1]
        return functional.l1_loss(model(x), known.float())

    trace = train(model, loss, loaded, seed=seed, iterations=iterations, lr=5e-3, final_lr=5e-4, clip=0.5)
    model.shared = False
    return model, trace
